//! How slowly a client may send what it has begun: it holds a place that others need.

use std::{future::Future as _, pin::Pin, task::Context, time::Duration};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::wire::FREE_BYTES;

/// Bytes of an unfinished body or message that come in a second at least.
pub(super) const SLOWEST: f64 = 16.0 * 1024.0;

/// Watches the message of a socket whose end has not come.
pub(super) struct Pace {
    patience: Duration,
    watch: Option<Watch>,
}

struct Watch {
    /// What was here when the time began.
    held: usize,
    until: Pin<Box<Sleep>>,
}

impl Pace {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, watch: None }
    }

    /// Whether a message of which `held` bytes are here comes too slowly: within the patience
    /// it has to grow by [`SLOWEST`]. One that takes nothing of the node's budget has all the time.
    pub(super) fn poll_breach(&mut self, held: usize, cx: &mut Context<'_>) -> bool {
        if held <= FREE_BYTES {
            self.watch = None;
            return false;
        }
        let begin = || Watch { held, until: Box::pin(sleep_until(Instant::now() + self.patience)) };
        let watch = self.watch.get_or_insert_with(begin);
        while watch.until.as_mut().poll(cx).is_ready() {
            #[expect(clippy::cast_precision_loss, reason = "a pace needs no precision")]
            let grown = held.checked_sub(watch.held).map(|grown| grown as f64);
            // Less than before is the start of another message.
            if grown.is_some_and(|grown| grown < SLOWEST * self.patience.as_secs_f64()) {
                return true;
            }
            *watch = begin();
        }
        false
    }

    /// The client is not read for now, so it is not to blame.
    pub(super) fn pause(&mut self) {
        self.watch = None;
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Poll};

    use tokio::time::advance;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);
    /// What has to come in that time.
    const LEAST: usize = 160 * 1024;

    /// Whether the pace is broken by so much being here when the patience is over.
    async fn later(pace: &mut Pace, held: usize) -> bool {
        advance(PATIENCE).await;
        poll_fn(|cx| Poll::Ready(pace.poll_breach(held, cx))).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_has_to_grow_while_it_is_read() {
        let mut pace = Pace::new(PATIENCE);
        let large = FREE_BYTES + 1;
        for held in [FREE_BYTES, FREE_BYTES, large, large + LEAST, large + 2 * LEAST] {
            assert!(!later(&mut pace, held).await, "{held}: small, or it grows");
        }
        assert!(later(&mut pace, large + 3 * LEAST - 1).await, "it grows too slowly");
        assert!(!later(&mut pace, large).await, "another message");
        pace.pause();
        assert!(!later(&mut pace, large).await, "nobody has read it");
        assert!(later(&mut pace, large).await);
    }
}
