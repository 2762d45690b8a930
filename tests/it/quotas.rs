//! What one principal may use, over real nodes and a real database.

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    ALICE, BOB, Ring, RingOptions, Ws, eventually, http,
    responses::{Turn, create, user},
};

const RECOVERY: Duration = Duration::from_secs(20);

async fn said(socket: &mut Ws, text: &str) -> Turn {
    Turn::run(socket, &create(&[user(text)], None)).await
}

#[tokio::test]
async fn a_principals_sessions_are_counted_over_all_nodes_and_nobody_elses_are() {
    let ring = Ring::start(RingOptions::nodes(3).setting("sessions_per_principal", 4)).await;
    let room = |n: usize| ring.node(n % 3).url(&format!("/rooms/{n}"));
    let mut open = Vec::new();
    let mut refused = Vec::new();
    for n in 0..8 {
        match Ws::connect(&room(n), &[ALICE]).await {
            Ok(socket) => open.push(socket),
            Err(refusal) => refused.push((n, refusal)),
        }
    }
    assert_eq!(open.len(), 4, "{refused:?}");
    for (_, refusal) in &refused {
        assert_eq!(refusal.status, 429, "{refusal:?}");
        assert!(refusal.retry_after().is_some(), "{refusal:?}");
        let body: Value = serde_json::from_str(&refusal.body).unwrap();
        assert_eq!(body["error"]["code"], "too_many_sessions");
    }
    drop(Ws::open(&room(100), &[BOB]).await);
    // Whoever has a session may come back to it, by whatever node.
    let again = ring.node(2).url("/rooms/0");
    drop(Ws::open(&again, &[ALICE]).await);
}

#[tokio::test]
async fn turns_at_once_are_counted_over_all_nodes_and_a_crashed_nodes_turns_end() {
    for ledger in ["true", "false"] {
        let mut options = RingOptions::nodes(2).setting("turns_per_principal", 2);
        options.responses = format!("ledger = {ledger}\n");
        let ring = Ring::start(options).await;
        let mut sockets = Vec::new();
        for n in 0..6 {
            sockets.push(Ws::open(&ring.node(n % 2).url("/v1/responses"), &[ALICE]).await);
        }
        let long = create(&[user("tell me [deltas=200] [delay=100ms]")], None);
        for socket in &mut sockets[..2] {
            socket.json(&long).await;
            assert_eq!(socket.data().await.json()["type"], "response.created");
        }
        for socket in &mut sockets[2..] {
            let refused = said(socket, "one more").await;
            assert_eq!(refused.last()["status"], 429, "{refused:?}");
            assert_eq!(refused.last()["error"]["code"], "rate_limit_exceeded");
            assert!(refused.last()["headers"]["retry-after"].is_string(), "{refused:?}");
        }
        let mut bobs = Ws::open(&ring.node(0).url("/v1/responses"), &[BOB]).await;
        assert_eq!(said(&mut bobs, "hello").await.last()["type"], "response.completed");
        let (dead, left) = (ring.node(0), ring.node(1));
        dead.kill9().await;
        eventually("turns of the dead leave room", RECOVERY, async || {
            let mut socket = Ws::connect(&left.url("/v1/responses"), &[ALICE]).await.ok()?;
            let turn = said(&mut socket, "and now").await;
            (turn.last()["type"] == "response.completed").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_rate_of_turns_holds_over_all_nodes_and_says_when_to_come_back() {
    // Two at once, then one in five seconds.
    let ring = Ring::start(RingOptions::nodes(2).setting("turn_rate_per_principal", 12)).await;
    let mut sockets = Vec::new();
    for n in 0..6 {
        sockets.push(Ws::open(&ring.node(n % 2).url("/v1/responses"), &[ALICE]).await);
    }
    let (mut ran, mut waits) = (0, Vec::new());
    for socket in &mut sockets {
        let turn = said(socket, "hello").await;
        if turn.last()["type"] == "response.completed" {
            ran += 1;
        } else {
            assert_eq!(turn.last()["error"]["code"], "rate_limit_exceeded", "{turn:?}");
            waits.push(turn.last()["headers"]["retry-after"].as_str().unwrap().to_owned());
        }
    }
    assert!((2..=3).contains(&ran), "{ran} turns of a burst of two");
    let wait: u64 = waits.last().unwrap().parse().unwrap();
    assert!((1..=5).contains(&wait), "{waits:?}");
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(said(&mut sockets[0], "again").await.last()["type"], "response.completed");
    let mut refused = 0;
    for node in &ring.nodes {
        let text = http::get(&format!("{}/metrics", node.admin_url), &[]).await.text();
        let count = |outcome: &str| {
            let of =
                format!("ringspan_turns_total{{route=\"/v1/responses\",outcome=\"{outcome}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&of)?.parse::<u64>().ok()).unwrap()
        };
        refused += count("refused");
        assert_eq!(count("failed"), 0, "who has used up a limit is no failure of the service");
    }
    assert_eq!(refused, 6 - ran, "{waits:?}");
}
