//! Copies what a conversation has grown by to the node that would own the session next, so
//! that a crash of this one loses none of it.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};
use tokio_util::task::TaskTracker;

use super::{actor::Command, stats::Stats, warm::Prepared};
use crate::{
    ids::{Incarnation, SessionId},
    jitter::spread,
    ring::Ring,
    telemetry::metrics::{CopyOutcome, Metrics},
};

/// Copies that may wait for one heir. What does not fit is copied whole with the session's next
/// turn.
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
    pub(super) actor: mpsc::WeakSender<Box<Command>>,
}

impl Copy {
    /// The session is to send all that it remembers to whoever is its heir now.
    fn again(&self) {
        if let Some(actor) = self.actor.upgrade() {
            // Full inboxes are busy ones: the next turn sends everything again.
            drop(actor.try_send(Box::new(Command::Replicate)));
        }
    }

    /// Notes what `heir` answered: whether it keeps the copy. None if it did not answer.
    fn note(&self, heir: Incarnation, kept: Option<bool>) {
        match kept {
            Some(true) => self.stats.set_heir(Some(heir)),
            // Of all there is, only for want of room.
            Some(false) if !self.prepared.append => self.stats.set_refused(heir),
            _ => self.stats.set_heir(None),
        }
    }
}

/// A session whose stay here has ended.
#[derive(Clone)]
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
    /// Another node has the newest copy.
    Useless(SessionId),
}

impl Errand {
    fn session(&self) -> SessionId {
        match self {
            Self::Copy(copy) => copy.prepared.session,
            Self::Ended(ended) => ended.session,
            Self::Useless(session) => *session,
        }
    }
}

/// Where sessions leave their copies: a *lane* for each heir, so that one that does not answer
/// holds up nobody else's. What goes to one heir stays in order.
#[derive(Clone)]
pub struct Replicator(Arc<Lanes>);

struct Lanes {
    shared: Shared,
    tracker: TaskTracker,
    open: Mutex<HashMap<Incarnation, mpsc::Sender<Errand>>>,
}

#[derive(Clone)]
struct Shared {
    me: Incarnation,
    heirs: Arc<dyn Heirs>,
    ring: watch::Receiver<Arc<Ring>>,
    metrics: Metrics,
}

impl Replicator {
    /// Copies by tasks of `tracker`; they end when every clone of this one is dropped.
    #[must_use]
    pub fn start(
        me: Incarnation,
        heirs: Arc<dyn Heirs>,
        ring: watch::Receiver<Arc<Ring>>,
        metrics: Metrics,
        tracker: &TaskTracker,
    ) -> Self {
        let shared = Shared { me, heirs, ring, metrics };
        Self(Arc::new(Lanes { shared, tracker: tracker.clone(), open: Mutex::default() }))
    }

    /// Whether anybody would be the heir. That nobody is, is noted in `stats`.
    pub(super) fn has_heir(&self, session: SessionId, stats: &Stats) -> bool {
        let heir = self.0.shared.heir_of(session);
        if heir.is_none() {
            stats.set_heir(None);
        }
        heir.is_some()
    }

    /// Leaves a copy to be sent soon. Never waits; false if nobody would be the heir, or if too
    /// many wait for it already.
    pub(super) fn put(&self, copy: Copy) -> bool {
        let heir = self.0.shared.heir_of(copy.prepared.session);
        heir.is_some_and(|heir| self.0.put(heir, Errand::Copy(Box::new(copy))))
    }

    /// Has whoever keeps a copy of the session let go of it soon. Never waits; what is lost
    /// where too much waits already costs the other node memory for a while.
    pub(super) fn ended(&self, ended: &Ended) {
        let next = self.0.shared.heir_of(ended.session);
        // Behind the session's last copy, wherever that may still be on its way to.
        for heir in next.into_iter().chain(ended.stats.heir().filter(|heir| Some(*heir) != next)) {
            self.0.put(heir, Errand::Ended(ended.clone()));
        }
    }
}

impl Lanes {
    /// False if too many wait for that heir.
    fn put(self: &Arc<Self>, heir: Incarnation, errand: Errand) -> bool {
        let mut open = self.open.lock();
        if !open.contains_key(&heir) {
            // Heirs come and go; those that have gone end here.
            let ring = self.shared.ring.borrow().clone();
            open.retain(|heir, _| ring.member(*heir).is_some());
        }
        let lane = open.entry(heir).or_insert_with(|| {
            let (lane, errands) = mpsc::channel(QUEUE);
            let (shared, lanes) = (self.shared.clone(), Arc::downgrade(self));
            self.tracker.spawn(shared.serve(heir, errands, lanes));
            lane
        });
        lane.try_send(errand).is_ok()
    }
}

