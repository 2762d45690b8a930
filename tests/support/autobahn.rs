//! The Autobahn test suite (`autobahntestsuite` of `PyPI`), which runs on Python 2.7 only. It is
//! installed once into `target/clients`, apart from everything else on the machine.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command as AsyncCommand},
    time::timeout,
};

use super::{
    Received, Ws, eventually,
    process::free_port,
    real::{installed, target},
};

/// Version of the suite, so that two runs ask the same.
const SUITE: &str = "autobahntestsuite==25.10.1";
/// The name under which the suite reports.
pub const AGENT: &str = "ringspan";
/// How long all cases may take.
const ALL_CASES: Duration = Duration::from_mins(40);

/// Interpreters that may be there: by name, and where pyenv keeps them.
fn candidates() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = ["python2.7", "pypy2", "pypy"].map(PathBuf::from).into();
    let pyenv = std::env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
    if let Some(versions) = pyenv.and_then(|root| fs::read_dir(root.join("versions")).ok()) {
        let versions = versions.filter_map(|entry| Some(entry.ok()?.path()));
        let old = versions.filter(|path| path.file_name().is_some_and(|it| is_old(it.to_str())));
        found.extend(old.map(|path| path.join("bin/python2.7")));
    }
    found
}

fn is_old(name: Option<&str>) -> bool {
    name.is_some_and(|name| name.starts_with("2.7") || name.starts_with("pypy2.7"))
}

fn interpreter() -> Option<PathBuf> {
    candidates().into_iter().find(|program| {
        let asked = Command::new(program).args(["-c", "import pip"]).output();
        asked.is_ok_and(|output| output.status.success())
    })
}

/// A script that starts the suite with its own packages.
fn install() -> Result<PathBuf, String> {
    let base = target().join("autobahn");
    let start = base.join("start");
    if start.exists() {
        return Ok(start);
    }
    let python = interpreter().ok_or("no Python 2.7 with pip on this machine")?;
    fs::create_dir_all(&base).map_err(|error| error.to_string())?;
    let output = Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--user", SUITE])
        .env("PYTHONUSERBASE", &base)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let text = format!(
        "#!/bin/sh\nPYTHONUSERBASE='{}' PYTHONWARNINGS=ignore exec '{}' -u '{}' \"$@\"\n",
        base.display(),
        python.display(),
        base.join("bin/wstest").display(),
    );
    fs::write(&start, text).map_err(|error| error.to_string())?;
    Ok(start)
}

/// The suite, if it can be had here.
pub async fn suite() -> Option<Suite> {
    static SUITE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let start = installed("the Autobahn test suite", &SUITE, install).await?;
    let dir = tempfile::Builder::new().prefix("autobahn-").tempdir().unwrap();
    Some(Suite { start, dir: Some(dir) })
}

/// The installed suite and a place for its reports.
pub struct Suite {
    start: PathBuf,
    dir: Option<TempDir>,
}

impl Drop for Suite {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let dir = self.dir.take().unwrap().keep();
            println!("reports of this run: {}", dir.display());
        }
    }
}

