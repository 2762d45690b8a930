//! The bounded duplex between an edge and a session.
//!
//! Edge and session each hold one [`Link`]; neither can tell whether the other end is in
//! this process or on another node. A pipe is bounded by bytes, not by items: a sender that
//! asks [`Sender::poll_ready`] first overshoots by at most one item. An idle pipe holds no
//! buffer.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    error::Error,
    wire::{Batch, CloseFrame},
};

/// What a frame costs beside its payload, so that empty ones are bounded too.
pub const ITEM: usize = 32;

/// What travels on a link, both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Whole messages.
    Messages {
        batch: Batch,
        /// Session sequence number of the first message; zero towards the session, and for
        /// messages that are addressed to one client only.
        first_seq: u64,
        /// Turns of this client that end in this batch. When as many have ended as it began,
        /// its socket may be closed without anyone noticing.
        ended: u32,
        /// The create that is in this batch, or that it answers: towards the session the number
        /// that its edge gave it, from the session the same again. Zero for none, and from an
        /// owner that names none.
        create: u32,
    },
    Ping(Bytes),
    Pong(Bytes),
    /// The peer behind the sender closed, or the sender closes on its behalf. Last frame.
    Close(Option<CloseFrame>),
    /// The session's owner changed; attach again. Last frame.
    Moved,
    /// The session cannot go on. Last frame.
    Failed(Error),
}

impl Frame {
    /// Bytes this frame takes of a window.
    #[must_use]
    pub fn weight(&self) -> usize {
        ITEM + match self {
            Self::Messages { batch, .. } => batch.weight(),
            Self::Ping(payload) | Self::Pong(payload) => payload.len(),
            Self::Close(_) | Self::Moved | Self::Failed(_) => 0,
        }
    }
}

/// One end of a duplex.
#[derive(Debug)]
pub struct Link {
    pub tx: Sender,
    pub rx: Receiver,
}

impl Link {
    /// Two connected ends with `window` bytes in each direction.
    #[must_use]
    pub fn pair(window: usize) -> (Self, Self) {
        let (a_tx, b_rx) = pipe(window);
        let (b_tx, a_rx) = pipe(window);
        (Self { tx: a_tx, rx: a_rx }, Self { tx: b_tx, rx: b_rx })
    }
}

/// A one-way pipe of at most `window` bytes (and one item more).
#[must_use]
pub fn pipe(window: usize) -> (Sender, Receiver) {
    let shared = Arc::new(Shared {
        pipe: Mutex::new(Pipe { window, ..Pipe::default() }),
        readable: AtomicBool::new(false),
        full: AtomicBool::new(false),
    });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared, waker: None, waits: false })
}

/// A pipe, and what both ends ask of it most often, to be asked without its lock. Both flags
/// change under the lock only.
#[derive(Debug)]
struct Shared {
    pipe: Mutex<Pipe>,
    /// A receiver has something to take, or to be told.
    readable: AtomicBool,
    /// A sender has to wait.
    full: AtomicBool,
}

impl Shared {
    /// Looks at the pipe, or changes it.
    fn with<T>(&self, change: impl FnOnce(&mut Pipe) -> T) -> T {
        let mut pipe = self.pipe.lock();
        let result = change(&mut pipe);
        self.readable.store(pipe.closed || pipe.front.is_some(), Release);
        self.full.store(!pipe.closed && pipe.queued >= pipe.window, Release);
        result
    }
}

#[derive(Debug, Default)]
struct Pipe {
    /// What is taken next. Most pipes never hold more, and so never allocate.
    front: Option<Queued>,
    /// What comes after it; empty while there is no `front`.
    queue: VecDeque<Queued>,
    /// Weight of both.
    queued: usize,
    window: usize,
    /// Charge of what was taken out since the sender last asked.
    consumed: usize,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug)]
struct Queued {
    frame: Frame,
    /// What its sender still owes somebody further away for it.
    charge: usize,
}

impl Pipe {
    fn push(&mut self, queued: Queued) {
        self.queued += queued.frame.weight();
        if self.front.is_none() {
            self.front = Some(queued);
        } else {
            self.queue.push_back(queued);
        }
    }

    fn pop(&mut self) -> Option<Queued> {
        let taken = self.front.take()?;
        self.queued -= taken.frame.weight();
        self.front = self.queue.pop_front();
        if self.queue.is_empty() && self.queue.capacity() > 0 {
            // An idle session keeps no buffer.
            self.queue = VecDeque::new();
        }
        Some(taken)
    }

    /// Whether enough was consumed for a window update to be worth its bytes.
    fn credit_due(&self) -> bool {
        self.consumed * 4 >= self.window
            || (self.consumed > 0 && self.front.is_none() && self.consumed * 8 >= self.window)
    }
}

/// The sending end. Dropping it ends the pipe after what is queued.
#[derive(Debug)]
pub struct Sender {
    shared: Arc<Shared>,
}

