//! A node that is told to go, and a ring that is replaced node by node.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;

use crate::support::{
    ALICE, Received, Ring, RingOptions, Store, Timing, Ws,
    codexish::{Codexish, Hidden},
    eventually,
    history::History,
    responses::{Turn, create, user},
};

const SECONDS: Duration = Duration::from_secs(30);

/// Clients that do turns until they are told to stop.
struct Crowd {
    stop: Arc<AtomicBool>,
    turns: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<(Codexish, Vec<String>)>>,
}

impl Crowd {
    fn start(url: &str, count: usize) -> Self {
        let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..count)
            .map(|n| {
                let mut codex = Codexish::new(url, &format!("crowd-{n}"));
                let (stop, turns) = (Arc::clone(&stop), Arc::clone(&turns));
                tokio::spawn(async move {
                    let mut failures = Vec::new();
                    for turn in 0.. {
                        if stop.load(Ordering::Relaxed) || failures.len() > 2 {
                            break;
                        }
                        let text = format!("client {n} turn {turn} [deltas=10] [delay=20ms]");
                        if let Err(error) = codex.turn(&text).await {
                            failures.push(format!("client {n} turn {turn}: {error}"));
                        }
                        turns.fetch_add(1, Ordering::Relaxed);
                    }
                    (codex, failures)
                })
            })
            .collect();
        Self { stop, turns, clients }
    }

    /// Waits until every client did about `count` more turns.
    async fn until_more(&self, count: usize) {
        let target = self.turns.load(Ordering::Relaxed) + count * self.clients.len();
        eventually("the clients do turns", SECONDS, async || {
            let over = self.clients.iter().all(JoinHandle::is_finished);
            (over || self.turns.load(Ordering::Relaxed) >= target).then_some(())
        })
        .await;
    }

    /// Stops; asserts that no user saw a failure.
    async fn stop(self) -> Hidden {
        self.stop.store(true, Ordering::Relaxed);
        let (mut failures, mut hidden) = (Vec::new(), Hidden::default());
        for client in self.clients {
            let (codex, failed) = client.await.unwrap();
            failures.extend(failed);
            hidden.reconnects += codex.hidden.reconnects;
            hidden.raced += codex.hidden.raced;
            hidden.history_resent += codex.hidden.history_resent;
            hidden.told_to_wait += codex.hidden.told_to_wait;
            for close in codex.closes {
                assert_eq!(close, Received::Close(1012, "service restart".to_owned()));
            }
        }
        let turns = self.turns.load(Ordering::Relaxed);
        println!("{turns} turns, hidden from users: {hidden:?}");
        assert!(failures.is_empty(), "{} of {turns} turns failed: {failures:#?}", failures.len());
        hidden
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_to_go_finishes_every_turn_and_exits_0_in_time() {
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let balancer = ring.balancer().await;
    let leaver = ring.node(1);
    let mut idle = Vec::new();
    for n in 0..5 {
        let mut codex = Codexish::new(&leaver.client_url, &format!("idle-{n}"));
        codex.turn(&format!("idle client {n}")).await.unwrap();
        idle.push(codex);
    }
    let crowd = Crowd::start(&balancer.url, 30);
    crowd.until_more(2).await;
    leaver.sigterm();
    eventually("the node says that it is not ready", SECONDS, async || {
        let health = leaver.health().await?;
        (health["ready"] == false && health["draining"] == true).then_some(())
    })
    .await;
    for codex in &mut idle {
        assert_eq!(
            codex.until_closed().await,
            Received::Close(1012, "service restart".to_owned()),
            "idle clients are told to come back"
        );
    }
    assert_eq!(leaver.wait_exit(ring.options.timing.drain()).await, 0, "{}", leaver.log());
    crowd.until_more(2).await;
    crowd.stop().await;
    // Nothing is left behind in its name.
    for session in ring.sessions().await {
        assert_ne!(session["owner_node"], leaver.id.as_str(), "{session}");
    }
    for codex in &mut idle {
        assert!(codex.turn("two").await.is_err(), "the node is gone");
    }
    let history = History::read(&ring.sample_url).await;
    history.assert_one_connection_each();
    history.assert_no_double_dispatch();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_turn() {
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let balancer = ring.balancer().await;
    let crowd = Crowd::start(&balancer.url, 12);
    crowd.until_more(1).await;
    for node in &ring.nodes {
        node.sigterm();
        assert_eq!(node.wait_exit(ring.options.timing.drain()).await, 0, "{}", node.log());
        node.restart().await;
        ring.until_whole().await;
        crowd.until_more(1).await;
    }
    crowd.stop().await;
    let history = History::read(&ring.sample_url).await;
    history.assert_one_connection_each();
    history.assert_no_double_dispatch();
}

#[tokio::test]
async fn a_drain_waits_for_a_turn_and_closes_right_after_its_end() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let headers = [ALICE, ("session-id", "long-turn"), ("originator", "codex_exec")];
    let mut socket = Ws::open(&ring.node(0).url("/v1/responses"), &headers).await;
    let text = "long [deltas=200] [delay=10ms]".to_owned();
    socket.json(&create(&[user(&text)], None)).await;
    let created = socket.data().await.json();
    ring.node(0).sigterm();
    let mut turn = Turn::read(&mut socket).await;
    turn.events.insert(0, created);
    turn.assert_answers(&[text]);
    assert_eq!(socket.end().await, Received::Close(1012, "service restart".to_owned()));
    assert_eq!(ring.node(0).wait_exit(ring.options.timing.drain()).await, 0);
}

#[tokio::test]
async fn clients_of_an_opaque_session_are_told_to_come_back_when_its_owner_goes() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let path = "/rooms/moving";
    let mut clients = Vec::new();
    for node in &ring.nodes {
        let mut client = Ws::open(&node.url(path), &[ALICE, ("session-id", "moving")]).await;
        client.text("hello").await;
        client.expect_text().await;
        clients.push(client);
    }
    let owner = ring.owner_of("moving").await;
    owner.sigterm();
    for client in &mut clients {
        let end = client.end().await;
        assert!(matches!(end, Received::Close(1012, _)), "{end:?}");
    }
    let other = ring.others(owner)[0];
    let mut again = Ws::open(&other.url(path), &[ALICE, ("session-id", "moving")]).await;
    again.text("after the move").await;
    assert_eq!(again.expect_text().await, "after the move");
    assert_eq!(owner.wait_exit(ring.options.timing.drain()).await, 0);
    History::read(&ring.sample_url).await.assert_one_connection_each();
}

