//! The rules of a node's lease. Pure: callers bring the time.
//!
//! *Invariant (I4):* a node believes its lease to be over before the store does. The store
//! counts a renewal's TTL from when it executes it, which is after the node sent it; the
//! node counts from the send and takes a margin off for the drift of the two clocks.

mod handle;

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

pub use handle::LeaseHandle;

/// A point that all leases of this process count from, so that one fits in 64 bits.
static ANCHOR: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A node's right to own sessions, as the node itself knows it.
///
/// One number, so that it can be shared as an atomic: the nanoseconds from [`ANCHOR`] until
/// which it holds, or [`Lease::LOST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease(u64);

/// What a lease allows at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Sessions may be served until then, unless it is renewed.
    Live { until: Instant },
    /// Never granted yet, or not renewed in time: serve nothing, but a renewal may still
    /// succeed, for nobody may have declared this node dead.
    Suspended,
    /// The store has declared this incarnation dead. For good.
    Lost,
}

impl Lease {
    const LOST: Self = Self(0);

    /// The lease of a node whose first renewal has not been answered.
    pub const SUSPENDED: Self = Self(1);

    /// After a renewal that was sent at `sent_at` and granted for `ttl`: holds until
    /// `sent_at + ttl - margin`, however late the answer came. An answer overtaken by a
    /// later one's never moves the end back, and a lost lease stays lost.
    #[must_use]
    pub fn renewed(self, sent_at: Instant, ttl: Duration, margin: Duration) -> Self {
        if self == Self::LOST {
            return self;
        }
        Self(self.0.max(ticks(sent_at + ttl.saturating_sub(margin))))
    }

    /// After the store said that this incarnation is dead.
    #[must_use]
    pub const fn fenced(self) -> Self {
        Self::LOST
    }

    /// Whether sessions may be served at `now`.
    #[must_use]
    pub fn is_live(self, now: Instant) -> bool {
        ticks(now) < self.0
    }

    /// What the lease allows at `now`.
    #[must_use]
    pub fn state(self, now: Instant) -> LeaseState {
        if self == Self::LOST {
            LeaseState::Lost
        } else if self.is_live(now) {
            LeaseState::Live { until: *ANCHOR + Duration::from_nanos(self.0 - 1) }
        } else {
            LeaseState::Suspended
        }
    }
}

/// Nanoseconds from [`ANCHOR`] to `at`, plus one: 0 is kept for [`Lease::LOST`]. A time
/// before the anchor counts as the anchor, which makes a lease that ends there end at once.
/// Enough for 584 years.
fn ticks(at: Instant) -> u64 {
    let since = at.saturating_duration_since(*ANCHOR).as_nanos();
    u64::try_from(since).unwrap_or(u64::MAX - 1).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(15);
    const MARGIN: Duration = Duration::from_secs(2);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_late_answer_does_not_extend_beyond_send_plus_ttl_less_margin() {
        let sent = Instant::now();
        let lease = Lease::SUSPENDED.renewed(sent, TTL, MARGIN);
        let until = sent + Duration::from_secs(13);
        assert_eq!(lease.state(sent + 12 * SECOND), LeaseState::Live { until });
        assert!(lease.is_live(until.checked_sub(Duration::from_nanos(1)).unwrap()));
        assert!(!lease.is_live(until));
        // The answer itself came after the end: it grants nothing.
        assert_eq!(lease.state(sent + 14 * SECOND), LeaseState::Suspended);
    }

    #[test]
    fn answers_out_of_order_never_move_the_end_back() {
        let first = Instant::now();
        let later = Lease::SUSPENDED.renewed(first + 3 * SECOND, TTL, MARGIN);
        assert_eq!(later.renewed(first, TTL, MARGIN), later);
    }

    #[test]
    fn a_process_stopped_for_longer_than_the_lease_wakes_up_suspended() {
        let now = Instant::now();
        let lease = Lease::SUSPENDED.renewed(now, TTL, MARGIN);
        let woken = now + 3 * TTL;
        assert_eq!(lease.state(woken), LeaseState::Suspended);
        // Nobody declared it dead meanwhile: it may go on.
        assert!(lease.renewed(woken, TTL, MARGIN).is_live(woken));
    }

    #[test]
    fn a_fence_beats_a_renewal_that_arrives_later() {
        let now = Instant::now();
        let lease = Lease::SUSPENDED.renewed(now, TTL, MARGIN).fenced();
        assert_eq!(lease.state(now), LeaseState::Lost);
        assert_eq!(lease.renewed(now + SECOND, TTL, MARGIN).state(now + SECOND), LeaseState::Lost);
    }

    #[test]
    fn a_lease_that_was_never_granted_is_not_live_even_at_the_anchor() {
        assert!(!Lease::SUSPENDED.is_live(*ANCHOR));
        assert_eq!(Lease::SUSPENDED.state(*ANCHOR), LeaseState::Suspended);
    }

    #[test]
    fn a_renewal_sent_before_the_anchor_is_not_extended_by_it() {
        let sent = ANCHOR.checked_sub(14 * SECOND).unwrap();
        let lease = Lease::SUSPENDED.renewed(sent, TTL, MARGIN);
        assert!(!lease.is_live(*ANCHOR));
    }

    #[test]
    fn a_margin_beyond_the_ttl_grants_nothing() {
        let now = Instant::now();
        assert!(!Lease::SUSPENDED.renewed(now, MARGIN, TTL).is_live(now));
    }
}
