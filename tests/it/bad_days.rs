//! What a node says and does when something around it is wrong.

use std::time::Duration;

use crate::support::{
    ALICE, Received, Ring, RingOptions, Store, Ws,
    codexish::Codexish,
    eventually, http,
    process::Program,
    responses::{body, user},
    scripted::Upstream,
};

/// Nothing may take longer to be refused.
const BOUND: Duration = Duration::from_secs(12);
const RECOVERY: Duration = Duration::from_secs(30);

fn migration(ring: &Ring) -> Program {
    Program::new(ring.dir().join("migrate.log"), &["migrate", "run"])
        .env("RINGSPAN_DATABASE_URL", &ring.database_url)
}

#[tokio::test]
async fn nodes_with_different_peer_tokens_refuse_what_the_other_owns_and_hang_nowhere() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let stranger =
        ring.extra_node("stranger").with("RINGSPAN_PEER_TOKEN", "not-the-token-of-the-ring");
    stranger.start();
    stranger.until_ready().await;
    // Sessions of the one are out of the other's reach.
    let mut refusals = 0;
    for n in 0..8 {
        let path = format!("/rooms/token-{n}");
        let own = Ws::connect(&ring.node(0).url(&path), &[ALICE]).await;
        let began = std::time::Instant::now();
        let other = Ws::connect(&stranger.url(&path), &[ALICE]).await;
        assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
        for refused in [own.err(), other.err()].into_iter().flatten() {
            refusals += 1;
            assert_eq!(refused.status, 503, "{refused:?}");
            assert!(refused.retry_after().is_some(), "{refused:?}");
        }
    }
    assert!(refusals >= 8, "each session is refused by one of the two, so far {refusals}");
}

#[tokio::test]
async fn a_second_node_of_the_same_name_is_refused_while_the_first_lives() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let double = ring.extra_node("node-0");
    double.start();
    assert_eq!(double.wait_exit(RECOVERY).await, 1, "{}", double.log());
    let log = double.log();
    assert!(log.contains("node-0"), "the log names the node: {log}");
    let mut client = Ws::open(&ring.node(0).url("/rooms/first"), &[ALICE]).await;
    client.text("alive").await;
    assert_eq!(client.expect_text().await, "alive");
}

#[tokio::test]
async fn without_a_schema_a_node_ends_with_a_hint() {
    for store in [Store::Postgres, Store::Sqlite] {
        let ring = Ring::prepare(RingOptions::nodes(1).store(store)).await;
        ring.node(0).start();
        assert_eq!(ring.node(0).wait_exit(BOUND).await, 1);
        let log = ring.node(0).log();
        assert!(log.contains("migrate"), "{log}");
    }
}

#[tokio::test]
async fn migrating_on_start_needs_no_other_command() {
    let options = RingOptions::nodes(1).setting("migrate_on_start", true);
    let ring = Ring::prepare(options).await;
    ring.start_nodes().await;
    Codexish::new(&ring.node(0).client_url, "fresh").turn("hello").await.unwrap();
}

#[tokio::test]
async fn an_unreachable_database_ends_the_start_in_bounded_time() {
    let ring = Ring::prepare(RingOptions::nodes(0)).await;
    let secret = "a-secret-that-no-log-shows";
    let nowhere = format!("postgres://ringspan:{secret}@127.0.0.1:9/ringspan");
    let node = ring.extra_node("lonely").with("RINGSPAN_DATABASE_URL", &nowhere);
    node.start();
    assert_eq!(node.wait_exit(RECOVERY).await, 1, "{}", node.log());
    assert!(!node.log().is_empty(), "it says why");
    assert!(!node.log().contains(secret), "{}", node.log());
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_64_before_anything_is_bound() {
    let ring = Ring::prepare(RingOptions::nodes(0)).await;
    let node = ring.extra_node("wrong").with("RINGSPAN_LEASE_TTL", "soon");
    node.start();
    assert_eq!(node.wait_exit(BOUND).await, 64, "{}", node.log());
    let log = node.log();
    assert!(log.contains("RINGSPAN_LEASE_TTL") && log.contains("soon"), "{log}");
}

#[tokio::test]
async fn a_port_that_is_taken_ends_the_start_with_1_and_its_address() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let taken = ring.node(0).client_url.trim_start_matches("http://").to_owned();
    let log = ring.dir().join("taken.log");
    let config = ring.dir().join("ringspan.toml");
    let args = ["serve", "--config", config.to_str().unwrap(), "--listen", &taken];
    let (code, log) = Program::new(log, &args)
        .env("RINGSPAN_DATABASE_URL", &ring.database_url)
        .env("RINGSPAN_NODE_ID", "late")
        .env("RINGSPAN_PEER_LISTEN", "127.0.0.1:0")
        .env("RINGSPAN_ADMIN_LISTEN", "127.0.0.1:0")
        .run(RECOVERY)
        .await;
    assert_eq!(code, 1, "{log}");
    assert!(log.contains(&taken), "{log}");
}

#[tokio::test]
async fn migrations_that_run_at_once_do_not_disturb_each_other() {
    let ring = Ring::prepare(RingOptions::nodes(1)).await;
    let program = migration(&ring);
    let runs = futures_util::future::join_all((0..4).map(|_| program.run(RECOVERY))).await;
    for (code, log) in runs {
        assert_eq!(code, 0, "{log}");
    }
    ring.start_nodes().await;
}

