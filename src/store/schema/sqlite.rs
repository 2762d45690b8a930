//! The schema on SQLite.

use std::{io::ErrorKind, path::Path};

use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::{Found, Migration, Progress, RETRY, SchemaStatus, Step};
use crate::store::{
    Result, StoreError, StoreOptions,
    sqlite::{connect_options, path},
};

pub(in crate::store) const MIGRATIONS: [Migration; 5] = [
    Migration {
        version: 1,
        name: "initial",
        sql: include_str!("../../../migrations/sqlite/0001_initial.sql"),
    },
    Migration {
        version: 2,
        name: "turns",
        sql: include_str!("../../../migrations/sqlite/0002_turns.sql"),
    },
    Migration {
        version: 3,
        name: "conversations",
        sql: include_str!("../../../migrations/sqlite/0003_conversations.sql"),
    },
    Migration {
        version: 4,
        name: "quotas",
        sql: include_str!("../../../migrations/sqlite/0004_quotas.sql"),
    },
    Migration {
        version: 5,
        name: "labels",
        sql: include_str!("../../../migrations/sqlite/0005_labels.sql"),
    },
];

pub(in crate::store) fn wanted() -> i64 {
    super::wanted(&MIGRATIONS)
}

/// The migrations a file remembers; none if it was never migrated.
pub(in crate::store) async fn applied(
    connection: &mut SqliteConnection,
) -> Result<Vec<Found>, sqlx::Error> {
    let there: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'ringspan_schema')",
    )
    .fetch_one(&mut *connection)
    .await?;
    if !there {
        return Ok(Vec::new());
    }
    sqlx::query_as("SELECT version, checksum FROM ringspan_schema ORDER BY version")
        .fetch_all(connection)
        .await
}

pub(super) async fn check(options: &StoreOptions) -> Result<SchemaStatus> {
    let path = path(&options.url)?;
    if !path.exists() {
        return Ok(SchemaStatus::of(0, wanted()));
    }
    let mut connection = connect_options(&path, options.timeout).connect().await?;
    let found = applied(&mut connection).await?;
    connection.close().await?;
    super::status(&MIGRATIONS, &found)
}

pub(super) async fn migrate(
    options: &StoreOptions,
    progress: &impl Fn(Progress),
) -> Result<Vec<Step>> {
    let path = path(&options.url)?;
    create(&path).map_err(|error| {
        StoreError::Unavailable(format!("the database file cannot be made: {}", error.kind()))
    })?;
    let mut told = false;
    loop {
        // Connecting takes a lock of its own, when it turns the file to WAL.
        match attempt(&path, options, progress).await {
            Err(StoreError::Unavailable(text)) if text.contains("locked") => {}
            outcome => return outcome,
        }
        if !std::mem::replace(&mut told, true) {
            progress(Progress::WaitingForLock);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Makes the file and the directories above it, readable by its owner alone: the cluster's
/// secret will be in it. What exists is left as it is.
fn create(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Applies everything in one exclusive transaction.
async fn attempt(
    path: &Path,
    options: &StoreOptions,
    progress: &impl Fn(Progress),
) -> Result<Vec<Step>> {
    let mut connection = connect_options(path, options.timeout).connect().await?;
    let mut tx = connection.begin_with("BEGIN EXCLUSIVE").await?;
    let found = applied(&mut tx).await?;
    super::status(&MIGRATIONS, &found)?;
    let mut done = Vec::new();
    for migration in super::missing(&MIGRATIONS, &found) {
        progress(Progress::Applying(migration.step()));
        sqlx::raw_sql(
            "CREATE TABLE IF NOT EXISTS ringspan_schema (version INTEGER PRIMARY KEY, \
             name TEXT NOT NULL, checksum TEXT NOT NULL) STRICT",
        )
        .execute(&mut *tx)
        .await?;
        sqlx::raw_sql(migration.sql).execute(&mut *tx).await?;
        sqlx::query("INSERT INTO ringspan_schema (version, name, checksum) VALUES (?1, ?2, ?3)")
            .bind(migration.version)
            .bind(migration.name)
            .bind(migration.checksum())
            .execute(&mut *tx)
            .await?;
        let (id, secret) = super::new_cluster();
        sqlx::query(
            // Named, because SQLite numbers an integer key by itself, whatever its default.
            "INSERT INTO ring_meta (singleton, cluster_id, secret) VALUES (1, ?1, ?2) \
             ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .bind(secret)
        .execute(&mut *tx)
        .await?;
        done.push(migration.step());
    }
    tx.commit().await?;
    connection.close().await?;
    for step in &done {
        progress(Progress::Applied(*step));
    }
    Ok(done)
}
