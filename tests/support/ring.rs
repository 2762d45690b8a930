//! A ring: a database, a sample upstream and node processes over it.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    balancer::Balancer,
    clock::Clock,
    eventually,
    gate::Gate,
    http,
    lab::{self, Place},
    postgres,
    process::{Process, Program, free_port},
};

/// How long a node may take to its first readiness on a busy machine.
const READY: Duration = Duration::from_secs(30);
/// How long a migration may take.
const MIGRATION: Duration = Duration::from_mins(1);
/// The shared secret of nodes.
pub const PEER_TOKEN: &str = "a-peer-token-of-the-tests-0123456789";

/// Where claims live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Postgres,
    /// Postgres behind a gate that the test can shut.
    GatedPostgres,
    /// A server of this ring alone, which the test may stop.
    OwnPostgres,
    /// The same, under a clock that the test may step.
    ClockedPostgres,
    Sqlite,
}

/// Lease and drain times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// A lease of 1.5 s and a dwell of 0.3 s.
    Fast,
    Default,
}

impl Timing {
    /// Of rings that do not say: `RINGSPAN_TIMING`, or fast.
    fn of_this_run() -> Self {
        match std::env::var("RINGSPAN_TIMING").as_deref() {
            Err(_) | Ok("fast") => Self::Fast,
            Ok("default") => Self::Default,
            Ok(other) => panic!("RINGSPAN_TIMING is fast or default, not {other}"),
        }
    }

    /// The limit of a drain.
    pub fn drain(self) -> Duration {
        match self {
            Self::Fast => Duration::from_secs(15),
            Self::Default => Duration::from_mins(1),
        }
    }

    fn settings(self) -> &'static str {
        match self {
            Self::Fast => concat!(
                "heartbeat_interval = \"200ms\"\nlease_ttl = \"1500ms\"\nring_poll = \"200ms\"\n",
                "drain_dwell = \"300ms\"\ndrain_timeout = \"15s\"\ndrain_cleanup = \"2s\"\n",
            ),
            Self::Default => "",
        }
    }
}

/// What ring to start.
#[derive(Clone, Debug)]
pub struct RingOptions {
    pub nodes: usize,
    pub store: Store,
    pub timing: Timing,
    /// Whether nodes can prove a neighbour's death, or have to wait for its lease.
    pub process_proof: bool,
    /// Scalar settings, at the top of the configuration file.
    pub settings: String,
    /// Further fields of the route `/v1/responses`.
    pub responses: String,
    /// Further tables of the configuration file.
    pub tables: String,
    /// Further arguments of the sample upstream.
    pub sample: &'static [&'static str],
}

impl Default for RingOptions {
    fn default() -> Self {
        Self {
            nodes: 2,
            store: Store::Postgres,
            timing: Timing::of_this_run(),
            process_proof: true,
            settings: String::new(),
            responses: String::new(),
            tables: String::new(),
            sample: &[],
        }
    }
}

impl RingOptions {
    pub fn nodes(nodes: usize) -> Self {
        Self { nodes, ..Self::default() }
    }

    pub fn store(self, store: Store) -> Self {
        Self { store, ..self }
    }

    pub fn timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// Over a sample upstream with these arguments besides.
    pub fn sample(self, sample: &'static [&'static str]) -> Self {
        Self { sample, ..self }
    }

    pub fn without_process_proof(self) -> Self {
        Self { process_proof: false, ..self }
    }

    pub fn setting(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        writeln!(self.settings, "{name} = {value}").unwrap();
        self
    }

    /// One more field of the route `/v1/responses`.
    pub fn responses(mut self, name: &str, value: &str) -> Self {
        writeln!(self.responses, "{name} = \"{value}\"").unwrap();
        self
    }

    /// An opaque route at `path` to an upstream of its own; sessions by `?session=`.
    /// `{sample}` in the URL is the address of the sample upstream.
    pub fn route(mut self, path: &str, upstream: &str) -> Self {
        let name = path.trim_matches('/').replace('/', "-");
        write!(
            self.tables,
            "[[upstream]]\nname = \"{name}\"\nurl = \"{upstream}\"\n\
             [[route]]\npath = \"{path}\"\nprofile = \"opaque\"\nupstream = \"{name}\"\n\
             session_key = [\"query:session\"]\n",
        )
        .unwrap();
        self
    }
}

/// A running ring. Everything ends with it.
pub struct Ring {
    pub options: RingOptions,
    pub nodes: Vec<Node>,
    pub sample_url: String,
    pub database_url: String,
    /// The gate of [`Store::GatedPostgres`].
    pub gate: Option<Arc<Gate>>,
    /// The server of [`Store::OwnPostgres`] and [`Store::ClockedPostgres`].
    pub server: Option<postgres::Server>,
    /// The clock of the latter.
    pub clock: Option<Clock>,
    sample: Process,
    dir: Option<TempDir>,
}

