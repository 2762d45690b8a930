//! One channel of a stream: what it may send, and its next frame.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::{Answer, CHUNK, Ready};
use crate::{
    link::{Frame, ITEM, Link},
    peer::{
        convert,
        proto::{self, frame::Body},
    },
    telemetry::metrics::Counter,
};

/// One client attached to one session, as this side sees it.
pub(super) struct Channel {
    pub(super) link: Link,
    /// Bytes we may still send.
    pub(super) credit: i64,
    /// Rest of a run that is being sent in chunks.
    pub(super) rest: Option<Rest>,
    /// Start of a run that is being received in chunks.
    pub(super) partial: BytesMut,
    /// Counters of messages sent and received, on the side that asked.
    pub(super) counted: Option<Counted>,
    /// Who waits for the answer, on the side that asked.
    pub(super) answer: Option<oneshot::Sender<Answer>>,
    /// The last frame of our side was sent.
    pub(super) said_last: bool,
    pub(super) waker: Arc<ChannelWaker>,
}

/// Messages that were forwarded for a client here.
#[derive(Default)]
pub struct Counted {
    pub(in crate::peer) up: Counter,
    pub(in crate::peer) down: Counter,
}

pub(super) struct Rest {
    pub(super) bytes: Bytes,
    pub(super) first_seq: u64,
    pub(super) ended: u32,
    pub(super) create: u32,
}

/// Puts its channel among those that are ready.
pub(super) struct ChannelWaker {
    pub(super) channel: u32,
    pub(super) queued: AtomicBool,
    pub(super) ready: Arc<Ready>,
}

impl Wake for ChannelWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, SeqCst) {
            self.ready.push(self.channel);
        }
    }
}

impl Channel {
    /// The channel's next frame, if it has one and may send it.
    pub(super) fn poll_out(&mut self) -> Option<Body> {
        let waker = Waker::from(Arc::clone(&self.waker));
        let mut cx = Context::from_waker(&waker);
        if self.answer.is_some() {
            return None;
        }
        if let Poll::Ready(consumed) = self.link.tx.poll_consumed(&mut cx) {
            let bytes = u32::try_from(consumed).unwrap_or(u32::MAX);
            return Some(Body::Credit(proto::Credit { bytes }));
        }
        if self.credit <= 0 {
            return None;
        }
        if let Some(rest) = self.rest.take() {
            return Some(self.chunk(rest));
        }
        let Poll::Ready(frame) = self.link.rx.poll_recv(&mut cx) else { return None };
        let Some(frame) = frame else {
            self.said_last = true;
            return Some(Body::Detach(proto::Detach {}));
        };
        // Chunks pay for their bytes one by one.
        let charge = match &frame {
            Frame::Messages { .. } => ITEM,
            other => other.weight(),
        };
        self.credit -= signed(charge);
        Some(match frame {
            Frame::Messages { batch, first_seq, ended, create } => {
                if let Some(counted) = &self.counted {
                    counted.up.inc_by(u64::from(batch.len()));
                }
                let rest = Rest { bytes: batch.into_bytes(), first_seq, ended, create };
                self.chunk(rest)
            }
            Frame::Ping(payload) => Body::Ping(proto::Control { payload }),
            Frame::Pong(payload) => Body::Pong(proto::Control { payload }),
            Frame::Close(close) => {
                self.said_last = true;
                Body::Close(convert::close_out(close))
            }
            Frame::Moved => {
                self.said_last = true;
                Body::Moved(proto::Moved {})
            }
            Frame::Failed(error) => {
                self.said_last = true;
                Body::Fault(convert::fault_out(&error))
            }
        })
    }

    fn chunk(&mut self, mut rest: Rest) -> Body {
        let frames = rest.bytes.split_to(rest.bytes.len().min(CHUNK));
        self.credit -= signed(frames.len());
        let Rest { first_seq, ended, create, .. } = rest;
        let more = !rest.bytes.is_empty();
        if more {
            self.rest = Some(rest);
        }
        Body::Messages(proto::Messages { frames, first_seq, ended, more, create })
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
