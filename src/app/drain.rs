//! Leaving without anybody noticing, within one deadline that is fixed at the start.
//!
//! Order: out of placement, dwell as a forwarder, hand sessions over (idle ones first) while
//! client sockets close at their boundaries, cut what is left, leave, linger, end.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::Node;
use crate::{
    error::{Code, Error},
    session::Handle,
    store::SessionFilter,
    telemetry::metrics::DrainState,
};

/// Sessions handed over a second: their heirs dial as many upstreams.
const RATE: u32 = 500;

/// Rows released in one go.
const BATCH: u32 = 500;

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Peers that still believe that we own something are told better for so long.
const LINGER: Duration = Duration::from_millis(300);

impl Node {
    /// Drains. Ends when nothing is left or the deadline has passed.
    ///
    /// # Errors
    /// The store could not be told that this node leaves, so its sessions wait for its lease
    /// to end.
    pub(super) async fn drain(&self) -> anyhow::Result<()> {
        let timing = &self.timing;
        let begun = Instant::now();
        let handed_by = begun + timing.drain_dwell + timing.drain_timeout;
        let deadline = handed_by + timing.drain_cleanup;
        self.draining.store(true, Relaxed);
        self.registry.begin_drain();
        self.step(DrainState::Dwelling, "drain begins: out of placement, forwarding");
        self.leave_placement(deadline).await?;

        if self.ring.borrow().has_other_active(self.me) {
            // Balancers and peers hear of it; what they still send here is forwarded.
            sleep_until((begun + timing.drain_dwell).min(deadline)).await;
        }

        self.step(DrainState::HandingOff, "handing sessions over, closing idle client sockets");
        self.stop.accept.cancel();
        self.edge_drain.closing.cancel();
        self.clients.close();
        self.hand_over(handed_by).await;
        let clients_gone = timeout_at(handed_by, self.clients.wait()).await.is_ok();

        if !clients_gone || !self.registry.is_empty() {
            self.step(DrainState::Cutting, "the drain's time is over: ending what is left");
            let text = "this node had to stop during this turn; whether it finished is unknown";
            let error = Error::new(Code::OutcomeUnknown, text);
            for handle in self.registry.list() {
                handle.stop(error.clone()).await;
            }
            self.edge_drain.cut.cancel();
            drop(timeout_at(deadline, self.clients.wait()).await);
        }
        self.sessions.close();
        drop(timeout_at(deadline, self.sessions.wait()).await);
        self.step(DrainState::Lingering, "owns nothing any more");
        let left = self.leave(deadline).await;
        sleep(LINGER.min(deadline.saturating_duration_since(Instant::now()))).await;
        tracing::info!(took = ?begun.elapsed(), "drained");
        left
    }

    fn step(&self, state: DrainState, text: &str) {
        let remaining = self.registry.len();
        self.metrics.drain(state, remaining);
        self.events.emit("drain", None, text);
        tracing::info!(sessions = remaining, "{text}");
    }

    /// Tells the store; while it is away, tries until the deadline.
    async fn leave_placement(&self, deadline: Instant) -> anyhow::Result<()> {
        let mut pause = Duration::from_millis(100);
        loop {
            match self.store.begin_drain(self.me).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() + pause < deadline => {
                    tracing::warn!(%error, "telling the ring of the drain failed, trying again");
                    sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                Err(error) => return Err(anyhow::Error::new(error).context("entering the drain")),
            }
        }
    }

    /// Idle sessions first: they cost nothing to move, and the busy ones get the time.
    async fn hand_over(&self, until: Instant) {
        let mut handles = self.registry.list();
        handles.sort_by_key(|handle| !handle.stats.is_idle());
        let begun = Instant::now();
        for (n, handle) in handles.iter().enumerate() {
            let due = begun + Duration::from_secs(1) * u32::try_from(n).unwrap_or(u32::MAX) / RATE;
            if due >= until {
                break;
            }
            sleep_until(due).await;
            Handle::drain(handle).await;
        }
        while !self.registry.is_empty() && Instant::now() < until {
            self.metrics.drain(DrainState::HandingOff, self.registry.len());
            sleep(LOOK).await;
        }
        self.metrics.drain(DrainState::HandingOff, self.registry.len());
    }

    /// Sessions that were handed to us and that nobody has asked for since: their rows name
    /// us, no task does. Whoever asks for one next may claim it.
    async fn release_unopened(&self) {
        let filter =
            SessionFilter { owner: Some(self.me), limit: BATCH, ..SessionFilter::default() };
        let rows = match self.store.sessions(&filter).await {
            Ok(rows) => rows,
            Err(error) => return tracing::warn!(%error, "listing our sessions failed"),
        };
        for row in rows.into_iter().filter(|row| self.registry.get(row.id).is_none()) {
            if let Err(error) = self.store.release(row.id, self.me, row.epoch).await {
                tracing::warn!(session = %row.id, %error, "releasing a session failed");
            }
        }
    }

    async fn leave(&self, deadline: Instant) -> anyhow::Result<()> {
        loop {
            match self.store.leave(self.me).await {
                Ok(0) => return Ok(()),
                // Rows that still name us belong to sessions that could not be released; the
                // lease ends, and with it their claim.
                Ok(named) if Instant::now() + LOOK >= deadline => {
                    tracing::warn!(
                        named,
                        "left with sessions in our name; they wait for the lease"
                    );
                    return Ok(());
                }
                Ok(_) => self.release_unopened().await,
                Err(error) if Instant::now() + LOOK >= deadline => {
                    return Err(anyhow::Error::new(error).context("leaving the ring"));
                }
                Err(error) => tracing::warn!(%error, "leaving the ring failed, trying again"),
            }
            sleep(LOOK).await;
        }
    }
}
