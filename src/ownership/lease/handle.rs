//! One lease, seen by every task of the process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{Lease, LeaseState, ticks};

/// A shared [`Lease`]: the heartbeat writes it, everything that serves reads it. Clones are
/// the same lease. May be used from threads outside the runtime.
#[derive(Clone, Debug)]
pub struct LeaseHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// [`Lease`]'s number. Relaxed throughout: it guards no other memory, and a reader that
    /// is a moment late is what the margin is for.
    lease: AtomicU64,
    /// Until when the lease is outlived ([`crate::ownership::outage`]), in the same ticks;
    /// 0 without any certificate. It counts for nothing once the lease is lost.
    certified: AtomicU64,
    changed: Notify,
}

impl Default for LeaseHandle {
    /// A suspended lease.
    fn default() -> Self {
        let lease = AtomicU64::new(Lease::SUSPENDED.0);
        Self(Arc::new(Shared { lease, certified: AtomicU64::new(0), changed: Notify::new() }))
    }
}

impl LeaseHandle {
    /// Applies [`Lease::renewed`] and wakes those who wait.
    pub fn renewed(&self, sent_at: Instant, ttl: Duration, margin: Duration) {
        self.update(|lease| lease.renewed(sent_at, ttl, margin));
    }

    /// Applies [`Lease::fenced`] and wakes those who wait.
    pub fn fenced(&self) {
        self.update(Lease::fenced);
    }

    /// The lease is outlived until `until`, unless it is lost. Wakes those who wait. True
    /// if no earlier certificate holds at this moment.
    pub fn certified(&self, until: Instant) -> bool {
        let before = self.0.certified.fetch_max(ticks(until), Ordering::Relaxed);
        self.0.changed.notify_waiters();
        before <= ticks(Instant::now())
    }

    /// Whether owned sessions may be served at `now`: by the lease or by a certificate. Two
    /// relaxed loads at most.
    #[must_use]
    pub fn is_live(&self, now: Instant) -> bool {
        self.is_leased(now) || self.is_certified(now)
    }

    /// The same for this moment of the runtime's clock.
    #[must_use]
    pub fn is_live_now(&self) -> bool {
        self.is_live(tokio::time::Instant::now().into_std())
    }

    /// Whether the lease itself holds now: what it takes to claim anything.
    #[must_use]
    pub fn is_leased_now(&self) -> bool {
        self.is_leased(tokio::time::Instant::now().into_std())
    }

    /// Whether the lease itself holds at `now`.
    fn is_leased(&self, now: Instant) -> bool {
        self.lease().is_live(now)
    }

    /// Whether a certificate holds at `now`, whatever is left of the lease.
    #[must_use]
    pub fn is_certified(&self, now: Instant) -> bool {
        ticks(now) < self.0.certified.load(Ordering::Relaxed) && self.lease() != Lease::LOST
    }

    /// When the certificate ends unless another follows; None if none holds now.
    #[must_use]
    pub fn certified_until(&self) -> Option<Instant> {
        match Lease(self.0.certified.load(Ordering::Relaxed).max(Lease::SUSPENDED.0))
            .state(Instant::now())
        {
            LeaseState::Live { until } if !self.is_lost() => Some(until),
            _ => None,
        }
    }

    /// What the lease, or a certificate in its place, allows at `now`.
    #[must_use]
    pub fn state(&self, now: Instant) -> LeaseState {
        let certified = Lease(self.0.certified.load(Ordering::Relaxed).max(Lease::SUSPENDED.0));
        match self.lease().state(now) {
            LeaseState::Suspended => certified.state(now),
            leased => leased,
        }
    }

