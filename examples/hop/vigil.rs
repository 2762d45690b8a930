//! Many sessions that do nothing for a long time: what they hold must not grow, every ping is
//! answered, and at the end they are still there.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;

use super::{
    peers::{free_address, ourselves, wait_for},
    process::{cpu_ns, rss},
    ring::{Database, Nodes},
};

#[derive(Args)]
pub struct Options {
    /// The program to measure.
    #[arg(long)]
    ringspan: PathBuf,
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// In all; each node has its part, and two descriptors for each.
    #[arg(long, default_value_t = 20_000)]
    sessions: usize,
    /// Each with an upstream and a load of its own.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
}

/// How far memory at the end may be above memory after the first twentieth of the time.
const GROWTH: f64 = 1.05;

pub fn run(options: &Options) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("ringspan-hop-").tempdir()?;
    let database = Database::sqlite(dir.path());
    let (mut nodes, mut loads, mut upstreams) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.nodes {
        let upstream = free_address()?;
        upstreams.push(ourselves(&["upstream".into(), upstream.to_string()], 0)?);
        wait_for(upstream)?;
        let binary = options.ringspan.clone();
        let place = Nodes { binary, dir: dir.path().to_owned(), upstream, cpu: 1 };
        nodes.push(place.start(&database, 100, None)?);
    }
    let empty = memory(nodes.iter().map(|node| node.process.id()));
    let each = options.sessions / options.nodes;
    for node in &nodes {
        let words = ["load", "--kind", "vigil", "--connections", &each.to_string(), "--to"];
        let mut words = words.map(str::to_owned).to_vec();
        words.push(node.client.to_string());
        loads.push(ourselves(&words, 0)?);
    }
    for load in &mut loads {
        let line = load.line()?;
        ensure!(line == "begin", "the load says {line}");
    }
    let pids: Vec<u32> = nodes.iter().map(|node| node.process.id()).collect();
    let sessions = each * options.nodes;
    let began = Instant::now();
    let cpu = || pids.iter().map(|pid| cpu_ns(*pid)).sum::<u64>() as f64 / 1e9;
    let (mut then, mut used, mut first) = (began, cpu(), None);
    println!("{sessions} sessions of {} nodes, {:.1} MiB before them", options.nodes, mib(empty));
    println!("minute  resident MiB  KiB/session  CPU of one processor");
    let steps = 20;
    for _ in 0..steps {
        std::thread::sleep(Duration::from_secs(options.minutes * 60) / steps);
        let (now, cpu) = (Instant::now(), cpu());
        let resident = memory(pids.iter().copied());
        first.get_or_insert(resident);
        println!(
            "{:>6.0}  {:>12.1}  {:>11.1}  {:>19.1}%",
            began.elapsed().as_secs_f64() / 60.0,
            mib(resident),
            (resident - empty.min(resident)) as f64 / 1024.0 / sessions as f64,
            (cpu - used) / (now - then).as_secs_f64() * 100.0,
        );
        (then, used) = (now, cpu);
    }
    let last = memory(pids.iter().copied());
    for load in &mut loads {
        load.nudge()?;
    }
    let (mut answered, mut failed) = (0, 0);
    for load in &mut loads {
        let line = load.line()?;
        let mut numbers = line.strip_prefix("end ").context("no result")?.split(' ');
        answered += numbers.next().context("a result that is too short")?.parse::<u64>()?;
        failed += numbers.next_back().context("a result that is too short")?.parse::<u64>()?;
    }
    println!("{answered} pings answered and sessions resumed, {failed} sessions failed");
    ensure!(failed == 0, "{failed} sessions failed");
    let growth = last as f64 / first.unwrap_or(last) as f64;
    ensure!(growth <= GROWTH, "memory grew {growth:.2} times");
    Ok(())
}

fn memory(pids: impl Iterator<Item = u32>) -> u64 {
    pids.map(rss).sum()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}
