//! Copies what a conversation has grown by to the node that would own the session next, so
//! that a crash of this one loses none of it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

use super::{actor::Command, stats::Stats, warm::Prepared};
use crate::{
    ids::{Incarnation, SessionId},
    ring::Ring,
    telemetry::metrics::{Metrics, Outcome},
};

/// Copies that may wait. What does not fit is copied whole with the session's next turn.
const QUEUE: usize = 1024;

/// Copies in one call.
const BATCH: usize = 64;

/// How this node reaches its sessions' heirs. Implemented by the peers.
#[async_trait]
pub trait Heirs: Send + Sync + 'static {
    /// Leaves conversations with an heir; whether each was kept.
    ///
    /// # Errors
    /// The heir did not answer; whether it has them is unknown, and sending them again does
    /// no harm.
    async fn prepare(
        &self,
        heir: Incarnation,
        addr: &str,
        prepared: &[Prepared],
    ) -> Result<Vec<bool>, String>;

    /// Nudges a new owner to open the session before its client asks.
    ///
    /// # Errors
    /// The heir did not answer; it learns of the session when a client asks for it.
    async fn activate(
        &self,
        heir: Incarnation,
        addr: &str,
        session: SessionId,
    ) -> Result<(), String>;
}

/// One copy on its way, and whom to ask for everything if a part is not enough.
pub(super) struct Copy {
    pub(super) prepared: Prepared,
    /// Resolves when the heir has it, or will not have it.
    pub(super) acknowledge: oneshot::Sender<()>,
    /// Where it is noted who has it.
    pub(super) stats: Arc<Stats>,
    pub(super) actor: mpsc::WeakSender<Command>,
}

/// Where sessions leave their copies.
#[derive(Clone)]
pub struct Replicator(mpsc::Sender<Copy>);

impl Replicator {
    /// Starts the copying task; it ends when every sender is dropped.
    pub fn start(
        me: Incarnation,
        heirs: Arc<dyn Heirs>,
        ring: watch::Receiver<Arc<Ring>>,
        metrics: Metrics,
        tracker: &TaskTracker,
    ) -> Self {
        let (tx, mut rx) = mpsc::channel(QUEUE);
        tracker.spawn(async move {
            let mut batch = Vec::new();
            while rx.recv_many(&mut batch, BATCH).await > 0 {
                copy(me, &*heirs, &ring, &metrics, std::mem::take(&mut batch)).await;
            }
        });
        Self(tx)
    }

    /// Leaves a copy to be sent soon. Never waits; false if too many wait already.
    pub(super) fn put(&self, copy: Copy) -> bool {
        self.0.try_send(copy).is_ok()
    }
}

/// The member that would own the session if this one were gone.
pub(super) fn next_owner(ring: &Ring, me: Incarnation, session: SessionId) -> Option<Incarnation> {
    let placement = &ring.placement;
    placement.owner(session).into_iter().chain(placement.successors(session)).find(|n| *n != me)
}

async fn copy(
    me: Incarnation,
    heirs: &dyn Heirs,
    ring: &watch::Receiver<Arc<Ring>>,
    metrics: &Metrics,
    batch: Vec<Copy>,
) {
    /// A heir that is away must not hold up the copies to the others for long.
    const PAUSE: Duration = Duration::from_millis(50);

    let ring = ring.borrow().clone();
    let mut by_heir: HashMap<Incarnation, Vec<Copy>> = HashMap::new();
    for copy in batch {
        if let Some(heir) = next_owner(&ring, me, copy.prepared.session) {
            by_heir.entry(heir).or_default().push(copy);
        } else {
            copy.stats.set_heir(None);
        }
    }
    for (heir, copies) in by_heir {
        let Some(member) = ring.member(heir) else { continue };
        let prepared: Vec<Prepared> = copies.iter().map(|copy| copy.prepared.clone()).collect();
        let kept = match heirs.prepare(heir, &member.peer_addr, &prepared).await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::debug!(%heir, error, "copying conversations failed");
                for _ in &copies {
                    metrics.conversation_copy(Outcome::Failed);
                }
                tokio::time::sleep(PAUSE).await;
                Vec::new()
            }
        };
        for (n, copy) in copies.into_iter().enumerate() {
            let refused = !kept.get(n).copied().unwrap_or(false);
            copy.stats.set_heir((!refused).then_some(heir));
            if n < kept.len() {
                metrics.conversation_copy(if refused { Outcome::Refused } else { Outcome::Ok });
            }
            if refused
                && copy.prepared.append
                && let Some(actor) = copy.actor.upgrade()
            {
                // Full inboxes are busy ones: the next turn sends everything again.
                drop(actor.try_send(Command::Replicate));
            }
            // The actor may have stopped waiting.
            let _ = copy.acknowledge.send(());
        }
    }
}
