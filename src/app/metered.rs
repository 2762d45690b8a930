//! A store whose answers are timed, whose failures are counted, and which is not asked while
//! the lease's thread knows it to be away.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::{
    ids::{Epoch, Incarnation, Principal, SessionId},
    ownership::witness::Witness,
    store::{
        Alias, AliasKind, Began, Claim, Claimed, Cluster, Cursor, Death, Heartbeat, NewMember,
        NewPart, NewTurn, Part, Result, RingView, SessionFilter, SessionRow, Store, StoreError,
        Sweep, Swept, Transferred, TurnAdmission, TurnKey, TurnMark, TurnRow, TurnWish,
    },
    telemetry::metrics::Metrics,
};

/// Passes every call on, and tells the metrics.
///
/// A store that is away, not refusing but silent, would hold every caller for the whole
/// `database_timeout`, and the pool with them. Clients are better told at once to retry.
pub(super) struct Metered {
    inner: Arc<dyn Store>,
    witness: Witness,
    metrics: Metrics,
}

impl Metered {
    pub(super) fn new(inner: Arc<dyn Store>, witness: Witness, metrics: Metrics) -> Self {
        Self { inner, witness, metrics }
    }

    async fn timed<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let begun = Instant::now();
        let result = match self.witness.cut_off(begun.into_std()) {
            Some(since) => Err(StoreError::Away(since)),
            None => call.await,
        };
        self.metrics.store(operation, begun.elapsed());
        if let Err(error) = &result {
            self.metrics.store_error(operation, error.into());
        }
        result
    }
}

#[async_trait]
impl Store for Metered {
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    async fn cluster(&self) -> Result<Cluster> {
        self.timed("cluster", self.inner.cluster()).await
    }

    async fn register(&self, member: &NewMember, ttl: Duration) -> Result<Incarnation> {
        self.timed("register", self.inner.register(member, ttl)).await
    }

    async fn heartbeat(&self, me: Incarnation, ttl: Duration, load: u32) -> Result<Heartbeat> {
        self.timed("heartbeat", self.inner.heartbeat(me, ttl, load)).await
    }

    async fn activate(&self, me: Incarnation) -> Result<()> {
        self.timed("activate", self.inner.activate(me)).await
    }

    async fn begin_drain(&self, node: Incarnation) -> Result<bool> {
        self.timed("begin_drain", self.inner.begin_drain(node)).await
    }

    async fn leave(&self, me: Incarnation) -> Result<u64> {
        self.timed("leave", self.inner.leave(me)).await
    }

    async fn mark_dead(&self, node: Incarnation, death: Death) -> Result<bool> {
        self.timed("mark_dead", self.inner.mark_dead(node, death)).await
    }

    async fn ring(&self) -> Result<RingView> {
        self.timed("ring", self.inner.ring()).await
    }

    async fn ring_hint(&self) {
        self.inner.ring_hint().await;
    }

    async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        self.timed("claim", self.inner.claim(claim)).await
    }

    async fn session(&self, id: SessionId) -> Result<Option<SessionRow>> {
        self.timed("session", self.inner.session(id)).await
    }

    async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRow>> {
        self.timed("sessions", self.inner.sessions(filter)).await
    }

    async fn retire(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        age: Duration,
    ) -> Result<bool> {
        self.timed("release", self.inner.retire(id, me, epoch, age)).await
    }

    async fn quiesce(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        self.timed("quiesce", self.inner.quiesce(id, me, epoch)).await
    }

    async fn resume(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        self.timed("resume", self.inner.resume(id, me, epoch)).await
    }

    async fn transfer(
        &self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        heir: Incarnation,
        forced: bool,
    ) -> Result<Transferred> {
        self.timed("transfer", self.inner.transfer(id, me, epoch, heir, forced)).await
    }

    async fn put_aliases(&self, aliases: &[Alias]) -> Result<()> {
        self.timed("put_aliases", self.inner.put_aliases(aliases)).await
    }

    async fn alias(
        &self,
        principal: Principal,
        kind: AliasKind,
        digest: [u8; 16],
    ) -> Result<Option<SessionId>> {
        self.timed("alias", self.inner.alias(principal, kind, digest)).await
    }

    async fn close(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        self.timed("close", self.inner.close(id, me, epoch)).await
    }

    async fn put_parts(&self, parts: &[NewPart]) -> Result<()> {
        self.timed("put_parts", self.inner.put_parts(parts)).await
    }

    async fn parts_of(&self, session: SessionId, limit: u32) -> Result<Vec<Part>> {
        self.timed("parts_of", self.inner.parts_of(session, limit)).await
    }

    async fn sweep(&self, what: Sweep, age: Duration, limit: u32, from: Cursor) -> Result<Swept> {
        self.timed("sweep", self.inner.sweep(what, age, limit, from)).await
    }

    async fn begin_turns(&self, me: Incarnation, turns: &[NewTurn]) -> Result<Vec<Began>> {
        self.timed("begin_turns", self.inner.begin_turns(me, turns)).await
    }

    async fn mark_turns(&self, marks: &[TurnMark]) -> Result<u64> {
        self.timed("mark_turns", self.inner.mark_turns(marks)).await
    }

    async fn turn_by_key(&self, session: SessionId, key: TurnKey) -> Result<Option<TurnRow>> {
        self.timed("turn_by_key", self.inner.turn_by_key(session, key)).await
    }

    async fn admit_turn(&self, wish: &TurnWish) -> Result<TurnAdmission> {
        self.timed("admit_turn", self.inner.admit_turn(wish)).await
    }

    async fn keep_turns(&self, me: Incarnation, principal: Principal, running: u32) -> Result<()> {
        self.timed("keep_turns", self.inner.keep_turns(me, principal, running)).await
    }
}
