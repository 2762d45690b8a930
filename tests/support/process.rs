//! A `ringspan` process with its output in a file. It dies with its handle, and with the test
//! process where the platform can promise that.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use super::eventually;

/// Ports are taken below the range from which the kernel gives ports to outgoing
/// connections (32768 and up), or a busy test could lose its port to a client.
const FIRST_PORT: u32 = 12_000;
const PORTS: u32 = 20_000;

/// A port of loopback that nobody listens on.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes beside this one begin elsewhere.
    let offset = std::process::id().wrapping_mul(97);
    for _ in 0..PORTS {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(FIRST_PORT + offset.wrapping_add(step) % PORTS).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST_PORT} and {}", FIRST_PORT + PORTS);
}

/// How to start one process.
#[derive(Clone, Debug)]
pub struct Program {
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub log: PathBuf,
    /// The binary of another release; None for the one under test.
    pub binary: Option<PathBuf>,
    /// Whether it sees `/proc`, without which it can neither tell others who it is nor see
    /// whether others live.
    pub sees_processes: bool,
    /// The network that it lives in; None for this process's own.
    pub namespace: Option<PathBuf>,
}

impl Program {
    pub fn new(log: PathBuf, args: &[&str]) -> Self {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        let (binary, namespace) = (None, None);
        Self { args, env: Vec::new(), log, binary, sees_processes: true, namespace }
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it; its output is appended to the log.
    pub fn start(&self) -> Process {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let child = self
            .command()
            .args(&self.args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.log.parent().unwrap())
            .env("RUST_BACKTRACE", "1")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Process { pid: child.id(), child: Mutex::new(child), log: self.log.clone() }
    }

    /// Runs it to its end: exit code and all that it wrote so far.
    pub async fn run(&self, limit: Duration) -> (i32, String) {
        let process = self.start();
        let code = process.wait_exit(limit).await;
        (code, process.log())
    }
}

/// The binary under test: `RINGSPAN_BIN`, or the one that was built with the tests.
fn under_test() -> PathBuf {
    let named = std::env::var_os("RINGSPAN_BIN").map(PathBuf::from);
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_ringspan").into())
}

impl Program {
    /// On Linux the kernel kills it when the thread that started it is gone.
    fn command(&self) -> Command {
        let program = self.binary.clone().unwrap_or_else(under_test);
        let setpriv = Path::new("/usr/bin/setpriv");
        if !setpriv.exists() {
            assert!(self.sees_processes, "to hide /proc needs the programs of util-linux");
            return Command::new(program);
        }
        let mut command = Command::new(setpriv);
        // Every step is an exec: the process that was started stays the one that is signalled.
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(namespace) = &self.namespace {
            command.arg("nsenter").arg(format!("--net={}", namespace.display())).arg("--");
        }
        if self.sees_processes {
            command.arg(program);
            return command;
        }
        command.args(["unshare", "--mount"]);
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.args(["sh", "-c", "mount -t tmpfs none /proc && exec \"$0\" \"$@\""]);
        command.arg(program);
        command
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Memory, in bytes.
    pub resident: u64,
    pub descriptors: u64,
}

/// A running process.
pub struct Process {
    pub pid: u32,
    child: Mutex<Child>,
    log: PathBuf,
}

impl Process {
    /// Sends a signal; a process that has ended does not mind.
    pub fn signal(&self, signal: Signal) {
        let mut child = self.child.lock();
        if child.try_wait().unwrap().is_none() {
            let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).unwrap();
            kill_process(pid, signal).unwrap();
        }
    }

    /// Suspends it, and returns when it stands still: a thread that runs in user space when the
    /// signal is sent may do a good deal more before it sees it.
    pub async fn freeze(&self) {
        self.signal(Signal::STOP);
        let what = format!("process {} stands still", self.pid);
        eventually(&what, Duration::from_secs(10), async || self.stands_still().then_some(()))
            .await;
    }

    /// Whether the kernel says so of every thread.
    fn stands_still(&self) -> bool {
        let state =
            |stat: &str| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
        threads
            .filter_map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")).ok())
            .all(|stat| state(&stat))
    }

    /// The exit code, or minus the signal's number; None while it runs.
    pub fn exit_code(&self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.child.lock().try_wait().unwrap()?;
        Some(status.code().unwrap_or_else(|| -status.signal().unwrap_or(0)))
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// After `limit`, with the end of the log.
    pub async fn wait_exit(&self, limit: Duration) -> i32 {
        let what = format!("process {} ends; log {}", self.pid, self.log.display());
        eventually(&what, limit, async || self.exit_code()).await
    }

    /// Everything that was written to its log file.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it holds; it has to live.
    pub fn held(&self) -> Held {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().count() as u64;
        Held { resident: self.resident_bytes().unwrap(), descriptors }
    }

    /// Resident memory in bytes; None where the platform does not tell.
    pub fn resident_bytes(&self) -> Option<u64> {
        self.status_bytes("VmRSS:")
    }

    /// The most that it ever was.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, name: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kib << 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child.lock();
        // Both fail only if it has ended already.
        child.kill().ok();
        child.wait().ok();
    }
}
