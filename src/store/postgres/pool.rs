//! Connections to Postgres, kept for the next call.
//!
//! Not the pool of `sqlx`: that one asks the server for a sign of life whenever a connection comes
//! back, which is a second round trip for each statement (docs/decisions/0026).

use std::time::Duration;

use deadpool::managed::{self, Metrics, QueueMode, RecycleError, RecycleResult};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor as _, PgConnection,
    postgres::PgConnectOptions,
};
use tokio::time::sleep;

use crate::store::{Result, StoreError};

/// A connection that was idle longer than this is asked for a sign of life before use: it
/// may not have survived a restart of the server. Busy ones are spared the round trip.
const PING_AFTER_IDLE: Duration = Duration::from_secs(1);

/// One that is older is replaced, so that what a server keeps for each does not grow for ever
/// and a name that leads to another server is noticed.
const MAX_AGE: Duration = Duration::from_mins(30);

/// One that nobody needed for so long is closed.
const MAX_IDLE: Duration = Duration::from_mins(10);

/// How often the idle are looked for.
const REAP_EVERY: Duration = Duration::from_mins(1);

pub(super) type Pool = managed::Pool<Connections>;
/// A connection on loan; it is back in its pool when it is dropped, without a word to the server.
pub(super) type Loan = managed::Object<Connections>;

/// Makes connections, and judges those that rested.
#[derive(Debug)]
pub(super) struct Connections {
    options: PgConnectOptions,
    /// Said once on each connection.
    greeting: String,
}

impl managed::Manager for Connections {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<PgConnection, sqlx::Error> {
        // Boxed: this is rare, and every call would carry its size.
        Box::pin(async {
            let mut connection = self.options.connect().await?;
            connection.execute(AssertSqlSafe(self.greeting.clone())).await?;
            Ok(connection)
        })
        .await
    }

    async fn recycle(
        &self,
        connection: &mut PgConnection,
        metrics: &Metrics,
    ) -> RecycleResult<sqlx::Error> {
        if metrics.age() > MAX_AGE {
            return Err(RecycleError::message("old"));
        }
        if metrics.last_used() > PING_AFTER_IDLE {
            connection.ping().await?;
        }
        Ok(())
    }
}

/// An empty pool of at most so many connections, at least one.
pub(super) fn open(options: PgConnectOptions, greeting: String, max: u32) -> Result<Pool> {
    let pool = Pool::builder(Connections { options, greeting })
        .max_size(max.max(1) as usize)
        // The newest first: the others can rest until they are closed.
        .queue_mode(QueueMode::Lifo)
        .build()
        .map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let weak = pool.weak();
    tokio::spawn(async move {
        loop {
            sleep(REAP_EVERY).await;
            let Some(pool) = weak.upgrade() else { return };
            pool.retain(|_, metrics| metrics.last_used() < MAX_IDLE);
        }
    });
    Ok(pool)
}

/// A connection that is in order; opened, if all are lent and there may be more. Waits without a
/// limit of its own. Cancel-safe.
pub(super) async fn lend(pool: &Pool) -> Result<Loan> {
    pool.get().await.map_err(|error| match error {
        managed::PoolError::Backend(error) => error.into(),
        error => StoreError::Unavailable(error.to_string()),
    })
}
