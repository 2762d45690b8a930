//! The store of a production ring.
//!
//! *Invariants:* every time is `clock_timestamp()` (`now()` is the start of the
//! transaction, seconds ago after a lock wait); every change of a session is conditional on
//! its owner and epoch; only what bumps `ring_meta.version` notifies. A transaction that
//! changes the ring locks the member first and `ring_meta` second.

mod conversations;
mod hint;
mod members;
mod pool;
mod quotas;
mod sessions;
mod sweeping;
mod turns;

use std::{
    ops::{Deref, DerefMut},
    str::FromStr,
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, Postgres as Db, Row, Transaction,
    postgres::{PgArguments, PgConnectOptions, PgDatabaseError, PgRow, PgSeverity},
    query::Query,
};
use tokio::time::{Instant, error::Elapsed, timeout_at};

use self::{
    hint::Hint,
    pool::{Loan, Pool, Server},
};
use super::{
    Alias, AliasKind, Began, Claim, Claimed, Cluster, Cursor, Death, Heartbeat, NewMember, NewPart,
    NewTurn, Part, Result, RingView, SessionFilter, SessionRow, SessionState, Store, StoreError,
    StoreOptions, Sweep, Swept, Transferred, TurnAdmission, TurnKey, TurnMark, TurnRow, TurnWish,
    schema, sql::no_meta,
};
use crate::ids::{Epoch, Incarnation, Principal, SessionId};

/// A [`Store`] on Postgres. Cheap to share; connections open on first use.
pub struct Postgres {
    pool: Pool,
    hint: Hint,
    timeout: Duration,
}

impl Postgres {
    /// Connects and checks the schema.
    ///
    /// # Errors
    /// Unreachable, refused, or of a schema that this build cannot use.
    pub async fn open(options: &StoreOptions) -> Result<Self> {
        let connect = connect_options(&options.url)?;
        let direct = match &options.direct_url {
            Some(url) => connect_options(url)?,
            None => connect.clone(),
        };
        let server = Server { options: connect, greeting: limits(options.timeout) };
        let pool = super::pool::open(server, options.max_connections)?;
        let hint = Hint::new(direct, options.timeout);
        let store = Self { pool, hint, timeout: options.timeout };
        let mut connection = store.checkout().await?;
        let found =
            timeout_at(connection.deadline, schema::postgres::applied(&mut connection)).await;
        schema::status(&schema::postgres::MIGRATIONS, &connection.settle(found)?)?.usable()?;
        Ok(store)
    }

    /// A connection, and the instant by which the call must be over.
    async fn checkout(&self) -> Result<Checkout> {
        let deadline = Instant::now() + self.timeout;
        let connection = timeout_at(deadline, pool::lend(&self.pool, deadline))
            .await
            .map_err(|_| StoreError::Timeout(self.timeout))??;
        Ok(Checkout {
            connection: Some(connection),
            settled: false,
            in_transaction: false,
            deadline,
            limit: self.timeout,
        })
    }
}

impl Postgres {
    async fn optional(&self, query: Query<'_, Db, PgArguments>) -> Result<Option<PgRow>> {
        let mut connection = self.checkout().await?;
        let row = timeout_at(connection.deadline, query.fetch_optional(&mut *connection)).await;
        connection.settle(row)
    }

    async fn all(&self, query: Query<'_, Db, PgArguments>) -> Result<Vec<PgRow>> {
        let mut connection = self.checkout().await?;
        let rows = timeout_at(connection.deadline, query.fetch_all(&mut *connection)).await;
        connection.settle(rows)
    }

    /// Runs a statement; answers how many rows it touched.
    async fn execute(&self, query: Query<'_, Db, PgArguments>) -> Result<u64> {
        let mut connection = self.checkout().await?;
        let done = timeout_at(connection.deadline, query.execute(&mut *connection)).await;
        connection.settle(done).map(|done| done.rows_affected())
    }
}

