//! How an outage of the store is outlived. Pure: callers bring the time.
//!
//! A node whose lease has lapsed may go on serving what it owns while it holds a
//! *certificate*: every other living member of its view has answered, within the last
//! [`Bounds::answer`], that it has no word from the store either and will not declare this
//! node dead before [`Bounds::promise`] is over. Nodes that the view does not hold cannot
//! be asked; they wait [`Bounds::stranger`] for a member that has not told them that it
//! knows them, and no certificate outlives that. `docs/decisions/0014` has the argument.
//!
//! All times derive from the lease's, which must therefore be the same on all nodes.

use std::time::{Duration, Instant};

/// TTLs that a node may go on for by certificates, from its last renewal.
const LONGEST: u32 = 10;

/// The times of an outage, for leases of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    ttl: Duration,
}

impl Bounds {
    /// For leases that last `ttl`.
    #[must_use]
    pub const fn new(ttl: Duration) -> Self {
        Self { ttl }
    }

    /// How long a lease lasts.
    #[must_use]
    pub const fn ttl(self) -> Duration {
        self.ttl
    }

    /// A node without a renewal for so long is cut off from the store. Half a lease: late
    /// enough that a slow heartbeat is none, early enough that all members see an outage
    /// before the first of their leases lapses.
    #[must_use]
    pub fn cut_off(self) -> Duration {
        self.ttl / 2
    }

    /// How long an answer counts, from the send of its question.
    #[must_use]
    pub fn answer(self) -> Duration {
        self.ttl / 4
    }

    /// How long a promise binds who gave it, from when it was given. Twice as long as it
    /// counts, so that no drift of two clocks can bring the one past the other.
    #[must_use]
    pub fn promise(self) -> Duration {
        self.ttl / 2
    }

    /// Limit of one question. Three of these fit into [`Bounds::answer`] with the pause
    /// between rounds, so that one lost round does not cost the certificate.
    #[must_use]
    pub fn question(self) -> Duration {
        self.answer() / 3
    }

    /// Pause between two rounds of questions.
    #[must_use]
    pub fn pause(self) -> Duration {
        self.answer() / 6
    }

    /// The longest that a node goes on by certificates, from the send of its last renewal.
    #[must_use]
    pub fn longest(self) -> Duration {
        self.ttl * LONGEST
    }

    /// Whether a certificate can do without the promise of a member that is proven gone. Not once
    /// the asker has `lapsed`: that member may have declared it dead before it went, and nobody
    /// can ask it any more.
    #[must_use]
    pub const fn spares_the_gone(self, lapsed: bool) -> bool {
        !lapsed
    }

    /// How long a node that the member may not know waits before it declares it dead, from
    /// when it first saw the lease expired: [`Bounds::longest`] and a lease for the drift
    /// of two clocks.
    #[must_use]
    pub fn stranger(self) -> Duration {
        self.longest() + self.ttl
    }

    /// When a certificate ends whose questions were sent at `asked`, for a node that sent
    /// its last renewal at `renewed`.
    #[must_use]
    pub fn certified_until(self, renewed: Instant, asked: Instant) -> Instant {
        (asked + self.answer()).min(renewed + self.longest())
    }
}

/// What a member says when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Testimony {
    /// The asker is a living member of its view: it will be asked in turn before the
    /// witness outlives a lease.
    pub knows_you: bool,
    /// It is cut off as well, and will not declare the asker dead for [`Bounds::promise`].
    pub promised: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(15);

    #[test]
    fn an_answer_counts_for_less_than_it_binds_and_a_lost_round_costs_nothing() {
        let bounds = Bounds::new(TTL);
        assert!(bounds.answer() * 2 <= bounds.promise());
        let lost = bounds.question() * 2 + bounds.pause() * 2;
        assert!(lost <= bounds.answer() + Duration::from_millis(1), "{lost:?}");
    }

    #[test]
    fn no_certificate_outlives_what_a_stranger_waits() {
        let bounds = Bounds::new(TTL);
        let renewed = Instant::now();
        let asked = renewed + bounds.ttl() * (LONGEST - 1) + bounds.ttl() * 9 / 10;
        assert_eq!(bounds.certified_until(renewed, asked), renewed + bounds.longest());
        assert!(bounds.stranger() > bounds.longest());
    }

    #[test]
    fn a_certificate_counts_from_the_question_not_from_the_answer() {
        let bounds = Bounds::new(TTL);
        let renewed = Instant::now();
        let asked = renewed + TTL;
        assert_eq!(bounds.certified_until(renewed, asked), asked + TTL / 4);
    }
}
