//! Connections to Postgres, kept for the next call.
//!
//! Not the pool of `sqlx`: that one asks the server for a sign of life whenever a connection comes
//! back, which is a second round trip for each statement (docs/decisions/0026).

use std::{
    io,
    time::{Duration, Instant as Moment},
};

use deadpool::managed::{self, Metrics, QueueMode, RecycleError, RecycleResult};
use parking_lot::Mutex;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor as _, PgConnection,
    postgres::PgConnectOptions,
};
use tokio::time::{Instant, sleep, sleep_until};

use super::has_code;
use crate::{
    jitter::spread,
    store::{Result, StoreError},
};

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

/// Pauses between two attempts to connect, which double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

pub(super) type Pool = managed::Pool<Connections>;
/// A connection on loan; it is back in its pool when it is dropped, without a word to the server.
pub(super) type Loan = managed::Object<Connections>;

/// Makes connections, and judges those that rested.
#[derive(Debug)]
pub(super) struct Connections {
    options: PgConnectOptions,
    /// Said once on each connection.
    greeting: String,
    /// When the server last ended one.
    lost: Mutex<Option<Moment>>,
}

impl Connections {
    /// The server ended a connection, as at a restart: those that were lent before that instant
    /// are replaced, or each of them would cost a call.
    pub(super) fn lost_one(&self) {
        *self.lost.lock() = Some(Moment::now());
    }

    fn is_doubted(&self, metrics: &Metrics) -> bool {
        let lent = metrics.recycled.unwrap_or(metrics.created);
        self.lost.lock().is_some_and(|lost| lent <= lost)
    }
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
        if self.is_doubted(metrics) {
            return Err(RecycleError::message("doubted"));
        }
        if metrics.last_used() > PING_AFTER_IDLE {
            connection.ping().await?;
        }
        Ok(())
    }
}

/// An empty pool of at most so many connections, at least one.
pub(super) fn open(options: PgConnectOptions, greeting: String, max: u32) -> Result<Pool> {
    let pool = Pool::builder(Connections { options, greeting, lost: Mutex::default() })
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

/// A connection that is in order; opened, if all are lent and there may be more. While the server
/// takes none, as during a restart, it is tried again until the deadline. Cancel-safe.
pub(super) async fn lend(pool: &Pool, deadline: Instant) -> Result<Loan> {
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match pool.get().await {
            Ok(loan) => return Ok(loan),
            Err(managed::PoolError::Backend(error)) => error,
            Err(error) => return Err(StoreError::Unavailable(error.to_string())),
        };
        let again = Instant::now() + spread(pause);
        if !will_pass(&error) || again >= deadline {
            return Err(error.into());
        }
        sleep_until(again).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether a server that takes no connection now may take one in a moment.
fn will_pass(error: &sqlx::Error) -> bool {
    /// Too many connections, shutting down, not ready yet.
    const CODES: [&str; 3] = ["53300", "57P01", "57P03"];
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, UnexpectedEof};

    match error {
        sqlx::Error::Io(error) => {
            matches!(error.kind(), ConnectionRefused | ConnectionReset | UnexpectedEof)
        }
        error => has_code(error, &CODES),
    }
}
