//! The way of frames through a session: from its clients to its upstream, and back to each of
//! them from its log.

use std::task::{Context as Cx, Poll};

use super::{Actor, Exit, Upstream};
use crate::{
    error::{Blame, Code, Error},
    link::Frame,
    session::clients::{Client, Delivery},
    wire::CloseFrame,
};

/// Bytes towards the upstream above which clients are not read.
pub(super) const UPSTREAM_WINDOW: usize = 64 * 1024;

/// Reason of the close that a client gets when the log has moved on without it.
pub(super) const TOO_SLOW: &str = "too slow; resume from last_seq";

impl Actor {
    /// Moves what there is to move.
    pub(super) fn poll_frames(&mut self, cx: &mut Cx<'_>) -> Option<Exit> {
        loop {
            let mut progress = false;
            if let Some(exit) = self.poll_dial(cx, &mut progress) {
                return Some(exit);
            }
            self.poll_clients(cx, &mut progress);
            if let Some(exit) = self.poll_journal(cx, &mut progress) {
                return Some(exit);
            }
            if let Some(exit) = self.poll_upstream(cx, &mut progress) {
                return Some(exit);
            }
            self.poll_archive(cx, &mut progress);
            self.poll_held(cx, &mut progress);
            self.deliver(cx, &mut progress);
            if let Some(exit) = self.poll_flush(cx, &mut progress) {
                return Some(exit);
            }
            let may_leave = self.departure.is_some() && self.may_leave();
            if let Some(departure) = self.departure.take_if(|_| may_leave) {
                return Some(Exit::HandOff(departure));
            }
            if !progress {
                return None;
            }
            self.unpublished = true;
        }
    }

    fn poll_clients(&mut self, cx: &mut Cx<'_>, progress: &mut bool) {
        let mut at = 0;
        while at < self.clients.len() {
            let congested = match &self.upstream {
                Upstream::Connected(connection, _) => {
                    connection.socket.pending() >= UPSTREAM_WINDOW
                }
                // Turns queue by themselves; opaque messages wait in their links.
                _ => self.turns.is_none(),
            };
            if congested || self.clients[at].has_replies() {
                at += 1;
                continue;
            }
            match self.clients[at].poll_recv(cx) {
                Poll::Pending => at += 1,
                Poll::Ready(Some(frame)) => {
                    // An opaque frame leaves with the write that follows; of a turn more may
                    // come.
                    *progress |= self.turns.is_some();
                    if !self.on_client(at, frame) {
                        *progress = true;
                        self.remove(at);
                    }
                }
                Poll::Ready(None) => {
                    *progress = true;
                    self.remove(at);
                }
            }
        }
    }

    /// The upstream is not read while none of those whom it may speak to can take what it would
    /// say: that is how a client that does not read slows its own session and no other. Who
    /// reads no turn that runs has no say: others' events are not for it.
    pub(super) fn is_blocked(&mut self, cx: &mut Cx<'_>) -> bool {
        let (streams, turns) = (&self.streams, &self.turns);
        let listens = |client: &Client| {
            turns.as_ref().is_none_or(|turns| turns.at_upstream().any(|no| client.reads(no)))
        };
        let mut listeners = self.clients.iter_mut().filter(|client| listens(client)).peekable();
        listeners.peek().is_some()
            && !listeners
                .any(|client| client.lag(streams) == 0 && client.link.tx.poll_ready(cx).is_ready())
    }

    /// What is said to a client that the log has moved on without.
    fn too_slow(&self) -> Frame {
        if self.turns.is_some() {
            let text = "this client read too slowly: what its turn said is not held any more";
            return Frame::Failed(Error::new(Code::OutcomeUnknown, text).blame(Blame::Client));
        }
        Frame::Close(Some(CloseFrame { code: 1013, reason: TOO_SLOW.into() }))
    }

    pub(super) fn deliver(&mut self, cx: &mut Cx<'_>, progress: &mut bool) {
        let mut at = 0;
        while at < self.clients.len() {
            if self.clients[at].deliver(&self.streams, cx, progress) == Delivery::TooSlow {
                let place = self.place_of(&self.clients[at].label);
                self.ctx.metrics.slow_client(&self.route.path, place);
                let frame = self.too_slow();
                self.clients[at].link.tx.send(frame);
                self.remove(at);
                *progress = true;
            } else {
                at += 1;
            }
        }
    }
}
