//! Releases that are one apart, and schemas that are not of a node's own.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use sqlx::{Connection as _, Executor as _, SqliteConnection};
use tokio::task::JoinHandle;

use crate::support::{
    ALICE, Received, Ring, RingOptions, Store, Ws, codexish::Codexish, eventually, history::History,
};

/// How long a crowd may take for a few turns, and a process for its end.
const PATIENT: Duration = Duration::from_mins(1);
const CLIENTS: usize = 6;

/// Clients of the whole ring that take turns until they are told to stop.
struct Crowd {
    stop: Arc<AtomicBool>,
    turns: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Crowd {
    fn start(url: &str) -> Self {
        let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |n| {
            let mut codex = Codexish::new(url, &format!("upgrade-{n}"));
            let (stop, turns) = (Arc::clone(&stop), Arc::clone(&turns));
            tokio::spawn(async move {
                let mut failures = Vec::new();
                for turn in 0.. {
                    if stop.load(Relaxed) || failures.len() > 2 {
                        break;
                    }
                    let text = format!("client {n} turn {turn} [deltas=5] [delay=20ms]");
                    if let Err(error) = codex.turn(&text).await {
                        failures.push(format!("client {n} turn {turn}: {error}"));
                    }
                    turns.fetch_add(1, Relaxed);
                }
                failures
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { stop, turns, clients }
    }

    /// Waits until every client has done about three more turns.
    async fn go_on(&self, stage: &str) {
        let target = self.turns.load(Relaxed) + 3 * self.clients.len();
        eventually(&format!("turns {stage}"), PATIENT, async || {
            let over = self.clients.iter().all(JoinHandle::is_finished);
            (over || self.turns.load(Relaxed) >= target).then_some(())
        })
        .await;
        println!("{stage}: {} turns so far", self.turns.load(Relaxed));
    }

    async fn stop(self) -> usize {
        self.stop.store(true, Relaxed);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.unwrap());
        }
        assert_eq!(failures, [""; 0]);
        self.turns.load(Relaxed)
    }
}

/// Two clients of one room, on two nodes, hear each other: one session, reached from both.
async fn share_a_room(ring: &Ring, room: &str) {
    let path = format!("/rooms/{room}");
    let mut clients = Vec::new();
    for node in &ring.nodes {
        clients.push(Ws::open(&node.url(&path), &[ALICE]).await);
    }
    for at in 0..clients.len() {
        clients[at].text(format!("from {at}")).await;
        for client in &mut clients {
            assert_eq!(client.data().await, Received::Text(format!("from {at}")));
        }
    }
}

/// Replaces every node by another release, one after another.
async fn roll(ring: &mut Ring, crowd: &Crowd, release: &str, binary: Option<PathBuf>) {
    for at in 0..ring.nodes.len() {
        ring.nodes[at].sigterm();
        assert_eq!(ring.nodes[at].wait_exit(PATIENT).await, 0, "{}", ring.nodes[at].log());
        ring.nodes[at].of_release(binary.clone());
        ring.nodes[at].restart().await;
        ring.until_whole().await;
        crowd.go_on(&format!("node {at} is of the {release} release")).await;
        share_a_room(ring, &format!("{release}-{at}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the binary of the previous release: ./test.sh upgrade"]
async fn a_ring_goes_to_the_next_release_and_back_under_load() {
    let Some(previous) = std::env::var_os("RINGSPAN_PREVIOUS").map(PathBuf::from) else {
        println!("SKIPPED: RINGSPAN_PREVIOUS names no binary");
        return;
    };
    let mut ring = Ring::prepare(RingOptions::nodes(3)).await;
    for node in &mut ring.nodes {
        node.of_release(Some(previous.clone()));
    }
    ring.migrate_with(Some(previous.clone())).await;
    // The new release says what it lacks, and serves nobody.
    let newcomer = ring.extra_node("too-early");
    newcomer.start();
    assert_eq!(newcomer.wait_exit(PATIENT).await, 1);
    assert!(newcomer.log().contains("ringspan migrate run"), "{}", newcomer.log());

    ring.start_nodes().await;
    let balancer = ring.balancer().await;
    let crowd = Crowd::start(&balancer.url);
    crowd.go_on("on the previous release").await;
    ring.migrate().await;
    crowd.go_on("on the next schema").await;
    share_a_room(&ring, "migrated").await;
    roll(&mut ring, &crowd, "next", None).await;
    roll(&mut ring, &crowd, "previous", Some(previous)).await;
    println!("{} turns, none failed", crowd.stop().await);
    History::read(&ring.sample_url).await.assert_no_double_dispatch();
}

#[tokio::test]
async fn a_node_serves_on_the_next_schema_and_says_why_it_does_not_on_another() {
    let ring = Ring::prepare(RingOptions::nodes(1).store(Store::Sqlite)).await;
    let node = ring.node(0);
    node.start();
    assert_eq!(node.wait_exit(PATIENT).await, 1, "no schema");
    assert!(node.log().contains("ringspan migrate run"), "{}", node.log());

    ring.migrate().await;
    let mut database = SqliteConnection::connect(&ring.database_url).await.unwrap();
    let versions = "SELECT MAX(version) FROM ringspan_schema";
    let newest: i64 = sqlx::query_scalar(versions).fetch_one(&mut database).await.unwrap();
    let add = |version: i64| {
        format!("INSERT INTO ringspan_schema VALUES ({version}, 'of a later release', '00')")
    };
    database.execute(sqlx::AssertSqlSafe(add(newest + 1))).await.unwrap();
    node.restart().await;
    let mut client = Ws::open(&node.url("/rooms/next"), &[ALICE]).await;
    client.text("hello").await;
    assert_eq!(client.expect_text().await, "hello");
    node.sigterm();
    assert_eq!(node.wait_exit(PATIENT).await, 0, "{}", node.log());

    database.execute(sqlx::AssertSqlSafe(add(newest + 2))).await.unwrap();
    node.start();
    assert_eq!(node.wait_exit(PATIENT).await, 1, "two ahead");
    assert!(node.log().contains("run a newer release of ringspan"), "{}", node.log());

    let remove = format!("DELETE FROM ringspan_schema WHERE version >= {newest}");
    database.execute(sqlx::AssertSqlSafe(remove)).await.unwrap();
    database.close().await.unwrap();
    let before = node.log().len();
    node.start();
    assert_eq!(node.wait_exit(PATIENT).await, 1, "one behind");
    assert!(node.log()[before..].contains("ringspan migrate run"), "{}", node.log());
}
