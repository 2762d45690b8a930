//! The Responses API over HTTP: events or one JSON document, from the same sessions.

use ::http::Method;
use serde_json::json;

use crate::support::{
    Ring, RingOptions, Ws,
    history::History,
    http,
    responses::{Turn, body, create, output_text, proves, user},
};

const ALICE: (&str, &str) = ("authorization", "Bearer alice");
const BOB: (&str, &str) = ("authorization", "Bearer bob");

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// One streamed turn.
async fn stream(url: &str, headers: &[(&str, &str)], body: &serde_json::Value) -> Turn {
    let mut headers = headers.to_vec();
    headers.extend([("content-type", "application/json"), ("accept", "text/event-stream")]);
    let answer = http::open(Method::POST, url, &headers, body.to_string()).await.unwrap();
    assert_eq!(answer.status, 200);
    let kind = answer.headers["content-type"].to_str().unwrap();
    assert!(kind.starts_with("text/event-stream"), "{kind}");
    Turn::of(answer.events().await.unwrap())
}

#[tokio::test]
async fn a_streamed_turn_is_whole_through_every_node() {
    let ring = Ring::start(RingOptions::nodes(3)).await;
    for (n, node) in ring.nodes.iter().enumerate() {
        let text = format!("streamed {n} [deltas=50]");
        let session = format!("sse-{n}");
        let headers = [ALICE, ("session-id", session.as_str())];
        let create = body(&[user(&text)], None, true);
        let turn = stream(&node.url("/v1/responses"), &headers, &create).await;
        turn.assert_answers(&[text]);
        // SDKs count: a number that is left out looks like a lost event.
        let numbers = turn.events.iter().map(|event| event["sequence_number"].as_u64().unwrap());
        assert!(numbers.clone().eq(0..numbers.len() as u64), "{:?}", numbers.collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_turn_without_streaming_is_one_json_document() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    for (n, node) in ring.nodes.iter().enumerate() {
        let text = format!("whole {n}");
        let create = body(&[user(&text)], None, false);
        let answer = http::post(&node.url("/v1/responses"), &[ALICE], &create).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["object"], "response");
        assert!(proves(&output_text(&answer.json()), &[text]), "{}", answer.text());
    }
}

#[tokio::test]
async fn turns_by_http_and_by_websocket_continue_one_another() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let headers = [ALICE, ("session-id", "mixed")];
    let url = |node: usize| ring.node(node).url("/v1/responses");
    let mut said = texts(&["by events"]);
    let first = stream(&url(0), &headers, &body(&[user("by events")], None, true)).await;
    first.assert_answers(&said);

    said.push("by document".to_owned());
    let second = body(&[user("by document")], Some(&first.id()), false);
    let second = http::post(&url(1), &headers, &second).await;
    assert_eq!(second.status, 200, "{}", second.text());
    assert!(proves(&output_text(&second.json()), &said), "{}", second.text());

    said.push("by socket".to_owned());
    let mut socket = Ws::open(&url(1), &headers).await;
    let previous = second.json()["id"].as_str().unwrap().to_owned();
    let third = Turn::run(&mut socket, &create(&[user("by socket")], Some(&previous))).await;
    third.assert_answers(&said);
    assert_eq!(History::read(&ring.sample_url).await.of_session("mixed").len(), 1);
}

#[tokio::test]
async fn a_response_id_alone_finds_its_session_from_any_node() {
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let url = |node: usize| ring.node(node).url("/v1/responses");
    let first = http::post(&url(0), &[ALICE], &body(&[user("one")], None, false)).await;
    assert_eq!(first.status, 200, "{}", first.text());
    let id = first.json()["id"].as_str().unwrap().to_owned();
    for node in [1, 2] {
        let other = http::post(&url(node), &[BOB], &body(&[user("two")], Some(&id), false)).await;
        assert_eq!(other.status, 400, "{}", other.text());
        assert_eq!(other.json()["error"]["code"], "previous_response_not_found");
    }
    let next = http::post(&url(1), &[ALICE], &body(&[user("two")], Some(&id), false)).await;
    assert_eq!(next.status, 200, "{}", next.text());
    assert!(proves(&output_text(&next.json()), &texts(&["one", "two"])), "{}", next.text());
}

#[tokio::test]
async fn an_unknown_previous_response_is_a_400_that_sdks_understand() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    for node in &ring.nodes {
        let url = node.url("/v1/responses");
        let unknown = body(&[user("x")], Some("resp_ffffffffffffffffffffffffffffffff"), false);
        let answer = http::post(&url, &[ALICE], &unknown).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        let error = &answer.json()["error"];
        assert_eq!(error["code"], "previous_response_not_found");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].is_string() && error.get("param").is_some(), "{error}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_json_is_a_400() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let headers = [ALICE, ("content-type", "application/json")];
    let url = ring.node(0).url("/v1/responses");
    for bad in ["", "{", "[1]", "\"text\""] {
        let answer = http::request(Method::POST, &url, &headers, bad).await.unwrap();
        assert_eq!(answer.status, 400, "{bad:?}: {}", answer.text());
        assert_eq!(answer.json()["error"]["code"], "invalid_request", "{bad:?}");
    }
}

