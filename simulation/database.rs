//! The database of a simulation: the rules of the in-memory store, behind a network that
//! delays, loses and reorders, and a server that can stand still.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use ringspan::{
    ids::{Epoch, Incarnation, Principal, SessionId},
    store::{
        Alias, AliasKind, Began, Claim, Claimed, Cluster, Cursor, Death, Heartbeat, NewMember,
        NewPart, NewTurn, Part, Result, RingView, SessionFilter, SessionRow, Store, StoreError,
        Sweep, Swept, Transferred, TurnAdmission, TurnKey, TurnMark, TurnRow, TurnWish,
        memory::Memory,
    },
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

/// How often the server looks for requests that have arrived.
const TICK: Duration = Duration::from_millis(1);

/// How old a stale answer may be.
const STALE: Duration = Duration::from_secs(1);

/// How a node is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing answers.
    Silent,
    /// Connections are refused.
    Refused,
}

/// What is wrong with the database now.
#[derive(Clone, Debug, Default)]
pub struct Troubles {
    /// It stands still; what arrives is done afterwards, whether anybody still waits or not.
    pub stalled: bool,
    /// Nodes that do not reach it.
    pub cut: BTreeMap<String, Cut>,
    /// Of a hundred calls, how many are done and not answered, and how many never arrive.
    pub lost: u32,
    /// Of a hundred reads, how many get an answer from before.
    pub stale: u32,
    /// Longest way of a request or an answer, in milliseconds.
    pub slow: u64,
}

/// Calls by what became of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub calls: u64,
    pub answers_lost: u64,
    pub requests_lost: u64,
    pub stale: u64,
}

type Request = Box<dyn FnOnce(&Arc<Memory>) + Send>;

struct State {
    troubles: Troubles,
    random: StdRng,
    /// By when they arrive.
    requests: BTreeMap<(Duration, u64), Request>,
    sent: u64,
    counts: Counts,
}

/// The server.
pub struct Database {
    memory: Arc<Memory>,
    state: Mutex<State>,
}

impl Database {
    /// Its clock runs at `rate` parts in a million faster than those of the nodes.
    pub fn new(seed: u64, rate: i64) -> Arc<Self> {
        let base = Instant::now();
        let clock = move || {
            let elapsed = turmoil::sim_elapsed().unwrap_or_default().as_micros();
            let elapsed = i64::try_from(elapsed).unwrap_or(i64::MAX / 2);
            let drifted = elapsed + elapsed / 1_000 * rate / 1_000;
            base + Duration::from_micros(u64::try_from(drifted).unwrap_or(0))
        };
        let state = State {
            troubles: Troubles::default(),
            random: StdRng::seed_from_u64(seed),
            requests: BTreeMap::new(),
            sent: 0,
            counts: Counts::default(),
        };
        Arc::new(Self { memory: Arc::new(Memory::new(Arc::new(clock))), state: Mutex::new(state) })
    }

    /// The rows behind it.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    pub fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    /// Changes what is wrong.
    pub fn trouble(&self, change: impl FnOnce(&mut Troubles)) {
        change(&mut self.state.lock().troubles);
    }

    /// The server's own work, for good.
    pub async fn serve(self: Arc<Self>) {
        loop {
            sleep(TICK).await;
            loop {
                let next = {
                    let mut state = self.state.lock();
                    let due = state.requests.keys().next().is_some_and(|(at, _)| *at <= now());
                    if due && !state.troubles.stalled { state.requests.pop_first() } else { None }
                };
                let Some((_, request)) = next else { break };
                request(&self.memory);
            }
        }
    }

    /// What a node opens.
    pub fn client(self: &Arc<Self>, host: &str, limit: Duration) -> Client {
        Client { host: host.to_owned(), database: Arc::clone(self), limit, past: Mutex::default() }
    }
}

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// What becomes of one call.
struct Fate {
    there: Duration,
    back: Duration,
    arrives: bool,
    answered: bool,
}

/// A node's connections to the database.
pub struct Client {
    host: String,
    database: Arc<Database>,
    limit: Duration,
    past: Mutex<Past>,
}

