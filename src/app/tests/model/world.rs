//! What a state of the model is made of. Where the running code has a type for it that is
//! free of sockets and clocks, it is that very type.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::LazyLock,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    edge::outstanding::Outstanding,
    ids::{Epoch, Incarnation, Principal, SessionId},
    ownership::lease::Lease,
    session::{
        history::{History, Past},
        turns::{Bounds as TurnBounds, ClientId, TurnNo, Turns},
    },
    store::{
        Began, Claimed, MemberState, NewMember, NewTurn, SessionRow, SessionState, Transferred,
        TurnMark, memory::table::Table,
    },
    wire::{Batch, Message},
};

/// Ticks that a lease lasts in the store, and what a node takes off. A node's clock may
/// fall behind the store's by as much.
pub(super) const TTL: u8 = 2;
pub(super) const MARGIN: u8 = 1;
pub(super) const DRIFT: u8 = 1;

pub(super) const SESSION: SessionId = SessionId([7; 16]);
pub(super) const PRINCIPAL: Principal = Principal([1; 16]);

/// One tick; only the order of instants matters.
const TICK: Duration = Duration::from_secs(1);

/// Where the model's time begins. Leases count from an anchor of the process, which comes
/// first.
static BEGINNING: LazyLock<Instant> = LazyLock::new(|| {
    assert!(!Lease::SUSPENDED.is_live(Instant::now()));
    Instant::now() + TICK
});

pub(super) fn ticks(n: u8) -> Duration {
    TICK * u32::from(n)
}

/// A node's own time.
pub(super) fn local(tick: u8) -> Instant {
    *BEGINNING + ticks(tick)
}

/// The store's time.
pub(super) fn stored(tick: u8) -> tokio::time::Instant {
    local(tick).into()
}

pub(super) const TURN_BOUNDS: TurnBounds = TurnBounds {
    queue: 2,
    payload_bytes: 1 << 16,
    history_bytes: 1 << 16,
    asked: true,
    ledger: true,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) now: u8,
    pub(super) table: Table,
    pub(super) nodes: Vec<Node>,
    pub(super) edge: Edge,
    /// What owners wrote to connections that they have not any more: it may arrive yet.
    pub(super) stray: Vec<(Epoch, Bytes)>,
    /// Wishes of the ledger that no task waits for: they may be executed yet. The ledger of
    /// that node hears the answer, if it is there and has not given up.
    pub(super) late: Vec<(Option<usize>, Incarnation, NewTurn)>,
    pub(super) left: Budget,
    pub(super) facts: Facts,
}

/// How often each fault, or planned change, may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    /// A process dies.
    pub(super) crashes: u8,
    /// The way between edge and owner breaks.
    pub(super) cuts: u8,
    /// The upstream hangs up.
    pub(super) hang_ups: u8,
    /// A call of the store, or of the heir, is not answered in time; it may have taken effect.
    pub(super) losses: u8,
    pub(super) drains: u8,
    /// The drain's deadline is over.
    pub(super) deadlines: u8,
    /// An idle session is offered to the other nodes.
    pub(super) balances: u8,
    /// The client asks again after an error, by its idempotency key.
    pub(super) retries: u8,
    pub(super) ticks: u8,
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.ticks, "ticks"),
            (self.crashes, "crashes"),
            (self.cuts, "links cut"),
            (self.hang_ups, "upstream hang-ups"),
            (self.losses, "lost answers"),
            (self.drains, "drains"),
            (self.deadlines, "deadlines"),
            (self.balances, "offers"),
            (self.retries, "retries"),
        ];
        let some = all.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{what} {n}"));
        f.write_str(&some.collect::<Vec<_>>().join(", "))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) me: Incarnation,
    pub(super) runs: bool,
    /// How far its clock is behind the store's.
    pub(super) lag: u8,
    pub(super) lease: Lease,
    /// The store's answer to a renewal, on its way.
    pub(super) renewal: Option<Renewal>,
    pub(super) draining: bool,
    pub(super) opening: Option<Opening>,
    pub(super) task: Option<Box<Task>>,
    pub(super) warm: Option<History>,
    pub(super) marks: Vec<TurnMark>,
    /// It was told to open the session.
    pub(super) nudged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Renewal {
    /// To a request that was sent at this tick of the node's clock.
    Granted(u8),
    /// The node was declared dead.
    Dead,
}

/// A claim under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Opening {
    pub(super) seen: Option<Epoch>,
    pub(super) handed: bool,
    pub(super) answer: Option<Claimed>,
}

/// The session's task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Task {
    pub(super) epoch: Epoch,
    pub(super) turns: Turns,
    pub(super) phase: Phase,
    pub(super) departure: Option<Departure>,
    pub(super) upstream: Option<Upstream>,
    pub(super) client: Option<ClientId>,
    /// Clients that are gone, which the task has not noticed.
    pub(super) gone: Vec<ClientId>,
    pub(super) next_client: ClientId,
    pub(super) logs: BTreeMap<TurnNo, Vec<(Batch, bool)>>,
    pub(super) watching: BTreeSet<TurnNo>,
    pub(super) wishes: Vec<(NewTurn, Option<Began>)>,
    /// A copy of the conversation on its way to the heir: whether it is a part.
    pub(super) copy: Option<(bool, Vec<Past>)>,
    pub(super) replicated: bool,
    /// It came with what another owner had left here, which no other node has.
    pub(super) arriving: bool,
    /// The next end of a turn waits for the copy.
    pub(super) copying: bool,
    pub(super) held: VecDeque<(TurnNo, Batch, bool)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Departure {
    Drain,
    Deadline,
    Balance,
}

