//! The task of one session: it performs what the rules decide.
//!
//! One poll visits, in this order: the lease (without it nothing moves), commands, the
//! dial, clients, the ledger's answers, the upstream, deliveries, writes, the timer. From the
//! dial to the writes it goes round until nothing is ready, so that what arrived together
//! leaves together.

mod attach;
mod endpoint;
mod frames;
mod journal;
mod leaving;
mod pace;
mod timing;
mod upstream;

use std::{
    collections::{HashMap, VecDeque},
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context as Cx, Poll},
};

use http::HeaderMap;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, Sleep, sleep_until},
};

pub(super) use self::endpoint::Unused;
use self::{journal::Entry, pace::Pace};
use super::{
    Attach, AttachError, Attached, Context,
    clients::{Client, Streams},
    continuity::Archived,
    history::Past,
    quota::Slot,
    registry::Ownership,
    responses::Held,
    stats::Stats,
    turns::{Bounds, ClientId, Severed, TurnNo, Turns},
};
use crate::{
    bell::Bell,
    config::{Continuity, Limits, Profile, Route},
    error::{Code, Error},
    ids::{Epoch, Incarnation, Principal, SessionId},
    telemetry::{
        metrics::{GaugeGuard, GaugeShare},
        propagation::Context as TraceContext,
    },
    upstream::{Connection, DialError, Upgrade},
    wire::CloseFrame,
};

fn turn_bounds(limits: &Limits, route: &Route, counted: bool) -> Bounds {
    Bounds {
        queue: limits.turn_queue,
        // Room for a few of the largest requests.
        payload_bytes: limits.max_message_bytes.saturating_mul(4),
        history_bytes: limits.history_bytes,
        asked: route.ledger || counted,
        ledger: route.ledger,
    }
}

/// Number of an opaque session's log.
pub(super) const OPAQUE: u64 = 0;

/// Where an actor is asked. Commands are boxed: an inbox has room for 32 of them from its start.
pub(super) type Inbox = mpsc::Sender<Box<Command>>;

/// What the registry asks of an actor.
pub(super) enum Command {
    Attach(Box<Attach>, oneshot::Sender<Result<Attached, AttachError>>),
    /// Hand the session over as soon as no turn runs; what runs then is severed.
    Drain(Instant),
    /// Hand it over now: what runs ends as unknown. Clients have until then to collect that.
    Sever(Instant),
    /// Hand it over to one of these, if nothing happens in it.
    Offer(Vec<Incarnation>),
    /// Bring the upstream up before a client asks.
    WarmUp,
    /// The heir lacks what a part builds on: send it everything.
    Replicate,
    /// End now; clients are told the error.
    Stop(Error),
}

/// Why the actor's loop ended.
pub(super) enum Exit {
    /// Nobody came back in time.
    Abandoned,
    /// The upstream of an opaque session closed: the session is over.
    UpstreamClosed(Option<CloseFrame>),
    /// The upstream of a session that never was could not be reached.
    Unreachable,
    /// It moves to another node, and no turn runs.
    HandOff(Departure),
    /// The ledger does not take this turn: somebody else owns the session, or its row is
    /// still quiescing.
    Fenced(TurnNo),
    /// Told to end, with what clients are told.
    Stopped(Error),
}

/// Why a session moves to another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// Its owner drains.
    Drain,
    /// Its owner's time is over; clients have until then to collect what they were told.
    Deadline(Instant),
    /// Its owner has more than its share; one of these has less.
    Balance(Vec<Incarnation>),
}

/// An attach that waits, and who waits for its answer.
type Waiting = (Box<Attach>, oneshot::Sender<Result<Attached, AttachError>>);

type Dial = Pin<Box<dyn Future<Output = Result<Connection, DialError>> + Send + Sync>>;

/// The upstream's side.
enum Upstream {
    None,
    Dialing(Dial),
    Connected(
        Box<Connection>,
        /// Counts by living.
        GaugeGuard,
    ),
}