/// One place for a node: its ports stay, its processes come and go.
pub struct Node {
    pub id: String,
    pub client_url: String,
    pub admin_url: String,
    /// `host:port` of its peer listener.
    pub peer: String,
    /// Its own network, in a lab.
    pub place: Option<Place>,
    program: Program,
    process: Mutex<Option<Arc<Process>>>,
}

impl Ring {
    /// Migrates, starts everything and waits until every node sees every other.
    pub async fn start(options: RingOptions) -> Self {
        let ring = Self::prepare(options).await;
        ring.migrate().await;
        ring.start_nodes().await;
        ring
    }

    /// A ring of which only the sample upstream runs, over an empty database.
    pub async fn prepare(options: RingOptions) -> Self {
        let dir = tempfile::Builder::new().prefix("ringspan-it-").tempdir().unwrap();
        let sample_addr = format!("{}:{}", lab::here(), free_port());
        let Database { url: database_url, gate, server, clock } = database(&options, &dir).await;
        let sample_log = dir.path().join("sample.log");
        let mut args = vec!["sample-upstream", "--listen", &sample_addr];
        args.extend(options.sample);
        let sample = Program::new(sample_log, &args).start();
        let config = dir.path().join("ringspan.toml");
        fs::write(&config, configuration(&options, &sample_addr)).unwrap();
        let sample_url = format!("http://{sample_addr}");
        let health = format!("{sample_url}/_sample/health");
        eventually("the sample upstream serves", READY, async || {
            assert_eq!(sample.exit_code(), None, "{}", sample.log());
            http::request(::http::Method::GET, &health, &[], "").await.ok()
        })
        .await;
        let nodes = (0..options.nodes)
            .map(|n| {
                let id = format!("node-{n}");
                Node::new(&id, dir.path(), &database_url, &options, lab::place())
            })
            .collect();
        let dir = Some(dir);
        Self { options, nodes, sample_url, database_url, gate, server, clock, sample, dir }
    }

    /// `ringspan migrate run`, which must succeed.
    pub async fn migrate(&self) {
        self.migrate_with(None).await;
    }

    /// The same by the binary of another release.
    pub async fn migrate_with(&self, binary: Option<PathBuf>) {
        let log = self.dir().join("migrate.log");
        let mut program =
            Program::new(log, &["migrate", "run"]).env("RINGSPAN_DATABASE_URL", &self.database_url);
        program.binary = binary;
        let (code, log) = program.run(MIGRATION).await;
        assert_eq!(code, 0, "migrate run: {log}");
    }

    /// Starts all nodes and waits until every one sees every other.
    pub async fn start_nodes(&self) {
        for node in &self.nodes {
            node.start();
        }
        self.until_whole().await;
    }

    /// Waits until every running node is ready and sees as many members as nodes run.
    pub async fn until_whole(&self) {
        let running: Vec<_> = self.nodes.iter().filter(|node| node.is_running()).collect();
        for node in &running {
            let what = format!("{} sees {} members", node.id, running.len());
            eventually(&what, READY, async || {
                assert_eq!(node.process().exit_code(), None, "{} ended: {}", node.id, node.log());
                let health = node.health().await?;
                let whole = health["ready"] == true && health["members"] == running.len();
                whole.then_some(())
            })
            .await;
        }
    }

    pub fn node(&self, n: usize) -> &Node {
        &self.nodes[n]
    }

    /// A place for one more node, as `id`, that is not started and not counted.
    pub fn extra_node(&self, id: &str) -> Node {
        self.node_at(id, lab::place())
    }

    /// The same at a place of a lab, whose node has ended.
    pub fn node_at(&self, id: &str, place: Option<Place>) -> Node {
        Node::new(id, &self.dir(), &self.database_url, &self.options, place)
    }

    /// Directory of configuration and logs.
    pub fn dir(&self) -> PathBuf {
        self.dir.as_ref().unwrap().path().to_owned()
    }

    /// Suspends the sample upstream: what is sent to it waits.
    pub async fn freeze_upstream(&self) {
        self.sample.freeze().await;
    }

    /// Lets it go on.
    pub fn thaw_upstream(&self) {
        self.sample.signal(Signal::CONT);
    }

    /// The database itself, past a gate.
    pub fn direct_database_url(&self) -> String {
        match &self.gate {
            Some(gate) => {
                self.database_url.replace(&format!("127.0.0.1:{}", gate.port), &gate.target)
            }
            None => self.database_url.clone(),
        }
    }

    /// A balancer over all nodes.
    pub async fn balancer(&self) -> Balancer {
        Balancer::over(self.nodes.iter()).await
    }

