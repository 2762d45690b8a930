//! The real clients and the scripts that drive them.
//!
//! They are installed once into `target/clients`. Where that cannot be done the tests say so
//! and pass, unless `RINGSPAN_REQUIRE_CLIENTS=1`.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;
use tokio::{sync::Mutex, task::spawn_blocking, time::timeout};

/// The packages of npm.
const NPM: [&str; 3] = ["@openai/codex@0.169.0", "openai@6", "ws"];
/// The packages of pip.
const PIP: [&str; 1] = ["openai[realtime]"];
/// How long one script may take.
const SCRIPT: Duration = Duration::from_mins(3);

/// Where clients are installed.
pub(super) fn target() -> PathBuf {
    // The binary lies in target/<profile>/.
    let binary = Path::new(env!("CARGO_BIN_EXE_ringspan"));
    binary.ancestors().nth(2).unwrap().join("clients")
}

/// A driver of a client.
pub fn script(name: &str) -> PathBuf {
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
pub(super) async fn installed(
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

/// Where the clients of npm are.
pub async fn npm() -> Option<PathBuf> {
    static NPM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    installed("the clients of npm", &NPM, install_npm).await
}

/// The interpreter that has openai for Python.
pub async fn python() -> Option<PathBuf> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    installed("openai for Python", &PYTHON, install_python).await
}

/// The program of Codex.
pub fn codex(npm: &Path) -> String {
    npm.join("node_modules/.bin/codex").display().to_string()
}

/// Runs a script to its end; its JSON summary. Fails unless it exits with 0.
pub async fn run(program: &Path, dir: &Path, script: &Path, args: &[&str]) -> Value {
    let (status, summary) = run_to_end(program, dir, script, args).await;
    assert!(status.success(), "{}: {status}", script.display());
    summary
}

/// Runs a script to its end: how it ended, and its JSON summary.
pub async fn run_to_end(
    program: &Path,
    dir: &Path,
    script: &Path,
    args: &[&str],
) -> (ExitStatus, Value) {
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
    let summary = serde_json::from_str(&said);
    (output.status, summary.unwrap_or_else(|error| panic!("{error}: {said}\n{errors}")))
}
