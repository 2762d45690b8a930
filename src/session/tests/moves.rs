//! Planned transfers and takeovers between two nodes of one ring.

use super::{node::LEASE, *};
use crate::store::{Death, Store as _};

async fn two_nodes(route: &Arc<crate::config::Route>) -> (Node, Node) {
    let store = Arc::new(Memory::default());
    let a = Node::start(&store, "a", limits(), [route]).await;
    let b = Node::start(&store, "b", limits(), [route]).await;
    eventually("they know each other", async || a.ring.borrow().has_other_active(a.me)).await;
    (a, b)
}

async fn begin_drain(node: &Node) {
    node.registry.begin_drain();
    node.store.begin_drain(node.me).await.unwrap();
}

#[tokio::test]
async fn a_drain_hands_an_idle_session_to_its_heir_under_a_higher_epoch() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let (a, b) = two_nodes(&route).await;
    let attach = wish(&route, "thread");
    let attached = a.attach(&attach).await.unwrap();
    let mut client = Reader::new(attached.link);
    begin_drain(&a).await;
    a.drain(attach.session, LEASE).await;
    assert_eq!(client.next().await, Err(Some(Frame::Moved)));
    let row = b.row(attach.session).await;
    assert_eq!(row.owner, Some(b.me));
    assert!(row.epoch > attached.epoch);
    eventually("the old owner forgets it", async || a.registry.is_empty()).await;
    match a.attach(&attach).await.unwrap_err() {
        AttachError::Failed(error) => assert_eq!(error.code, Code::NodeDraining),
        AttachError::NotOwner(owner) => assert_eq!(owner.incarnation, b.me),
        AttachError::Refused(_) => panic!("nobody refused"),
    }
    let again = b.attach(&Attach { min_epoch: row.epoch, ..attach }).await.unwrap();
    assert!(again.epoch >= row.epoch);
}

#[tokio::test]
async fn a_drain_lets_a_running_turn_end_before_the_session_moves() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let (a, b) = two_nodes(&route).await;
    let attach = wish(&route, "thread");
    let mut client = Reader::new(a.attach(&attach).await.unwrap().link);
    client.send(
        r#"{"type":"response.create","model":"m","store":false,
            "input":"[deltas=20][delay=5ms] busy"}"#,
    );
    client.until("response.created").await;
    begin_drain(&a).await;
    a.drain(attach.session, LEASE).await;
    client.until("response.completed").await;
    assert_eq!(client.next().await, Err(Some(Frame::Moved)));
    assert_eq!(b.row(attach.session).await.owner, Some(b.me));
}

#[tokio::test]
async fn a_drain_without_an_heir_frees_the_session_for_whoever_comes() {
    let store = Arc::new(Memory::default());
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Opaque, &gate));
    let a = Node::start(&store, "a", limits(), [&route]).await;
    let attach = wish(&route, "room");
    let mut client = Reader::new(a.attach(&attach).await.unwrap().link);
    begin_drain(&a).await;
    a.drain(attach.session, LEASE).await;
    assert_eq!(client.next().await, Err(Some(Frame::Moved)));
    assert_eq!(a.row(attach.session).await.owner, None);
    let b = Node::start(&store, "b", limits(), [&route]).await;
    assert!(b.attach(&attach).await.is_ok());
}

#[tokio::test]
async fn an_opaque_session_whose_owner_drains_is_had_at_once_by_a_node_with_room() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Opaque, &gate));
    let (a, b) = two_nodes(&route).await;
    let c = Node::start(&a.store, "c", limits(), [&route]).await;
    eventually("all are known", async || a.ring.borrow().alive().count() == 3).await;
    let attach = wish(&route, "room");
    let first = a.attach(&attach).await.unwrap();
    let mut client = Reader::new(first.link);
    let heir = a.ring.borrow().heirs(attach.session, a.me)[0];
    let (heir, third) = if heir == b.me { (&b, &c) } else { (&c, &b) };
    let full = Registry::new(Context { capacity: 0, ..heir.context() });
    begin_drain(&a).await;
    a.drain(attach.session, LEASE).await;
    assert_eq!(client.next().await, Err(Some(Frame::Moved)));
    match full.attach(attach.clone()).await.unwrap_err() {
        AttachError::Failed(error) => assert_eq!(error.code, Code::NodeFull),
        other => panic!("{other:?}"),
    }
    let second = third.attach(&attach).await.unwrap();
    assert!(second.epoch > first.epoch);
    match heir.attach(&attach).await.unwrap_err() {
        AttachError::NotOwner(owner) => assert_eq!(owner.incarnation, third.me),
        other => panic!("{other:?}"),
    }
    let mut client = Reader::new(second.link);
    client.send("served");
    assert_eq!(client.text().await, "served");
    assert_eq!(gate.dials(), 2);
    let failed = "ringspan_handoffs_total{reason=\"drain\",outcome=\"failed\"}";
    assert_eq!(a.counted(failed).unwrap_or(0), 0, "nothing has failed");
}

#[tokio::test]
async fn a_session_is_taken_over_from_a_dead_owner_and_from_no_other() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Opaque, &gate));
    let (a, b) = two_nodes(&route).await;
    let attach = wish(&route, "room");
    let first = a.attach(&attach).await.unwrap();
    for draining in [false, true] {
        if draining {
            begin_drain(&a).await;
        }
        match b.attach(&attach).await.unwrap_err() {
            AttachError::NotOwner(owner) => {
                assert_eq!((owner.incarnation, owner.epoch), (a.me, first.epoch));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(a.store.mark_dead(a.me, Death::Proven).await.unwrap());
    let second = b.attach(&attach).await.unwrap();
    assert!(second.epoch > first.epoch);
    assert_eq!(b.row(attach.session).await.owner, Some(b.me));
}

#[tokio::test]
async fn an_owner_that_is_told_of_a_later_epoch_gives_up_its_own() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Opaque, &gate));
    let (a, b) = two_nodes(&route).await;
    let attach = wish(&route, "room");
    let mut client = Reader::new(a.attach(&attach).await.unwrap().link);
    a.store.mark_dead(a.me, Death::Proven).await.unwrap();
    let taken = b.attach(&attach).await.unwrap();
    let told = Attach { min_epoch: taken.epoch, ..attach.clone() };
    match a.attach(&told).await.unwrap_err() {
        AttachError::NotOwner(owner) => assert_eq!(owner.incarnation, b.me),
        AttachError::Failed(error) => assert_eq!(error.code, Code::NodeDraining),
        AttachError::Refused(_) => panic!("nobody refused"),
    }
    assert!(matches!(client.next().await, Err(Some(Frame::Failed(_)))));
    assert_eq!(b.row(attach.session).await.epoch, taken.epoch, "the successor's claim stands");
}
