//! The store of a ring whose nodes are processes of one machine and share one file.
//!
//! *Invariants:* one writer at a time, in `BEGIN IMMEDIATE`, so what a call reads is still
//! true when it writes; every time is the machine's boot clock in milliseconds, handed in
//! as a parameter; times of an earlier boot mean nothing, and no member survives one.

mod clock;
mod conversations;
mod members;
mod pool;
mod quotas;
mod sessions;
mod sweeping;
mod turns;

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions, Row, Sqlite as Db,
    query::Query,
    sqlite::{
        SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous,
    },
};
use tokio::sync::Mutex;

use self::{
    clock::{boot_id, now_ms},
    pool::{Checkout, File, Pool, Write},
};
use super::{
    Alias, AliasKind, Began, Claim, Claimed, Cluster, Cursor, Death, Heartbeat, NewMember, NewPart,
    NewTurn, Part, Result, RingView, SessionFilter, SessionRow, SessionState, Store, StoreError,
    StoreOptions, Sweep, Swept, Transferred, TurnAdmission, TurnKey, TurnMark, TurnRow, TurnWish,
    schema, sql::no_meta,
};
use crate::ids::{Epoch, Incarnation, Principal, SessionId};

/// How often the ring version is looked at on behalf of [`Store::ring_hint`]: a read of one
/// cached page, and the most that a membership change stays unseen on one machine.
const HINT_INTERVAL: Duration = Duration::from_millis(100);

/// Added to the sequences at a new boot: a power cut may have lost the last commits
/// (`synchronous = NORMAL`), and with them numbers that were already in use.
const BOOT_LEAP: i64 = 1_000_000;

/// A [`Store`] on a SQLite file.
pub struct Sqlite {
    /// Of one connection.
    writer: Pool,
    readers: Pool,
    timeout: Duration,
    /// Ring version at the last hint.
    hinted: Mutex<Option<i64>>,
}

impl Sqlite {
    /// Opens the file, which must exist, and buries the members of an earlier boot.
    ///
    /// # Errors
    /// Not there or locked for too long, or of a schema that this build cannot use.
    pub async fn open(options: &StoreOptions) -> Result<Self> {
        let path = path(&options.url)?;
        if !path.exists() {
            return Err(schema::SchemaStatus::of(0, schema::sqlite::wanted()).refusal());
        }
        let connect = connect_options(&path, options.timeout);
        let reads = connect.clone().pragma("query_only", "ON");
        let store = Self {
            writer: super::pool::open(File(connect), 1)?,
            readers: super::pool::open(File(reads), options.max_connections)?,
            timeout: options.timeout,
            hinted: Mutex::new(None),
        };
        store
            .bounded(async {
                let found =
                    schema::sqlite::applied(&mut *Checkout::of(&store.readers).await?).await?;
                schema::status(&schema::sqlite::MIGRATIONS, &found)?.usable()?;
                store.notice_reboot().await
            })
            .await?;
        Ok(store)
    }

    /// After a reboot no process of before it lives and no earlier time means anything.
    async fn notice_reboot(&self) -> Result<()> {
        let boot = boot_id();
        let mut tx = self.write().await?;
        let known: String =
            sqlx::query_scalar("SELECT boot_id FROM ring_meta").fetch_one(&mut *tx).await?;
        if known == boot {
            return Ok(());
        }
        sqlx::query(
            "UPDATE member SET state = 'DEAD' WHERE state IN ('JOINING', 'ACTIVE', 'DRAINING')",
        )
        .execute(&mut *tx)
        .await?;
        for rebase in [
            "UPDATE member SET lease_expires_at = ?1, ended_at = ?1",
            "UPDATE session SET created_at = ?1, updated_at = ?1",
            "UPDATE alias SET updated_at = ?1",
            "UPDATE conversation SET updated_at = ?1",
            "UPDATE turn SET begun_at = ?1, updated_at = ?1",
            "DELETE FROM turn_pace WHERE ?1 IS NOT NULL",
        ] {
            sqlx::query(rebase).bind(now_ms()).execute(&mut *tx).await?;
        }
        sqlx::query(
            "UPDATE ring_meta SET boot_id = ?1, version = version + ?2, \
             epoch = epoch + ?3, incarnation = incarnation + ?3",
        )
        .bind(boot)
        // A new file has no members and has handed out no numbers.
        .bind(i64::from(!known.is_empty()))
        .bind(if known.is_empty() { 0 } else { BOOT_LEAP })
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }

    /// Bounds a call; its connection ends what was given up before it serves another.
    async fn bounded<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::time::timeout(self.timeout, work)
            .await
            .unwrap_or(Err(StoreError::Timeout(self.timeout)))
    }

    /// Begins a transaction that is the file's only writer until it ends.
    async fn write(&self) -> Result<Write> {
        Write::begin(&self.writer).await
    }

    /// Writes by one statement alone; answers how many rows it touched.
    async fn execute(&self, query: Query<'_, Db, SqliteArguments>) -> Result<u64> {
        let mut writer = Checkout::of(&self.writer).await?;
        let done = query.execute(&mut *writer).await;
        writer.settle(done).map(|done| done.rows_affected())
    }

    async fn optional(&self, query: Query<'_, Db, SqliteArguments>) -> Result<Option<SqliteRow>> {
        let mut reader = Checkout::of(&self.readers).await?;
        let row = query.fetch_optional(&mut *reader).await;
        reader.settle(row)
    }

    async fn all(&self, query: Query<'_, Db, SqliteArguments>) -> Result<Vec<SqliteRow>> {
        let mut reader = Checkout::of(&self.readers).await?;
        let rows = query.fetch_all(&mut *reader).await;
        reader.settle(rows)
    }
}

