//! `ringspan dev` as a user sees it: a ring that shows itself, and nothing of it left over.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long the kernel gets to end processes that have lost their parent.
const LIMIT: Duration = Duration::from_secs(10);

/// A running `ringspan dev` with a directory of its own, by which its nodes are known.
struct Dev {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    dir: TempDir,
}

impl Dev {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_ringspan"))
            .args(["dev", "--nodes", "2"])
            .env_clear()
            .env("TMPDIR", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines, dir }
    }

    /// All that it says up to a line that holds `wanted`.
    fn read_until(&mut self, wanted: &str) -> String {
        let mut said = String::new();
        for line in self.lines.by_ref().map_while(Result::ok) {
            said.push_str(&line);
            said.push('\n');
            if line.contains(wanted) {
                return said;
            }
        }
        panic!("it never said {wanted:?}, but\n{said}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Exit status, once all that it says is read.
    fn end(&mut self) -> Option<i32> {
        self.lines.by_ref().for_each(drop);
        self.process.wait().unwrap().code()
    }

    /// Nodes that run. A process that has ended has no command line, also if nobody has
    /// waited for it yet.
    fn nodes(&self) -> Vec<Pid> {
        let ours = self.dir.path().to_str().unwrap().as_bytes().to_vec();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter(|entry| {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                line.windows(ours.len()).any(|part| part == ours)
            })
            .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
            .collect()
    }

    fn files(&self) -> usize {
        fs::read_dir(self.dir.path()).unwrap().count()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Of a test that failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_ring_shows_a_forwarded_message_and_ctrl_c_leaves_nothing_behind() {
    let mut dev = Dev::start();
    let said = dev.read_until("Ctrl-C stops everything");
    for expected in ["node-1", "node-2", "curl -N http://127.0.0.1:", "heard it too"] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    assert_eq!(dev.nodes().len(), 2);
    dev.signal(Signal::INT);
    assert_eq!(dev.end(), Some(0));
    assert_eq!((dev.nodes().len(), dev.files()), (0, 0));
}

#[test]
fn ctrl_c_during_the_start_leaves_nothing_behind() {
    let mut dev = Dev::start();
    dev.read_until("starting nodes: 0");
    dev.signal(Signal::INT);
    assert_eq!(dev.end(), Some(0));
    assert_eq!((dev.nodes().len(), dev.files()), (0, 0));
}

#[test]
fn nodes_do_not_outlive_a_supervisor_that_is_killed() {
    let mut dev = Dev::start();
    dev.read_until("Ctrl-C stops everything");
    assert_eq!(dev.nodes().len(), 2);
    dev.signal(Signal::KILL);
    assert_eq!(dev.end(), None);
    let killed = Instant::now();
    while !dev.nodes().is_empty() {
        assert!(killed.elapsed() < LIMIT, "{:?} are left", dev.nodes());
        thread::yield_now();
    }
}

#[test]
fn a_node_that_dies_is_reported_and_the_last_one_ends_the_ring_with_status_1() {
    let mut dev = Dev::start();
    dev.read_until("Ctrl-C stops everything");
    let nodes = dev.nodes();
    kill_process(nodes[0], Signal::KILL).unwrap();
    dev.read_until("ended: signal 9");
    assert_eq!(dev.nodes(), nodes[1..]);
    kill_process(nodes[1], Signal::KILL).unwrap();
    assert_eq!(dev.end(), Some(1));
    assert_eq!(dev.files(), 0);
}

#[test]
fn a_running_ring_is_looked_at_checked_and_drained_by_the_other_commands() {
    let mut dev = Dev::start();
    let said = dev.read_until("Ctrl-C stops everything");
    let urls = |line: &str| -> Vec<String> {
        let urls = line.split_whitespace().filter(|word| word.starts_with("http"));
        urls.map(|url| url.trim_end_matches('/').to_owned()).collect()
    };
    let row = said.lines().find(|line| line.trim_start().starts_with("node-1 ")).unwrap();
    let [client, admin] = &urls(row)[..] else { panic!("{row}") };
    // Its peer listener, before the process's id: others may connect to it too.
    let peer = row.split_whitespace().rev().nth(1).unwrap();
    TcpStream::connect(peer).unwrap_or_else(|error| panic!("{peer}: {error}"));
    let run = |args: &[&str]| -> Output {
        Command::new(env!("CARGO_BIN_EXE_ringspan"))
            .args(args)
            .env_clear()
            .env("RINGSPAN_ADMIN_URL", admin)
            .output()
            .unwrap()
    };
    let json = |output: Output| -> serde_json::Value {
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(json(run(&["ring", "--json"]))["members"].as_array().unwrap().len(), 2);
    for route in ["/v1/responses", "/rooms/{room}"] {
        let report = json(run(&["selfcheck", "--url", client, "--route", route, "--json"]));
        assert_eq!((&report["ok"], &report["forwarded"]), (&true.into(), &true.into()), "{report}");
        assert_eq!(report["owner"], "node-2");
    }
    assert!(!json(run(&["sessions", "--json"]))["sessions"].as_array().unwrap().is_empty());
    // One page of one session, and that there are more.
    assert!(json(run(&["sessions", "--json", "--limit", "1"]))["next"].is_string());

    let other = run(&["drain", "node-2"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stderr).contains("--admin-url of node-2"), "{other:?}");
    assert_eq!(json(run(&["drain", "node-1", "--json"]))["drain"], "accepted");
    dev.read_until("node-1 ended: exit status 0");
    dev.signal(Signal::INT);
    assert_eq!(dev.end(), Some(0));
}
