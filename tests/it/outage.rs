//! A database that goes away for longer than a lease, for all nodes or for one.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::{
    ALICE, Node, Received, Ring, RingOptions, Store, Timing, Ws, eventually,
    gate::Gate,
    history::History,
    http,
    responses::{Turn, create, user},
    ring::behind_gate,
};

/// Bound of what follows a return or a death.
const RECOVERY: Duration = Duration::from_secs(30);
/// A session that nobody owns yet is refused within this time once the outage is known.
const REFUSAL: Duration = Duration::from_secs(4);

/// `(id, owner's incarnation, epoch)` of all sessions that have an owner.
async fn owners(ring: &Ring) -> Vec<(String, i64, i64)> {
    let claims = ring.sessions().await.into_iter().filter_map(|session| {
        let owner = session["owner_incarnation"].as_i64()?;
        Some((session["id"].as_str()?.to_owned(), owner, session["epoch"].as_i64()?))
    });
    claims.collect()
}

async fn outage(node: &Node) -> Option<Value> {
    let url = format!("{}/api/v1/ring", node.admin_url);
    let ring = http::request(::http::Method::GET, &url, &[], "").await.ok()?.json();
    Some(ring["outage"].clone())
}

/// Waits until the node's own lease is over and a certificate holds in its place: then it is
/// ready, for what it owns can be reached.
pub async fn until_certified(node: &Node) {
    eventually(&format!("{} outlives its lease", node.id), RECOVERY, async || {
        let health = node.health().await?;
        let lapsed = health["lease_remaining_seconds"] == 0.0 && health["certified"] == true;
        assert!(!lapsed || health["ready"] == true, "{health}");
        lapsed.then_some(())
    })
    .await;
    eventually(&format!("{} says for how long", node.id), RECOVERY, async || {
        (outage(node).await?["certified_seconds"].as_f64()? > 0.0).then_some(())
    })
    .await;
}

/// Waits until the node serves nothing: no lease, no certificate.
pub async fn until_suspended(node: &Node) {
    eventually(&format!("{} is suspended", node.id), RECOVERY, async || {
        let health = node.health().await?;
        let lapsed = health["lease_remaining_seconds"] == 0.0 && health["ready"] == false;
        lapsed.then_some(())
    })
    .await;
}

async fn until_database(node: &Node, state: &str) {
    eventually(&format!("{}: database {state}", node.id), RECOVERY, async || {
        (node.health().await?["database"] == state).then_some(())
    })
    .await;
}

async fn echo(ws: &mut Ws, text: &str) {
    ws.text(text).await;
    assert_eq!(ws.data().await, Received::Text(text.to_owned()));
}