/// Answers of before.
#[derive(Default)]
struct Past {
    ring: Option<(Duration, RingView)>,
    sessions: BTreeMap<[u8; 16], (Duration, Option<SessionRow>)>,
}

impl Client {
    fn fate(&self) -> Result<Fate> {
        let mut state = self.database.state.lock();
        let State { troubles, random, counts, .. } = &mut *state;
        counts.calls += 1;
        let cut = troubles.cut.get(&self.host).copied();
        if cut == Some(Cut::Refused) {
            return Err(StoreError::Unavailable("connection refused".into()));
        }
        let longest = troubles.slow.max(2);
        let mut way = || Duration::from_micros(random.random_range(100..longest * 1_000));
        let (there, back) = (way(), way());
        let drawn = random.random_range(0..100);
        let answer_lost = drawn < troubles.lost;
        let request_lost = !answer_lost && drawn < 2 * troubles.lost;
        counts.answers_lost += u64::from(answer_lost);
        counts.requests_lost += u64::from(request_lost);
        let arrives = cut.is_none() && !request_lost;
        Ok(Fate { there, back, arrives, answered: !answer_lost })
    }

    fn is_cut(&self) -> bool {
        self.database.state.lock().troubles.cut.contains_key(&self.host)
    }

    /// Has the server do something. A call that is dropped is done all the same.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Memory>) -> BoxFuture<'static, Result<T>> + Send + 'static,
    ) -> Result<T> {
        let fate = self.fate()?;
        let (tell, told) = oneshot::channel();
        if fate.arrives {
            let request: Request = Box::new(move |memory: &Arc<Memory>| {
                // The store in memory never waits.
                if let Some(answer) = work(Arc::clone(memory)).now_or_never()
                    && fate.answered
                {
                    // Nobody may be there to hear it.
                    drop(tell.send(answer));
                }
            });
            let mut state = self.database.state.lock();
            state.sent += 1;
            let key = (now() + fate.there, state.sent);
            state.requests.insert(key, request);
        }
        let answered = async {
            let answer = told.await;
            sleep(fate.back).await;
            answer
        };
        match timeout(self.limit, answered).await {
            Ok(Ok(answer)) if !self.is_cut() => answer,
            // A server that went away says so, one that is cut off says nothing.
            Ok(Err(_)) if !self.is_cut() => Err(StoreError::Unavailable("connection reset".into())),
            Ok(_) => {
                sleep(self.limit / 2).await;
                Err(StoreError::Timeout(self.limit))
            }
            Err(_) => Err(StoreError::Timeout(self.limit)),
        }
    }

    /// Whether this read gets an answer of before, if there is one.
    fn is_stale(&self) -> bool {
        let mut state = self.database.state.lock();
        let State { troubles, random, .. } = &mut *state;
        random.random_range(0..100) < troubles.stale
    }

    fn count_stale(&self) {
        self.database.state.lock().counts.stale += 1;
    }
}

/// A call that goes to the server with copies of its arguments.
macro_rules! remote {
    ($self:ident, $($copy:ident),*; $memory:ident => $call:expr) => {{
        $(let $copy = $copy.to_owned();)*
        $self.call(move |$memory| Box::pin(async move { $call.await })).await
    }};
}

