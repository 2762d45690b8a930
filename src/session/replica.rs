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

    /// Lets go of conversations that `from`, this node, has left there.
    ///
    /// # Errors
    /// The node did not answer, or does not know the call; it keeps them for a while.
    async fn let_go(
        &self,
        from: Incarnation,
        heir: Incarnation,
        addr: &str,
        sessions: &[SessionId],
    ) -> Result<(), String>;

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

/// A session whose stay here has ended.
pub(super) struct Ended {
    pub(super) session: SessionId,
    /// Where it is noted who has the copy.
    pub(super) stats: Arc<Stats>,
    /// Who owns the session now, and needs the copy.
    pub(super) next: Option<Incarnation>,
}

impl Ended {
    /// Whether nobody will ask `heir` for its copy. Who would own the session after its new
    /// owner keeps it, until that one has copied: its own copy replaces this one.
    fn is_useless(&self, ring: &Ring, heir: Incarnation) -> bool {
        self.next
            .is_none_or(|next| heir != next && next_owner(ring, next, self.session) != Some(heir))
    }
}

enum Errand {
    Copy(Box<Copy>),
    Ended(Ended),
}

/// Where sessions leave their copies.
#[derive(Clone)]
pub struct Replicator(mpsc::Sender<Errand>);

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
                let ring = ring.borrow().clone();
                let (copies, ended) = sort(std::mem::take(&mut batch));
                let mut useless = copy(me, &*heirs, &ring, &metrics, copies).await;
                useless.extend(ended.into_iter().filter_map(|ended| {
                    let heir = ended.stats.heir().filter(|heir| ended.is_useless(&ring, *heir));
                    heir.map(|heir| (heir, ended.session))
                }));
                let_go(me, &*heirs, &ring, useless).await;
            }
        });
        Self(tx)
    }

    /// Leaves a copy to be sent soon. Never waits; false if too many wait already.
    pub(super) fn put(&self, copy: Copy) -> bool {
        self.0.try_send(Errand::Copy(Box::new(copy))).is_ok()
    }

    /// Has whoever keeps a copy of the session let go of it soon. Never waits; what is lost
    /// where too much waits already costs the other node memory for a while.
    pub(super) fn ended(&self, ended: Ended) {
        drop(self.0.try_send(Errand::Ended(ended)));
    }
}

/// Copies, and the sessions that ended after their last copy: one that ended before it has
/// begun anew.
fn sort(batch: Vec<Errand>) -> (Vec<Copy>, Vec<Ended>) {
    let (mut copies, mut ended) = (Vec::new(), Vec::<Ended>::new());
    for errand in batch {
        match errand {
            Errand::Copy(copy) => {
                ended.retain(|ended| ended.session != copy.prepared.session);
                copies.push(*copy);
            }
            Errand::Ended(one) => ended.push(one),
        }
    }
    (copies, ended)
}

/// Tells members which conversations of this node are of no use to them any more.
async fn let_go(
    me: Incarnation,
    heirs: &dyn Heirs,
    ring: &Ring,
    useless: Vec<(Incarnation, SessionId)>,
) {
    let mut by_heir: HashMap<Incarnation, Vec<SessionId>> = HashMap::new();
    for (heir, session) in useless {
        by_heir.entry(heir).or_default().push(session);
    }
    for (heir, sessions) in by_heir {
        let Some(member) = ring.member(heir) else { continue };
        if let Err(error) = heirs.let_go(me, heir, &member.peer_addr, &sessions).await {
            tracing::debug!(%heir, error, "a node keeps conversations of no use");
        }
    }
}

/// The member that would own the session if this one were gone.
pub(super) fn next_owner(ring: &Ring, me: Incarnation, session: SessionId) -> Option<Incarnation> {
    let placement = &ring.placement;
    placement.owner(session).into_iter().chain(placement.successors(session)).find(|n| *n != me)
}

/// Takes copies to their heirs. Returns what former heirs have of them.
async fn copy(
    me: Incarnation,
    heirs: &dyn Heirs,
    ring: &Ring,
    metrics: &Metrics,
    batch: Vec<Copy>,
) -> Vec<(Incarnation, SessionId)> {
    /// A heir that is away must not hold up the copies to the others for long.
    const PAUSE: Duration = Duration::from_millis(50);

    let mut useless = Vec::new();
    let mut by_heir: HashMap<Incarnation, Vec<Copy>> = HashMap::new();
    for copy in batch {
        if let Some(heir) = next_owner(ring, me, copy.prepared.session) {
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
            let former = copy.stats.heir().filter(|former| *former != heir);
            if let Some(former) = former.filter(|_| !refused) {
                useless.push((former, copy.prepared.session));
            }
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
    useless
}
