//! The metrics themselves: name, unit, help and labels of each.

use prometheus_client::{metrics::family::Family, registry::Unit};

use super::{
    Counter, Gauge, Histogram,
    catalogue::{Catalogue, Remaining, Since},
    labels::{
        Build, ByArchiveFailure, ByClaim, ByCopy, ByDial, ByDirection, ByEndpoint, ByError,
        ByHandoff, ByLedgerRefusal, ByLedgerWrite, ByLoss, ByOperation, ByOutcome, ByPlace,
        ByProfile, ByQuota, ByResume, ByRoute, BySide, BySignal, ByState, ByStoreFailure,
        ByTakeover, ByTurn, ByUpstream,
    },
    process,
};

/// 50 µs to 13 s: one exchange with a peer or the store.
const EXCHANGE_BUCKETS: [f64; 13] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 2.5, 10.0];
/// 1 ms to 30 min: a turn, whose length the upstream and its model decide.
const TURN_BUCKETS: [f64; 14] =
    [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0, 600.0, 1_800.0];

/// Turns in one write to the ledger.
const BATCH_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// A family of histograms over the same buckets.
type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// One field for each metric, each registered where it is made.
pub(super) struct Families {
    pub(super) catalogue: Catalogue,
    pub(super) sessions: Family<ByProfile, Gauge>,
    pub(super) clients: Family<ByPlace, Gauge>,
    pub(super) slow_clients: Family<ByPlace, Counter>,
    pub(super) frames: Family<ByDirection, Counter>,
    pub(super) frame_bytes: Family<ByDirection, Counter>,
    pub(super) forwarded_frames: Family<ByDirection, Counter>,
    pub(super) forward: Histograms<ByOutcome>,
    pub(super) replay_bytes: Family<ByRoute, Gauge>,
    pub(super) resumes: Family<ByResume, Counter>,
    pub(super) turns: Family<ByTurn, Counter>,
    pub(super) turn_first_event: Histograms<ByRoute>,
    pub(super) turn_seconds: Histograms<ByTurn>,
    pub(super) turn_queue: Family<ByRoute, Gauge>,
    pub(super) conversation_parts: Counter,
    pub(super) conversation_bytes: Counter,
    pub(super) conversation_failures: Family<ByArchiveFailure, Counter>,
    pub(super) conversation_copies: Family<ByCopy, Counter>,
    pub(super) heir_conversations: Gauge,
    pub(super) ring_members: Family<ByState, Gauge>,
    pub(super) ring_version: Gauge,
    pub(super) lease: Remaining,
    pub(super) certificate: Remaining,
    pub(super) store_outage: Since,
    pub(super) claims: Family<ByClaim, Counter>,
    pub(super) takeovers: Family<ByTakeover, Counter>,
    pub(super) not_owner: Family<BySide, Counter>,
    pub(super) handoffs: Family<ByHandoff, Counter>,
    pub(super) handoff_seconds: Histograms<ByHandoff>,
    pub(super) severed_turns: Counter,
    pub(super) drain_state: Gauge,
    pub(super) drain_remaining: Gauge,
    pub(super) upstream_connections: Family<ByUpstream, Gauge>,
    pub(super) upstream_dials: Family<ByDial, Counter>,
    pub(super) breaker: Family<ByEndpoint, Gauge>,
    pub(super) peer_connections: Family<BySide, Gauge>,
    pub(super) peer_rtt: Histogram,
    pub(super) store_seconds: Histograms<ByOperation>,
    pub(super) ledger_batch: Histograms<ByLedgerWrite>,
    pub(super) ledger_refusals: Family<ByLedgerRefusal, Counter>,
    pub(super) quota_refusals: Family<ByQuota, Counter>,
    pub(super) store_errors: Family<ByStoreFailure, Counter>,
    pub(super) errors: Family<ByError, Counter>,
    pub(super) otlp_sent: Family<BySignal, Counter>,
    pub(super) otlp_lost: Family<ByLoss, Counter>,
}

impl Families {
    /// All at their zero.
    #[expect(clippy::too_many_lines, reason = "one flat list, the only place of names and help")]
    pub(super) fn new() -> Self {
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
        let batch = || Histogram::new(BATCH_BUCKETS);
        let turn = || Histogram::new(TURN_BUCKETS);
        Self {
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
            conversation_parts: c.add(
                "conversation_parts",
                None,
                "Parts of conversations written to the database",
                Counter::default(),
            ),
            conversation_bytes: c.add(
                "conversation",
                bytes(),
                "Bytes of the parts of conversations written to the database",
                Counter::default(),
            ),
            conversation_failures: c.add(
                "conversation_failures",
                None,
                "Conversations that the database did not take, give back, or give back readable",
                Family::default(),
            ),
            conversation_copies: c.add(
                "conversation_copies",
                None,
                "Conversations and parts of them sent to the next owner",
                Family::default(),
            ),
            heir_conversations: c.add(
                "heir_conversations",
                None,
                "Conversations of other owners' sessions kept by this node as the next owner",
                Gauge::default(),
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
            certificate: c.add(
                "outage_certificate_remaining",
                seconds(),
                "Time for which peers allow this node to outlive its lease; 0 without a certificate",
                Remaining::default(),
            ),
            store_outage: c.add(
                "store_outage",
                seconds(),
                "Time since the store was last reached, while heartbeats fail; else 0",
                Since::default(),
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
            severed_turns: c.add(
                "severed_turns",
                None,
                "Turns that a drain cut off at its deadline, of sessions that go on at this node",
                Counter::default(),
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
                "Circuit breaker of an upstream's endpoint on this node: 0 closed, 1 half open, 2 open",
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
            ledger_batch: c.add(
                "ledger_batch_turns",
                None,
                "Turns in one write to the ledger of turns",
                Family::new_with_constructor(batch as fn() -> Histogram),
            ),
            ledger_refusals: c.add(
                "ledger_refusals",
                None,
                "Turns that the ledger did not let be sent",
                Family::default(),
            ),
            quota_refusals: c.add(
                "quota_refusals",
                None,
                "Sessions and turns that a principal's limits did not let begin",
                Family::default(),
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
            otlp_sent: c.add(
                "otlp_sent",
                None,
                "Spans, log records and metric points that a collector took",
                Family::default(),
            ),
            otlp_lost: c.add(
                "otlp_lost",
                None,
                "Spans, log records and metric points that were lost on their way to a collector",
                Family::default(),
            ),
            catalogue: c,
        }
    }
}
