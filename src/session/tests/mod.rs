//! Sessions as their clients see them: a real registry and its actors, a store in memory,
//! the sample upstream on loopback.

pub(crate) mod node;

mod archive;
mod copies;
mod edges;
mod ends;
mod moves;
mod phases;
mod turns;
mod unheard;
mod upstreams;
mod warm;

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use node::{Gate, Node, Reader, eventually, limits, route, soon, wish};

use super::*;
use crate::{
    config::Profile,
    error::Code,
    link::Frame,
    sample::SampleAuth,
    store::{Cursor, SessionFilter, Store as _, Sweep, memory::Memory},
    wire::CloseFrame,
};

/// A node and an echoing upstream.
async fn echo() -> (Node, Gate, Arc<crate::config::Route>) {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Opaque, &gate));
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    (node, gate, route)
}

#[tokio::test]
async fn every_client_of_a_session_gets_every_message_with_its_number() {
    let (node, gate, route) = echo().await;
    let attach = wish(&route, "room");
    let mut one = Reader::new(node.attach(&attach).await.unwrap().link);
    let mut two = Reader::new(node.attach(&attach).await.unwrap().link);
    one.send("from one");
    assert_eq!(one.next().await, Ok((1, "from one".into())));
    two.send("from two");
    for reader in [&mut one, &mut two] {
        let mut got = Vec::new();
        while got.last() != Some(&(2, "from two".to_owned())) {
            got.push(reader.next().await.unwrap());
        }
        assert!(got.iter().map(|(no, _)| *no).is_sorted());
    }
    assert_eq!(gate.dials(), 1);
}

#[tokio::test]
async fn a_client_that_resumes_gets_what_followed_or_is_told_of_the_gap() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Opaque, &gate));
    let small = crate::config::Limits { replay_bytes: 2000, ..limits() };
    let node = Node::start(&Arc::new(Memory::default()), "a", small, [&route]).await;
    let attach = wish(&route, "room");
    let attached = node.attach(&attach).await.unwrap();
    assert_eq!(attached.resume, Resume::New);
    let mut one = Reader::new(attached.link);
    for n in 1..=3 {
        one.send(&format!("m{n}"));
        assert_eq!(one.text().await, format!("m{n}"));
    }

    let from = |last_seq| Attach { last_seq: Some(last_seq), ..attach.clone() };
    let back = node.attach(&from(1)).await.unwrap();
    assert_eq!(back.resume, Resume::Ok);
    let mut back = Reader::new(back.link);
    assert_eq!(back.next().await, Ok((2, "m2".into())));
    assert_eq!(back.next().await, Ok((3, "m3".into())));
    assert_eq!(node.attach(&from(3)).await.unwrap().resume, Resume::Ok, "nothing is missing");

    for _ in 0..10 {
        one.send(&"x".repeat(1000));
        one.text().await;
    }
    let late = node.attach(&from(1)).await.unwrap();
    let Resume::Gap { floor } = late.resume else { panic!("{:?} hides a gap", late.resume) };
    assert!(floor > 3);
    assert_eq!(Reader::new(late.link).next().await.unwrap().0, floor);
    let future = node.attach(&from(1_000_000)).await.unwrap();
    assert_eq!(future.resume, Resume::Gap { floor }, "a number of another epoch");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped_and_holds_up_nobody() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Opaque, &gate));
    let small = crate::config::Limits { replay_bytes: 64 * 1024, ..limits() };
    let node = Node::start(&Arc::new(Memory::default()), "a", small, [&route]).await;
    let attach = wish(&route, "room");
    let mut fast = Reader::new(node.attach(&attach).await.unwrap().link);
    let mut slow = Reader::new(node.attach(&attach).await.unwrap().link);
    let text = "x".repeat(10_000);
    for n in 1..=40 {
        fast.send(&text);
        assert_eq!(fast.next().await.unwrap().0, n);
    }
    let mut last = 0;
    let end = loop {
        match slow.next().await {
            Ok((no, _)) => {
                assert_eq!(no, last + 1, "no gap before the close");
                last = no;
            }
            Err(end) => break end,
        }
    };
    assert!(last < 40);
    assert!(matches!(end, Some(Frame::Close(Some(CloseFrame { code: 1013, .. })))), "{end:?}");
    fast.send("still served");
    assert_eq!(fast.text().await, "still served");
}

#[tokio::test]
async fn fifty_clients_at_once_make_one_claim_and_one_dial() {
    let gate = Gate::with_permits(SampleAuth::Open, 0).await;
    let route = Arc::new(route(Profile::Opaque, &gate));
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let attach = wish(&route, "room");
    let wishes = (0..50).map(|_| node.attach(&attach));
    let wishes = futures_util::future::join_all(wishes);
    let release = async {
        eventually("somebody dials", async || gate.dials() > 0).await;
        gate.permits.add_permits(50);
    };
    let (attached, ()) = tokio::join!(wishes, release);
    let epochs: Vec<_> = attached.into_iter().map(|attached| attached.unwrap().epoch).collect();
    assert_eq!(epochs.len(), 50);
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]));
    assert_eq!(gate.dials(), 1);
    assert_eq!(node.row(attach.session).await.epoch, epochs[0], "it was claimed once");
    assert_eq!(node.registry.len(), 1);
}