/// The file that a `sqlite:` URL names, taken literally.
pub(super) fn path(url: &str) -> Result<PathBuf> {
    let bad = || StoreError::BadUrl("expected sqlite://PATH without parameters".into());
    let path = url.strip_prefix("sqlite:").ok_or_else(bad)?;
    let path = path.strip_prefix("//").unwrap_or(path);
    // Each connection would get an in-memory database of its own.
    if path.is_empty() || path.contains('?') || path.starts_with(":memory:") {
        return Err(bad());
    }
    Ok(path.into())
}

/// Options of a connection to an existing file.
pub(super) fn connect_options(path: &std::path::Path, timeout: Duration) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        // Survives the death of a process; for a power cut see `BOOT_LEAP`.
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(timeout)
        .foreign_keys(true)
        .disable_statement_logging()
}

#[async_trait]
impl Store for Sqlite {
    fn backend(&self) -> &'static str {
        "sqlite"
    }

    async fn cluster(&self) -> Result<Cluster> {
        self.bounded(async {
            let query = sqlx::query("SELECT cluster_id, secret FROM ring_meta");
            let row = self.optional(query).await?.ok_or_else(no_meta)?;
            let secret: Vec<u8> = row.try_get("secret")?;
            let unusable = |_| StoreError::Corrupt("the cluster secret is not 32 bytes".into());
            Ok(Cluster {
                id: row.try_get("cluster_id")?,
                secret: secret.try_into().map_err(unusable)?,
            })
        })
        .await
    }

    async fn register(&self, member: &NewMember, ttl: Duration) -> Result<Incarnation> {
        self.bounded(self.register(member, ttl)).await
    }

    async fn heartbeat(&self, me: Incarnation, ttl: Duration, load: u32) -> Result<Heartbeat> {
        self.bounded(self.heartbeat(me, ttl, load)).await
    }

    async fn activate(&self, me: Incarnation) -> Result<()> {
        self.bounded(self.activate(me)).await
    }

    async fn begin_drain(&self, node: Incarnation) -> Result<bool> {
        self.bounded(self.begin_drain(node)).await
    }

    async fn leave(&self, me: Incarnation) -> Result<u64> {
        self.bounded(self.leave(me)).await
    }

    async fn mark_dead(&self, node: Incarnation, death: Death) -> Result<bool> {
        self.bounded(self.mark_dead(node, death)).await
    }

    async fn ring(&self) -> Result<RingView> {
        self.bounded(self.ring()).await
    }

    /// Looks at the version every 100 ms: no process can notify another through a file.
    async fn ring_hint(&self) {
        let mut hinted = self.hinted.lock().await;
        loop {
            // A failure is no hint; the caller's own polls will meet it.
            if let Ok(version) = self.bounded(self.version()).await
                && *hinted != Some(version)
            {
                *hinted = Some(version);
                return;
            }
            tokio::time::sleep(HINT_INTERVAL).await;
        }
    }

    async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        self.bounded(self.claim(claim)).await
    }

    async fn session(&self, id: SessionId) -> Result<Option<SessionRow>> {
        self.bounded(self.session(id)).await
    }

    async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRow>> {
        self.bounded(self.sessions(filter)).await
    }

    async fn retire(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        age: Duration,
    ) -> Result<bool> {
        self.bounded(self.retire(id, me, epoch, age)).await
    }

    async fn quiesce(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        self.bounded(self.set_state(id, me, epoch, SessionState::Quiescing)).await
    }

    async fn resume(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        self.bounded(self.set_state(id, me, epoch, SessionState::Live)).await
    }

    async fn transfer(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        heir: Incarnation,
        forced: bool,
    ) -> Result<Transferred> {
        self.bounded(self.transfer(id, me, epoch, heir, forced)).await
    }

    async fn put_aliases(&self, aliases: &[Alias]) -> Result<()> {
        self.bounded(self.put_aliases(aliases)).await
    }

    async fn alias(
        &self,
        principal: Principal,
        kind: AliasKind,
        digest: [u8; 16],
    ) -> Result<Option<SessionId>> {
        self.bounded(self.alias(principal, kind, digest)).await
    }

    async fn close(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        self.bounded(self.close(id, me, epoch)).await
    }

    async fn put_parts(&self, parts: &[NewPart]) -> Result<()> {
        self.bounded(self.put_parts(parts)).await
    }

    async fn parts_of(&self, session: SessionId, limit: u32) -> Result<Vec<Part>> {
        self.bounded(self.parts_of(session, limit)).await
    }

    async fn sweep(&self, what: Sweep, age: Duration, limit: u32, from: Cursor) -> Result<Swept> {
        self.bounded(self.sweep(what, age, limit, from)).await
    }

    async fn begin_turns(&self, me: Incarnation, turns: &[NewTurn]) -> Result<Vec<Began>> {
        self.bounded(self.begin_turns(me, turns)).await
    }

    async fn mark_turns(&self, marks: &[TurnMark]) -> Result<u64> {
        self.bounded(self.mark_turns(marks)).await
    }

    async fn turn_by_key(&self, session: SessionId, key: TurnKey) -> Result<Option<TurnRow>> {
        self.bounded(self.turn_by_key(session, key)).await
    }

    async fn admit_turn(&self, wish: &TurnWish) -> Result<TurnAdmission> {
        self.bounded(self.admit_turn(wish)).await
    }

    async fn keep_turns(&self, me: Incarnation, principal: Principal, running: u32) -> Result<()> {
        self.bounded(self.keep_turns(me, principal, running)).await
    }
}
