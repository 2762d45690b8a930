//! Logs to stderr, and spans to an OTLP collector where one is configured.

use std::{io::IsTerminal, time::Duration};

use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::SdkTracerProvider,
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::config::{LogFormat, Telemetry};

/// How long a shutdown waits for the last spans to leave. Short of any drain's margin, so
/// that a dead collector never delays an exit noticeably.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Why logs or traces cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is not in the syntax of `tracing` directives.
    #[error("log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The endpoint is no address that spans can be sent to.
    #[error("otlp endpoint: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// A subscriber is installed already.
    #[error("logging: {0}")]
    Subscriber(#[from] tracing_subscriber::util::TryInitError),
}

/// Keeps the export alive; give it back to [`Guard::shutdown`] at the end.
#[derive(Debug)]
#[must_use = "spans are lost unless the guard is shut down"]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Guard {
    /// Sends what is still held, within a bounded time. Runs to its end even if the
    /// future is dropped.
    pub async fn shutdown(self) {
        let Some(provider) = self.provider else { return };
        // The call blocks, and the export needs the runtime to go on meanwhile.
        let flush =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        match tokio::time::timeout(FLUSH_TIMEOUT * 2, flush).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last spans could not be sent"),
            Ok(Err(_)) | Err(_) => tracing::warn!("the last spans could not be sent in time"),
        }
    }
}

/// Installs logs, and traces where an endpoint is configured (`otlp_endpoint` or the
/// standard `OTEL_EXPORTER_OTLP_*` variables). Call once, inside the runtime.
///
/// # Errors
/// See [`InitError`]; nothing is installed then.
pub fn init(config: &Telemetry, node_id: &str) -> Result<Guard, InitError> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let filter = EnvFilter::try_new(&config.log_filter)?;
    let provider = wants_traces(config, env).then(|| provider(config, node_id, env)).transpose()?;
    let mut layers = vec![logs(config.log_format, filter)];
    if let Some(provider) = &provider {
        let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer("ringspan"));
        // The exporter speaks gRPC itself; its own spans would feed on themselves.
        let ours = filter_fn(|meta| meta.target().starts_with("ringspan"));
        layers.push(spans.with_filter(ours).boxed());
    }
    tracing_subscriber::registry().with(layers).try_init()?;
    Ok(Guard { provider })
}

type Boxed = Box<dyn Layer<Registry> + Send + Sync>;

/// One line per event to stderr; stdout belongs to the commands.
fn logs(format: LogFormat, filter: EnvFilter) -> Boxed {
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            layer.with_ansi(std::io::stderr().is_terminal()).with_filter(filter).boxed()
        }
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_filter(filter)
            .boxed(),
    }
}

/// Whether an endpoint is configured and tracing is not switched off by the standard
/// variables.
fn wants_traces(config: &Telemetry, env: impl Fn(&str) -> Option<String>) -> bool {
    let is = |name: &str, text: &str| env(name).is_some_and(|value| value == text);
    let endpoint = config.otlp_endpoint.is_some()
        || env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_some()
        || env("OTEL_EXPORTER_OTLP_ENDPOINT").is_some();
    endpoint && !is("OTEL_SDK_DISABLED", "true") && !is("OTEL_TRACES_EXPORTER", "none")
}

/// A provider that sends in batches. Sampler and limits are the SDK's, and so obey the
/// `OTEL_TRACES_SAMPLER*`, `OTEL_BSP_*` and `OTEL_SPAN_*` variables.
fn provider(
    config: &Telemetry,
    node_id: &str,
    env: impl Fn(&str) -> Option<String>,
) -> Result<SdkTracerProvider, InitError> {
    let mut exporter = SpanExporter::builder().with_tonic();
    if let Some(endpoint) = &config.otlp_endpoint {
        exporter = exporter.with_endpoint(endpoint);
    }
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter.build()?)
        .with_resource(resource(node_id, env))
        .build())
}

/// Who sends. What the operator says in `OTEL_RESOURCE_ATTRIBUTES` and
/// `OTEL_SERVICE_NAME` wins over what is found out here.
fn resource(node_id: &str, env: impl Fn(&str) -> Option<String>) -> Resource {
    let found = [
        ("k8s.pod.name", "POD_NAME"),
        ("k8s.namespace.name", "POD_NAMESPACE"),
        ("k8s.node.name", "NODE_NAME"),
    ];
    let builder = Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_service_name("ringspan")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", node_id.to_owned()))
        .with_attributes(
            found.into_iter().filter_map(|(key, name)| Some(KeyValue::new(key, env(name)?))),
        )
        .with_detector(Box::new(EnvResourceDetector::new()));
    match env("OTEL_SERVICE_NAME") {
        Some(name) => builder.with_service_name(name).build(),
        None => builder.build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(otlp_endpoint: Option<&str>) -> Telemetry {
        Telemetry {
            log_format: LogFormat::Text,
            log_filter: "info".into(),
            otlp_endpoint: otlp_endpoint.map(str::to_owned),
        }
    }

    #[test]
    fn traces_are_sent_only_where_somebody_asked_for_them() {
        let unset = |_: &str| None;
        assert!(!wants_traces(&config(None), unset));
        assert!(wants_traces(&config(Some("http://collector:4317")), unset));
        let standard = |name: &str| {
            (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| "http://collector:4317".to_owned())
        };
        assert!(wants_traces(&config(None), standard));
        let disabled = |name: &str| (name == "OTEL_SDK_DISABLED").then(|| "true".to_owned());
        assert!(!wants_traces(&config(Some("http://collector:4317")), disabled));
    }

    #[test]
    fn a_span_says_which_pod_it_is_from() {
        let env = |name: &str| match name {
            "POD_NAME" => Some("ringspan-2".to_owned()),
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
        assert_eq!(text("k8s.node.name"), None);
        assert_eq!(text("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
    }

    #[tokio::test]
    async fn a_dead_collector_does_not_hold_up_the_exit() {
        // Port 9 of loopback: nothing listens there.
        let config = config(Some("http://127.0.0.1:9"));
        let provider = provider(&config, "n", |_| None).unwrap();
        let tracer = provider.tracer("test");
        opentelemetry::trace::Tracer::start(&tracer, "lost");
        let guard = Guard { provider: Some(provider) };
        let ended = tokio::time::timeout(FLUSH_TIMEOUT * 3, guard.shutdown()).await;
        assert!(ended.is_ok());
    }

    #[tokio::test]
    async fn the_last_spans_leave_at_shutdown() {
        let collector = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", collector.local_addr().unwrap());
        let provider = provider(&config(Some(&endpoint)), "n", |_| None).unwrap();
        opentelemetry::trace::Tracer::start(&provider.tracer("test"), "last");
        let shutdown = tokio::spawn(Guard { provider: Some(provider) }.shutdown());
        // A collector that is called and hangs up: the call is what matters here.
        let (mut socket, _) = collector.accept().await.unwrap();
        let mut preface = [0; 14];
        tokio::io::AsyncReadExt::read_exact(&mut socket, &mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0");
        drop((socket, collector));
        let ended = tokio::time::timeout(FLUSH_TIMEOUT * 3, shutdown).await;
        assert!(ended.is_ok());
    }
}
