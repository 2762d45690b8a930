use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::config::{Collector, Collectors, OtlpProtocol};

fn target(signal: Signal, endpoint: &str, protocol: &'static str) -> Target {
    let is_grpc = protocol == "grpc";
    let collector = |name: &str| Collector {
        protocol: if is_grpc { OtlpProtocol::Grpc } else { OtlpProtocol::Http },
        endpoint: if is_grpc { endpoint.to_owned() } else { format!("{endpoint}/v1/{name}") },
        timeout: Duration::from_secs(1),
        gzip: false,
        certificate: None,
    };
    let collectors = Collectors {
        traces: Some(collector("traces")),
        metrics: Some(collector("metrics")),
        logs: Some(collector("logs")),
    };
    Target::of(signal, &collectors).unwrap()
}

fn unset(_: &str) -> Option<String> {
    None
}

/// The first bytes that a collector is sent; it then hangs up.
async fn first_bytes(collector: tokio::net::TcpListener) -> Vec<u8> {
    let (mut socket, _) = collector.accept().await.unwrap();
    let mut bytes = vec![0; 16];
    socket.read_exact(&mut bytes).await.unwrap();
    bytes
}

async fn bound() -> (tokio::net::TcpListener, String) {
    let collector = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    (collector, endpoint)
}

#[test]
fn a_span_says_which_pod_it_is_from() {
    let env = |name: &str| match name {
        "POD_NAME" => Some("ringspan-2".to_owned()),
        "POD_UID" => Some("6d1f".to_owned()),
        "OTEL_SERVICE_NAME" => Some("bridge".to_owned()),
        _ => None,
    };
    let resource = resource("ringspan-2", env);
    let text = |key: &'static str| {
        resource.get(&opentelemetry::Key::new(key)).map(|value| value.to_string())
    };
    assert_eq!(text("service.name").as_deref(), Some("bridge"));
    assert_eq!(text("service.instance.id").as_deref(), Some("ringspan-2"));
    assert_eq!(text("k8s.pod.name").as_deref(), Some("ringspan-2"));
    assert_eq!(text("k8s.pod.uid").as_deref(), Some("6d1f"));
    assert_eq!(text("k8s.node.name"), None);
    assert_eq!(text("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn the_last_spans_leave_at_shutdown_over_either_protocol() {
    for (protocol, wanted) in [("grpc", "PRI * HTTP/2.0"), ("http/protobuf", "POST /v1/traces")] {
        let (collector, endpoint) = bound().await;
        let target = target(Signal::Traces, &endpoint, protocol);
        let provider = traces(&target, resource("n", unset), &Metrics::new(), unset).unwrap();
        opentelemetry::trace::Tracer::start(&provider.tracer("test"), "last");
        let shutdown = tokio::task::spawn_blocking(move || provider.shutdown());
        let bytes = first_bytes(collector).await;
        assert!(bytes.starts_with(wanted.as_bytes()), "{}", String::from_utf8_lossy(&bytes));
        shutdown.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn spans_that_a_dead_collector_does_not_take_are_counted_as_lost() {
    let metrics = Metrics::new();
    // Port 9 of loopback: nothing listens there.
    let target = target(Signal::Traces, "http://127.0.0.1:9", "http/protobuf");
    let provider = traces(&target, resource("n", unset), &metrics, unset).unwrap();
    for _ in 0..3 {
        opentelemetry::trace::Tracer::start(&provider.tracer("test"), "lost");
    }
    tokio::task::spawn_blocking(move || provider.shutdown()).await.unwrap().unwrap();
    let text = metrics.encode();
    let line = r#"ringspan_otlp_lost_total{signal="traces",reason="failed"} 3"#;
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn metrics_are_pushed_once_more_at_the_end_and_their_loss_is_counted() {
    for protocol in ["grpc", "http/protobuf"] {
        let (collector, endpoint) = bound().await;
        let metrics = Metrics::new();
        let target = target(Signal::Metrics, &endpoint, protocol);
        let stop = tokio_util::sync::CancellationToken::new();
        stop.cancel();
        let pusher = Pusher::new(target, &resource("n", unset), metrics.clone(), &unset).unwrap();
        let pushing = tokio::spawn(pusher.run(stop));
        first_bytes(collector).await;
        let ended = tokio::time::timeout(Duration::from_secs(10), pushing).await;
        ended.expect("a collector that hangs up holds nobody up").unwrap();
        let text = metrics.encode();
        assert!(text.contains(r#"ringspan_otlp_lost_total{signal="metrics",reason="failed"}"#));
    }
}
