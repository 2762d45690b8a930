//! What a leaving node does with turns that do not end, with what waits behind them, with
//! sockets that cannot come back, and with other nodes that leave at the same time.

use std::time::{Duration, Instant};

use ::http::Method;
use serde_json::{Value, json};

use crate::support::{
    ALICE, Node, Received, Ring, RingOptions, Ws, eventually,
    history::History,
    http,
    responses::{Turn, body, create, is_terminal, output_text, proves, user},
};

const SECONDS: Duration = Duration::from_secs(30);
const RESTART: (u16, &str) = (1012, "service restart");
const PATH: &str = "/v1/responses";

/// A ring whose nodes have other drain times than those of every test.
async fn ring(nodes: usize, settings: &[(&str, &str)]) -> Ring {
    let mut ring = Ring::prepare(RingOptions::nodes(nodes)).await;
    ring.nodes = std::mem::take(&mut ring.nodes)
        .into_iter()
        .map(|node| settings.iter().fold(node, |node, (name, value)| node.with(name, value)))
        .collect();
    ring.migrate().await;
    ring.start_nodes().await;
    ring
}

/// A socket on `edge` to a session that another node owns, after its first turn.
async fn owned_elsewhere<'a>(ring: &'a Ring, edge: &Node, name: &str) -> Talk<'a> {
    for n in 0..64 {
        let key = format!("{name}-{n}");
        let mut socket = Ws::open(&edge.url(PATH), &[ALICE, ("session-id", &key)]).await;
        let owner = ring.owner_of(&key).await;
        if owner.id != edge.id {
            let first = Turn::run(&mut socket, &create(&[user("first")], None)).await;
            return Talk { socket, key, owner, first: first.id() };
        }
    }
    panic!("{} owns all of 64 sessions", edge.id);
}

struct Talk<'a> {
    socket: Ws,
    key: String,
    owner: &'a Node,
    /// Id of the first response.
    first: String,
}

async fn until_draining(node: &Node) {
    eventually("the node drains", SECONDS, async || {
        (node.health().await?["draining"] == true).then_some(())
    })
    .await;
}

async fn drain(node: &Node, order: &Value) -> http::Answer {
    http::post(&format!("{}/api/v1/drain", node.admin_url), &[], order).await
}

