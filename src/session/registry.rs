//! The sessions of this node: opened once each, found by id.

mod place;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Duration, Instant},
};
use tokio_util::task::TaskTracker;

use self::place::{Opening, Slot, Stay};
use super::{
    Attach, AttachError, Attached, ClientKind, ClientLabel, Row,
    actor::{Actor, Command, Inbox},
    aliases::AliasWriter,
    archive::Archive,
    claiming::{self, Step},
    handoff,
    ledger::Ledger,
    quota::Quotas,
    replica::{Heirs, Replicator},
    stats::Stats,
    store_error,
    warm::{Prepared, WarmStore},
};
use crate::{
    config::{Limits, Route},
    error::{Blame, Code, Error},
    ids::{Epoch, Incarnation, Principal, SessionId},
    ownership::lease::LeaseHandle,
    ring::Ring,
    store::{Claim, Store, StoreError},
    telemetry::{
        events::Events,
        metrics::{ClaimOutcome, Metrics, QuotaLimit, TakeoverReason},
        propagation,
    },
    upstream::Dialer,
};

/// What all sessions of a node share.
#[cfg_attr(test, derive(Clone))]
pub struct Context {
    pub me: Incarnation,
    pub node_id: Arc<str>,
    pub capacity: u32,
    pub store: Arc<dyn Store>,
    pub lease: LeaseHandle,
    pub ring: watch::Receiver<Arc<Ring>>,
    pub limits: Limits,
    pub metrics: Metrics,
    pub dialer: Dialer,
    pub aliases: AliasWriter,
    /// How long the store keeps a closed session.
    pub keep_closed: Duration,
    pub ledger: Ledger,
    /// None where turns have no limits.
    pub quotas: Option<Quotas>,
    pub heirs: Arc<dyn Heirs>,
    pub replicator: Replicator,
    pub archive: Archive,
    pub tracker: TaskTracker,
    pub events: Events,
}

/// Commands that may wait at a session.
const INBOX: usize = 8;

/// Attempts at attaching to a session that keeps ending in the meantime.
const ATTEMPTS: u32 = 4;

/// The sessions that this node owns.
pub struct Registry {
    pub(super) ctx: Arc<Context>,
    sessions: Mutex<HashMap<SessionId, Arc<Slot>>>,
    draining: AtomicBool,
    pub(super) warm: WarmStore,
}

/// An open session, as the rest of the node sees it.
#[derive(Clone)]
pub struct Handle {
    pub(super) inbox: Inbox,
    pub id: SessionId,
    pub principal: Principal,
    pub epoch: Epoch,
    pub route: Arc<Route>,
    pub key_label: Arc<str>,
    pub stats: Arc<Stats>,
}

impl Registry {
    #[must_use]
    pub fn new(ctx: Context) -> Arc<Self> {
        Arc::new(Self {
            ctx: Arc::new(ctx),
            sessions: Mutex::default(),
            draining: AtomicBool::new(false),
            warm: WarmStore::default(),
        })
    }

    /// Number of sessions, those being opened included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.lock().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the session is open here, or being opened.
    #[must_use]
    pub fn knows(&self, id: SessionId) -> bool {
        self.sessions.lock().contains_key(&id)
    }

    /// Whether the session is open here, being opened, or left here by its last owner lately.
    #[must_use]
    pub fn keeps(&self, id: SessionId) -> bool {
        self.knows(id) || self.warm.has_fresh(id)
    }

    /// Whether the session is open here.
    #[must_use]
    pub fn has(&self, id: SessionId) -> bool {
        self.sessions.lock().get(&id).is_some_and(|slot| slot.0.initialized())
    }

    /// The open sessions, in no order.
    #[must_use]
    pub fn list(&self) -> Vec<Handle> {
        self.sessions.lock().values().filter_map(|slot| slot.0.get().cloned()).collect()
    }

    /// The open session of that id.
    #[must_use]
    pub fn get(&self, id: SessionId) -> Option<Handle> {
        self.sessions.lock().get(&id).and_then(|slot| slot.0.get().cloned())
    }

    /// No session is opened here any more; the open ones go on.
    pub fn begin_drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Attaches a client, opening (claiming) the session if it is nobody's.
    ///
    /// Cancel-safe: a dropped call may leave an open session without clients, which ends by
    /// its detach time, or a claim without a session, which upkeep releases.
    pub async fn attach(self: &Arc<Self>, attach: Attach) -> Result<Attached, AttachError> {
        for _ in 0..ATTEMPTS {
            let slot = self.slot(attach.session)?;
            let opening = Opening { registry: self, id: attach.session, slot };
            let slot = &opening.slot;
            let handle = slot.0.get_or_try_init(|| self.open(&attach, slot)).await?.clone();
            if handle.epoch < attach.min_epoch {
                // The caller has seen a later owner: ours is over, we just do not know yet.
                let error = Error::new(Code::OwnerMoving, "the session has a new owner");
                drop(handle.inbox.send(Box::new(Command::Stop(error))).await);
                self.forget(attach.session, slot);
                continue;
            }
            let (reply, answer) = oneshot::channel();
            let command = Box::new(Command::Attach(Box::new(attach.clone()), reply));
            if handle.inbox.send(command).await.is_ok()
                && let Ok(answer) = answer.await
            {
                return answer;
            }
            // It ended before it answered.
            self.forget(attach.session, slot);
        }
        Err(Error::new(Code::OwnerMoving, "the session keeps ending; retry").into())
    }

