//! How sessions end, and what they do without a lease.

use std::time::{Duration, Instant};

use super::*;
use crate::store::memory::Fault;

#[tokio::test]
async fn a_session_outlives_its_last_client_by_its_detach_time_and_then_frees_its_row() {
    let (node, _gate, mut route) = echo().await;
    Arc::make_mut(&mut route).detach_ttl = Duration::from_millis(30);
    let attach = wish(&route, "room");
    let link = node.attach(&attach).await.unwrap().link;
    let epoch = node.row(attach.session).await.epoch;
    assert_eq!(node.row(attach.session).await.owner, Some(node.me));
    let left = Instant::now();
    drop(link);
    eventually("the row is released", async || node.row(attach.session).await.owner.is_none())
        .await;
    assert!(left.elapsed() >= Duration::from_millis(30));
    eventually("the slot is free", async || node.registry.is_empty()).await;
    let again = node.attach(&attach).await.unwrap();
    assert!(again.epoch > epoch);
}

#[tokio::test]
async fn an_upstream_that_closes_ends_an_opaque_session_with_its_own_code() {
    let (node, _gate, route) = echo().await;
    let attach = wish(&route, "room");
    let mut one = Reader::new(node.attach(&attach).await.unwrap().link);
    let mut two = Reader::new(node.attach(&attach).await.unwrap().link);
    one.send("before");
    assert_eq!(one.text().await, "before");
    // A client's own close ends the client; the session goes on.
    let close = Frame::Close(Some(CloseFrame { code: 4005, reason: "me".into() }));
    one.link.tx.send(close);
    assert_eq!(one.next().await, Err(None));
    two.send("after");
    assert_eq!(two.text().await, "before");
    assert_eq!(two.text().await, "after");
}

#[tokio::test]
async fn what_waited_for_a_lease_goes_on_when_it_is_back() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Opaque, &gate));
    let short = Duration::from_secs(3);
    let node = Node::leased(&Arc::new(Memory::default()), "a", limits(), short, [&route]).await;
    let mut one = Reader::new(node.attach(&wish(&route, "room")).await.unwrap().link);
    eventually("the lease lapses", async || !node.lease.is_live(Instant::now())).await;
    one.send("kept");
    match node.attach(&wish(&route, "room")).await.unwrap_err() {
        AttachError::Failed(error) => assert_eq!(error.code, Code::SessionUnavailable),
        other => panic!("{other:?}"),
    }
    assert_eq!(one.link.rx.recv().now_or_never(), None, "nothing moves in the meantime");
    node.lease.renewed(Instant::now(), Duration::from_mins(1), Duration::ZERO);
    assert_eq!(one.text().await, "kept");
}

#[tokio::test]
async fn a_claim_that_the_store_does_not_answer_counts_as_failed_and_one_of_a_leaving_node_as_unfit()
 {
    let (node, _gate, route) = echo().await;
    let refused = async |key| match node.attach(&wish(&route, key)).await.unwrap_err() {
        AttachError::Failed(error) => error.code,
        other => panic!("{other:?}"),
    };
    let count =
        |outcome| node.counted(&format!("ringspan_claims_total{{outcome=\"{outcome}\"}}")).unwrap();
    node.store.fail_claims([Fault::RequestLost]);
    assert_eq!(refused("room").await, Code::SessionUnavailable);
    assert_eq!((count("failed"), count("claimed")), (1, 0));
    node.attach(&wish(&route, "room")).await.unwrap();
    assert_eq!((count("failed"), count("claimed")), (1, 1));
    node.store.begin_drain(node.me).await.unwrap();
    assert_eq!(refused("another").await, Code::NodeDraining);
    assert_eq!((count("failed"), count("unfit")), (1, 1));
}
