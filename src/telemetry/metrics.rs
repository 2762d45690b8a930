//! Every metric of a node.
//!
//! A frame's path holds a [`FrameCounters`], looked up once when its link is opened, so
//! that counting costs an atomic add and no look-up. Gauges of things that live and die
//! are counted by guards, so that no way out of a function can forget to count down.

mod catalogue;
mod labels;
mod process;

use std::{fmt, sync::Arc, time::Duration};

use catalogue::{Catalogue, Remaining};
pub use catalogue::{MetricInfo, render_table};
use labels::{
    Build, ByClaim, ByDial, ByDirection, ByError, ByHandoff, ByOperation, ByOutcome, ByPlace,
    ByProfile, ByResume, ByRoute, BySide, ByState, ByStoreFailure, ByTakeover, ByTurn, ByUpstream,
};
pub use labels::{
    ClaimOutcome, Direction, HandoffReason, Outcome, Place, ResumeOutcome, Side, StoreFailure,
    TakeoverReason, TurnOutcome,
};
pub use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use prometheus_client::{metrics::family::Family, registry::Unit};
use tokio::time::Instant;

use crate::{config::Profile, error::Error, store::MemberState};

/// 50 µs to 13 s: one exchange with a peer or the store.
const EXCHANGE_BUCKETS: [f64; 13] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 2.5, 10.0];
/// 1 ms to 30 min: a turn, whose length the upstream and its model decide.
const TURN_BUCKETS: [f64; 14] =
    [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0, 600.0, 1_800.0];

/// A family of histograms over the same buckets.
type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// All metrics; a cheap handle.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    catalogue: Catalogue,
    sessions: Family<ByProfile, Gauge>,
    clients: Family<ByPlace, Gauge>,
    slow_clients: Family<ByPlace, Counter>,
    frames: Family<ByDirection, Counter>,
    frame_bytes: Family<ByDirection, Counter>,
    forwarded_frames: Family<ByDirection, Counter>,
    forward: Histograms<ByOutcome>,
    replay_bytes: Family<ByRoute, Gauge>,
    resumes: Family<ByResume, Counter>,
    turns: Family<ByTurn, Counter>,
    turn_first_event: Histograms<ByRoute>,
    turn_seconds: Histograms<ByTurn>,
    turn_queue: Family<ByRoute, Gauge>,
    ring_members: Family<ByState, Gauge>,
    ring_version: Gauge,
    lease: Remaining,
    claims: Family<ByClaim, Counter>,
    takeovers: Family<ByTakeover, Counter>,
    not_owner: Family<BySide, Counter>,
    handoffs: Family<ByHandoff, Counter>,
    handoff_seconds: Histograms<ByHandoff>,
    drain_state: Gauge,
    drain_remaining: Gauge,
    upstream_connections: Family<ByUpstream, Gauge>,
    upstream_dials: Family<ByDial, Counter>,
    breaker: Family<ByUpstream, Gauge>,
    peer_connections: Family<BySide, Gauge>,
    peer_rtt: Histogram,
    store_seconds: Histograms<ByOperation>,
    store_errors: Family<ByStoreFailure, Counter>,
    errors: Family<ByError, Counter>,
}

/// How far a drain is; the value of `drain_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainState {
    Serving = 0,
    /// Not ready any more, still accepting as a forwarder.
    Dwelling = 1,
    /// Sessions are being handed off.
    HandingOff = 2,
    /// The deadline is near: what is left is cut.
    Cutting = 3,
    /// Owns nothing, answers with the new owner.
    Lingering = 4,
}

/// Whether an upstream is dialled; the value of `breaker_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Dials go through.
    Closed = 0,
    /// One dial probes.
    HalfOpen = 1,
    /// Dials fail at once.
    Open = 2,
}

