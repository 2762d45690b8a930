//! Two nodes and the gRPC between them, on loopback.

use std::sync::Arc;

use tokio::net::TcpListener;

use super::*;
use crate::{
    config::{PeerSecurity, Profile, Route, Secret},
    error::Code,
    ids::{Incarnation, Principal},
    link::Frame,
    ownership::{outage::Bounds, witness::Witness},
    sample::SampleAuth,
    session::{
        Attach, AttachError, Attached, Resume,
        tests::node::{Gate, LEASE, Node, PATIENCE, Reader, eventually, limits, route, soon, wish},
    },
    store::{Store as _, memory::Memory},
};

/// An owner that serves peers, and an edge that calls it.
struct Pair {
    owner: Node,
    edge: Node,
    addr: String,
    peers: Peers,
    /// The owner's.
    witness: Witness,
    gate: Gate,
    route: Arc<Route>,
}

pub(crate) fn identity(node: &Node, cluster: &str) -> Identity {
    Identity {
        cluster_id: cluster.into(),
        incarnation: node.me,
        node_id: node.name.to_string(),
        build: "1.0.0".into(),
        max_message_bytes: node.limits.max_message_bytes,
        link_window_bytes: node.limits.link_window_bytes,
    }
}

/// By which a node calls others.
pub(crate) fn callers(edge: &Node, cluster: &str, security: &PeerSecurity) -> Peers {
    Peers::new(
        identity(edge, cluster),
        security,
        edge.ring.clone(),
        edge.metrics.clone(),
        PATIENCE,
        edge.tracker.clone(),
        edge.stop.clone(),
    )
    .unwrap()
}

/// By which others call a node.
pub(crate) fn incoming(owner: &Node, route: &Arc<Route>, witness: Witness) -> Incoming {
    Incoming {
        identity: identity(owner, "ring"),
        registry: Arc::clone(&owner.registry),
        routes: [Arc::clone(route)].into(),
        ring: owner.ring.clone(),
        witness,
        metrics: owner.metrics.clone(),
        events: crate::telemetry::events::Events::default(),
        tracker: owner.tracker.clone(),
        shutdown: owner.stop.clone(),
    }
}

impl Pair {
    async fn start() -> Self {
        Self::with(Gate::open(SampleAuth::Open).await, PeerSecurity::Plaintext).await
    }

