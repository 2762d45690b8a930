//! The Responses API over WebSocket, through any node.

use serde_json::{Value, json};

use crate::support::{
    Received, Ring, RingOptions, Ws, eventually,
    history::History,
    http,
    responses::{Turn, create, is_terminal, user},
};

const ALICE: &str = "Bearer alice";
const BOB: &str = "Bearer bob";

async fn open(ring: &Ring, node: usize, credential: &str, session: &str) -> Ws {
    let headers = [("authorization", credential), ("session-id", session)];
    Ws::open(&ring.node(node).url("/v1/responses"), &headers).await
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

#[tokio::test]
async fn turns_on_one_socket_continue_each_other() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    for node in 0..2 {
        let session = format!("chain-{node}");
        let mut socket = open(&ring, node, ALICE, &session).await;
        assert_eq!(socket.header("openai-model"), "gpt-5.5", "{:?}", socket.headers);
        let (mut said, mut previous) = (Vec::new(), None);
        for n in 0..5 {
            said.push(format!("turn {n} on node {node} [deltas=20]"));
            let event = create(&[user(&said[n])], previous.as_deref());
            let turn = Turn::run(&mut socket, &event).await;
            turn.assert_answers(&said);
            previous = Some(turn.id());
        }
        assert_eq!(History::read(&ring.sample_url).await.of_session(&session).len(), 1);
    }
}

#[tokio::test]
async fn a_conversation_goes_on_through_another_node_on_the_same_upstream_connection() {
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let (mut said, mut previous) = (Vec::new(), None);
    for node in [0, 1, 2, 0] {
        let mut socket = open(&ring, node, ALICE, "roaming").await;
        said.push(format!("through node {node}, text {}", said.len()));
        let event = create(&[user(said.last().unwrap())], previous.as_deref());
        let turn = Turn::run(&mut socket, &event).await;
        turn.assert_answers(&said);
        previous = Some(turn.id());
    }
    let history = History::read(&ring.sample_url).await;
    let connections = history.of_session("roaming");
    assert_eq!(connections.len(), 1, "{connections:?}");
    assert_eq!(connections[0]["creates_total"], 4);
    history.assert_no_double_dispatch();
}

#[tokio::test]
async fn one_socket_goes_back_and_forth_between_two_conversations() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let names = ["back", "forth"];
    let (mut said, mut previous) = ([vec![], vec![]], [String::new(), String::new()]);
    for (at, name) in names.iter().enumerate() {
        said[at].push(format!("{name} begins"));
        let mut socket = open(&ring, at, ALICE, name).await;
        let turn = Turn::run(&mut socket, &create(&[user(&said[at][0])], None)).await;
        previous[at] = turn.id();
    }
    let mut socket =
        Ws::open(&ring.node(0).url("/v1/responses"), &[("authorization", ALICE)]).await;
    for n in 0..6 {
        let at = n % 2;
        said[at].push(format!("{} goes on, {n}", names[at]));
        let event = create(&[user(said[at].last().unwrap())], Some(&previous[at]));
        let turn = Turn::run(&mut socket, &event).await;
        turn.assert_answers(&said[at]);
        previous[at] = turn.id();
    }
}

#[tokio::test]
async fn a_prewarmed_response_is_continued() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let mut socket = open(&ring, 0, ALICE, "warm").await;
    let mut warm = create(&[user("warm")], None);
    warm["generate"] = false.into();
    let warmed = Turn::run(&mut socket, &warm).await;
    let turn = Turn::run(&mut socket, &create(&[user("go")], Some(&warmed.id()))).await;
    turn.assert_answers(&texts(&["warm", "go"]));
}

#[tokio::test]
async fn lanes_run_at_the_same_time_and_each_in_order() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let mut socket = open(&ring, 1, ALICE, "lanes").await;
    for (lane, text) in [("slow", "slow one [deltas=200] [delay=10ms]"), ("quick", "quick one")] {
        let mut event = create(&[user(text)], None);
        event["stream_id"] = lane.into();
        socket.json(&event).await;
    }
    let mut of_lane = std::collections::BTreeMap::<String, Vec<Value>>::new();
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let event = socket.data().await.json();
        let lane = event["stream_id"].as_str().expect("every event names its lane").to_owned();
        if is_terminal(&event) {
            ended.push(lane.clone());
        }
        of_lane.entry(lane).or_default().push(event);
    }
    assert_eq!(ended, ["quick", "slow"], "the quick lane does not wait for the slow one");
    for (lane, text) in [("slow", "slow one [deltas=200] [delay=10ms]"), ("quick", "quick one")] {
        Turn::of(of_lane.remove(lane).unwrap()).assert_answers(&texts(&[text]));
    }
}

