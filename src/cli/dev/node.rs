//! The processes of a ring: started, listened to, ended.

use std::{io, os::unix::process::ExitStatusExt as _, process::ExitStatus, time::Duration};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    process::{Child, Command},
    sync::{oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::screen::Screen;
use crate::{app::Addresses, cli::serve::parse_ready};

/// Longest piece of a node's line that is shown as one, bytes.
const MAX_LINE: u64 = 16 << 10;
/// How long a drain may take beyond what the nodes were told (5 s) before they are killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long the last lines of a process that ended may take to arrive.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What is wanted of all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Run,
    Terminate,
    Kill,
}

/// A process that has been started.
pub(super) struct Starting {
    pub(super) pid: u32,
    /// Client and admin address once it serves; an error if it ended first.
    pub(super) ready: oneshot::Receiver<Addresses>,
}

/// A process that has ended.
pub(super) struct Ended {
    pub(super) name: String,
    status: io::Result<ExitStatus>,
    /// It had said that it serves.
    pub(super) served: bool,
    asked: Stage,
}

impl Ended {
    /// Whether it ended as it was asked to: drained, or killed because that was wanted, or
    /// before it could do any better.
    pub(super) fn as_asked(&self) -> bool {
        let drained = self.status.as_ref().is_ok_and(ExitStatus::success);
        match self.asked {
            Stage::Run => false,
            Stage::Terminate => drained || !self.served,
            Stage::Kill => true,
        }
    }

    /// In words.
    pub(super) fn how(&self) -> String {
        match &self.status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => status.to_string(),
            },
            Err(error) => error.to_string(),
        }
    }
}

/// All processes. Dropped, it kills those that are left.
pub(super) struct Nodes {
    stage: watch::Sender<Stage>,
    running: JoinSet<Ended>,
    screen: Screen,
}

impl Nodes {
    pub(super) fn new(screen: Screen) -> Self {
        Self { stage: watch::Sender::new(Stage::Run), running: JoinSet::new(), screen }
    }

    /// Starts one more, as a child of the calling thread.
    pub(super) fn start(&mut self, mut command: Command, name: &str) -> anyhow::Result<Starting> {
        let mut child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        let pid = child.id().unwrap_or_default();
        let (told, ready) = oneshot::channel();
        let mut pumps = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            pumps.spawn(pump(stdout, name.to_owned(), self.screen.clone(), Some(told)));
        }
        if let Some(stderr) = child.stderr.take() {
            pumps.spawn(pump(stderr, name.to_owned(), self.screen.clone(), None));
        }
        self.running.spawn(watch_over(child, name.to_owned(), self.stage.subscribe(), pumps));
        Ok(Starting { pid, ready })
    }

    /// Asks all to drain. False if none is left.
    pub(super) fn terminate(&self) -> bool {
        self.stage.send_replace(Stage::Terminate);
        !self.running.is_empty()
    }

    /// Ends all at once.
    pub(super) fn kill(&self) {
        self.stage.send_replace(Stage::Kill);
    }

    /// The next that ends; None once none is left. Cancel-safe.
    pub(super) async fn next_end(&mut self) -> Option<Ended> {
        loop {
            // Nothing aborts these tasks, so an error is a panic, which said so itself.
            if let Ok(ended) = self.running.join_next().await? {
                return Some(ended);
            }
        }
    }
}

/// Owns a process until it has ended and all its lines are shown.
async fn watch_over(
    mut child: Child,
    name: String,
    mut stage: watch::Receiver<Stage>,
    mut pumps: JoinSet<bool>,
) -> Ended {
    let mut seen = Stage::Run;
    let mut limit = None;
    let status = loop {
        tokio::select! {
            biased;
            status = child.wait() => break status,
            // An error is that nobody can want anything any more: the sender was dropped.
            wanted = stage.wait_for(|stage| *stage > seen) => {
                seen = wanted.map_or(Stage::Kill, |stage| *stage);
            }
            () = sleep_until(limit.unwrap_or_else(Instant::now)), if limit.is_some() => {
                seen = Stage::Kill;
            }
        }
        if seen == Stage::Kill {
            // Fails if it has ended, which the wait tells.
            let _ = child.start_kill();
            break child.wait().await;
        }
        limit = Some(Instant::now() + STOP_LIMIT);
        terminate(&child);
    };
    let mut served = false;
    let last = async {
        while let Some(ready) = pumps.join_next().await {
            served |= ready.unwrap_or(false);
        }
    };
    let _ = tokio::time::timeout(LAST_LINES, last).await;
    Ended { name, status, served, asked: seen }
}

fn terminate(child: &Child) {
    // None once it has been waited for, so this never reaches a later process of this id.
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Fails if it has ended, which the wait tells.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Shows what a process says, line by line, and passes on that it is ready; answers whether
/// it was.
async fn pump(
    from: impl AsyncRead + Unpin,
    name: String,
    screen: Screen,
    mut told: Option<oneshot::Sender<Addresses>>,
) -> bool {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    let mut ready = false;
    while let Ok(1..) = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        match parse_ready(text).and_then(|at| Some((at, told.take()?))) {
            Some((at, told)) => {
                ready = true;
                // Fails if nobody waits any more. The summary says what this line does.
                let _ = told.send(at);
            }
            None => screen.log(&name, text),
        }
        line.clear();
    }
    ready
}