impl Suite {
    fn dir(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    /// Where a mode finds its instructions and leaves its report.
    fn place(&self, mode: &str, mut spec: Value, cases: &[&str]) -> (PathBuf, PathBuf) {
        let reports = self.dir().join(format!("{mode}-reports"));
        spec["outdir"] = json!(reports);
        spec["cases"] = json!(cases);
        spec["exclude-cases"] = json!([]);
        spec["exclude-agent-cases"] = json!({});
        let file = self.dir().join(format!("{mode}.json"));
        fs::write(&file, spec.to_string()).unwrap();
        (file, reports)
    }

    fn start(&self, mode: &str, spec: &Path) -> Child {
        let log = fs::File::create(self.dir().join(format!("{mode}.log"))).unwrap();
        AsyncCommand::new("sh")
            .arg(&self.start)
            .args(["-m", mode, "-s"])
            .arg(spec)
            .current_dir(self.dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// The fuzzing client against a server at `url`, which echoes.
    pub async fn judge_server(&self, url: &str, cases: &[&str]) -> Report {
        let servers = json!({ "servers": [{ "agent": AGENT, "url": url }] });
        let (spec, reports) = self.place("fuzzingclient", servers, cases);
        let mut client = self.start("fuzzingclient", &spec);
        let status = timeout(ALL_CASES, client.wait()).await.expect("the suite ends").unwrap();
        assert!(status.success(), "{status}: {}", self.log("fuzzingclient"));
        Report::read(&reports)
    }

    /// The fuzzing server; it judges whoever dials [`FuzzingServer::port`].
    pub async fn server(&self, cases: &[&str]) -> FuzzingServer {
        let port = free_port();
        let url = json!({ "url": format!("ws://127.0.0.1:{port}"), "webport": 0 });
        let (spec, reports) = self.place("fuzzingserver", url, cases);
        let mut process = self.start("fuzzingserver", &spec);
        eventually("the fuzzing server listens", Duration::from_secs(30), async || {
            assert_eq!(process.try_wait().unwrap(), None, "{}", self.log("fuzzingserver"));
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        FuzzingServer { port, reports, _process: process }
    }

    fn log(&self, mode: &str) -> String {
        fs::read_to_string(self.dir().join(format!("{mode}.log"))).unwrap_or_default()
    }
}

/// A running fuzzing server.
pub struct FuzzingServer {
    pub port: u16,
    reports: PathBuf,
    _process: Child,
}

impl FuzzingServer {
    /// Runs every case for a client that echoes through `bridge`, a ringspan URL whose
    /// upstream is this server.
    pub async fn judge_through(self, bridge: &str) -> Report {
        let direct = format!("ws://127.0.0.1:{}", self.port);
        let mut asked = Ws::open(&format!("{direct}/getCaseCount"), &[]).await;
        let count: u32 = asked.expect_text().await.parse().unwrap();
        for case in 1..=count {
            let url = format!("{bridge}?case={case}&agent={AGENT}");
            let mut ws = Ws::open(&url, &[]).await;
            loop {
                let answer = match ws.next().await {
                    Received::Text(text) => ws.text_or_gone(text).await,
                    Received::Binary(payload) => ws.binary_or_gone(payload).await,
                    Received::Ping(_) | Received::Pong(_) => true,
                    Received::Close(..) | Received::Lost(_) => false,
                    Received::Silence => panic!("case {case} does not end"),
                };
                if !answer {
                    break;
                }
            }
        }
        let mut update = Ws::open(&format!("{direct}/updateReports?agent={AGENT}"), &[]).await;
        update.end().await;
        Report::read(&self.reports)
    }
}

/// What the suite found: for each case how it went, and how the connection was closed.
pub struct Report(BTreeMap<Case, (String, String)>);

/// `12.1.3`, ordered by its numbers.
type Case = Vec<u32>;

impl Report {
    fn read(reports: &Path) -> Self {
        let text = fs::read_to_string(reports.join("index.json")).unwrap();
        let index: Value = serde_json::from_str(&text).unwrap();
        let cases = index[AGENT].as_object().expect("a report of our agent").iter();
        Self(
            cases
                .map(|(case, found)| {
                    let case = case.split('.').map(|part| part.parse().unwrap()).collect();
                    let said = |key: &str| found[key].as_str().unwrap().to_owned();
                    (case, (said("behavior"), said("behaviorClose")))
                })
                .collect(),
        )
    }

    pub fn cases(&self) -> usize {
        self.0.len()
    }

    /// Cases that went wrong, with what the suite says of each. What was not negotiated does
    /// not apply, and may be so for extensions only.
    pub fn failures(&self) -> Vec<String> {
        let fine = |case: &Case, behavior: &str| match behavior {
            "OK" | "NON-STRICT" | "INFORMATIONAL" => true,
            "UNIMPLEMENTED" => case[0] >= 12,
            _ => false,
        };
        let wrong = |(case, (behavior, close)): (&Case, &(String, String))| {
            let fine = fine(case, behavior) && fine(case, close);
            (!fine).then(|| format!("{}: {behavior}, closed {close}", name(case)))
        };
        self.0.iter().filter_map(wrong).collect()
    }

    /// Rows of a table: section, cases, and how many of each outcome.
    pub fn table(&self) -> String {
        let mut sections: BTreeMap<u32, BTreeMap<&str, usize>> = BTreeMap::new();
        for (case, (behavior, close)) in &self.0 {
            // An odd close counts for its case, unless the case itself went worse.
            let outcome = if behavior == "OK" { close } else { behavior };
            *sections.entry(case[0]).or_default().entry(outcome).or_default() += 1;
        }
        let rows = sections.iter().map(|(section, outcomes)| {
            let cases: usize = outcomes.values().sum();
            let told: Vec<_> = outcomes.iter().map(|(name, n)| format!("{n} {name}")).collect();
            format!("| {section} | {cases} | {} |", told.join(", "))
        });
        rows.collect::<Vec<_>>().join("\n")
    }

    /// Cases with one of these outcomes.
    pub fn with(&self, outcome: &str) -> Vec<String> {
        let found = self.0.iter().filter(|(_, (behavior, _))| behavior == outcome);
        found.map(|(case, _)| name(case)).collect()
    }
}

fn name(case: &Case) -> String {
    case.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
}