#[tokio::test]
async fn creates_of_one_lane_wait_for_each_other() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let mut socket = open(&ring, 0, ALICE, "queue").await;
    for n in 0..5 {
        socket.json(&create(&[user(&format!("queued {n} [deltas=3] [delay=5ms]"))], None)).await;
    }
    for n in 0..5 {
        let turn = Turn::read(&mut socket).await;
        turn.assert_answers(&[format!("queued {n} [deltas=3] [delay=5ms]")]);
    }
}

#[tokio::test]
async fn an_interrupt_ends_its_response_and_the_socket_goes_on() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    for node in 0..2 {
        let mut socket = open(&ring, node, ALICE, &format!("interrupt-{node}")).await;
        socket.json(&create(&[user("long [deltas=5000] [delay=10ms]")], None)).await;
        let created = socket.data().await.json();
        assert_eq!(created["type"], "response.created");
        let id = &created["response"]["id"];
        socket.json(&json!({ "type": "response.interrupt", "response_id": id })).await;
        let turn = Turn::read(&mut socket).await;
        assert_eq!(turn.last()["type"], "response.incomplete", "{}", turn.last());
        assert_eq!(turn.last()["response"]["incomplete_details"]["reason"], "interrupted");
        let after = Turn::run(&mut socket, &create(&[user("after")], None)).await;
        after.assert_answers(&texts(&["after"]));
    }
}

#[tokio::test]
async fn a_steered_response_is_followed_by_its_successor() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let mut socket = open(&ring, 1, ALICE, "steer").await;
    socket.json(&create(&[user("long [deltas=5000] [delay=10ms]")], None)).await;
    let id = socket.data().await.json()["response"]["id"].clone();
    let steer = json!({
        "type": "response.steer", "previous_response_id": id,
        "input": [user("the other way")],
    });
    socket.json(&steer).await;
    let mut kinds = Vec::new();
    let last = loop {
        let event = socket.data().await.json();
        kinds.push(event["type"].as_str().unwrap().to_owned());
        if event["type"] == "response.completed" || event["type"] == "error" {
            break event;
        }
    };
    assert!(last.to_string().contains("the other way"), "{last}");
    assert!(kinds.contains(&"response.steer.accepted".to_owned()), "{kinds:?}");
}

#[tokio::test]
async fn what_is_not_json_gets_an_error_event_with_a_status() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    for node in 0..2 {
        let mut socket = open(&ring, node, ALICE, &format!("bad-{node}")).await;
        for bad in ["{\"type\":", "[]", "{\"type\":\"response.nonsense\"}"] {
            socket.text(bad).await;
            let event = socket.data().await.json();
            assert_eq!(event["type"], "error", "{bad}: {event}");
            assert_eq!(event["status"], 400, "{bad}: {event}");
            assert_eq!(event["error"]["code"], "invalid_request", "{bad}: {event}");
        }
        let turn = Turn::run(&mut socket, &create(&[user("good")], None)).await;
        turn.assert_answers(&texts(&["good"]));
    }
}

#[tokio::test]
async fn an_unknown_previous_response_is_said_to_be_unknown() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    for node in 0..2 {
        let mut socket = open(&ring, node, ALICE, &format!("unknown-{node}")).await;
        let event = create(&[user("x")], Some("resp_00000000000000000000000000000000"));
        let turn = Turn::run(&mut socket, &event).await;
        let last = turn.last();
        assert_eq!(last["status"], 400, "{last}");
        assert_eq!(last["error"]["code"], "previous_response_not_found", "{last}");
        let turn = Turn::run(&mut socket, &create(&[user("y")], None)).await;
        turn.assert_answers(&texts(&["y"]));
    }
}

