//! One session, clients on several nodes, one upstream connection.

use std::{sync::Arc, time::Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{ALICE, BOB, Received, Ring, RingOptions, Store, Ws, history::History};

/// Messages that a client sends ahead of their echoes.
const AHEAD: usize = 2_000;
/// Messages between two flushes.
const BURST: usize = 100;

/// Deliveries of the large run: each of two clients sends a quarter of it, 10^5 messages, and
/// each message is echoed to both.
fn deliveries() -> usize {
    let text = std::env::var("RINGSPAN_IT_MESSAGES").unwrap_or_else(|_| "400000".to_owned());
    text.parse().expect("RINGSPAN_IT_MESSAGES is a number")
}

/// Sends `count` numbered messages as `name` and returns all messages of all clients, in the
/// order in which they came, once `total` are there.
fn chat(ws: Ws, name: char, count: usize, total: usize) -> JoinHandle<Vec<String>> {
    let (mut sink, mut stream) = ws.split();
    let ahead = Arc::new(Semaphore::new(AHEAD));
    let echoed = Arc::clone(&ahead);
    let sending = tokio::spawn(async move {
        for n in 0..count {
            if n % BURST == 0 {
                sink.flush().await.unwrap();
                ahead.acquire_many(u32::try_from(BURST).unwrap()).await.unwrap().forget();
            }
            sink.feed(Message::text(format!("{name}{n}"))).await.unwrap();
        }
        sink.flush().await.unwrap();
        sink
    });
    tokio::spawn(async move {
        let mut seen = Vec::with_capacity(total);
        while seen.len() < total {
            match stream.next().await {
                Some(Ok(Message::Text(text))) => {
                    if text.starts_with(name) {
                        echoed.add_permits(1);
                    }
                    seen.push(text.as_str().to_owned());
                }
                other => panic!("{name} after {} messages: {other:?}", seen.len()),
            }
        }
        drop(sending.await.unwrap());
        seen
    })
}

/// Asserts that `seen` holds the messages 0.. of each sender once and in order.
fn assert_complete(seen: &[String], senders: &[char], count: usize) {
    for sender in senders {
        let of_sender = seen.iter().filter_map(|text| text.strip_prefix(*sender));
        for (n, text) in of_sender.clone().enumerate() {
            assert_eq!(text, n.to_string(), "message {n} of {sender}");
        }
        assert_eq!(of_sender.count(), count, "messages of {sender}");
    }
}

async fn converse(store: Store, deliveries: usize) {
    let ring = Ring::start(RingOptions::nodes(2).store(store)).await;
    let headers = [ALICE, ("session-id", "hall")];
    let mut clients = Vec::new();
    for node in &ring.nodes {
        clients.push(Ws::open(&node.url("/rooms/hall"), &headers).await);
    }
    assert_eq!(clients[0].header("ringspan-session"), clients[1].header("ringspan-session"));
    let total = (deliveries / 2).next_multiple_of(2 * BURST);
    let began = Instant::now();
    let mut chats = Vec::new();
    for (client, name) in clients.into_iter().zip(['a', 'b']) {
        chats.push(chat(client, name, total / 2, total));
    }
    let mut seen = Vec::new();
    for chat in chats {
        seen.push(chat.await.unwrap());
    }
    println!("{} deliveries in {:?}", 2 * total, began.elapsed());
    assert_complete(&seen[0], &['a', 'b'], total / 2);
    assert!(seen[0] == seen[1], "both clients see the messages in the same order");
    let history = History::read(&ring.sample_url).await;
    assert_eq!(history.of_session("hall").len(), 1, "upstream connections of the session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_on_two_nodes_share_one_upstream_connection_and_miss_nothing() {
    converse(Store::Postgres, deliveries()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_two_nodes_on_one_sqlite_file_share_a_session_too() {
    converse(Store::Sqlite, deliveries() / 10).await;
}

#[tokio::test]
async fn many_clients_that_arrive_at_once_on_every_node_get_one_session() {
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let headers = [ALICE, ("session-id", "rush")];
    let mut openings = Vec::new();
    for n in 0..12 {
        let url = ring.node(n % 3).url("/rooms/rush");
        openings.push(async move { Ws::open(&url, &headers).await });
    }
    let mut clients = futures_util::future::join_all(openings).await;
    clients[7].text("hello").await;
    for client in &mut clients {
        assert_eq!(client.expect_text().await, "hello");
    }
    let sessions: std::collections::BTreeSet<_> =
        clients.iter().map(|client| client.header("ringspan-session")).collect();
    assert_eq!(sessions.len(), 1);
    assert_eq!(History::read(&ring.sample_url).await.of_session("rush").len(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_leaves_the_session_to_the_others() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let headers = [ALICE, ("session-id", "lounge")];
    let mut leaver = Ws::open(&ring.node(0).url("/rooms/lounge"), &headers).await;
    let mut stayer = Ws::open(&ring.node(1).url("/rooms/lounge"), &headers).await;
    leaver.text("one").await;
    assert_eq!(stayer.expect_text().await, "one");
    leaver.close(1000, "bye").await;
    assert!(matches!(leaver.end().await, Received::Close(1000, _) | Received::Lost(_)));
    stayer.text("two").await;
    assert_eq!(stayer.expect_text().await, "two");
    assert_eq!(History::read(&ring.sample_url).await.of_session("lounge").len(), 1);
}

#[tokio::test]
async fn the_same_key_of_another_principal_is_another_session() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let mut alice = Ws::open(&ring.node(0).url("/rooms/shared"), &[ALICE]).await;
    let mut bob = Ws::open(&ring.node(1).url("/rooms/shared"), &[BOB]).await;
    assert_ne!(alice.header("ringspan-session"), bob.header("ringspan-session"));
    alice.text("a secret of alice").await;
    assert_eq!(alice.expect_text().await, "a secret of alice");
    bob.text("bob's own").await;
    assert_eq!(bob.expect_text().await, "bob's own");
    assert_eq!(History::read(&ring.sample_url).await.websockets().len(), 2);
}

#[tokio::test]
async fn clients_without_a_key_have_a_session_each() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let mut first = Ws::open(&ring.node(0).url("/echo"), &[ALICE]).await;
    let mut second = Ws::open(&ring.node(0).url("/echo"), &[ALICE]).await;
    first.text("first").await;
    assert_eq!(first.expect_text().await, "first");
    second.text("second").await;
    assert_eq!(second.expect_text().await, "second");
    assert_ne!(first.header("ringspan-session"), second.header("ringspan-session"));
}
