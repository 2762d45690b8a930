//! The schema: its migrations, which are part of the binary, and whether a database has it.
//!
//! A version counts the releases that changed the schema, so "one release ahead" is one
//! version ahead: nodes of the previous release keep working while a rollout migrates.

pub(super) mod postgres;
pub(super) mod sqlite;

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Result, StoreError, StoreOptions};

/// How long a migration may take, and how long one may wait for another runner's.
const MIGRATION_LIMIT: Duration = Duration::from_mins(10);

/// Pause between two looks at a lock or a schema that someone else is working on.
const RETRY: Duration = Duration::from_millis(250);

/// Version and checksum of a migration as the database remembers it.
pub(super) type Found = (i64, String);

/// One step of the schema.
pub(super) struct Migration {
    version: i64,
    name: &'static str,
    sql: &'static str,
}

impl Migration {
    fn checksum(&self) -> String {
        hex(&Sha256::digest(self.sql))
    }

    fn step(&self) -> Step {
        Step { version: self.version, name: self.name }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Id and secret of a new cluster, from this process: a database's `random()` is no secret.
fn new_cluster() -> (String, Vec<u8>) {
    (hex(&rand::random::<[u8; 16]>()), rand::random::<[u8; 32]>().to_vec())
}

/// A migration by number and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub version: i64,
    pub name: &'static str,
}

/// What [`migrate`] is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another runner holds the lock.
    WaitingForLock,
    /// This step is about to run.
    Applying(Step),
    /// Others use what this step would lock; it is tried again.
    Postponed(Step),
    /// This step is committed.
    Applied(Step),
}

/// How a database's schema compares with what this build wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// There is none.
    Missing,
    /// Of an older release; not usable.
    Behind,
    Current,
    /// Of the next release; usable.
    OneAhead,
    /// Two or more releases newer; not usable.
    TooNew,
}

/// The schema version of a database and of this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaStatus {
    pub found: i64,
    pub wanted: i64,
    pub state: SchemaState,
}

impl SchemaStatus {
    pub(super) fn of(found: i64, wanted: i64) -> Self {
        let state = match found - wanted {
            _ if found == 0 => SchemaState::Missing,
            ..0 => SchemaState::Behind,
            0 => SchemaState::Current,
            1 => SchemaState::OneAhead,
            _ => SchemaState::TooNew,
        };
        Self { found, wanted, state }
    }

    /// Refuses what this build cannot work with.
    ///
    /// # Errors
    /// [`StoreError::Schema`], unless the state is `Current` or `OneAhead`.
    pub fn usable(&self) -> Result<()> {
        match self.state {
            SchemaState::Current | SchemaState::OneAhead => Ok(()),
            _ => Err(self.refusal()),
        }
    }

    pub(super) fn refusal(&self) -> StoreError {
        let hint = match self.state {
            SchemaState::TooNew => "run a newer release of ringspan",
            _ => "run `ringspan migrate run`",
        };
        StoreError::Schema { found: self.found, wanted: self.wanted, hint }
    }
}

/// Compares what a database remembers with what this build holds.
pub(super) fn status(migrations: &[Migration], found: &[Found]) -> Result<SchemaStatus> {
    for migration in migrations {
        let altered = found.iter().any(|(version, checksum)| {
            *version == migration.version && *checksum != migration.checksum()
        });
        if altered {
            return Err(StoreError::Corrupt(format!(
                "migration {} was altered after it was applied",
                migration.version
            )));
        }
    }
    let newest = found.iter().map(|(version, _)| *version).max().unwrap_or(0);
    Ok(SchemaStatus::of(newest, wanted(migrations)))
}

/// The version that a list of migrations leads to.
fn wanted(migrations: &[Migration]) -> i64 {
    migrations.last().map_or(0, |migration| migration.version)
}

/// Those that a database has not seen.
fn missing<'a>(
    migrations: &'a [Migration],
    found: &'a [Found],
) -> impl Iterator<Item = &'a Migration> {
    migrations
        .iter()
        .filter(|migration| found.iter().all(|(version, _)| *version != migration.version))
}

fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// Brings the schema to this build's version, and makes the cluster's id and secret if
/// there are none; answers what was applied. Of concurrent runners one does the work and
/// the others find it done. Each step is a transaction: cancelled or failed, it left
/// nothing.
///
/// # Errors
/// Unreachable; not finished within ten minutes; an applied migration was altered.
pub async fn migrate(options: &StoreOptions, progress: impl Fn(Progress)) -> Result<Vec<Step>> {
    let deadline = Instant::now() + MIGRATION_LIMIT;
    let work = async {
        if is_postgres(&options.url) {
            postgres::migrate(options, &progress).await
        } else {
            sqlite::migrate(options, &progress).await
        }
    };
    timeout_at(deadline, work).await.unwrap_or(Err(StoreError::Timeout(MIGRATION_LIMIT)))
}

/// Says which schema a database has. Changes nothing; bounded by `options.timeout`.
///
/// # Errors
/// Unreachable; an applied migration was altered.
pub async fn check(options: &StoreOptions) -> Result<SchemaStatus> {
    let work = async {
        if is_postgres(&options.url) {
            postgres::check(options).await
        } else {
            sqlite::check(options).await
        }
    };
    tokio::time::timeout(options.timeout, work)
        .await
        .unwrap_or(Err(StoreError::Timeout(options.timeout)))
}

/// Blocks until the schema can be used, at most for `limit`; `report` hears why not yet,
/// each time the reason changes.
///
/// # Errors
/// What stood in the way at the end of `limit`, or at once what waiting cannot mend (too
/// new a schema, an altered migration, a bad URL).
pub async fn wait(
    options: &StoreOptions,
    limit: Duration,
    report: impl Fn(&StoreError),
) -> Result<SchemaStatus> {
    let deadline = Instant::now() + limit;
    let mut last = None;
    loop {
        let reason = match check(options).await {
            Ok(status) => match status.usable() {
                Ok(()) => return Ok(status),
                Err(refusal) if status.state == SchemaState::TooNew => return Err(refusal),
                Err(refusal) => refusal,
            },
            Err(error @ (StoreError::BadUrl(_) | StoreError::Corrupt(_))) => return Err(error),
            Err(error) => error,
        };
        if last.as_ref() != Some(&reason) {
            report(&reason);
        }
        if Instant::now() + RETRY >= deadline {
            return Err(reason);
        }
        last = Some(reason);
        sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_present_and_the_next_schema_are_usable() {
        let usable: Vec<_> =
            (0..6).filter(|found| SchemaStatus::of(*found, 3).usable().is_ok()).collect();
        assert_eq!(usable, [3, 4]);
    }

    #[test]
    fn migrations_are_numbered_without_gaps_on_both_backends() {
        for migrations in [&postgres::MIGRATIONS[..], &sqlite::MIGRATIONS[..]] {
            let versions: Vec<_> = migrations.iter().map(|m| m.version).collect();
            assert_eq!(versions, (1..=wanted(migrations)).collect::<Vec<_>>());
        }
        assert_eq!(wanted(&postgres::MIGRATIONS), wanted(&sqlite::MIGRATIONS));
    }
}
