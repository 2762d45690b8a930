//! The metrics as OTLP has them, read from what a scrape would be given. There is one way to
//! count; this is only another way to say it, so the two cannot disagree.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum,
        metric::Data, number_data_point::Value,
    },
};

/// When counting began and when it was looked, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) now: u64,
}

/// Every family of `OpenMetrics` text that has a value. Names are those of the families, so
/// that a backend that adds the unit and `_total` gets what a scrape has.
pub(super) fn metrics(text: &str, span: Span) -> Vec<Metric> {
    let mut families: Vec<Family> = Vec::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (Some(what), Some(name)) = (words.next(), words.next()) else { continue };
            let rest = words.next().unwrap_or_default();
            if families.last().is_none_or(|last| last.name != name) {
                families.push(Family { name, ..Family::default() });
            }
            let Some(family) = families.last_mut() else { continue };
            match what {
                "HELP" => family.help = rest,
                "TYPE" => family.kind = rest,
                "UNIT" => family.unit = rest,
                _ => {}
            }
        } else if let (Some(sample), Some(family)) = (Sample::parse(line), families.last_mut()) {
            family.samples.push(sample);
        }
    }
    families.retain(|family| !family.samples.is_empty());
    families.into_iter().map(|family| family.metric(span)).collect()
}

/// How many points there are: what one push carries.
pub(super) fn count(metrics: &[Metric]) -> usize {
    let points = |metric: &Metric| match &metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Histogram(histogram)) => histogram.data_points.len(),
        _ => 0,
    };
    metrics.iter().map(points).sum()
}

#[derive(Default)]
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    unit: &'a str,
    help: &'a str,
    samples: Vec<Sample<'a>>,
}

/// One line of the text: `name{a="b"} 1`.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let end = line.find(['{', ' '])?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = Vec::new();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            while !rest.starts_with('}') {
                let (label, after) = rest.split_once("=\"")?;
                let (value, after) = quoted(after)?;
                labels.push((label, value));
                rest = after.strip_prefix(',').unwrap_or(after);
            }
            rest = &rest[1..];
        }
        let value = rest.split_whitespace().next()?.parse().ok()?;
        Some(Self { name, labels, value })
    }
}

/// The text up to the closing quote, without its escapes, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

impl Family<'_> {
    fn metric(self, span: Span) -> Metric {
        let cumulative = AggregationTemporality::Cumulative as i32;
        let data = match self.kind {
            "counter" => Data::Sum(Sum {
                data_points: self.numbers(span),
                aggregation_temporality: cumulative,
                is_monotonic: true,
            }),
            "histogram" => Data::Histogram(Histogram {
                data_points: self.histograms(span),
                aggregation_temporality: cumulative,
            }),
            // An info is a gauge whose labels matter.
            _ => Data::Gauge(Gauge { data_points: self.numbers(span) }),
        };
        Metric {
            name: self.name.to_owned(),
            description: self.help.trim_end_matches('.').to_owned(),
            unit: match self.unit {
                "seconds" => "s",
                "bytes" => "By",
                _ => "1",
            }
            .to_owned(),
            data: Some(data),
            ..Metric::default()
        }
    }

    fn numbers(&self, Span { start, now }: Span) -> Vec<NumberDataPoint> {
        let point = |sample: &Sample| NumberDataPoint {
            attributes: attributes(&sample.labels),
            start_time_unix_nano: if self.kind == "counter" { start } else { 0 },
            time_unix_nano: now,
            value: Some(Value::AsDouble(sample.value)),
            ..NumberDataPoint::default()
        };
        self.samples.iter().map(point).collect()
    }

    /// The text's buckets are cumulative and end with `+Inf`; OTLP's hold their own only.
    fn histograms(&self, Span { start, now }: Span) -> Vec<HistogramDataPoint> {
        let mut points: BTreeMap<Vec<(&str, String)>, (HistogramDataPoint, f64)> = BTreeMap::new();
        for sample in &self.samples {
            let mut labels = sample.labels.clone();
            let bound = labels.iter().position(|(name, _)| *name == "le");
            let bound = bound.map(|at| labels.remove(at).1);
            let (point, before) = points.entry(labels).or_insert_with_key(|labels| {
                let point = HistogramDataPoint {
                    attributes: attributes(labels),
                    start_time_unix_nano: start,
                    time_unix_nano: now,
                    ..HistogramDataPoint::default()
                };
                (point, 0.0)
            });
            match (sample.name.strip_prefix(self.name), bound) {
                (Some("_sum"), _) => point.sum = Some(sample.value),
                (Some("_count"), _) => point.count = whole(sample.value),
                (Some("_bucket"), Some(bound)) => {
                    point.bucket_counts.push(whole(sample.value - *before));
                    *before = sample.value;
                    if let Ok(bound) = bound.parse::<f64>()
                        && bound.is_finite()
                    {
                        point.explicit_bounds.push(bound);
                    }
                }
                _ => {}
            }
        }
        points.into_values().map(|(point, _)| point).collect()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count, written as a whole number and read back as one"
)]
fn whole(value: f64) -> u64 {
    value.max(0.0) as u64
}

fn attributes(labels: &[(&str, String)]) -> Vec<KeyValue> {
    let attribute = |(name, value): &(&str, String)| KeyValue {
        key: (*name).to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.clone())) }),
        ..KeyValue::default()
    };
    labels.iter().map(attribute).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::metrics::{Direction, Metrics, TurnOutcome};

    const SPAN: Span = Span { start: 1, now: 2 };

    fn find<'a>(all: &'a [Metric], name: &str) -> &'a Metric {
        all.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn a_collector_is_told_what_a_scrape_is() {
        let metrics = Metrics::new();
        metrics.frames("/v1/\"x\"", Direction::Up).record(3, 100);
        metrics.turn("/v1/responses", TurnOutcome::Completed, Duration::from_millis(30));
        metrics.turn("/v1/responses", TurnOutcome::Completed, Duration::from_hours(2));
        let all = super::metrics(&metrics.encode(), SPAN);

        let frames = find(&all, "ringspan_frames");
        let Some(Data::Sum(sum)) = &frames.data else { panic!("{frames:?}") };
        assert!(sum.is_monotonic);
        let point = &sum.data_points[0];
        assert_eq!(point.value, Some(Value::AsDouble(3.0)));
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (1, 2));
        let route = point.attributes.iter().find(|pair| pair.key == "route").unwrap();
        let Some(any_value::Value::StringValue(text)) = &route.value.as_ref().unwrap().value else {
            panic!("{route:?}")
        };
        assert_eq!(text, "/v1/\"x\"");

        let turns = find(&all, "ringspan_turn_seconds");
        assert_eq!(turns.unit, "s");
        let Some(Data::Histogram(histogram)) = &turns.data else { panic!("{turns:?}") };
        let point = &histogram.data_points[0];
        assert_eq!(point.count, 2);
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), 2);
        assert_eq!(*point.bucket_counts.last().unwrap(), 1, "two hours are beyond the last bound");
    }

    #[test]
    fn every_sample_of_a_scrape_is_in_a_push() {
        let metrics = Metrics::new();
        metrics.store("claim", Duration::from_millis(1));
        let text = metrics.encode();
        let all = super::metrics(&text, SPAN);
        let scraped = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter(|line| !line.contains("_bucket{") && !line.contains("_sum"))
            .count();
        assert_eq!(count(&all), scraped);
    }
}