#[tokio::test]
async fn a_draining_node_still_takes_clients_while_balancers_learn() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let leaver = ring.node(0);
    leaver.sigterm();
    eventually("the node drains", SECONDS, async || {
        (leaver.health().await?["draining"] == true).then_some(())
    })
    .await;
    // Within the dwell, new keys are placed elsewhere and never refused.
    match Ws::connect(&leaver.url("/rooms/late"), &[ALICE]).await {
        Ok(mut client) => {
            client.text("late").await;
            assert_eq!(client.expect_text().await, "late");
            assert_eq!(ring.owner_of("late").await.id, "node-1");
        }
        // The dwell was over before we came: the socket is refused, or told when to retry.
        Err(refused) => {
            assert!(refused.status == 0 || refused.retry_after().is_some(), "{refused:?}");
        }
    }
    assert_eq!(leaver.wait_exit(ring.options.timing.drain()).await, 0);
}

#[tokio::test]
async fn a_second_sigterm_stops_at_once() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let headers = [ALICE, ("session-id", "hanging")];
    let mut socket = Ws::open(&ring.node(0).url("/v1/responses"), &headers).await;
    socket.json(&create(&[user("[hang]")], None)).await;
    socket.data().await.json();
    ring.node(0).sigterm();
    eventually("the node drains", SECONDS, async || {
        (ring.node(0).health().await?["draining"] == true).then_some(())
    })
    .await;
    ring.node(0).sigterm();
    assert_eq!(ring.node(0).wait_exit(Duration::from_secs(5)).await, 1, "not a clean drain");
}

#[tokio::test]
async fn a_database_that_says_nothing_holds_up_neither_a_drain_nor_its_last_words() {
    let options = RingOptions::nodes(1)
        .store(Store::OwnPostgres)
        .timing(Timing::Default)
        .setting("lease_ttl", "\"3s\"")
        .setting("heartbeat_interval", "\"400ms\"")
        .setting("drain_dwell", "\"300ms\"")
        .setting("drain_timeout", "\"6s\"")
        .setting("drain_cleanup", "\"1s\"");
    let limit = Duration::from_millis(7300);
    let ring = Ring::start(options).await;
    let (node, server) = (ring.node(0), ring.server.as_ref().unwrap());
    let open =
        async |key| Ws::open(&node.url("/v1/responses"), &[ALICE, ("session-id", key)]).await;
    let (mut idle, mut busy) = (open("idle").await, open("busy").await);
    Turn::run(&mut idle, &create(&[user("hello")], None)).await;
    busy.json(&create(&[user("[hang]")], None)).await;
    busy.data().await.json();
    server.freeze();
    node.sigterm();
    let began = tokio::time::Instant::now();
    assert!(idle.end().await.is_end());
    let closed = began.elapsed();
    let turn = Turn::read(&mut busy).await;
    // The chart and the systemd unit allow for 5 s more than a drain takes.
    let left = (limit + Duration::from_secs(5)).saturating_sub(began.elapsed());
    let code = node.wait_exit(left).await;
    server.thaw();
    assert_eq!(code, 1, "others wait for its lease: {}", node.log());
    assert!(closed < limit, "an idle socket closed after {closed:?} of {limit:?}");
    assert_eq!(turn.last()["error"]["code"], "outcome_unknown", "{:?}", turn.cut);
}

#[tokio::test]
async fn a_turn_that_never_ends_does_not_hold_a_drain_beyond_its_limit() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let headers = [ALICE, ("session-id", "endless")];
    let mut socket = Ws::open(&ring.node(0).url("/v1/responses"), &headers).await;
    socket.json(&create(&[user("[hang]")], None)).await;
    socket.data().await.json();
    ring.node(0).sigterm();
    // The dwell before, the cleanup after, and a busy machine.
    let limit = ring.options.timing.drain() + Duration::from_secs(5);
    ring.node(0).wait_exit(limit).await;
    assert!(socket.end().await.is_end());
}
