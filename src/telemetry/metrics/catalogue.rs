//! The registry together with what is known of each metric in it.

use std::{collections::BTreeMap, fmt, fmt::Write as _};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{EncodeMetric, MetricEncoder, text},
    metrics::{
        MetricType, TypedMetric, counter::Counter, family::Family, gauge::Gauge,
        histogram::Histogram, info::Info,
    },
    registry::{Metric, Registry, Unit},
};
use serde::Serialize;
use tokio::time::Instant;

use super::labels::{Build, LabelNames};

/// What all metrics of this program begin with, but for the `process_` ones, whose names
/// are a convention of Prometheus.
pub(super) const PREFIX: &str = "ringspan";

/// One line of `ringspan metrics list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MetricInfo {
    /// As it is queried, suffix included.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `info`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Base unit; None for plain numbers.
    pub unit: Option<String>,
    pub help: String,
    pub labels: Vec<&'static str>,
    /// All values of the labels that have closed lists of them.
    pub values: BTreeMap<&'static str, &'static [&'static str]>,
}

/// A metric that can be listed before it has a value.
pub(super) trait Described: Metric {
    const KIND: &'static str;
    const LABELS: &'static [(&'static str, &'static [&'static str])] = &[];
}

impl Described for Counter {
    const KIND: &'static str = "counter";
}

impl Described for Gauge {
    const KIND: &'static str = "gauge";
}

impl Described for Histogram {
    const KIND: &'static str = "histogram";
}

impl Described for Remaining {
    const KIND: &'static str = "gauge";
}

impl Described for Since {
    const KIND: &'static str = "gauge";
}

impl<S, M, C> Described for Family<S, M, C>
where
    S: LabelNames + Clone + Eq + std::hash::Hash + fmt::Debug + Send + Sync + 'static,
    M: Described + TypedMetric + EncodeMetric,
    C: prometheus_client::metrics::family::MetricConstructor<M>
        + fmt::Debug
        + Clone
        + Send
        + Sync
        + 'static,
    Self: Metric,
{
    const KIND: &'static str = M::KIND;
    const LABELS: &'static [(&'static str, &'static [&'static str])] = S::LABELS;
}

/// Seconds until a deadline, worked out when it is read: a heartbeat that hangs is seen
/// to run out, where a value set by the heartbeat itself would stand still.
#[derive(Clone, Debug, Default)]
pub(super) struct Remaining(pub(super) std::sync::Arc<Mutex<Option<Instant>>>);

impl TypedMetric for Remaining {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Remaining {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        let deadline = *self.0.lock();
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        encoder.encode_gauge(&left.unwrap_or_default().as_secs_f64())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// Seconds since a condition began, worked out when it is read; 0 while there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct Since(pub(super) std::sync::Arc<Mutex<Option<Instant>>>);

impl TypedMetric for Since {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Since {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        let began = *self.0.lock();
        encoder.encode_gauge(&began.map_or(0.0, |at| at.elapsed().as_secs_f64()))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// Registers metrics and remembers what they are.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    registry: Registry,
    infos: Vec<MetricInfo>,
}

impl Catalogue {
    /// Registers `metric` under `ringspan_<name>[_<unit>]` and returns it.
    pub(super) fn add<M>(&mut self, name: &str, unit: Option<Unit>, help: &str, metric: M) -> M
    where
        M: Described + Clone,
    {
        let mut full = format!("{PREFIX}_{name}");
        let unit_name = unit.as_ref().map(|unit| unit.as_str().to_owned());
        match unit {
            Some(unit) => self.registry.register_with_unit(&full, help, unit, metric.clone()),
            None => self.registry.register(&full, help, metric.clone()),
        }
        if let Some(unit) = &unit_name {
            let _ = write!(full, "_{unit}");
        }
        if M::KIND == "counter" {
            full.push_str("_total");
        }
        self.infos.push(MetricInfo {
            name: full,
            kind: M::KIND,
            unit: unit_name,
            help: format!("{help}."),
            labels: M::LABELS.iter().map(|(label, _)| *label).collect(),
            values: M::LABELS.iter().copied().filter(|(_, values)| !values.is_empty()).collect(),
        });
        metric
    }

    /// Registers `ringspan_<name>_info`: constants, as the labels of a one.
    pub(super) fn info(&mut self, name: &str, help: &str, labels: Build) {
        self.registry.register(format!("{PREFIX}_{name}"), help, Info::new(labels));
        self.infos.push(MetricInfo {
            name: format!("{PREFIX}_{name}_info"),
            kind: "info",
            unit: None,
            help: format!("{help}."),
            labels: Build::LABELS.iter().map(|(label, _)| *label).collect(),
            values: BTreeMap::new(),
        });
    }

    /// Adds metrics that are read when they are asked for.
    pub(super) fn collect(&mut self, collector: Box<dyn Collector>, infos: Vec<MetricInfo>) {
        self.registry.register_collector(collector);
        self.infos.extend(infos);
    }

    /// Every metric, by name.
    pub(super) fn list(&self) -> Vec<MetricInfo> {
        let mut infos = self.infos.clone();
        infos.sort_by(|a, b| a.name.cmp(&b.name));
        infos
    }

    /// `OpenMetrics` text. Writing to a string cannot fail.
    pub(super) fn encode(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

/// The list as an aligned table.
#[must_use]
pub fn render_table(infos: &[MetricInfo]) -> String {
    let width = |of: fn(&MetricInfo) -> usize, least: usize| {
        infos.iter().map(of).max().unwrap_or(0).max(least)
    };
    let name = width(|info| info.name.len(), 4);
    let labels = width(|info| info.labels.join(",").len(), 6);
    let mut table = String::new();
    let _ =
        writeln!(table, "{:name$}  {:9}  {:7}  {:labels$}  HELP", "NAME", "TYPE", "UNIT", "LABELS");
    for info in infos {
        let unit = info.unit.as_deref().unwrap_or("-");
        let list = if info.labels.is_empty() { "-".to_owned() } else { info.labels.join(",") };
        let MetricInfo { name: full, kind, help, .. } = info;
        let _ = writeln!(table, "{full:name$}  {kind:9}  {unit:7}  {list:labels$}  {help}");
    }
    table
}
