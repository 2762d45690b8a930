//! Leaving without anybody noticing, within one deadline that is fixed at the start.
//!
//! Order: out of placement, dwell as a forwarder, wait for other drains where there is no
//! room, hand sessions over (idle ones first) while client sockets close at their boundaries,
//! sever what is left, leave, linger, end.

use std::{collections::HashSet, sync::atomic::Ordering::Relaxed, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::{Node, deadline::Times, leave};
use crate::{
    admin::view::DrainAnswer,
    ids::{Epoch, SessionId},
    jitter::spread,
    ring::{
        Ring,
        departures::{self, Verdict},
    },
    session::{Handle, ORDERS_PER_SECOND},
    telemetry::metrics::DrainState,
};

/// How long one session may take to hear an order; it hears a later one.
const ORDER: Duration = Duration::from_millis(100);

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How long after the end a store that answers may still be told that this node leaves: others
/// would have to wait for its lease instead.
const FAREWELL: Duration = Duration::from_millis(500);

/// Peers that still believe that we own something are told better for so long.
const LINGER: Duration = Duration::from_millis(300);

impl Node {
    /// Asks for a drain, of `within` in all where that is less than what it has. The time
    /// runs from the first request; none makes it longer.
    pub(super) fn begin_drain(&self, within: Option<Duration>) -> DrainAnswer {
        let now = Instant::now();
        let mut answer = DrainAnswer::Already;
        self.times.send_if_modified(|times| {
            let before = *times;
            let begun = before.unwrap_or_else(|| Times::new(now, &self.timing));
            *times = Some(within.map_or(begun, |within| begun.tightened(now, within)));
            answer = match before {
                None => DrainAnswer::Accepted,
                before if before == *times => DrainAnswer::Already,
                Some(_) => DrainAnswer::Tightened,
            };
            before != *times
        });
        answer
    }

    /// Waits for that time of the drain, which may get earlier meanwhile. Cancel-safe.
    async fn until(&self, which: impl Fn(&Times) -> Instant) {
        let mut times = self.times.subscribe();
        loop {
            let Some(at) = times.borrow_and_update().as_ref().map(&which) else { return };
            tokio::select! {
                () = sleep_until(at) => return,
                // The sender is ours, so this is an earlier time.
                _ = times.changed() => {}
            }
        }
    }

    /// Drains. Ends when nothing is left or the deadline has passed.
    ///
    /// # Errors
    /// The store could not be told that this node leaves, so its sessions wait for its lease
    /// to end.
    pub(super) async fn drain(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.draining.store(true, Relaxed);
        self.registry.begin_drain();
        self.step(DrainState::Dwelling, "drain begins: out of placement, forwarding");
        let mut entering = Box::pin(self.leave_placement());
        // Without a store nothing can be handed over, and turns still need time to end.
        let entered = tokio::select! {
            biased;
            entered = &mut entering => { entered?; true }
            () = self.until(|times| times.last_call) => false,
        };
        let mut passing_on = Box::pin(self.pass_on());
        tokio::select! {
            biased;
            () = self.dwell() => {}
            () = &mut passing_on => {}
        }

        self.step(DrainState::HandingOff, "handing sessions over, closing idle client sockets");
        self.stop.accept.cancel();
        self.edge_drain.closing.cancel();
        self.clients.close();
        let hand_over = async {
            if !entered && entering.await.is_err() {
                std::future::pending::<()>().await;
            }
            self.hand_over().await;
        };
        let done = tokio::select! {
            biased;
            () = async { tokio::join!(hand_over, self.clients.wait()); } => true,
            () = self.last_call() => true,
            () = &mut passing_on => true,
            () = self.until(|times| times.hand_over) => false,
        };
        // Not only left alone: what it waits for in the store's pool would be held from others.
        drop(passing_on);
        if !done {
            self.sever().await;
        }

        let release = async || {
            let last = async {
                self.registry.pass_on_unopened(true).await;
            };
            self.before_end(last).await;
        };
        release().await;
        self.sessions.close();
        self.before_end(self.sessions.wait()).await;
        self.step(DrainState::Lingering, "owns nothing any more");
        // A heartbeat after the leave would be told that this node is no member any more.
        let renewer = self.renewer.lock().take();
        if let Some(renewer) = renewer {
            self.before_end(renewer.stop()).await;
        }
        self.witness.resign();
        let leaving = leave::leave(&*self.store, self.me, release, |pause| self.has_time(pause));
        let left = tokio::select! {
            biased;
            left = leaving => left,
            () = self.until(|times| times.end + FAREWELL) => {
                Err(anyhow::anyhow!("the store did not hear in time that this node leaves"))
            }
        };
        self.before_end(sleep(LINGER)).await;
        tracing::info!(took = ?begun.elapsed(), "drained");
        left
    }

    /// Balancers and peers hear of the drain; what they still send here is forwarded. Then,
    /// if other nodes leave too, it serves on until it is this one's turn.
    async fn dwell(&self) {
        if self.ring.borrow().has_other_active(self.me) {
            self.until(|times| times.dwell).await;
        }
        let mut ring = self.ring.clone();
        let verdict =
            |ring: &Ring, waited| departures::verdict(&ring.view.members, self.me, waited);
        if verdict(&ring.borrow_and_update(), false) == Verdict::Go {
            return;
        }
        self.step(DrainState::Dwelling, "waiting for the drains of other nodes, or for a new one");
        let turn = async {
            // Nothing but its end makes the membership's task drop the ring.
            drop(ring.wait_for(|ring| verdict(ring, true) == Verdict::Go).await);
            // Those before this one are gone. Who is restarted comes back soon, as an heir.
            let heir = ring.wait_for(|ring| ring.has_other_active(self.me));
            drop(timeout(self.timing.drain_dwell, heir).await);
        };
        tokio::select! {
            () = turn => {}
            () = self.until(|times| times.last_call) => {}
        }
    }

    /// Sockets that were kept for the sake of clients that cannot reconnect are given up at
    /// their next boundary. Never ends.
    async fn last_call(&self) {
        self.until(|times| times.last_call).await;
        self.step(DrainState::HandingOff, "last call: closing every client socket after its turn");
        self.edge_drain.last_call.cancel();
        std::future::pending::<()>().await;
    }

    /// The time of the turns is over. First the sessions, so that clients hear from them what
    /// is known of their turns; then the sockets whose sessions are elsewhere.
    async fn sever(&self) {
        self.step(DrainState::Cutting, "the drain's time is over: ending what is left");
        let end = self.times.borrow().as_ref().map_or_else(Instant::now, |times| times.end);
        let told_by = Instant::now() + end.saturating_duration_since(Instant::now()) / 2;
        let told = async {
            // Each by itself: one that is busy leaving takes no orders for a while.
            join_all(self.registry.list().iter().map(|handle| handle.sever(told_by))).await;
            while !self.registry.is_empty() {
                sleep(LOOK).await;
            }
            self.clients.wait().await;
        };
        drop(timeout_at(told_by, told).await);
        self.edge_drain.cut.cancel();
        self.before_end(self.clients.wait()).await;
    }

    /// Waits, but not beyond the end of the drain.
    async fn before_end(&self, future: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = future => {}
            () = self.until(|times| times.end) => {}
        }
    }

    /// Whether there is time for one more try after `pause`.
    fn has_time(&self, pause: Duration) -> bool {
        let now = Instant::now();
        self.times.borrow().as_ref().is_some_and(|times| now + pause < times.end)
    }

    fn step(&self, state: DrainState, text: &str) {
        let remaining = self.registry.len();
        self.metrics.drain(state, remaining);
        self.events.emit("drain", None, text);
        tracing::info!(sessions = remaining, "{text}");
    }

    /// Tells the store; while it is away, tries until the deadline.
    async fn leave_placement(&self) -> anyhow::Result<()> {
        let mut pause = Duration::from_millis(100);
        loop {
            match self.store.begin_drain(self.me).await {
                Ok(_) => return Ok(()),
                Err(error) if self.has_time(pause) => {
                    tracing::warn!(%error, "telling the ring of the drain failed, trying again");
                    sleep(spread(pause)).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                Err(error) => return Err(anyhow::Error::new(error).context("entering the drain")),
            }
        }
    }

    /// Idle sessions first: they cost nothing to move, and the busy ones get the time.
    async fn hand_over(&self) {
        let mut told = HashSet::new();
        while !self.registry.is_empty() {
            // Again and again, also those that were still being opened, or too busy to hear.
            let mut listed = self.registry.list();
            listed.retain(|handle| !told.contains(&(handle.id, handle.epoch)));
            listed.sort_by_key(|handle| !handle.stats.is_idle());
            let until =
                self.times.borrow().as_ref().map_or_else(Instant::now, |times| times.hand_over);
            told.extend(order(listed, until).await);
            self.metrics.drain(DrainState::HandingOff, self.registry.len());
            sleep(LOOK).await;
        }
        self.metrics.drain(DrainState::HandingOff, 0);
    }

    /// Sessions that were handed to us and that nobody has asked for since go on to other
    /// nodes. Again and again: a transfer that began before the store had our drain may be
    /// committed after our look. Never ends.
    async fn pass_on(&self) {
        /// Pauses between two looks, which read the rows of all our sessions.
        const FIRST: Duration = Duration::from_millis(250);
        const LONGEST: Duration = Duration::from_secs(8);

        let mut pause = FIRST;
        loop {
            if self.registry.pass_on_unopened(false).await > 0 {
                pause = FIRST;
            }
            sleep(spread(pause)).await;
            pause = (pause * 2).min(LONGEST);
        }
    }
}

/// Orders sessions to leave until then, at a steady rate. Those that heard it in time.
async fn order(sessions: Vec<Handle>, until: Instant) -> impl Iterator<Item = (SessionId, Epoch)> {
    let begun = Instant::now();
    let orders = (0..).zip(sessions).map(|(n, handle)| async move {
        sleep_until(begun + Duration::from_secs(1) * n / ORDERS_PER_SECOND).await;
        let heard = timeout(ORDER, handle.drain(until)).await.is_ok();
        heard.then_some((handle.id, handle.epoch))
    });
    join_all(orders).await.into_iter().flatten()
}
