//! Many links on one stream of frames, fair and bounded. The same for both sides.
//!
//! *Invariant:* what a side sends on a channel is bounded by the credit that the other side
//! granted for it, so receiving never waits for a session: a link that nobody reads holds up
//! itself and no other. A message larger than a chunk travels in several, which are granted
//! back at once, because the limit of one message bounds them.
//!
//! Nothing here runs by itself: the outgoing half is a stream that the transport polls, the
//! incoming half is called with each frame. A channel costs one map entry and one waker.

mod channel;

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake},
};

use bytes::BytesMut;
use futures_util::{Stream, task::AtomicWaker};
use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use channel::Counted;
use channel::{Channel, ChannelWaker};

use super::{
    convert,
    proto::{self, frame::Body},
};
use crate::{
    error::{Code, Error},
    link::{Frame, ITEM, Link},
    session::AttachError,
    wire::Batch,
};

/// Largest piece of a message run in one gRPC message.
const CHUNK: usize = 64 * 1024;

/// Control frames that may wait; a peer that lets more pile up is not reading.
const MAX_CONTROL: usize = 64 * 1024;

/// Answer to an attach.
pub type Answer = Result<proto::Attached, AttachError>;

/// One side of a stream.
pub struct Mux {
    state: Mutex<State>,
    ready: Arc<Ready>,
    max_message: usize,
}

struct State {
    channels: HashMap<u32, Channel>,
    control: VecDeque<proto::Frame>,
    next: u32,
    closed: bool,
}

/// Channels that have something to do.
struct Ready {
    queue: Mutex<VecDeque<u32>>,
    task: AtomicWaker,
}

impl Ready {
    fn push(&self, channel: u32) {
        self.queue.lock().push_back(channel);
        self.task.wake();
    }
}

/// What a run of messages came to.
enum Received {
    Whole,
    /// A chunk of so many bytes; more follows.
    Part(usize),
    TooLarge,
}

/// The peer broke the protocol; the stream ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation(pub &'static str);

impl Mux {
    /// A side that takes messages of at most so many bytes.
    #[must_use]
    pub fn new(max_message: usize) -> Arc<Self> {
        let state =
            State { channels: HashMap::new(), control: VecDeque::new(), next: 1, closed: false };
        let ready = Ready { queue: Mutex::default(), task: AtomicWaker::new() };
        Arc::new(Self { state: Mutex::new(state), ready: Arc::new(ready), max_message })
    }

    /// Channels in use.
    pub(super) fn channels(&self) -> usize {
        self.state.lock().channels.len()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// The asking side: a new channel for `link`, its request, and its answer's place.
    /// None when the stream has ended.
    pub fn ask(
        &self,
        link: Link,
        attach: proto::Attach,
        counted: Counted,
    ) -> Option<(u32, oneshot::Receiver<Answer>)> {
        let (tx, rx) = oneshot::channel();
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        let id = state.next;
        state.next = state.next.checked_add(1)?;
        // Credit comes with the answer.
        let mut channel = self.channel(id, link, 0, Some(tx));
        channel.counted = Some(counted);
        state.channels.insert(id, channel);
        state.control.push_back(frame(id, Body::Attach(attach)));
        drop(state);
        self.ready.task.wake();
        Some((id, rx))
    }

    /// The answering side: `link` was attached for the peer's channel.
    pub fn accept(&self, id: u32, link: Link, attached: proto::Attached, credit: u32) {
        let channel = self.channel(id, link, i64::from(credit), None);
        let waker = Arc::clone(&channel.waker);
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.channels.insert(id, channel);
        state.control.push_back(frame(id, Body::Attached(attached)));
        drop(state);
        waker.wake();
    }

    fn channel(
        &self,
        id: u32,
        link: Link,
        credit: i64,
        answer: Option<oneshot::Sender<Answer>>,
    ) -> Channel {
        let ready = Arc::clone(&self.ready);
        Channel {
            link,
            credit,
            rest: None,
            partial: BytesMut::new(),
            counted: None,
            answer,
            said_last: false,
            waker: Arc::new(ChannelWaker { channel: id, queued: AtomicBool::new(false), ready }),
        }
    }

    /// Sends a frame that belongs to no link.
    pub(super) fn control(&self, channel: u32, body: Body) {
        let mut state = self.state.lock();
        if state.control.len() >= MAX_CONTROL {
            drop(state);
            return self.close();
        }
        state.control.push_back(frame(channel, body));
        drop(state);
        self.ready.task.wake();
    }

    /// The asking side gives up on a channel.
    pub(super) fn abandon(&self, id: u32) {
        if self.state.lock().channels.remove(&id).is_some() {
            self.control(id, Body::Detach(proto::Detach {}));
        }
    }

    /// Ends everything: links close, the outgoing stream ends.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let channels = std::mem::take(&mut state.channels);
        drop(state);
        // Dropped without the lock: links wake their other ends.
        drop(channels);
        self.ready.task.wake();
    }

