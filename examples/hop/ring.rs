//! ringspan and its database, as operators run them: metrics, info logs and the replay log on.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use super::{peers::free_port, process::Process};

/// Where nodes keep what they agree on.
#[derive(Clone, Debug)]
pub enum Database {
    Sqlite(PathBuf),
    Postgres(String),
}

impl Database {
    /// A new SQLite database under `dir`.
    pub fn sqlite(dir: &Path) -> Self {
        Self::Sqlite(dir.join(format!("ring-{}.db", rand::random::<u32>())))
    }

    fn url(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite://{}", path.display()),
            Self::Postgres(url) => url.clone(),
        }
    }
}

/// A running node.
pub struct Node {
    pub id: String,
    pub process: Process,
    pub client: SocketAddr,
    admin: SocketAddr,
    /// From its start to its word that it is ready.
    pub started_in: Duration,
}

impl Node {
    /// What it exports.
    pub fn metrics(&self) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        let host = self.admin;
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "no metrics: {answer}");
        Ok(answer)
    }

    /// The version of the ring that it acts on.
    pub fn ring_version(&self) -> anyhow::Result<u64> {
        let text = self.metrics()?;
        let mut lines = text.lines();
        let version = lines.find_map(|line| line.strip_prefix("ringspan_ring_version "));
        Ok(version.context("no version of the ring")?.parse()?)
    }
}

/// What all nodes of a measurement share.
pub struct Nodes {
    pub binary: PathBuf,
    pub dir: PathBuf,
    pub upstream: SocketAddr,
    pub cpu: usize,
}

impl Nodes {
    /// Starts a node; `weight` is its share of new sessions, and one thread unless
    /// `threads` says otherwise (then on any processor).
    pub fn start(
        &self,
        database: &Database,
        weight: u32,
        threads: Option<usize>,
    ) -> anyhow::Result<Node> {
        self.start_with(database, weight, threads, &[])
    }

    /// The same, with flags.
    pub fn start_with(
        &self,
        database: &Database,
        weight: u32,
        threads: Option<usize>,
        flags: &[&str],
    ) -> anyhow::Result<Node> {
        let id = format!("node-{}", free_port()?);
        let config = self.dir.join(format!("{id}.toml"));
        fs::write(&config, self.config(threads.unwrap_or(1)))?;
        let weight = weight.to_string();
        let url = database.url();
        let config = config.display().to_string();
        let mut command = [
            &*self.binary.to_string_lossy(),
            "serve",
            "--config",
            &config,
            "--node-id",
            &id,
            "--weight",
            &weight,
            "--database-url",
            &url,
            "--migrate-on-start",
        ]
        .map(str::to_owned)
        .to_vec();
        command.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let started = Instant::now();
        let cpu = threads.is_none().then_some(self.cpu);
        let mut process = Process::start(&command, cpu, Some(&self.dir.join(format!("{id}.log"))))?;
        loop {
            let line = process.line().context("a node did not start")?;
            let Some((_, rest)) = line.split_once(" is ready: clients http://") else { continue };
            let started_in = started.elapsed();
            let (client, rest) = rest.split_once(',').context("an unknown ready line")?;
            let (_, admin) = rest.split_once("admin http://").context("an unknown ready line")?;
            let (client, admin) = (client.parse()?, admin.parse()?);
            return Ok(Node { id, process, client, admin, started_in });
        }
    }

    fn config(&self, threads: usize) -> String {
        let upstream = self.upstream;
        let mut text = format!(
            "listen = \"127.0.0.1:0\"\npeer_listen = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n\
             threads = {threads}\ncapacity = 100000\nmax_clients = 100000\n\
             drain_dwell = \"0s\"\n\
             [auth]\nmode = \"none\"\n\
             [[upstream]]\nname = \"plain\"\nurl = \"ws://{upstream}\"\n\
             [[upstream]]\nname = \"responses\"\nurl = \"ws://{upstream}/v1/responses\"\n"
        );
        for (path, rules) in [
            ("/v1/responses", ""),
            ("/memory/responses", "continuity = \"memory\"\n"),
            ("/bare/responses", "continuity = \"memory\"\nledger = false\n"),
        ] {
            text.push_str("[[route]]\nprofile = \"responses\"\nupstream = \"responses\"\n");
            text.extend(["path = \"", path, "\"\n", rules]);
        }
        for path in ["/echo", "/tokens", "/flood"] {
            text.push_str("[[route]]\nprofile = \"opaque\"\nupstream = \"plain\"\n");
            text.push_str("session_key = [\"header:session-id\"]\n");
            text.extend(["detach_ttl = \"1s\"\npath = \"", path, "\"\n"]);
        }
        text
    }
}

