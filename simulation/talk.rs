//! The clients of a simulation.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    plan::{Plan, UPSTREAM},
    support::{
        checker::{Conduct, Seen},
        crowd::{Client, Failure, Kind, Recorder},
        history::History,
        net,
    },
};

/// Answers that each client must get once all is well again.
const LIVES: usize = 2;

/// How long what is under way may take to end after the last client has gone.
const SETTLE: Duration = Duration::from_secs(3);

/// Of a hundred turns, before how many a client hangs up: some stay where they are, others
/// come back through another node nearly each time. Those speak to an owner of before, if
/// there is one that still listens.
const HANGS_UP: [u32; 2] = [10, 60];

/// What clients and driver share.
#[derive(Default)]
pub struct Talks {
    /// All is well again.
    pub healed: AtomicBool,
    pub outcome: Mutex<Outcome>,
}

/// What came of the clients.
#[derive(Default)]
pub struct Outcome {
    pub turns: usize,
    pub unknown: usize,
    pub forgotten: usize,
    pub other: usize,
    /// From the end of the last fault until the last client was served as before.
    pub recovered_in: Duration,
    pub violations: Vec<String>,
    pub seen: Vec<Seen>,
    pub upstream: Option<History>,
}

/// Talks until all is well again, and a little longer.
pub async fn run(plan: Plan, talks: Arc<Talks>) {
    let recorder = Recorder::default();
    let mut clients = JoinSet::new();
    for (n, kind) in plan.clients.iter().enumerate() {
        let random = StdRng::seed_from_u64(plan.seed.wrapping_mul(31).wrapping_add(n as u64));
        let client =
            Client::new(*kind, &format!("http://{}", net::RING), &name(*kind, n), &recorder);
        let talk =
            Talk { n, kind: *kind, plan: plan.clone(), random, client, talks: Arc::clone(&talks) };
        clients.spawn(talk.run());
    }
    while let Some(ended) = clients.join_next().await {
        if let Err(error) = ended {
            talks.outcome.lock().violations.push(format!("a client failed: {error}"));
        }
    }
    sleep(SETTLE).await;
    let upstream = History::read(&format!("http://{UPSTREAM}:9000")).await;
    let mut outcome = talks.outcome.lock();
    outcome.seen = recorder.take();
    outcome.upstream = Some(upstream);
}

fn name(kind: Kind, n: usize) -> String {
    format!("{kind:?}-{n}")
}

struct Talk {
    n: usize,
    kind: Kind,
    plan: Plan,
    random: StdRng,
    client: Client,
    talks: Arc<Talks>,
}

impl Talk {
    async fn run(mut self) {
        // Everybody who may have to be waited for: a takeover by a stranger takes eleven
        // leases, and a turn may wait for 30 s in each of a few attempts.
        let limit = self.plan.lease_ttl * 12 + Duration::from_mins(2);
        let mut healed: Option<Instant> = None;
        let mut lives = 0;
        let hangs_up = *HANGS_UP.choose(&mut self.random).unwrap_or(&HANGS_UP[0]);
        for turn in 0.. {
            if healed.is_none() && self.talks.healed.load(Relaxed) {
                healed = Some(Instant::now());
            }
            sleep(Duration::from_millis(self.random.random_range(0..800))).await;
            if self.random.random_ratio(hangs_up, 100) {
                self.client.hang_up();
            }
            let text = self.text(turn);
            let left = healed.map_or(limit * 100, |at| limit.saturating_sub(at.elapsed()));
            let Ok(result) = timeout(left, self.client.turn(&text)).await else {
                let text = format!(
                    "{} was not served within {limit:?} after the last fault",
                    name(self.kind, self.n)
                );
                self.talks.outcome.lock().violations.push(text);
                return;
            };
            self.note(&text, &result);
            lives += usize::from(healed.is_some() && result.is_ok());
            if let Some(at) = healed
                && lives >= LIVES
            {
                let mut outcome = self.talks.outcome.lock();
                outcome.recovered_in = outcome.recovered_in.max(at.elapsed());
                return;
            }
        }
    }

    fn note(&self, text: &str, result: &Result<(), Failure>) {
        let mut outcome = self.talks.outcome.lock();
        outcome.turns += 1;
        match result {
            Ok(()) => return,
            Err(Failure::Unknown) => outcome.unknown += 1,
            Err(Failure::Forgotten) => outcome.forgotten += 1,
            Err(Failure::Other(_)) => outcome.other += 1,
        }
        if self.plan.conduct == Conduct::Planned {
            let who = name(self.kind, self.n);
            outcome
                .violations
                .push(format!("{who}: {text:?} failed in spite of plans: {result:?}"));
        }
    }

    /// Says how the upstream is to answer, too.
    fn text(&mut self, turn: usize) -> String {
        let n = self.n;
        let (deltas, delay) = match self.random.random_range(0..10) {
            // A drain has to leave time for it after its last call.
            0 => (10, self.random.random_range(100..250)),
            1..4 => (10, self.random.random_range(10..100)),
            _ => (4, self.random.random_range(0..20)),
        };
        let mut text = format!("client {n} turn {turn} [deltas={deltas}] [delay={delay}ms]");
        if self.plan.conduct != Conduct::Planned && self.random.random_bool(0.08) {
            let after = self.random.random_range(0..deltas);
            let code = if self.random.random_bool(0.5) { 0 } else { 1011 };
            let _ = write!(text, " [close={code}] [close_after={after}] [once]");
        }
        text
    }
}
