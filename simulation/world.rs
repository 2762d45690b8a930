//! The simulated hosts, and what befalls them.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use ringspan::{
    app::{App, Joined},
    config::{Config, ServeArgs, settings::Key},
    net::TcpListener,
    sample::{self, SampleOptions},
    store::simulated,
    telemetry::Metrics,
};
use tokio::sync::Notify;
use turmoil::{Builder, Sim};

use crate::{
    database::Database,
    judge::{self, Report},
    plan::{CLIENTS, Event, Fault, Plan, UPSTREAM, node},
    support::{checker::Conduct, net},
    talk::{self, Talks},
};

/// How much time passes in one step.
const TICK: Duration = Duration::from_millis(1);

/// A simulation that is not over by then hangs.
const LONGEST: Duration = Duration::from_mins(10);

/// How soon a process that ended by itself is started again.
const RESTART: Duration = Duration::from_millis(700);

/// Messages that a connection holds.
const BUFFERED: usize = 4096;

/// Panics of any task so far.
pub static PANICS: AtomicUsize = AtomicUsize::new(0);

/// One node's process, as its supervisor sees it.
#[derive(Default)]
struct Process {
    /// Wakes it to drain.
    term: Mutex<Arc<Notify>>,
    /// How it ended, until the supervisor has seen that.
    ended: Mutex<Option<Result<(), String>>>,
}

/// A simulation under way.
struct World<'a> {
    sim: Sim<'a>,
    plan: Plan,
    database: Arc<Database>,
    processes: Vec<Arc<Process>>,
    talks: Arc<Talks>,
    /// Faults to come and to end, by time.
    agenda: BTreeMap<(Duration, usize), Act>,
    /// Links that a fault has.
    busy: BTreeSet<(String, String)>,
    /// Nodes that were told to go.
    draining: BTreeSet<usize>,
    counts: BTreeMap<&'static str, usize>,
    /// What happened when, for who compares two runs.
    journal: Vec<String>,
}

#[derive(Clone)]
enum Act {
    Begin(usize),
    End(usize),
    Start(usize),
    Heal,
}

/// Runs one simulation. Everything in it follows from the plan.
pub fn run(plan: Plan) -> Report {
    let mut builder = Builder::new();
    builder
        .rng_seed(plan.seed)
        .epoch(SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 365 * 50))
        .tick_duration(TICK)
        .simulation_duration(LONGEST)
        .min_message_latency(TICK)
        .max_message_latency(plan.latency)
        .tcp_capacity(BUFFERED)
        .enable_random_order();
    let database = Database::new(plan.seed ^ 0xda7a, plan.drift);
    let opened = Arc::clone(&database);
    simulated::serve(move |options| {
        // `postgres://NODE@database/ring`
        let host = options.url.split(['/', '@']).nth(2).unwrap_or_default().to_owned();
        Arc::new(opened.client(&host, options.timeout))
    });
    net::balance((0..plan.nodes).map(|n| format!("{}:8080", node(n))).collect(), plan.seed);
    let mut world = World {
        sim: builder.build(),
        database,
        processes: (0..plan.nodes).map(|_| Arc::default()).collect(),
        talks: Arc::default(),
        agenda: BTreeMap::new(),
        busy: BTreeSet::new(),
        draining: BTreeSet::new(),
        counts: BTreeMap::new(),
        journal: Vec::new(),
        plan,
    };
    world.people();
    world.schedule();
    let ended = world.go();
    world.report(ended)
}