impl Metrics {
    /// All metrics at their zero.
    #[must_use]
    pub fn new() -> Self {
        let mut c = Catalogue::default();
        c.collect(Box::new(process::Process), process::infos());
        c.info(
            "build",
            "Version and revision of this build",
            Build {
                version: env!("CARGO_PKG_VERSION"),
                revision: option_env!("RINGSPAN_REVISION").unwrap_or("unknown"),
            },
        );
        let seconds = || Some(Unit::Seconds);
        let bytes = || Some(Unit::Bytes);
        let exchange = || Histogram::new(EXCHANGE_BUCKETS);
        let turn = || Histogram::new(TURN_BUCKETS);
        Self(Arc::new(Inner {
            sessions: c.add("sessions", None, "Sessions owned by this node", Family::default()),
            clients: c.add(
                "attached_clients",
                None,
                "Client sockets and HTTP turns on this node, by where their session's owner is",
                Family::default(),
            ),
            slow_clients: c.add(
                "slow_clients",
                None,
                "Clients dropped because they did not take what was sent",
                Family::default(),
            ),
            frames: c.add(
                "frames",
                None,
                "Messages between the clients of this node and their sessions",
                Family::default(),
            ),
            frame_bytes: c.add(
                "frame",
                bytes(),
                "Bytes of the messages between the clients of this node and their sessions",
                Family::default(),
            ),
            forwarded_frames: c.add(
                "forwarded_frames",
                None,
                "Messages that this node, as the edge, exchanged with an owner elsewhere",
                Family::default(),
            ),
            forward: c.add(
                "forward",
                seconds(),
                "Time to attach to a session at its owner on another node",
                Family::new_with_constructor(exchange as fn() -> Histogram),
            ),
            replay_bytes: c.add(
                "replay_buffer",
                bytes(),
                "Bytes held to replay to clients that come back",
                Family::default(),
            ),
            resumes: c.add(
                "resumes",
                None,
                "Clients that came back with a cursor, by what they were told",
                Family::default(),
            ),
            turns: c.add("turns", None, "Turns that ended", Family::default()),
            turn_first_event: c.add(
                "turn_first_event",
                seconds(),
                "Time from a turn's acceptance to its first event",
                Family::new_with_constructor(turn as fn() -> Histogram),
            ),
            turn_seconds: c.add(
                "turn",
                seconds(),
                "Time from a turn's acceptance to its end",
                Family::new_with_constructor(turn as fn() -> Histogram),
            ),
            turn_queue: c.add(
                "turn_queue_depth",
                None,
                "Turns accepted and waiting for their lane",
                Family::default(),
            ),
            ring_members: c.add(
                "ring_members",
                None,
                "Members of the ring as this node sees it",
                Family::default(),
            ),
            ring_version: c.add(
                "ring_version",
                None,
                "Version of the ring that this node acts on",
                Gauge::default(),
            ),
            lease: c.add(
                "lease_remaining",
                seconds(),
                "Time until this node must stop serving unless a heartbeat succeeds",
                Remaining::default(),
            ),
            claims: c.add("claims", None, "Attempts to own a session", Family::default()),
            takeovers: c.add(
                "takeovers",
                None,
                "Sessions taken over from a dead or gone owner",
                Family::default(),
            ),
            not_owner: c.add(
                "not_owner",
                None,
                "Peer calls that reached a node that did not own the session",
                Family::default(),
            ),
            handoffs: c.add("handoffs", None, "Planned transfers of sessions", Family::default()),
            handoff_seconds: c.add(
                "handoff",
                seconds(),
                "Time from the offer of a planned transfer to its end",
                Family::new_with_constructor(exchange as fn() -> Histogram),
            ),
            drain_state: c.add(
                "drain_state",
                None,
                "Drain: 0 serving, 1 dwelling, 2 handing off, 3 cutting, 4 lingering",
                Gauge::default(),
            ),
            drain_remaining: c.add(
                "drain_remaining_sessions",
                None,
                "Sessions that a drain has still to move or end",
                Gauge::default(),
            ),
            upstream_connections: c.add(
                "upstream_connections",
                None,
                "Open connections to upstreams",
                Family::default(),
            ),
            upstream_dials: c.add(
                "upstream_dials",
                None,
                "Attempts to connect to an upstream",
                Family::default(),
            ),
            breaker: c.add(
                "breaker_state",
                None,
                "Circuit breaker of an upstream: 0 closed, 1 half open, 2 open",
                Family::default(),
            ),
            peer_connections: c.add(
                "peer_connections",
                None,
                "Open streams between this node and its peers",
                Family::default(),
            ),
            peer_rtt: c.add(
                "peer_rtt",
                seconds(),
                "Round trip to a peer, measured by ping",
                exchange(),
            ),
            store_seconds: c.add(
                "store",
                seconds(),
                "Time that the store took to answer, failures included",
                Family::new_with_constructor(exchange as fn() -> Histogram),
            ),
            store_errors: c.add(
                "store_errors",
                None,
                "Store operations that failed",
                Family::default(),
            ),
            errors: c.add(
                "errors",
                None,
                "Errors told to clients, by code and by who is to blame",
                Family::default(),
            ),
            catalogue: c,
        }))
    }

