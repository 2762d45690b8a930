//! The ledger of turns: what was sent is sent once, over crashes and for whoever asks again
//! by its idempotency key.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::support::{
    ALICE, Node, Ring, RingOptions, Store, eventually,
    held::Held,
    http::{self, Answer},
};

const PATH: &str = "/held/v1/responses";
const LIMIT: Duration = Duration::from_secs(20);

async fn ring(held: &Held, nodes: usize, store: Store) -> Ring {
    let tables = format!(
        "[[upstream]]\nname = \"held\"\nurl = \"{}\"\n\
         [[route]]\npath = \"{PATH}\"\nprofile = \"responses\"\nupstream = \"held\"\n",
        held.url
    );
    Ring::start(RingOptions { tables, ..RingOptions::nodes(nodes).store(store) }).await
}

/// One `POST`, under this key.
async fn post(node: &Node, key: &str, input: &str, store: bool) -> Answer {
    let body = json!({ "model": "m", "input": input, "store": store });
    http::post(&node.url(PATH), &[ALICE, ("idempotency-key", key)], &body).await
}

/// The same in the background.
fn posting(node: &Node, key: &str, input: &str, store: bool) -> tokio::task::JoinHandle<Answer> {
    let body = json!({ "model": "m", "input": input, "store": store });
    let (url, key) = (node.url(PATH), key.to_owned());
    tokio::spawn(async move { http::post(&url, &[ALICE, ("idempotency-key", &key)], &body).await })
}

fn code(answer: &Answer) -> String {
    answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
}

/// State, response and number of dispatches of every turn, oldest first.
async fn rows(ring: &Ring) -> Vec<(String, Option<String>, i16)> {
    let mut connection = PgConnection::connect(&ring.database_url).await.unwrap();
    let select = "SELECT state, response, dispatches FROM turn ORDER BY begun_at";
    let rows = sqlx::query(select).fetch_all(&mut connection).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

async fn until_sent(held: &Held, input: &str) {
    eventually("the upstream got it", LIMIT, async || (held.times(input) > 0).then_some(())).await;
}

async fn until_rows(ring: &Ring, wanted: &[(&str, Option<&str>, i16)]) {
    eventually(&format!("the ledger says {wanted:?}"), LIMIT, async || {
        let rows = rows(ring).await;
        let same =
            rows.iter().map(|(s, r, d)| (s.as_str(), r.as_deref(), *d)).eq(wanted.iter().copied());
        same.then_some(())
    })
    .await;
}

/// The node that owns the only session there is.
async fn owner(ring: &Ring) -> &Node {
    eventually("a session is listed", LIMIT, async || {
        let sessions: Vec<Value> = ring.sessions().await;
        let owner = sessions.first()?["owner_node"].as_str()?.to_owned();
        ring.nodes.iter().find(|node| node.id == owner)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_of_one_key_on_two_nodes_run_once() {
    let held = Held::start().await;
    let ring = ring(&held, 2, Store::Postgres).await;
    let requests: Vec<_> =
        (0..6).map(|n| posting(ring.node(n % 2), "once", "slow one", true)).collect();
    until_sent(&held, "slow one").await;
    held.release();
    let mut ids = Vec::new();
    for request in requests {
        let answer = request.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        ids.push(answer.json()["id"].as_str().unwrap().to_owned());
    }
    ids.dedup();
    assert_eq!(ids, ["resp_1"]);
    let later = post(ring.node(1), "once", "slow one", true).await;
    assert_eq!(later.json()["id"], "resp_1", "{}", later.text());
    assert_eq!(held.times("slow one"), 1);
    until_rows(&ring, &[("DONE", Some("resp_1"), 1)]).await;

    let other = post(ring.node(0), "once", "another request", true).await;
    assert_eq!((other.status.as_u16(), code(&other).as_str()), (409, "session_conflict"));
    assert_eq!(held.times("another request"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_turn_whose_owner_is_killed_is_never_sent_again() {
    for (input, response) in [("silent stored", None), ("created stored", Some("resp_1"))] {
        let held = Held::start().await;
        let ring = ring(&held, 3, Store::Postgres).await;
        let first = posting(ring.node(0), "kept", input, true);
        until_sent(&held, input).await;
        let state = if response.is_some() { "VISIBLE" } else { "DISPATCHED" };
        until_rows(&ring, &[(state, response, 1)]).await;
        let owner = owner(&ring).await;
        owner.kill9().await;
        if let Ok(answer) = first.await {
            assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (502, "outcome_unknown"));
        }
        for node in ring.others(owner) {
            let again = post(node, "kept", input, true).await;
            assert_eq!(again.status, 502, "{}", again.text());
            assert_eq!(code(&again), "outcome_unknown");
            let text = again.text();
            assert!(response.is_none_or(|id| text.contains(id)), "{text}");
        }
        assert_eq!(held.times(input), 1);
        until_rows(&ring, &[("UNKNOWN", response, 1)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_stores_nothing_is_answered_whole_when_its_owner_is_killed_before_a_word() {
    let held = Held::start().await;
    let ring = ring(&held, 3, Store::Postgres).await;
    // Which node owns the session is seen before, by a turn of the same session.
    let headers = [ALICE, ("thread-id", "whole")];
    let body = |input: &str| json!({ "model": "m", "input": input, "store": false });
    let hello = http::post(&ring.node(0).url(PATH), &headers, &body("hello")).await;
    assert_eq!(hello.status, 200, "{}", hello.text());
    let owner = ring.owner_of("whole").await;
    let edge = ring.others(owner)[0];
    let url = edge.url(PATH);
    let body = body("silent whole");
    let request = tokio::spawn(async move {
        http::post(&url, &[ALICE, ("thread-id", "whole"), ("idempotency-key", "w")], &body).await
    });
    until_sent(&held, "silent whole").await;
    owner.kill9().await;
    let answer = request.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["status"], "completed");
    assert_eq!(held.times("silent whole"), 2, "once for each owner");
    until_rows(&ring, &[("DONE", Some("resp_1"), 1), ("DONE", Some("resp_3"), 2)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_while_the_ledger_cannot_be_written() {
    let held = Held::start().await;
    let ring = ring(&held, 1, Store::GatedPostgres).await;
    let headers = [ALICE, ("thread-id", "stalled")];
    let body = |input: &str| json!({ "model": "m", "input": input, "store": true });
    let url = ring.node(0).url(PATH);
    let hello = http::post(&url, &headers, &body("hello")).await;
    assert_eq!(hello.status, 200, "{}", hello.text());
    let gate = ring.gate.as_ref().unwrap();
    gate.shut().await;
    let refused = http::post(&url, &headers, &body("not now")).await;
    assert_eq!((refused.status.as_u16(), code(&refused).as_str()), (503, "session_unavailable"));
    assert!(refused.retry_after().is_some());
    assert_eq!(held.times("not now"), 0);
    gate.reopen().await;
    eventually("the ledger is written again", LIMIT, async || {
        let answer = http::post(&url, &headers, &body("now")).await;
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(held.times("now"), 1);
}