#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
pub(super) struct Actor {
    pub(super) ctx: Arc<Context>,
    pub(super) id: SessionId,
    pub(super) principal: Principal,
    pub(super) epoch: Epoch,
    /// Nobody owned the session before, so every number that a client can name is ours.
    first: bool,
    /// An upstream has taken a connection for it.
    reached: bool,
    pub(super) route: Arc<Route>,
    pub(super) stats: Arc<Stats>,
    inbox: mpsc::Receiver<Box<Command>>,
    bell: Bell,
    /// For who may have to ask this actor something later.
    pub(super) itself: mpsc::WeakSender<Box<Command>>,
    pub(super) key_label: String,
    /// The heir has been sent what came before.
    pub(super) replicated: bool,
    /// The copy of the turn that is just ending.
    pub(super) copying: Option<oneshot::Receiver<()>>,
    pub(super) held: VecDeque<Held>,
    /// What the heir is told of turns that were ended by the deadline.
    pub(super) severed: Vec<Severed>,
    pub(super) archived: Archived,
    /// Turns that the ledger is being told of.
    journal: Vec<Entry>,
    /// Turns that count for their principal.
    pub(super) slots: HashMap<TurnNo, Slot>,
    upstream: Upstream,
    /// Of what is read from it.
    pace: Pace,
    /// The endpoint that failed this session last, by its name, which its heirs know too; others
    /// are preferred until a turn ends well there.
    pub(super) shunned: Option<String>,
    /// Turns in a row that failed by the fault of the endpoint, on this connection.
    strikes: u32,
    pub(super) unused: Unused,
    /// How the upstream is asked for a connection: as the newest client asked that sends turns.
    pub(super) upgrade: Upgrade,
    /// What the session's spans point back at: the transfer that brought it here, or what
    /// its lost owner did last.
    pub(super) origin: TraceContext,
    /// What the upstream answered to the upgrade.
    headers: HeaderMap,
    subprotocol: Option<String>,
    /// Attached as soon as the upstream is there.
    waiting: Vec<Waiting>,
    pub(super) clients: Vec<Client>,
    next_client: ClientId,
    pub(super) streams: Streams,
    /// None on an opaque route.
    pub(super) turns: Option<Turns>,
    departure: Option<Departure>,
    /// Not before: a try has failed.
    leaves_at: Option<Instant>,
    /// When a drain severs it, as was known when it was told to leave.
    drains_until: Option<Instant>,
    /// An heir may have the session: a transfer was not answered.
    pub(super) unsure: bool,
    /// When the last client left, or the last turn without a client ended.
    alone_since: Option<Instant>,
    /// Turns that run, and when the upstream was sent each of them or last spoke of it.
    heard: Vec<(TurnNo, Instant)>,
    /// Since when the upstream is read without a break.
    listening_since: Instant,
    /// The upstream was not read for want of room.
    blocked: bool,
    last_close: Option<CloseFrame>,
    timer: Pin<Box<Sleep>>,
    /// When the timer stands, to be asked without it.
    timer_at: Instant,
    /// When it went off last.
    timer_rang: Instant,
    retime: bool,
    /// Something that operators see may have changed.
    unpublished: bool,
    /// When the lease was looked at last: the time of this poll.
    polled_at: Instant,
    /// Only while the lease is in doubt.
    lease_wait: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    replay_share: GaugeShare,
    _counted: GaugeGuard,
}

impl Actor {
    pub(super) fn new(
        ctx: Arc<Context>,
        attach: &Attach,
        claimed: Ownership,
        past: Vec<Past>,
        stats: Arc<Stats>,
        inbox: mpsc::Receiver<Box<Command>>,
        itself: mpsc::WeakSender<Box<Command>>,
    ) -> Self {
        let route = Arc::clone(&attach.route);
        let mut streams = Streams::default();
        let turns = match route.profile {
            Profile::Responses => {
                let turns =
                    Turns::new(turn_bounds(&ctx.limits, &route, ctx.quotas.is_some()), past);
                let unread = route.continuity == Continuity::Database && !claimed.first;
                Some(if unread { turns.with_unread() } else { turns })
            }
            Profile::Opaque => {
                streams.open(OPAQUE, None, None);
                None
            }
        };
        let now = Instant::now();
        Self {
            id: attach.session,
            principal: attach.principal,
            epoch: claimed.epoch,
            first: claimed.first,
            reached: false,
            stats,
            inbox,
            bell: Bell::default(),
            itself,
            key_label: attach.key_label.clone(),
            replicated: false,
            copying: None,
            held: VecDeque::new(),
            severed: Vec::new(),
            archived: Archived::new(claimed.first),
            journal: Vec::new(),
            slots: HashMap::new(),
            upstream: Upstream::None,
            pace: Pace::default(),
            shunned: None,
            strikes: 0,
            unused: Unused::default(),
            upgrade: attach.upgrade.clone(),
            origin: TraceContext::default(),
            headers: HeaderMap::new(),
            subprotocol: None,
            waiting: Vec::new(),
            clients: Vec::new(),
            next_client: 1,
            streams,
            turns,
            departure: None,
            leaves_at: None,
            drains_until: None,
            unsure: false,
            alone_since: Some(now),
            heard: Vec::new(),
            listening_since: now,
            blocked: false,
            last_close: None,
            timer: Box::pin(sleep_until(now + route.detach_ttl)),
            timer_at: now + route.detach_ttl,
            timer_rang: now,
            retime: true,
            unpublished: true,
            polled_at: now,
            lease_wait: None,
            replay_share: ctx.metrics.replay_bytes(&route.path),
            _counted: ctx.metrics.session(&route.path, route.profile),
            route,
            ctx,
        }
    }