/// How far a task is with leaving.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Serving,
    Quiescing,
    Preparing { tried: u8, forced: bool },
    Committing { heir: usize, tried: u8, forced: bool, answer: Option<Transferred> },
    Rereading { heir: usize, tried: u8, forced: bool },
}

/// The upstream's side of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Upstream {
    pub(super) open: bool,
    pub(super) up: VecDeque<Bytes>,
    pub(super) down: VecDeque<Message>,
    /// The response that runs, and whether it has been announced.
    pub(super) running: Option<(String, bool)>,
    /// Responses that this connection made.
    pub(super) known: BTreeSet<String>,
}

/// The edge with its one client. It does not die: when one does, so does its client's socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Edge {
    pub(super) epoch: Epoch,
    pub(super) link: Option<Link>,
    pub(super) outstanding: Outstanding,
    /// The request that the client waits for.
    pub(super) current: Option<usize>,
    /// The request that it makes next.
    pub(super) next: usize,
    /// The request that ended with an error, if it may be made again.
    pub(super) failed: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Link {
    pub(super) node: usize,
    pub(super) up: VecDeque<Message>,
    pub(super) down: VecDeque<Frame>,
    /// The owner has let go of it.
    pub(super) over: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Frame {
    Events { batch: Batch, ended: u32 },
    Moved,
}

/// What happened, as far as a property asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Facts {
    /// The property that the last step broke.
    pub(super) broken: Option<&'static str>,
    pub(super) requests: Vec<Request>,
    /// Something happened that may cost an answer.
    pub(super) disturbed: bool,
    /// Something happened that may cost a conversation.
    pub(super) lossy: bool,
    /// A node was lost.
    pub(super) lost: bool,
}

/// A request of the client, and what became of it.
#[expect(clippy::struct_excessive_bools, reason = "facts of a test, not states")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Request {
    pub(super) store: bool,
    pub(super) keyed: bool,
    pub(super) chained: bool,
    pub(super) fingerprint: u128,
    /// How often an owner sent it, and the upstream ran it.
    pub(super) sent: u8,
    pub(super) runs: u8,
    /// The client was shown something of its response.
    pub(super) seen: bool,
    /// The response that it ended with.
    pub(super) response: Option<String>,
}

impl World {
    /// `nodes` members, each with a lease; nobody owns the session.
    pub(super) fn new(nodes: usize, requests: Vec<Request>, left: Budget) -> Self {
        let mut table = Table::default();
        // Where time goes on, the first answer may be late as well.
        let timed = left.ticks > 0;
        let granted = Lease::SUSPENDED.renewed(local(0), ticks(TTL), ticks(MARGIN));
        let nodes = (0..nodes)
            .map(|n| {
                let member = NewMember {
                    node_id: n.to_string(),
                    peer_addr: String::new(),
                    build: String::new(),
                    zone: None,
                    weight: 1,
                    capacity: 1,
                    process: String::new(),
                    supersede: false,
                };
                let me = table.register(&member, stored(0), ticks(TTL)).unwrap();
                table.activate(me).unwrap();
                Node {
                    me,
                    runs: true,
                    lag: 0,
                    lease: if timed { Lease::SUSPENDED } else { granted },
                    renewal: timed.then_some(Renewal::Granted(0)),
                    draining: false,
                    opening: None,
                    task: None,
                    warm: None,
                    marks: Vec::new(),
                    nudged: false,
                }
            })
            .collect();
        let edge = Edge {
            epoch: Epoch::default(),
            link: None,
            outstanding: Outstanding::default(),
            current: None,
            next: 0,
            failed: None,
        };
        let facts = Facts { broken: None, requests, disturbed: false, lossy: false, lost: false };
        let (stray, late) = (Vec::new(), Vec::new());
        Self { now: 0, table, nodes, edge, stray, late, left, facts }
    }

    pub(super) fn row(&self) -> Option<SessionRow> {
        let row = self.table.session(SESSION, stored(self.now))?;
        // Nothing depends on it, and it would make states differ.
        Some(SessionRow { age: Duration::ZERO, ..row })
    }

    /// The tick that a node's own clock shows.
    pub(super) fn tick_of(&self, n: usize) -> u8 {
        self.now - self.nodes[n].lag
    }

    /// A node's own time.
    pub(super) fn local(&self, n: usize) -> Instant {
        local(self.tick_of(n))
    }

    /// The node that would own the session next.
    pub(super) fn heir_of(&self, n: usize) -> usize {
        (n + 1) % self.nodes.len()
    }

    pub(super) fn state_of(&self, n: usize) -> MemberState {
        self.table.member(self.nodes[n].me, stored(self.now)).0
    }

    /// Somebody may own the session and serve it.
    pub(super) fn is_fit(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.runs && !node.draining && self.state_of(n) == MemberState::Active
    }

    pub(super) fn breaks(&mut self, property: &'static str) {
        self.facts.broken.get_or_insert(property);
    }

    /// Lets go of the row, if it is still this owner's in this epoch.
    pub(super) fn release(&mut self, me: Incarnation, epoch: Epoch, fenced: bool) {
        let now = stored(self.now);
        let (me, epoch) = match self.table.owner(SESSION) {
            Some((Some(owner), epoch, _)) if !fenced => (owner, epoch),
            _ => (me, epoch),
        };
        self.table.set_state(SESSION, me, epoch, SessionState::Closed, now);
    }
}
