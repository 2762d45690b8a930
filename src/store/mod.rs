//! What the ring remembers: members, sessions, aliases. Claims in here are the truth;
//! everything else a node believes is a cache of it.
//!
//! *Invariant:* only this module imports sqlx. Every time that matters is the store's own
//! (`clock_timestamp()` on Postgres, the machine's boot clock on SQLite); no wall clock of
//! a node is ever compared with another's.

pub mod memory;
mod pool;
pub mod postgres;
mod quotas;
pub mod schema;
#[cfg(feature = "simulation")]
pub mod simulated;
mod sql;
pub mod sqlite;
mod turns;
mod types;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

pub(crate) use self::turns::TurnId;
pub use self::{
    quotas::{Pace, TurnAdmission, TurnWish},
    turns::{Began, NewTurn, TurnKey, TurnMark, TurnRow, TurnState},
    types::{
        Alias, AliasKind, Claim, Claimed, Cluster, Cursor, Death, Heartbeat, LeaseEnd, Member,
        MemberState, NewMember, NewPart, Part, RingView, SessionFilter, SessionRow, SessionState,
        Sweep, Swept, Transferred,
    },
};
use crate::ids::{Epoch, Incarnation, Principal, SessionId};

/// A failure of the store, or its refusal.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// Not reachable, or shutting down. Whether a write took effect is unknown.
    #[error("the database is not reachable: {0}")]
    Unavailable(String),
    /// Not asked, because it has not answered for so long.
    #[error("the database has not answered for {0:.0?}")]
    Away(Duration),
    /// No answer within the limit. Whether a write took effect is unknown.
    #[error("the database did not answer within {0:?}")]
    Timeout(Duration),
    /// This incarnation is dead, gone, or unknown: stop serving.
    #[error("incarnation {0} is fenced: the ring has declared it dead")]
    Fenced(Incarnation),
    /// A live process holds this node id.
    #[error(
        "node id {node_id:?} is held by incarnation {holder}, whose lease has {remaining:?} left"
    )]
    NodeIdInUse { node_id: String, holder: Incarnation, remaining: Duration, lease: LeaseEnd },
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
            Self::Unavailable(_) | Self::Away(_) => "unavailable",
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
    /// version by one. An earlier row of the same node id is marked dead, in the same
    /// transaction, if `supersede` is set. Of concurrent first starts of one node id exactly
    /// one wins.
    ///
    /// # Errors
    /// [`StoreError::NodeIdInUse`] while another process may still hold the node id, which
    /// an expired lease does not exclude (`remaining` is zero then).
    async fn register(&self, member: &NewMember, ttl: Duration) -> Result<Incarnation>;

    /// Renews the lease, also an expired one, as long as the row is not `Dead` or `Gone`.
    ///
    /// # Errors
    /// [`StoreError::Fenced`]: stop serving at once.
    async fn heartbeat(&self, me: Incarnation, ttl: Duration, load: u32) -> Result<Heartbeat>;

    /// `Joining` to `Active`, bumping the ring version. Idempotent; a member that is already
    /// draining stays so.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if it is dead, gone or unknown.
    async fn activate(&self, me: Incarnation) -> Result<()>;

    /// `Joining` or `Active` to `Draining`, bumping the ring version. Idempotent; true when
    /// this call made the change.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if it is dead, gone or unknown.
    async fn begin_drain(&self, node: Incarnation) -> Result<bool>;

    /// To `Gone`, bumping the ring version, if no session names this incarnation; answers
    /// how many still do. Idempotent. Call it once draining and with no claim of one's own
    /// under way: on Postgres a claim or transfer that commits at the same instant may leave
    /// a session with an owner that is gone, which the next claim then takes over.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if it is dead or unknown.
    async fn leave(&self, me: Incarnation) -> Result<u64>;

    /// Marks an incarnation dead if the lease that was judged is still its own and has
    /// expired by the store's clock, or, with proof, whatever its lease. True when this call
    /// made the change; then the ring version grew.
    async fn mark_dead(&self, node: Incarnation, death: Death) -> Result<bool>;

    /// Members, ordered by incarnation, and ring version in one consistent read. Which dead
    /// members are still named by sessions changes without the version.
    async fn ring(&self) -> Result<RingView>;

    /// Waits for a hint that the ring version may have moved. Hints may be lost or
    /// spurious, so callers poll as well. The first call on a handle may answer at once.
    /// One waiter for each handle: a hint may wake only one of them. Cancel-safe, and the
    /// only call without a limit.
    async fn ring_hint(&self);

    /// Takes a session: a new one, a released one, or one whose owner is dead or gone, if
    /// its epoch is still `seen`. Fenced by `me` being `Joining` or `Active` with a lease that
    /// has not expired. A session without a row is won whatever `seen` says (the row was
    /// swept; epochs grow across that). One's own session is won again, under a higher
    /// epoch, `from` being None: the task that served it has died. The turns of an earlier
    /// epoch that have not ended become `Unknown` in the same transaction. With a `limit` it is
    /// [`Claimed::Full`] if the principal has as many other sessions with living owners;
    /// claims that compete for the last place are decided one by one.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the row belongs to another principal.
    async fn claim(&self, claim: &Claim) -> Result<Claimed>;

    /// One row by primary key.
    async fn session(&self, id: SessionId) -> Result<Option<SessionRow>>;

    /// Sessions by filter, ordered by id.
    async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRow>>;

    /// Ends an ownership: the row stays, without owner and `Closed`. False if the row is
    /// not ours in that epoch (then nothing changed).
    async fn release(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        self.retire(id, me, epoch, Duration::ZERO).await
    }

    /// As [`Store::release`], and the row counts as closed for `age` already: it is swept so much
    /// sooner. It does not go at once, since a claim that is being executed may have its epoch
    /// already, and would win a session without a row by it after a later epoch was held.
    async fn retire(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        age: Duration,
    ) -> Result<bool>;

    /// `Live` to `Quiescing`: no turn is running any more, a transfer follows. Idempotent.
    /// False if the row is not ours in that epoch.
    async fn quiesce(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool>;

    /// Back from `Quiescing` to `Live`, when no heir was found. Idempotent. False if the row
    /// is not ours in that epoch.
    async fn resume(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool>;

    /// The commit point of a handoff: owner and epoch change in one statement, if the row
    /// is ours, quiescing and the heir active with a lease that has not expired. The heir
    /// may be `me` (the upstream connection reached its age). It is refused while a turn is
    /// dispatched and has not ended; if `forced`, such turns become `Unknown` with it.
    async fn transfer(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        heir: Incarnation,
        forced: bool,
    ) -> Result<Transferred>;

    /// Writes that turns are about to be sent to their upstream, before they are: one round
    /// trip for all of them, answers in the order of `turns`. Fenced, in the same statement,
    /// by the session being `Live` and ours in the turn's epoch; the session cannot change
    /// hands while it runs. A turn that is here already and has named no response is
    /// dispatched once more: by its number while it is `Dispatched`; by its key, for the same
    /// request, if it is `Failed` (nothing ran), or `Unknown` and `repeatable`.
    async fn begin_turns(&self, me: Incarnation, turns: &[NewTurn]) -> Result<Vec<Began>>;

    /// Writes what became of turns; of marks of one turn the first final one counts.
    /// Idempotent. A turn of another epoch, and one that has ended, stays as it is (I3).
    /// Answers how many changed.
    async fn mark_turns(&self, marks: &[TurnMark]) -> Result<u64>;

    /// The turn of a session that has this idempotency key.
    async fn turn_by_key(&self, session: SessionId, key: TurnKey) -> Result<Option<TurnRow>>;

    /// Counts one more turn of a principal, if its limits allow that: turns that run on all
    /// living nodes, and the pace at which they begin. Wishes of one principal are decided
    /// one by one. A turn that was admitted counts until [`Store::keep_turns`], or until its
    /// node is dead or gone.
    async fn admit_turn(&self, wish: &TurnWish) -> Result<TurnAdmission>;

    /// Writes that so many turns of a principal run on this node, as many as were admitted or
    /// fewer. Idempotent.
    async fn keep_turns(&self, me: Incarnation, principal: Principal, running: u32) -> Result<()>;

    /// Records aliases, all or none. An existing alias of the same principal moves to the
    /// new session; of equal ones in a batch the last counts.
    async fn put_aliases(&self, aliases: &[Alias]) -> Result<()>;

    /// The session that an alias names for this principal.
    async fn alias(
        &self,
        principal: Principal,
        kind: AliasKind,
        digest: [u8; 16],
    ) -> Result<Option<SessionId>>;

    /// Ends a session: as [`Store::release`], and what it has said is deleted with it.
    async fn close(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool>;

    /// Keeps parts of conversations, all or none; those of a session without an owner are
    /// left out. A part that is there already stays as it is. Not fenced: a part is never
    /// wrong, and a whole one replaces only what is ordered before it.
    async fn put_parts(&self, parts: &[NewPart]) -> Result<()>;

    /// The first `limit` parts of a session's conversation, in their order.
    async fn parts_of(&self, session: SessionId, limit: u32) -> Result<Vec<Part>>;

    /// One step of a sweep of what ended at least `age` ago. It takes at most `limit` rows, and
    /// of aliases and conversations, most of which may have to stay, it looks at no more than
    /// that, from the oldest after `from`. Several nodes may sweep at once.
    async fn sweep(&self, what: Sweep, age: Duration, limit: u32, from: Cursor) -> Result<Swept>;
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
        // Both URLs may hold a password: the scheme is all that is shown.
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
    #[cfg(feature = "simulation")]
    if let Some(store) = simulated::open(options) {
        return Ok(store);
    }
    let url = options.url.as_str();
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        Ok(Arc::new(postgres::Postgres::open(options).await?))
    } else if url.starts_with("sqlite:") {
        Ok(Arc::new(sqlite::Sqlite::open(options).await?))
    } else {
        Err(StoreError::BadUrl("expected sqlite://… or postgres://…".into()))
    }
}

/// Opens a store of one connection, for a caller who must never queue behind others (the
/// heartbeat, on its own thread and runtime).
///
/// # Errors
/// As [`open`].
pub async fn open_single(options: &StoreOptions) -> Result<Arc<dyn Store>> {
    open(&StoreOptions { max_connections: 1, ..options.clone() }).await
}