impl World<'_> {
    /// Registers every host.
    fn people(&mut self) {
        let database = Arc::clone(&self.database);
        self.sim.host("database", move || {
            let database = Arc::clone(&database);
            async move {
                database.serve().await;
                Ok(())
            }
        });
        self.sim.host(UPSTREAM, || async {
            let listener = TcpListener::bind("0.0.0.0:9000").await?;
            sample::serve(listener, SampleOptions::default(), std::future::pending()).await?;
            Ok(())
        });
        for n in 0..self.plan.nodes {
            let config = configuration(&self.plan, n);
            let process = Arc::clone(&self.processes[n]);
            self.sim.host(node(n), move || serve(config.clone(), Arc::clone(&process)));
        }
        let (plan, talks) = (self.plan.clone(), Arc::clone(&self.talks));
        self.sim.client(CLIENTS, async move {
            talk::run(plan, talks).await;
            Ok(())
        });
    }

    fn schedule(&mut self) {
        for (n, Event { at, lasts, .. }) in self.plan.events.iter().enumerate() {
            self.agenda.insert((*at, 2 * n), Act::Begin(n));
            self.agenda.insert((*at + *lasts, 2 * n + 1), Act::End(n));
        }
        self.agenda.insert((self.plan.healed_at + TICK, usize::MAX), Act::Heal);
    }

    /// Lets time pass until the clients are done.
    fn go(&mut self) -> Result<(), String> {
        loop {
            let now = self.sim.elapsed();
            while self.agenda.first_key_value().is_some_and(|((at, _), _)| *at <= now) {
                if let Some((_, act)) = self.agenda.pop_first() {
                    self.act(&act);
                }
            }
            self.supervise();
            match self.sim.step() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Ends what ended by itself for good, and has it started again.
    fn supervise(&mut self) {
        for n in 0..self.plan.nodes {
            let ended = self.processes[n].ended.lock().take();
            if let Some(how) = ended {
                self.note(&format!("{} ended: {how:?}", node(n)));
                let what = if how.is_ok() { "drained" } else { "gave up" };
                *self.counts.entry(what).or_default() += 1;
                self.sim.crash(node(n));
                let at = (self.sim.elapsed() + RESTART, usize::MAX / 2 + n);
                self.agenda.insert(at, Act::Start(n));
            }
        }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Begin(n) => {
                let fault = self.plan.events[*n].fault.clone();
                if self.begin(&fault) {
                    self.note(&format!("begins: {fault:?}"));
                    *self.counts.entry(fault.kind()).or_default() += 1;
                } else {
                    // Something else is wrong there.
                    self.agenda.retain(|_, act| !matches!(act, Act::End(end) if end == n));
                }
            }
            Act::End(n) => {
                let fault = self.plan.events[*n].fault.clone();
                self.note(&format!("ends: {fault:?}"));
                self.end(&fault);
            }
            Act::Start(n) => self.start(*n),
            Act::Heal => self.heal(),
        }
    }

    fn note(&mut self, what: &str) {
        tracing::warn!(target: "simulation", at = ?self.sim.elapsed(), "{what}");
        self.journal.push(format!("{:?} {what}", self.sim.elapsed()));
    }

    /// False if it cannot be now.
    fn begin(&mut self, fault: &Fault) -> bool {
        match fault {
            Fault::Drain { node: n } => {
                let told: BTreeSet<_> = self.draining.iter().chain([n]).collect();
                // No plan tells all nodes to go.
                let last = self.plan.conduct == Conduct::Planned && told.len() == self.plan.nodes;
                // A second signal would end the drain that is under way.
                if last || !self.sim.is_host_running(node(*n)) || !self.draining.insert(*n) {
                    return false;
                }
                self.processes[*n].term.lock().notify_one();
            }
            Fault::Crash { node: n, power } => {
                if !self.sim.is_host_running(node(*n)) {
                    return false;
                }
                let others: Vec<_> = self.links_of(*n, true).into_iter().collect();
                let free: Vec<_> =
                    others.into_iter().filter(|link| !self.busy.contains(link)).collect();
                if *power {
                    for (one, two) in &free {
                        self.sim.partition(one.as_str(), two.as_str());
                    }
                }
                self.sim.crash(node(*n));
                if *power {
                    for (one, two) in &free {
                        self.sim.repair(one.as_str(), two.as_str());
                    }
                }
            }
            Fault::Partition { one, two, oneway } => {
                if !self.busy.insert(link(one, two)) {
                    return false;
                }
                if *oneway {
                    self.sim.partition_oneway(one.as_str(), two.as_str());
                } else {
                    self.sim.partition(one.as_str(), two.as_str());
                }
            }
            Fault::Isolation { node: n, upstream } => {
                let links = self.links_of(*n, *upstream);
                if links.iter().any(|link| self.busy.contains(link)) {
                    return false;
                }
                for (one, two) in links {
                    self.sim.partition(one.as_str(), two.as_str());
                    self.busy.insert((one, two));
                }
                self.cut(*n, Some(crate::database::Cut::Silent));
            }
            Fault::Hold { one, two } => {
                if !self.busy.insert(link(one, two)) {
                    return false;
                }
                self.sim.hold(one.as_str(), two.as_str());
            }
            Fault::SlowLink { one, two, by } => {
                if !self.busy.insert(link(one, two)) {
                    return false;
                }
                self.sim.set_link_latency(one.as_str(), two.as_str(), *by);
            }
            Fault::Stall => self.database.trouble(|troubles| troubles.stalled = true),
            Fault::Cut { node: n, how } => self.cut(*n, Some(*how)),
            Fault::Lossy { percent } => self.database.trouble(|it| it.lost = *percent),
            Fault::Stale { percent } => self.database.trouble(|it| it.stale = *percent),
            Fault::SlowDatabase { millis } => self.database.trouble(|it| it.slow = *millis),
        }
        true
    }

    fn end(&mut self, fault: &Fault) {
        match fault {
            // Its end starts it again.
            Fault::Drain { .. } => {}
            Fault::Crash { node: n, .. } => self.start(*n),
            Fault::Partition { one, two, .. } => {
                self.sim.repair(one.as_str(), two.as_str());
                self.busy.remove(&link(one, two));
            }
            Fault::Isolation { node: n, upstream } => {
                for (one, two) in self.links_of(*n, *upstream) {
                    self.sim.repair(one.as_str(), two.as_str());
                    self.busy.remove(&(one, two));
                }
                self.cut(*n, None);
            }
            Fault::Hold { one, two } => {
                self.sim.release(one.as_str(), two.as_str());
                self.busy.remove(&link(one, two));
            }
            Fault::SlowLink { one, two, .. } => {
                self.sim.set_link_latency(one.as_str(), two.as_str(), TICK);
                self.busy.remove(&link(one, two));
            }
            Fault::Stall => self.database.trouble(|troubles| troubles.stalled = false),
            Fault::Cut { node: n, .. } => self.cut(*n, None),
            Fault::Lossy { .. } => self.database.trouble(|it| it.lost = 0),
            Fault::Stale { .. } => self.database.trouble(|it| it.stale = 0),
            Fault::SlowDatabase { .. } => self.database.trouble(|it| it.slow = 0),
        }
    }

    fn cut(&self, n: usize, how: Option<crate::database::Cut>) {
        self.database.trouble(|troubles| {
            match how {
                Some(how) => troubles.cut.insert(node(n), how),
                None => troubles.cut.remove(&node(n)),
            };
        });
    }

    fn start(&mut self, n: usize) {
        if !self.sim.is_host_running(node(n)) {
            self.note(&format!("{} starts", node(n)));
            self.draining.remove(&n);
            self.sim.bounce(node(n));
        }
    }

    /// Everything works again.
    fn heal(&mut self) {
        self.note("healed");
        self.database.trouble(|troubles| *troubles = crate::database::Troubles::default());
        for n in 0..self.plan.nodes {
            self.start(n);
        }
        self.talks.healed.send_replace(true);
    }

    /// Links of a node to everybody; to the upstream only if so said.
    fn links_of(&self, n: usize, upstream: bool) -> BTreeSet<(String, String)> {
        let others = (0..self.plan.nodes).filter(|other| *other != n).map(node);
        let others = others.chain([CLIENTS.to_owned()]);
        let others = others.chain(upstream.then(|| UPSTREAM.to_owned()));
        others.map(|other| link(&node(n), &other)).collect()
    }

    fn report(self, ended: Result<(), String>) -> Report {
        let mut outcome = std::mem::take(&mut *self.talks.outcome.lock());
        if let Err(error) = ended {
            outcome.violations.push(format!("the simulation ended early: {error}"));
        }
        let panics = PANICS.load(Relaxed);
        if panics > 0 {
            outcome.violations.push(format!("{panics} tasks panicked"));
        }
        let changes = self.database.memory().changes();
        let mut hash = DefaultHasher::new();
        self.journal.hash(&mut hash);
        format!("{changes:?}").hash(&mut hash);
        format!("{:?} {:?}", outcome.seen, outcome.upstream).hash(&mut hash);
        // Whatever was random, down to the last nonce.
        rand::random::<u64>().hash(&mut hash);
        let counts = self.database.counts();
        let mut faults = self.counts;
        for (what, count) in [
            ("answers of the database lost", counts.answers_lost),
            ("requests to the database lost", counts.requests_lost),
            ("answers of before", counts.stale),
        ] {
            faults.insert(what, usize::try_from(count).unwrap_or(usize::MAX));
        }
        judge::judge(&self.plan, outcome, &changes, faults, self.sim.elapsed(), hash.finish())
    }
}