#[async_trait]
impl Store for Client {
    fn backend(&self) -> &'static str {
        "memory"
    }

    async fn cluster(&self) -> Result<Cluster> {
        remote!(self,; m => m.cluster())
    }

    async fn register(&self, member: &NewMember, ttl: Duration) -> Result<Incarnation> {
        remote!(self, member; m => m.register(&member, ttl))
    }

    async fn heartbeat(&self, me: Incarnation, ttl: Duration, load: u32) -> Result<Heartbeat> {
        remote!(self,; m => m.heartbeat(me, ttl, load))
    }

    async fn activate(&self, me: Incarnation) -> Result<()> {
        remote!(self,; m => m.activate(me))
    }

    async fn begin_drain(&self, node: Incarnation) -> Result<bool> {
        remote!(self,; m => m.begin_drain(node))
    }

    async fn leave(&self, me: Incarnation) -> Result<u64> {
        remote!(self,; m => m.leave(me))
    }

    async fn mark_dead(&self, node: Incarnation, death: Death) -> Result<bool> {
        remote!(self,; m => m.mark_dead(node, death))
    }

    async fn ring(&self) -> Result<RingView> {
        let past = self.past.lock().ring.clone();
        if let Some((at, view)) = past
            && at + STALE > now()
            && self.is_stale()
        {
            self.count_stale();
            sleep(TICK).await;
            return Ok(view);
        }
        let asked = now();
        let view = remote!(self,; m => m.ring())?;
        self.past.lock().ring = Some((asked, view.clone()));
        Ok(view)
    }

    async fn ring_hint(&self) {
        loop {
            self.database.memory.ring_hint().await;
            let lost = {
                let mut state = self.database.state.lock();
                let lost = state.troubles.lost;
                state.random.random_range(0..100) < lost
            };
            if !lost && !self.is_cut() {
                return;
            }
        }
    }

    async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        remote!(self, claim; m => m.claim(&claim))
    }

    async fn session(&self, id: SessionId) -> Result<Option<SessionRow>> {
        let past = self.past.lock().sessions.get(&id.0).cloned();
        if let Some((at, row)) = past
            && at + STALE > now()
            && self.is_stale()
        {
            self.count_stale();
            sleep(TICK).await;
            return Ok(row);
        }
        let asked = now();
        let row = remote!(self,; m => m.session(id))?;
        self.past.lock().sessions.insert(id.0, (asked, row.clone()));
        Ok(row)
    }

    async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRow>> {
        remote!(self, filter; m => m.sessions(&filter))
    }

    async fn retire(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        age: Duration,
    ) -> Result<bool> {
        remote!(self,; m => m.retire(id, me, epoch, age))
    }

    async fn quiesce(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        remote!(self,; m => m.quiesce(id, me, epoch))
    }

    async fn resume(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        remote!(self,; m => m.resume(id, me, epoch))
    }

    async fn transfer(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        heir: Incarnation,
        forced: bool,
    ) -> Result<Transferred> {
        remote!(self,; m => m.transfer(id, me, epoch, heir, forced))
    }

    async fn begin_turns(&self, me: Incarnation, turns: &[NewTurn]) -> Result<Vec<Began>> {
        remote!(self, turns; m => m.begin_turns(me, &turns))
    }

    async fn mark_turns(&self, marks: &[TurnMark]) -> Result<u64> {
        remote!(self, marks; m => m.mark_turns(&marks))
    }

    async fn turn_by_key(&self, session: SessionId, key: TurnKey) -> Result<Option<TurnRow>> {
        remote!(self,; m => m.turn_by_key(session, key))
    }

    async fn admit_turn(&self, wish: &TurnWish) -> Result<TurnAdmission> {
        remote!(self, wish; m => m.admit_turn(&wish))
    }

    async fn keep_turns(&self, me: Incarnation, principal: Principal, running: u32) -> Result<()> {
        remote!(self,; m => m.keep_turns(me, principal, running))
    }

    async fn put_aliases(&self, aliases: &[Alias]) -> Result<()> {
        remote!(self, aliases; m => m.put_aliases(&aliases))
    }

    async fn alias(
        &self,
        principal: Principal,
        kind: AliasKind,
        digest: [u8; 16],
    ) -> Result<Option<SessionId>> {
        remote!(self,; m => m.alias(principal, kind, digest))
    }

    async fn close(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        remote!(self,; m => m.close(id, me, epoch))
    }

    async fn put_parts(&self, parts: &[NewPart]) -> Result<()> {
        remote!(self, parts; m => m.put_parts(&parts))
    }

    async fn parts_of(&self, session: SessionId, limit: u32) -> Result<Vec<Part>> {
        remote!(self,; m => m.parts_of(session, limit))
    }

    async fn sweep(&self, what: Sweep, age: Duration, limit: u32, from: Cursor) -> Result<Swept> {
        remote!(self,; m => m.sweep(what, age, limit, from))
    }
}