fn end(close: (u16, &str)) -> Received {
    Received::Close(close.0, close.1.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_beyond_the_deadline_is_unknown_once_and_its_session_lives_on_at_the_heir() {
    let ring = ring(2, &[("RINGSPAN_DRAIN_TIMEOUT", "1s")]).await;
    let edge = ring.node(0);
    let mut talk = owned_elsewhere(&ring, edge, "endless").await;
    let endless = create(&[user("endless [deltas=4000] [delay=20ms]")], Some(&talk.first));
    talk.socket.json(&endless).await;
    let created = talk.socket.data().await.json();
    talk.owner.sigterm();
    let turn = Turn::read(&mut talk.socket).await;
    let error = turn.last().clone();
    assert_eq!(error["error"]["code"], "outcome_unknown", "{error}");
    assert_eq!(error["error"]["response_id"], created["response"]["id"]);
    let last = turn.events.iter().rev().find_map(|event| event["sequence_number"].as_u64());
    assert_eq!(error["error"]["last_sequence_number"].as_u64(), last, "the last one that came");
    // The same socket goes on from the turn before, at the heir.
    let next = create(&[user("second")], Some(&talk.first));
    let next = Turn::run(&mut talk.socket, &next).await;
    next.assert_answers(&["first".to_owned(), "second".to_owned()]);
    assert_eq!(talk.owner.wait_exit(SECONDS).await, 0, "{}", talk.owner.log());
    // Nobody can ask the owner any more: who stays says what became of the turn.
    let metrics = http::get(&format!("{}/metrics", edge.admin_url), &[]).await.text();
    for line in [
        "ringspan_severed_turns_total 1",
        "ringspan_errors_total{code=\"outcome_unknown\",blame=\"upstream\"} 1",
    ] {
        assert!(metrics.lines().any(|said| said == line), "{line} is not in\n{metrics}");
    }
    // The events of the severed response are there, and that nobody knows how it ended.
    let id = created["response"]["id"].as_str().unwrap();
    let url = format!("{}/{id}?stream=true&starting_after=2", edge.url(PATH));
    let events = http::open(Method::GET, &url, &[ALICE], "").await.unwrap().events().await.unwrap();
    // A socket counts every event, those left out over HTTP as well.
    let number = |event: &Value| event["sequence_number"].as_u64();
    let mut heard = turn.events;
    heard.retain(|event| number(event).is_none_or(|number| number > 2));
    assert_eq!(number(&events[0]), Some(3), "{:?}", events[0]);
    assert_eq!(events, heard);
    assert_eq!(events.last().unwrap()["error"]["code"], "outcome_unknown");
    History::read(&ring.sample_url).await.assert_no_double_dispatch();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_behind_a_running_turn_runs_at_the_heir_once() {
    let ring = ring(2, &[]).await;
    let edge = ring.node(0);
    let mut talk = owned_elsewhere(&ring, edge, "queued").await;
    let running = create(&[user("running [deltas=250] [delay=20ms]")], None);
    talk.socket.json(&running).await;
    let created = talk.socket.data().await.json();
    // Three ways to wait behind it.
    talk.socket.json(&create(&[user("by socket")], None)).await;
    let url = edge.url(PATH);
    let headers = [ALICE, ("session-id", talk.key.as_str()), ("content-type", "application/json")];
    let by_events = http::open(
        Method::POST,
        &url,
        &headers,
        body(&[user("by events")], None, true).to_string(),
    );
    let document = body(&[user("by document")], None, false);
    let by_document = http::post(&url, &headers, &document);
    let go = async {
        eventually("two wait behind it", SECONDS, async || {
            let session = ring.session(&talk.key).await;
            (session["local"]["turns_queued"] == 3).then_some(())
        })
        .await;
        talk.owner.sigterm();
        let mut turn = Turn::read(&mut talk.socket).await;
        turn.events.insert(0, created);
        turn.assert_answers(&["running [deltas=250] [delay=20ms]".to_owned()]);
        let turn = Turn::read(&mut talk.socket).await;
        turn.assert_answers(&["by socket".to_owned()]);
    };
    let by_events = async { Turn::of(by_events.await.unwrap().events().await.unwrap()) };
    let (by_events, by_document, ()) = tokio::join!(by_events, by_document, go);
    by_events.assert_answers(&["by events".to_owned()]);
    assert_eq!(by_document.status, 200, "{}", by_document.text());
    let text = output_text(&by_document.json());
    assert!(proves(&text, &["by document".to_owned()]), "{text}");
    assert_eq!(talk.owner.wait_exit(SECONDS).await, 0, "{}", talk.owner.log());
    let history = History::read(&ring.sample_url).await;
    history.assert_no_double_dispatch();
    history.assert_one_connection_each();
    let sockets = history.of_session(&talk.key);
    let counts: Vec<_> = sockets.iter().map(|it| it["creates"].as_array().unwrap().len()).collect();
    assert_eq!(counts, [2, 3], "what waited ran at the heir");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_waits_behind_refused_and_repeated_ones_runs_at_the_heir_and_they_do_not() {
    let ring = ring(2, &[("RINGSPAN_TURN_QUEUE", "1")]).await;
    let edge = ring.node(0);
    let mut talk = owned_elsewhere(&ring, edge, "refused").await;
    // In a lane of its own, or the repeat would be answered after what waits.
    let mut keyed = create(&[user("keyed")], None);
    keyed["stream_id"] = "aside".into();
    keyed["client_metadata"] = json!({ "idempotency_key": "once" });
    let repeated = Turn::run(&mut talk.socket, &keyed).await.id();
    let running = "running [deltas=250] [delay=20ms]";
    for create in [
        create(&[user(running)], None),
        create(&[user("waits")], None),
        create(&[user("refused")], None),
        keyed,
    ] {
        talk.socket.json(&create).await;
    }
    let mut ends = Vec::new();
    let mut next_end = async || loop {
        let event = talk.socket.data().await.json();
        if is_terminal(&event) {
            return event;
        }
    };
    ends.push(next_end().await);
    ends.push(next_end().await);
    assert!(ends.iter().any(|end| end["error"]["code"] == "queue_full"), "{ends:?}");
    assert!(ends.iter().any(|end| end["response"]["id"] == repeated.as_str()), "{ends:?}");
    talk.owner.sigterm();
    for text in [running, "waits"] {
        let end = next_end().await;
        let answer = output_text(&end["response"]);
        assert!(proves(&answer, &[text.to_owned()]), "{text}: {end}");
    }
    assert_eq!(talk.owner.wait_exit(SECONDS).await, 0, "{}", talk.owner.log());
    let history = History::read(&ring.sample_url).await;
    history.assert_no_double_dispatch();
    let sockets = history.of_session(&talk.key);
    let counts: Vec<_> = sockets.iter().map(|it| it["creates"].as_array().unwrap().len()).collect();
    assert_eq!(counts, [3, 1], "the refused one did not run");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_gets_no_fresh_time_and_a_signal_after_a_hook_does_not_stop_it() {
    let ring = ring(2, &[("RINGSPAN_DRAIN_TIMEOUT", "60s")]).await;
    let (edge, text) = (ring.node(0), "long [deltas=100] [delay=20ms]");
    let mut socket = Ws::open(&edge.url(PATH), &[ALICE, ("originator", "codex_exec")]).await;
    socket.json(&create(&[user(text)], None)).await;
    let created = socket.data().await.json();
    assert_eq!(drain(edge, &json!({})).await.json()["drain"], "accepted");
    until_draining(edge).await;
    // As a platform does after its hook.
    edge.sigterm();
    let mut turn = Turn::read(&mut socket).await;
    turn.events.insert(0, created);
    turn.assert_answers(&[text.to_owned()]);
    assert_eq!(socket.end().await, end(RESTART));
    assert_eq!(edge.wait_exit(SECONDS).await, 0, "{}", edge.log());

    let other = ring.node(1);
    let mut socket = Ws::open(&other.url(PATH), &[ALICE]).await;
    socket.json(&create(&[user("[hang]")], None)).await;
    socket.data().await.json();
    let begun = Instant::now();
    let forced = json!({ "force": true });
    assert_eq!(drain(other, &forced).await.json()["drain"], "accepted");
    assert_eq!(drain(other, &json!({ "within_seconds": 600 })).await.json()["drain"], "already");
    assert_eq!(drain(other, &json!({ "within_seconds": 4 })).await.json()["drain"], "tightened");
    assert_eq!(drain(other, &json!({ "within_seconds": 30 })).await.json()["drain"], "already");
    let turn = Turn::read(&mut socket).await;
    assert_eq!(turn.last()["error"]["code"], "outcome_unknown", "{:?}", turn.cut);
    assert_eq!(other.wait_exit(Duration::from_secs(10)).await, 0, "{}", other.log());
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_node_of_a_ring_drains_only_if_it_is_forced_to() {
    let ring = ring(2, &[]).await;
    let (first, last) = (ring.node(0), ring.node(1));
    assert_eq!(drain(first, &json!({ "force": 1 })).await.status, 400);
    assert_eq!(drain(first, &json!({})).await.status, 202);
    assert_eq!(first.wait_exit(SECONDS).await, 0);
    eventually("the other one knows", SECONDS, async || {
        (last.health().await?["members"] == 1).then_some(())
    })
    .await;
    let refused = drain(last, &json!({})).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["drain"]), (409, &json!("last_active")));
    assert_eq!(last.health().await.unwrap()["ready"], true);
    assert_eq!(drain(last, &json!({ "force": true })).await.status, 202);
    assert_eq!(last.wait_exit(SECONDS).await, 0, "{}", last.log());
}

/// Sockets without headers of Codex, one for each of `count` sessions.
async fn crowd(edge: &Node, count: usize) -> Vec<Ws> {
    let mut sockets = Vec::new();
    for n in 0..count {
        let key = format!("crowd-{n}");
        let mut socket = Ws::open(&edge.url(PATH), &[ALICE, ("session-id", &key)]).await;
        Turn::run(&mut socket, &create(&[user("first")], None)).await.id();
        sockets.push(socket);
    }
    sockets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_nodes_leave_at_once_and_every_session_moves_once_at_most() {
    let ring = ring(3, &[]).await;
    let stays = ring.node(2);
    let mut sockets = crowd(stays, 30).await;
    let before = epochs(&ring).await;
    for node in &ring.nodes[..2] {
        node.sigterm();
    }
    for socket in &mut sockets {
        Turn::run(socket, &create(&[user("in the drain")], None)).await.id();
    }
    for node in &ring.nodes[..2] {
        assert_eq!(node.wait_exit(ring.options.timing.drain()).await, 0, "{}", node.log());
    }
    for socket in &mut sockets {
        Turn::run(socket, &create(&[user("after the drain")], None)).await.id();
    }
    let moved = ring.nodes[..2].iter().map(|node| node.log().matches("handed over\"").count());
    let moved: usize = moved.sum();
    let elsewhere = before.iter().filter(|(_, owner)| owner != &stays.id).count();
    assert_eq!(moved, elsewhere, "each of them once");
    for session in ring.sessions().await {
        assert_eq!(session["owner_node"], stays.id.as_str(), "{session}");
    }
}

/// Key and owner of every live session.
async fn epochs(ring: &Ring) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let sessions = ring.sessions().await;
    sessions.iter().map(|it| (text(&it["key"]), text(&it["owner_node"]))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_rest_has_room_for_one_the_other_waits_until_the_first_is_back() {
    let ring = ring(3, &[("RINGSPAN_CAPACITY", "20"), ("RINGSPAN_DRAIN_TIMEOUT", "25s")]).await;
    let stays = ring.node(2);
    let mut sockets = crowd(stays, 36).await;
    eventually("loads are known", SECONDS, async || {
        let url = format!("{}/api/v1/ring", stays.admin_url);
        let members = http::get(&url, &[]).await.json()["members"].clone();
        let loads = members.as_array()?.iter().map(|member| member["load"].as_u64());
        (loads.sum::<Option<u64>>()? == 36).then_some(())
    })
    .await;
    let leavers = [ring.node(0), ring.node(1)];
    for node in leavers {
        node.sigterm();
    }
    // The one that registered first goes first.
    let (first, second) = eventually("one has gone", SECONDS, async || match leavers {
        [a, b] if !a.is_running() => Some((a, b)),
        [a, b] if !b.is_running() => Some((b, a)),
        _ => None,
    })
    .await;
    assert_eq!(first.wait_exit(SECONDS).await, 0, "{}", first.log());
    assert!(second.is_running(), "it waits, and serves: {}", second.log());
    for socket in &mut sockets {
        Turn::run(socket, &create(&[user("while one waits")], None)).await.id();
    }
    first.start();
    assert_eq!(second.wait_exit(SECONDS).await, 0, "{}", second.log());
    for socket in &mut sockets {
        Turn::run(socket, &create(&[user("after both")], None)).await.id();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_ring_that_is_told_to_go_ends_what_runs_and_says_when_to_come_back() {
    let ring = ring(3, &[]).await;
    let text = "running [deltas=100] [delay=20ms]";
    let mut sockets = Vec::new();
    for node in &ring.nodes {
        let headers = [ALICE, ("session-id", node.id.as_str()), ("originator", "codex_exec")];
        let mut socket = Ws::open(&node.url(PATH), &headers).await;
        socket.json(&create(&[user(text)], None)).await;
        let created = socket.data().await.json();
        sockets.push((socket, created));
    }
    for node in &ring.nodes {
        node.sigterm();
    }
    for (mut socket, created) in sockets {
        let mut turn = Turn::read(&mut socket).await;
        turn.events.insert(0, created);
        turn.assert_answers(&[text.to_owned()]);
        assert_eq!(socket.end().await, end(RESTART));
    }
    for node in &ring.nodes {
        assert_eq!(node.wait_exit(SECONDS).await, 0, "{}", node.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_of_an_sdk_works_through_the_drain_of_its_node_and_codex_is_closed_at_once() {
    let settings = [("RINGSPAN_DRAIN_TIMEOUT", "8s"), ("RINGSPAN_DRAIN_DWELL", "1s")];
    let ring = ring(2, &settings).await;
    let edge = ring.node(0);
    let sdk = [ALICE, ("session-id", "sdk"), ("user-agent", "AsyncOpenAI/Python 3.52.0")];
    let mut sdk = Ws::open(&edge.url(PATH), &sdk).await;
    let mut said = vec!["first".to_owned()];
    let mut previous = Turn::run(&mut sdk, &create(&[user("first")], None)).await.id();
    let codex = [ALICE, ("session-id", "codex"), ("originator", "codex_exec")];
    let mut codex = Ws::open(&edge.url(PATH), &codex).await;
    Turn::run(&mut codex, &create(&[user("of codex")], None)).await.id();
    edge.sigterm();
    let begun = Instant::now();
    // Out of balancing before anything is closed.
    eventually("it is not ready", SECONDS, async || {
        (edge.health().await?["ready"] == false).then_some(())
    })
    .await;
    assert_eq!(codex.end().await, end(RESTART), "between turns");
    let closed = begun.elapsed();
    assert!(closed >= Duration::from_secs(1), "balancers have not noticed yet: {closed:?}");
    assert!(closed < Duration::from_secs(5), "{closed:?}");
    // The other one goes on, across the move of its session, until the last call.
    let mut turns = 0;
    let close = loop {
        let text = format!("turn {turns} of a kept socket [deltas=20] [delay=10ms]");
        let sent = sdk.send(create(&[user(&text)], Some(&previous)).to_string().into()).await;
        let turn = match sent {
            Ok(()) => Turn::read(&mut sdk).await,
            Err(error) => panic!("{error}"),
        };
        if let Some(close) = turn.cut {
            assert!(turn.events.is_empty(), "cut in mid-turn: {:?}", turn.events);
            break close;
        }
        said.push(text);
        turn.assert_answers(&said);
        previous = turn.id();
        turns += 1;
    };
    assert_eq!(close, end(RESTART));
    assert!(begun.elapsed() > Duration::from_secs(5), "kept for {:?} only", begun.elapsed());
    assert!(turns > 5, "{turns} turns");
    assert_eq!(edge.wait_exit(SECONDS).await, 0, "{}", edge.log());
    History::read(&ring.sample_url).await.assert_no_double_dispatch();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_heir_that_stands_still_holds_up_no_drain() {
    let ring = ring(3, &[]).await;
    let edge = ring.node(0);
    let mut talk = owned_elsewhere(&ring, edge, "still").await;
    let still = ring.others(talk.owner).into_iter().find(|node| node.id != edge.id).unwrap();
    still.freeze().await;
    talk.owner.sigterm();
    let next = create(&[user("second")], Some(&talk.first));
    let next = Turn::run(&mut talk.socket, &next).await;
    next.assert_answers(&["first".to_owned(), "second".to_owned()]);
    assert_eq!(talk.owner.wait_exit(ring.options.timing.drain()).await, 0, "{}", talk.owner.log());
    still.cont();
    assert!(is_terminal(next.last()));
}
