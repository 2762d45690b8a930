//! What becomes of calls that their callers have given up.

use std::time::{Duration, Instant};

use ringspan::store::{self, Claim, Claimed, StoreError};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqliteConnection};

use crate::ring::{Ring, claim, id};

/// Far beyond the limit of a call below, far below anybody's patience with a lock.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until no backend of this database is like this any more.
async fn until_none_is(url: &str, condition: &str) {
    until_backends(url, condition, |backends| backends == 0).await;
}

/// Waits until so many backends of this database wait for a lock.
pub async fn until_locked_out(url: &str, backends: u32) {
    until_backends(url, "wait_event_type = 'Lock'", |found| found >= backends.into()).await;
}

async fn until_backends(url: &str, condition: &str, wanted: impl Fn(i64) -> bool) {
    let mut watcher = PgConnection::connect(url).await.unwrap();
    let query = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {condition}"
    );
    let begun = Instant::now();
    loop {
        let query = sqlx::query_scalar(AssertSqlSafe(query.clone()));
        let backends: i64 = query.fetch_one(&mut watcher).await.unwrap();
        if wanted(backends) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{backends} backends: {condition}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

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
    until_none_is(&options.url, "wait_event_type = 'Lock'").await;
    holder.execute("ROLLBACK").await.unwrap();
    assert_eq!(store.session(id("k")).await, Ok(None));
}

/// On one thread, which nothing may hold up.
#[tokio::test]
async fn calls_that_were_given_up_at_the_files_lock_hold_up_neither_the_runtime_nor_the_next() {
    let ring = Ring::sqlite().await;
    let me = ring.node("one").await;
    let options = ring.options.clone().unwrap();
    let mut holder = SqliteConnection::connect(&options.url).await.unwrap();
    holder.execute("BEGIN IMMEDIATE").await.unwrap();
    let begun = Instant::now();
    for n in 0..100 {
        let claim = claim(me, &format!("k{n}"), None);
        let claimed = ring.store.claim(&claim);
        assert!(tokio::time::timeout(Duration::from_millis(10), claimed).await.is_err());
        assert!(begun.elapsed() < options.timeout / 2, "{:?}", begun.elapsed());
    }
    holder.execute("ROLLBACK").await.unwrap();
    let begun = Instant::now();
    ring.win(me, "after", None).await;
    assert!(begun.elapsed() < options.timeout / 2, "{:?}", begun.elapsed());
    for n in 0..100 {
        assert_eq!(ring.store.session(id(&format!("k{n}"))).await, Ok(None));
    }
}

/// Raises an error in the middle of any claim's transaction.
const REFUSE: &str = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
     $$ BEGIN RAISE EXCEPTION 'refused'; END $$; \
     CREATE TRIGGER refuse BEFORE INSERT ON session FOR EACH ROW EXECUTE FUNCTION refuse()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_fails_does_not_stay_open() {
    let ring = Ring::postgres().await;
    let one = ring.node("one").await;
    let url = ring.options.clone().unwrap().url;
    let mut operator = PgConnection::connect(&url).await.unwrap();
    operator.execute(REFUSE).await.unwrap();
    let limited = Claim { limit: Some(5), ..claim(one, "k", None) };
    assert!(ring.store.claim(&limited).await.is_err());
    until_none_is(&url, "state LIKE 'idle in transaction%'").await;
    operator.execute("DROP TRIGGER refuse ON session").await.unwrap();
    let won = ring.store.claim(&limited).await.unwrap();
    assert!(matches!(won, Claimed::Won { .. }), "{won:?}");
}