    /// Keeps a conversation that another node's session leaves here. False if it is a part
    /// of something that is not here, or if this node drains: another heir is the better one.
    pub fn keep(&self, prepared: Prepared) -> bool {
        let draining = self.draining.load(Relaxed);
        let kept = !draining && self.warm.keep(prepared, &self.ctx.limits);
        self.ctx.metrics.heir_conversations(self.copies());
        kept
    }

    /// Conversations that other nodes' sessions have left here.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.warm.len()
    }

    /// Lets go of conversations that the node `from` has left here, and has no use for any more.
    pub fn let_go(&self, from: Incarnation, sessions: &[SessionId]) {
        self.warm.let_go(from, sessions);
        self.ctx.metrics.heir_conversations(self.copies());
    }

    /// Opens a session that was handed to this node, and brings its upstream up, before a
    /// client asks for it.
    pub async fn activate(self: &Arc<Self>, id: SessionId) -> Result<(), AttachError> {
        let Some(warm) = self.warm.peek(id) else { return Ok(()) };
        let attach = Attach {
            session: id,
            row: Row::Unknown,
            principal: warm.principal,
            route: warm.route,
            key_label: warm.key_label,
            upgrade: warm.upgrade,
            reads: false,
            last_seq: None,
            last_epoch: None,
            turn_key: None,
            min_epoch: Epoch::default(),
            client: ClientLabel {
                edge_node: Arc::clone(&self.ctx.node_id),
                kind: ClientKind::Http,
            },
        };
        let opening = Opening { registry: self, id, slot: self.slot(id)? };
        let slot = &opening.slot;
        let handle = slot.0.get_or_try_init(|| self.open(&attach, slot)).await?;
        drop(handle.inbox.try_send(Box::new(Command::WarmUp)));
        Ok(())
    }

    fn slot(&self, id: SessionId) -> Result<Arc<Slot>, Error> {
        let mut sessions = self.sessions.lock();
        if let Some(slot) = sessions.get(&id) {
            return Ok(Arc::clone(slot));
        }
        if self.draining.load(Relaxed) {
            return Err(Error::new(Code::NodeDraining, "this node is leaving; retry elsewhere"));
        }
        // One that was left here by its owner has no other place to go to.
        if sessions.len() >= self.ctx.capacity as usize && !self.warm.has(id) {
            return Err(Error::new(Code::NodeFull, "this node owns as many sessions as it may"));
        }
        let slot = Arc::new(Slot::default());
        sessions.insert(id, Arc::clone(&slot));
        Ok(slot)
    }

    /// Removes a slot that nobody has opened, once nobody tries to any more. While others
    /// hold it one of them may still open it, and a second slot would be a second owner.
    fn abandon(&self, id: SessionId, slot: &Arc<Slot>) {
        /// The map's and the caller's own.
        const HOLDERS: usize = 2;

        let mut sessions = self.sessions.lock();
        let idle = !slot.0.initialized() && Arc::strong_count(slot) <= HOLDERS;
        if idle && sessions.get(&id).is_some_and(|current| Arc::ptr_eq(current, slot)) {
            sessions.remove(&id);
        }
    }

    /// Removes that very slot; a successor under the same id stays.
    fn forget(&self, id: SessionId, slot: &Arc<Slot>) {
        let mut sessions = self.sessions.lock();
        if sessions.get(&id).is_some_and(|current| Arc::ptr_eq(current, slot)) {
            sessions.remove(&id);
        }
    }

    async fn open(
        self: &Arc<Self>,
        attach: &Attach,
        slot: &Arc<Slot>,
    ) -> Result<Handle, AttachError> {
        // Not by a certificate: it allows to keep, never to take.
        if !self.ctx.lease.is_leased_now() {
            return Err(
                Error::new(Code::SessionUnavailable, "this node's lease is in doubt").into()
            );
        }
        let claimed = claim(&self.ctx, attach).await?;
        let (inbox, commands) = mpsc::channel(INBOX);
        let stats = Arc::new(Stats::default());
        // What another owner left here; a session that nobody owned has nothing to remember.
        let warm = self
            .warm
            .take(attach.session)
            .filter(|warm| !claimed.first && warm.principal == attach.principal);
        self.ctx.metrics.heir_conversations(self.copies());
        let origin = warm.as_ref().map(|warm| propagation::extract(&warm.upgrade.headers));
        // Who only reads does not know how the upstream was asked.
        let asked = warm.as_ref().filter(|_| attach.reads).map(|warm| warm.upgrade.clone());
        let (past, shunned, cut) =
            warm.map(|warm| (warm.past, warm.shunned, warm.cut)).unwrap_or_default();
        if !past.is_empty() {
            // We were the heir and took our copy, so nobody has one now.
            drop(inbox.try_send(Box::new(Command::Replicate)));
        }
        // Boxed, or the task has room for it in each of its states.
        let mut actor = Box::new(Actor::new(
            Arc::clone(&self.ctx),
            attach,
            claimed,
            past,
            Arc::clone(&stats),
            commands,
            inbox.downgrade(),
        ));
        actor.origin = origin.unwrap_or_default();
        actor.shunned = shunned;
        if let Some(asked) = asked {
            actor.upgrade = asked;
        }
        actor.adopt(cut);
        let stay = Stay::new(self, attach.session, slot);
        self.ctx.tracker.spawn(async move {
            handoff::run(actor).await;
            drop(stay);
        });
        Ok(Handle {
            inbox,
            id: attach.session,
            principal: attach.principal,
            epoch: claimed.epoch,
            route: Arc::clone(&attach.route),
            key_label: attach.key_label.as_str().into(),
            stats,
        })
    }
}

