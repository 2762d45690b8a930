//! Turns as their clients see them, where something is slow, lost or misunderstood.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use node::{LEASE, Neighbours};
use tokio_tungstenite::tungstenite;

use super::*;

fn create(input: &str) -> String {
    format!(r#"{{"type":"response.create","model":"m","store":false,"input":"{input}"}}"#)
}

#[tokio::test]
async fn turns_that_were_asked_for_in_one_go_are_told_in_their_order_though_no_copy_is_taken() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let store = Arc::new(Memory::default());
    let neighbours = Arc::new(Neighbours::default());
    let node = |name| {
        let heirs = Arc::clone(&neighbours);
        Node::beside(&store, name, "127.0.0.1:1", limits(), LEASE, heirs, [&route])
    };
    let (a, b) = (node("a").await, node("b").await);
    neighbours.join(&[&a, &b]);
    neighbours.silent.lock().insert(b.me);
    eventually("they know each other", async || a.ring.borrow().alive().count() == 2).await;
    let mut client = Reader::new(a.attach(&wish(&route, "thread")).await.unwrap().link);
    for input in ["first", "second", "third"] {
        client.send(&create(&format!("[deltas=5][delay=5ms] {input}")));
    }
    told(&mut client, 3).await;
}

#[tokio::test]
async fn an_event_that_the_upstream_does_not_know_harms_no_turn() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let mut client = Reader::new(node.attach(&wish(&route, "thread")).await.unwrap().link);
    client.send(&create("[deltas=30][delay=5ms] long"));
    let long = client.until("response.created").await["response"]["id"].clone();
    client.send(r#"{"type":"response.cancel"}"#);
    client.send(&create("short"));
    client.until("error").await;
    let done = client.until("response.completed").await;
    assert_eq!(done["response"]["id"], long);
    let next = client.until("response.created").await["response"]["id"].clone();
    let done = client.until("response.completed").await;
    assert_eq!(done["response"]["id"], next);
    let text = done["response"]["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("short"), "{text}");
    assert_eq!(gate.dials(), 1);
}

#[tokio::test]
async fn a_resent_request_is_told_that_the_first_events_of_its_turn_are_gone() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let small = crate::config::Limits { replay_bytes: 2000, ..limits() };
    let node = Node::start(&Arc::new(Memory::default()), "a", small, [&route]).await;
    let attach = wish(&route, "thread");
    let create = create("[deltas=1000][bytes=500][delay=2ms] long");
    let mut one = Reader::new(node.attach(&attach).await.unwrap().link);
    one.send(&create);
    for _ in 0..10 {
        one.until("response.output_text.delta").await;
    }
    drop(one);
    let mut back = Reader::new(node.attach(&attach).await.unwrap().link);
    back.send(&create);
    let first: serde_json::Value = serde_json::from_str(&back.text().await).unwrap();
    assert_eq!(first["error"]["code"], "turn_in_progress", "{first}");
}

