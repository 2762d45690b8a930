//! The upstream's side of a session: dialled, read, written, renewed.

use std::{
    sync::Arc,
    task::{Context as Cx, Poll},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{Instrument, Span, field::Empty};

use super::{Actor, Exit, OPAQUE, Upstream, frames::UPSTREAM_WINDOW};
use crate::{
    link::{Frame, ITEM},
    session::{AttachError, clients::Client, responses, stats::UpstreamState, turns::Turns},
    telemetry::{metrics::GaugeGuard, propagation},
    upstream::{Connection, DialError, Upgrade},
    wire::{Batch, CloseFrame, Incoming, SocketError},
};

/// How long an upstream may take for a close.
const UPSTREAM_CLOSE: Duration = Duration::from_secs(1);

impl Actor {
    pub(super) fn dial(&mut self) {
        let dialer = self.ctx.dialer.clone();
        let upstream = Arc::clone(&self.route.upstream);
        let mut upgrade = self.upgrade.clone();
        let (id, avoid) = (self.id, self.shunned.clone());
        let span = tracing::info_span!(
            parent: None,
            "dial",
            otel.kind = "client",
            otel.status_code = Empty,
            session.id = %id,
            ringspan.upstream = upstream.name,
            ringspan.endpoint = Empty,
        );
        propagation::enter(&span, &mut upgrade.headers);
        propagation::link(&span, &self.origin);
        self.stats.set_upstream(UpstreamState::Dialing);
        let dial = async move {
            let dialled = dialer.dial(&upstream, &id.0, avoid.as_deref(), &upgrade).await;
            if let Ok(connection) = &dialled {
                Span::current().record("ringspan.endpoint", connection.member.name());
            }
            dialled.inspect_err(|_| propagation::failed(&Span::current()))
        };
        self.upstream = Upstream::Dialing(Box::pin(dial.instrument(span)));
    }

    /// An opaque session ends with its upstream connection and never dials another, so of how its
    /// client asked only the trace is kept: an idle session holds no credential, and less.
    pub(super) fn forget_upgrade(&mut self) {
        if self.turns.is_none() {
            let context = propagation::extract(&self.upgrade.headers);
            self.upgrade = Upgrade::default();
            propagation::inject(&context, &mut self.upgrade.headers);
        }
    }

    /// Connects before a client asks, where a later request would have to wait for it.
    pub(super) fn warm_up(&mut self) {
        if matches!(self.upstream, Upstream::None) {
            self.dial();
        }
    }

    pub(super) fn poll_dial(&mut self, cx: &mut Cx<'_>, progress: &mut bool) -> Option<Exit> {
        let Upstream::Dialing(dial) = &mut self.upstream else { return None };
        let Poll::Ready(result) = dial.as_mut().poll(cx) else { return None };
        *progress = true;
        self.retime = true;
        let name = &self.route.upstream.name;
        match result {
            Ok(connection) => {
                self.headers.clone_from(&connection.headers);
                self.subprotocol.clone_from(&connection.subprotocol);
                let gauge = self.ctx.metrics.upstream_connection(name);
                self.listening_since = Instant::now();
                self.stats.set_upstream(UpstreamState::Connected);
                self.strikes = 0;
                let text = format!("connected to {name}, endpoint {}", connection.member.name());
                self.ctx.events.note("upstream", &self.id, text);
                self.unused.connected(connection.member.clone());
                self.upstream = Upstream::Connected(Box::new(connection), gauge);
                self.forget_upgrade();
                self.reached = true;
                for (attach, reply) in std::mem::take(&mut self.waiting) {
                    self.admit(&attach, reply);
                }
                let actions = self.turns.as_mut().map(Turns::on_connected).unwrap_or_default();
                self.perform(actions);
                None
            }
            Err(error) => {
                tracing::warn!(session = %self.id, upstream = %name, %error, "upstream dial failed");
                self.upstream = Upstream::None;
                self.stats.set_upstream(UpstreamState::None);
                if let Some(turns) = &mut self.turns {
                    let (status, body, retry) = responses::dial_error(&error);
                    let actions = turns.on_unreachable(status, &body, retry);
                    self.perform(actions);
                }
                if !self.waiting.is_empty() {
                    // Who asks in vain is not gone: the session is there for it a while longer.
                    self.alone_since = self.alone_since.map(|_| Instant::now());
                }
                for (_, reply) in std::mem::take(&mut self.waiting) {
                    drop(reply.send(Err(attach_error(&error))));
                }
                // A session that remembers something, or holds what can be asked for, waits for
                // its client.
                let nothing = self.turns.as_ref().is_none_or(|turns| {
                    turns.history().all().is_empty() && self.streams.is_empty()
                });
                (self.clients.is_empty() && nothing).then_some(Exit::Unreachable)
            }
        }
    }

    /// Turns that wait bring the upstream back.
    pub(super) fn want_upstream(&mut self) {
        let waits = self.turns.as_ref().is_some_and(|turns| turns.queued() > 0);
        if waits && matches!(self.upstream, Upstream::None) {
            self.dial();
        }
    }

    pub(in crate::session) fn send_upstream(&mut self, batch: &Batch) {
        if let Upstream::Connected(connection, _) = &mut self.upstream {
            connection.socket.queue(batch);
            // Only a turn has to hear something from it within some time.
            self.retime |= self.turns.is_some();
        }
    }

    pub(in crate::session) fn hang_up(&mut self) {
        // Not politely: what it still works on is of no use to anybody.
        drop(self.disconnect());
        self.unused_refused();
        self.want_upstream();
    }

    pub(super) fn poll_upstream(&mut self, cx: &mut Cx<'_>, progress: &mut bool) -> Option<Exit> {
        while self.may_read(cx) {
            let Upstream::Connected(connection, _) = &mut self.upstream else { return None };
            let heard = !self.clients.is_empty();
            if self.pace.poll_ready(heard, cx).is_pending() {
                return None;
            }
            let Poll::Ready(incoming) = connection.socket.poll_recv(cx) else { return None };
            self.pace.spend(match &incoming {
                Some(Ok(Incoming::Messages(batch))) => batch.weight(),
                _ => ITEM,
            });
            match incoming {
                Some(Ok(Incoming::Messages(batch))) if self.turns.is_none() => {
                    // Nothing follows from it but its delivery, so all else is not asked
                    // again; but who has replies waiting was not read.
                    *progress |= self.clients.iter().any(Client::has_replies);
                    self.unpublished = true;
                    self.on_upstream(batch);
                    self.deliver(cx, &mut true);
                }
                incoming => {
                    *progress = true;
                    return self.on_incoming(incoming);
                }
            }
        }
        None
    }

    /// Whether what the upstream says has room. While it has none nobody listens, so nobody can
    /// tell that the upstream is silent.
    fn may_read(&mut self, cx: &mut Cx<'_>) -> bool {
        let blocked = self.is_blocked(cx);
        if std::mem::replace(&mut self.blocked, blocked) || blocked {
            self.listening_since = self.polled_at;
        }
        !blocked
    }

    fn on_incoming(&mut self, incoming: Option<Result<Incoming, SocketError>>) -> Option<Exit> {
        let Upstream::Connected(connection, _) = &mut self.upstream else { return None };
        match incoming {
            Some(Ok(Incoming::Messages(batch))) => self.on_upstream(batch),
            Some(Ok(Incoming::Ping(payload))) => {
                connection.socket.queue_pong(&payload);
                if self.turns.is_none() {
                    self.tell_all(&Frame::Ping(payload));
                }
            }
            Some(Ok(Incoming::Pong(payload))) => {
                if self.turns.is_none() {
                    self.tell_all(&Frame::Pong(payload));
                }
            }
            Some(Ok(Incoming::Close(frame))) => {
                // Its own code comes back; without one, none.
                let (code, reason) = frame.as_ref().map_or((1005, ""), |f| (f.code, &*f.reason));
                self.part(code, reason);
                return self.upstream_gone(frame, "the upstream closed");
            }
            Some(Err(SocketError::Protocol { close, what })) => {
                self.part(close, what);
                let frame = CloseFrame { code: close, reason: what.to_owned() };
                return self.upstream_gone(Some(frame), what);
            }
            Some(Err(SocketError::Io(_))) | None => {
                let frame = CloseFrame { code: 1011, reason: "upstream connection lost".into() };
                return self.upstream_gone(Some(frame), "the upstream connection was lost");
            }
        }
        None
    }

    pub(super) fn on_upstream(&mut self, batch: Batch) {
        if let Some(turns) = &mut self.turns {
            self.unused.listen(&batch);
            let actions = turns.on_upstream(&batch);
            self.judge_endpoint(&actions);
            self.perform(actions);
        } else if let Some(stream) = self.streams.get_mut(OPAQUE) {
            let now = self.polled_at;
            self.retime |= stream.log.bytes() == 0;
            stream.log.push(batch, now);
            stream.log.trim(self.ctx.limits.replay_bytes, self.ctx.limits.replay_ttl, now);
        }
    }

    pub(super) fn upstream_gone(
        &mut self,
        frame: Option<CloseFrame>,
        why: &'static str,
    ) -> Option<Exit> {
        tracing::debug!(session = %self.id, why, "upstream connection ended");
        self.ctx.events.note("upstream", &self.id, why.to_owned());
        drop(self.disconnect());
        self.retime = true;
        let Some(turns) = &mut self.turns else { return Some(Exit::UpstreamClosed(frame)) };
        let actions = turns.on_disconnected();
        self.perform(actions);
        self.unused_gone();
        self.want_upstream();
        None
    }

    /// Takes the connection out. If that is in a turn, the next one is made elsewhere.
    fn disconnect(&mut self) -> Option<(Box<Connection>, GaugeGuard)> {
        self.lost_in_turn();
        self.heard.clear();
        self.stats.set_upstream(UpstreamState::None);
        match std::mem::replace(&mut self.upstream, Upstream::None) {
            Upstream::Connected(connection, gauge) => Some((connection, gauge)),
            Upstream::Dialing(_) | Upstream::None => None,
        }
    }

    /// Gives the connection up politely; nobody but the node's end waits for that.
    fn part(&mut self, code: u16, reason: &str) {
        if let Some((connection, gauge)) = self.disconnect() {
            let reason = reason.to_owned();
            self.ctx.tracker.spawn(async move {
                connection.close(code, &reason, UPSTREAM_CLOSE).await;
                drop(gauge);
            });
        }
    }

    /// The session ends: its upstream is told, in the last client's words if it had any.
    pub(in crate::session) fn close_upstream(&mut self) {
        let frame = self.last_close.take();
        let (code, reason) = frame.as_ref().map_or((1000, ""), |f| (f.code, &*f.reason));
        self.part(code, reason);
    }

    /// Between turns, gives the connection up; what comes from now on waits for another.
    pub(super) fn let_go(&mut self) {
        self.part(1000, "");
        self.retime = true;
        let actions = self.turns.as_mut().map(Turns::on_disconnected).unwrap_or_default();
        self.perform(actions);
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Cx<'_>, progress: &mut bool) -> Option<Exit> {
        let Upstream::Connected(connection, _) = &mut self.upstream else { return None };
        if !connection.socket.needs_flush() {
            return None;
        }
        let congested = connection.socket.pending() >= UPSTREAM_WINDOW;
        let flushed = connection.socket.poll_flush(cx);
        // Clients that were not read for want of room are read again.
        *progress |= congested && connection.socket.pending() < UPSTREAM_WINDOW;
        match flushed {
            Poll::Ready(Err(_)) => {
                *progress = true;
                let frame = CloseFrame { code: 1011, reason: "upstream connection lost".into() };
                self.upstream_gone(Some(frame), "writing to the upstream failed")
            }
            _ => None,
        }
    }

    /// An upstream connection that is near its limit is given up before the upstream gives it up
    /// in the middle of a turn: at once between turns, else when those that run have ended.
    pub(super) fn rotate(&mut self, now: Instant, idle: bool) {
        let Upstream::Connected(connection, _) = &self.upstream else { return };
        let Some(turns) = &mut self.turns else { return };
        if turns.is_spent() || now < connection.since + self.route.upstream.max_connection_age {
            return;
        }
        tracing::info!(session = %self.id, idle, "upstream connection reached its age, renewing it");
        if !idle {
            let actions = turns.on_aged();
            self.perform(actions);
            return;
        }
        self.let_go();
        // Without a client the next request brings it back.
        if !self.clients.is_empty() {
            self.dial();
        }
    }
}

/// What a client is told of a failed dial.
fn attach_error(error: &DialError) -> AttachError {
    match error {
        DialError::Refused(refusal) => AttachError::Refused(refusal.clone()),
        error => error.told().into(),
    }
}
