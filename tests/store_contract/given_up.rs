//! What becomes of calls that their callers have given up.

use std::time::{Duration, Instant};

use ringspan::store::{self, StoreError};
use sqlx::{Connection, Executor, PgConnection};

use crate::ring::{Ring, id};

/// Far beyond the limit of a call below, far below anybody's patience with a lock.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_were_given_up_at_a_lock_do_not_pile_up_in_the_server() {
    let ring = Ring::postgres().await;
    let mut options = ring.options.clone().unwrap();
    options.timeout = Duration::from_millis(300);
    let store = store::open(&options).await.unwrap();
    let mut holder = PgConnection::connect(&options.url).await.unwrap();
    holder.execute("BEGIN; LOCK TABLE session").await.unwrap();
    for _ in 0..12 {
        assert_eq!(store.session(id("k")).await, Err(StoreError::Timeout(options.timeout)));
    }
    let mut other = PgConnection::connect(&options.url).await.unwrap();
    let begun = Instant::now();
    loop {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(&mut other)
        .await
        .unwrap();
        if waiting == 0 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{waiting} backends wait for nobody");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    holder.execute("ROLLBACK").await.unwrap();
    assert_eq!(store.session(id("k")).await, Ok(None));
}
