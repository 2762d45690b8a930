//! The real nodes over a simulated network, clock and database: `./test.sh simulate`.
//!
//! One process runs one seed, so that whatever is global in a process follows from the seed
//! as well. `simulation [SEEDS [FIRST]]` starts them and shows what came of them;
//! `simulation seed N` is one of them, `RUST_LOG` shows its logs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking and reports by printing"
)]

mod database;
mod judge;
mod plan;
mod series;
#[allow(dead_code, reason = "shared with the tests of processes")]
mod support;
mod talk;
mod world;

use std::{fmt, process::ExitCode, sync::atomic::Ordering::Relaxed};

use rand_010::{SeedableRng as _, rngs::StdRng};
use tracing_subscriber::{
    EnvFilter,
    fmt::{format::Writer, time::FormatTime},
};

use self::plan::Plan;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().ok();
    let done = match args[..] {
        ["seed", seed] => number(seed).map(one),
        ["plan", seed] => number(seed).map(|seed| {
            println!("{}", Plan::new(seed));
            ExitCode::SUCCESS
        }),
        [] => Some(series::run(20, 1)),
        [seeds] => number(seeds).map(|seeds| series::run(seeds, 1)),
        [seeds, first] => number(seeds)
            .and_then(|seeds| Some((seeds, number(first)?)))
            .map(|(seeds, first)| series::run(seeds, first)),
        _ => None,
    };
    done.unwrap_or_else(|| {
        eprintln!("simulation [SEEDS [FIRST]] | seed N | plan N; all of them are numbers");
        ExitCode::from(64)
    })
}

/// One seed; the last line is its report.
fn one(seed: u64) -> ExitCode {
    // From here on nothing is random or late but by the seed.
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    let clocks = mad_turmoil::time::SimClocksGuard::init();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_default_env())
        .with_timer(Simulated)
        .with_writer(std::io::stderr)
        .init();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        world::PANICS.fetch_add(1, Relaxed);
        hook(panic);
    }));
    // What is global to a thread begins anew, too, behind the generator that was set.
    let report = std::thread::spawn(move || world::run(Plan::new(seed))).join();
    drop(clocks);
    let Ok(report) = report else { return ExitCode::FAILURE };
    println!("{}", serde_json::to_string(&report).expect("a report is JSON"));
    if report.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The time of the simulation.
struct Simulated;

impl FormatTime for Simulated {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        match turmoil::sim_elapsed() {
            Some(elapsed) => write!(w, "{:>9.3}", elapsed.as_secs_f64()),
            None => write!(w, "{:>9}", ""),
        }
    }
}
