//! What becomes of calls while Postgres restarts, and of connections that it ends.

use std::{sync::Arc, time::Duration};

use ringspan::store::{self, Store, StoreError, StoreOptions};
use sqlx::{Connection, Executor, PgConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    given_up::until_locked_out,
    postgres_server::Server,
    ring::{Ring, id},
};

/// What a server says that is not ready yet.
const NOT_READY: &[u8] = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";

/// A way to the shared server that is not there yet.
struct Gate {
    port: u16,
    through: JoinSet<()>,
}

impl Gate {
    async fn closed() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { port: listener.local_addr().unwrap().port(), through: JoinSet::new() }
    }

    /// The same database by this way.
    fn url(&self, url: &str) -> String {
        url.replace(&format!(":{}/", Server::shared().port), &format!(":{}/", self.port))
            + "?sslmode=disable"
    }

    /// Who comes first is told that the server is not ready, all others get through.
    async fn open(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.through.spawn(async move {
            refuse(listener.accept().await.unwrap().0).await;
            let mut lines = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                lines.spawn(async move {
                    let address = ("127.0.0.1", Server::shared().port);
                    let mut server = TcpStream::connect(address).await.unwrap();
                    copy_bidirectional(&mut client, &mut server).await.ok();
                });
            }
        });
    }
}

async fn refuse(mut client: TcpStream) {
    let length = client.read_u32().await.unwrap();
    client.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
    client.write_u8(b'E').await.unwrap();
    client.write_u32(u32::try_from(NOT_READY.len()).unwrap() + 4).await.unwrap();
    client.write_all(NOT_READY).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_outlasts_a_restart_of_the_server() {
    let ring = Ring::postgres().await;
    let mut gate = Gate::closed().await;
    let url = gate.url(&ring.options.clone().unwrap().url);
    let options = StoreOptions { url, ..ring.options.clone().unwrap() };
    let call = async { store::open(&options).await?.session(id("k")).await };
    tokio::pin!(call);
    let refused = tokio::time::timeout(Duration::from_millis(200), &mut call).await;
    assert!(refused.is_err(), "it does not wait: {refused:?}");
    gate.open().await;
    assert_eq!(call.await, Ok(None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stays_away_is_said_at_the_limit_of_a_call() {
    let ring = Ring::postgres().await;
    let url = Gate::closed().await.url(&ring.options.clone().unwrap().url);
    let timeout = Duration::from_millis(300);
    let options = StoreOptions { url, timeout, ..ring.options.clone().unwrap() };
    let opened = tokio::time::timeout(Duration::from_secs(10), store::open(&options)).await;
    let error = opened.expect("it ends").err().expect("nobody is there");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
}

/// Ends what the server runs for this database, but for who asks.
async fn terminate(operator: &mut PgConnection, which: &'static str) {
    let ended: Vec<bool> = sqlx::query_scalar(which).fetch_all(operator).await.unwrap();
    assert!(!ended.is_empty() && ended.iter().all(|it| *it), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_the_server_ended_is_not_lent_again() {
    const LOCKED_OUT: &str = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event_type = 'Lock'";

    let ring = Ring::postgres().await;
    let options = StoreOptions { max_connections: 1, ..ring.options.clone().unwrap() };
    let store = store::open(&options).await.unwrap();
    let mut operator = PgConnection::connect(&options.url).await.unwrap();
    operator.execute("BEGIN; LOCK TABLE session").await.unwrap();
    let call = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.session(id("k")).await }
    });
    until_locked_out(&options.url, 1).await;
    terminate(&mut operator, LOCKED_OUT).await;
    operator.execute("ROLLBACK").await.unwrap();
    assert!(matches!(call.await.unwrap(), Err(StoreError::Unavailable(_))));
    assert_eq!(store.session(id("k")).await, Ok(None));
}

/// So many calls at once.
async fn calls(store: &Arc<dyn Store>, count: usize) -> Vec<store::Result<()>> {
    let mut calls = JoinSet::new();
    for _ in 0..count {
        let store = Arc::clone(store);
        calls.spawn(async move { store.session(id("k")).await.map(|_| ()) });
    }
    calls.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_costs_one_call_and_not_one_for_each_connection() {
    const ALL: &str = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()";

    let ring = Ring::postgres().await;
    let options = ring.options.clone().unwrap();
    let mut operator = PgConnection::connect(&options.url).await.unwrap();
    let store = store::open(&options).await.unwrap();
    operator.execute("BEGIN; LOCK TABLE session").await.unwrap();
    let busy = calls(&store, options.max_connections as usize);
    let unlock = async {
        until_locked_out(&options.url, options.max_connections).await;
        operator.execute("ROLLBACK").await.unwrap();
    };
    let (done, ()) = tokio::join!(busy, unlock);
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    terminate(&mut operator, ALL).await;
    let after = [calls(&store, 1).await, calls(&store, 1).await, calls(&store, 1).await].concat();
    assert!(after[1].is_ok() && after[2].is_ok(), "{after:?}");
}
