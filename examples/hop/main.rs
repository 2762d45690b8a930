//! What does a hop cost? ringspan, nginx, haproxy and a plain TCP copy carry the same
//! WebSocket work, by turns in one run; CPU, latency and memory are compared.
//! `benches/hop.sh` builds and runs it; `benches/README.md` says how to read what it prints.
//!
//! This one program is the orchestrator, the load, the upstream and the floor: the first
//! starts the others as processes of their own.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]
#![expect(clippy::cast_precision_loss, reason = "a measurement needs no 53 bits of precision")]

mod client;
mod growth;
mod load;
mod measure;
mod members;
mod moves;
#[path = "../../benches/parts/mod.rs"]
mod parts;
mod peers;
mod plan;
mod process;
mod report;
mod ring;
mod splice;
mod upstream;
mod vigil;

use std::net::SocketAddr;

use clap::Parser;

#[derive(Parser)]
enum Command {
    /// Measure everything and print tables.
    Run(plan::Options),
    /// Hold idle sessions for an hour.
    Vigil(vigil::Options),
    /// Generate load (started by `run`).
    Load(load::Options),
    /// Answer it (started by `run`).
    Upstream { listen: SocketAddr },
    /// Copy TCP: the floor (started by `run`).
    Splice { listen: SocketAddr, to: SocketAddr },
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Run(options) => plan::run(&options),
        Command::Vigil(options) => vigil::run(&options),
        Command::Load(options) => on_one_thread(load::run(options)),
        Command::Upstream { listen } => on_one_thread(upstream::run(listen)),
        Command::Splice { listen, to } => on_one_thread(splice::run(listen, to)),
    }
}

fn on_one_thread<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

/// The clock that all processes of this machine share, in nanoseconds.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
