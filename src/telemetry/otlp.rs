//! Where telemetry is sent: OTLP over gRPC or HTTP, as the standard `OTEL_*` variables say.
//!
//! Nothing here may hold up a frame: what is to be sent waits in bounded queues, batches
//! leave from tasks and threads of their own, and what finds no room or no taker is lost and
//! counted.

mod counted;
mod http;
mod points;
mod push;
mod target;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{
    Compression, ExporterBuildError, LogExporter, Protocol, SpanExporter, WithExportConfig,
    WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::{
    Resource,
    logs::{BatchLogProcessor, SdkLoggerProvider},
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{BatchSpanProcessor, SdkTracerProvider},
};

use self::counted::{Counted, CountedLogs, CountedSpans, Tally};
pub(super) use self::{
    push::Pusher,
    target::{Target, TargetError},
};
use super::metrics::{Metrics, Signal};

/// Looks a variable up; unset and empty are the same.
pub(super) trait Env: Fn(&str) -> Option<String> {}
impl<F: Fn(&str) -> Option<String>> Env for F {}

/// Spans or log records that wait to be sent, where `OTEL_BSP_MAX_QUEUE_SIZE` and
/// `OTEL_BLRP_MAX_QUEUE_SIZE` say nothing else: the SDK's own default.
const QUEUE: usize = 2_048;

/// A provider that sends spans in batches. Sampler and limits are the SDK's, and so obey the
/// `OTEL_TRACES_SAMPLER*`, `OTEL_BSP_*` and `OTEL_SPAN_*` variables.
pub(super) fn traces(
    target: &Target,
    resource: Resource,
    metrics: &Metrics,
    env: impl Env,
) -> Result<SdkTracerProvider, TargetError> {
    let tally = Tally::new(metrics, Signal::Traces, queue(env, "OTEL_BSP_MAX_QUEUE_SIZE"));
    let exporter = Counted::new(span_exporter(target)?, tally.clone());
    let batches = BatchSpanProcessor::builder(exporter).build();
    Ok(SdkTracerProvider::builder()
        .with_resource(resource)
        .with_span_processor(CountedSpans::new(batches, tally))
        .build())
}

/// A provider that sends log records in batches; the `OTEL_BLRP_*` variables hold.
pub(super) fn logs(
    target: &Target,
    resource: Resource,
    metrics: &Metrics,
    env: impl Env,
) -> Result<SdkLoggerProvider, TargetError> {
    let tally = Tally::new(metrics, Signal::Logs, queue(env, "OTEL_BLRP_MAX_QUEUE_SIZE"));
    let exporter = Counted::new(log_exporter(target)?, tally.clone());
    let batches = BatchLogProcessor::builder(exporter).build();
    Ok(SdkLoggerProvider::builder()
        .with_resource(resource)
        .with_log_processor(CountedLogs::new(batches, tally))
        .build())
}

fn queue(env: impl Env, name: &str) -> usize {
    env(name).and_then(|text| text.trim().parse().ok()).unwrap_or(QUEUE)
}

// The two signals' builders share no trait, so what they share is written once here.
macro_rules! exporter {
    ($exporter:ty, $target:expr) => {{
        let target: &Target = $target;
        match target.protocol {
            Protocol::Grpc => {
                let mut builder = <$exporter>::builder()
                    .with_tonic()
                    .with_endpoint(&*target.endpoint)
                    .with_timeout(target.timeout);
                if let Some(tls) = target.grpc_tls()? {
                    builder = builder.with_tls_config(tls);
                }
                if target.gzip {
                    builder = builder.with_compression(Compression::Gzip);
                }
                builder.build()
            }
            _ => {
                let mut builder = <$exporter>::builder()
                    .with_http()
                    .with_http_client(http::Http::new(target)?)
                    .with_protocol(Protocol::HttpBinary)
                    .with_endpoint(&*target.endpoint)
                    .with_timeout(target.timeout);
                if target.gzip {
                    builder = builder.with_compression(Compression::Gzip);
                }
                builder.build()
            }
        }
        .map_err(|error: ExporterBuildError| target.fault(&error))
    }};
}

fn span_exporter(target: &Target) -> Result<SpanExporter, TargetError> {
    exporter!(SpanExporter, target)
}

fn log_exporter(target: &Target) -> Result<LogExporter, TargetError> {
    exporter!(LogExporter, target)
}

/// Who sends. What the operator says in `OTEL_RESOURCE_ATTRIBUTES` and
/// `OTEL_SERVICE_NAME` wins over what is found out here.
pub(super) fn resource(node_id: &str, env: impl Env) -> Resource {
    let found = [
        ("k8s.pod.name", "POD_NAME"),
        ("k8s.pod.uid", "POD_UID"),
        ("k8s.namespace.name", "POD_NAMESPACE"),
        ("k8s.node.name", "NODE_NAME"),
        ("service.namespace", "POD_NAMESPACE"),
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
mod tests;