    /// Sessions of the whole ring, as any live node lists them.
    pub async fn sessions(&self) -> Vec<Value> {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            let url = format!("{}/api/v1/sessions?limit=1000", node.admin_url);
            if let Ok(answer) = http::request(::http::Method::GET, &url, &[], "").await
                && answer.status == 200
            {
                return answer.json()["sessions"].as_array().unwrap().clone();
            }
        }
        panic!("no node lists sessions");
    }

    /// The one live session whose key is or ends with `key`, once it is listed.
    pub async fn session(&self, key: &str) -> Value {
        eventually(&format!("session {key} is listed"), READY, async || {
            let mut found = self.sessions().await;
            found.retain(|session| {
                session["state"] == "LIVE"
                    && session["key"].as_str().is_some_and(|known| known.ends_with(key))
            });
            assert!(found.len() < 2, "several sessions of {key}: {found:?}");
            found.pop()
        })
        .await
    }

    /// The node that owns the session of `key`.
    pub async fn owner_of(&self, key: &str) -> &Node {
        let session = self.session(key).await;
        let owner = session["owner_node"].as_str().unwrap();
        self.nodes.iter().find(|node| node.id == owner).unwrap()
    }

    /// The node that registered last. All others may declare it dead as soon as its lease is
    /// over; of an older one they must first have heard that it knows them.
    pub async fn youngest(&self) -> &Node {
        let url = format!("{}/api/v1/ring", self.nodes[0].admin_url);
        let ring = http::get(&url, &[]).await.json();
        let members = ring["members"].as_array().unwrap().iter();
        let last = members.max_by_key(|member| member["incarnation"].as_i64()).unwrap();
        self.nodes.iter().find(|node| last["node_id"] == node.id.as_str()).unwrap()
    }

    /// Nodes other than `node`.
    pub fn others(&self, node: &Node) -> Vec<&Node> {
        self.nodes.iter().filter(|other| other.id != node.id).collect()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let keep = std::env::var_os("RINGSPAN_IT_KEEP").is_some();
        if std::thread::panicking() || keep {
            let dir = self.dir.take().unwrap().keep();
            println!("configuration and logs of this ring: {}", dir.display());
            for node in &self.nodes {
                let log = node.log();
                let from = log.floor_char_boundary(log.len().saturating_sub(3000));
                println!("--- end of the log of {}\n{}", node.id, &log[from..]);
            }
            println!("--- sample upstream: exit {:?}", self.sample.exit_code());
        }
    }
}

/// A ring's database, and what the test has in its hands of it.
#[derive(Default)]
struct Database {
    url: String,
    gate: Option<Arc<Gate>>,
    server: Option<postgres::Server>,
    clock: Option<Clock>,
}

async fn database(options: &RingOptions, dir: &TempDir) -> Database {
    let mut database = Database::default();
    match options.store {
        Store::Sqlite => database.url = format!("sqlite://{}/ring.db", dir.path().display()),
        Store::Postgres => database.url = postgres::Server::shared().database().await,
        Store::OwnPostgres => {
            let server = postgres::Server::start();
            database.url = server.database().await;
            database.server = Some(server);
        }
        Store::ClockedPostgres => {
            let server = postgres::Server::start_under(|dir| {
                let clock = database.clock.insert(Clock::new(&dir.join("clock")));
                clock.variables().into()
            });
            database.url = server.database().await;
            database.server = Some(server);
        }
        Store::GatedPostgres => {
            let (url, gate) = behind_gate(&postgres::Server::shared().database().await).await;
            (database.url, database.gate) = (url, Some(gate));
        }
    }
    database
}

/// The same database as reached through a gate.
pub async fn behind_gate(url: &str) -> (String, Arc<Gate>) {
    let (credentials, rest) = url.split_once('@').unwrap();
    let (target, database) = rest.split_once('/').unwrap();
    let gate = Gate::open(target).await;
    (format!("{credentials}@127.0.0.1:{}/{database}", gate.port), gate)
}

fn configuration(options: &RingOptions, sample: &str) -> String {
    let RingOptions { timing, settings, responses, tables, .. } = options;
    let timing = timing.settings();
    let tables = tables.replace("{sample}", sample);
    format!(
        r#"{timing}{settings}
[[upstream]]
name = "sample"
url = "ws://{sample}/v1/responses"

[[upstream]]
name = "sample-echo"
url = "ws://{sample}/echo"

[[upstream]]
name = "sample-stream"
url = "ws://{sample}/stream"

[[route]]
path = "/v1/responses"
profile = "responses"
upstream = "sample"
{responses}
[[route]]
path = "/echo"
profile = "opaque"
upstream = "sample-echo"
session_key = ["query:session"]

[[route]]
path = "/rooms/{{room}}"
profile = "opaque"
upstream = "sample-echo"
session_key = ["path:room"]

[[route]]
path = "/stream"
profile = "opaque"
upstream = "sample-stream"
session_key = ["query:session"]

{tables}"#
    )
}

