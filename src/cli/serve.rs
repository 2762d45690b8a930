//! `ringspan serve`: one node, from its configuration to its exit status.

use std::io::{self, Write as _};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, block_on, complain, env};
use crate::{
    app::{Addresses, App, Joined},
    config::{Config, LogFormat, ServeArgs},
    telemetry::{self, InitError, Metrics},
};

/// Process id of a supervisor, without which the node has no reason to run: it is killed
/// as soon as that process is gone. For `ringspan dev`, whose nodes must not outlive it.
pub(super) const EXIT_WITH_PARENT: &str = "RINGSPAN_EXIT_WITH_PARENT";

/// Runs the node until it is drained or fails.
pub(super) fn run(args: &ServeArgs) -> anyhow::Result<Exit> {
    if let Some(parent) = env(EXIT_WITH_PARENT) {
        exit_with(&parent)?;
    }
    match Config::load(args, &env) {
        Ok(config) => block_on(config.node.threads, serve(config)),
        Err(faults) => {
            complain(format_args!("{faults}"));
            Ok(Exit::Usage)
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<Exit> {
    let format = config.telemetry.log_format;
    let metrics = Metrics::new();
    let guard = match telemetry::init(&config.telemetry, &config.node.id, &metrics) {
        Ok(guard) => guard,
        // What only the set-up of a connection finds, such as a certificate that is none, is a
        // fault of the configuration all the same.
        Err(error @ InitError::Target(_)) => {
            complain(format_args!("{error}"));
            return Ok(Exit::Usage);
        }
        Err(error) => return Err(error.into()),
    };
    let served = run_app(config, metrics).await;
    // The logs of a node are read by machines where they are JSON: no other line there.
    let served = match served {
        Err(error) if format == LogFormat::Json => {
            tracing::error!(error = %format_args!("{error:#}"), "the node failed");
            Ok(Exit::Failure)
        }
        other => other.map(|()| Exit::Success),
    };
    guard.shutdown().await;
    served
}

async fn run_app(config: Config, metrics: Metrics) -> anyhow::Result<()> {
    let node = config.node.id.clone();
    // Before all that may take its time: the first process of a container is not ended by a
    // signal that it does not handle.
    let mut signals = Signals::new()?;
    let joined = tokio::select! {
        joined = Joined::new(config) => joined?,
        () = signals.wanted() => {
            tracing::info!(node, "told to stop before it was a member of the ring");
            return Ok(());
        }
    };
    // From here on a signal is a drain.
    let app = App::start(joined, metrics).await?;
    let mut out = io::stdout();
    // A node whose stdout is closed serves as well as any other.
    let _ = writeln!(out, "{}", ready_line(&node, &app.addresses())).and_then(|()| out.flush());
    app.run(async || signals.wanted().await).await
}

/// SIGTERM and SIGINT, alike.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn wanted(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// What stdout says once all listeners answer.
fn ready_line(node: &str, at: &Addresses) -> String {
    let Addresses { client, peer, admin } = at;
    format!("{node} is ready: clients http://{client}, peers {peer}, admin http://{admin}")
}

/// The addresses, if `line` is a [`ready_line`].
pub(super) fn parse_ready(line: &str) -> Option<Addresses> {
    let (_, rest) = line.split_once(" is ready: clients http://")?;
    let (client, rest) = rest.split_once(", peers ")?;
    let (peer, admin) = rest.split_once(", admin http://")?;
    let admin = admin.trim_end().parse().ok()?;
    Some(Addresses { client: client.parse().ok()?, peer: peer.parse().ok()?, admin })
}

/// Has the kernel kill this process when the thread that started it ends.
#[cfg(target_os = "linux")]
fn exit_with(parent: &str) -> anyhow::Result<()> {
    use anyhow::Context as _;
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};

    // Not a drain: its logs would go to a pipe that nobody reads any more.
    set_parent_process_death_signal(Some(Signal::KILL)).context(EXIT_WITH_PARENT)?;
    // It may have been gone before the kernel knew of the wish.
    let now = getppid().map(|pid| pid.as_raw_nonzero().to_string());
    anyhow::ensure!(now.as_deref() == Some(parent), "the process that wanted this node is gone");
    Ok(())
}

/// Other kernels know no such wish: a supervisor that is killed leaves its nodes behind.
#[cfg(not(target_os = "linux"))]
fn exit_with(_parent: &str) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn a_supervisor_reads_the_ready_line_back() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let line = ready_line("node-1", &Addresses { client: at(1), peer: at(2), admin: at(3) });
        let read = parse_ready(&line).unwrap();
        assert_eq!((read.client, read.peer, read.admin), (at(1), at(2), at(3)));
        assert!(parse_ready("INFO ready").is_none());
    }
}