/// The database goes away as `stop` says, in the middle of turns of clients of every node,
/// and comes back, as `back` says, `away` after.
async fn ride_out(
    options: RingOptions,
    away: Duration,
    stop: impl Fn(&Ring),
    back: impl Fn(&Ring),
) {
    let ring = Ring::start(options.store(Store::OwnPostgres)).await;
    let mut rooms = Vec::new();
    let mut turns = JoinSet::new();
    let deltas = away.as_millis() / 50 + 100;
    for (n, node) in ring.nodes.iter().enumerate() {
        let key = format!("steady-{n}");
        rooms.push((key.clone(), Ws::open(&node.url(&format!("/rooms/{key}")), &[ALICE]).await));
        for turn in 0..2 {
            let key = format!("conversation-{n}-{turn}");
            let headers = [ALICE, ("session-id", key.as_str())];
            let mut socket = Ws::open(&node.url("/v1/responses"), &headers).await;
            let text = format!("{key} [deltas={deltas}] [delay=50ms]");
            socket.json(&create(&[user(&text)], None)).await;
            let created = socket.data().await.json();
            turns.spawn(async move {
                let mut turn = Turn::read(&mut socket).await;
                turn.events.insert(0, created);
                (turn, socket, text)
            });
        }
    }
    let before = owners(&ring).await;
    assert_eq!(before.len(), 9, "{before:?}");

    let began = Instant::now();
    stop(&ring);
    for node in &ring.nodes {
        until_database(node, "unreachable").await;
        until_certified(node).await;
    }
    for (key, ws) in &mut rooms {
        echo(ws, "without a database").await;
        let node = ring.node(usize::from(key.ends_with('0')));
        let refused = Instant::now();
        let url = node.url(&format!("/rooms/new-{key}"));
        let answer = Ws::connect(&url, &[ALICE]).await.unwrap_err();
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.retry_after().is_some(), "{answer:?}");
        assert!(answer.body.contains("session_unavailable"), "{answer:?}");
        assert!(refused.elapsed() < REFUSAL, "{:?}", refused.elapsed());
    }
    // A second socket, at the node where the first one is, finds the session without asking.
    for (key, ws) in &mut rooms {
        let node = &ring.nodes[key.trim_start_matches("steady-").parse::<usize>().unwrap()];
        let mut second = Ws::open(&node.url(&format!("/rooms/{key}")), &[ALICE]).await;
        ws.text("to both").await;
        assert_eq!(second.expect_text().await, "to both");
        assert_eq!(ws.expect_text().await, "to both");
    }
    tokio::time::sleep(away.saturating_sub(began.elapsed())).await;
    back(&ring);

    for node in &ring.nodes {
        until_database(node, "ok").await;
        eventually(&format!("{} has its lease again", node.id), RECOVERY, async || {
            let health = node.health().await?;
            let leased = health["ready"] == true
                && health["certified"] == false
                && health["lease_remaining_seconds"].as_f64()? > 0.0;
            leased.then_some(())
        })
        .await;
    }
    while let Some(done) = turns.join_next().await {
        let (turn, _socket, text) = done.unwrap();
        turn.assert_answers(&[text]);
    }
    for (key, ws) in &mut rooms {
        echo(ws, "with a database again").await;
        let url = ring.node(0).url(&format!("/rooms/after-{key}"));
        echo(&mut Ws::open(&url, &[ALICE]).await, "new").await;
    }
    let after = owners(&ring).await;
    for claim in &before {
        assert!(after.contains(claim), "{claim:?} changed hands: {after:?}");
    }
    let history = History::read(&ring.sample_url).await;
    history.assert_one_connection_each();
    history.assert_no_double_dispatch();
    for node in &ring.nodes {
        let said = |text: &str| node.log().matches(text).count();
        let (gone, back) =
            (said("the database does not answer"), said("the database answers again"));
        assert_eq!(gone, back, "{}", node.log());
        // Once for the outage; a busy machine may make one call late beside it.
        assert!((1..=2).contains(&gone), "{}", node.log());
    }
}

#[tokio::test]
async fn a_database_that_stands_still_for_several_leases_costs_no_session_its_owner() {
    // A lease that a busy machine can keep certified.
    let options = RingOptions::nodes(3)
        .timing(Timing::Default)
        .setting("lease_ttl", "\"3s\"")
        .setting("heartbeat_interval", "\"400ms\"")
        .setting("database_timeout", "\"500ms\"");
    ride_out(
        options,
        Duration::from_secs(9),
        |ring| ring.server.as_ref().unwrap().freeze(),
        |ring| ring.server.as_ref().unwrap().thaw(),
    )
    .await;
}

#[tokio::test]
async fn a_database_that_is_gone_for_thirty_seconds_costs_no_session_its_owner() {
    ride_out(
        RingOptions::nodes(3).timing(Timing::Default),
        Duration::from_secs(30),
        |ring| ring.server.as_ref().unwrap().stop_immediate(),
        |ring| ring.server.as_ref().unwrap().start_again(),
    )
    .await;
}

#[tokio::test]
async fn a_node_that_alone_lost_the_database_suspends_before_others_take_its_sessions() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let (url, gate) = behind_gate(&ring.database_url).await;
    let cut = ring.extra_node("cut").with("RINGSPAN_DATABASE_URL", &url);
    cut.start();
    cut.until_ready().await;
    let (key, mut inside) = own_room(&ring, &cut).await;
    let before: i64 = inside.header("ringspan-epoch").parse().unwrap();
    echo(&mut inside, "while all is well").await;

    gate.shut().await;
    until_suspended(&cut).await;
    assert!(outage(&cut).await.unwrap()["obstacle"].as_str().unwrap().contains("node-"));
    inside.text("to a node that is not sure").await;
    // By now it serves nothing; only then may others have the session.
    let url = ring.node(0).url(&format!("/rooms/{key}"));
    let mut taken = eventually("the session has a new owner", RECOVERY, async || {
        let ws = Ws::connect(&url, &[ALICE]).await.ok()?;
        (ws.header("ringspan-epoch").parse::<i64>().unwrap() > before).then_some(ws)
    })
    .await;
    echo(&mut taken, "to the new owner").await;
    assert_eq!(inside.next_now(), None, "two owners would have served the same session");

    gate.reopen().await;
    assert_eq!(cut.wait_exit(RECOVERY).await, 1, "{}", cut.log());
    assert!(inside.end().await.is_end());
    echo(&mut taken, "still there").await;
}

