//! What all clients of a process together may hold in it of messages that have not ended.
//!
//! One message is bounded by its limit, but a crowd that begins large ones and ends none would
//! hold the limit each.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// What each holds without asking: most messages never need more.
pub const FREE_BYTES: usize = 64 * 1024;

/// Bytes that are left for all. Clones are the same budget.
#[derive(Clone, Debug)]
pub struct Budget(Arc<AtomicUsize>);

/// What one of them has of a budget; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    taken: usize,
}

impl Budget {
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// A share of nothing yet.
    #[must_use]
    pub fn share(&self) -> Share {
        Share { budget: self.clone(), taken: 0 }
    }
}

impl Share {
    /// Makes it the share of who holds so many bytes. False if there is not enough for it:
    /// then it stays as it was.
    #[must_use]
    pub fn holds(&mut self, bytes: usize) -> bool {
        let wanted = bytes.saturating_sub(FREE_BYTES);
        if wanted > self.taken {
            let more = wanted - self.taken;
            let left = |left: usize| left.checked_sub(more);
            if self.budget.0.fetch_update(Relaxed, Relaxed, left).is_err() {
                return false;
            }
        } else if wanted < self.taken {
            self.budget.0.fetch_add(self.taken - wanted, Relaxed);
        }
        self.taken = wanted;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.taken, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_never_more_than_the_budget_and_come_back() {
        let budget = Budget::new(1000);
        let (mut one, mut two) = (budget.share(), budget.share());
        assert!(one.holds(FREE_BYTES) && two.holds(FREE_BYTES), "that much is free");
        assert!(one.holds(FREE_BYTES + 600));
        assert!(!two.holds(FREE_BYTES + 500));
        assert!(two.holds(FREE_BYTES + 400));
        assert!(one.holds(FREE_BYTES + 100));
        assert!(two.holds(FREE_BYTES + 900));
        drop(two);
        assert!(one.holds(FREE_BYTES + 1000) && !one.holds(FREE_BYTES + 1001));
    }
}
