//! What the ring remembers: members, sessions, aliases. Claims in here are the truth;
//! everything else a node believes is a cache of it.
//!
//! *Invariant:* only this module imports sqlx. Every time that matters is the store's own
//! (`clock_timestamp()` on Postgres, the machine's boot clock on SQLite); no wall clock of
//! a node is ever compared with another's.

pub mod memory;
pub mod postgres;
pub mod schema;
pub mod sqlite;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::ids::{Epoch, Incarnation, Principal, SessionId};

/// Life of a member row. `Dead` and `Gone` are one-way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberState {
    /// Registered, not yet taking sessions.
    Joining,
    /// In placement.
    Active,
    /// Out of placement, still owning and forwarding.
    Draining,
    /// Its lease lapsed, or its death is proven. Its sessions may be taken over.
    Dead,
    /// It left by itself and owns nothing.
    Gone,
}

impl MemberState {
    /// The word used in the database, the API and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "JOINING",
            Self::Active => "ACTIVE",
            Self::Draining => "DRAINING",
            Self::Dead => "DEAD",
            Self::Gone => "GONE",
        }
    }

    /// The inverse of [`MemberState::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Joining, Self::Active, Self::Draining, Self::Dead, Self::Gone]
            .into_iter()
            .find(|state| state.as_str() == text)
    }

    /// Whether the member may still own sessions.
    #[must_use]
    pub const fn is_alive(self) -> bool {
        matches!(self, Self::Joining | Self::Active | Self::Draining)
    }
}

/// What a node says of itself when it registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMember {
    /// Stable name of the pod or process (`POD_NAME`).
    pub node_id: String,
    /// `host:port` of its peer listener, as others reach it.
    pub peer_addr: String,
    /// Build, compared by placement as `major.minor.patch` (newest is the best heir).
    pub build: String,
    pub zone: Option<String>,
    /// Relative share of the ring; 100 is ordinary.
    pub weight: u32,
    /// Sessions it is willing to own.
    pub capacity: u32,
    /// Identity of the process on its machine (boot, pid namespace, pid, start time), by
    /// which a process in the same namespace can prove its death. Empty where unknown.
    pub process: String,
    /// The platform guarantees that the earlier holder of `node_id` is dead (a StatefulSet
    /// pod): it is marked so without waiting for its lease.
    pub supersede: bool,
}

/// A row of `member`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub incarnation: Incarnation,
    pub node_id: String,
    pub peer_addr: String,
    pub build: String,
    pub zone: Option<String>,
    pub weight: u32,
    pub capacity: u32,
    pub process: String,
    pub state: MemberState,
    /// Sessions owned, as it said at its last heartbeat.
    pub load: u32,
    /// What was left of its lease when the row was read (store's clock); zero if expired.
    pub lease_remaining: Duration,
}

/// All live members, and dead or gone ones that some session still names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingView {
    /// Grows with every membership change; heartbeats do not move it.
    pub version: i64,
    pub members: Vec<Member>,
}

/// What all nodes of one ring share.
#[derive(Clone)]
pub struct Cluster {
    /// Random, made once at migration. Peers of another cluster are refused by it.
    pub id: String,
    /// Key of the principals' hash.
    pub secret: [u8; 32],
}

/// Answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    pub ring_version: i64,
    pub state: MemberState,
}

/// State of a session row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    Live,
    /// The owner stopped its turns and is about to transfer it.
    Quiescing,
    /// Ended; the row remains as a fence until it is swept.
    Closed,
}

impl SessionState {
    /// The word used in the database and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Quiescing => "QUIESCING",
            Self::Closed => "CLOSED",
        }
    }

    /// The inverse of [`SessionState::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Live, Self::Quiescing, Self::Closed].into_iter().find(|s| s.as_str() == text)
    }
}

/// A row of `session`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRow {
    pub id: SessionId,
    pub principal: Principal,
    /// Name of the route that opened it.
    pub route: String,
    /// The key as an operator may see it: the text itself, or its hash for keys that are
    /// credentials (cookies).
    pub key_label: String,
    /// None once released.
    pub owner: Option<Incarnation>,
    pub owner_state: Option<MemberState>,
    /// Peer address of the owner, so that a look-up of a row is enough to forward.
    pub owner_addr: Option<String>,
    pub epoch: Epoch,
    pub state: SessionState,
    /// Seconds since the row was first made (store's clock).
    pub age: Duration,
}

