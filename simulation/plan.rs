//! What one simulation is like: all of it follows from the seed.

use std::{fmt, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::{
    database::Cut,
    support::{checker::Conduct, crowd::Kind},
};

/// Who talks to whom.
pub const UPSTREAM: &str = "upstream";
pub const CLIENTS: &str = "clients";

/// A node's name.
pub fn node(n: usize) -> String {
    format!("node-{n}")
}

/// Something that goes wrong, or that an operator does.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A node is told to go; it comes back under its name.
    Drain { node: usize },
    /// A process ends without a word to anybody; its machine hangs up for it, unless that
    /// lost its power too.
    Crash { node: usize, power: bool },
    /// Nothing passes between two hosts, or from the first to the second. What was sent is
    /// lost, and with it the connections.
    Partition { one: String, two: String, oneway: bool },
    /// A node is cut off from everybody, the database too; from the upstream only if so said.
    Isolation { node: usize, upstream: bool },
    /// What is sent between two hosts arrives when it is over.
    Hold { one: String, two: String },
    /// Each message between two hosts takes so long.
    SlowLink { one: String, two: String, by: Duration },
    /// The database stands still.
    Stall,
    /// A node does not reach the database.
    Cut { node: usize, how: Cut },
    /// Of a hundred calls so many are done but not answered, and so many never arrive.
    Lossy { percent: u32 },
    /// Of a hundred reads so many get an answer of before.
    Stale { percent: u32 },
    /// The database answers slowly.
    SlowDatabase { millis: u64 },
}

impl Fault {
    /// Its name in the tables.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Drain { .. } => "drains",
            Self::Crash { power: false, .. } => "crashes",
            Self::Crash { power: true, .. } => "losses of power",
            Self::Partition { oneway: false, .. } => "partitions",
            Self::Partition { oneway: true, .. } => "one-way partitions",
            Self::Isolation { .. } => "isolated nodes",
            Self::Hold { .. } => "messages held",
            Self::SlowLink { .. } => "slow links",
            Self::Stall => "database stalls",
            Self::Cut { .. } => "nodes without database",
            Self::Lossy { .. } => "database loses calls",
            Self::Stale { .. } => "stale reads",
            Self::SlowDatabase { .. } => "slow database",
        }
    }
}

/// When something begins and how long it lasts; for a node that ends, how long until it is
/// started again.
#[derive(Clone, Debug)]
pub struct Event {
    pub at: Duration,
    pub lasts: Duration,
    pub fault: Fault,
}

/// One simulation.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub conduct: Conduct,
    pub nodes: usize,
    pub clients: Vec<Kind>,
    pub lease_ttl: Duration,
    pub continuity: &'static str,
    pub ledger: bool,
    /// A node that is started again declares its predecessor dead.
    pub supersede: bool,
    /// How much faster the database's clock runs, in parts of a million.
    pub drift: i64,
    /// Longest way of a message, ordinarily.
    pub latency: Duration,
    /// When the last fault is over.
    pub healed_at: Duration,
    pub events: Vec<Event>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, conduct, nodes, clients, lease_ttl, continuity, ledger, .. } = self;
        writeln!(
            f,
            "seed {seed}: {conduct:?}, {nodes} nodes, clients {clients:?}, lease {lease_ttl:?}, \
             continuity {continuity}, ledger {ledger}, supersede {}, drift {} ppm, latency {:?}",
            self.supersede, self.drift, self.latency
        )?;
        for Event { at, lasts, fault } in &self.events {
            writeln!(f, "  at {at:?} for {lasts:?}: {fault:?}")?;
        }
        write!(f, "  healed at {:?}", self.healed_at)
    }
}

/// When the first fault may come: the ring stands and clients talk.
const WARM_UP: Duration = Duration::from_secs(3);

