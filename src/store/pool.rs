//! Connections to a database, kept for the next call.
//!
//! Not the pool of `sqlx`: that one asks for a sign of life whenever a connection comes back, which
//! is a second trip for each statement, to a server or to SQLite's thread (docs/decisions/0026).

use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, PoolError, QueueMode, RecycleError, RecycleResult};
use parking_lot::Mutex;
use sqlx::Connection;
use tokio::time::sleep;

use super::{Result, StoreError};

/// A connection that was lent last longer ago than this is asked for a sign of life before use: it
/// may not have survived a restart of the server. Busy ones are spared the trip.
const PING_AFTER: Duration = Duration::from_secs(1);

/// One that is older is replaced, so that what a server keeps for each does not grow for ever
/// and a name that leads to another server is noticed.
const MAX_AGE: Duration = Duration::from_mins(30);

/// One that was not lent for so long is closed.
const MAX_IDLE: Duration = Duration::from_mins(10);

/// How often those are looked for.
const REAP_EVERY: Duration = Duration::from_mins(1);

/// What connections lead to.
pub(super) trait Target: Send + Sync + 'static {
    type Connection: Connection;

    /// Opens one that is ready for use.
    fn connect(&self) -> impl Future<Output = sqlx::Result<Self::Connection>> + Send;
}

pub(super) type Pool<T> = managed::Pool<Connections<T>>;
/// A connection on loan; it is back in its pool when it is dropped, without a word to its target.
pub(super) type Loan<T> = managed::Object<Connections<T>>;

/// Makes connections, and judges those that are to be lent again.
#[derive(Debug)]
pub(super) struct Connections<T> {
    target: T,
    /// When one was last of no use any more.
    lost: Mutex<Option<Instant>>,
}

impl<T> Connections<T> {
    /// One is of no use any more, as at a restart of a server: those that were lent before this
    /// instant are replaced, or each of them would cost a call.
    pub(super) fn lost_one(&self) {
        *self.lost.lock() = Some(Instant::now());
    }

    fn is_doubted(&self, metrics: &Metrics) -> bool {
        let lent = metrics.recycled.unwrap_or(metrics.created);
        self.lost.lock().is_some_and(|lost| lent <= lost)
    }
}

impl<T: Target> managed::Manager for Connections<T> {
    type Type = T::Connection;
    type Error = sqlx::Error;

    async fn create(&self) -> sqlx::Result<T::Connection> {
        // Boxed: this is rare, and every call would carry its size.
        Box::pin(self.target.connect()).await
    }

    async fn recycle(
        &self,
        connection: &mut T::Connection,
        metrics: &Metrics,
    ) -> RecycleResult<sqlx::Error> {
        if metrics.age() > MAX_AGE {
            return Err(RecycleError::message("old"));
        }
        if self.is_doubted(metrics) {
            return Err(RecycleError::message("doubted"));
        }
        if metrics.last_used() > PING_AFTER {
            connection.ping().await?;
        }
        Ok(())
    }
}

/// An empty pool of at most so many connections, at least one.
pub(super) fn open<T: Target>(target: T, max: u32) -> Result<Pool<T>> {
    let pool = Pool::builder(Connections { target, lost: Mutex::default() })
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

impl From<PoolError<sqlx::Error>> for StoreError {
    fn from(error: PoolError<sqlx::Error>) -> Self {
        match error {
            PoolError::Backend(error) => error.into(),
            error => Self::Unavailable(error.to_string()),
        }
    }
}
