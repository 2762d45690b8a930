//! The store of tests: one process, nothing survives it, and time is whatever the clock
//! that was handed in says.

#[cfg(feature = "simulation")]
mod audit;
mod conversations;
mod quotas;
pub(crate) mod table;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

#[cfg(feature = "simulation")]
pub use self::audit::{Audited, Change};
use self::table::Table;
use super::{
    Alias, AliasKind, Began, Claim, Claimed, Cluster, Cursor, Death, Heartbeat, NewMember, NewPart,
    NewTurn, Part, Result, RingView, SessionFilter, SessionRow, SessionState, Store, StoreError,
    Sweep, Swept, Transferred, TurnAdmission, TurnKey, TurnMark, TurnRow, TurnWish,
};
use crate::ids::{Epoch, Incarnation, Principal, SessionId};

/// Source of the store's time. Must never go back.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// What goes wrong with a call: the two cases that its caller cannot tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It takes effect, and its answer is lost.
    ReplyLost,
    /// It never arrives.
    RequestLost,
}

/// A [`Store`] in memory. Nodes of one test share it in an `Arc`.
pub struct Memory {
    table: Mutex<Table>,
    cluster: Cluster,
    clock: Clock,
    /// The ring version, for those who wait for a hint.
    version: watch::Sender<i64>,
    /// What goes wrong with the next transfers, in order.
    transfers: Mutex<VecDeque<Fault>>,
    /// The same for quiesces and resumes.
    states: Mutex<VecDeque<Fault>>,
    /// The same for readings of a session's row.
    reads: Mutex<VecDeque<Fault>>,
    /// The same for leaves.
    leaves: Mutex<VecDeque<Fault>>,
    /// The same for claims.
    claims: Mutex<VecDeque<Fault>>,
    /// The same for writings of aliases.
    aliases: Mutex<VecDeque<Fault>>,
    /// The same for steps of sweeps.
    sweeps: Mutex<VecDeque<Fault>>,
    /// The same for what is asked and said of principals' turns.
    quotas: Mutex<VecDeque<Fault>>,
    /// How long the ledger takes to begin turns.
    begins: Mutex<Duration>,
    #[cfg(feature = "simulation")]
    audit: Mutex<audit::Audit>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(Arc::new(Instant::now))
    }
}

impl Memory {
    /// An empty ring on this clock. `Instant::now` follows tokio's paused time.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            table: Mutex::default(),
            cluster: Cluster { id: "memory".into(), secret: [7; 32] },
            clock,
            version: watch::Sender::new(0),
            transfers: Mutex::default(),
            states: Mutex::default(),
            reads: Mutex::default(),
            leaves: Mutex::default(),
            claims: Mutex::default(),
            aliases: Mutex::default(),
            sweeps: Mutex::default(),
            quotas: Mutex::default(),
            begins: Mutex::default(),
            #[cfg(feature = "simulation")]
            audit: Mutex::default(),
        }
    }

    /// Has the next transfers fail like this, one after another.
    pub fn fail_transfers(&self, faults: impl IntoIterator<Item = Fault>) {
        self.transfers.lock().extend(faults);
    }

    /// Has the next quiesces and resumes fail like this, one after another.
    pub fn fail_states(&self, faults: impl IntoIterator<Item = Fault>) {
        self.states.lock().extend(faults);
    }

    /// Has the next readings of a session's row fail like this, one after another.
    pub fn fail_reads(&self, faults: impl IntoIterator<Item = Fault>) {
        self.reads.lock().extend(faults);
    }

    /// Has the next leaves fail like this, one after another.
    pub fn fail_leaves(&self, faults: impl IntoIterator<Item = Fault>) {
        self.leaves.lock().extend(faults);
    }

    /// Has the next claims fail like this, one after another.
    pub fn fail_claims(&self, faults: impl IntoIterator<Item = Fault>) {
        self.claims.lock().extend(faults);
    }

    /// Has the next writings of aliases fail like this, one after another.
    pub fn fail_aliases(&self, faults: impl IntoIterator<Item = Fault>) {
        self.aliases.lock().extend(faults);
    }

    /// Has the next steps of sweeps fail like this, one after another.
    pub fn fail_sweeps(&self, faults: impl IntoIterator<Item = Fault>) {
        self.sweeps.lock().extend(faults);
    }

    /// Has the next questions for principals' turns, and the next news of their ends, fail
    /// like this, one after another.
    pub fn fail_quotas(&self, faults: impl IntoIterator<Item = Fault>) {
        self.quotas.lock().extend(faults);
    }

    /// From now on the ledger takes so long to begin turns.
    pub fn slow_begins(&self, pause: Duration) {
        *self.begins.lock() = pause;
    }

    /// Does a call as [`Memory::call`], unless the next of `faults` is against it.
    fn faulty<T>(
        &self,
        faults: &Mutex<VecDeque<Fault>>,
        work: impl FnOnce(&mut Table, Instant) -> T,
    ) -> Result<T> {
        let fault = faults.lock().pop_front();
        let answer = (fault != Some(Fault::RequestLost)).then(|| self.call(work));
        let lost = || StoreError::Unavailable("the answer was lost".into());
        answer.filter(|_| fault.is_none()).ok_or_else(lost)
    }

    /// Every change so far.
    #[cfg(feature = "simulation")]
    pub fn changes(&self) -> Vec<Change> {
        self.audit.lock().changes().to_vec()
    }

    /// Does one call: all of it under the lock, at one instant.
    fn call<T>(&self, work: impl FnOnce(&mut Table, Instant) -> T) -> T {
        let mut table = self.table.lock();
        let answer = work(&mut table, (self.clock)());
        #[cfg(feature = "simulation")]
        self.audit.lock().look(&table);
        self.version.send_if_modified(|version| {
            std::mem::replace(version, table.version()) != table.version()
        });
        answer
    }
}

