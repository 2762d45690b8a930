//! Sends the metrics, every now and then and once more at the end.

use std::{io::Write as _, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use opentelemetry_http::HttpClient;
use opentelemetry_otlp::Protocol;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient,
    },
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{ResourceMetrics, ScopeMetrics},
    resource,
};
use opentelemetry_sdk::Resource;
use prost::Message;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{
    codec::CompressionEncoding,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::{
    Env,
    http::Http,
    points::{self, Span},
    target::{Target, TargetError},
};
use crate::telemetry::metrics::{Loss, Metrics, Signal};

/// Between two pushes, where `OTEL_METRIC_EXPORT_INTERVAL` says nothing.
const INTERVAL: Duration = Duration::from_mins(1);

enum Transport {
    Grpc(MetricsServiceClient<Channel>),
    Http(Http),
}

/// One collector of metrics. It holds nothing between two pushes: a push that fails is
/// overtaken by the next, whose sums include it.
pub struct Pusher {
    target: Target,
    transport: Transport,
    headers: HeaderMap,
    resource: resource::v1::Resource,
    interval: Duration,
    metrics: Metrics,
    /// Nanoseconds since the Unix epoch.
    start: u64,
}

impl Pusher {
    /// Connects to nobody yet. Call inside the runtime.
    pub(crate) fn new(
        target: Target,
        resource: &Resource,
        metrics: Metrics,
        env: &impl Env,
    ) -> Result<Self, TargetError> {
        let transport = if target.protocol == Protocol::Grpc {
            let mut endpoint = Endpoint::from_shared(target.endpoint.clone())
                .map_err(|error| target.fault(&error))?
                .connect_timeout(target.timeout)
                .timeout(target.timeout);
            if let Some(tls) = target.grpc_tls()? {
                endpoint = endpoint.tls_config(tls).map_err(|error| target.fault(&error))?;
            }
            let client = MetricsServiceClient::new(endpoint.connect_lazy());
            Transport::Grpc(if target.gzip {
                client.send_compressed(CompressionEncoding::Gzip)
            } else {
                client
            })
        } else {
            Transport::Http(Http::new(&target)?)
        };
        let interval = match env("OTEL_METRIC_EXPORT_INTERVAL").map(|text| text.trim().parse()) {
            None => INTERVAL,
            Some(Ok(millis)) if millis > 0 => Duration::from_millis(millis),
            Some(_) => {
                let what = "OTEL_METRIC_EXPORT_INTERVAL is a number of milliseconds above 0";
                return Err(target.fault(&what));
            }
        };
        Ok(Self {
            headers: target.headers(env),
            resource: described(resource),
            transport,
            target,
            interval,
            metrics,
            start: now(),
        })
    }

    /// Pushes until `stop`, and then once more.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut tick = interval(self.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let last = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                _ = tick.tick() => false,
            };
            self.push().await;
            if last {
                return;
            }
        }
    }

    async fn push(&self) {
        let span = Span { start: self.start, now: now() };
        let metrics = points::metrics(&self.metrics.encode(), span);
        let points = points::count(&metrics) as u64;
        let scope = InstrumentationScope { name: "ringspan".into(), ..Default::default() };
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(scope),
                    metrics,
                    ..Default::default()
                }],
                ..Default::default()
            }],
        };
        match timeout(self.target.timeout, self.send(request)).await {
            Ok(Ok(())) => {
                self.metrics.otlp_sent(Signal::Metrics).inc_by(points);
            }
            Ok(Err(reason)) => self.lost(points, &reason),
            Err(_) => self.lost(points, "no answer in time"),
        }
    }

    fn lost(&self, points: u64, reason: &str) {
        self.metrics.otlp_lost(Signal::Metrics, Loss::Failed).inc_by(points);
        tracing::debug!(reason, points, "the collector did not take the metrics");
    }

    async fn send(&self, request: ExportMetricsServiceRequest) -> Result<(), String> {
        match &self.transport {
            Transport::Grpc(client) => {
                let mut request = tonic::Request::new(request);
                *request.metadata_mut() = MetadataMap::from_headers(self.headers.clone());
                // A clone shares the connection.
                let sent = client.clone().export(request).await;
                sent.map(drop).map_err(|status| format!("{}: {}", status.code(), status.message()))
            }
            Transport::Http(http) => {
                let mut body = request.encode_to_vec();
                let mut post = Request::post(&self.target.endpoint);
                if let Some(headers) = post.headers_mut() {
                    headers.extend(self.headers.clone());
                    headers.insert(
                        http::header::CONTENT_TYPE,
                        HeaderValue::from_static("application/x-protobuf"),
                    );
                    if self.target.gzip {
                        headers.insert(
                            http::header::CONTENT_ENCODING,
                            HeaderValue::from_static("gzip"),
                        );
                        body = gzipped(&body).map_err(|error| error.to_string())?;
                    }
                }
                let post = post.body(Bytes::from(body)).map_err(|error| error.to_string())?;
                let answer = http.send_bytes(post).await.map_err(|error| error.to_string())?;
                let status = answer.status();
                if status.is_success() { Ok(()) } else { Err(format!("it answered {status}")) }
            }
        }
    }
}

fn gzipped(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

fn described(resource: &Resource) -> resource::v1::Resource {
    let attribute = |(key, value): (&opentelemetry::Key, &opentelemetry::Value)| KeyValue {
        key: key.to_string(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.to_string())) }),
        ..KeyValue::default()
    };
    let attributes = resource.iter().map(attribute).collect();
    resource::v1::Resource { attributes, ..Default::default() }
}

/// Nanoseconds since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "a stamp for the collector; nothing compares it")]
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
