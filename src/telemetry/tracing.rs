//! Logs to stderr, and logs, spans and metrics to an OTLP collector where one is configured.

use std::{io::IsTerminal, time::Duration};

use opentelemetry::trace::TracerProvider;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::{logs::SdkLoggerProvider, trace::SdkTracerProvider};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Metadata;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    layer::{Filter, SubscriberExt},
    util::SubscriberInitExt,
};

use super::{
    metrics::{Metrics, Signal},
    otlp::{self, Pusher, Target, TargetError},
};
use crate::config::{LogFormat, Telemetry};

/// How long a shutdown waits for what was not yet sent. Short of any drain's margin, so
/// that a dead collector never delays an exit noticeably.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// The target of the audit log.
pub(crate) const AUDIT: &str = "audit";

/// Why logs or exports cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is not in the syntax of `tracing` directives.
    #[error("log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// A collector cannot be called as the variables say.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A subscriber is installed already.
    #[error("logging: {0}")]
    Subscriber(#[from] tracing_subscriber::util::TryInitError),
}

/// Keeps the export alive; give it back to [`Guard::shutdown`] at the end.
#[derive(Debug, Default)]
#[must_use = "the last spans, logs and metrics are lost unless the guard is shut down"]
pub struct Guard {
    traces: Option<SdkTracerProvider>,
    logs: Option<SdkLoggerProvider>,
    metrics: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Guard {
    /// Sends what is still held, within a bounded time. Runs to its end even if the
    /// future is dropped.
    pub async fn shutdown(self) {
        let Self { traces, logs, metrics } = self;
        if let Some((stop, pushing)) = metrics {
            stop.cancel();
            if tokio::time::timeout(FLUSH_TIMEOUT, pushing).await.is_err() {
                tracing::warn!("the last metrics could not be sent in time");
            }
        }
        // The calls block, and the export needs the runtime to go on meanwhile.
        let flush = tokio::task::spawn_blocking(move || {
            let traces = traces.map(|provider| provider.shutdown_with_timeout(FLUSH_TIMEOUT));
            let logs = logs.map(|provider| provider.shutdown_with_timeout(FLUSH_TIMEOUT));
            traces.into_iter().chain(logs).collect::<Result<(), _>>()
        });
        match tokio::time::timeout(FLUSH_TIMEOUT * 3, flush).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last spans or logs were not sent"),
            Ok(Err(_)) | Err(_) => tracing::warn!("the last spans or logs were not sent in time"),
        }
    }
}

/// Installs logs, and what is to be exported. Call once, inside the runtime.
///
/// # Errors
/// See [`InitError`]; nothing is installed then.
pub fn init(config: &Telemetry, node_id: &str, metrics: &Metrics) -> Result<Guard, InitError> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let target = |signal| Target::of(signal, &config.otlp);
    let resource = otlp::resource(node_id, env);
    let mut guard = Guard::default();
    let mut layers = vec![logs(config.log_format, lines(&config.log_filter)?)];
    if let Some(target) = target(Signal::Traces) {
        let provider = otlp::traces(&target, resource.clone(), metrics, env)?;
        // Where in the code a span was made is of no use to an operator.
        let spans = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("ringspan"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false);
        layers.push(spans.with_filter(filter_fn(is_ours)).boxed());
        guard.traces = Some(provider);
    }
    if let Some(target) = target(Signal::Logs) {
        let provider = otlp::logs(&target, resource.clone(), metrics, env)?;
        let filter = exported(&config.log_filter)?;
        layers.push(OpenTelemetryTracingBridge::new(&provider).with_filter(filter).boxed());
        guard.logs = Some(provider);
    }
    let pusher = target(Signal::Metrics)
        .map(|target| Pusher::new(target, &resource, metrics.clone(), &env))
        .transpose()?;
    tracing_subscriber::registry().with(layers).try_init()?;
    if let Some(pusher) = pusher {
        let stop = CancellationToken::new();
        guard.metrics = Some((stop.clone(), tokio::spawn(pusher.run(stop))));
    }
    Ok(guard)
}

/// What the operator's filter lets through, and the audit log in any case: who makes the logs
/// quieter does not mean the record of who changed what.
fn lines(filter: &str) -> Result<EnvFilter, InitError> {
    let filter = EnvFilter::try_new(filter)?;
    Ok(filter.add_directive(format!("{AUDIT}=info").parse()?))
}

/// The same for the collector, without what others say.
fn exported(filter: &str) -> Result<impl Filter<Registry> + use<>, InitError> {
    let says_it = filter_fn(|meta| is_ours(meta) || meta.target() == AUDIT);
    Ok(lines(filter)?.and(says_it))
}

/// The exporters' own spans and logs would feed on themselves.
fn is_ours(meta: &Metadata<'_>) -> bool {
    meta.target().starts_with("ringspan")
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing::{Event, Subscriber, subscriber::with_default};
    use tracing_subscriber::layer::Context;

    use super::*;

    /// Notes who said something.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<&'static str>>>);

    impl<S: Subscriber> Layer<S> for Heard {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().push(event.metadata().target());
        }
    }

    fn heard(filter: impl Filter<Registry> + Send + Sync + 'static) -> Vec<&'static str> {
        let heard = Heard::default();
        let subscriber = tracing_subscriber::registry().with(heard.clone().with_filter(filter));
        with_default(subscriber, || {
            tracing::info!(target: AUDIT, "an act");
            tracing::info!(target: "ringspan::edge", "a client came");
            tracing::warn!(target: "ringspan::edge", "a client was refused");
            tracing::warn!(target: "h2", "a frame");
        });
        let heard = heard.0.lock();
        heard.clone()
    }

    #[test]
    fn no_filter_silences_the_audit_log() {
        assert_eq!(heard(lines("warn").unwrap()), [AUDIT, "ringspan::edge", "h2"]);
        assert_eq!(heard(lines("off").unwrap()), [AUDIT]);
        assert_eq!(heard(lines("audit=off,error").unwrap()), [AUDIT]);
        assert_eq!(heard(exported("warn").unwrap()), [AUDIT, "ringspan::edge"]);
    }
}
