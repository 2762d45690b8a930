//! Whatever a WebSocket can carry passes, near and far.

use bytes::Bytes;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{ALICE, Node, Received, Ring, RingOptions, Ws, scripted::Upstream};

/// One client at the session's owner and one elsewhere.
async fn near_and_far(ring: &Ring, path: &str, key: &str) -> [Ws; 2] {
    let url = |node: &Node| node.url(path);
    let first = Ws::open(&url(ring.node(0)), &[ALICE]).await;
    if ring.owner_of(key).await.id == "node-0" {
        [first, Ws::open(&url(ring.node(1)), &[ALICE]).await]
    } else {
        [Ws::open(&url(ring.node(1)), &[ALICE]).await, first]
    }
}

/// Bytes of which no two neighbourhoods are alike.
fn noise(len: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

#[tokio::test]
async fn text_and_binary_of_every_size_arrive_as_they_were_sent() {
    let options = RingOptions::nodes(2).setting("max_message_bytes", "\"24MiB\"");
    let ring = Ring::start(options).await;
    let clients = near_and_far(&ring, "/rooms/sizes", "sizes").await;
    let [mut near, mut far] = clients;
    for len in [0, 1, 125, 126, 65_535, 65_536, 1 << 20, 20 << 20] {
        let binary = noise(len);
        near.send(Message::binary(binary.clone())).await.unwrap();
        for client in [&mut near, &mut far] {
            let got = client.data().await;
            assert!(got == Received::Binary(binary.clone()), "binary of {len} bytes");
        }
        let text: String = binary.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
        far.text(text.clone()).await;
        for client in [&mut far, &mut near] {
            let got = client.data().await;
            assert!(got == Received::Text(text.clone()), "text of {len} bytes");
        }
    }
}

#[tokio::test]
async fn a_message_above_the_limit_closes_its_sender_with_1009_and_nobody_else() {
    let ring = Ring::start(RingOptions::nodes(2).setting("max_message_bytes", "\"64KiB\"")).await;
    let [mut near, mut far] = near_and_far(&ring, "/rooms/limit", "limit").await;
    far.text("x".repeat(64 << 10)).await;
    for client in [&mut near, &mut far] {
        assert_eq!(client.expect_text().await.len(), 64 << 10);
    }
    far.send(Message::text("x".repeat((64 << 10) + 1))).await.ok();
    assert!(matches!(far.end().await, Received::Close(1009, _)));
    near.text("still here").await;
    assert_eq!(near.expect_text().await, "still here");
}

#[tokio::test]
async fn text_that_is_not_utf8_closes_its_sender_with_1007() {
    use tokio::io::AsyncWriteExt as _;
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let mut other = Ws::open(&ring.node(0).url("/rooms/utf8"), &[ALICE]).await;
    let ws = Ws::open(&ring.node(0).url("/rooms/utf8"), &[ALICE]).await;
    let mut ws = ws
        .raw(async |tcp| {
            // FIN and text, masked with zeros, two bytes that no UTF-8 text holds.
            tcp.write_all(&[0x81, 0x82, 0, 0, 0, 0, 0xc3, 0x28]).await.unwrap();
        })
        .await;
    assert!(matches!(ws.end().await, Received::Close(1007, _)));
    other.text("fine").await;
    assert_eq!(other.expect_text().await, "fine");
}

#[tokio::test]
async fn a_ping_is_answered_with_its_payload() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    for mut client in near_and_far(&ring, "/rooms/ping", "ping").await {
        client.send(Message::Ping("are you there".into())).await.unwrap();
        loop {
            match client.next().await {
                Received::Pong(payload) if payload == "are you there" => break,
                // The pong of another client's ping may come here too.
                Received::Pong(_) => {}
                other => panic!("a pong was due, not {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_ping_of_the_upstream_reaches_clients_and_is_answered() {
    let upstream = Upstream::scripted().await;
    let ring = Ring::start(RingOptions::nodes(2).route("/told", &upstream.url)).await;
    let [mut near, mut far] = near_and_far(&ring, "/told?session=pinged", "pinged").await;
    far.text("ping knock").await;
    for client in [&mut near, &mut far] {
        let mut seen = Vec::new();
        while !seen.contains(&Received::Text("pong knock".to_owned())) {
            seen.push(client.next().await);
            assert!(seen.last() != Some(&Received::Silence), "{seen:?}");
        }
        assert!(seen.contains(&Received::Ping("knock".into())), "{seen:?}");
    }
}

#[tokio::test]
async fn how_the_upstream_closes_reaches_every_client() {
    let upstream = Upstream::scripted().await;
    let ring = Ring::start(RingOptions::nodes(2).route("/told", &upstream.url)).await;
    for (n, (command, code, reason)) in [
        ("close 4321 enough of this", 4321, "enough of this"),
        ("close 1000 done", 1000, "done"),
        ("close 1001 away", 1001, "away"),
        ("drop", 1011, "upstream connection lost"),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("closing-{n}");
        let path = format!("/told?session={key}");
        let [mut near, mut far] = near_and_far(&ring, &path, &key).await;
        near.text(command).await;
        for client in [&mut near, &mut far] {
            assert_eq!(client.end().await, Received::Close(code, reason.to_owned()), "{command}");
        }
    }
}

#[tokio::test]
async fn the_subprotocol_is_the_one_that_the_upstream_chose() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let headers = [ALICE, ("sec-websocket-protocol", "chat.v2, chat.v1")];
    for node in &ring.nodes {
        let client = Ws::open(&node.url("/rooms/protocol"), &headers).await;
        assert_eq!(client.header("sec-websocket-protocol"), "chat.v2");
    }
}

#[tokio::test]
async fn an_upgrade_that_the_upstream_refuses_is_refused_in_its_words() {
    let options = RingOptions::nodes(2).route("/nowhere", "ws://{sample}/no/such/path");
    let ring = Ring::start(options).await;
    for node in &ring.nodes {
        let refused = Ws::connect(&node.url("/nowhere?session=x"), &[ALICE]).await.unwrap_err();
        assert_eq!(refused.status, 404, "{refused:?}");
        assert!(refused.body.contains("no such path"), "{refused:?}");
    }
}

#[tokio::test]
async fn a_path_without_a_route_is_not_found() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let refused = Ws::connect(&ring.node(0).url("/no/route"), &[ALICE]).await.unwrap_err();
    assert_eq!(refused.status, 404, "{refused:?}");
}
