//! Routers of real nodes, whose peer listeners may be closed for a while.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    config::PeerSecurity,
    ownership::{outage::Bounds, witness::Witness},
    peer::{
        serve,
        tests::{callers, incoming},
    },
    sample::SampleAuth,
    session::tests::node::{Gate, LEASE, Node, eventually, limits, route, soon, wish},
    store::{Death, memory::Memory},
};

/// A node behind a door that is shut at first.
struct Behind {
    node: Node,
    open: Arc<AtomicBool>,
}

impl Behind {
    async fn start(store: &Arc<Memory>, name: &str, route: &Arc<Route>) -> Self {
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = door.local_addr().unwrap().to_string();
        let node = Node::at(store, name, &addr, limits(), LEASE, [route]).await;
        let witness = Witness::new(node.me, Bounds::new(LEASE), std::time::Instant::now());
        let incoming = incoming(&node, route, witness);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let stop = node.stop.clone();
        tokio::spawn(async move {
            let security = PeerSecurity::Plaintext;
            serve(incoming, &security, listener, stop.cancelled_owned()).await.unwrap();
        });
        let open = Arc::new(AtomicBool::new(false));
        let is_open = Arc::clone(&open);
        tokio::spawn(async move {
            while let Ok((mut caller, _)) = door.accept().await {
                if !is_open.load(Relaxed) {
                    continue;
                }
                tokio::spawn(async move {
                    let mut node = TcpStream::connect(target).await.unwrap();
                    drop(copy_bidirectional(&mut caller, &mut node).await);
                });
            }
        });
        Self { node, open }
    }
}

/// Opens the door once this node has failed to get in.
async fn opens_after_a_failure(door: &Behind, edge: &Node) {
    let failed = "ringspan_forward_seconds_count{outcome=\"failed\"}";
    eventually("a connect has failed", async || edge.counted(failed) > Some(0)).await;
    door.open.store(true, Relaxed);
}

/// By which a node finds sessions.
pub(crate) fn router(node: &Node) -> Router {
    let peers = callers(node, "ring", &PeerSecurity::Plaintext);
    let store = Arc::clone(&node.store) as Arc<dyn Store>;
    let registry = Arc::clone(&node.registry);
    Router::new(node.me, store, registry, Arc::new(peers), node.ring.clone(), node.metrics.clone())
}

#[tokio::test]
async fn a_draining_node_finds_the_only_active_one_again_after_a_connect_that_failed() {
    let gate = Gate::open(SampleAuth::Open).await;
    for profile in [Profile::Opaque, Profile::Responses] {
        let route = Arc::new(route(profile, &gate));
        let store = Arc::new(Memory::default());
        let edge = Node::start(&store, "edge", limits(), [&route]).await;
        let other = Behind::start(&store, "other", &route).await;
        edge.registry.begin_drain();
        store.begin_drain(edge.me).await.unwrap();
        let attach = wish(&route, "thread");
        eventually("the other one is the only candidate", async || {
            edge.ring.borrow().heirs(attach.session, other.node.me).is_empty()
                && edge.ring.borrow().has_other_active(edge.me)
        })
        .await;
        let begun = Instant::now();
        let router = router(&edge);
        let attached = soon("a link", router.attach(attach.clone(), TURN_PATIENCE));
        tokio::join!(attached, opens_after_a_failure(&other, &edge)).0.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(edge.row(attach.session).await.owner, Some(other.node.me));
    }
}

/// An edge, the heir of a session whose owner is dead, and who wants that session.
async fn orphan(route: &Arc<Route>) -> (Node, Behind, Attach) {
    let store = Arc::new(Memory::default());
    let owner = Node::start(&store, "owner", limits(), [route]).await;
    let edge = Node::start(&store, "edge", limits(), [route]).await;
    let heir = Behind::start(&store, "heir", route).await;
    let proposed = |attach: &Attach| edge.ring.borrow().placement.owner(attach.session);
    eventually("all are known", async || edge.ring.borrow().alive().count() == 3).await;
    let keys: Vec<_> = (0..64).map(|n| wish(route, &format!("thread {n}"))).collect();
    for attach in &keys {
        owner.attach(attach).await.unwrap();
    }
    store.mark_dead(owner.me, Death::Proven).await.unwrap();
    eventually("the death is known", async || edge.ring.borrow().alive().count() == 2).await;
    let attach = keys.into_iter().find(|attach| proposed(attach) == Some(heir.node.me));
    (edge, heir, attach.expect("one of so many is the heir's"))
}

#[tokio::test]
async fn a_connect_that_fails_once_does_not_pass_over_who_has_the_conversation() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let (edge, heir, attach) = orphan(&route).await;
    let router = router(&edge);
    let attached = soon("a link", router.attach(attach.clone(), UPGRADE_PATIENCE));
    tokio::join!(attached, opens_after_a_failure(&heir, &edge)).0.unwrap();
    assert_eq!(edge.row(attach.session).await.owner, Some(heir.node.me));
}

#[tokio::test]
async fn who_is_never_reached_is_passed_over_within_an_upgrades_patience() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let (edge, _heir, attach) = orphan(&route).await;
    soon("a link", router(&edge).attach(attach.clone(), UPGRADE_PATIENCE)).await.unwrap();
    assert_eq!(edge.row(attach.session).await.owner, Some(edge.me));
}

#[tokio::test]
async fn who_looked_at_the_row_spares_the_claimant_a_look_of_its_own() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let (edge, heir, attach) = orphan(&route).await;
    heir.open.store(true, Relaxed);
    let left = edge.row(attach.session).await.epoch;
    soon("a link", router(&edge).attach(attach.clone(), UPGRADE_PATIENCE)).await.unwrap();
    let claims = |outcome| format!("ringspan_claims_total{{outcome=\"{outcome}\"}}");
    let heard = ["claimed", "lost"].map(|outcome| heir.node.counted(&claims(outcome)));
    assert_eq!(heard, [Some(1), Some(0)]);

    // That look is over now: the claim says who has it.
    let stale = Attach { row: Row::Free(left), ..attach };
    let error = edge.attach(&stale).await.unwrap_err();
    let AttachError::NotOwner(owner) = error else { panic!("{error:?}") };
    assert_eq!(owner.incarnation, heir.node.me);
}
