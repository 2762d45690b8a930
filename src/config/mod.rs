//! One validated configuration. What is in here is correct: every fault was reported,
//! all at once, before any port was bound.

mod admin;
mod auth;
mod check;
mod continuity;
mod database;
pub mod dump;
pub mod fault;
pub mod fields;
pub mod file;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod load;
mod mounted;
mod otlp;
mod path;
mod peers;
pub mod reference;
pub mod resolve;
pub mod routes;
pub mod schema;
pub mod secret;
pub mod settings;
pub mod url;
pub mod value;

#[cfg(test)]
mod tests;

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

pub use auth::{ApiKey, ApiKeys, Auth, Jwks, Jwt, read_keys};
pub use continuity::{Continuity, HISTORY_KEY_BYTES, HistoryKeys};
pub use fault::Faults;
use http::Uri;
pub use otlp::{Collector, Collectors, OtlpProtocol};
pub use resolve::{Env, ServeArgs};
pub use secret::Secret;
pub use value::MAX_NAME;

use crate::store::StoreOptions;

/// Everything that `serve` needs.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: Node,
    pub store: StoreOptions,
    pub migrate_on_start: bool,
    /// How long the ledger remembers a turn.
    pub turn_retention: Duration,
    pub timing: Timing,
    /// None: sessions stay where they are when a node joins.
    pub rebalance: Option<Rebalance>,
    pub limits: Limits,
    pub breaker: BreakerRules,
    pub routes: Vec<Arc<Route>>,
    pub auth: Auth,
    /// Web origins that may connect; empty: all.
    pub allowed_origins: Vec<String>,
    pub peer: PeerSecurity,
    pub admin_token: AdminToken,
    /// Keys of the conversations in the database; empty where no route keeps any there.
    pub history_keys: HistoryKeys,
    pub telemetry: Telemetry,
    /// What works but hardly as intended, to be logged at start; no secret in it.
    pub warnings: Vec<String>,
}

/// Names and addresses of this process.
#[derive(Clone, Debug)]
pub struct Node {
    pub id: String,
    pub listen: SocketAddr,
    pub peer_listen: SocketAddr,
    pub admin_listen: SocketAddr,
    /// `host:port` of the peer listener as other nodes reach it. None: the bound address.
    pub advertise: Option<String>,
    pub zone: Option<String>,
    /// Relative share of the ring; 100 is ordinary.
    pub weight: u32,
    /// Sessions this node is willing to own.
    pub capacity: u32,
    /// The platform guarantees one live process for each node id (`POD_UID` is set).
    pub supersede: bool,
    /// Worker threads of the runtime.
    pub threads: usize,
    /// `node_id=host:port` of every peer: a static member list that overrides the
    /// addresses found in the store. Empty: use the store's.
    pub static_members: Vec<(String, String)>,
}

/// Durations whose relations are checked: `3 x heartbeat <= lease_ttl - lease_margin`.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub heartbeat_interval: Duration,
    pub lease_ttl: Duration,
    /// How much earlier than the store a node believes its own lease to be over.
    pub lease_margin: Duration,
    /// Poll of the ring version, beside hints.
    pub ring_poll: Duration,
    pub drain_dwell: Duration,
    pub drain_timeout: Duration,
    pub drain_cleanup: Duration,
}

/// How a node gives sessions away to nodes that joined later.
#[derive(Clone, Copy, Debug)]
pub struct Rebalance {
    /// It begins above this many percent of the fair share.
    pub tolerance: u32,
    /// At most so many sessions.
    pub per_second: u32,
    /// Nothing happened in the session, and nobody joined or left, for so long.
    pub idle: Duration,
}

/// Bounds of everything that can grow.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest message, after reassembly and inflation.
    pub max_message_bytes: usize,
    /// Bytes in flight between a session and one client before back-pressure.
    pub link_window_bytes: usize,
    pub max_clients_per_session: usize,
    /// Client sockets and HTTP turns on this node.
    pub max_clients: usize,
    /// Replay log of a session.
    pub replay_bytes: usize,
    pub replay_ttl: Duration,
    /// Conversation kept for a session whose upstream stores nothing.
    pub history_bytes: usize,
    /// Turns waiting in one lane.
    pub turn_queue: usize,
    pub upgrade_timeout: Duration,
    pub dial_timeout: Duration,
    /// A running turn without any upstream event for so long is over.
    pub turn_idle_timeout: Duration,
    /// A client that takes nothing for so long is dropped.
    pub write_timeout: Duration,
    pub principal: PrincipalLimits,
}

/// What one principal may use on all nodes together; None: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrincipalLimits {
    pub sessions: Option<u32>,
    /// Turns at once.
    pub turns: Option<u32>,
    pub turns_per_minute: Option<u32>,
}

