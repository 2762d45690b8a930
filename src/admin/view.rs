//! What the admin listener shows of a node, as data. The node implements [`NodeView`];
//! the command line reads the same types back from JSON.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::error::Result;
pub use crate::telemetry::events::NodeEvent;

/// Whether the store answers this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Database {
    Ok,
    Unreachable,
}

/// How a node is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    pub node_id: String,
    pub build: String,
    /// It is registered, in placement, and its lease holds.
    pub joined: bool,
    pub ring_version: i64,
    /// Live members that it sees.
    pub members: usize,
    pub database: Database,
    /// How long the database has not answered; None while it does.
    pub database_away_seconds: Option<f64>,
    /// The other members allow it to serve what it owns beyond its lease.
    pub certified: bool,
    pub draining: bool,
    /// Until it must stop serving unless a heartbeat succeeds, or a certificate holds.
    pub lease_remaining_seconds: f64,
    pub uptime_seconds: f64,
}

impl Health {
    /// Whether a balancer should send clients here. A database that is away does not count
    /// while this node may serve what it owns: sessions that are open somewhere in the ring
    /// are reached from here, and if every node said no at once nobody would serve them.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.joined && !self.draining && (self.lease_remaining_seconds > 0.0 || self.certified)
    }
}

/// The ring as this node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RingInfo {
    pub version: i64,
    /// Incarnation of the node that answers; None before it has joined.
    pub me: Option<i64>,
    pub members: Vec<MemberInfo>,
    /// What this node knows of an outage of the database; None while there is none.
    pub outage: Option<OutageInfo>,
}

/// An outage of the database, as one node lives through it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutageInfo {
    /// Since the last heartbeat that was answered.
    pub away_seconds: f64,
    /// What is left of the certificate by which the node outlives its lease; 0: none.
    pub certified_seconds: f64,
    /// What kept it from a certificate when it last asked.
    pub obstacle: Option<String>,
}

/// One member of the ring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberInfo {
    pub incarnation: i64,
    pub node_id: String,
    pub peer_addr: String,
    pub build: String,
    pub zone: Option<String>,
    pub weight: u32,
    /// `JOINING`, `ACTIVE`, `DRAINING`, `DEAD` or `GONE`.
    pub state: String,
    /// Sessions owned, as it said at its last heartbeat.
    pub load: u32,
    pub capacity: u32,
    pub lease_remaining_seconds: f64,
    /// Fraction of the hash ring, 0 to 1; 0 for members out of placement.
    pub share: f64,
}

/// A session, with what its owner knows if that is the node that answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionInfo {
    pub id: String,
    /// The beginning of the principal's hash: enough to tell two apart.
    pub principal: String,
    pub route: String,
    pub profile: String,
    pub key: Option<String>,
    pub owner_node: Option<String>,
    pub owner_incarnation: Option<i64>,
    pub epoch: i64,
    /// `LIVE`, `QUIESCING` or `CLOSED`.
    pub state: String,
    pub age_seconds: f64,
    pub local: Option<LocalSession>,
}

/// A session with what the nodes remember of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionStory {
    #[serde(flatten)]
    pub session: SessionInfo,
    /// Newest first.
    #[serde(default)]
    pub story: Vec<StoryEvent>,
}

/// Something that happened to a session, as one node remembers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoryEvent {
    pub node: String,
    pub kind: String,
    /// One sentence.
    pub text: String,
    pub ago_seconds: f64,
}

/// What only the owner knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalSession {
    pub clients: Vec<ClientInfo>,
    pub upstream: UpstreamState,
    /// Sequence number of the newest event.
    pub head_seq: u64,
    /// Events up to this one can no longer be replayed.
    pub floor_seq: u64,
    pub replay_bytes: u64,
    pub turns_running: u32,
    pub turns_queued: u32,
    pub turns_done: u64,
    /// It cannot be handed off at once.
    pub busy: bool,
}

/// A client of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientInfo {
    /// Node that holds its socket.
    pub edge_node: String,
    /// `websocket` or `http`.
    pub kind: String,
    pub since_seconds: f64,
    /// Events that were sent and not taken yet.
    pub lag: u64,
}

/// The upstream connection of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamState {
    Connected,
    Dialing,
    None,
}

/// Which sessions to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionQuery {
    /// Node id or incarnation of the owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Only ids greater than this one: the last of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

impl SessionQuery {
    /// Rows of an answer unless asked otherwise.
    pub const DEFAULT_LIMIT: usize = 100;
    /// Rows of the longest answer.
    pub const MAX_LIMIT: usize = 1_000;

    /// Rows to answer with, bounded.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(Self::DEFAULT_LIMIT).clamp(1, Self::MAX_LIMIT)
    }
}

/// A page of sessions, ordered by id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionPage {
    pub sessions: Vec<SessionInfo>,
    /// `after` of the next page; None: this was the last.
    pub next: Option<String>,
}

/// How a node is to drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrainOrder {
    /// Limit of the whole drain from now on. It only ever makes a drain shorter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within_seconds: Option<u64>,
    /// Also if no node would be left to own sessions.
    pub force: bool,
}

/// Answer to the wish that this node drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainAnswer {
    /// It drains from now on.
    Accepted,
    /// It was draining before; the deadline stays as it was.
    Already,
    /// It was draining before; the deadline is earlier now.
    Tightened,
    /// It does not: no other node could own sessions. An order with `force` is obeyed.
    LastActive,
    /// It cannot: it has not joined, or it is leaving.
    Refused,
}

impl DrainAnswer {
    /// The word of the audit log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Already => "already",
            Self::Tightened => "tightened",
            Self::LastActive => "last_active",
            Self::Refused => "refused",
        }
    }
}

/// A node as the admin listener sees it.
#[async_trait]
pub trait NodeView: Send + Sync + 'static {
    /// How the node is. Must not wait for the database: probes have short deadlines.
    async fn health(&self) -> Health;

    /// The ring as the node sees it, from memory.
    async fn ring(&self) -> RingInfo;

    /// At most `query.limit()` sessions of the whole ring, ordered by id.
    ///
    /// # Errors
    /// The store does not answer.
    async fn sessions(&self, query: &SessionQuery) -> Result<Vec<SessionInfo>>;

    /// One session; None if there is none of this id.
    ///
    /// # Errors
    /// The id is malformed, or the store does not answer.
    async fn session(&self, id: &str) -> Result<Option<SessionInfo>>;

    /// What the nodes that answer remember of a session, newest first; of members that are
    /// gone nothing is known.
    async fn story(&self, id: &str) -> Vec<StoryEvent>;

    /// Begins to drain, or to drain sooner. Returns at once; the drain goes on by itself.
    async fn drain(&self, order: DrainOrder) -> DrainAnswer;

    /// What happens from now on. A receiver that lags loses the oldest.
    fn events(&self) -> broadcast::Receiver<NodeEvent>;
}
