//! The times of a drain: fixed when it begins, and from then on only ever earlier. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Timing;

/// The moments at which a drain goes on, whether it is ready or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// Clients are accepted and forwarded until then.
    pub(super) dwell: Instant,
    /// From then on it waits for no other drain, and sockets that were kept close at the
    /// next boundary: the last quarter of the time for handing over.
    pub(super) last_call: Instant,
    /// What has not been handed over by then is severed.
    pub(super) hand_over: Instant,
    /// The node is gone by then.
    pub(super) end: Instant,
}

impl Times {
    /// The times of a drain that begins now.
    pub(super) fn new(now: Instant, timing: &Timing) -> Self {
        let dwell = now + timing.drain_dwell;
        let hand_over = dwell + timing.drain_timeout;
        Self {
            dwell,
            last_call: hand_over - timing.drain_timeout / 4,
            hand_over,
            end: hand_over + timing.drain_cleanup,
        }
    }

    /// The same drain with `within` left, if that is less than it had: a later deadline is
    /// no deadline. What is left is divided as it is by default: a sixth for the dwell, as much
    /// for the end.
    pub(super) fn tightened(self, now: Instant, within: Duration) -> Self {
        // What no clock can count up to is later than any end.
        let Some(end) = now.checked_add(within).filter(|end| *end < self.end) else {
            return self;
        };
        let hand_over = self.hand_over.min(end - within / 6);
        Self {
            dwell: self.dwell.min(now + within / 6),
            last_call: self.last_call.min(hand_over - within / 6),
            hand_over,
            end,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timing(dwell: u64, timeout: u64, cleanup: u64) -> Timing {
        let any = Duration::from_secs(1);
        Timing {
            heartbeat_interval: any,
            lease_ttl: any,
            lease_margin: any,
            ring_poll: any,
            drain_dwell: Duration::from_millis(dwell),
            drain_timeout: Duration::from_millis(timeout),
            drain_cleanup: Duration::from_millis(cleanup),
        }
    }

    proptest! {
        #[test]
        fn no_request_ever_makes_any_time_of_a_drain_later(
            dwell in 0..20_000_u64,
            timeout in 100..90_000_u64,
            cleanup in 0..20_000_u64,
            requests in prop::collection::vec((0..5_000_u64, 0..200_000_u64), 0..6),
        ) {
            let mut now = Instant::now();
            let mut times = Times::new(now, &timing(dwell, timeout, cleanup));
            for (later, within) in requests {
                now += Duration::from_millis(later);
                let within = Duration::from_millis(within);
                let before = times;
                times = times.tightened(now, within);
                prop_assert!(times.end <= now + within || times.end == before.end);
                prop_assert!(times.dwell <= before.dwell);
                prop_assert!(times.last_call <= before.last_call);
                prop_assert!(times.hand_over <= before.hand_over);
                prop_assert!(times.end <= before.end);
                prop_assert!(times.last_call <= times.hand_over && times.hand_over <= times.end);
            }
        }
    }

    #[test]
    fn a_deadline_beyond_all_time_changes_nothing() {
        let now = Instant::now();
        let times = Times::new(now, &timing(10_000, 60_000, 10_000));
        assert_eq!(times.tightened(now, Duration::MAX), times);
    }

    #[test]
    fn an_earlier_deadline_leaves_time_for_every_step() {
        let now = Instant::now();
        let times = Times::new(now, &timing(10_000, 60_000, 10_000));
        let tight = times.tightened(now, Duration::from_secs(6));
        assert_eq!(tight.dwell, now + Duration::from_secs(1));
        assert_eq!(tight.last_call, now + Duration::from_secs(4));
        assert_eq!(tight.hand_over, now + Duration::from_secs(5));
        assert_eq!(tight.end, now + Duration::from_secs(6));
    }
}
