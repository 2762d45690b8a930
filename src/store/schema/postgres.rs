//! The schema on Postgres.

use std::time::Duration;

use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::time::sleep;

use super::{Found, MIGRATION_LIMIT, Migration, Progress, RETRY, SchemaStatus, Step};
use crate::{
    jitter::spread,
    store::{
        Result, StoreError, StoreOptions,
        postgres::{connect_options, has_code},
    },
};

pub(in crate::store) const MIGRATIONS: [Migration; 5] = [
    Migration {
        version: 1,
        name: "initial",
        sql: include_str!("../../../migrations/postgres/0001_initial.sql"),
    },
    Migration {
        version: 2,
        name: "turns",
        sql: include_str!("../../../migrations/postgres/0002_turns.sql"),
    },
    Migration {
        version: 3,
        name: "conversations",
        sql: include_str!("../../../migrations/postgres/0003_conversations.sql"),
    },
    Migration {
        version: 4,
        name: "quotas",
        sql: include_str!("../../../migrations/postgres/0004_quotas.sql"),
    },
    Migration {
        version: 5,
        name: "labels",
        sql: include_str!("../../../migrations/postgres/0005_labels.sql"),
    },
];

/// Advisory lock of the runners: "ringspan" as a number.
const LOCK: i64 = i64::from_be_bytes(*b"ringspan");

/// How long a step waits for a lock. All who come later, the nodes of a running ring as well, wait
/// behind it; and before a second is over, the server would look for a deadlock.
const LOCK_LIMIT: Duration = Duration::from_millis(500);

/// Pauses in which the others go on, before a step is tried again; they double from the first to
/// the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The migrations a database remembers; none if it was never migrated.
pub(in crate::store) async fn applied(
    connection: &mut PgConnection,
) -> Result<Vec<Found>, sqlx::Error> {
    let there: bool = sqlx::query_scalar("SELECT to_regclass('ringspan_schema') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !there {
        return Ok(Vec::new());
    }
    sqlx::query_as("SELECT version, checksum FROM ringspan_schema ORDER BY version")
        .fetch_all(connection)
        .await
}

/// Connects past any pooler: a session lock needs a session.
async fn connect(options: &StoreOptions) -> Result<PgConnection> {
    let url = options.direct_url.as_ref().unwrap_or(&options.url);
    tokio::time::timeout(options.timeout, connect_options(url)?.connect())
        .await
        .map_err(|_| StoreError::Timeout(options.timeout))?
        .map_err(Into::into)
}

pub(super) async fn check(options: &StoreOptions) -> Result<SchemaStatus> {
    let mut connection = connect(options).await?;
    let found = applied(&mut connection).await?;
    connection.close().await?;
    super::status(&MIGRATIONS, &found)
}

pub(super) async fn migrate(
    options: &StoreOptions,
    progress: &impl Fn(Progress),
) -> Result<Vec<Step>> {
    let mut connection = connect(options).await?;
    let mut told = false;
    loop {
        // Tried, not waited for: a waiting statement could not be told from a stuck one.
        let locked: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut connection)
            .await?;
        if locked {
            break;
        }
        if !std::mem::replace(&mut told, true) {
            progress(Progress::WaitingForLock);
        }
        sleep(RETRY).await;
    }
    let done = apply(&mut connection, progress).await;
    // The lock goes with the connection, whatever became of the work.
    connection.close().await?;
    done
}

async fn apply(connection: &mut PgConnection, progress: &impl Fn(Progress)) -> Result<Vec<Step>> {
    let found = applied(connection).await?;
    super::status(&MIGRATIONS, &found)?;
    let mut done = Vec::new();
    for migration in super::missing(&MIGRATIONS, &found) {
        progress(Progress::Applying(migration.step()));
        apply_when_free(connection, migration, progress).await?;
        progress(Progress::Applied(migration.step()));
        done.push(migration.step());
    }
    Ok(done)
}

/// Applies a migration, as soon as nobody holds what it locks.
async fn apply_when_free(
    connection: &mut PgConnection,
    migration: &Migration,
    progress: &impl Fn(Progress),
) -> Result<()> {
    let mut pause = FIRST_PAUSE;
    loop {
        match apply_one(connection, migration).await {
            Err(error) if is_locked_out(&error) => {
                progress(Progress::Postponed(migration.step()));
                sleep(spread(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            done => return done.map_err(Into::into),
        }
    }
}

fn is_locked_out(error: &sqlx::Error) -> bool {
    /// Lock not available.
    const CODES: [&str; 1] = ["55P03"];

    has_code(error, &CODES)
}

/// One transaction: failed, it left nothing.
async fn apply_one(connection: &mut PgConnection, migration: &Migration) -> sqlx::Result<()> {
    let mut tx = connection.begin().await?;
    // A server-side bound as well, or an abandoned step would hold its locks.
    sqlx::query(
        "SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true)",
    )
    .bind(MIGRATION_LIMIT.as_millis().to_string())
    .bind(LOCK_LIMIT.as_millis().to_string())
    .execute(&mut *tx)
    .await?;
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS ringspan_schema (version BIGINT PRIMARY KEY, \
         name TEXT NOT NULL, checksum TEXT NOT NULL, \
         applied_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()); \
         COMMENT ON TABLE ringspan_schema IS \
         'Migrations that were applied, with the SHA-256 of each.'",
    )
    .execute(&mut *tx)
    .await?;
    sqlx::raw_sql(migration.sql).execute(&mut *tx).await?;
    sqlx::query("INSERT INTO ringspan_schema (version, name, checksum) VALUES ($1, $2, $3)")
        .bind(migration.version)
        .bind(migration.name)
        .bind(migration.checksum())
        .execute(&mut *tx)
        .await?;
    let (id, secret) = super::new_cluster();
    sqlx::query(
        "INSERT INTO ring_meta (cluster_id, secret) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    )
    .bind(id)
    .bind(secret)
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}