#[async_trait]
impl Store for Memory {
    fn backend(&self) -> &'static str {
        "memory"
    }

    async fn cluster(&self) -> Result<Cluster> {
        Ok(self.cluster.clone())
    }

    async fn register(&self, member: &NewMember, ttl: Duration) -> Result<Incarnation> {
        self.call(|table, now| table.register(member, now, ttl))
    }

    async fn heartbeat(&self, me: Incarnation, ttl: Duration, load: u32) -> Result<Heartbeat> {
        self.call(|table, now| table.heartbeat(me, now + ttl, load))
    }

    async fn activate(&self, me: Incarnation) -> Result<()> {
        self.call(|table, _| table.activate(me))
    }

    async fn begin_drain(&self, node: Incarnation) -> Result<bool> {
        self.call(|table, _| table.begin_drain(node))
    }

    async fn leave(&self, me: Incarnation) -> Result<u64> {
        self.faulty(&self.leaves, |table, now| table.leave(me, now))?
    }

    async fn mark_dead(&self, node: Incarnation, death: Death) -> Result<bool> {
        Ok(self.call(|table, now| table.mark_dead(node, now, death)))
    }

    async fn ring(&self) -> Result<RingView> {
        Ok(self.call(|table, now| table.ring(now)))
    }

    async fn ring_hint(&self) {
        // The sender lives as long as `self`, so this ends with a change and nothing else.
        let _ = self.version.subscribe().changed().await;
    }

    async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        self.faulty(&self.claims, |table, now| table.claim(claim, now))?
    }

    async fn session(&self, id: SessionId) -> Result<Option<SessionRow>> {
        self.faulty(&self.reads, |table, now| table.session(id, now))
    }

    async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRow>> {
        Ok(self.call(|table, now| table.sessions(filter, now)))
    }

    async fn retire(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        age: Duration,
    ) -> Result<bool> {
        Ok(self.call(|table, now| {
            let since = now.checked_sub(age).unwrap_or(now);
            table.set_state(id, me, epoch, SessionState::Closed, since)
        }))
    }

    async fn quiesce(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        let quiesce =
            |table: &mut Table, now| table.set_state(id, me, epoch, SessionState::Quiescing, now);
        self.faulty(&self.states, quiesce)
    }

    async fn resume(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        let resume =
            |table: &mut Table, now| table.set_state(id, me, epoch, SessionState::Live, now);
        self.faulty(&self.states, resume)
    }

    async fn transfer(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        heir: Incarnation,
        forced: bool,
    ) -> Result<Transferred> {
        self.faulty(&self.transfers, |table, now| table.transfer(id, me, epoch, heir, forced, now))
    }

    async fn put_aliases(&self, aliases: &[Alias]) -> Result<()> {
        self.faulty(&self.aliases, |table, now| table.put_aliases(aliases, now))
    }

    async fn alias(
        &self,
        principal: Principal,
        kind: AliasKind,
        digest: [u8; 16],
    ) -> Result<Option<SessionId>> {
        Ok(self.call(|table, _| table.alias(principal, kind, digest)))
    }

    async fn close(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        Ok(self.call(|table, now| table.close(id, me, epoch, now)))
    }

    async fn put_parts(&self, parts: &[NewPart]) -> Result<()> {
        self.call(|table, now| table.put_parts(parts, now));
        Ok(())
    }

    async fn parts_of(&self, session: SessionId, limit: u32) -> Result<Vec<Part>> {
        Ok(self.call(|table, _| table.parts_of(session, limit)))
    }

    async fn sweep(&self, what: Sweep, age: Duration, limit: u32, _: Cursor) -> Result<Swept> {
        let sweep = |table: &mut Table, now| Swept::of(table.sweep(what, now, age, limit), limit);
        self.faulty(&self.sweeps, sweep)
    }

    async fn begin_turns(&self, me: Incarnation, turns: &[NewTurn]) -> Result<Vec<Began>> {
        let pause = *self.begins.lock();
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Ok(self.call(|table, now| table.begin_turns(me, turns, now)))
    }

    async fn mark_turns(&self, marks: &[TurnMark]) -> Result<u64> {
        Ok(self.call(|table, _| table.mark_turns(marks)))
    }

    async fn turn_by_key(&self, session: SessionId, key: TurnKey) -> Result<Option<TurnRow>> {
        Ok(self.call(|table, _| table.turn_by_key(session, key)))
    }

    async fn admit_turn(&self, wish: &TurnWish) -> Result<TurnAdmission> {
        self.faulty(&self.quotas, |table, now| table.admit_turn(wish, now))
    }

    async fn keep_turns(&self, me: Incarnation, principal: Principal, running: u32) -> Result<()> {
        self.faulty(&self.quotas, |table, _| table.keep_turns(me, principal, running))
    }
}