/// The member that would own the session if this one were gone.
pub(super) fn next_owner(ring: &Ring, me: Incarnation, session: SessionId) -> Option<Incarnation> {
    let placement = &ring.placement;
    placement.owner(session).into_iter().chain(placement.successors(session)).find(|n| *n != me)
}

impl Shared {
    /// Who is to have the session's copy now.
    fn heir_of(&self, session: SessionId) -> Option<Incarnation> {
        next_owner(&self.ring.borrow(), self.me, session)
    }

    /// Serves one heir, until its lane is closed.
    async fn serve(
        self,
        heir: Incarnation,
        mut errands: mpsc::Receiver<Errand>,
        lanes: Weak<Lanes>,
    ) {
        let mut batch = Vec::new();
        while errands.recv_many(&mut batch, BATCH).await > 0 {
            let Some(member) = self.ring.borrow().member(heir).cloned() else {
                // Nobody waits for long for what is dropped here, but another heir lacks it.
                for errand in batch.drain(..) {
                    if let Errand::Copy(copy) = errand {
                        copy.again();
                    }
                }
                continue;
            };
            let (copies, ended) = sort(std::mem::take(&mut batch));
            let mut useless = self.copy(heir, &member.peer_addr, copies, &lanes).await;
            let ring = self.ring.borrow().clone();
            useless.extend(ended.into_iter().filter_map(|errand| match errand {
                Errand::Ended(ended) => {
                    let has = ended.stats.heir() == Some(heir);
                    (has && ended.is_useless(&ring, heir)).then_some(ended.session)
                }
                Errand::Useless(session) => Some(session),
                Errand::Copy(_) => None,
            }));
            if !useless.is_empty()
                && let Err(error) =
                    self.heirs.let_go(self.me, heir, &member.peer_addr, &useless).await
            {
                tracing::debug!(%heir, error, "a node keeps conversations of no use");
            }
        }
    }

    /// Takes copies to the heir, and has the former one let go of its own. Returns what came
    /// too late to be of use.
    async fn copy(
        &self,
        heir: Incarnation,
        addr: &str,
        copies: Vec<Copy>,
        lanes: &Weak<Lanes>,
    ) -> Vec<SessionId> {
        /// An heir that is away is given a moment, spread over its owners.
        const PAUSE: Duration = Duration::from_millis(50);

        let mut useless = Vec::new();
        if copies.is_empty() {
            return useless;
        }
        let prepared: Vec<Prepared> = copies.iter().map(|copy| copy.prepared.clone()).collect();
        let kept = match self.heirs.prepare(heir, addr, &prepared).await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::debug!(%heir, error, "copying conversations failed");
                for _ in &copies {
                    self.metrics.conversation_copy(CopyOutcome::Failed);
                }
                sleep(spread(PAUSE)).await;
                Vec::new()
            }
        };
        for (n, copy) in copies.into_iter().enumerate() {
            let session = copy.prepared.session;
            let answer = kept.get(n).copied();
            let refused = answer != Some(true);
            if answer.is_some() {
                let outcome = if refused { CopyOutcome::Refused } else { CopyOutcome::Ok };
                self.metrics.conversation_copy(outcome);
            }
            let former = copy.stats.heir().filter(|former| *former != heir);
            let stale = self.heir_of(session) != Some(heir);
            if !stale {
                if let Some((former, lanes)) = former.filter(|_| !refused).zip(lanes.upgrade()) {
                    lanes.put(former, Errand::Useless(session));
                }
                copy.note(heir, answer);
            } else if former.is_none() {
                copy.note(heir, answer);
            } else if !refused {
                // The ring has changed meanwhile.
                useless.push(session);
            }
            if stale || (refused && copy.prepared.append) {
                copy.again();
            }
            // The actor may have stopped waiting.
            let _ = copy.acknowledge.send(());
        }
        useless
    }
}

/// Copies, and what follows on the sessions' last ones: who had no use for a copy before the
/// last one has use for that.
fn sort(batch: Vec<Errand>) -> (Vec<Copy>, Vec<Errand>) {
    let (mut copies, mut rest) = (Vec::new(), Vec::<Errand>::new());
    for errand in batch {
        if let Errand::Copy(copy) = errand {
            rest.retain(|errand| errand.session() != copy.prepared.session);
            copies.push(*copy);
        } else {
            rest.push(errand);
        }
    }
    (copies, rest)
}