#[tokio::test]
async fn a_database_that_goes_away_costs_running_sessions_nothing() {
    // A lease that outlives the outage, as the default one does.
    let options = RingOptions::nodes(2)
        .store(Store::GatedPostgres)
        .timing(crate::support::Timing::Default)
        .setting("heartbeat_interval", "\"500ms\"")
        .setting("ring_poll", "\"500ms\"")
        .setting("database_timeout", "\"1s\"")
        .setting("lease_ttl", "\"15s\"");
    let ring = Ring::start(options).await;
    let gate = ring.gate.clone().unwrap();
    let mut clients = Vec::new();
    for node in &ring.nodes {
        clients.push(Ws::open(&node.url("/rooms/steady"), &[ALICE]).await);
    }
    let mut codex = Codexish::new(&ring.node(0).client_url, "steady");
    codex.turn("before").await.unwrap();

    gate.shut().await;
    eventually("the node knows that its database is away", RECOVERY, async || {
        (ring.node(0).health().await?["database"] == "unreachable").then_some(())
    })
    .await;
    clients[0].text("without a database").await;
    for client in &mut clients {
        assert_eq!(client.expect_text().await, "without a database");
    }
    // A new turn has to be written down before it is sent.
    let refused = codex.turn("during").await.unwrap_err();
    assert!(refused.contains("the turn was not sent"), "{refused}");
    let began = std::time::Instant::now();
    let refused = Ws::connect(&ring.node(1).url("/rooms/new"), &[ALICE]).await.unwrap_err();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.retry_after().is_some(), "{refused:?}");
    assert!(refused.body.contains("session_unavailable"), "{refused:?}");
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    let new = body(&[user("new")], None, false);
    let refused = http::post(&ring.node(0).url("/v1/responses"), &[ALICE], &new).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.retry_after().is_some());

    gate.reopen().await;
    let url = ring.node(1).url("/rooms/new");
    let mut new = eventually("new sessions are opened again", RECOVERY, async || {
        Ws::connect(&url, &[ALICE]).await.ok()
    })
    .await;
    new.text("recovered").await;
    assert_eq!(new.expect_text().await, "recovered");
    clients[1].text("all the while").await;
    for client in &mut clients {
        assert_eq!(client.expect_text().await, "all the while");
    }
    codex.turn("after").await.unwrap();
    assert!(codex.closes.is_empty(), "the client's socket lived through it: {:?}", codex.closes);
}

#[tokio::test]
async fn a_database_that_stays_away_longer_than_any_certificate_stops_all_service() {
    let ring = Ring::start(RingOptions::nodes(1).store(Store::GatedPostgres)).await;
    let mut client = Ws::open(&ring.node(0).url("/rooms/lost"), &[ALICE]).await;
    client.text("before").await;
    assert_eq!(client.expect_text().await, "before");
    ring.gate.as_ref().unwrap().shut().await;
    eventually("the node is not ready without a lease", RECOVERY, async || {
        match ring.node(0).health().await {
            Some(health) => (health["ready"] == false).then_some(()),
            None => Some(()),
        }
    })
    .await;
    // Nothing is served: the echo never comes, whether the socket stays or not.
    client.send("unheard".into()).await.ok();
    let answer = client.next_within(Duration::from_secs(1)).await;
    assert!(!matches!(answer, Received::Text(_)), "{answer:?}");
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_a_502_with_retry_after() {
    let options = RingOptions::nodes(2).route("/gone", "ws://127.0.0.1:9");
    let ring = Ring::start(options).await;
    for node in &ring.nodes {
        let refused = Ws::connect(&node.url("/gone?session=x"), &[ALICE]).await.unwrap_err();
        assert_eq!(refused.status, 502, "{refused:?}");
        assert!(refused.body.contains("upstream_unavailable"), "{refused:?}");
        assert!(refused.retry_after().is_some(), "{refused:?}");
    }
}

#[tokio::test]
async fn an_upstream_that_hangs_in_the_upgrade_is_a_504() {
    let upstream = Upstream::hanging().await;
    let options =
        RingOptions::nodes(2).setting("dial_timeout", "\"500ms\"").route("/hanging", &upstream.url);
    let ring = Ring::start(options).await;
    for node in &ring.nodes {
        let refused = Ws::connect(&node.url("/hanging?session=x"), &[ALICE]).await.unwrap_err();
        assert_eq!(refused.status, 504, "{refused:?}");
        assert!(refused.body.contains("upstream_timeout"), "{refused:?}");
        assert!(refused.retry_after().is_some(), "{refused:?}");
    }
}

#[tokio::test]
async fn half_a_request_costs_its_sender_the_connection_and_nobody_else_anything() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let ring = Ring::start(RingOptions::nodes(1).setting("upgrade_timeout", "\"300ms\"")).await;
    let host = ring.node(0).client_url.trim_start_matches("http://").to_owned();
    let mut slow = tokio::net::TcpStream::connect(&host).await.unwrap();
    slow.write_all(b"GET /rooms/half HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let mut client = Ws::open(&ring.node(0).url("/rooms/whole"), &[ALICE]).await;
    client.text("fine").await;
    assert_eq!(client.expect_text().await, "fine");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(BOUND, slow.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection is still open");
}