/// A Postgres of our own, with its defaults but for the number of connections: commits are
/// synchronous.
pub struct Postgres {
    pub process: Process,
    server: String,
    psql: PathBuf,
}

impl Postgres {
    /// None, aloud, where there is none on this machine.
    pub fn start(dir: &Path) -> anyhow::Result<Option<Self>> {
        let Some(bin) = postgres_programs() else {
            eprintln!(
                "hop: no Postgres programs; what needs them is left out (apt-get install postgresql)"
            );
            return Ok(None);
        };
        let data = dir.join("postgres");
        fs::create_dir(&data)?;
        let root = rustix::process::geteuid().is_root();
        if root {
            let path = data.display().to_string();
            quietly("chown", &["postgres", &path])?;
            // The user `postgres` has to get there.
            quietly("chmod", &["711", &dir.display().to_string()])?;
        }
        let as_user = |program: &str, arguments: &[&str]| -> Vec<String> {
            let program = bin.join(program).display().to_string();
            let user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"];
            let prefix = if root { &user[..] } else { &[] };
            let mut line: Vec<String> = prefix.iter().map(|part| (*part).to_owned()).collect();
            line.push(program);
            line.extend(arguments.iter().map(|part| (*part).to_owned()));
            line
        };
        let path = data.display().to_string();
        let port = free_port()?.to_string();
        let init = as_user(
            "initdb",
            &["-U", "bench", "-A", "trust", "-E", "UTF8", "--no-locale", "-D", &path],
        );
        quietly(&init[0], &init[1..])?;
        let serve = as_user(
            "postgres",
            &[
                "-D",
                &path,
                "-k",
                &path,
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-c",
                "max_connections=200",
            ],
        );
        let process = Process::start(&serve, None, Some(&dir.join("postgres.log")))?;
        let ready = as_user("pg_isready", &["-q", "-h", "127.0.0.1", "-p", &port]);
        let deadline = Instant::now() + Duration::from_mins(1);
        while quietly(&ready[0], &ready[1..]).is_err() {
            ensure!(Instant::now() < deadline, "Postgres did not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        let server = format!("postgres://bench@127.0.0.1:{port}");
        Ok(Some(Self { process, server, psql: bin.join("psql") }))
    }

    /// A new database, so that no ring meets members of an earlier one.
    pub fn database(&self) -> anyhow::Result<Database> {
        let name = format!("ring_{}", rand::random::<u32>());
        let first = Database::Postgres(format!("{}/postgres", self.server));
        self.ask(&first, &format!("CREATE DATABASE {name}"))?.answer()?;
        Ok(Database::Postgres(format!("{}/{name}", self.server)))
    }

    /// Has statements executed, and waits for nothing.
    pub fn ask(&self, database: &Database, statements: &str) -> anyhow::Result<Asked> {
        let options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &database.url()];
        let mut child = Command::new(&self.psql)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting psql")?;
        child.stdin.take().context("no stdin")?.write_all(statements.as_bytes())?;
        Ok(Asked(child))
    }
}

/// Statements under way.
pub struct Asked(Child);

impl Asked {
    /// The last line of their answers.
    pub fn answer(self) -> anyhow::Result<String> {
        let output = self.0.wait_with_output()?;
        ensure!(output.status.success(), "psql failed");
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().next_back().unwrap_or_default().to_owned())
    }
}

fn postgres_programs() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").is_file() && bin.join("postgres").is_file())
        .collect();
    found.sort();
    std::env::var_os("PG_BIN").map(PathBuf::from).or_else(|| found.pop())
}

/// Runs a command to its end.
fn quietly(program: &str, arguments: &[impl AsRef<std::ffi::OsStr>]) -> anyhow::Result<()> {
    let status = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "{program} failed");
    Ok(())
}
