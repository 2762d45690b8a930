//! The clients of a session and what each of them still has to get.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
};

use tokio::time::Instant;
use tracing::Span;

use super::{ClientLabel, log::Log, numbering::Numbering, turns::ClientId};
use crate::{
    link::{Frame, Link},
    store::TurnKey,
    telemetry::{metrics::GaugeGuard, propagation::Context as TraceContext},
    wire::Batch,
};

/// Logs by number: number 0 of an opaque session, one a turn of a responses session.
#[derive(Default)]
pub(super) struct Streams(Vec<Stream>);

pub(super) struct Stream {
    pub(super) no: u64,
    /// Of a turn: its lane.
    lane: Option<Box<str>>,
    pub(super) log: Log,
    /// When the last message was appended that there will be.
    pub(super) done: Option<Instant>,
    /// Of a turn: as its first client counts; None until there is one.
    pub(super) numbering: Option<Numbering>,
    /// Of a turn: what is measured of it while it lasts.
    pub(super) turn: Option<TurnWatch>,
}

/// A turn under measurement.
pub(super) struct TurnWatch {
    pub(super) accepted: Instant,
    pub(super) visible: bool,
    /// It may not be sent: its principal's limits, or the ledger.
    pub(super) refused: bool,
    /// Ends with the turn.
    pub(super) span: Span,
    /// Counts the turn as waiting until its first event.
    pub(super) queued: Option<GaugeGuard>,
}

/// Adds to a list of which most sessions never have a second item: there is room for one, not at
/// once for four.
pub(super) fn push_lean<T>(list: &mut Vec<T>, item: T) {
    if list.is_empty() {
        list.reserve_exact(1);
    }
    list.push(item);
}

impl Streams {
    pub(super) fn open(&mut self, no: u64, lane: Option<String>, turn: Option<TurnWatch>) {
        let lane = lane.map(String::into_boxed_str);
        let log = Log::default();
        push_lean(&mut self.0, Stream { no, lane, log, done: None, numbering: None, turn });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Turns are looked up newest first: the running one is at the end.
    pub(super) fn get(&self, no: u64) -> Option<&Stream> {
        self.0.iter().rev().find(|stream| stream.no == no)
    }

    pub(super) fn get_mut(&mut self, no: u64) -> Option<&mut Stream> {
        self.0.iter_mut().rev().find(|stream| stream.no == no)
    }

    /// Closes the log of a turn that never ran.
    pub(super) fn forget(&mut self, no: u64) {
        self.0.retain(|stream| stream.no != no);
    }

    /// Bytes in all logs.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|stream| stream.log.bytes()).sum()
    }

    /// Keeps what is within the bounds. A finished turn goes as a whole; nothing that
    /// `wanted` says a client still reads is forgotten.
    pub(super) fn trim(
        &mut self,
        max_bytes: usize,
        ttl: std::time::Duration,
        now: Instant,
        wanted: impl Fn(u64) -> bool,
    ) {
        let mut surplus = self.bytes().saturating_sub(max_bytes);
        self.0.retain(|stream| {
            let Some(done) = stream.done.filter(|_| !wanted(stream.no)) else { return true };
            let keep = surplus == 0 && now.duration_since(done) < ttl;
            if !keep {
                surplus = surplus.saturating_sub(stream.log.bytes());
            }
            keep
        });
    }

    /// When the next finished turn is too old.
    pub(super) fn expires(&self, ttl: std::time::Duration) -> Option<Instant> {
        self.0.iter().filter_map(|stream| stream.done).min().map(|done| done + ttl)
    }
}

/// Where a client is in a log.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    stream: u64,
    next: u64,
    /// The client's number of the create that this answers.
    create: u32,
}

/// Turns that a client may read before it asks for more of those that are there already.
const MAX_CURSORS: usize = 1024;

/// One attached client.
pub(super) struct Client {
    pub(super) id: ClientId,
    pub(super) link: Link,
    pub(super) label: ClientLabel,
    /// Idempotency key of its one create.
    pub(super) turn_key: Option<TurnKey>,
    /// Its number of the create that is being looked at; zero between them.
    pub(super) asking: u32,
    /// Parent of the spans of its turns.
    pub(super) trace: TraceContext,
    /// In the order in which it asked: of one lane the earlier turn is told to its end first.
    cursors: Vec<Cursor>,
    /// Answers outside any log. Bounded: nothing is read from a client that has any.
    replies: VecDeque<Frame>,
    pub(super) _attached: GaugeGuard,
}