#[tokio::test]
async fn nobody_reaches_the_session_or_the_response_of_another_principal() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let mut alice = open(&ring, 0, ALICE, "same-key").await;
    let of_alice = Turn::run(&mut alice, &create(&[user("alice's secret")], None)).await;
    let mut bob = open(&ring, 1, BOB, "same-key").await;
    let stolen = create(&[user("what did she say?")], Some(&of_alice.id()));
    let turn = Turn::run(&mut bob, &stolen).await;
    assert_eq!(turn.last()["error"]["code"], "previous_response_not_found", "{}", turn.last());
    let mut of_bob = Turn::run(&mut bob, &create(&[user("bob's own")], None)).await;
    of_bob.assert_answers(&texts(&["bob's own"]));
    // Without a key of his own, her response id leads him nowhere either.
    let url = ring.node(1).url("/v1/responses");
    let mut keyless = Ws::open(&url, &[("authorization", BOB)]).await;
    of_bob = Turn::run(&mut keyless, &stolen).await;
    assert_eq!(of_bob.last()["error"]["code"], "previous_response_not_found");
    let history = History::read(&ring.sample_url).await;
    let credentials: std::collections::BTreeSet<_> =
        history.of_session("same-key").iter().map(|it| it["credential"].to_string()).collect();
    assert_eq!(credentials.len(), 2, "each principal has an upstream connection of its own");
    history.assert_one_connection_each();
}

#[tokio::test]
async fn an_event_of_a_foreign_response_does_not_reach_the_client() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let mut socket = open(&ring, 0, ALICE, "lied-to").await;
    let first = Turn::run(&mut socket, &create(&[user("one [lie] [deltas=20]")], None)).await;
    first.assert_answers(&texts(&["one [lie] [deltas=20]"]));
    let second = Turn::run(&mut socket, &create(&[user("two")], Some(&first.id()))).await;
    second.assert_answers(&texts(&["one [lie] [deltas=20]", "two"]));
}

#[tokio::test]
async fn a_client_that_vanishes_in_mid_turn_costs_nobody_else_anything() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let mut stayer = open(&ring, 0, ALICE, "stayer").await;
    let long = "long [deltas=100] [delay=10ms]";
    stayer.json(&create(&[user(long)], None)).await;
    for n in 0..5 {
        let mut leaver = open(&ring, n % 2, ALICE, &format!("leaver-{n}")).await;
        leaver.json(&create(&[user("gone [deltas=1000] [delay=10ms]")], None)).await;
        assert_eq!(leaver.data().await.json()["type"], "response.created");
    }
    Turn::read(&mut stayer).await.assert_answers(&texts(&[long]));
}

#[tokio::test]
async fn a_resend_after_a_reconnect_attaches_to_the_turn_that_runs() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    // Long enough to be still under way when it is sent again, however busy the machine is.
    let text = "again [deltas=600] [delay=10ms]";
    let event = create(&[user(text)], None);
    let mut first = open(&ring, 0, ALICE, "resent").await;
    first.json(&event).await;
    for _ in 0..20 {
        first.data().await.json();
    }
    drop(first);
    let mut second = open(&ring, 1, ALICE, "resent").await;
    let turn = Turn::run(&mut second, &event).await;
    turn.assert_answers(&texts(&[text]));
    let history = History::read(&ring.sample_url).await;
    history.assert_no_double_dispatch();
    history.assert_one_connection_each();
}

/// How the upstream ended the turns of a session, in order.
async fn endings(ring: &Ring, session: &str) -> Vec<String> {
    let (_, mut creates) = History::read(&ring.sample_url).await.facts();
    creates.retain(|create| create.session == session);
    creates.sort_by_key(|create| create.at);
    creates.into_iter().map(|create| create.outcome).collect()
}

#[tokio::test]
async fn an_upstream_that_dies_before_any_output_is_replaced_unseen() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    for (n, how) in ["[close=1011]", "[close=0]", "[reset]"].into_iter().enumerate() {
        let session = format!("dying-{n}");
        let mut socket = open(&ring, 1, ALICE, &session).await;
        let said = texts(&["before", &format!("hello {how} [close_first] [once]"), "next"]);
        let mut previous = None;
        for (at, text) in said.iter().enumerate() {
            let event = create(&[user(text)], previous.as_deref());
            let turn = Turn::run(&mut socket, &event).await;
            turn.assert_answers(&said[..=at]);
            previous = Some(turn.id());
        }
        let endings = endings(&ring, &session).await;
        assert_eq!(endings, ["completed", "closed", "completed", "completed"], "{how}");
    }
}

