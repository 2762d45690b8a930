//! One measurement: a load against a subject, with what everybody used meanwhile.

use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::{
    peers::{Rig, Subject, ourselves},
    process::{Process, cpu_ns, rss},
};

/// What a load came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Frames, set-ups or turns.
    pub units: f64,
    pub seconds: f64,
    /// Seconds of CPU: of the subject, of load and upstream, of Postgres.
    pub cpu: f64,
    pub around: f64,
    pub postgres: f64,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub failed: f64,
}

/// A load under way.
pub struct Running {
    load: Process,
}

impl Running {
    /// Starts a load and waits until it is about to be counted.
    pub fn start(rig: &Rig, subject: &Subject, arguments: &[String]) -> anyhow::Result<Self> {
        let mut command = vec!["load".to_owned(), "--to".into(), subject.entry.to_string()];
        command.extend_from_slice(arguments);
        let mut load = ourselves(&command, rig.load_cpu)?;
        let line = load.line().with_context(|| format!("the load on {}", subject.name))?;
        ensure!(line == "begin", "the load says {line}");
        Ok(Self { load })
    }

    /// Tells a load that waits to go on.
    pub fn nudge(&mut self) -> anyhow::Result<()> {
        self.load.nudge()
    }

    /// Waits for its end and reads what it counted.
    pub fn end(&mut self) -> anyhow::Result<Sample> {
        let line = self.load.line()?;
        let mut numbers =
            line.strip_prefix("end ").context("no result")?.split(' ').map(str::parse::<f64>);
        let mut next = || numbers.next().context("a result that is too short")?.context("a result");
        let (units, seconds) = (next()?, next()?);
        let (p50, p99, p999) = (next()? / 1e6, next()? / 1e6, next()? / 1e6);
        let failed = next()?;
        Ok(Sample { units, seconds, p50, p99, p999, failed, ..Sample::default() })
    }

    /// The same, with what everybody uses from now on.
    pub fn counted(&mut self, rig: &Rig, subject: &Subject) -> anyhow::Result<Sample> {
        let before = used(rig, subject, self);
        let mut sample = self.end()?;
        let after = used(rig, subject, self);
        sample.cpu = after.0 - before.0;
        sample.around = after.1 - before.1;
        sample.postgres = after.2 - before.2;
        Ok(sample)
    }
}

/// A load from its begin to its end.
pub fn measure(rig: &Rig, subject: &Subject, arguments: &[String]) -> anyhow::Result<Sample> {
    Running::start(rig, subject, arguments)?.counted(rig, subject)
}

fn used(rig: &Rig, subject: &Subject, running: &Running) -> (f64, f64, f64) {
    let seconds = |ns: u64| ns as f64 / 1e9;
    let subject = subject.pids().into_iter().map(cpu_ns).sum();
    let around = cpu_ns(running.load.id()) + cpu_ns(rig.upstream.id());
    let postgres = rig.postgres.as_ref().map_or(0, |postgres| cpu_ns(postgres.process.id()));
    (seconds(subject), seconds(around), seconds(postgres))
}

/// Sessions before those whose memory is counted. A node keeps its latest 8,192 events, of which
/// a session's start makes three: all that it keeps once is full then.
const WARM: usize = 3000;

/// Resident memory that each of `sessions` idle sessions costs a subject, in KiB.
pub fn idle_kib(rig: &Rig, subject: &Subject, sessions: usize) -> anyhow::Result<f64> {
    let resident = || subject.pids().into_iter().map(rss).sum::<u64>() as f64 / 1024.0;
    let idle = |sessions: usize| {
        ["--kind", "idle", "--connections", &sessions.to_string()].map(str::to_owned)
    };
    // What the first connections bring along is no session's, and they stay: what they would
    // give back would be used again.
    let mut warm = Running::start(rig, subject, &idle(WARM))?;
    let before = resident();
    let mut running = Running::start(rig, subject, &idle(sessions))?;
    std::thread::sleep(Duration::from_secs(1));
    let after = resident();
    running.nudge()?;
    running.end()?;
    warm.nudge()?;
    warm.end()?;
    Ok((after - before) / sessions as f64)
}

/// Waits until neither the subject nor the kernel's sockets have taken more memory for a
/// second: all that lies between an upstream and a client that does not read is full.
pub fn settled(subject: &Subject) -> anyhow::Result<()> {
    const STEP: Duration = Duration::from_millis(100);
    let held = || -> anyhow::Result<u64> {
        let resident: u64 = subject.pids().into_iter().map(rss).sum();
        Ok(resident + socket_bytes()?)
    };
    let (mut most, mut still) = (held()?, 0);
    for _ in 0..200 {
        std::thread::sleep(STEP);
        let now = held()?;
        // What is in flight comes and goes.
        if now > most + (1 << 20) {
            (most, still) = (now, 0);
        } else {
            still += 1;
        }
        if still == 10 {
            return Ok(());
        }
    }
    bail!("{} takes more and more memory", subject.name)
}

/// What all TCP sockets of this machine hold.
fn socket_bytes() -> anyhow::Result<u64> {
    const PAGE: u64 = 4096;
    let text = std::fs::read_to_string("/proc/net/sockstat")?;
    let line = text.lines().find(|line| line.starts_with("TCP:")).context("no TCP in sockstat")?;
    let pages = line.rsplit(' ').next().context("no memory of TCP in sockstat")?;
    Ok(pages.parse::<u64>()? * PAGE)
}
