//! Connections to a Postgres that may be away for a moment.

use std::{io, time::Duration};

use deadpool::managed::PoolError;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Executor as _, PgConnection, postgres::PgConnectOptions,
};
use tokio::time::{Instant, sleep_until};

use super::has_code;
use crate::{
    jitter::spread,
    store::{Result, pool},
};

/// Pauses between two attempts to connect, which double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

pub(super) type Pool = pool::Pool<Server>;
pub(super) type Loan = pool::Loan<Server>;

/// A server, or what stands for it.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) options: PgConnectOptions,
    /// Said once on each connection.
    pub(super) greeting: String,
}

impl pool::Target for Server {
    type Connection = PgConnection;

    async fn connect(&self) -> sqlx::Result<PgConnection> {
        let mut connection = self.options.connect().await?;
        connection.execute(AssertSqlSafe(self.greeting.clone())).await?;
        Ok(connection)
    }
}

/// A connection that is in order; opened, if all are lent and there may be more. While the server
/// takes none, as during a restart, it is tried again until the deadline. Cancel-safe.
pub(super) async fn lend(pool: &Pool, deadline: Instant) -> Result<Loan> {
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match pool.get().await {
            Ok(loan) => return Ok(loan),
            Err(PoolError::Backend(error)) => error,
            Err(error) => return Err(error.into()),
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
