//! Commands and how they end.

pub mod args;
pub mod config;
mod dev;
mod look;
mod manual;
mod metrics;
mod migrate;
mod sample;
mod selfcheck;
mod serve;
mod signals;
mod top;

use std::{future::Future, io, process::ExitCode, time::Duration};

use anyhow::Context as _;
pub use args::{Cli, CliCommand};
use clap::Parser;

/// How long blocking work may go on after a command is done. It is bounded by itself; this
/// only keeps a stuck name look-up from delaying the exit.
const LINGER: Duration = Duration::from_secs(1);

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Status 0.
    Success,
    /// Status 1: the work could not be done.
    Failure,
    /// Status 64 (`EX_USAGE`): the command line or the configuration is wrong.
    Usage,
}

impl Exit {
    /// The number that the parent process sees.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 64,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.status())
    }
}

/// Reads the command line. Does not return for `--help`, `--version` (status 0) and
/// mistakes (status 64).
#[must_use]
pub fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        // Nothing is left to tell it to if the terminal is gone.
        let _ = error.print();
        let exit = if error.use_stderr() { Exit::Usage } else { Exit::Success };
        std::process::exit(exit.status().into())
    })
}

/// Runs a command to its end. Why it failed is said on stderr.
#[must_use]
pub fn run(cli: Cli) -> Exit {
    match dispatch(cli.command) {
        Ok(exit) => exit,
        // `ringspan metrics list | head -1`: the reader has what it wanted.
        Err(error) if is_broken_pipe(&error) => Exit::Success,
        Err(error) => {
            complain(format_args!("ringspan: {error:#}"));
            Exit::Failure
        }
    }
}

fn dispatch(command: CliCommand) -> anyhow::Result<Exit> {
    let mut out = io::stdout();
    match command {
        // Its own thread starts the nodes, which end with it: see `dev`.
        CliCommand::Dev(args) => block_on(threads(), dev::run(args)),
        CliCommand::Serve(args) => serve::run(&args),
        CliCommand::SampleUpstream(args) => block_on(threads(), sample::run(args)),
        CliCommand::Migrate(args) => block_on(1, migrate::run(args.command)),
        CliCommand::Ring(args) => block_on(1, look::ring(args, &mut out)),
        CliCommand::Sessions(args) => block_on(1, look::sessions(args, &mut out)),
        CliCommand::Top(args) => block_on(1, top::run(args)),
        CliCommand::Drain(args) => block_on(1, look::drain(args, &mut out)),
        CliCommand::Config(command) => {
            Ok(config::run(&command, &env, &mut out, &mut io::stderr())?)
        }
        CliCommand::Metrics(command) => metrics::run(&command, &mut out),
        CliCommand::Selfcheck(args) => block_on(1, selfcheck::run(args)),
        CliCommand::Completions(args) => manual::completions(&args, &mut out),
        CliCommand::Man(args) => manual::man(&args, &mut out),
    }
}

/// The process's environment; a variable that is not UTF-8 counts as unset.
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Tasks that run before sockets are asked again, if so many are ready: as many as the events that
/// nginx takes at once. With tokio's 61 a message and its echo cost a fifth more where 256 clients
/// talk at once; what comes meanwhile waits behind them either way.
const EVENT_INTERVAL: u32 = 512;

/// Runs `work` on the calling thread, with as many worker threads besides if there are
/// several. What it left behind is ended within [`LINGER`].
fn block_on<T>(threads: usize, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    // Ignored by a runtime of the calling thread.
    builder.worker_threads(threads).event_interval(EVENT_INTERVAL);
    let runtime = builder.enable_all().build().context("no runtime")?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(LINGER);
    done
}

/// Says something on stderr. Nothing is left to tell it to if that is gone.
fn complain(text: std::fmt::Arguments<'_>) {
    let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("{text}\n"));
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests;
