//! Promises about the schema, and about opening a store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ringspan::store::{
    self, StoreError, StoreOptions,
    schema::{self, Progress, SchemaState},
};
use sqlx::{Connection, Executor, PgConnection, SqliteConnection};

use crate::{
    given_up::until_locked_out,
    postgres_server::{PASSWORD, Server},
    ring::{Ring, options},
};

/// An unmigrated database of each SQL backend, with what keeps it in place.
async fn databases() -> [(StoreOptions, Option<tempfile::TempDir>); 2] {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("sqlite://{}", dir.path().join("a/b/ring.db").display());
    [(options(file), Some(dir)), (options(Server::shared().database().await), None)]
}

/// Changes a database behind ringspan's back.
async fn tamper(options: &StoreOptions, sql: &'static str) {
    if let Some(path) = options.url.strip_prefix("sqlite://") {
        let mut connection = SqliteConnection::connect(path).await.unwrap();
        connection.execute(sql).await.unwrap();
        connection.close().await.unwrap();
    } else {
        PgConnection::connect(&options.url).await.unwrap().execute(sql).await.unwrap();
    }
}

async fn refusal(options: &StoreOptions) -> StoreError {
    store::open(options).await.err().expect("the store should not open")
}

#[tokio::test(flavor = "multi_thread")]
async fn of_concurrent_migrations_one_applies_and_the_others_find_it_done() {
    for (options, _dir) in databases().await {
        let applying = Arc::new(AtomicUsize::new(0));
        let runs = (0..4).map(|_| {
            let (options, applying) = (options.clone(), Arc::clone(&applying));
            tokio::spawn(async move {
                let count = |progress| {
                    if matches!(progress, Progress::Applied(_)) {
                        applying.fetch_add(1, Ordering::Relaxed);
                    }
                };
                schema::migrate(&options, count).await.unwrap().len()
            })
        });
        let mut steps = Vec::new();
        for run in runs.collect::<Vec<_>>() {
            steps.push(run.await.unwrap());
        }
        steps.sort_unstable();
        let status = schema::check(&options).await.unwrap();
        assert_eq!(status.state, SchemaState::Current);
        let all = usize::try_from(status.wanted).unwrap();
        assert_eq!(steps, [0, 0, 0, all]);
        assert_eq!(applying.load(Ordering::Relaxed), all);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_waits_for_a_reader_does_not_hold_up_the_ring() {
    const BACK_TO_4: &str = "DROP INDEX session_label; \
         CREATE INDEX session_key_label ON session USING hash (key_label); \
         DELETE FROM ringspan_schema WHERE version > 4";
    const PATIENCE: Duration = Duration::from_secs(10);

    let ring = Ring::postgres().await;
    let (me, options) = (ring.node("n1").await, ring.options.clone().unwrap());
    tamper(&options, BACK_TO_4).await;
    let mut reader = PgConnection::connect(&options.url).await.unwrap();
    reader.execute("BEGIN; SELECT 1 FROM session").await.unwrap();
    let (told, mut heard) = tokio::sync::mpsc::channel(1000);
    let migration = tokio::spawn({
        let options = options.clone();
        async move { schema::migrate(&options, |progress| told.try_send(progress).unwrap()).await }
    });
    until_locked_out(&options.url, 1).await;
    let claim = tokio::time::timeout(PATIENCE, ring.win(me, "k", None));
    assert!(claim.await.is_ok(), "who comes after the migration waits for the reader");
    reader.execute("COMMIT").await.unwrap();
    let steps = migration.await.unwrap().unwrap();
    assert_eq!(steps.iter().map(|step| step.version).collect::<Vec<_>>(), [5]);
    assert_eq!(schema::check(&options).await.unwrap().state, SchemaState::Current);
    assert_eq!(heard.recv().await, Some(Progress::Applying(steps[0])));
    assert_eq!(heard.recv().await, Some(Progress::Postponed(steps[0])), "it says why it waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_schema_is_said_and_refused_with_the_command_that_makes_it() {
    for (options, _dir) in databases().await {
        let status = schema::check(&options).await.unwrap();
        assert_eq!((status.found, status.state), (0, SchemaState::Missing));
        match refusal(&options).await {
            StoreError::Schema { found: 0, wanted, hint } => {
                assert_eq!(wanted, status.wanted);
                assert!(hint.contains("ringspan migrate run"));
            }
            other => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_when_the_schema_is_there_or_the_time_is_over() {
    for (options, _dir) in databases().await {
        let (told, mut heard) = tokio::sync::mpsc::channel(8);
        let waiter = tokio::spawn({
            let options = options.clone();
            async move {
                let report = |reason: &StoreError| told.try_send(reason.label()).unwrap();
                schema::wait(&options, Duration::from_secs(30), report).await
            }
        });
        assert_eq!(heard.recv().await, Some("schema"), "it says what it waits for");
        schema::migrate(&options, |_| {}).await.unwrap();
        assert_eq!(waiter.await.unwrap().unwrap().state, SchemaState::Current);
    }
    let (options, _dir) = &databases().await[0];
    let over = schema::wait(options, Duration::ZERO, |_| {}).await;
    assert!(matches!(over, Err(StoreError::Schema { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_schema_is_accepted_and_the_one_after_it_refused() {
    for (options, _dir) in databases().await {
        schema::migrate(&options, |_| {}).await.unwrap();
        tamper(
            &options,
            "INSERT INTO ringspan_schema (version, name, checksum) \
             SELECT max(version) + 1, 'b', '' FROM ringspan_schema",
        )
        .await;
        assert_eq!(schema::check(&options).await.unwrap().state, SchemaState::OneAhead);
        assert!(store::open(&options).await.is_ok());
        tamper(
            &options,
            "INSERT INTO ringspan_schema (version, name, checksum) \
             SELECT max(version) + 1, 'c', '' FROM ringspan_schema",
        )
        .await;
        assert_eq!(schema::check(&options).await.unwrap().state, SchemaState::TooNew);
        assert!(
            matches!(refusal(&options).await, StoreError::Schema { found, wanted, .. } if found == wanted + 2)
        );
        let waited = schema::wait(&options, Duration::from_secs(30), |_| {}).await;
        assert!(
            matches!(waited, Err(StoreError::Schema { found, wanted, .. }) if found == wanted + 2),
            "not waited for"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_migration_is_refused() {
    for (options, _dir) in databases().await {
        schema::migrate(&options, |_| {}).await.unwrap();
        tamper(&options, "UPDATE ringspan_schema SET checksum = 'other'").await;
        assert!(matches!(refusal(&options).await, StoreError::Corrupt(_)));
        let again = schema::migrate(&options, |_| {}).await;
        assert!(matches!(again, Err(StoreError::Corrupt(_))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_its_secret_and_has_its_own() {
    let mut clusters = Vec::new();
    for (options, _dir) in databases().await {
        schema::migrate(&options, |_| {}).await.unwrap();
        let first = store::open(&options).await.unwrap().cluster().await.unwrap();
        assert!(schema::migrate(&options, |_| {}).await.unwrap().is_empty());
        let second = store::open_single(&options).await.unwrap().cluster().await.unwrap();
        assert!(first.id == second.id && first.secret == second.secret);
        clusters.push(first);
    }
    assert!(clusters[0].id != clusters[1].id && clusters[0].secret != clusters[1].secret);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_error_repeats_the_password_or_the_address() {
    let right = Server::shared().database().await;
    let wrong = right.replace(PASSWORD, "wrong-secret-7");
    let nowhere = format!("postgres://u:{PASSWORD}@127.0.0.1:1/x");
    let garbled = format!("postgres://u:{PASSWORD}@[::1/x");
    let odd = format!("mysql://u:{PASSWORD}@host/x");
    for url in [wrong, nowhere, garbled, odd] {
        let mut options = options(url);
        options.timeout = Duration::from_secs(2);
        let error = refusal(&options).await;
        for text in [error.to_string(), format!("{error:?}"), format!("{options:?}")] {
            assert!(!text.contains(PASSWORD) && !text.contains("wrong-secret-7"), "{text}");
            assert!(!text.contains("127.0.0.1"), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_answer_is_given_up_in_time() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let mut options = options(format!("postgres://u:p@{address}/x"));
    options.timeout = Duration::from_millis(200);
    let limit = StoreError::Timeout(options.timeout);
    assert_eq!(refusal(&options).await, limit);
    assert_eq!(schema::check(&options).await, Err(limit));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_given_up_does_not_block_the_next() {
    let mut options = options(Server::shared().database().await);
    schema::migrate(&options, |_| {}).await.unwrap();
    options.timeout = Duration::from_millis(500);
    let store = store::open_single(&options).await.unwrap();
    let mut lock = PgConnection::connect(&options.url).await.unwrap();
    lock.execute("BEGIN").await.unwrap();
    lock.execute("LOCK TABLE ring_meta").await.unwrap();
    assert_eq!(store.ring().await, Err(StoreError::Timeout(options.timeout)));
    assert_eq!(store.session(crate::ring::id("k")).await, Ok(None), "its only connection is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_was_cut_off_returns_and_hears_again() {
    let ring = Ring::postgres().await;
    let limit = Duration::from_secs(30);
    let hint = async || tokio::time::timeout(limit, ring.store.ring_hint()).await.expect("a hint");
    hint().await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
        WHERE datname = current_database() AND query LIKE 'LISTEN%'";
    for round in 0..3 {
        tamper(ring.options.as_ref().unwrap(), cut).await;
        hint().await;
        ring.node(&format!("n{round}")).await;
        hint().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_member_of_a_sqlite_ring_survives_a_reboot() {
    let ring = Ring::sqlite().await;
    let me = ring.node("n1").await;
    let epoch = ring.win(me, "k", None).await;
    let options = ring.options.clone().unwrap();
    tamper(&options, "UPDATE ring_meta SET boot_id = 'the one before'").await;
    let store = store::open(&options).await.unwrap();
    assert_eq!(store.heartbeat(me, crate::ring::LONG, 0).await, Err(StoreError::Fenced(me)));
    let heir = ring.node("n1").await;
    assert!(heir > me);
    assert!(ring.win(heir, "k", Some(epoch)).await > epoch);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_is_readable_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let [(options, _dir), _] = databases().await;
    schema::migrate(&options, |_| {}).await.unwrap();
    let path = options.url.strip_prefix("sqlite://").unwrap();
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_sqlite_url_that_would_name_no_file_is_refused() {
    for url in ["sqlite:", "sqlite::memory:", "sqlite://x.db?mode=memory"] {
        assert!(matches!(refusal(&options(url.into())).await, StoreError::BadUrl(_)), "{url}");
    }
}
