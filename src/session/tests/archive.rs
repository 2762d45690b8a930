//! Conversations in the database: written by one owner, read by the next.

use serde_json::json;

use super::*;
use crate::{
    config::{Continuity, Limits},
    ids::Epoch,
    store::{Death, NewPart, Part, Store as _},
};

/// A turn of a client that keeps nothing but the id of the response before.
async fn turn(client: &mut Reader, n: usize, previous: Option<&str>) -> String {
    let mut request = json!({
        "type": "response.create", "model": "m", "store": false, "input": format!("text {n}"),
    });
    if let Some(previous) = previous {
        request["previous_response_id"] = previous.into();
    }
    client.send(&request.to_string());
    let completed = client.until("response.completed").await;
    let said = completed["response"]["output"].to_string();
    assert!(said.contains(&format!("turn {n} of conversation")), "{n}: {said}");
    completed["response"]["id"].as_str().unwrap().to_owned()
}

/// A node that owns a conversation of so many turns, and the id of the last response.
async fn after(turns: usize, limits: Limits) -> (Node, Gate, Attach, String) {
    let gate = Gate::open(SampleAuth::Open).await;
    let continuity = Continuity::Database;
    let route = Arc::new(Route { continuity, ..route(Profile::Responses, &gate) });
    let node = Node::start(&Arc::new(Memory::default()), "a", limits, [&route]).await;
    let attach = wish(&route, "thread");
    let mut client = Reader::new(node.attach(&attach).await.unwrap().link);
    let mut last = None;
    for n in 1..=turns {
        last = Some(turn(&mut client, n, last.as_deref()).await);
    }
    (node, gate, attach, last.unwrap())
}

async fn parts(node: &Node, session: SessionId) -> Vec<Part> {
    node.store.parts_of(session, 1000).await.unwrap()
}

/// A client at the node that takes over.
async fn taken_over(dead: &Node, attach: &Attach) -> (Node, Reader) {
    assert!(dead.store.mark_dead(dead.me, Death::Proven).await.unwrap());
    let next = Node::start(&dead.store, "next", dead.limits, [&attach.route]).await;
    let client = Reader::new(next.attach(attach).await.unwrap().link);
    (next, client)
}

#[tokio::test]
async fn the_next_owner_reads_what_the_last_one_wrote() {
    let (a, _gate, attach, last) = after(3, limits()).await;
    assert_eq!(parts(&a, attach.session).await.len(), 3);
    let (b, mut client) = taken_over(&a, &attach).await;
    let last = turn(&mut client, 4, Some(&last)).await;
    // And the one after it reads what both of them wrote.
    let (_c, mut client) = taken_over(&b, &attach).await;
    turn(&mut client, 5, Some(&last)).await;
}

#[tokio::test]
async fn a_long_conversation_is_kept_in_few_parts_and_read_whole() {
    let (a, _gate, attach, last) = after(70, limits()).await;
    let kept = parts(&a, attach.session).await.len();
    assert!(kept < 10, "{kept} parts after the 64th was replaced");
    let (_b, mut client) = taken_over(&a, &attach).await;
    turn(&mut client, 71, Some(&last)).await;
}

#[tokio::test]
async fn a_turn_that_begins_anew_replaces_what_was_kept() {
    let (a, _gate, attach, _) = after(3, limits()).await;
    let mut client = Reader::new(a.attach(&attach).await.unwrap().link);
    turn(&mut client, 1, None).await;
    assert_eq!(parts(&a, attach.session).await.len(), 1);
}

#[tokio::test]
async fn a_conversation_beyond_its_bound_is_not_kept_either() {
    let small = Limits { history_bytes: 200, ..limits() };
    let (a, _gate, attach, _) = after(4, small).await;
    let bytes: usize = parts(&a, attach.session).await.iter().map(|part| part.sealed.len()).sum();
    assert!(bytes < 400, "{bytes} bytes");
}

#[tokio::test]
async fn parts_that_cannot_be_opened_are_as_if_they_were_not_there() {
    let (a, _gate, attach, last) = after(1, limits()).await;
    let mut part = parts(&a, attach.session).await.remove(0);
    // The same bytes in another place.
    (part.epoch, part.no) = (Epoch(part.epoch.0 + 1_000), 7);
    let forged = NewPart { session: attach.session, part, whole: true };
    a.store.put_parts(&[forged]).await.unwrap();
    let (_b, mut client) = taken_over(&a, &attach).await;
    let request = json!({
        "type": "response.create", "model": "m", "store": false, "input": "more",
        "previous_response_id": last,
    });
    client.send(&request.to_string());
    let error = client.until("error").await;
    assert_eq!(error["error"]["code"], "previous_response_not_found");
}
