//! The peer protocol as another implementation of gRPC speaks it.

use crate::support::{
    Ring, RingOptions, Store,
    real::{grpc, run, script},
    ring::PEER_TOKEN,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcio_finds_every_call_of_the_peer_protocol_as_it_is_written_down() {
    let Some(python) = grpc().await else { return };
    let ring = Ring::start(RingOptions::nodes(1).store(Store::Sqlite)).await;
    let node = ring.node(0);
    let database = ring.database_url.trim_start_matches("sqlite://");
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let args = [&node.peer, &node.admin_url, database, proto, PEER_TOKEN];
    let script = script("grpc_peer.py");
    let summary = run(&python, python.parent().unwrap(), &script, &args).await;
    assert_eq!(summary["failures"], serde_json::json!({}), "{summary}");
    assert_eq!(summary["passed"], summary["checks"], "{summary}");
    // What was tried has not hurt anybody.
    assert_eq!(node.health().await.unwrap()["ready"], true);
    assert!(!node.log().contains("panicked"), "{}", node.log());
}