    /// `OpenMetrics` text, without the families that have no value yet.
    #[must_use]
    pub fn encode(&self) -> String {
        self.0.catalogue.encode()
    }

    /// What there is to be measured, by name.
    #[must_use]
    pub fn list(&self) -> Vec<MetricInfo> {
        self.0.catalogue.list()
    }

    /// Counts a session as owned for as long as the guard lives.
    pub fn session(&self, route: &str, profile: Profile) -> GaugeGuard {
        let labels = ByProfile { route: route.to_owned(), profile: profile.as_str() };
        GaugeGuard::new(self.0.sessions.get_or_create_owned(&labels))
    }

    /// Counts a client as attached for as long as the guard lives.
    pub fn client(&self, route: &str, place: Place) -> GaugeGuard {
        let labels = ByPlace { route: route.to_owned(), place };
        GaugeGuard::new(self.0.clients.get_or_create_owned(&labels))
    }

    /// A client was dropped because it did not read.
    pub fn slow_client(&self, route: &str, place: Place) {
        self.0.slow_clients.get_or_create(&ByPlace { route: route.to_owned(), place }).inc();
    }

    /// The counters of one direction of a link at the edge.
    pub fn frames(&self, route: &str, direction: Direction) -> FrameCounters {
        let labels = ByDirection { route: route.to_owned(), direction };
        FrameCounters {
            frames: self.0.frames.get_or_create_owned(&labels),
            bytes: self.0.frame_bytes.get_or_create_owned(&labels),
        }
    }

    /// The counter of one direction of a link whose owner is on another node.
    pub fn forwarded_frames(&self, route: &str, direction: Direction) -> Counter {
        let labels = ByDirection { route: route.to_owned(), direction };
        self.0.forwarded_frames.get_or_create_owned(&labels)
    }

    /// An attach at a remote owner ended.
    pub fn forward(&self, outcome: Outcome, took: Duration) {
        self.0.forward.get_or_create(&ByOutcome { outcome }).observe(took.as_secs_f64());
    }

    /// A session's part of the replay bytes; zero until it is set.
    pub fn replay_bytes(&self, route: &str) -> GaugeShare {
        let labels = ByRoute { route: route.to_owned() };
        GaugeShare::new(self.0.replay_bytes.get_or_create_owned(&labels))
    }

    /// A client that came back with a cursor was answered.
    pub fn resume(&self, route: &str, outcome: ResumeOutcome) {
        self.0.resumes.get_or_create(&ByResume { route: route.to_owned(), outcome }).inc();
    }

