//! The real clients, against a ring of three behind a balancer.
//!
//! They are installed once into `target/clients`. Where that cannot be done the tests say so
//! and pass, unless `RINGSPAN_REQUIRE_CLIENTS=1`.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;
use tokio::{sync::Mutex, task::spawn_blocking, time::timeout};

use crate::support::{Ring, RingOptions, history::History};

/// The packages of npm.
const NPM: [&str; 3] = ["@openai/codex@0.169.0", "openai@6", "ws"];
/// The packages of pip.
const PIP: [&str; 1] = ["openai[realtime]"];
/// How long one script may take.
const SCRIPT: Duration = Duration::from_mins(3);

fn target() -> PathBuf {
    // The binary lies in target/<profile>/.
    let binary = Path::new(env!("CARGO_BIN_EXE_ringspan"));
    binary.ancestors().nth(2).unwrap().join("clients")
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// Runs a step of an installation; the end of what it said if it failed.
fn step(dir: &Path, program: impl AsRef<OsStr>, args: &[&str]) -> Result<(), String> {
    let program = program.as_ref();
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let from = said.floor_char_boundary(said.len().saturating_sub(400));
    Err(format!("{} {args:?}: {}: {}", program.display(), output.status, said[from..].trim()))
}

fn install_npm() -> Result<PathBuf, String> {
    let dir = target().join("npm");
    let done = dir.join("installed");
    if !done.exists() {
        fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        fs::write(dir.join("package.json"), "{\"private\":true}").map_err(|e| e.to_string())?;
        let mut args = vec!["install", "--no-audit", "--no-fund", "--loglevel=error"];
        args.extend(NPM);
        step(&dir, "npm", &args)?;
        fs::write(done, "").map_err(|error| error.to_string())?;
    }
    Ok(dir)
}

fn install_python() -> Result<PathBuf, String> {
    let dir = target().join("python");
    let done = dir.join("installed");
    let python = dir.join("bin/python");
    if !done.exists() {
        fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        step(&dir, "python3", &["-m", "venv", "."])?;
        let mut args = vec!["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        args.extend(PIP);
        step(&dir, &python, &args)?;
        fs::write(done, "").map_err(|error| error.to_string())?;
    }
    Ok(python)
}

/// What was installed; None, after saying why, where it could not be.
async fn installed(
    what: &str,
    cell: &'static OnceLock<Result<PathBuf, String>>,
    install: fn() -> Result<PathBuf, String>,
) -> Option<PathBuf> {
    // One installation at a time: they share the machine and the caches.
    static INSTALLING: Mutex<()> = Mutex::const_new(());
    let guard = INSTALLING.lock().await;
    let result = spawn_blocking(move || cell.get_or_init(install)).await.unwrap();
    drop(guard);
    match result {
        Ok(path) => Some(path.clone()),
        Err(why) => {
            let required = std::env::var_os("RINGSPAN_REQUIRE_CLIENTS").is_some_and(|it| it == "1");
            assert!(!required, "{what} could not be installed: {why}");
            println!("SKIPPED: {what} could not be installed: {why}");
            None
        }
    }
}

async fn npm() -> Option<PathBuf> {
    static NPM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    installed("the clients of npm", &NPM, install_npm).await
}

async fn python() -> Option<PathBuf> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    installed("openai for Python", &PYTHON, install_python).await
}

fn codex(npm: &Path) -> String {
    npm.join("node_modules/.bin/codex").display().to_string()
}

/// Runs a script to its end; its JSON summary. Fails unless it exits with 0.
async fn run(program: &Path, dir: &Path, script: &Path, args: &[&str]) -> Value {
    let output = tokio::process::Command::new(program)
        .arg(script)
        .args(args)
        .current_dir(dir)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("OPENAI_API_KEY", "sample-key")
        .stdin(Stdio::null())
        // What it started ends with it: their pipes close.
        .kill_on_drop(true)
        .output();
    let Ok(output) = timeout(SCRIPT, output).await else {
        panic!("{} {args:?} did not end within {SCRIPT:?}", script.display());
    };
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{said}");
    assert!(output.status.success(), "{}: {}\n{said}\n{errors}", script.display(), output.status);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}\n{errors}"))
}

async fn judge(ring: &Ring) {
    let history = History::read(&ring.sample_url).await;
    assert!(!history.creates().is_empty());
    history.assert_one_connection_each();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codex_exec_works_by_websocket_and_by_sse() {
    let Some(npm) = npm().await else { return };
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let balancer = ring.balancer().await;
    let base = format!("{}/v1", balancer.url);
    let args = [base.as_str(), "--codex", &codex(&npm)];
    let summary = run("python3".as_ref(), &npm, &script("codex_exec.py"), &args).await;
    for transport in ["websocket", "sse"] {
        assert_eq!(summary[transport]["failures"], serde_json::json!([]), "{summary}");
        assert_eq!(summary[transport]["visible_errors"], serde_json::json!([]), "{summary}");
    }
    judge(&ring).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codex_app_server_shows_no_error_over_many_turns() {
    let Some(npm) = npm().await else { return };
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let balancer = ring.balancer().await;
    let base = format!("{}/v1", balancer.url);
    let command = codex(&npm);
    let by_websocket = [base.as_str(), "--codex", &command, "--turns", "30"];
    let by_sse = [&by_websocket[..], &["--sse"]].concat();
    for args in [&by_websocket[..], &by_sse] {
        let summary = run("python3".as_ref(), &npm, &script("codex_app_server.py"), args).await;
        assert_eq!(summary["visible_errors"], 0, "{summary}");
        assert_eq!(summary["restarted_answers"], 0, "{summary}");
        assert_eq!(summary["failures"], serde_json::json!([]), "{summary}");
    }
    judge(&ring).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codex_shows_no_error_while_every_node_is_replaced() {
    let Some(npm) = npm().await else { return };
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let balancer = ring.balancer().await;
    let base = format!("{}/v1", balancer.url);
    let command = codex(&npm);
    let args = [
        base.as_str(),
        "--codex",
        &command,
        "--turns",
        "12",
        "--pause",
        "0.7",
        "--prompt",
        "[deltas=20] [delay=20ms]",
    ];
    let script = script("codex_app_server.py");
    let talking = run("python3".as_ref(), &npm, &script, &args);
    let rolling = async {
        for node in &ring.nodes {
            node.sigterm();
            assert_eq!(node.wait_exit(ring.options.timing.drain()).await, 0, "{}", node.log());
            node.restart().await;
            ring.until_whole().await;
        }
    };
    let (summary, ()) = tokio::join!(talking, rolling);
    assert_eq!(summary["visible_errors"], 0, "{summary}");
    assert_eq!(summary["restarted_answers"], 0, "{summary}");
    judge(&ring).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_for_python_works() {
    let Some(python) = python().await else { return };
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let balancer = ring.balancer().await;
    let base = format!("{}/v1", balancer.url);
    let script = script("openai_python.py");
    let summary = run(&python, python.parent().unwrap(), &script, &[&base]).await;
    assert_eq!(summary["failures"], serde_json::json!({}), "{summary}");
    assert_eq!(summary["passed"], summary["checks"], "{summary}");
    judge(&ring).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_for_node_works() {
    let Some(npm) = npm().await else { return };
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let balancer = ring.balancer().await;
    let base = format!("{}/v1", balancer.url);
    let script = script("openai_node.mjs");
    let summary = run("node".as_ref(), &npm, &script, &[&base]).await;
    assert_eq!(summary["failures"], serde_json::json!({}), "{summary}");
    assert_eq!(summary["passed"], summary["checks"], "{summary}");
    judge(&ring).await;
}