impl Node {
    fn new(
        id: &str,
        dir: &Path,
        database_url: &str,
        options: &RingOptions,
        place: Option<Place>,
    ) -> Self {
        // Who has an address of its own has the same ports as everybody, so that an address
        // can come to another node.
        let addr = |port: u16| match &place {
            Some(place) => format!("{}:{port}", place.host),
            None => format!("127.0.0.1:{}", free_port()),
        };
        let (client, peer, admin) = (addr(8080), addr(50051), addr(9090));
        let config = dir.join("ringspan.toml");
        let args = [
            "serve",
            "--config",
            config.to_str().unwrap(),
            "--node-id",
            id,
            "--listen",
            &client,
            "--peer-listen",
            &peer,
            "--admin-listen",
            &admin,
            "--log-format",
            "json",
        ];
        let mut program = Program::new(dir.join(format!("{id}.log")), &args)
            .env("RINGSPAN_DATABASE_URL", database_url)
            .env("RINGSPAN_PEER_TOKEN", PEER_TOKEN);
        program.sees_processes = options.process_proof;
        program.namespace = place.as_ref().map(|place| place.namespace.clone());
        Self {
            id: id.to_owned(),
            client_url: format!("http://{client}"),
            admin_url: format!("http://{admin}"),
            peer,
            place,
            program,
            process: Mutex::default(),
        }
    }

    /// The same place with another flag or variable.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.program = self.program.env(name, value);
        self
    }

    /// The same place with a client and an admin listener elsewhere on its address.
    pub fn on_ports(mut self, client: u16, admin: u16) -> Self {
        for (flag, url, port) in [
            ("--listen", &mut self.client_url, client),
            ("--admin-listen", &mut self.admin_url, admin),
        ] {
            let host = url.rsplit_once(':').unwrap().0.to_owned();
            *url = format!("{host}:{port}");
            let at = self.program.args.iter().position(|arg| arg == flag).unwrap();
            url.trim_start_matches("http://").clone_into(&mut self.program.args[at + 1]);
        }
        self
    }

    /// Lets its next process be of another release; None for the one under test.
    pub fn of_release(&mut self, binary: Option<PathBuf>) {
        self.program.binary = binary;
    }

    /// Its address in a lab.
    pub fn host(&self) -> &str {
        &self.place.as_ref().expect("a network of its own").host
    }

    /// URL of a path of the client listener.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.client_url)
    }

    /// Starts a process, which must not be running.
    pub fn start(&self) {
        let mut process = self.process.lock();
        assert!(process.as_ref().is_none_or(|process| process.exit_code().is_some()));
        *process = Some(Arc::new(self.program.start()));
    }

    /// Starts it again after its end, and waits until it is ready.
    pub async fn restart(&self) {
        self.start();
        self.until_ready().await;
    }

    pub async fn until_ready(&self) {
        eventually(&format!("{} is ready", self.id), READY, async || {
            assert_eq!(self.process().exit_code(), None, "{} ended: {}", self.id, self.log());
            (self.health().await?["ready"] == true).then_some(())
        })
        .await;
    }

    /// `/health/ready`, whatever its status; None if nobody answers.
    pub async fn health(&self) -> Option<Value> {
        let url = format!("{}/health/ready", self.admin_url);
        let answer = http::request(::http::Method::GET, &url, &[], "").await.ok()?;
        serde_json::from_slice(&answer.body).ok()
    }

    /// A metric without labels.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = http::get(&format!("{}/metrics", self.admin_url), &[]).await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    pub fn process(&self) -> Arc<Process> {
        Arc::clone(self.process.lock().as_ref().expect("the node was started"))
    }

    pub fn is_running(&self) -> bool {
        self.process.lock().as_ref().is_some_and(|process| process.exit_code().is_none())
    }

    /// Asks it to drain.
    pub fn sigterm(&self) {
        self.process().signal(Signal::TERM);
    }

    /// Kills it, and returns when it is gone.
    pub async fn kill9(&self) {
        self.process().signal(Signal::KILL);
        self.wait_exit(Duration::from_secs(10)).await;
    }

    /// Suspends it, and returns when it stands still.
    pub async fn freeze(&self) {
        self.process().freeze().await;
    }

    /// Lets it go on.
    pub fn cont(&self) {
        self.process().signal(Signal::CONT);
    }

    /// The exit code, or minus the signal's number.
    pub async fn wait_exit(&self, limit: Duration) -> i32 {
        self.process().wait_exit(limit).await
    }

    /// All that its processes wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.program.log).unwrap_or_default()
    }
}
