//! Processes that are started here, and what they use: CPU and memory, their children's too.

use std::{
    fs,
    io::{BufRead, BufReader, Lines},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// A process, killed when it is dropped.
pub struct Process {
    child: Child,
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Process {
    /// Starts `command` on one processor, or wherever the kernel likes. What it logs goes to
    /// `log`, or where our own stderr goes.
    pub fn start(
        command: &[String],
        cpu: Option<usize>,
        log: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let log = match log {
            Some(path) => fs::File::create(path)?.into(),
            None => Stdio::inherit(),
        };
        // What a killed orchestrator leaves behind would hold its ports and its stderr.
        let mut line = ["setpriv", "--pdeathsig", "TERM", "--"].map(str::to_owned).to_vec();
        if let Some(cpu) = cpu {
            line.extend(["taskset".to_owned(), "-c".to_owned(), cpu.to_string()]);
        }
        line.extend_from_slice(command);
        let (program, arguments) = line.split_first().context("an empty command")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        Ok(Self { child, lines })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line it says.
    pub fn line(&mut self) -> anyhow::Result<String> {
        let line = self.lines.as_mut().and_then(Iterator::next);
        Ok(line.context("it ended without a word")??)
    }

    /// Answers what it waits for.
    pub fn nudge(&mut self) -> anyhow::Result<()> {
        let stdin = self.child.stdin.as_mut().context("no stdin")?;
        Ok(std::io::Write::write_all(stdin, b"\n")?)
    }

    /// Waits for its end, until `limit`.
    pub fn ended(&mut self, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("it does not end");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        // One that has ended already is as dead as is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let family = family(self.id());
        // First what would start the others anew, as nginx does with a worker that ends.
        self.kill();
        for child in family.into_iter().skip(1) {
            drop(Command::new("kill").arg(child.to_string()).stderr(Stdio::null()).status());
        }
    }
}

/// A process and all that came from it.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        all.extend(
            text.unwrap_or_default().split_whitespace().filter_map(|p| p.parse::<u32>().ok()),
        );
        at += 1;
    }
    all
}

/// CPU of a process and its children so far, user and system, in nanoseconds: from the
/// scheduler, which counts finer than the ticks of `/proc/PID/stat`.
pub fn cpu_ns(pid: u32) -> u64 {
    let mut ns = 0;
    for pid in family(pid) {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            ns += first_number(&task.path().join("schedstat")).unwrap_or(0);
        }
    }
    ns
}

fn first_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

/// Resident memory of a process and its children, in bytes.
pub fn rss(pid: u32) -> u64 {
    let one = |pid: u32| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    family(pid).into_iter().filter_map(one).sum()
}