    /// A turn ended, so long after it was accepted.
    pub fn turn(&self, route: &str, outcome: TurnOutcome, took: Duration) {
        let labels = ByTurn { route: route.to_owned(), outcome };
        self.0.turns.get_or_create(&labels).inc();
        self.0.turn_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A turn's first event came, so long after it was accepted.
    pub fn turn_first_event(&self, route: &str, took: Duration) {
        let labels = ByRoute { route: route.to_owned() };
        self.0.turn_first_event.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts a turn as queued for as long as the guard lives.
    pub fn queued_turn(&self, route: &str) -> GaugeGuard {
        let labels = ByRoute { route: route.to_owned() };
        GaugeGuard::new(self.0.turn_queue.get_or_create_owned(&labels))
    }

    /// The ring that this node acts on from now on.
    pub fn ring(&self, version: i64, states: impl IntoIterator<Item = MemberState>) {
        use MemberState::{Active, Dead, Draining, Gone, Joining};
        let mut counts = [Joining, Active, Draining, Dead, Gone].map(|state| (state, 0));
        for state in states {
            for (counted, count) in &mut counts {
                *count += i64::from(*counted == state);
            }
        }
        for (state, count) in counts {
            self.0.ring_members.get_or_create(&ByState { state: state.as_str() }).set(count);
        }
        self.0.ring_version.set(version);
    }

    /// The instant at which this node's lease is over by its own account; None: no lease.
    pub fn lease_until(&self, deadline: Option<Instant>) {
        *self.0.lease.0.lock() = deadline;
    }

    /// An attempt to own a session ended.
    pub fn claim(&self, outcome: ClaimOutcome) {
        self.0.claims.get_or_create(&ByClaim { outcome }).inc();
    }

    /// A session was taken over.
    pub fn takeover(&self, reason: TakeoverReason) {
        self.0.takeovers.get_or_create(&ByTakeover { reason }).inc();
    }

    /// `NOT_OWNER` was answered (`Callee`) or received (`Caller`).
    pub fn not_owner(&self, side: Side) {
        self.0.not_owner.get_or_create(&BySide { side }).inc();
    }

    /// A planned transfer ended.
    pub fn handoff(&self, reason: HandoffReason, outcome: Outcome, took: Duration) {
        let labels = ByHandoff { reason, outcome };
        self.0.handoffs.get_or_create(&labels).inc();
        self.0.handoff_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// How far the drain is, and how many sessions it has still to move.
    pub fn drain(&self, state: DrainState, remaining: usize) {
        self.0.drain_state.set(state as i64);
        self.0.drain_remaining.set(i64::try_from(remaining).unwrap_or(i64::MAX));
    }

    /// Counts a connection to an upstream as open for as long as the guard lives.
    pub fn upstream_connection(&self, upstream: &str) -> GaugeGuard {
        let labels = ByUpstream { upstream: upstream.to_owned() };
        GaugeGuard::new(self.0.upstream_connections.get_or_create_owned(&labels))
    }

    /// A dial of an upstream ended.
    pub fn upstream_dial(&self, upstream: &str, outcome: Outcome) {
        let labels = ByDial { upstream: upstream.to_owned(), outcome };
        self.0.upstream_dials.get_or_create(&labels).inc();
    }

    /// The breaker of an upstream changed.
    pub fn breaker(&self, upstream: &str, state: BreakerState) {
        let labels = ByUpstream { upstream: upstream.to_owned() };
        self.0.breaker.get_or_create(&labels).set(state as i64);
    }

    /// Counts a peer stream as open for as long as the guard lives.
    pub fn peer_connection(&self, side: Side) -> GaugeGuard {
        GaugeGuard::new(self.0.peer_connections.get_or_create_owned(&BySide { side }))
    }

    /// A ping came back from a peer.
    pub fn peer_rtt(&self, took: Duration) {
        self.0.peer_rtt.observe(took.as_secs_f64());
    }

    /// The store answered. `operation` is a name from the code, never data.
    pub fn store(&self, operation: &'static str, took: Duration) {
        let labels = ByOperation { operation };
        self.0.store_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The store failed. `operation` is a name from the code, never data.
    pub fn store_error(&self, operation: &'static str, reason: StoreFailure) {
        self.0.store_errors.get_or_create(&ByStoreFailure { operation, reason }).inc();
    }

    /// A client was told of a failure.
    pub fn error(&self, error: &Error) {
        let labels = ByError { code: error.code.as_str(), blame: error.blame.label() };
        self.0.errors.get_or_create(&labels).inc();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// Counters of one `(route, direction)`: look them up once, then count for free.
#[derive(Clone, Debug)]
pub struct FrameCounters {
    frames: Counter,
    bytes: Counter,
}

impl FrameCounters {
    /// Counts a batch of `frames` messages and `bytes` bytes.
    pub fn record(&self, frames: u32, bytes: usize) {
        self.frames.inc_by(u64::from(frames));
        self.bytes.inc_by(bytes as u64);
    }
}

/// One of what a gauge counts; it is counted down when this is dropped.
#[derive(Debug)]
#[must_use = "the gauge counts down when the guard is dropped"]
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One holder's part of a sum; taken off it when this is dropped.
#[derive(Debug)]
#[must_use = "the part is taken off when this is dropped"]
pub struct GaugeShare {
    gauge: Gauge,
    held: i64,
}

impl GaugeShare {
    fn new(gauge: Gauge) -> Self {
        Self { gauge, held: 0 }
    }

    /// This holder's part is `amount` from now on.
    pub fn set(&mut self, amount: usize) {
        let amount = i64::try_from(amount).unwrap_or(i64::MAX);
        self.gauge.inc_by(amount - self.held);
        self.held = amount;
    }
}

impl Drop for GaugeShare {
    fn drop(&mut self) {
        self.gauge.dec_by(self.held);
    }
}

#[cfg(test)]
mod tests;
