//! Sources that rarely have anything to say beside ones that always have.
//!
//! A task that is woken by its sockets a thousand times a second would ask its inbox, its
//! cancellations and the like as often, and touch memory that it shares with others. A
//! [`Bell`] stands between such a source and the task: it is asked only when it has called.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;

/// Asks a source when it has called, and the first time.
#[derive(Debug)]
pub struct Bell {
    line: Arc<Line>,
    /// The same as in the line, to be compared without its lock.
    task: Waker,
    /// What the source is polled with.
    waker: Waker,
}

#[derive(Debug)]
struct Line {
    rung: AtomicBool,
    /// Stays when it is woken: a source that calls twice is heard twice.
    task: Mutex<Waker>,
}

impl Wake for Line {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Release);
        let task = self.task.lock().clone();
        task.wake();
    }
}

impl Default for Bell {
    fn default() -> Self {
        let task = Waker::noop();
        let line = Line { rung: AtomicBool::new(true), task: Mutex::new(task.clone()) };
        let line = Arc::new(line);
        Self { waker: Waker::from(Arc::clone(&line)), line, task: task.clone() }
    }
}

impl Bell {
    /// Polls the source if it has called since it was last pending.
    pub fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        source: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if !self.task.will_wake(cx.waker()) {
            self.task.clone_from(cx.waker());
            self.line.task.lock().clone_from(cx.waker());
        }
        if !self.line.rung.load(Acquire) {
            return Poll::Pending;
        }
        // Before the source is asked: if it calls from now on, it is asked again.
        self.line.rung.store(false, Release);
        let answer = source(&mut Context::from_waker(&self.waker));
        if answer.is_ready() {
            self.line.rung.store(true, Release);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::sync::mpsc;

    use super::*;

    /// A waker that counts.
    #[derive(Default)]
    struct Calls(std::sync::atomic::AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Release);
        }
    }

    #[tokio::test]
    async fn everything_that_is_sent_is_heard_whichever_task_listens() {
        let (tx, mut rx) = mpsc::channel(4);
        let mut bell = Bell::default();
        for round in 0..1000 {
            let sender = tokio::spawn({
                let tx = tx.clone();
                async move {
                    for n in 0..10 {
                        tx.send((round, n)).await.unwrap();
                    }
                }
            });
            let listener = tokio::spawn(async move {
                for n in 0..10 {
                    let heard = poll_fn(|cx| bell.poll(cx, |cx| rx.poll_recv(cx))).await;
                    assert_eq!(heard, Some((round, n)));
                }
                (bell, rx)
            });
            sender.await.unwrap();
            (bell, rx) = listener.await.unwrap();
        }
    }

    #[test]
    fn a_source_that_has_not_called_is_not_asked() {
        let (calls, mut bell) = (Arc::new(Calls::default()), Bell::default());
        let task = Waker::from(Arc::clone(&calls));
        let mut cx = Context::from_waker(&task);
        let mut kept = None;
        let mut asked = 0;
        let mut ask = |cx: &mut Context<'_>| {
            asked += 1;
            kept = Some(cx.waker().clone());
            Poll::<()>::Pending
        };
        assert!(bell.poll(&mut cx, &mut ask).is_pending());
        assert!(bell.poll(&mut cx, &mut ask).is_pending());
        assert_eq!(asked, 1);
        let source = kept.unwrap();
        source.wake_by_ref();
        source.wake_by_ref();
        assert_eq!(calls.0.load(Acquire), 2);
        assert!(bell.poll(&mut cx, |_| Poll::Ready(())).is_ready());
        assert!(bell.poll(&mut cx, |_| Poll::Ready(())).is_ready(), "it may have more to say");
    }
}
