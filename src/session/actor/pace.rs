//! How much of its upstream a session reads at a time. One whose upstream always has more to
//! say leaves the other sessions of its thread their turn.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context as Cx, Poll, ready},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

/// Bytes of the upstream for one turn of the task, and one read more.
pub(super) const QUANTUM: usize = 64 * 1024;

/// A session that nobody listens to reads one quantum in this time: 6 MiB a second, which is
/// more than a model says and little beside what a flood would take.
pub(super) const REST: Duration = Duration::from_millis(10);

pub(super) struct Pace {
    /// Bytes left of the quantum.
    left: usize,
    /// Armed while a quantum was used up and nobody listens.
    rest: Option<Pin<Box<Sleep>>>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { left: QUANTUM, rest: None }
    }
}

impl Pace {
    /// A turn of the task begins.
    pub(super) fn begin(&mut self, heard: bool) {
        if heard {
            *self = Self::default();
        }
    }

    /// Whether more may be read. If not, the task is woken for it: behind those that are ready
    /// where somebody listens, after a rest where nobody does.
    pub(super) fn poll_ready(&mut self, heard: bool, cx: &mut Cx<'_>) -> Poll<()> {
        if self.left > 0 {
            return Poll::Ready(());
        }
        if heard {
            // Not before the sockets were asked: else floods run until the thread does so anyway.
            let _ = pin!(tokio::task::yield_now()).poll(cx);
            return Poll::Pending;
        }
        let rest = self.rest.get_or_insert_with(|| Box::pin(sleep(REST)));
        ready!(rest.as_mut().poll(cx));
        *self = Self::default();
        Poll::Ready(())
    }

    /// So many bytes were read.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }
}
