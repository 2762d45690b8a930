//! Clients of a session: attached, heard, let go.

use std::{
    future::poll_fn,
    task::{Context as Cx, Poll},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{Actor, Departure, OPAQUE, Upstream, frames::TOO_SLOW, leaving::is_moving};
use crate::{
    error::{Code, Error},
    link::{Frame, Link},
    session::{
        Attach, AttachError, Attached, ClientKind, ClientLabel, Resume,
        clients::{Client, push_lean},
        stats::ClientStat,
    },
    telemetry::{
        metrics::{Place, ResumeOutcome},
        propagation,
    },
    wire::CloseFrame,
};

impl Actor {
    pub(super) fn attach(
        &mut self,
        attach: Box<Attach>,
        reply: oneshot::Sender<Result<Attached, AttachError>>,
    ) {
        if let Some(other) = self.other(&attach) {
            let text = format!("this session belongs to another {other}");
            drop(reply.send(Err(Error::new(Code::Forbidden, text).into())));
            return;
        }
        if matches!(self.departure, Some(Departure::Deadline(_))) {
            // Nothing may hold the session up any more, least of all a dial.
            drop(reply.send(Err(is_moving().into())));
            return;
        }
        if self.clients.len() + self.waiting.len() >= self.ctx.limits.max_clients_per_session {
            let error =
                Error::new(Code::TooManySessions, "this session has as many clients as it may");
            drop(reply.send(Err(error.into())));
            return;
        }
        self.follow(&attach);
        match self.upstream {
            Upstream::Connected(..) => {
                self.forget_upgrade();
                self.admit(&attach, reply);
            }
            // What is held here is told without the upstream, and a turn waits for it by itself.
            _ if self.turns.is_some() && (self.reached || !self.streams.is_empty()) => {
                self.admit(&attach, reply);
                if attach.client.kind == ClientKind::WebSocket {
                    // A turn will come, sooner or later.
                    self.warm_up();
                }
            }
            Upstream::None => {
                self.waiting.push((attach, reply));
                self.dial();
            }
            Upstream::Dialing(_) => self.waiting.push((attach, reply)),
        }
    }

    /// The newest credential of the same principal is the one that is still valid. The rest is
    /// for those to say who send turns: a reader names another path, and may lack what they need.
    fn follow(&mut self, attach: &Attach) {
        if attach.reads {
            self.upgrade.take_credentials(&attach.upgrade);
        } else {
            self.upgrade = attach.upgrade.clone();
        }
    }

    /// What the session has of its own that the client's is not.
    fn other(&self, attach: &Attach) -> Option<&'static str> {
        if attach.principal != self.principal {
            return Some("principal");
        }
        // What was said here is for this route's upstream alone.
        (attach.route.path != self.route.path).then_some("route")
    }

    pub(super) fn admit(
        &mut self,
        attach: &Attach,
        reply: oneshot::Sender<Result<Attached, AttachError>>,
    ) {
        let (ours, theirs) = Link::pair(self.ctx.limits.link_window_bytes);
        let id = self.next_client;
        let place = self.place_of(&attach.client);
        let now = Instant::now();
        let gauge = self.ctx.metrics.client(&self.route.path, place);
        let trace = propagation::extract(&attach.upgrade.headers);
        let mut client = Client::new(id, ours, attach.client.clone(), trace, gauge);
        client.turn_key = attach.turn_key;
        let mut resume = Resume::New;
        let mut seq = 0;
        if self.turns.is_none() {
            let log =
                self.streams.get(OPAQUE).map(|stream| (stream.log.floor(), stream.log.head()));
            let (floor, head) = log.unwrap_or((1, 0));
            let mut next = head + 1;
            if let Some(last) = attach.last_seq {
                // Numbers begin anew with each owner. One that is not known to be of this
                // epoch, or is from its future, is of another: nothing after it is here.
                let ours = match attach.last_epoch {
                    Some(epoch) => epoch == self.epoch,
                    None => self.first,
                };
                (next, resume) = if !ours || last > head || last + 1 < floor {
                    (floor, Resume::Gap { floor })
                } else {
                    (last + 1, Resume::Ok)
                };
                let outcome = match resume {
                    Resume::Gap { .. } => ResumeOutcome::Gap,
                    _ => ResumeOutcome::Ok,
                };
                self.ctx.metrics.resume(&self.route.path, outcome);
            }
            client.subscribe(OPAQUE, next);
            seq = next - 1;
        }
        let attached = Attached {
            link: theirs,
            epoch: self.epoch,
            resume,
            headers: self.headers.clone(),
            subprotocol: self.subprotocol.clone(),
            seq,
        };
        if reply.send(Ok(attached)).is_err() {
            // The client left while it waited.
            return;
        }
        let kind = attach.client.kind.as_str();
        let how = match resume {
            Resume::New => String::new(),
            Resume::Ok => format!(", resumed after message {seq}"),
            Resume::Gap { floor } => format!(", with a gap up to message {floor}"),
        };
        let text = format!("{kind} client at {}{how}", attach.client.edge_node);
        self.ctx.events.note("attached", &self.id, text);
        self.next_client += 1;
        self.alone_since = None;
        self.stats.touch();
        let stat = ClientStat { id, label: attach.client.clone(), since: now };
        push_lean(&mut self.stats.clients.lock(), stat);
        push_lean(&mut self.clients, client);
    }

    /// Whether a client's socket is on this node.
    pub(super) fn place_of(&self, client: &ClientLabel) -> Place {
        let remote = *client.edge_node != *self.ctx.node_id;
        if remote { Place::Remote } else { Place::Local }
    }

    /// False when the client is done.
    pub(super) fn on_client(&mut self, at: usize, frame: Frame) -> bool {
        match (frame, &mut self.turns) {
            (Frame::Messages { batch, .. }, None) => {
                if let Upstream::Connected(connection, _) = &mut self.upstream {
                    connection.socket.queue(&batch);
                }
            }
            (Frame::Messages { batch, create, .. }, Some(_)) => {
                self.clients[at].asking = create;
                let (id, key) = (self.clients[at].id, self.clients[at].turn_key);
                self.leave_endpoint();
                for message in batch.messages() {
                    let actions = self
                        .turns
                        .as_mut()
                        .map(|turns| turns.on_client(id, &message, key))
                        .unwrap_or_default();
                    self.perform(actions);
                }
                self.clients[at].asking = 0;
                self.want_upstream();
            }
            (Frame::Ping(payload), None) => {
                if let Upstream::Connected(connection, _) = &mut self.upstream {
                    connection.socket.queue_ping(&payload);
                }
            }
            // A responses client's pings are answered by its edge; a client's pongs answer
            // pings that this session has answered already.
            (Frame::Ping(_) | Frame::Pong(_), _) => {}
            (Frame::Close(frame), _) => {
                self.last_close = frame;
                return false;
            }
            (Frame::Moved | Frame::Failed(_), _) => return false,
        }
        true
    }

    pub(super) fn remove(&mut self, at: usize) {
        let client = self.clients.swap_remove(at);
        self.stats.clients.lock().retain(|stat| stat.id != client.id);
        let actions = self.turns.as_mut().map(|turns| turns.on_client_gone(client.id));
        self.perform(actions.unwrap_or_default());
        if self.clients.is_empty() {
            self.alone_since = Some(Instant::now());
            self.retime = true;
        }
    }

    /// Waits until every client has what is in the logs, or `limit` has passed, or the lease is
    /// over: without one nobody may move frames (I4).
    pub(in crate::session) async fn settle(&mut self, limit: Duration) {
        let settled = poll_fn(|cx| {
            if !self.ctx.lease.is_live_now() {
                return Poll::Ready(());
            }
            self.deliver(cx, &mut false);
            let behind = |client: &Client| client.lag(&self.streams) > 0 || client.has_replies();
            if self.clients.iter().any(behind) { Poll::Pending } else { Poll::Ready(()) }
        });
        drop(tokio::time::timeout(limit, settled).await);
    }

    /// Says a last word to every client. One that has not got everything before it must not
    /// take `frame` for the whole story: it is told that something is missing.
    pub(in crate::session) fn dismiss(&mut self, frame: &Frame) {
        for client in &mut self.clients {
            let frame = if client.lag(&self.streams) == 0 && !client.has_replies() {
                frame.clone()
            } else if self.turns.is_some() {
                let text = "the session moved before this client had read its answer";
                Frame::Failed(Error::new(Code::OutcomeUnknown, text))
            } else {
                Frame::Close(Some(CloseFrame { code: 1013, reason: TOO_SLOW.into() }))
            };
            client.link.tx.send(frame);
        }
        self.clients.clear();
        self.stats.clients.lock().clear();
    }

    /// Control frames are not numbered and not kept: a client that has no room misses them.
    pub(super) fn tell_all(&mut self, frame: &Frame) {
        let mut cx = Cx::from_waker(std::task::Waker::noop());
        for client in &mut self.clients {
            if client.link.tx.queued() == 0 || client.link.tx.poll_ready(&mut cx).is_ready() {
                client.link.tx.send(frame.clone());
            }
        }
    }
}