#[tokio::test]
async fn a_response_that_runs_is_resumed_from_its_sequence_number_on_another_node() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let text = "resumed [deltas=100] [delay=10ms]";
    let headers = [ALICE, ("session-id", "sse-resume"), ("content-type", "application/json")];
    let create = body(&[user(text)], None, true).to_string();
    let url = ring.node(0).url("/v1/responses");
    let mut answer = http::open(Method::POST, &url, &headers, create).await.unwrap();
    let mut events = Vec::new();
    while events.len() < 30 {
        events.push(answer.event().await.unwrap().expect("the stream goes on"));
    }
    drop(answer);
    let id = events[0]["response"]["id"].as_str().unwrap().to_owned();
    let last = events.last().unwrap()["sequence_number"].as_u64().unwrap();
    let rest = format!("/v1/responses/{id}?stream=true&starting_after={last}");
    let rest = http::open(Method::GET, &ring.node(1).url(&rest), &[ALICE], "").await.unwrap();
    assert_eq!(rest.status, 200);
    events.extend(rest.events().await.unwrap());
    Turn::of(events.clone()).assert_answers(&texts(&[text]));

    // It is finished now, and may still be read, by its own principal.
    let again = format!("/v1/responses/{id}?stream=true&starting_after={last}");
    let again = http::open(Method::GET, &ring.node(0).url(&again), &[ALICE], "").await.unwrap();
    assert_eq!(again.status, 200);
    assert_eq!(again.events().await.unwrap(), events[30..]);
    let stolen = ring.node(0).url(&format!("/v1/responses/{id}?stream=true&starting_after=0"));
    let stolen = http::get(&stolen, &[BOB]).await;
    assert!(stolen.status.is_client_error(), "{} {}", stolen.status, stolen.text());
}

/// Over WebSocket events are counted that are left out over HTTP.
#[tokio::test]
async fn a_turn_by_websocket_is_resumed_by_http_after_any_event_with_none_lost_or_repeated() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let mut socket = Ws::open(&ring.node(0).url("/v1/responses"), &[ALICE]).await;
    let turn = Turn::run(&mut socket, &create(&[user("counted [deltas=5]")], None)).await;
    let kinds: Vec<_> = turn.events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"response.metadata"), "{kinds:?}");
    for (at, last) in turn.events.iter().enumerate() {
        assert_eq!(last["sequence_number"], at, "the upstream's own number");
        let rest = format!("/v1/responses/{}?stream=true&starting_after={at}", turn.id());
        let rest = http::open(Method::GET, &ring.node(1).url(&rest), &[ALICE], "").await.unwrap();
        assert_eq!(rest.status, 200);
        let mut heard = turn.events[at + 1..].to_vec();
        heard.retain(|event| event["type"] != "response.metadata");
        assert_eq!(rest.events().await.unwrap(), heard, "after {at}");
    }
}

#[tokio::test]
async fn a_refusal_of_the_upstream_keeps_its_status() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    for node in &ring.nodes {
        let url = node.url("/v1/responses");
        let answer = http::post(&url, &[ALICE], &body(&[user("x [fail=429]")], None, false)).await;
        assert_eq!(answer.status, 429, "{}", answer.text());
        assert!(answer.json()["error"]["message"].is_string(), "{}", answer.text());
    }
}

#[tokio::test]
async fn the_path_of_chatgpt_accounts_works_as_well() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let url = ring.node(1).url("/backend-api/codex/responses");
    let turn = stream(&url, &[ALICE], &body(&[user("codex")], None, true)).await;
    turn.assert_answers(&texts(&["codex"]));
    let mut socket = Ws::open(&url, &[ALICE, ("session-id", "chatgpt")]).await;
    let turn = Turn::run(&mut socket, &create(&[user("codex")], None)).await;
    turn.assert_answers(&texts(&["codex"]));
}

#[tokio::test]
async fn stored_responses_of_the_upstream_are_found_without_a_session() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let url = |node: usize| ring.node(node).url("/v1/responses");
    let stored = json!({ "model": "gpt-5.5", "input": [user("one")], "store": true });
    let first = http::post(&url(0), &[ALICE], &stored).await.json();
    let second = json!({
        "model": "gpt-5.5", "input": [user("two")], "store": true,
        "previous_response_id": first["id"],
    });
    let second = http::post(&url(1), &[ALICE], &second).await;
    assert_eq!(second.status, 200, "{}", second.text());
    assert!(proves(&output_text(&second.json()), &texts(&["one", "two"])), "{}", second.text());
}