    async fn with(gate: Gate, security: PeerSecurity) -> Self {
        let limits = limits();
        let route = Arc::new(route(Profile::Opaque, &gate));
        let store = Arc::new(Memory::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let owner = Node::at(&store, "owner", &addr, limits, LEASE, [&route]).await;
        let edge = Node::start(&store, "edge", limits, [&route]).await;
        let witness = Witness::new(owner.me, Bounds::new(LEASE), std::time::Instant::now());
        let incoming = incoming(&owner, &route, witness.clone());
        let peers = callers(&edge, "ring", &security);
        let stop = owner.stop.clone();
        tokio::spawn(async move {
            serve(incoming, &security, listener, stop.cancelled_owned()).await.unwrap();
        });
        Self { owner, edge, addr, peers, witness, gate, route }
    }

    async fn attach(&self, attach: &Attach) -> Result<Attached, PeerError> {
        soon("an answer", self.peers.attach(self.owner.me, &self.addr, attach, 1)).await
    }

    async fn reader(&self, key: &str) -> Reader {
        Reader::new(self.attach(&wish(&self.route, key)).await.unwrap().link)
    }
}

#[tokio::test]
async fn a_client_of_another_node_is_served_like_one_of_the_owners() {
    let pair = Pair::start().await;
    let mut remote = pair.reader("room").await;
    let attach = wish(&pair.route, "room");
    let mut local = Reader::new(pair.owner.attach(&attach).await.unwrap().link);
    remote.send("from afar");
    for reader in [&mut remote, &mut local] {
        assert_eq!(reader.next().await, Ok((1, "from afar".into())));
    }
    let large = "x".repeat(900_000);
    remote.send(&large);
    assert!(remote.text().await == large, "it arrives as it was");
    let resumed = pair.attach(&Attach { last_seq: Some(1), ..attach.clone() }).await.unwrap();
    assert_eq!(resumed.resume, Resume::Ok);
    let gap = pair.attach(&Attach { last_seq: Some(99), ..attach }).await.unwrap();
    assert_eq!(gap.resume, Resume::Gap { floor: 1 });
    assert_eq!((pair.peers.open_streams(), pair.gate.dials()), (1, 1));
}

#[tokio::test]
async fn remote_clients_that_do_not_read_hold_up_no_other() {
    let pair = Pair::start().await;
    let mut stalled = Vec::new();
    for n in 0..64 {
        let mut reader = pair.reader(&format!("stalled {n}")).await;
        for _ in 0..8 {
            reader.send(&"x".repeat(20_000));
        }
        stalled.push(reader);
    }
    let mut lively = pair.reader("lively").await;
    for n in 0..100 {
        lively.send(&format!("m{n}"));
        assert_eq!(lively.text().await, format!("m{n}"));
    }
    for reader in &mut stalled {
        for _ in 0..8 {
            assert_eq!(reader.text().await.len(), 20_000, "what waited was not lost");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_its_edge_leaves_the_session() {
    let pair = Pair::start().await;
    let remote = pair.reader("room").await;
    let handle = pair.owner.registry.list().pop().unwrap();
    assert_eq!(handle.stats.clients.lock().len(), 1);
    drop(remote);
    eventually("the owner hears of it", async || handle.stats.clients.lock().is_empty()).await;
}

#[tokio::test]
async fn an_owner_that_drains_tells_remote_clients_that_the_session_moved() {
    let pair = Pair::start().await;
    let mut remote = pair.reader("room").await;
    pair.owner.registry.begin_drain();
    pair.owner.store.begin_drain(pair.owner.me).await.unwrap();
    pair.owner.registry.list().pop().unwrap().drain(tokio::time::Instant::now() + LEASE).await;
    assert_eq!(remote.next().await, Err(Some(Frame::Moved)));
    let id = wish(&pair.route, "room").session;
    assert_eq!(pair.edge.row(id).await.owner, None, "whoever has room may claim it");
    pair.edge.attach(&wish(&pair.route, "room")).await.unwrap();
    match pair.attach(&wish(&pair.route, "room")).await.unwrap_err() {
        PeerError::Answer(AttachError::NotOwner(owner)) => {
            assert_eq!(owner.incarnation, pair.edge.me);
        }
        PeerError::Answer(AttachError::Failed(error)) => assert_eq!(error.code, Code::NodeDraining),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_owner_that_goes_ends_its_remote_links_without_a_last_frame() {
    let pair = Pair::start().await;
    let mut remote = pair.reader("room").await;
    pair.owner.stop.cancel();
    assert_eq!(remote.next().await, Err(None));
    eventually("nobody is attached there any more", async || {
        matches!(pair.attach(&wish(&pair.route, "b")).await, Err(PeerError::Unreachable(_)))
    })
    .await;
    let count = |outcome| {
        pair.edge.counted(&format!("ringspan_forward_seconds_count{{outcome=\"{outcome}\"}}"))
    };
    assert!(count("failed") > Some(0), "who looks at the figures sees that it is not reached");
    assert!(count("ok") > Some(0));
}

#[tokio::test]
async fn what_the_owner_answers_reaches_the_edge_as_it_was_meant() {
    let pair = Pair::start().await;
    let attach = wish(&pair.route, "room");
    drop(pair.attach(&attach).await.unwrap());
    let stranger = Attach { principal: Principal([9; 16]), ..attach.clone() };
    match pair.attach(&stranger).await.unwrap_err() {
        PeerError::Answer(AttachError::Failed(error)) => assert_eq!(error.code, Code::Forbidden),
        other => panic!("{other:?}"),
    }
    let elsewhere = wish(&pair.route, "elsewhere");
    let held = pair.edge.attach(&elsewhere).await.unwrap();
    match pair.attach(&elsewhere).await.unwrap_err() {
        PeerError::Answer(AttachError::NotOwner(owner)) => {
            assert_eq!((owner.incarnation, owner.epoch), (pair.edge.me, held.epoch));
        }
        other => panic!("{other:?}"),
    }
    let mut unknown = (*pair.route).clone();
    unknown.path = "/other".into();
    match pair.attach(&wish(&Arc::new(unknown), "room")).await.unwrap_err() {
        PeerError::Answer(AttachError::Failed(error)) => assert_eq!(error.code, Code::Internal),
        other => panic!("{other:?}"),
    }
    let hops = pair.peers.attach(pair.owner.me, &pair.addr, &attach, MAX_HOPS + 1);
    match soon("an answer", hops).await.unwrap_err() {
        PeerError::Answer(AttachError::Failed(error)) => assert_eq!(error.code, Code::OwnerMoving),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_node_of_another_ring_another_life_or_without_the_secret_is_refused() {
    let token = PeerSecurity::Tokens(vec![Secret::new("the ring's own secret")]);
    let pair = Pair::with(Gate::open(SampleAuth::Open).await, token.clone()).await;
    let attach = wish(&pair.route, "room");
    let wrong = PeerSecurity::Tokens(vec![Secret::new("some other secret")]);
    let strangers = [
        (callers(&pair.edge, "ring", &wrong), pair.owner.me),
        (callers(&pair.edge, "ring", &PeerSecurity::Plaintext), pair.owner.me),
        (callers(&pair.edge, "other", &token), pair.owner.me),
        (callers(&pair.edge, "ring", &token), Incarnation(pair.owner.me.0 + 77)),
    ];
    for (at, (peers, target)) in strangers.iter().enumerate() {
        let refused = soon("an answer", peers.attach(*target, &pair.addr, &attach, 1)).await;
        assert!(matches!(refused, Err(PeerError::Unreachable(_))), "{at}: {refused:?}");
    }
    assert!(pair.owner.registry.is_empty(), "refused before any work");
    assert!(pair.attach(&attach).await.is_ok());
}

#[tokio::test]
async fn a_hundred_attaches_at_once_share_one_stream() {
    let pair = Pair::start().await;
    let keys: Vec<_> = (0..100).map(|n| wish(&pair.route, &format!("r{n}"))).collect();
    let attached =
        futures_util::future::join_all(keys.iter().map(|attach| pair.attach(attach))).await;
    assert!(attached.iter().all(Result::is_ok));
    assert_eq!(pair.peers.open_streams(), 1);
    assert_eq!(pair.owner.registry.len(), 100);
}

#[tokio::test]
async fn an_attach_that_its_client_gave_up_leaves_no_client_behind() {
    let gate = Gate::with_permits(SampleAuth::Open, 0).await;
    let pair = Pair::with(gate, PeerSecurity::Plaintext).await;
    let attach = wish(&pair.route, "room");
    tokio::select! {
        _ = pair.attach(&attach) => panic!("nothing lets the dial through"),
        () = eventually("the owner dials", async || pair.gate.dials() == 1) => {}
    }
    pair.gate.permits.add_permits(10);
    let mut other = pair.reader("room").await;
    other.send("served");
    assert_eq!(other.text().await, "served");
    let handle = pair.owner.registry.list().pop().unwrap();
    eventually("only the one that stayed is left", async || handle.stats.clients.lock().len() == 1)
        .await;
}

#[tokio::test]
async fn a_member_promises_only_while_it_is_cut_off_itself() {
    let pair = Pair::start().await;
    let bounds = Bounds::new(LEASE);
    let ask = async |outage| pair.peers.ask(pair.owner.me, &pair.addr, bounds, outage).await;
    eventually("the edge is known", async || {
        ask(false).await.is_ok_and(|testimony| testimony.knows_you)
    })
    .await;
    assert!(!ask(true).await.unwrap().promised, "it has just begun");
    let now = std::time::Instant::now();
    pair.witness.renewed(now.checked_sub(bounds.cut_off()).unwrap());
    assert!(ask(true).await.unwrap().promised);
    assert!(!ask(false).await.unwrap().promised, "only who asks is promised anything");
    pair.witness.renewed(now);
    assert!(!ask(true).await.unwrap().promised, "it reaches the store");
}

#[tokio::test]
async fn neither_another_cluster_nor_another_lease_finds_a_witness() {
    let pair = Pair::start().await;
    let other = Bounds::new(LEASE * 2);
    let asked = pair.peers.ask(pair.owner.me, &pair.addr, other, true).await;
    assert_eq!(asked, Err(NoTestimony::Silent("the nodes' lease_ttl differ".into())));
    let stranger = callers(&pair.edge, "another ring", &PeerSecurity::Plaintext);
    let asked = stranger.ask(pair.owner.me, &pair.addr, Bounds::new(LEASE), true).await;
    assert!(matches!(asked, Err(NoTestimony::Silent(_))), "{asked:?}");
}

async fn channel(pair: &Pair) -> tonic::transport::Channel {
    let url = format!("http://{}", pair.addr);
    tonic::transport::Endpoint::from_shared(url).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn what_anybody_may_ask_is_small() {
    use tonic::Code;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    let pair = Pair::start().await;
    let mut health = HealthClient::new(channel(&pair).await);
    let mut ask = async |bytes| {
        let request = HealthCheckRequest { service: "x".repeat(bytes) };
        health.check(request).await.unwrap_err().code()
    };
    assert_eq!(ask(4000).await, Code::NotFound, "it was read");
    assert_eq!(ask(5000).await, Code::OutOfRange);
}

#[tokio::test]
async fn a_call_that_anybody_may_make_does_not_wait_for_its_request_for_ever() {
    let pair = Pair::start().await;
    let mut health = tonic::client::Grpc::new(channel(&pair).await);
    health.ready().await.unwrap();
    let never = tokio_stream::pending::<tonic_health::pb::HealthCheckRequest>();
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<_, tonic_health::pb::HealthCheckResponse>::default();
    let answer =
        health.client_streaming(tonic::Request::new(never), path, codec).await.unwrap_err();
    assert_eq!(answer.code(), tonic::Code::DeadlineExceeded);
}