/// A connection on loan. Unless it is settled, dropping it cuts the connection instead of
/// returning it: whoever had it next would first wait for the answer to a call that was given
/// up, and a pool of one (the heartbeat's) would be stuck with it.
struct Checkout {
    connection: Option<Loan>,
    settled: bool,
    /// A transaction was begun. If it fails, nobody has told the server yet that it is over.
    in_transaction: bool,
    deadline: Instant,
    limit: Duration,
}

impl Checkout {
    /// Begins a transaction, which the server ends by itself if it hears nothing more of it.
    /// A process that stands still or is cut off in the middle would otherwise keep its locks
    /// for as long as TCP believes in the connection, which is hours, and with the ring's lock
    /// nobody could join, leave or be declared dead.
    async fn transaction(&mut self) -> sqlx::Result<Transaction<'_, Db>> {
        let (limit, silence) = (self.limit.as_millis(), (2 * self.limit).as_millis());
        let begin = format!(
            "BEGIN; SET LOCAL statement_timeout = {limit}; \
             SET LOCAL idle_in_transaction_session_timeout = {silence}"
        );
        self.in_transaction = true;
        self.begin_with(AssertSqlSafe(begin)).await
    }

    /// Ends the loan with what became of the work.
    fn settle<T>(mut self, outcome: Result<Result<T, sqlx::Error>, Elapsed>) -> Result<T> {
        match outcome {
            Err(_) => Err(StoreError::Timeout(self.limit)),
            Ok(result) => {
                // Where the server refused something outside a transaction, the connection is in
                // order, unless the refusal was its end.
                let lost = result.as_ref().is_err_and(is_lost);
                self.settled = match &result {
                    Ok(_) => true,
                    Err(error) => {
                        error.as_database_error().is_some() && !lost && !self.in_transaction
                    }
                };
                if lost {
                    self.doubt_others();
                }
                result.map_err(|error| match error {
                    error if is_out_of_time(&error) => StoreError::Timeout(self.limit),
                    error => error.into(),
                })
            }
        }
    }

    fn doubt_others(&self) {
        if let Some(pool) = self.connection.as_ref().and_then(Loan::pool) {
            pool.manager().lost_one();
        }
    }
}

impl Deref for Checkout {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().unwrap_or_else(|| unreachable!("on loan until dropped"))
    }
}

impl DerefMut for Checkout {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().unwrap_or_else(|| unreachable!("on loan until dropped"))
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(|_| !self.settled) {
            drop(Loan::take(connection));
        }
    }
}

