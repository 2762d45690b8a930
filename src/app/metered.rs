//! A store whose answers are timed and whose failures are counted.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::{
    ids::{Epoch, Incarnation, Principal, SessionId},
    store::{
        Alias, AliasKind, Claim, Claimed, Cluster, Heartbeat, NewMember, NewPart, Part, Result,
        RingView, SessionFilter, SessionRow, Store, StoreError, Transferred,
    },
    telemetry::metrics::{Metrics, StoreFailure},
};

/// Passes every call on, and tells the metrics.
pub(super) struct Metered {
    inner: Arc<dyn Store>,
    metrics: Metrics,
}

impl Metered {
    pub(super) fn new(inner: Arc<dyn Store>, metrics: Metrics) -> Self {
        Self { inner, metrics }
    }

    async fn timed<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let begun = Instant::now();
        let result = call.await;
        self.metrics.store(operation, begun.elapsed());
        if let Err(error) = &result {
            let reason = match error {
                StoreError::Unavailable(_) => StoreFailure::Unreachable,
                StoreError::Timeout(_) => StoreFailure::Timeout,
                _ => StoreFailure::Other,
            };
            self.metrics.store_error(operation, reason);
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

    async fn mark_dead(&self, node: Incarnation, proven: bool) -> Result<bool> {
        self.timed("mark_dead", self.inner.mark_dead(node, proven)).await
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

    async fn release(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        self.timed("release", self.inner.release(id, me, epoch)).await
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
    ) -> Result<Transferred> {
        self.timed("transfer", self.inner.transfer(id, me, epoch, heir)).await
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

    async fn sweep(&self, age: Duration, limit: u32) -> Result<u64> {
        self.timed("sweep", self.inner.sweep(age, limit)).await
    }
}
