//! Connections to the file, each with a thread of its own.

use deadpool::managed::PoolError;
use sqlx::{
    ConnectOptions, Connection as _, Sqlite as Db, SqliteConnection, Transaction,
    sqlite::SqliteConnectOptions,
};

use crate::store::{Result, StoreError, pool};

pub(super) type Pool = pool::Pool<File>;
pub(super) type Loan = pool::Loan<File>;

/// The file, and how it is used.
#[derive(Debug)]
pub(super) struct File(pub(super) SqliteConnectOptions);

impl pool::Target for File {
    type Connection = SqliteConnection;

    async fn connect(&self) -> sqlx::Result<SqliteConnection> {
        self.0.connect().await
    }
}

/// A connection. Its thread does one thing after another: the rest of a call that was given up,
/// and the end of its transaction, come before what the borrower asks. Cancel-safe.
pub(super) async fn lend(pool: &Pool) -> Result<Loan> {
    pool.get().await.map_err(|error| match error {
        PoolError::Backend(error) => error.into(),
        error => StoreError::Unavailable(error.to_string()),
    })
}

/// Begins a transaction that is the file's only writer until it ends.
pub(super) async fn write(writer: &mut Loan) -> Result<Transaction<'_, Db>> {
    Ok(writer.begin_with("BEGIN IMMEDIATE").await?)
}