/// Sessions that a drain orders to leave in a second: their heirs dial as many upstreams.
pub const ORDERS_PER_SECOND: u32 = 500;

impl Handle {
    /// Hands the session over as soon as no turn runs; until `until` there is time for that.
    pub async fn drain(&self, until: Instant) {
        drop(self.inbox.send(Box::new(Command::Drain(until))).await);
    }

    /// Hands the session over now; clients have until `until` to collect what they are told.
    pub async fn sever(&self, until: Instant) {
        drop(self.inbox.send(Box::new(Command::Sever(until))).await);
    }

    /// Hands the session to one of `heirs` if nothing happens in it. Never waits.
    pub fn offer(&self, heirs: Vec<Incarnation>) {
        drop(self.inbox.try_send(Box::new(Command::Offer(heirs))));
    }

    /// Ends the session's stay here; clients are told `error`.
    pub async fn stop(&self, error: Error) {
        drop(self.inbox.send(Box::new(Command::Stop(error))).await);
    }
}

/// What a claim gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ownership {
    pub(super) epoch: Epoch,
    /// The session is not known to have had a row before.
    pub(super) first: bool,
}

/// Makes the session ours, or says whose it is.
async fn claim(ctx: &Context, attach: &Attach) -> Result<Ownership, AttachError> {
    let mut claim = Claim {
        id: attach.session,
        principal: attach.principal,
        route: attach.route.path.clone(),
        key_label: attach.key_label.clone(),
        me: ctx.me,
        seen: match attach.row {
            Row::Free(epoch) => Some(epoch),
            Row::Unknown | Row::Missing => None,
        },
        limit: ctx.limits.principal.sessions,
    };
    // The row names this node, and no task has the session: it was handed over.
    let mut handed = false;
    for _ in 0..ATTEMPTS {
        let claimed = match ctx.store.claim(&claim).await {
            // The row has another principal.
            Err(StoreError::Corrupt(_)) => return Err(forbidden().into()),
            Err(error) => {
                ctx.metrics.claim(ClaimOutcome::Failed);
                return Err(store_error(&error).into());
            }
            Ok(claimed) => claimed,
        };
        ctx.metrics.claim((&claimed).into());
        match claiming::after_answer(claimed, ctx.me, attach.principal) {
            Step::Won { epoch, from } => {
                if let Some(from) = from {
                    ctx.metrics.takeover(TakeoverReason::Dead);
                    tracing::info!(session = %attach.session, %epoch, %from, "session taken over");
                    let text = format!("taken over from incarnation {from}, epoch {epoch}");
                    ctx.events.emit("takeover", Some(&attach.session), &text);
                } else if handed {
                    tracing::debug!(session = %attach.session, %epoch, "session opened as its heir");
                    let text = format!("opened here after a handoff, epoch {epoch}");
                    ctx.events.emit("arrived", Some(&attach.session), &text);
                } else {
                    tracing::debug!(session = %attach.session, %epoch, "session claimed");
                    let text = format!("claimed for {}, epoch {epoch}", attach.route.path);
                    ctx.events.emit("claimed", Some(&attach.session), &text);
                }
                return Ok(Ownership { epoch, first: claim.seen.is_none() });
            }
            Step::Again { seen, handed: named } => {
                handed = named;
                claim.seen = Some(seen);
            }
            Step::Elsewhere(owner) => return Err(AttachError::NotOwner(owner)),
            Step::Forbidden => return Err(forbidden().into()),
            Step::Full => {
                ctx.metrics.quota_refusal(QuotaLimit::Sessions);
                let limit = ctx.limits.principal.sessions.unwrap_or_default();
                let text = format!("at most {limit} sessions may be open; retry after one ended");
                return Err(Error::new(Code::TooManySessions, text).blame(Blame::Client).into());
            }
            Step::Unfit => {
                return Err(
                    Error::new(Code::NodeDraining, "this node may not own sessions now").into()
                );
            }
        }
    }
    Err(Error::new(Code::OwnerMoving, "others are claiming this session; retry").into())
}

fn forbidden() -> Error {
    Error::new(Code::Forbidden, "this session belongs to another principal")
}