    /// Takes one frame of the peer; `credit` is what that grants for a channel, in bytes. Frames of
    /// unknown channels are late, not wrong.
    ///
    /// # Errors
    /// If the peer broke the protocol: the stream has to end.
    pub fn on_frame(&self, incoming: proto::Frame, credit: u32) -> Result<(), Violation> {
        let id = incoming.channel;
        let Some(body) = incoming.body else { return Ok(()) };
        let mut state = self.state.lock();
        let State { channels, control, .. } = &mut *state;
        let Some(channel) = channels.get_mut(&id) else { return Ok(()) };
        if control.len() >= MAX_CONTROL {
            return Err(Violation("it does not read what it is answered"));
        }
        let sent = match body {
            Body::Messages(run) => match self.receive(channel, run)? {
                Received::Whole => true,
                Received::Part(bytes) => {
                    control.push_back(grant_frame(id, bytes));
                    self.ready.task.wake();
                    true
                }
                // Its session's fault, or a limit that differs between nodes: the others on
                // this stream have no part in it.
                Received::TooLarge => {
                    let text = "a message is larger than a node of the ring accepts";
                    let error = Error::new(Code::FrameTooLarge, text);
                    let fault = convert::fault_out(&error);
                    control.push_back(frame(id, Body::Fault(fault)));
                    self.ready.task.wake();
                    channel.link.tx.send(Frame::Failed(error));
                    false
                }
            },
            Body::Credit(grant) => {
                channel.credit += i64::from(grant.bytes);
                channel.waker.wake_by_ref();
                true
            }
            // Where nobody reads any more, the last frame for the peer is still to be sent.
            Body::Ping(ping) => {
                channel.link.tx.send(Frame::Ping(ping.payload));
                true
            }
            Body::Pong(pong) => {
                channel.link.tx.send(Frame::Pong(pong.payload));
                true
            }
            Body::Close(close) => {
                channel.link.tx.send(Frame::Close(convert::close_in(close)));
                false
            }
            Body::Moved(_) => {
                channel.link.tx.send(Frame::Moved);
                false
            }
            Body::Fault(fault) => {
                match channel.answer.take() {
                    Some(answer) => drop(answer.send(Err(convert::fault_in(fault)))),
                    None => drop(channel.link.tx.send(Frame::Failed(convert::failure_in(fault)))),
                }
                false
            }
            Body::NotOwner(not_owner) => {
                if let Some(answer) = channel.answer.take() {
                    let owner = convert::owner_in(not_owner);
                    drop(answer.send(Err(AttachError::NotOwner(owner))));
                }
                false
            }
            Body::Attached(attached) => {
                channel.credit = i64::from(credit);
                channel.waker.wake_by_ref();
                match channel.answer.take() {
                    Some(answer) => {
                        let awaited = answer.send(Ok(attached)).is_ok();
                        if !awaited {
                            // Who gave up finds no channel to abandon any more: without this
                            // the session would keep a client that nobody is.
                            control.push_back(frame(id, Body::Detach(proto::Detach {})));
                            self.ready.task.wake();
                        }
                        awaited
                    }
                    None => return Err(Violation("a channel was answered twice")),
                }
            }
            Body::Detach(_) => false,
            Body::Hello(_) | Body::Welcome(_) | Body::Attach(_) | Body::Goodbye(_) => {
                return Err(Violation("a frame that has no place here"));
            }
        };
        let gone = if sent { None } else { channels.remove(&id) };
        drop(state);
        drop(gone);
        Ok(())
    }

    /// Puts a run into its link, once it is whole.
    fn receive(&self, channel: &mut Channel, run: proto::Messages) -> Result<Received, Violation> {
        if channel.partial.len() + run.frames.len() > self.max_message + 2 * CHUNK {
            return Ok(Received::TooLarge);
        }
        if run.more {
            let size = run.frames.len();
            channel.partial.extend_from_slice(&run.frames);
            return Ok(Received::Part(size));
        }
        // The earlier chunks were granted back as they came.
        let charge = ITEM + run.frames.len();
        let bytes = if channel.partial.is_empty() {
            run.frames
        } else {
            channel.partial.extend_from_slice(&run.frames);
            std::mem::take(&mut channel.partial).freeze()
        };
        let batch = Batch::from_wire(bytes).ok_or(Violation("a run that is not whole frames"))?;
        // A link that nobody reads any more takes nothing; its channel is on its way out.
        if let Some(counted) = &channel.counted {
            counted.down.inc_by(u64::from(batch.len()));
        }
        let proto::Messages { first_seq, ended, create, .. } = run;
        let whole = Frame::Messages { batch, first_seq, ended, create };
        channel.link.tx.send_charged(whole, charge);
        Ok(Received::Whole)
    }

    /// The next frame to send. None when the stream is over.
    fn poll_out(&self, cx: &mut Context<'_>) -> Poll<Option<proto::Frame>> {
        self.ready.task.register(cx.waker());
        loop {
            let mut state = self.state.lock();
            if let Some(frame) = state.control.pop_front() {
                return Poll::Ready(Some(frame));
            }
            if state.closed {
                return Poll::Ready(None);
            }
            let Some(id) = self.ready.queue.lock().pop_front() else { return Poll::Pending };
            let Some(channel) = state.channels.get_mut(&id) else { continue };
            channel.waker.queued.store(false, SeqCst);
            let Some(body) = channel.poll_out() else { continue };
            let last = channel.said_last;
            // Behind the others that are ready: channels take turns. No wake-up is due, the
            // transport polls until there is nothing.
            if !channel.waker.queued.swap(true, SeqCst) {
                self.ready.queue.lock().push_back(id);
            }
            let gone = if last { state.channels.remove(&id) } else { None };
            drop(state);
            drop(gone);
            return Poll::Ready(Some(frame(id, body)));
        }
    }
}

fn frame(channel: u32, body: Body) -> proto::Frame {
    proto::Frame { channel, body: Some(body) }
}

fn grant_frame(channel: u32, bytes: usize) -> proto::Frame {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    frame(channel, Body::Credit(proto::Credit { bytes }))
}

/// The outgoing half, for the transport to poll. Dropping it ends the mux.
pub struct Outgoing(pub Arc<Mux>);

impl Stream for Outgoing {
    type Item = proto::Frame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<proto::Frame>> {
        self.0.poll_out(cx)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests;
