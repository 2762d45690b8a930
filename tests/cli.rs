//! The program as a shell sees it: commands that need no running node.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Command, Output, Stdio},
};

use futures_util::{SinkExt as _, StreamExt as _};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::{
    Message,
    handshake::server::{ErrorResponse, Request, Response},
};

/// The program, with nothing of the tester's environment that could sway it.
fn ringspan(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringspan"));
    command.args(args).env_clear().env("HOME", "/nonexistent");
    command
}

fn run(args: &[&str]) -> Output {
    ringspan(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn status(output: &Output, expected: i32) {
    assert_eq!(output.status.code(), Some(expected), "{output:?}");
}

#[test]
fn help_of_every_command_is_on_stdout_with_status_0() {
    for command in [
        &["--help"][..],
        &["dev", "--help"],
        &["serve", "--help"],
        &["sample-upstream", "--help"],
        &["migrate", "wait", "--help"],
        &["ring", "--help"],
        &["sessions", "--help"],
        &["top", "--help"],
        &["drain", "--help"],
        &["config", "dump", "--help"],
        &["metrics", "list", "--help"],
        &["selfcheck", "--help"],
    ] {
        let output = run(command);
        status(&output, 0);
        assert!(text(&output.stdout).contains("Usage: ringspan"), "{command:?}");
        assert!(output.stderr.is_empty(), "{command:?}");
    }
}

#[test]
fn mistakes_on_the_command_line_and_in_the_configuration_have_status_64() {
    status(&run(&["frobnicate"]), 64);
    status(&run(&["dev", "--nodes", "0"]), 64);
    status(&run(&["selfcheck", "--url", "ftp://x"]), 64);
    status(&run(&["migrate", "check", "--database-url", "mysql://x"]), 64);
    let output = run(&["serve", "--lease-ttl", "soon", "--listen", "x"]);
    status(&output, 64);
    let faults = text(&output.stderr);
    // Both, and that there is neither an upstream nor a route.
    assert_eq!(faults.lines().count(), 3, "{faults}");
    assert!(faults.contains("--lease-ttl") && faults.contains("\"soon\""), "{faults}");
}

#[test]
fn a_refused_configuration_does_not_show_the_secret_in_it() {
    let output = run(&["serve", "--peer-token", "hunter2"]);
    status(&output, 64);
    let faults = text(&output.stderr);
    assert!(faults.contains("--peer-token") && !faults.contains("hunter2"), "{faults}");
}

#[test]
fn a_schema_is_missing_then_made_then_current() {
    let dir = TempDir::new().unwrap();
    let url = format!("sqlite://{}", dir.path().join("ring.db").display());
    let migrate = |command: &str| run(&["migrate", command, "--database-url", &url]);

    let missing = migrate("check");
    status(&missing, 1);
    assert!(text(&missing.stderr).contains("ringspan migrate run"), "{missing:?}");
    let waited = run(&["migrate", "wait", "--timeout", "300ms", "--database-url", &url]);
    status(&waited, 1);
    assert!(text(&waited.stderr).contains("waiting"), "{waited:?}");

    let made = migrate("run");
    status(&made, 0);
    assert!(text(&made.stdout).contains("applied 1"), "{made:?}");
    let again = migrate("run");
    status(&again, 0);
    assert!(text(&again.stdout).contains("nothing to do"), "{again:?}");
    status(&migrate("check"), 0);
    status(&migrate("wait"), 0);
}

#[test]
fn a_waiting_init_container_goes_on_once_the_schema_is_made() {
    let dir = TempDir::new().unwrap();
    let url = format!("sqlite://{}", dir.path().join("ring.db").display());
    let mut wait = ringspan(&["migrate", "wait", "--database-url", &url]);
    let mut wait = wait.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut waiting = String::new();
    BufReader::new(wait.stderr.take().unwrap()).read_line(&mut waiting).unwrap();
    assert!(waiting.starts_with("waiting: "), "{waiting}");
    status(&run(&["migrate", "run", "--database-url", &url]), 0);
    assert_eq!(wait.wait().unwrap().code(), Some(0));
}

#[test]
fn a_node_without_a_schema_ends_with_the_remedy_in_its_words() {
    let dir = TempDir::new().unwrap();
    let url = format!("sqlite://{}", dir.path().join("ring.db").display());
    let any = "127.0.0.1:0";
    let output = run(&[
        "serve",
        "--upstream",
        "http://127.0.0.1:9",
        "--database-url",
        &url,
        "--listen",
        any,
        "--peer-listen",
        any,
        "--admin-listen",
        any,
        "--node-id",
        "n",
    ]);
    status(&output, 1);
    assert!(text(&output.stderr).contains("ringspan migrate run"), "{output:?}");
}

#[test]
fn metrics_are_listed_as_a_table_and_as_json() {
    let table = run(&["metrics", "list"]);
    status(&table, 0);
    let json = run(&["metrics", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let list = list.as_array().unwrap();
    assert_eq!(text(&table.stdout).lines().count(), list.len() + 1);
    let mut names = list.iter().map(|metric| metric["name"].as_str().unwrap());
    assert!(names.any(|name| name == "ringspan_sessions"));
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut child = ringspan(&["config", "schema"]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    status(&output, 0);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn the_configuration_is_checked_described_and_dumped() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ringspan.example.toml");
    let checked = run(&["config", "check", example]);
    assert_eq!((checked.status.code(), text(&checked.stdout)), (Some(0), "ok\n".into()));
    let schema = run(&["config", "schema"]);
    assert!(serde_json::from_slice::<serde_json::Value>(&schema.stdout).is_ok());
    let dump = ringspan(&["config", "dump", "--upstream", "http://127.0.0.1:9000"])
        .env("RINGSPAN_PEER_TOKEN", "hunter2hunter2hunter2")
        .output()
        .unwrap();
    status(&dump, 0);
    assert!(!text(&dump.stdout).contains("hunter2"), "{dump:?}");
}

#[test]
fn the_defaults_are_shown_to_somebody_who_has_no_upstream_yet() {
    let dump = run(&["config", "dump"]);
    status(&dump, 0);
    assert!(text(&dump.stdout).contains("lease_ttl = \"15s\""), "{dump:?}");
    let said = text(&dump.stderr);
    assert!(said.starts_with("warning: ") && said.contains("upstream"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");

    // What is wrong is refused all the same, and with it what is missing.
    let dump = run(&["config", "dump", "--lease-ttl", "soon"]);
    status(&dump, 64);
    assert!(dump.stdout.is_empty(), "{dump:?}");
    assert_eq!(text(&dump.stderr).lines().count(), 2, "{dump:?}");

    // What `serve` would refuse is not "ok".
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "lease_ttl = \"15s\"\n").unwrap();
    status(&run(&["config", "check", file.path().to_str().unwrap()]), 64);
}

#[test]
fn a_switch_is_on_in_every_spelling_and_its_dump_is_one_of_the_file() {
    for given in [
        &["--migrate-on-start"][..],
        &["--migrate-on-start=true"],
        &["--migrate-on-start", "true"],
        &["--migrate-on-start=1"],
        &["--migrate-on-start", "--lease-ttl", "15s"],
    ] {
        let dump = run(&[&["config", "dump"], given].concat());
        status(&dump, 0);
        assert!(text(&dump.stdout).contains("\nmigrate_on_start = true #"), "{given:?}: {dump:?}");
    }
    for (word, is_on) in [("1", true), ("true", true), ("0", false), ("false", false)] {
        let dump = ringspan(&["config", "dump"]).env("RINGSPAN_MIGRATE_ON_START", word).output();
        let dump = text(&dump.unwrap().stdout);
        assert!(dump.contains(&format!("\nmigrate_on_start = {is_on} #")), "{word}: {dump}");
    }
    let dump = ringspan(&["config", "dump"]).env("RINGSPAN_MIGRATE_ON_START", "yes").output();
    status(&dump.unwrap(), 64);
}

#[test]
fn a_ring_that_is_not_there_is_a_failure_that_names_its_address() {
    for command in ["ring", "sessions", "top"] {
        // Port 9 of loopback: nothing listens there.
        let output = run(&[command, "--admin-url", "http://127.0.0.1:9"]);
        status(&output, 1);
        assert!(text(&output.stderr).contains("127.0.0.1:9"), "{output:?}");
    }
    status(&run(&["drain", "n", "--admin-url", "http://127.0.0.1:9"]), 1);
}

#[test]
fn the_sample_upstream_says_where_it_is_answers_and_stops_with_status_0() {
    let mut sample = ringspan(&["sample-upstream", "--listen", "127.0.0.1:0"]);
    let mut sample = sample.stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(sample.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let (_, rest) = first.split_once("http://").unwrap();
    let address = rest.split('/').next().unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    write!(socket, "GET /_sample/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    kill_process(Pid::from_child(&sample), Signal::TERM).unwrap();
    assert_eq!(sample.wait().unwrap().code(), Some(0));
}

/// A stand-in for a node: says which session it is, answers each text by `answer`.
async fn fake_node(answer: fn(&str) -> String) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            #[expect(clippy::result_large_err, reason = "the signature is tungstenite's")]
            let introduce = |_: &Request, mut response: Response| -> Result<_, ErrorResponse> {
                response.headers_mut().insert("ringspan-session", "5e55".parse().unwrap());
                response.headers_mut().insert("ringspan-epoch", "7".parse().unwrap());
                Ok(response)
            };
            let socket = tokio_tungstenite::accept_hdr_async(stream, introduce).await;
            let Ok(mut socket) = socket else { continue };
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Text(said) = message {
                    socket.send(Message::text(answer(&said))).await.unwrap();
                }
            }
        }
    });
    url
}

async fn selfcheck(args: &'static [&'static str], url: String) -> Output {
    let check = move || ringspan(&["selfcheck", "--url", &url]).args(args).output().unwrap();
    tokio::task::spawn_blocking(check).await.unwrap()
}

#[tokio::test]
async fn selfcheck_has_a_text_echoed_and_names_the_session() {
    let url = fake_node(str::to_owned).await;
    let output = selfcheck(&["--route", "/rooms/{room}"], url).await;
    status(&output, 0);
    assert!(text(&output.stdout).contains("session 5e55, epoch 7"), "{output:?}");
}

#[tokio::test]
async fn selfcheck_fails_with_the_words_of_the_turn_that_failed() {
    let url = fake_node(|_| {
        r#"{"type":"error","status":502,"error":{"code":"upstream_unavailable","message":"m"}}"#
            .to_owned()
    })
    .await;
    let output = selfcheck(&["--json"], url).await;
    status(&output, 1);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    assert!(report["reason"].as_str().unwrap().contains("upstream_unavailable"), "{report}");
}

#[tokio::test]
async fn selfcheck_gives_up_on_a_node_that_never_answers() {
    let url = fake_node(|_| r#"{"type":"keepalive"}"#.to_owned()).await;
    let output = selfcheck(&["--timeout", "300ms"], url).await;
    status(&output, 1);
    assert!(text(&output.stderr).contains("no answer"), "{output:?}");
}