    /// Whether the lease is lost for good.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.state(Instant::now()) == LeaseState::Lost
    }

    /// When the lease ends unless it is renewed; None when it is over or lost, certificate
    /// or not.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        match self.lease().state(Instant::now()) {
            LeaseState::Live { until } => Some(until),
            LeaseState::Suspended | LeaseState::Lost => None,
        }
    }

    /// Waits until sessions may be served (true) or the lease is lost (false). Cancel-safe. That it is live
    /// is true of the moment of the answer only.
    pub async fn live(&self) -> bool {
        self.wait(|state| match state {
            LeaseState::Live { .. } => Some(true),
            LeaseState::Lost => Some(false),
            LeaseState::Suspended => None,
        })
        .await
    }

    /// Waits until the lease is lost for good; a suspension does not end the wait.
    /// Cancel-safe.
    pub async fn lost(&self) {
        self.wait(|state| (state == LeaseState::Lost).then_some(())).await;
    }

    async fn wait<T>(&self, done: impl Fn(LeaseState) -> Option<T>) -> T {
        loop {
            // Before the look at the lease, so that no change falls between the two.
            let changed = self.0.changed.notified();
            if let Some(answer) = done(self.state(tokio::time::Instant::now().into_std())) {
                return answer;
            }
            changed.await;
        }
    }

    fn lease(&self) -> Lease {
        Lease(self.0.lease.load(Ordering::Relaxed))
    }

    fn update(&self, rule: impl Fn(Lease) -> Lease) {
        // A loop over compare-and-swap, so that a fence is not undone by a renewal that
        // read the lease just before.
        let mut before = self.lease();
        while let Err(now) = self.0.lease.compare_exchange_weak(
            before.0,
            rule(before).0,
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            before = Lease(now);
        }
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance, timeout};

    use super::*;

    const TTL: Duration = Duration::from_secs(15);
    const MARGIN: Duration = Duration::from_secs(2);
    const MOMENT: Duration = Duration::from_millis(1);

    fn now() -> std::time::Instant {
        Instant::now().into_std()
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_live_lease_is_woken_by_its_renewal() {
        let lease = LeaseHandle::default();
        let waiter = tokio::spawn({
            let lease = lease.clone();
            async move { lease.live().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        lease.renewed(now(), TTL, MARGIN);
        assert!(waiter.await.unwrap());
        assert!(lease.live().await, "and at once while it lasts");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_outlived_its_lease_wakes_nobody() {
        let lease = LeaseHandle::default();
        let sent = now();
        advance(Duration::from_secs(14)).await;
        lease.renewed(sent, TTL, MARGIN);
        assert!(!lease.is_live(now()));
        timeout(MOMENT, lease.live()).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_of_the_clock_suspends_without_anybody_noticing_first() {
        let lease = LeaseHandle::default();
        lease.renewed(now(), TTL, MARGIN);
        assert!(lease.is_live(now()));
        advance(3 * TTL).await;
        assert!(!lease.is_live(now()));
        assert_eq!(lease.state(now()), LeaseState::Suspended);
        timeout(MOMENT, lease.lost()).await.expect_err("suspended is not lost");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fence_wakes_all_and_no_renewal_undoes_it() {
        let lease = LeaseHandle::default();
        let (live, lost) = tokio::join!(lease.live(), async {
            lease.fenced();
            lease.lost().await;
        },);
        assert_eq!((live, lost), (false, ()));
        lease.renewed(now(), TTL, MARGIN);
        assert!(!lease.is_live(now()));
        assert!(!lease.live().await);
    }

    #[test]
    fn a_fence_wins_whatever_thread_renews_beside_it() {
        for _ in 0..200 {
            let lease = LeaseHandle::default();
            let now = now();
            std::thread::scope(|scope| {
                scope.spawn(|| lease.renewed(now, TTL, MARGIN));
                scope.spawn(|| lease.fenced());
                scope.spawn(|| lease.renewed(now, 2 * TTL, MARGIN));
            });
            assert_eq!(lease.state(now), LeaseState::Lost);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_outlives_the_lease_and_ends_by_itself() {
        let lease = LeaseHandle::default();
        lease.renewed(now(), TTL, MARGIN);
        advance(TTL).await;
        assert!(!lease.is_live(now()));
        let until = now() + Duration::from_secs(3);
        lease.certified(until);
        assert!(lease.live().await, "who waited is woken");
        assert!(lease.is_live(now()) && lease.is_certified(now()));
        assert!(!lease.is_leased(now()), "nothing is claimed by a certificate");
        assert_eq!(lease.state(now()), LeaseState::Live { until });
        // A process that stood still finds it over, before anybody tells.
        advance(Duration::from_secs(3)).await;
        assert!(!lease.is_live(now()));
        assert_eq!(lease.state(now()), LeaseState::Suspended);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fence_ends_a_certificate_and_no_later_one_counts() {
        let lease = LeaseHandle::default();
        lease.certified(now() + TTL);
        assert!(lease.is_live(now()));
        lease.fenced();
        assert!(!lease.is_live(now()));
        lease.certified(now() + 2 * TTL);
        assert!(!lease.is_live(now()));
        assert_eq!(lease.state(now()), LeaseState::Lost);
    }
}
