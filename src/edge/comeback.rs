//! When a socket that has lost its session looks for it, though its client asks for nothing: a
//! session without clients ends after its detach time, and its conversation with it.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::jitter::spread;

/// Pause before the first look. A client that asks for a turn does not wait for it, and all
/// sockets of a node that has died begin theirs at one instant.
const FIRST: Duration = Duration::from_secs(5);

/// Longest pause between looks. Also, for some of them to fall into it, a quarter of the detach
/// time is not exceeded.
const LONGEST: Duration = Duration::from_secs(30);

/// The looks of one absence.
#[derive(Debug)]
pub(super) struct Comeback {
    at: Instant,
    pause: Duration,
}

impl Comeback {
    /// The session, which outlives its last client by `detach_ttl`, was lost just now.
    pub(super) fn new(detach_ttl: Duration) -> Self {
        let pause = FIRST.min(detach_ttl / 4);
        // Who was lost with its owner was not lost alone: a node has thousands of such sockets.
        Self { at: Instant::now() + spread(pause), pause }
    }

    /// Waits until a look is due, and does not wait again before [`Self::later`]. Cancel-safe.
    pub(super) async fn due(&self) {
        sleep_until(self.at).await;
    }

    /// A look came to nothing.
    pub(super) fn later(&mut self, detach_ttl: Duration) {
        self.pause = (self.pause * 2).min(LONGEST).min(detach_ttl / 4);
        self.at = Instant::now() + spread(self.pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times of the looks of `within`, from the loss on.
    async fn looks(detach_ttl: Duration, within: Duration) -> Vec<Duration> {
        let (begun, mut looks) = (Instant::now(), Vec::new());
        let mut comeback = Comeback::new(detach_ttl);
        while begun.elapsed() < within {
            comeback.due().await;
            comeback.due().await;
            looks.push(begun.elapsed());
            comeback.later(detach_ttl);
        }
        looks
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_looked_for_several_times_before_its_detach_time_is_over() {
        for ttl in [Duration::from_secs(2), Duration::from_mins(2), Duration::from_hours(1)] {
            let looks = looks(ttl, ttl).await;
            assert!(looks[0] <= FIRST.mul_f64(1.5), "{looks:?}");
            assert!(looks.iter().filter(|at| **at < ttl).count() >= 2, "{looks:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_cannot_be_had_is_asked_for_ever_more_rarely() {
        let looks = looks(Duration::from_mins(2), Duration::from_hours(1)).await;
        assert!((80..250).contains(&looks.len()), "{}", looks.len());
    }
}
