//! Bounded queues in front of the exporters, and the count of what passed and what was lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry::{Context, InstrumentationScope, logs::Severity};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::{BatchLogProcessor, LogBatch, LogExporter, LogProcessor, SdkLogRecord},
    trace::{BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};

use crate::telemetry::metrics::{Counter, Loss, Metrics, Signal};

/// What is held of one signal, what left, and what was lost. The SDK's queues drop in
/// silence when they are full; this one is never longer than theirs, so that nothing is
/// dropped uncounted.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    held: Arc<AtomicUsize>,
    limit: usize,
    sent: Counter,
    no_room: Counter,
    failed: Counter,
}

impl Tally {
    /// At most `limit` items are held.
    pub(super) fn new(metrics: &Metrics, signal: Signal, limit: usize) -> Self {
        Self {
            held: Arc::default(),
            limit,
            sent: metrics.otlp_sent(signal),
            no_room: metrics.otlp_lost(signal, Loss::NoRoom),
            failed: metrics.otlp_lost(signal, Loss::Failed),
        }
    }

    /// Takes a place; false, and a loss, if there is none.
    fn admit(&self) -> bool {
        let admitted = self
            .held
            .fetch_update(Relaxed, Relaxed, |held| (held < self.limit).then_some(held + 1));
        if admitted.is_err() {
            self.no_room.inc();
        }
        admitted.is_ok()
    }

    /// Gives places back: the items were sent, or are lost.
    fn left(&self, items: usize, sent: bool) {
        // Saturating: an exporter that were told of more than was admitted must not wrap.
        let _ = self.held.fetch_update(Relaxed, Relaxed, |held| Some(held.saturating_sub(items)));
        let to = if sent { &self.sent } else { &self.failed };
        to.inc_by(items as u64);
    }
}

/// An exporter whose batches are counted.
#[derive(Debug)]
pub(super) struct Counted<E> {
    inner: E,
    tally: Tally,
}

impl<E> Counted<E> {
    pub(super) fn new(inner: E, tally: Tally) -> Self {
        Self { inner, tally }
    }
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let items = batch.len();
        let result = self.inner.export(batch).await;
        self.tally.left(items, result.is_ok());
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Counted<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let items = batch.iter().count();
        let result = self.inner.export(batch).await;
        self.tally.left(items, result.is_ok());
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn event_enabled(&self, level: Severity, target: &str, name: Option<&str>) -> bool {
        self.inner.event_enabled(level, target, name)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Spans on their way into the batches.
#[derive(Debug)]
pub(super) struct CountedSpans {
    batches: BatchSpanProcessor,
    tally: Tally,
}

impl CountedSpans {
    pub(super) fn new(batches: BatchSpanProcessor, tally: Tally) -> Self {
        Self { batches, tally }
    }
}

impl SpanProcessor for CountedSpans {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.batches.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        // What is not sampled does not enter the batches.
        if span.span_context.is_sampled() && self.tally.admit() {
            self.batches.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Log records on their way into the batches.
#[derive(Debug)]
pub(super) struct CountedLogs {
    batches: BatchLogProcessor,
    tally: Tally,
}

impl CountedLogs {
    pub(super) fn new(batches: BatchLogProcessor, tally: Tally) -> Self {
        Self { batches, tally }
    }
}

impl LogProcessor for CountedLogs {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.tally.admit() {
            self.batches.emit(record, scope);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn event_enabled(&self, level: Severity, target: &str, name: Option<&str>) -> bool {
        self.batches.event_enabled(level, target, name)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_lost_and_counted() {
        let metrics = Metrics::new();
        let tally = Tally::new(&metrics, Signal::Traces, 2);
        assert_eq!([(); 3].map(|()| tally.admit()), [true, true, false]);
        tally.left(1, true);
        assert!(tally.admit(), "what was sent makes room");
        tally.left(2, false);
        let text = metrics.encode();
        for line in [
            r#"ringspan_otlp_sent_total{signal="traces"} 1"#,
            r#"ringspan_otlp_lost_total{signal="traces",reason="no_room"} 1"#,
            r#"ringspan_otlp_lost_total{signal="traces",reason="failed"} 2"#,
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