impl Sender {
    /// Ready when the window has room, or the receiver is gone (then sending is a no-op).
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.shared.full.load(Acquire) {
            return Poll::Ready(());
        }
        self.shared.with(|pipe| {
            if pipe.closed || pipe.queued < pipe.window {
                return Poll::Ready(());
            }
            register(&mut pipe.writer, cx);
            Poll::Pending
        })
    }

    /// Queues a frame, whether or not the window has room: callers ask
    /// [`Sender::poll_ready`] first where a client decides how much comes. False when the
    /// receiver is gone.
    pub fn send(&mut self, frame: Frame) -> bool {
        let charge = frame.weight();
        self.send_charged(frame, charge)
    }

    /// As [`Sender::send`], with a charge of its own for [`Sender::poll_consumed`]: what was
    /// granted back for parts of the frame before it was whole is not granted again.
    pub fn send_charged(&mut self, frame: Frame, charge: usize) -> bool {
        let pushed = self.shared.with(|pipe| {
            if pipe.closed {
                return None;
            }
            pipe.push(Queued { frame, charge });
            Some(pipe.reader.take())
        });
        if let Some(Some(reader)) = &pushed {
            reader.wake_by_ref();
        }
        pushed.is_some()
    }

    /// Waits for room, then sends. Cancel-safe: a dropped call has sent nothing.
    pub async fn send_when_ready(&mut self, frame: Frame) -> bool {
        std::future::poll_fn(|cx| self.poll_ready(cx)).await;
        self.send(frame)
    }

    /// The charge of what the receiver took since the last call, once it is worth telling; for
    /// a sender that grants credit to somebody further away.
    pub fn poll_consumed(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        self.shared.with(|pipe| {
            if pipe.credit_due() {
                return Poll::Ready(std::mem::take(&mut pipe.consumed));
            }
            register(&mut pipe.writer, cx);
            Poll::Pending
        })
    }

    /// Whether the receiver is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.pipe.lock().closed
    }

    /// Bytes queued and not yet taken.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.shared.pipe.lock().queued
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let reader = self.shared.with(|pipe| {
            pipe.closed = true;
            pipe.reader.take()
        });
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// The receiving end. Dropping it discards what is queued.
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
    /// The waker that was left in the pipe last.
    waker: Option<Waker>,
    /// It is there for as long as there is nothing to take: a sender takes it out under the
    /// lock under which it makes the pipe readable.
    waits: bool,
}

impl Receiver {
    /// The next frame; None once the sender is gone and everything was taken.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let same = |waker: &Waker| waker.will_wake(cx.waker());
        if self.waits
            && !self.shared.readable.load(Acquire)
            && self.waker.as_ref().is_some_and(same)
        {
            return Poll::Pending;
        }
        let taken = self.shared.with(|pipe| {
            let before = pipe.queued;
            let Some(Queued { frame, charge }) = pipe.pop() else {
                if pipe.closed {
                    return Poll::Ready(None);
                }
                register(&mut pipe.reader, cx);
                return Poll::Pending;
            };
            pipe.consumed += charge;
            let wake = (pipe.queued < pipe.window && before >= pipe.window) || pipe.credit_due();
            Poll::Ready(Some((frame, if wake { pipe.writer.take() } else { None })))
        });
        match taken {
            Poll::Ready(Some((frame, writer))) => {
                self.waits = false;
                if let Some(writer) = writer {
                    writer.wake();
                }
                Poll::Ready(Some(frame))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                self.waits = true;
                register(&mut self.waker, cx);
                Poll::Pending
            }
        }
    }

    /// Waits for the next frame. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Frame> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // What is dropped is dropped without the lock.
        let (_dropped, writer) = self.shared.with(|pipe| {
            pipe.closed = true;
            pipe.queued = 0;
            ((pipe.front.take(), std::mem::take(&mut pipe.queue)), pipe.writer.take())
        });
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *slot = Some(cx.waker().clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::wire::Message;

    fn text(size: usize) -> Frame {
        let batch = Batch::one(&Message::text(vec![b'x'; size]));
        Frame::Messages { batch, first_seq: 0, ended: 0, create: 0 }
    }

    #[tokio::test]
    async fn frames_arrive_in_order_and_then_the_end() {
        let (mut tx, mut rx) = pipe(1024);
        for size in 0..5 {
            assert!(tx.send(text(size)));
        }
        drop(tx);
        for size in 0..5 {
            assert_eq!(rx.recv().await, Some(text(size)));
        }
        assert_eq!(rx.recv().await, None);
    }

    #[tokio::test]
    async fn a_full_window_holds_the_sender_until_the_receiver_takes() {
        let (mut tx, mut rx) = pipe(100);
        tx.send(text(200));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(tx.poll_ready(&mut cx).is_pending());
        let waiting = tokio::spawn(async move { tx.send_when_ready(text(1)).await });
        assert_eq!(rx.recv().await, Some(text(200)));
        assert!(waiting.await.unwrap());
        assert_eq!(rx.recv().await, Some(text(1)));
    }

    #[tokio::test]
    async fn a_receiver_that_leaves_releases_the_sender() {
        let (mut tx, rx) = pipe(10);
        tx.send(text(200));
        drop(rx);
        assert!(!tx.send_when_ready(text(1)).await);
        assert!(tx.is_closed());
    }

    #[tokio::test]
    async fn what_was_taken_is_reported_as_credit_once() {
        let (mut tx, mut rx) = pipe(1000);
        let mut cx = Context::from_waker(Waker::noop());
        tx.send(text(600));
        assert!(tx.poll_consumed(&mut cx).is_pending());
        let taken = rx.recv().await.unwrap().weight();
        assert_eq!(tx.poll_consumed(&mut cx), Poll::Ready(taken));
        assert!(tx.poll_consumed(&mut cx).is_pending());
    }
}
