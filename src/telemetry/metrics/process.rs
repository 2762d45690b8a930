//! `process_*`: what the kernel knows of this process, read from `/proc` when asked for.
//! A machine without `/proc` simply has none of them.

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::catalogue::MetricInfo;

/// Ticks of `/proc/*/stat` per second: `USER_HZ`, which is 100 in the kernel's ABI on
/// every architecture this program is built for.
const TICKS_PER_SECOND: f64 = 100.0;

const CPU: &str = "User and system CPU time spent";
const RSS: &str = "Resident memory size";
const FDS: &str = "Open file descriptors";
const MAX_FDS: &str = "Greatest number of open file descriptors";
const THREADS: &str = "Operating system threads";
const START: &str = "Start time of the process since the unix epoch";

/// Reads the values at each scrape.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut to: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: Option<f64>| {
            let Some(value) = value else { return Ok(()) };
            let metric = ConstGauge::new(value);
            metric.encode(to.encode_descriptor(name, help, unit, metric.metric_type())?)
        };
        gauge("process_resident_memory", RSS, Some(&Unit::Bytes), resident_bytes())?;
        gauge("process_open_fds", FDS, None, open_fds())?;
        gauge("process_max_fds", MAX_FDS, None, max_fds())?;
        let stat = Stat::read();
        gauge("process_threads", THREADS, None, stat.as_ref().map(|stat| stat.threads))?;
        let since_epoch = stat.as_ref().and_then(|stat| Some(boot_time()? + stat.started));
        gauge("process_start_time", START, Some(&Unit::Seconds), since_epoch)?;
        if let Some(stat) = stat {
            let cpu = ConstCounter::new(stat.cpu);
            let kind = cpu.metric_type();
            cpu.encode(to.encode_descriptor("process_cpu", CPU, Some(&Unit::Seconds), kind)?)?;
        }
        Ok(())
    }
}

/// The catalogue's lines of what [`Process`] writes.
pub(super) fn infos() -> Vec<MetricInfo> {
    let info = |name: &str, kind, unit: Option<&str>, help: &str| MetricInfo {
        name: name.to_owned(),
        kind,
        unit: unit.map(str::to_owned),
        help: help.to_owned(),
        labels: Vec::new(),
        values: std::collections::BTreeMap::new(),
    };
    vec![
        info("process_resident_memory_bytes", "gauge", Some("bytes"), RSS),
        info("process_open_fds", "gauge", None, FDS),
        info("process_max_fds", "gauge", None, MAX_FDS),
        info("process_threads", "gauge", None, THREADS),
        info("process_start_time_seconds", "gauge", Some("seconds"), START),
        info("process_cpu_seconds_total", "counter", Some("seconds"), CPU),
    ]
}

/// The fields of `/proc/self/stat` that are of use; times in seconds.
struct Stat {
    cpu: f64,
    threads: f64,
    /// Since boot.
    started: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the program's name in parentheses and may hold blanks.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // proc(5) counts from 1 and the first field left is number 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu: (field(14)? + field(15)?) / TICKS_PER_SECOND,
            threads: field(20)?,
            started: field(22)? / TICKS_PER_SECOND,
        })
    }
}

/// The number after `key` at the beginning of a line of a file.
fn number_after(path: &str, key: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

fn resident_bytes() -> Option<f64> {
    Some(number_after("/proc/self/status", "VmRSS:")? * 1024.0)
}

fn max_fds() -> Option<f64> {
    number_after("/proc/self/limits", "Max open files")
}

fn boot_time() -> Option<f64> {
    number_after("/proc/stat", "btime ")
}

fn open_fds() -> Option<f64> {
    // The listing itself holds one.
    let open = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
    u32::try_from(open).ok().map(f64::from)
}
