//! Many seeds, each in a process of its own.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write as _},
    process::{Command, ExitCode, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use crate::judge::Report;

/// Seeds that are run twice, to see that they do the same both times.
const TWICE: u64 = 2;

/// Seeds whose evidence is shown.
const SHOWN: usize = 10;

/// Runs `seeds` seeds from `first` on, on all processors; shows a table.
pub fn run(seeds: u64, first: u64) -> ExitCode {
    let began = uptime();
    let (next, done) = (AtomicU64::new(0), AtomicUsize::new(0));
    let reports = Mutex::new(Vec::new());
    let jobs = env::var("RINGSPAN_JOBS").ok().and_then(|jobs| jobs.parse().ok());
    let jobs = jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= seeds {
                        return;
                    }
                    let mut report = child(first + n);
                    if n < TWICE && child(first + n).trace != report.trace {
                        *report.broken.entry("repeatability".into()).or_default() += 1;
                        report.evidence.push("the same seed did something else".into());
                    }
                    reports.lock().unwrap().push(report);
                    let done = done.fetch_add(1, Relaxed) + 1;
                    if done.is_multiple_of(10) {
                        eprint!("\r{done} of {seeds} seeds, {:.0} s ", uptime() - began);
                        drop(io::stderr().flush());
                    }
                }
            });
        }
    });
    eprintln!();
    let mut reports = reports.into_inner().unwrap();
    reports.sort_by_key(|report| report.seed);
    show(&reports, first, uptime() - began);
    if reports.iter().all(|report| report.broken.is_empty()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// One seed in a process of its own.
fn child(seed: u64) -> Report {
    let program = env::current_exe().expect("the path of this program");
    let output = Command::new(program)
        .args(["seed", &seed.to_string()])
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .output()
        .expect("this program runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let report = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    report.unwrap_or_else(|| Report {
        seed,
        broken: BTreeMap::from([("service".to_owned(), 1)]),
        evidence: vec![format!(
            "its process ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )],
        ..Report::default()
    })
}

/// Seconds since the machine started: the clocks of this process are those of a simulation.
fn uptime() -> f64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

fn show(reports: &[Report], first: u64, seconds: f64) {
    let sum = |of: fn(&Report) -> usize| reports.iter().map(of).sum::<usize>();
    let merge = |of: fn(&Report) -> &BTreeMap<String, usize>| {
        let mut all: BTreeMap<&str, usize> = BTreeMap::new();
        for (what, count) in reports.iter().flat_map(of) {
            *all.entry(what).or_default() += count;
        }
        all
    };
    let failed: Vec<_> = reports.iter().filter(|report| !report.broken.is_empty()).collect();
    for report in failed.iter().take(SHOWN) {
        println!("seed {} ({}): {:?}", report.seed, report.conduct, report.broken);
        for line in &report.evidence {
            println!("  {line}");
        }
    }
    let simulated: u64 = reports.iter().map(|report| report.simulated_ms).sum();
    println!("{:>9} seeds from {first}, in {seconds:.0} s", reports.len());
    println!("{:>9} seconds simulated", simulated / 1000);
    println!("{:>9} turns", sum(|report| report.turns));
    println!("{:>9} of unknown outcome", sum(|report| report.unknown));
    println!("{:>9} conversations forgotten", sum(|report| report.forgotten));
    println!("{:>9} given up by their clients", sum(|report| report.other));
    println!("{:>9} moves and takeovers", sum(|report| report.moves));
    println!("{:>9} of them takeovers", sum(|report| report.takeovers));
    let mut recovered: Vec<_> = reports.iter().map(|it| (it.recovered_ms, it.seed)).collect();
    recovered.sort_unstable();
    let at = |part: usize| recovered.get(recovered.len() * part / 100).copied().unwrap_or((0, 0));
    let most = recovered.last().unwrap_or(&(0, 0));
    println!(
        "{:>9} ms from the last fault to two more turns of every client (median; p99 {}, most {} with seed {})",
        at(50).0,
        at(99).0,
        most.0,
        most.1
    );
    println!("{:>9} facts judged", sum(|report| report.facts));
    println!("faults");
    for (what, count) in merge(|report| &report.faults) {
        println!("{count:>9} {what}");
    }
    println!("noted");
    for (what, count) in merge(|report| &report.notes) {
        println!("{count:>9} {what}");
    }
    println!("violations");
    for (what, count) in merge(|report| &report.broken) {
        println!("{count:>9} {what}");
    }
    let seeds: Vec<_> = failed.iter().map(|report| report.seed.to_string()).collect();
    println!("{:>9} seeds failed: {}", seeds.len(), seeds.join(" "));
}
