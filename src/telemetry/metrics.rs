//! Every metric of a node.
//!
//! A frame's path holds a [`FrameCounters`], looked up once when its link is opened, so
//! that counting costs an atomic add and no look-up. Gauges of things that live and die
//! are counted by guards, so that no way out of a function can forget to count down.

mod catalogue;
mod classic;
mod families;
mod labels;
mod process;
mod zero;

use std::{fmt, sync::Arc, time::Duration};

pub use catalogue::{MetricInfo, render_table};
use families::Families;
pub use labels::{
    ArchiveFailure, ClaimOutcome, CopyOutcome, Direction, HandoffOutcome, HandoffReason,
    LedgerRefusal, LedgerWrite, Loss, Outcome, Place, QuotaLimit, ResumeOutcome, Side, Signal,
    StoreFailure, TakeoverReason, TurnOutcome,
};
use labels::{
    ByArchiveFailure, ByClaim, ByCopy, ByDial, ByDirection, ByEndpoint, ByError, ByHandoff,
    ByLedgerRefusal, ByLedgerWrite, ByLoss, ByOperation, ByOutcome, ByPlace, ByProfile, ByQuota,
    ByResume, ByRoute, BySide, BySignal, ByState, ByStoreFailure, ByTakeover, ByTurn, ByUpstream,
};
pub use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use tokio::time::Instant;

use crate::{
    config::Profile,
    error::{Blame, Code},
    store::MemberState,
};

/// All metrics; a cheap handle.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

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
    /// All metrics at their zero, but for those of routes and upstreams, which have to be named.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self(Arc::new(Families::new()));
        metrics.touch_all();
        metrics
    }

    /// `OpenMetrics` text, without the families that have no value yet.
    #[must_use]
    pub fn encode(&self) -> String {
        self.0.catalogue.encode()
    }

    /// The same as text of version 0.0.4.
    #[must_use]
    pub fn encode_classic(&self) -> String {
        classic::classic(&self.encode())
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

    /// Parts of conversations were written to the database.
    pub fn archived(&self, parts: usize, bytes: usize) {
        self.0.conversation_parts.inc_by(parts as u64);
        self.0.conversation_bytes.inc_by(bytes as u64);
    }

    /// A conversation in the database was not written or read.
    pub fn archive_failure(&self, reason: ArchiveFailure) {
        self.0.conversation_failures.get_or_create(&ByArchiveFailure { reason }).inc();
    }

    /// A copy for the next owner was kept by it, refused, or did not get there.
    pub fn conversation_copy(&self, outcome: CopyOutcome) {
        self.0.conversation_copies.get_or_create(&ByCopy { outcome }).inc();
    }

    /// Conversations that this node keeps as the next owner.
    pub fn heir_conversations(&self, count: usize) {
        self.0.heir_conversations.set(i64::try_from(count).unwrap_or(i64::MAX));
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

    /// The instant until which a certificate lets this node outlive its lease.
    pub fn certified_until(&self, deadline: Instant) {
        *self.0.certificate.0.lock() = Some(deadline);
    }

    /// How long ago the store answered last, if heartbeats fail; None: they do not.
    pub fn store_away(&self, away: Option<Duration>) {
        *self.0.store_outage.0.lock() = away.and_then(|away| Instant::now().checked_sub(away));
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
    pub fn handoff(&self, reason: HandoffReason, outcome: HandoffOutcome, took: Duration) {
        let labels = ByHandoff { reason, outcome };
        self.0.handoffs.get_or_create(&labels).inc();
        self.0.handoff_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// This node goes on with a session of which its former owner had to end turns.
    pub fn severed(&self, turns: usize) {
        self.0.severed_turns.inc_by(turns as u64);
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

    /// The breaker of an upstream's endpoint changed.
    pub fn breaker(&self, upstream: &str, endpoint: &str, state: BreakerState) {
        let labels = ByEndpoint { upstream: upstream.to_owned(), endpoint: endpoint.to_owned() };
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

    /// Turns went to the ledger in one write.
    pub fn ledger_batch(&self, write: LedgerWrite, turns: usize) {
        #[expect(clippy::cast_precision_loss, reason = "batches are small")]
        self.0.ledger_batch.get_or_create(&ByLedgerWrite { write }).observe(turns as f64);
    }

    /// The ledger did not let a turn be sent.
    pub fn ledger_refusal(&self, reason: LedgerRefusal) {
        self.0.ledger_refusals.get_or_create(&ByLedgerRefusal { reason }).inc();
    }

    /// A principal was refused for one of its limits.
    pub fn quota_refusal(&self, limit: QuotaLimit) {
        self.0.quota_refusals.get_or_create(&ByQuota { limit }).inc();
    }

    /// The store failed. `operation` is a name from the code, never data.
    pub fn store_error(&self, operation: &'static str, reason: StoreFailure) {
        self.0.store_errors.get_or_create(&ByStoreFailure { operation, reason }).inc();
    }

    /// The counter of what a collector took.
    pub fn otlp_sent(&self, signal: Signal) -> Counter {
        self.0.otlp_sent.get_or_create_owned(&BySignal { signal })
    }

    /// The counter of what no collector took.
    pub fn otlp_lost(&self, signal: Signal, reason: Loss) -> Counter {
        self.0.otlp_lost.get_or_create_owned(&ByLoss { signal, reason })
    }

    /// A client was told of a failure.
    pub fn error(&self, code: Code, blame: Blame) {
        let labels = ByError { code: code.as_str(), blame: blame.label() };
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