#[tokio::test]
async fn the_upstreams_refusal_reaches_whoever_asked_and_leaves_a_fence_for_a_minute() {
    let gate = Gate::open(SampleAuth::AnyBearer).await;
    for profile in [Profile::Opaque, Profile::Responses] {
        let route = Arc::new(route(profile, &gate));
        let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
        let attach = wish(&route, "room");
        match node.attach(&attach).await.unwrap_err() {
            AttachError::Refused(refusal) => assert_eq!(refusal.status, 401),
            other => panic!("{other:?}"),
        }
        eventually("the session is released", async || {
            node.registry.is_empty() && node.row(attach.session).await.owner.is_none()
        })
        .await;
        let left = sweep(&node, Duration::from_mins(58)).await;
        assert_eq!(left, 0, "it counts as closed for nearly an hour, as long as fences are kept");
    }
}

/// Sweeps closed sessions of that age; how many are left.
async fn sweep(node: &Node, age: Duration) -> usize {
    node.store.sweep(Sweep::Sessions, age, 100, Cursor::START).await.unwrap();
    let all = SessionFilter { limit: 100, ..SessionFilter::default() };
    node.store.sessions(&all).await.unwrap().len()
}

#[tokio::test]
async fn a_session_that_an_upstream_knew_leaves_a_fence() {
    let (node, gate, mut route) = echo().await;
    Arc::make_mut(&mut route).detach_ttl = Duration::from_millis(30);
    let attach = wish(&route, "room");
    drop(node.attach(&attach).await.unwrap().link);
    eventually("the session ends", async || node.registry.is_empty()).await;
    assert_eq!(gate.dials(), 1);
    assert_eq!(sweep(&node, Duration::from_mins(1)).await, 1, "it stays");
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_is_said_to_be_unavailable() {
    let gate = Gate::open(SampleAuth::Open).await;
    let mut route = route(Profile::Opaque, &gate);
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = dead.local_addr().unwrap();
    drop(dead);
    let upstream = crate::config::Upstream {
        endpoints: vec![crate::config::Endpoint::sole(format!("ws://{addr}/").parse().unwrap())],
        ..(*route.upstream).clone()
    };
    route.upstream = Arc::new(upstream);
    let route = Arc::new(route);
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    match node.attach(&wish(&route, "room")).await.unwrap_err() {
        AttachError::Failed(error) => assert_eq!(error.code, Code::UpstreamUnavailable),
        other => panic!("{other:?}"),
    }
    assert_eq!(gate.dials(), 0);
}

#[tokio::test]
async fn a_session_has_as_many_clients_as_it_may_and_no_more() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Opaque, &gate));
    let few = crate::config::Limits { max_clients_per_session: 2, ..limits() };
    let node = Node::start(&Arc::new(Memory::default()), "a", few, [&route]).await;
    let attach = wish(&route, "room");
    let links = [node.attach(&attach).await.unwrap(), node.attach(&attach).await.unwrap()];
    match node.attach(&attach).await.unwrap_err() {
        AttachError::Failed(error) => assert_eq!(error.code, Code::TooManySessions),
        other => panic!("{other:?}"),
    }
    drop(links);
    eventually("a place is free again", async || {
        node.registry.attach(attach.clone()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn turns_of_two_clients_queue_and_each_gets_its_own_answer() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let attach = wish(&route, "thread");
    let mut one = Reader::new(node.attach(&attach).await.unwrap().link);
    let mut two = Reader::new(node.attach(&attach).await.unwrap().link);
    one.send(r#"{"type":"response.create","model":"m","store":false,"input":"first"}"#);
    two.send(r#"{"type":"response.create","model":"m","store":false,"input":"second"}"#);
    for (reader, word) in [(&mut one, "first"), (&mut two, "second")] {
        let done = reader.until("response.completed").await;
        let text = done["response"]["output"][0]["content"][0]["text"].as_str().unwrap();
        assert!(text.contains(word), "{text}");
        assert!(reader.link.rx.recv().now_or_never().is_none(), "nothing of the other's");
    }
    assert_eq!(gate.dials(), 1);
}

#[tokio::test]
async fn a_turn_goes_on_without_its_client_and_the_client_finds_it_again() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let attach = wish(&route, "thread");
    let create = r#"{"type":"response.create","model":"m","store":false,
        "input":"[deltas=40][delay=5ms] long"}"#;
    let mut one = Reader::new(node.attach(&attach).await.unwrap().link);
    one.send(create);
    let first = one.until("response.created").await;
    drop(one);
    let mut back = Reader::new(node.attach(&attach).await.unwrap().link);
    back.send(create);
    assert_eq!(back.until("response.created").await["response"]["id"], first["response"]["id"]);
    back.until("response.completed").await;
    let stats = soon("figures", async { node.registry.get(attach.session).unwrap().stats }).await;
    eventually("one turn is counted", async || {
        stats.turns_done.load(std::sync::atomic::Ordering::Relaxed) == 1
    })
    .await;
}
