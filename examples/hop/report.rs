//! Tables, in Markdown.

use super::measure::Sample;

/// The samples of one subject.
pub struct Row {
    pub name: String,
    pub hops: u8,
    pub samples: Vec<Sample>,
}

/// The middle one; of an even number, the mean of the middle two.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
    f64::midpoint(at(values.len().saturating_sub(1) / 2), at(values.len() / 2))
}

/// Part of the processor that load and upstream share, above which they are what limits.
const BUSY: f64 = 0.95;

impl Row {
    pub fn new(name: impl Into<String>, hops: u8) -> Self {
        Self { name: name.into(), hops, samples: Vec::new() }
    }

    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of))
    }

    /// CPU of the subject in microseconds for each unit: the seconds for a million.
    fn cpu(&self) -> f64 {
        self.median(|sample| sample.cpu / sample.units * 1e6)
    }

    /// Whether load and upstream had hardly anything left in one of the measurements.
    fn is_limited(&self) -> bool {
        self.samples.iter().any(|sample| sample.around / sample.seconds > BUSY)
    }
}

/// Prints one workload: medians, and CPU as a multiple of nginx's of as many hops.
pub fn table(title: &str, unit: &str, rows: &[Row]) {
    let nginx =
        |hops: u8| rows.iter().find(|row| row.hops == hops && row.name.starts_with("nginx"));
    println!("\n### {title}\n");
    println!(
        "| | CPU s per million {unit}s | × nginx | p50 ms | p99 ms | p99.9 ms | {unit}s/s | load and upstream |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        let cpu = row.cpu();
        let ratio = match nginx(row.hops) {
            Some(nginx) if row.hops > 0 => format!("{:.2}", cpu / nginx.cpu()),
            _ => "–".to_owned(),
        };
        let busy = row.median(|sample| sample.around / sample.seconds) * 100.0;
        let failed: f64 = row.samples.iter().map(|sample| sample.failed).sum();
        let postgres = row.median(|sample| sample.postgres / sample.units * 1e6);
        let mut name = row.name.clone();
        if postgres > 0.5 && name.contains("Postgres") {
            name = format!("{name} (and {postgres:.0} in Postgres)");
        }
        if failed > 0.0 {
            name = format!("{name} ({failed} failed)");
        }
        let mark = if row.is_limited() { " \\*" } else { "" };
        println!(
            "| {name} | {} | {ratio} | {} | {} | {} | {:.0}{mark} | {busy:.0}%{mark} |",
            short(cpu),
            short(row.median(|sample| sample.p50)),
            short(row.median(|sample| sample.p99)),
            short(row.median(|sample| sample.p999)),
            row.median(|sample| sample.units / sample.seconds),
        );
    }
    if rows.iter().any(Row::is_limited) {
        println!(
            "\n\\* Load and upstream took more than {:.0} % of the processor that they share: throughput and latency are theirs. CPU for each {unit} holds.",
            BUSY * 100.0
        );
    }
}

/// Prints figures that have no load of their own.
pub fn list(title: &str, lines: &[(String, String)]) {
    println!("\n### {title}\n");
    for (name, figure) in lines {
        println!("- {name}: {figure}");
    }
}

/// Three digits.
pub fn short(value: f64) -> String {
    match value {
        value if value == 0.0 || value.is_nan() => "–".to_owned(),
        value if value < 1.0 => format!("{value:.3}"),
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}