/// Of what is random about lapses. With numbers of their own they leave the rest of a plan as
/// it would be without them.
const LAPSES: u64 = 0x1ea5e;

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let conduct = match random.random_range(0..10) {
            0..2 => Conduct::Planned,
            2..5 => Conduct::Losses,
            _ => Conduct::Freezes,
        };
        let nodes = *[2, 3, 3, 3, 4].choose(&mut random).unwrap_or(&3);
        let kinds =
            [Kind::FullHistory, Kind::Chained, Kind::PostStream, Kind::PostStored, Kind::Room];
        let clients = (0..random.random_range(3..8))
            .map(|_| *kinds.choose(&mut random).unwrap_or(&Kind::Room))
            .collect();
        let lease_ttl = Duration::from_millis(random.random_range(1_500..5_000));
        let continuity =
            *["replica", "replica", "replica", "memory"].choose(&mut random).unwrap_or(&"replica");
        let mut plan = Self {
            seed,
            conduct,
            nodes,
            clients,
            lease_ttl,
            continuity,
            ledger: random.random_bool(0.7),
            supersede: random.random_bool(0.7),
            drift: random.random_range(-5_000..5_000),
            latency: Duration::from_millis(random.random_range(2..40)),
            healed_at: Duration::ZERO,
            events: Vec::new(),
        };
        let until = Duration::from_millis(random.random_range(10_000..30_000));
        let mut at = WARM_UP;
        while at < until {
            at += Duration::from_millis(random.random_range(100..6_000));
            let fault = plan.fault(&mut random);
            let lasts = plan.lasting(&fault, &mut random);
            plan.healed_at = plan.healed_at.max(at + lasts);
            plan.events.push(Event { at, lasts, fault });
        }
        if conduct == Conduct::Freezes {
            plan.lapse(until);
        }
        plan
    }

    /// Most of the time a node loses its lease, and with it what it owns, while clients,
    /// peers and upstream reach it as before: nothing but its lease keeps it from serving.
    fn lapse(&mut self, until: Duration) {
        let mut random = StdRng::seed_from_u64(self.seed ^ LAPSES);
        if random.random_bool(0.3) {
            return;
        }
        let node = random.random_range(0..self.nodes);
        let how = if random.random_bool(0.5) { Cut::Silent } else { Cut::Refused };
        let at = random.random_range(WARM_UP..until);
        // Others see it lapse after one lease, and serve its sessions for the rest.
        let lasts = self.lease_ttl.mul_f64(random.random_range(1.5..4.0));
        self.healed_at = self.healed_at.max(at + lasts);
        self.events.push(Event { at, lasts, fault: Fault::Cut { node, how } });
    }

    fn fault(&self, random: &mut StdRng) -> Fault {
        let which = random.random_range(0..self.nodes);
        let other = (which + random.random_range(1..self.nodes)) % self.nodes;
        let power = random.random_bool(0.4);
        let crash = Fault::Crash { node: which, power };
        let how = if random.random_bool(0.5) { Cut::Silent } else { Cut::Refused };
        let database = match random.random_range(0..5) {
            0 => Fault::Stall,
            // It cannot know that it was declared dead, and keeps its upstreams.
            1 if self.conduct == Conduct::Freezes => Fault::Cut { node: which, how },
            2 => Fault::Lossy { percent: random.random_range(1..25) },
            3 => Fault::Stale { percent: random.random_range(10..100) },
            _ => Fault::SlowDatabase { millis: random.random_range(20..400) },
        };
        let one = node(which);
        // The simulated network repeats nothing: a connection that lost a message stays dead,
        // which an opaque session has no way to notice.
        let upstream = !self.clients.contains(&Kind::Room);
        // A session's owner, its edge and its upstream are who has most to say.
        let two = match random.random_range(0..6) {
            0 if upstream => UPSTREAM.to_owned(),
            1 => CLIENTS.to_owned(),
            _ => node(other),
        };
        let (one, two) = if random.random_bool(0.5) { (one, two) } else { (two, one) };
        match (self.conduct, random.random_range(0..10)) {
            (Conduct::Planned, 0..8) | (Conduct::Losses, 0..3) | (Conduct::Freezes, 0) => {
                Fault::Drain { node: which }
            }
            (Conduct::Planned, _) => Fault::SlowDatabase { millis: random.random_range(5..50) },
            (Conduct::Losses, 3..6) => Fault::Crash { node: which, power: false },
            (Conduct::Freezes, 1) => crash,
            (Conduct::Freezes, 2..4) => {
                Fault::Partition { one, two, oneway: random.random_bool(0.5) }
            }
            (Conduct::Freezes, 4) => Fault::Isolation { node: which, upstream },
            // A held message to the upstream would be a dispatch by the dead, which no ring
            // can prevent.
            (Conduct::Freezes, 5) => Fault::Hold { one: node(which), two: node(other) },
            (Conduct::Freezes, 6) => {
                let by = Duration::from_millis(random.random_range(20..600));
                Fault::SlowLink { one: node(which), two: node(other), by }
            }
            _ => database,
        }
    }

    fn lasting(&self, fault: &Fault, random: &mut StdRng) -> Duration {
        match fault {
            Fault::Drain { .. } | Fault::Crash { .. } => {
                Duration::from_millis(random.random_range(1..4_000))
            }
            _ => self.lease_ttl.mul_f64(random.random_range(0.1..3.0)),
        }
    }
}