    /// Whether the session began here and no upstream ever knew of it: nobody can ask for
    /// anything of it.
    pub(super) fn never_was(&self) -> bool {
        self.first && !self.reached
    }

    /// Serves until there is a reason to end.
    pub(super) async fn serve(&mut self) -> Exit {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> Poll<Exit> {
        self.pace.begin(!self.clients.is_empty());
        loop {
            if !self.poll_lease(cx) {
                return self.poll_suspended(cx);
            }
            if self.unsure {
                return self.poll_unsure(cx);
            }
            while let Poll::Ready(Some(command)) = self.poll_inbox(cx) {
                self.unpublished = true;
                match *command {
                    Command::Attach(attach, reply) => self.attach(attach, reply),
                    Command::Drain(until) => self.drain(until),
                    Command::Sever(until) => self.sever(until),
                    Command::Offer(heirs) if self.may_be_offered() => {
                        return Poll::Ready(Exit::HandOff(Departure::Balance(heirs)));
                    }
                    Command::Offer(_) => {}
                    Command::WarmUp => self.warm_up(),
                    Command::Replicate => self.replicate_all(),
                    Command::Stop(error) => return Poll::Ready(Exit::Stopped(error)),
                }
            }
            if let Some(exit) = self.poll_frames(cx) {
                return Poll::Ready(exit);
            }
            let mut progress = false;
            if let Some(exit) = self.poll_timer(cx, &mut progress) {
                return Poll::Ready(exit);
            }
            if !progress {
                if std::mem::take(&mut self.unpublished) {
                    self.publish();
                }
                return Poll::Pending;
            }
            self.unpublished = true;
        }
    }

    fn poll_inbox(&mut self, cx: &mut Cx<'_>) -> Poll<Option<Box<Command>>> {
        self.bell.poll(cx, |cx| self.inbox.poll_recv(cx))
    }

    /// Whether the lease still proves that the session is ours. If not, the task is woken
    /// when it does again.
    fn poll_lease(&mut self, cx: &mut Cx<'_>) -> bool {
        loop {
            self.polled_at = Instant::now();
            if self.ctx.lease.is_live(self.polled_at.into_std()) {
                self.lease_wait = None;
                return true;
            }
            let lease = &self.ctx.lease;
            let wait = self.lease_wait.get_or_insert_with(|| {
                let lease = lease.clone();
                Box::pin(async move {
                    let _ = lease.live().await;
                })
            });
            if self.ctx.lease.is_lost() || wait.as_mut().poll(cx).is_pending() {
                return false;
            }
            self.lease_wait = None;
        }
    }

    /// Without a lease nothing is served: no frame moves, nobody is attached.
    fn poll_suspended(&mut self, cx: &mut Cx<'_>) -> Poll<Exit> {
        while let Poll::Ready(Some(command)) = self.poll_inbox(cx) {
            match *command {
                Command::Attach(_, reply) => {
                    let error =
                        Error::new(Code::SessionUnavailable, "this node's lease is in doubt");
                    drop(reply.send(Err(error.into())));
                }
                Command::Drain(until) => self.drain(until),
                Command::Offer(_) | Command::WarmUp | Command::Replicate => {}
                // Whatever the next owner says is true; what is said here might not be.
                Command::Sever(_) => {
                    let text = "this node stopped while its lease was in doubt";
                    let error = Error::new(Code::OutcomeUnknown, text);
                    return Poll::Ready(Exit::Stopped(error));
                }
                Command::Stop(error) => return Poll::Ready(Exit::Stopped(error)),
            }
        }
        Poll::Pending
    }

    /// No turn runs or waits, and nobody is being attached.
    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && self.held.is_empty()
            && self.journal.is_empty()
            && self.turns.as_ref().is_none_or(Turns::is_idle)
    }
}

#[cfg(test)]
mod tests;