#[tokio::test]
async fn a_client_that_asks_twice_for_a_running_response_reads_it_once() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let attach = wish(&route, "thread");
    let mut one = Reader::new(node.attach(&attach).await.unwrap().link);
    one.send(&create("[deltas=30][delay=5ms] long"));
    let created = one.until("response.created").await;
    let mut two = Reader::new(node.attach(&attach).await.unwrap().link);
    for _ in 0..3 {
        let id = created["response"]["id"].as_str().unwrap();
        two.send(&format!(r#"{{"type":"ringspan.resume","response_id":"{id}"}}"#));
    }
    two.send(&create("next"));
    two.until("response.created").await;
    let again = two.until("response.created").await;
    assert_ne!(again["response"]["id"], created["response"]["id"], "told a second time");
}

#[tokio::test]
async fn what_was_said_before_the_upstream_was_lost_can_be_asked_for() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let attach = wish(&route, "thread");
    let mut client = Reader::new(node.attach(&attach).await.unwrap().link);
    client.send(&create("[deltas=20][delay=2ms][close=0][close_after=5] long"));
    let created = client.until("response.created").await;
    let id = created["response"]["id"].as_str().unwrap();
    let end = client.until("error").await;
    assert_eq!(end["error"]["code"], "outcome_unknown");
    assert_eq!(end["error"]["response_id"], id);
    let mut later = Reader::new(node.attach(&attach).await.unwrap().link);
    later.send(&format!(r#"{{"type":"ringspan.resume","response_id":"{id}"}}"#));
    assert_eq!(later.until("response.created").await, created);
    let mut last = None;
    let again = loop {
        let event: serde_json::Value = serde_json::from_str(&later.text().await).unwrap();
        if event["type"] == "error" {
            break event;
        }
        last = event["sequence_number"].as_u64().or(last);
    };
    assert_eq!(again, end);
    assert_eq!(again["error"]["last_sequence_number"].as_u64(), last, "the last one that came");
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_its_whole_answer_beside_one_that_is_idle() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let limits = crate::config::Limits { replay_bytes: 256 * 1024, ..limits() };
    let node = Node::start(&Arc::new(Memory::default()), "a", limits, [&route]).await;
    let _idle = node.attach(&wish(&route, "thread")).await.unwrap().link;
    let mut slow = Reader::new(node.attach(&wish(&route, "thread")).await.unwrap().link);
    slow.send(&create("[deltas=100][bytes=8192] long"));
    let id = slow.until("response.created").await["response"]["id"].clone();
    // What a fast reader would need for all of it, several times.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(slow.until("response.completed").await["response"]["id"], id);
}

#[tokio::test]
async fn a_client_that_falls_behind_another_one_is_told_that_it_was_too_slow() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let limits = crate::config::Limits { replay_bytes: 256 * 1024, ..limits() };
    let node = Node::start(&Arc::new(Memory::default()), "a", limits, [&route]).await;
    let mut fast = Reader::new(node.attach(&wish(&route, "thread")).await.unwrap().link);
    let mut slow = Reader::new(node.attach(&wish(&route, "thread")).await.unwrap().link);
    let create = |lane: &str, said: &str| {
        format!(
            r#"{{"type":"response.create","model":"m","store":false,"stream_id":"{lane}","input":"{said}"}}"#
        )
    };
    slow.send(&create("slow", "[deltas=100][bytes=8192][delay=1ms]"));
    slow.until("response.created").await;
    fast.send(&create("fast", "[deltas=300][delay=2ms]"));
    fast.until("response.completed").await;
    let last = loop {
        if let Err(last) = slow.next().await {
            break last;
        }
    };
    let Some(Frame::Failed(error)) = last else { panic!("{last:?}") };
    assert_eq!(error.code, crate::error::Code::OutcomeUnknown);
    assert!(error.message.contains("too slowly"), "{error:?}");
}

#[tokio::test]
async fn a_client_that_does_not_read_for_long_gets_its_whole_answer_when_it_reads_again() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let idle = Duration::from_secs(1);
    let short =
        crate::config::Limits { turn_idle_timeout: idle, link_window_bytes: 4096, ..limits() };
    let node = Node::start(&Arc::new(Memory::default()), "a", short, [&route]).await;
    let attach = wish(&route, "thread");
    let mut client = Reader::new(node.attach(&attach).await.unwrap().link);
    client.send(&create("[deltas=500][bytes=1000] long"));
    client.until("response.created").await;
    tokio::time::sleep(2 * idle).await;
    client.until("response.completed").await;
}

/// An upstream that takes one turn, names its response and says nothing more but pings.
async fn pinging() -> http::Uri {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        socket.next().await.unwrap().unwrap();
        let created = r#"{"type":"response.created","response":{"id":"r1"}}"#;
        socket.send(tungstenite::Message::text(created)).await.unwrap();
        while socket.send(tungstenite::Message::Ping(Bytes::new())).await.is_ok() {
            tokio::time::sleep(IDLE / 10).await;
        }
    });
    url
}