/// A room that `owner` owns, with a client there.
async fn own_room(ring: &Ring, owner: &Node) -> (String, Ws) {
    for n in 0..64 {
        let key = format!("{}-{n}", owner.id);
        let ws = Ws::open(&owner.url(&format!("/rooms/{key}")), &[ALICE]).await;
        if ring.session(&key).await["owner_node"] == owner.id.as_str() {
            return (key, ws);
        }
    }
    panic!("of 64 rooms {} owns none", owner.id);
}

#[tokio::test]
async fn a_node_that_reaches_neither_database_nor_peers_suspends_while_the_database_is_away() {
    let options = RingOptions::nodes(2).store(Store::GatedPostgres);
    let ring = Ring::start(options).await;
    let lonely = ring.extra_node("lonely");
    // What others say to it, and what it says to them, goes through gates of its own.
    let here = Gate::open(&lonely.peer).await;
    let mut there = Vec::new();
    let mut members = vec![format!("lonely=127.0.0.1:{}", here.port)];
    for node in &ring.nodes {
        let gate = Gate::open(&node.peer).await;
        members.push(format!("{}=127.0.0.1:{}", node.id, gate.port));
        there.push(gate);
    }
    let lonely = lonely
        .with("RINGSPAN_ADVERTISE", &format!("127.0.0.1:{}", here.port))
        .with("RINGSPAN_STATIC_MEMBERS", &members.join(","));
    lonely.start();
    lonely.until_ready().await;
    let (_, mut inside) = own_room(&ring, &lonely).await;
    let (_, mut steady) = own_room(&ring, ring.node(0)).await;

    ring.gate.as_ref().unwrap().shut().await;
    for node in [ring.node(0), ring.node(1), &lonely] {
        until_certified(node).await;
    }
    echo(&mut inside, "by certificate").await;
    here.shut().await;
    for gate in &there {
        gate.shut().await;
    }
    until_suspended(&lonely).await;
    inside.text("kept").await;
    assert_eq!(inside.next_within(Duration::from_millis(300)).await, Received::Silence);
    // Nor are the others sure of it: it could have the database to itself.
    until_suspended(ring.node(0)).await;

    here.reopen().await;
    for gate in &there {
        gate.reopen().await;
    }
    until_certified(&lonely).await;
    assert_eq!(inside.expect_text().await, "kept", "nothing was lost in the meantime");
    ring.gate.as_ref().unwrap().reopen().await;
    until_database(&lonely, "ok").await;
    echo(&mut inside, "leased").await;
    until_database(ring.node(0), "ok").await;
    echo(&mut steady, "leased").await;
}

#[tokio::test]
async fn a_certified_node_that_stood_still_serves_nothing_more() {
    let ring = Ring::start(RingOptions::nodes(2).store(Store::GatedPostgres)).await;
    let (victim, other) = (ring.node(0), ring.node(1));
    let (key, mut inside) = own_room(&ring, victim).await;
    let before: i64 = inside.header("ringspan-epoch").parse().unwrap();
    ring.gate.as_ref().unwrap().shut().await;
    until_certified(victim).await;
    until_certified(other).await;
    echo(&mut inside, "by certificate").await;

    victim.freeze().await;
    inside.text("to a frozen node").await;
    until_suspended(other).await;
    ring.gate.as_ref().unwrap().reopen().await;
    let url = other.url(&format!("/rooms/{key}"));
    let mut taken = eventually("the session has a new owner", RECOVERY, async || {
        let ws = Ws::connect(&url, &[ALICE]).await.ok()?;
        (ws.header("ringspan-epoch").parse::<i64>().unwrap() > before).then_some(ws)
    })
    .await;
    echo(&mut taken, "to the new owner").await;

    victim.cont();
    let end = inside.data().await;
    assert!(matches!(&end, Received::Close(1012, _)), "it served, or broke off: {end:?}");
    assert_eq!(victim.wait_exit(RECOVERY).await, 1, "{}", victim.log());
    echo(&mut taken, "still there").await;
}