/// One path of the client listener and what it leads to.
#[derive(Clone, Debug)]
pub struct Route {
    /// `/rooms/{room}`; also the route's name in metrics and session ids.
    pub path: String,
    pub profile: Profile,
    pub upstream: Arc<Upstream>,
    pub session_key: Vec<KeySource>,
    /// How long a session outlives its last client.
    pub detach_ttl: Duration,
    /// What a conversation survives. Of no meaning on an opaque route.
    pub continuity: Continuity,
    /// Turns are written to the ledger before they are sent; never for an opaque route.
    pub ledger: bool,
    /// permessage-deflate with clients that offer it.
    pub compression: bool,
    /// When a drain closes Responses sockets of its own node.
    pub sockets_at_drain: SocketsAtDrain,
}

/// When a drain closes the client sockets that its node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketsAtDrain {
    /// Codex at the boundary, others at the deadline.
    Auto,
    /// After the turn that runs.
    Boundary,
    /// After the last turn before the deadline.
    Deadline,
}

impl SocketsAtDrain {
    /// The word of the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Boundary => "boundary",
            Self::Deadline => "deadline",
        }
    }

    /// The inverse of [`SocketsAtDrain::as_str`]; anything else is taken for `auto`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        [Self::Boundary, Self::Deadline]
            .into_iter()
            .find(|known| known.as_str() == text)
            .unwrap_or(Self::Auto)
    }
}

/// How the frames of a route are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The Responses API: turns, lanes, response ids.
    Responses,
    /// Any WebSocket protocol: frames pass untouched.
    Opaque,
}

impl Profile {
    /// Stable label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Responses => "responses",
            Self::Opaque => "opaque",
        }
    }
}

/// Where an opaque session's key is found; the first that is present wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    Path(String),
    Header(http::HeaderName),
    Query(String),
    Cookie(String),
}

/// When an endpoint that fails is left alone, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerRules {
    /// Failures in a row.
    pub failures: u32,
    /// The first time; doubles with each failed probe.
    pub open: Duration,
    pub max_open: Duration,
}

/// What sessions are connected to.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub name: String,
    /// At least one. Each session has one of them, the others in reserve.
    pub endpoints: Vec<Endpoint>,
    /// The connection is renewed at a turn boundary before this age.
    pub max_connection_age: Duration,
    /// Offer permessage-deflate.
    pub compression: bool,
    /// PEM file of additional trust anchors.
    pub ca_file: Option<std::path::PathBuf>,
}

/// One place of an upstream, or one credential for it.
#[derive(Clone)]
pub struct Endpoint {
    pub name: String,
    /// `ws://` or `wss://`.
    pub url: Uri,
    pub auth: UpstreamAuth,
    /// Share of the sessions relative to the others.
    pub weight: u32,
}

impl Endpoint {
    /// The one endpoint of an upstream that has no others, with the client's credential.
    #[must_use]
    pub fn sole(url: Uri) -> Self {
        Self { name: "default".into(), url, auth: UpstreamAuth::Passthrough, weight: 100 }
    }

    /// Whether it is given the operator's credential.
    #[must_use]
    pub fn is_operators(&self) -> bool {
        matches!(self.auth, UpstreamAuth::Bearer(_))
    }

    /// Whether an answer of this status speaks against the endpoint rather than the request:
    /// also what it says of a credential, if that is the operator's.
    #[must_use]
    pub fn is_blamed_for(&self, status: u16) -> bool {
        blames_endpoint(status, self.is_operators())
    }
}

/// The same for an endpoint that is given the operator's credential, or is not.
#[must_use]
pub fn blames_endpoint(status: u16, operators: bool) -> bool {
    status >= 500 || operators && matches!(status, 401 | 403 | 429)
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("name", &self.name)
            // Its query may hold a credential.
            .field("url", &url::redact(&self.url.to_string()))
            .field("auth", &self.auth)
            .field("weight", &self.weight)
            .finish()
    }
}

/// Whose credential the upstream sees.
#[derive(Clone, Debug)]
pub enum UpstreamAuth {
    /// The client's own `Authorization`.
    Passthrough,
    /// The operator's, read from an environment variable at start.
    Bearer(Secret),
}

/// What the admin listener asks of who changes something.
#[derive(Clone, Debug)]
pub enum AdminToken {
    /// To come from the node's own machine.
    None,
    Fixed(Secret),
    /// Read at each use.
    File(std::path::PathBuf),
}

impl AdminToken {
    /// The token in the text of a file, if it is long enough.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Secret> {
        let text = std::str::from_utf8(text).ok()?.trim();
        (text.chars().count() >= value::SECRET_MIN).then(|| Secret::new(text))
    }
}

/// How nodes prove themselves to each other.
#[derive(Clone, Debug)]
pub enum PeerSecurity {
    /// Asked for explicitly, or every peer address is on loopback.
    Plaintext,
    /// Secrets shared by the ring, in each call's metadata: the first is shown, all are
    /// accepted, so that one is replaced node by node.
    Tokens(Vec<Secret>),
    /// Both sides show a certificate of the ring's authority.
    Mtls { cert: std::path::PathBuf, key: std::path::PathBuf, ca: std::path::PathBuf },
}

/// Logs and traces.
#[derive(Clone, Debug)]
pub struct Telemetry {
    pub log_format: LogFormat,
    /// `tracing` filter directive.
    pub log_filter: String,
    /// What is sent by OTLP, and where.
    pub otlp: Collectors,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}