/// Whether an error means that the connection is of no use any more.
fn is_lost(error: &sqlx::Error) -> bool {
    /// Read-only transaction: this server is not the primary, or not any more.
    const CODES: [&str; 1] = ["25006"];

    if matches!(error, sqlx::Error::Io(_)) || has_code(error, &CODES) {
        return true;
    }
    let refusal = error.as_database_error().and_then(|it| it.try_downcast_ref::<PgDatabaseError>());
    refusal.is_some_and(|it| matches!(it.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether the server ended a statement by one of [`limits`].
fn is_out_of_time(error: &sqlx::Error) -> bool {
    /// Query canceled, lock not available.
    const CODES: [&str; 2] = ["57014", "55P03"];

    has_code(error, &CODES)
}

/// Whether the server said one of these.
pub(super) fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    error.code().is_some_and(|code| codes.contains(&&*code))
}

/// Has the server end what its caller has given up by then, also while it waits for a lock: a
/// call that is given up is cut, another one opens a connection in its place, and with a lock that
/// is held for long the server would run out of them. Set by a statement, because poolers refuse
/// what they do not know in a start-up message; behind one that lends connections by the
/// transaction it holds only for transactions (docs/operations.md says what to do).
fn limits(limit: Duration) -> String {
    let limit = limit.as_millis();
    format!("SET statement_timeout = {limit}; SET lock_timeout = {limit}")
}

/// Reads a URL. What is wrong with it is not repeated: it may hold a password.
pub(super) fn connect_options(url: &str) -> Result<PgConnectOptions> {
    PgConnectOptions::from_str(url)
        .map(|options| options.application_name("ringspan").disable_statement_logging())
        .map_err(|_| StoreError::BadUrl("not a usable postgres:// URL".into()))
}

#[async_trait]
impl Store for Postgres {
    fn backend(&self) -> &'static str {
        "postgres"
    }

    async fn cluster(&self) -> Result<Cluster> {
        let query = sqlx::query("SELECT cluster_id, secret FROM ring_meta");
        let row = self.optional(query).await?.ok_or_else(no_meta)?;
        let secret: Vec<u8> = row.try_get("secret")?;
        Ok(Cluster {
            id: row.try_get("cluster_id")?,
            secret: secret.try_into().map_err(|_| no_meta())?,
        })
    }

    async fn register(&self, member: &NewMember, ttl: Duration) -> Result<Incarnation> {
        self.register(member, ttl).await
    }

    async fn heartbeat(&self, me: Incarnation, ttl: Duration, load: u32) -> Result<Heartbeat> {
        self.heartbeat(me, ttl, load).await
    }

    async fn activate(&self, me: Incarnation) -> Result<()> {
        self.activate(me).await
    }

    async fn begin_drain(&self, node: Incarnation) -> Result<bool> {
        self.begin_drain(node).await
    }

    async fn leave(&self, me: Incarnation) -> Result<u64> {
        self.leave(me).await
    }

    async fn mark_dead(&self, node: Incarnation, death: Death) -> Result<bool> {
        self.mark_dead(node, death).await
    }

    async fn ring(&self) -> Result<RingView> {
        self.ring().await
    }

    async fn ring_hint(&self) {
        self.hint.wait().await;
    }

    async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        self.claim(claim).await
    }

    async fn session(&self, id: SessionId) -> Result<Option<SessionRow>> {
        self.session(id).await
    }

    async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRow>> {
        self.sessions(filter).await
    }

    async fn retire(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        age: Duration,
    ) -> Result<bool> {
        self.retire(id, me, epoch, age).await
    }

    async fn quiesce(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        self.set_state(id, me, epoch, SessionState::Quiescing).await
    }

    async fn resume(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        self.set_state(id, me, epoch, SessionState::Live).await
    }

    async fn transfer(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        heir: Incarnation,
        forced: bool,
    ) -> Result<Transferred> {
        self.transfer(id, me, epoch, heir, forced).await
    }

    async fn put_aliases(&self, aliases: &[Alias]) -> Result<()> {
        self.put_aliases(aliases).await
    }

    async fn alias(
        &self,
        principal: Principal,
        kind: AliasKind,
        digest: [u8; 16],
    ) -> Result<Option<SessionId>> {
        self.alias(principal, kind, digest).await
    }

    async fn close(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        self.close(id, me, epoch).await
    }

    async fn put_parts(&self, parts: &[NewPart]) -> Result<()> {
        self.put_parts(parts).await
    }

    async fn parts_of(&self, session: SessionId, limit: u32) -> Result<Vec<Part>> {
        self.parts_of(session, limit).await
    }

    async fn sweep(&self, what: Sweep, age: Duration, limit: u32, from: Cursor) -> Result<Swept> {
        self.sweep(what, age, limit, from).await
    }

    async fn begin_turns(&self, me: Incarnation, turns: &[NewTurn]) -> Result<Vec<Began>> {
        self.begin_turns(me, turns).await
    }

    async fn mark_turns(&self, marks: &[TurnMark]) -> Result<u64> {
        self.mark_turns(marks).await
    }

    async fn turn_by_key(&self, session: SessionId, key: TurnKey) -> Result<Option<TurnRow>> {
        self.turn_by_key(session, key).await
    }

    async fn admit_turn(&self, wish: &TurnWish) -> Result<TurnAdmission> {
        self.admit_turn(wish).await
    }

    async fn keep_turns(&self, me: Incarnation, principal: Principal, running: u32) -> Result<()> {
        self.keep_turns(me, principal, running).await
    }
}