/// What a delivery came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Everything there is was handed over.
    CaughtUp,
    /// The client must take something first.
    Blocked,
    /// What it still needs is below the log's floor.
    TooSlow,
}

impl Client {
    pub(super) fn new(
        id: ClientId,
        link: Link,
        label: ClientLabel,
        trace: TraceContext,
        attached: GaugeGuard,
    ) -> Self {
        let (cursors, replies) = (Vec::new(), VecDeque::new());
        Self {
            id,
            link,
            label,
            turn_key: None,
            asking: 0,
            trace,
            cursors,
            replies,
            _attached: attached,
        }
    }

    /// Reads a log from message `next` on, for what it asks now; once for each request.
    pub(super) fn subscribe(&mut self, stream: u64, next: u64) {
        let create = self.asking;
        if !self.cursors.iter().any(|it| it.stream == stream && it.create == create) {
            push_lean(&mut self.cursors, Cursor { stream, next, create });
        }
    }

    /// Reads one log in place of another, of which it has read nothing yet.
    pub(super) fn join(&mut self, from: u64, stream: u64, next: u64) {
        if let Some(cursor) = self.cursors.iter_mut().find(|cursor| cursor.stream == from) {
            (cursor.stream, cursor.next) = (stream, next);
        }
    }

    pub(super) fn reads(&self, stream: u64) -> bool {
        self.cursors.iter().any(|cursor| cursor.stream == stream)
    }

    /// Whether it may ask for one more turn that is there already.
    pub(super) fn may_rejoin(&self) -> bool {
        self.cursors.len() < MAX_CURSORS
    }

    /// Messages that are in a log, may be handed over and were not.
    pub(super) fn lag(&self, streams: &Streams) -> u64 {
        let behind = |(at, cursor): (usize, &Cursor)| {
            let stream = streams.get(cursor.stream)?;
            let lag = (stream.log.head() + 1).saturating_sub(cursor.next);
            (lag > 0 && !self.must_wait(at, stream, streams)).then_some(lag)
        };
        self.cursors.iter().enumerate().filter_map(behind).sum()
    }

    /// Whether what a cursor reads must wait: the client is still to be told the end of a turn of
    /// the same lane that it asked for before.
    fn must_wait(&self, at: usize, stream: &Stream, streams: &Streams) -> bool {
        let earlier = self.cursors[..at].iter().filter_map(|earlier| streams.get(earlier.stream));
        earlier.into_iter().any(|earlier| earlier.lane == stream.lane)
    }

    /// Answers what it has just said outside any log; `ended` of its creates end with that.
    pub(super) fn answer(&mut self, batch: Batch, ended: u32) {
        let create = self.asking;
        self.replies.push_back(Frame::Messages { batch, first_seq: 0, ended, create });
    }

    pub(super) fn has_replies(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Hands over what the link has room for; `sent` is set if that was anything.
    pub(super) fn deliver(
        &mut self,
        streams: &Streams,
        cx: &mut Context<'_>,
        sent: &mut bool,
    ) -> Delivery {
        while let Some(frame) = self.replies.pop_front() {
            if self.link.tx.poll_ready(cx).is_pending() {
                self.replies.push_front(frame);
                return Delivery::Blocked;
            }
            self.link.tx.send(frame);
            *sent = true;
        }
        let mut at = 0;
        while at < self.cursors.len() {
            let cursor = self.cursors[at];
            let Some(stream) = streams.get(cursor.stream) else {
                self.cursors.remove(at);
                continue;
            };
            if cursor.next > stream.log.head() || self.must_wait(at, stream, streams) {
                at += 1;
                continue;
            }
            let Some(batch) = stream.log.read(cursor.next) else { return Delivery::TooSlow };
            if self.link.tx.poll_ready(cx).is_pending() {
                return Delivery::Blocked;
            }
            let next = cursor.next + u64::from(batch.len());
            let last = stream.done.is_some() && next > stream.log.head();
            self.send(cursor, batch, last);
            *sent = true;
            if last {
                self.cursors.remove(at);
            } else {
                self.cursors[at].next = next;
            }
        }
        Delivery::CaughtUp
    }

    fn send(&mut self, cursor: Cursor, batch: Batch, last: bool) {
        // Only the session's own log is numbered towards clients; turns carry the
        // upstream's sequence numbers.
        let first_seq = if cursor.stream == 0 { cursor.next } else { 0 };
        let (ended, create) = (u32::from(last), cursor.create);
        self.link.tx.send(Frame::Messages { batch, first_seq, ended, create });
    }

    /// The next frame from the client.
    pub(super) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.link.rx.poll_recv(cx)
    }
}
