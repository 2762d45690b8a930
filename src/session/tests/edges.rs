//! Rare orders of events that were once handled wrongly.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use super::*;

#[tokio::test]
async fn without_a_live_lease_nobody_is_attached_and_nothing_moves() {
    let (node, _gate, route) = echo().await;
    let attach = wish(&route, "room");
    let mut one = Reader::new(node.attach(&attach).await.unwrap().link);
    one.send("served");
    assert_eq!(one.text().await, "served");
    node.lease.fenced();
    one.send("too late");
    for key in ["room", "another"] {
        match node.attach(&wish(&route, key)).await.unwrap_err() {
            AttachError::Failed(error) => assert_eq!(error.code, Code::SessionUnavailable),
            other => panic!("{other:?}"),
        }
    }
    node.registry.get(attach.session).unwrap().stop(Error::new(Code::OwnerMoving, "dead")).await;
    let end = one.next().await;
    assert!(matches!(end, Err(Some(Frame::Failed(_)))), "{end:?}");
    eventually("the slot is free", async || node.registry.is_empty()).await;
    assert_eq!(node.row(attach.session).await.owner, Some(node.me), "rows are the next owner's");
}

#[tokio::test]
async fn another_principal_is_refused_whether_the_session_is_open_or_not() {
    let (node, _gate, route) = echo().await;
    let attach = wish(&route, "room");
    let link = node.attach(&attach).await.unwrap().link;
    let stranger = Attach { principal: Principal([2; 16]), ..attach.clone() };
    for open in [true, false] {
        if !open {
            node.registry.get(attach.session).unwrap().stop(Error::new(Code::Internal, "x")).await;
            eventually("the session ended", async || node.registry.is_empty()).await;
        }
        match node.attach(&stranger).await.unwrap_err() {
            AttachError::Failed(error) => assert_eq!(error.code, Code::Forbidden, "open: {open}"),
            other => panic!("{other:?}"),
        }
    }
    drop(link);
}

/// A connection that reached its age is renewed between turns; a turn that begins meanwhile
/// waits for the new one.
#[tokio::test]
async fn a_turn_that_begins_while_the_upstream_connection_is_renewed_is_not_lost() {
    let gate = Gate::with_permits(SampleAuth::Open, 1).await;
    let mut route = route(Profile::Responses, &gate);
    let upstream = crate::config::Upstream {
        max_connection_age: Duration::from_millis(200),
        ..(*route.upstream).clone()
    };
    route.upstream = Arc::new(upstream);
    let route = Arc::new(route);
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let attach = wish(&route, "thread");
    let mut client = Reader::new(node.attach(&attach).await.unwrap().link);
    eventually("the connection is being renewed", async || gate.dials() == 2).await;
    client.send(r#"{"type":"response.create","model":"m","store":false,"input":"now"}"#);
    let stats = node.registry.get(attach.session).unwrap().stats;
    eventually("the turn is known", async || {
        stats.turns_running.load(Relaxed) + stats.turns_queued.load(Relaxed) == 1
    })
    .await;
    assert_eq!(stats.turns_queued.load(Relaxed), 1, "there is nobody to run it");
    gate.permits.add_permits(100);
    client.until("response.completed").await;
}