/// As long as a turn may be silent here.
const IDLE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_turn_of_which_nothing_is_heard_ends_though_its_upstream_pings() {
    let gate = Gate::open(SampleAuth::Open).await;
    let mut route = route(Profile::Responses, &gate);
    Arc::make_mut(&mut route.upstream).endpoints =
        vec![crate::config::Endpoint::sole(pinging().await)];
    let route = Arc::new(route);
    let short = crate::config::Limits { turn_idle_timeout: IDLE, ..limits() };
    let node = Node::start(&Arc::new(Memory::default()), "a", short, [&route]).await;
    let mut client = Reader::new(node.attach(&wish(&route, "thread")).await.unwrap().link);
    client.send(&create("silent"));
    let end = client.until("error").await;
    assert_eq!(end["error"]["code"], "outcome_unknown");
    assert_eq!(end["error"]["response_id"], "r1");
}

#[tokio::test]
async fn a_turn_of_which_nothing_is_heard_ends_though_other_lanes_are_busy() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let short = crate::config::Limits { turn_idle_timeout: IDLE, ..limits() };
    let node = Node::start(&Arc::new(Memory::default()), "a", short, [&route]).await;
    let mut client = Reader::new(node.attach(&wish(&route, "thread")).await.unwrap().link);
    let in_lane = |lane: &str, input: &str| {
        create(input).replacen('{', &format!(r#"{{"stream_id":"{lane}","#), 1)
    };
    client.send(&in_lane("x", "[hang] silent"));
    client.send(&in_lane("y", "[deltas=40][delay=100ms] long"));
    let end = client.until("error").await;
    assert_eq!(
        (&end["stream_id"], &end["error"]["code"]),
        (&"x".into(), &"outcome_unknown".into())
    );
    // What is asked now waits for a connection that has not heard of the silent turn.
    client.send(&in_lane("x", "next"));
    let ends = [client.until("response.completed").await, client.until("response.completed").await];
    assert_eq!(ends.map(|end| end["stream_id"].clone()), ["y", "x"]);
    assert_eq!(gate.dials(), 2);
}

/// Responses of which a client is told begin and end, in that order, until so many have ended.
async fn told(client: &mut Reader, turns: usize) -> Vec<(String, String)> {
    let mut told = Vec::new();
    while told.len() < 2 * turns {
        let event: serde_json::Value = serde_json::from_str(&client.text().await).unwrap();
        let kind = event["type"].as_str().unwrap();
        if matches!(kind, "response.created" | "response.completed") {
            told.push((kind.to_owned(), event["response"]["id"].as_str().unwrap().to_owned()));
        }
    }
    for turn in told.chunks(2) {
        assert_eq!((&*turn[0].0, &*turn[1].0), ("response.created", "response.completed"));
        assert_eq!(turn[0].1, turn[1].1, "events of another turn came between: {told:?}");
    }
    told
}

#[tokio::test]
async fn a_turn_that_is_replayed_by_its_key_waits_for_the_one_that_was_asked_for_before() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let mut client = Reader::new(node.attach(&wish(&route, "thread")).await.unwrap().link);
    let key = r#"{"client_metadata":{"idempotency_key":"k"},"#;
    let keyed = create("keyed").replacen('{', key, 1);
    client.send(&keyed);
    let first = told(&mut client, 1).await;
    client.send(&create("[deltas=30][delay=5ms] long"));
    client.send(&keyed);
    let then = told(&mut client, 2).await;
    assert_eq!(then[2..], first, "the same answer, after the other one");
    assert_eq!(gate.dials(), 1);
}

#[tokio::test]
async fn a_turn_that_a_client_came_back_for_is_told_when_the_one_that_it_asked_for_before_has_ended()
 {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let narrow = crate::config::Limits { link_window_bytes: 4096, ..limits() };
    let node = Node::start(&Arc::new(Memory::default()), "a", narrow, [&route]).await;
    let attach = wish(&route, "thread");
    let mut one = Reader::new(node.attach(&attach).await.unwrap().link);
    let long = create("[deltas=50][bytes=1000][delay=5ms] long");
    one.send(&long);
    let running = one.until("response.created").await["response"]["id"].clone();
    let mut two = Reader::new(node.attach(&attach).await.unwrap().link);
    two.send(&create("other"));
    two.send(&long);
    let stats = node.registry.get(attach.session).unwrap().stats;
    eventually("both wait", async || stats.turns_queued.load(Relaxed) == 2).await;
    drop(one);
    let told = told(&mut two, 2).await;
    assert_eq!(told[2].1, running, "what ran is not run again, and not told in between");
}