fn link(one: &str, two: &str) -> (String, String) {
    let (one, two) = if one < two { (one, two) } else { (two, one) };
    (one.to_owned(), two.to_owned())
}

/// One process of a node, until it is torn down.
async fn serve(config: Config, process: Arc<Process>) -> turmoil::Result {
    let term = Arc::new(Notify::new());
    *process.term.lock() = Arc::clone(&term);
    let served = async {
        let app = App::start(Joined::new(config).await?, Metrics::new()).await?;
        app.run(async || term.notified().await).await
    };
    let ended: anyhow::Result<()> = served.await;
    *process.ended.lock() = Some(ended.map_err(|error| format!("{error:#}")));
    // Its sockets close when the supervisor sees that.
    std::future::pending().await
}

fn configuration(plan: &Plan, n: usize) -> Config {
    let Plan { lease_ttl, continuity, ledger, .. } = plan;
    let ttl = lease_ttl.as_millis();
    let (heartbeat, poll) = (ttl / 8, ttl / 6);
    let text = format!(
        r#"
heartbeat_interval = "{heartbeat}ms"
lease_ttl = "{ttl}ms"
ring_poll = "{poll}ms"
database_timeout = "{}ms"
drain_dwell = "400ms"
drain_timeout = "12s"
drain_cleanup = "2s"
turn_idle_timeout = "8s"
dial_timeout = "3s"
rebalance_idle = "3s"
[[upstream]]
name = "sample"
url = "ws://{UPSTREAM}:9000/v1/responses"
[[upstream]]
name = "sample-echo"
url = "ws://{UPSTREAM}:9000/echo"
[[route]]
path = "/v1/responses"
profile = "responses"
upstream = "sample"
continuity = "{continuity}"
ledger = {ledger}
[[route]]
path = "/rooms/{{room}}"
profile = "opaque"
upstream = "sample-echo"
session_key = ["path:room"]
"#,
        ttl / 3
    );
    let path =
        std::env::temp_dir().join(format!("ringspan-simulation-{}.toml", std::process::id()));
    std::fs::write(&path, text).expect("a file for the configuration");
    let args = ServeArgs::default()
        .with(Key::Config, path.display().to_string())
        .with(Key::NodeId, node(n))
        .with(Key::Listen, "0.0.0.0:8080")
        .with(Key::PeerListen, "0.0.0.0:50051")
        .with(Key::AdminListen, "0.0.0.0:9090")
        .with(Key::Advertise, format!("{}:50051", node(n)))
        .with(Key::DatabaseUrl, format!("postgres://{}@database/ring", node(n)))
        .with(Key::Threads, "1");
    let supersede = plan.supersede;
    let env = move |name: &str| match name {
        "RINGSPAN_PEER_TOKEN" => Some("a token that all nodes of the simulation share".to_owned()),
        "POD_UID" if supersede => Some("pod".to_owned()),
        _ => None,
    };
    let config = Config::load(&args, &env);
    drop(std::fs::remove_file(path));
    config.unwrap_or_else(|faults| panic!("the configuration of {}: {faults}", node(n)))
}