impl SessionRow {
    /// The owner, if it may still be serving the session.
    #[must_use]
    pub fn live_owner(&self) -> Option<Incarnation> {
        self.owner_state.filter(|state| state.is_alive()).and(self.owner)
    }
}

/// A wish to own a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub id: SessionId,
    pub principal: Principal,
    pub route: String,
    pub key_label: String,
    pub me: Incarnation,
    /// Epoch of the row as it was last read; None claims only a session without a row.
    pub seen: Option<Epoch>,
}

/// What became of a [`Claim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// It is ours under this epoch.
    Won {
        epoch: Epoch,
        /// The incarnation it was taken from, if it had another owner before.
        from: Option<Incarnation>,
    },
    /// It is someone's; the row as it is now.
    Lost(SessionRow),
    /// We are not allowed to own anything (dead, draining, or never registered).
    Fenced,
}

/// What became of a planned transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transferred {
    /// The commit point was passed; the heir owns it under this epoch.
    Moved(Epoch),
    /// The heir is not active. Ownership did not change.
    HeirUnfit,
    /// The row is not ours in that epoch. Nothing changed.
    NotOwner,
}

/// What an alias is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AliasKind {
    /// An id that the upstream gave to a response.
    Response,
    /// `x-codex-turn-state`.
    TurnState,
}

impl AliasKind {
    /// The word used in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Response => "response",
            Self::TurnState => "turn_state",
        }
    }
}

/// Another name of a session, valid within one principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    pub principal: Principal,
    pub kind: AliasKind,
    /// SHA-256 (first 16 bytes) of the text: response ids and turn states are not kept.
    pub digest: [u8; 16],
    pub session: SessionId,
}

/// Which sessions to list. Ordered by id, so a listing can be continued.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    pub owner: Option<Incarnation>,
    pub key_label: Option<String>,
    pub after: Option<SessionId>,
    /// Bounded by the caller; a store refuses nothing.
    pub limit: u32,
}

/// A failure of the store, or its refusal.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// Not reachable, or shutting down. Whether a write took effect is unknown.
    #[error("the database is not reachable: {0}")]
    Unavailable(String),
    /// No answer within the limit. Whether a write took effect is unknown.
    #[error("the database did not answer within {0:?}")]
    Timeout(Duration),
    /// This incarnation is dead, gone, or unknown: stop serving.
    #[error("incarnation {0} is fenced: the ring has declared it dead")]
    Fenced(Incarnation),
    /// A live process holds this node id.
    #[error("node id {node_id:?} is held by incarnation {holder}, whose lease has {remaining:?} left")]
    NodeIdInUse { node_id: String, holder: Incarnation, remaining: Duration },
    /// The schema is not one this build can work with.
    #[error("schema version {found} cannot be used; this build needs {wanted}: {hint}")]
    Schema { found: i64, wanted: i64, hint: &'static str },
    /// A value in the database makes no sense.
    #[error("the database holds something unreadable: {0}")]
    Corrupt(String),
    /// The address of the database is not usable.
    #[error("database url: {0}")]
    BadUrl(String),
}

impl StoreError {
    /// Label for `store_errors_total`.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Timeout(_) => "timeout",
            Self::Fenced(_) => "fenced",
            Self::NodeIdInUse { .. } => "node_id_in_use",
            Self::Schema { .. } => "schema",
            Self::Corrupt(_) => "corrupt",
            Self::BadUrl(_) => "bad_url",
        }
    }
}