#[tokio::test]
async fn an_upstream_that_dies_after_some_output_leaves_the_outcome_unknown_and_says_so_once() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    for (n, how) in ["[close=1011]", "[close=0]"].into_iter().enumerate() {
        let session = format!("dead-{n}");
        let mut socket = open(&ring, 1, ALICE, &session).await;
        let event = create(&[user(&format!("hello {how} [close_after=2]"))], None);
        let turn = Turn::run(&mut socket, &event).await;
        let error = &turn.last()["error"];
        assert_eq!(error["code"], "outcome_unknown", "{error}");
        assert_eq!(error["response_id"], turn.events[0]["response"]["id"], "{error}");
        let turn = Turn::run(&mut socket, &create(&[user("next")], None)).await;
        turn.assert_answers(&texts(&["next"]));
        assert_eq!(endings(&ring, &session).await, ["closed", "completed"], "{how}");
    }
}

/// Waits until the upstream has ended all connections of a session.
async fn until_ended(ring: &Ring, session: &str) {
    eventually("the upstream ended the connection", http::PATIENCE, async || {
        let history = History::read(&ring.sample_url).await;
        history.of_session(session).iter().all(|it| it["open"] == false).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_its_upstream_ends_for_its_age_is_replaced_unseen() {
    let options = RingOptions::nodes(2).sample(&["--max-connection-age", "300ms"]);
    let ring = Ring::start(options).await;
    let mut socket = open(&ring, 1, ALICE, "aged").await;
    let (mut said, mut previous) = (Vec::new(), None);
    for n in 1..=3 {
        said.push(format!("on connection {n}"));
        let event = create(&[user(&said[n - 1])], previous.as_deref());
        let turn = Turn::run(&mut socket, &event).await;
        // With the whole conversation, which no later connection has heard.
        turn.assert_answers(&said);
        previous = Some(turn.id());
        until_ended(&ring, "aged").await;
        let told = socket.next_now();
        assert!(matches!(told, None | Some(Received::Ping(_))), "the client was told: {told:?}");
    }
    assert_eq!(endings(&ring, "aged").await, ["completed"; 3]);
}

#[tokio::test]
async fn a_turn_that_ends_with_its_aged_connection_is_told_so_once_and_the_conversation_goes_on() {
    let options = RingOptions::nodes(2).sample(&["--max-connection-age", "2s", "--cut-at-age"]);
    let ring = Ring::start(options).await;
    let mut socket = open(&ring, 1, ALICE, "cut").await;
    let first = Turn::run(&mut socket, &create(&[user("one")], None)).await;
    first.assert_answers(&texts(&["one"]));
    let id = first.id();
    let cut = Turn::run(&mut socket, &create(&[user("two [hang]")], Some(&id))).await;
    let last = cut.last();
    assert_eq!(last["error"]["code"], "websocket_connection_limit_reached", "{last}");
    assert_eq!(last["status"], 400, "{last}");
    let third = Turn::run(&mut socket, &create(&[user("three")], Some(&id))).await;
    third.assert_answers(&texts(&["one", "three"]));
    assert_eq!(endings(&ring, "cut").await, ["completed", "aged", "completed"]);
}

#[tokio::test]
async fn models_pass_through_every_node() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    for node in &ring.nodes {
        let answer = http::get(&node.url("/v1/models"), &[("authorization", ALICE)]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["data"][0]["id"], "gpt-5.5");
    }
}

#[tokio::test]
async fn an_upstream_that_closes_an_idle_connection_costs_no_turn() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let mut socket = open(&ring, 0, ALICE, "idle-close").await;
    let first = Turn::run(&mut socket, &create(&[user("one [close=1011]")], None)).await;
    assert!(first.cut.is_none(), "the client's socket stays: {first:?}");
    eventually("the sample forgot the connection", http::PATIENCE, async || {
        let history = History::read(&ring.sample_url).await;
        history.of_session("idle-close").iter().any(|it| it["open"] == false).then_some(())
    })
    .await;
    let second = Turn::run(&mut socket, &create(&[user("two")], None)).await;
    second.assert_answers(&texts(&["two"]));
}

#[tokio::test]
async fn a_binary_message_is_refused() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let mut socket = open(&ring, 0, ALICE, "binary").await;
    socket.send(b"\x00\x01".to_vec().into()).await.unwrap();
    match socket.data().await {
        Received::Close(code, _) => assert_eq!(code, 1003),
        event => assert_eq!(event.json()["status"], 400),
    }
}
