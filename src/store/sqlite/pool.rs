//! Connections to the file, each with a thread of its own.
//!
//! That thread does all that it was told, in order, also what its caller has given up. *Invariant:*
//! a connection is lent again only when it has nothing left to do, so of what was given up there is
//! one call at a time at most, and nobody's statement comes after a later one.

use std::ops::{Deref, DerefMut};

use sqlx::{
    ConnectOptions, Sqlite as Db, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteConnectOptions},
};
use tokio::runtime::Handle;

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
        // What the database refused is over; anything else may have been the thread's end.
        self.settled =
            outcome.as_ref().err().is_none_or(|error| error.as_database_error().is_some());
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
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(tidy(connection))),
            Err(_) => drop(Loan::take(connection)),
        }
    }
}

/// Waits for the end of what the connection is doing, and takes it back if it was a transaction.
async fn tidy(mut connection: Loan) {
    // Outside a transaction this is refused, and that is an answer too.
    let answer = statement("ROLLBACK").execute(&mut *connection).await;
    if answer.is_err_and(|error| error.as_database_error().is_none()) {
        drop(Loan::take(connection));
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
        statement("BEGIN IMMEDIATE").execute(&mut *writer).await?;
        Ok(Self(writer))
    }

    pub(super) async fn commit(mut self) -> Result<()> {
        statement("COMMIT").execute(&mut *self.0).await?;
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

fn statement(sql: &'static str) -> Query<'static, Db, SqliteArguments> {
    sqlx::query(sql)
}