/// Result of a store call.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The one interface to what the ring remembers. Implementations: Postgres (production),
/// SQLite (one machine), memory (tests). One contract suite runs against all three.
///
/// Every call is bounded by the store's own timeout and may be cancelled: a dropped call
/// either took effect or did not, and the caller must read again to know.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// `postgres`, `sqlite` or `memory`; a label.
    fn backend(&self) -> &'static str;

    /// What all nodes share.
    async fn cluster(&self) -> Result<Cluster>;

    /// Registers a new incarnation as `Joining` with a lease of `ttl`, and bumps the ring
    /// version. An earlier row of the same node id is marked dead if its lease expired or
    /// `supersede` is set.
    ///
    /// # Errors
    /// [`StoreError::NodeIdInUse`] while another process may still hold the node id.
    async fn register(&self, member: &NewMember, ttl: Duration) -> Result<Incarnation>;

    /// Renews the lease, also an expired one, as long as the row is not `Dead` or `Gone`.
    ///
    /// # Errors
    /// [`StoreError::Fenced`]: stop serving at once.
    async fn heartbeat(&self, me: Incarnation, ttl: Duration, load: u32) -> Result<Heartbeat>;

    /// `Joining` to `Active`, bumping the ring version. Idempotent.
    async fn activate(&self, me: Incarnation) -> Result<()>;

    /// `Joining` or `Active` to `Draining`, bumping the ring version. Idempotent; true when
    /// this call made the change.
    async fn begin_drain(&self, node: Incarnation) -> Result<bool>;

    /// To `Gone`, if no session names this incarnation; answers how many still do.
    async fn leave(&self, me: Incarnation) -> Result<u64>;

    /// Marks an incarnation dead if its lease has expired by the store's clock, or, with
    /// `proven`, whatever its lease (its process is known not to exist). True when this
    /// call made the change; then the ring version grew.
    async fn mark_dead(&self, node: Incarnation, proven: bool) -> Result<bool>;

    /// Members and ring version in one consistent read.
    async fn ring(&self) -> Result<RingView>;

    /// Waits for a hint that the ring version may have moved. Hints may be lost or
    /// spurious, so callers poll as well. A store without hints never returns.
    async fn ring_hint(&self);

    /// Takes a session: a new one, a released one, or one whose owner is dead or gone, if
    /// its epoch is still `seen`. Fenced by `me` being `Joining` or `Active`.
    async fn claim(&self, claim: &Claim) -> Result<Claimed>;

    /// One row by primary key.
    async fn session(&self, id: SessionId) -> Result<Option<SessionRow>>;

    /// Sessions by filter, ordered by id.
    async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRow>>;

    /// Ends an ownership: the row stays, without owner and `Closed`. False if the row is
    /// not ours in that epoch (then nothing changed).
    async fn release(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool>;

    /// `Live` to `Quiescing`: no turn is running any more, a transfer follows. False if the
    /// row is not ours in that epoch.
    async fn quiesce(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool>;

    /// Back from `Quiescing` to `Live`, when no heir was found. False if not ours.
    async fn resume(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool>;

    /// The commit point of a handoff: owner and epoch change in one statement, if the row
    /// is ours, quiescing and the heir active.
    async fn transfer(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        heir: Incarnation,
    ) -> Result<Transferred>;

    /// Records aliases. An existing alias of the same principal moves to the new session.
    async fn put_aliases(&self, aliases: &[Alias]) -> Result<()>;

    /// The session that an alias names for this principal.
    async fn alias(
        &self,
        principal: Principal,
        kind: AliasKind,
        digest: [u8; 16],
    ) -> Result<Option<SessionId>>;

    /// Deletes closed sessions, aliases and dead members that nothing names, older than
    /// `age`, at most `limit` of each; answers how many rows went.
    async fn sweep(&self, age: Duration, limit: u32) -> Result<u64>;
}

/// How to reach a store.
#[derive(Clone)]
pub struct StoreOptions {
    /// `sqlite://path` or `postgres://…`. May hold a password: never logged.
    pub url: String,
    /// For what a transaction pooler breaks (LISTEN, advisory locks); same as `url` if none.
    pub direct_url: Option<String>,
    /// Upper bound of pooled connections.
    pub max_connections: u32,
    /// Upper bound of one call.
    pub timeout: Duration,
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = |url: &str| url.split(':').next().unwrap_or_default().to_owned();
        f.debug_struct("StoreOptions")
            .field("url", &scheme(&self.url))
            .field("direct_url", &self.direct_url.as_deref().map(scheme))
            .field("max_connections", &self.max_connections)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// Opens the store that the URL names and checks its schema.
///
/// # Errors
/// Unreachable, of a wrong schema, or an unknown URL scheme.
pub async fn open(options: &StoreOptions) -> Result<Arc<dyn Store>> {
    let url = options.url.as_str();
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        Ok(Arc::new(postgres::Postgres::open(options).await?))
    } else if url.starts_with("sqlite:") {
        Ok(Arc::new(sqlite::Sqlite::open(options).await?))
    } else {
        Err(StoreError::BadUrl("expected sqlite://… or postgres://…".into()))
    }
}
