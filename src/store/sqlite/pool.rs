//! Connections to the file, each with a thread of its own.
//!
//! That thread does all that it was told, in order, also what its caller has given up. *Invariant:*
//! a connection is lent again only when it has nothing left to do, so of what was given up there is
//! one call at a time at most, and nobody's statement comes after a later one.

use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use futures_util::{FutureExt as _, TryStreamExt as _};
use sqlx::{ConnectOptions, Executor as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{runtime::Handle, time::timeout};

use crate::store::{Result, pool};

pub(super) type Pool = pool::Pool<File>;
type Loan = pool::Loan<File>;

/// The file, and how it is used.
#[derive(Debug)]
pub(super) struct File(pub(super) SqliteConnectOptions);

impl pool::Target for File {
    type Connection = SqliteConnection;

    async fn connect(&self) -> sqlx::Result<SqliteConnection> {
        self.0.connect().await
    }
}

/// How long the end of what was given up may take: far longer than anything waits for the file's
/// lock. A thread that is not heard of by then is replaced.
const TIDY: Duration = Duration::from_mins(2);

/// A connection on loan. Unless it is settled, dropping it ends what it was doing before it goes
/// back to its pool.
pub(super) struct Checkout {
    connection: Option<Loan>,
    settled: bool,
}

impl Checkout {
    /// Cancel-safe, without a limit of its own.
    pub(super) async fn of(pool: &Pool) -> Result<Self> {
        Ok(Self { connection: Some(pool.get().await?), settled: false })
    }

    /// Ends the loan with what became of a statement that stood alone.
    pub(super) fn settle<T>(mut self, outcome: sqlx::Result<T>) -> Result<T> {
        self.settled = outcome.as_ref().err().is_none_or(is_refusal);
        Ok(outcome?)
    }
}

impl Deref for Checkout {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.connection.as_ref().unwrap_or_else(|| unreachable!("on loan until dropped"))
    }
}

impl DerefMut for Checkout {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.connection.as_mut().unwrap_or_else(|| unreachable!("on loan until dropped"))
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if self.settled {
            return drop(connection);
        }
        let untidy = Untidy(Some(connection));
        // Without a runtime nobody waits: the connection is closed.
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tidying = Box::pin(untidy.tidy());
        // Told at once, as the file is locked until then; the answer comes later.
        if tidying.as_mut().now_or_never().is_none() {
            drop(runtime.spawn(tidying));
        }
    }
}

/// A connection that may be doing something. Closed, unless it becomes tidy.
struct Untidy(Option<Loan>);

impl Untidy {
    /// Waits for the end of what the connection is doing, and rolls it back if it is a transaction.
    async fn tidy(mut self) {
        let Some(connection) = &mut self.0 else { return };
        // Outside a transaction this is refused, and that is an answer too.
        let answer = timeout(TIDY, tell(connection, "ROLLBACK")).await;
        if answer.is_ok_and(|answer| answer.as_ref().err().is_none_or(is_refusal)) {
            drop(self.0.take());
        }
    }
}

impl Drop for Untidy {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(Loan::take(connection));
        }
    }
}

/// A transaction that is the file's only writer until it ends. Unless it is committed, it is rolled
/// back.
///
/// By statements, and not by `sqlx::Transaction`: that one's drop may block its thread, and its
/// count of open transactions goes wrong where SQLite itself rolled back, as on a full disk.
pub(super) struct Write(Checkout);

impl Write {
    pub(super) async fn begin(writer: &Pool) -> Result<Self> {
        let mut writer = Checkout::of(writer).await?;
        tell(&mut writer, "BEGIN IMMEDIATE").await?;
        Ok(Self(writer))
    }

    pub(super) async fn commit(mut self) -> Result<()> {
        tell(&mut self.0, "COMMIT").await?;
        self.0.settled = true;
        Ok(())
    }
}

impl Deref for Write {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.0
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.0
    }
}

/// Runs a statement without rows. Where the thread ended meanwhile, `execute` would say that it
/// touched none.
async fn tell(connection: &mut SqliteConnection, sql: &'static str) -> sqlx::Result<()> {
    let answer = connection.fetch_many(sqlx::query(sql)).try_next().await?;
    answer.map(drop).ok_or(sqlx::Error::WorkerCrashed)
}

/// Whether SQLite said no, and the connection is in order.
fn is_refusal(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some()
}
