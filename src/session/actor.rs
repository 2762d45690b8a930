//! The task of one session: it performs what the rules decide.
//!
//! One poll visits, in this order: the lease (without it nothing moves), commands, the
//! dial, clients, the upstream, deliveries, writes, the timer. It goes round until nothing
//! is ready, so that what arrived together leaves together.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context as Cx, Poll},
    time::Duration,
};

use http::HeaderMap;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    Attach, AttachError, Attached, Context, Resume,
    clients::{Client, Delivery, Streams},
    responses,
    stats::{ClientStat, Stats, UpstreamState},
    turns::{ClientId, Turns},
};
use crate::{
    config::{Profile, Route},
    error::{Code, Error},
    ids::{Epoch, Principal, SessionId},
    link::{Frame, Link},
    telemetry::metrics::{GaugeGuard, GaugeShare, Outcome, Place, ResumeOutcome},
    upstream::{Connection, DialError, Upgrade},
    wire::{Batch, CloseFrame, Incoming, SocketError},
};

/// Bytes towards the upstream above which clients are not read.
const UPSTREAM_WINDOW: usize = 64 * 1024;

/// Number of an opaque session's log.
pub(super) const OPAQUE: u64 = 0;

/// What the registry asks of an actor.
pub(super) enum Command {
    Attach(Box<Attach>, oneshot::Sender<Result<Attached, AttachError>>),
    /// Hand the session over as soon as no turn runs.
    Drain,
    /// End now; clients are told the error.
    Stop(Error),
}

/// Why the actor's loop ended.
pub(super) enum Exit {
    /// Nobody came back in time.
    Abandoned,
    /// The upstream of an opaque session closed: the session is over.
    UpstreamClosed(Option<CloseFrame>),
    /// The upstream of a session that never was could not be reached.
    Unreachable,
    /// A drain asked for it, and no turn runs.
    HandOff,
    /// Told to end, with what clients are told.
    Stopped(Error),
}

/// An attach that waits, and who waits for its answer.
type Waiting = (Box<Attach>, oneshot::Sender<Result<Attached, AttachError>>);

type Dial = Pin<Box<dyn Future<Output = Result<Connection, DialError>> + Send + Sync>>;

/// The upstream's side.
enum Upstream {
    None,
    Dialing(Dial),
    Connected(
        Box<Connection>,
        #[expect(dead_code, reason = "a gauge that counts by living")] GaugeGuard,
    ),
}

pub(super) struct Actor {
    pub(super) ctx: Arc<Context>,
    pub(super) id: SessionId,
    pub(super) principal: Principal,
    pub(super) epoch: Epoch,
    pub(super) route: Arc<Route>,
    pub(super) stats: Arc<Stats>,
    inbox: mpsc::Receiver<Command>,
    upstream: Upstream,
    /// How the upstream is asked for a connection: as the newest client asked.
    upgrade: Upgrade,
    /// What the upstream answered to the upgrade.
    headers: HeaderMap,
    subprotocol: Option<String>,
    /// Attached as soon as the upstream is there.
    waiting: Vec<Waiting>,
    pub(super) clients: Vec<Client>,
    next_client: ClientId,
    pub(super) streams: Streams,
    /// None on an opaque route.
    pub(super) turns: Option<Turns>,
    draining: bool,
    /// When the last client left, or the last turn without a client ended.
    alone_since: Option<Instant>,
    last_upstream: Instant,
    last_close: Option<CloseFrame>,
    timer: Pin<Box<Sleep>>,
    retime: bool,
    /// Only while the lease is in doubt.
    lease_wait: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    replay_share: GaugeShare,
    _counted: GaugeGuard,
}

impl Actor {
    pub(super) fn new(
        ctx: Arc<Context>,
        attach: &Attach,
        epoch: Epoch,
        stats: Arc<Stats>,
        inbox: mpsc::Receiver<Command>,
    ) -> Self {
        let route = Arc::clone(&attach.route);
        let mut streams = Streams::default();
        let turns = match route.profile {
            Profile::Responses => Some(Turns::new(ctx.limits.turn_queue)),
            Profile::Opaque => {
                streams.open(OPAQUE);
                None
            }
        };
        let now = Instant::now();
        Self {
            id: attach.session,
            principal: attach.principal,
            epoch,
            stats,
            inbox,
            upstream: Upstream::None,
            upgrade: attach.upgrade.clone(),
            headers: HeaderMap::new(),
            subprotocol: None,
            waiting: Vec::new(),
            clients: Vec::new(),
            next_client: 1,
            streams,
            turns,
            draining: false,
            alone_since: Some(now),
            last_upstream: now,
            last_close: None,
            timer: Box::pin(sleep_until(now + route.detach_ttl)),
            retime: true,
            lease_wait: None,
            replay_share: ctx.metrics.replay_bytes(&route.path),
            _counted: ctx.metrics.session(&route.path, route.profile),
            route,
            ctx,
        }
    }

    /// Serves until there is a reason to end.
    pub(super) async fn serve(&mut self) -> Exit {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> Poll<Exit> {
        loop {
            if !self.poll_lease(cx) {
                return self.poll_suspended(cx);
            }
            let mut progress = false;
            while let Poll::Ready(Some(command)) = self.inbox.poll_recv(cx) {
                progress = true;
                match command {
                    Command::Attach(attach, reply) => self.attach(attach, reply),
                    Command::Drain => self.draining = true,
                    Command::Stop(error) => return Poll::Ready(Exit::Stopped(error)),
                }
            }
            if let Some(exit) = self.poll_dial(cx, &mut progress) {
                return Poll::Ready(exit);
            }
            self.poll_clients(cx, &mut progress);
            if let Some(exit) = self.poll_upstream(cx, &mut progress) {
                return Poll::Ready(exit);
            }
            self.deliver(cx, &mut progress);
            if let Some(exit) = self.poll_flush(cx) {
                return Poll::Ready(exit);
            }
            if self.draining && self.is_idle() {
                return Poll::Ready(Exit::HandOff);
            }
            if let Some(exit) = self.poll_timer(cx, &mut progress) {
                return Poll::Ready(exit);
            }
            if !progress {
                self.publish();
                return Poll::Pending;
            }
        }
    }

    /// Whether the lease still proves that the session is ours. If not, the task is woken
    /// when it does again.
    fn poll_lease(&mut self, cx: &mut Cx<'_>) -> bool {
        loop {
            if self.ctx.lease.is_live(Instant::now().into_std()) {
                self.lease_wait = None;
                return true;
            }
            let lease = &self.ctx.lease;
            let wait = self.lease_wait.get_or_insert_with(|| {
                let lease = lease.clone();
                Box::pin(async move {
                    let _ = lease.live().await;
                })
            });
            if wait.as_mut().poll(cx).is_pending() || self.ctx.lease.is_lost() {
                return false;
            }
            self.lease_wait = None;
        }
    }

    /// Without a lease nothing is served: no frame moves, nobody is attached.
    fn poll_suspended(&mut self, cx: &mut Cx<'_>) -> Poll<Exit> {
        while let Poll::Ready(Some(command)) = self.inbox.poll_recv(cx) {
            match command {
                Command::Attach(_, reply) => {
                    let error =
                        Error::new(Code::SessionUnavailable, "this node's lease is in doubt");
                    drop(reply.send(Err(error.into())));
                }
                Command::Drain => self.draining = true,
                Command::Stop(error) => return Poll::Ready(Exit::Stopped(error)),
            }
        }
        Poll::Pending
    }

    /// No turn runs or waits, and nobody is being attached.
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.turns.as_ref().is_none_or(Turns::is_idle)
    }

    fn attach(
        &mut self,
        attach: Box<Attach>,
        reply: oneshot::Sender<Result<Attached, AttachError>>,
    ) {
        if attach.principal != self.principal {
            let error = Error::new(Code::Forbidden, "this session belongs to another principal");
            drop(reply.send(Err(error.into())));
            return;
        }
        if self.clients.len() + self.waiting.len() >= self.ctx.limits.max_clients_per_session {
            let error =
                Error::new(Code::TooManySessions, "this session has as many clients as it may");
            drop(reply.send(Err(error.into())));
            return;
        }
        // The newest credential of the same principal is the one that is still valid.
        self.upgrade = attach.upgrade.clone();
        match self.upstream {
            Upstream::Connected(..) => self.admit(&attach, reply),
            Upstream::None => {
                self.waiting.push((attach, reply));
                self.dial();
            }
            Upstream::Dialing(_) => self.waiting.push((attach, reply)),
        }
    }

    fn admit(&mut self, attach: &Attach, reply: oneshot::Sender<Result<Attached, AttachError>>) {
        let (ours, theirs) = Link::pair(self.ctx.limits.link_window_bytes);
        let id = self.next_client;
        let remote = *attach.client.edge_node != *self.ctx.node_id;
        let place = if remote { Place::Remote } else { Place::Local };
        let now = Instant::now();
        let gauge = self.ctx.metrics.client(&self.route.path, place);
        let mut client = Client::new(id, ours, attach.client.clone(), gauge);
        let mut resume = Resume::New;
        if self.turns.is_none() {
            let log =
                self.streams.get(OPAQUE).map(|stream| (stream.log.floor(), stream.log.head()));
            let (floor, head) = log.unwrap_or((1, 0));
            let mut next = head + 1;
            if let Some(last) = attach.last_seq {
                // A number from the future is one of another epoch: nothing of it is here.
                (next, resume) = if last > head || last + 1 < floor {
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
        }
        let attached = Attached {
            link: theirs,
            epoch: self.epoch,
            resume,
            headers: self.headers.clone(),
            subprotocol: self.subprotocol.clone(),
        };
        if reply.send(Ok(attached)).is_err() {
            // The client left while it waited.
            return;
        }
        self.next_client += 1;
        self.alone_since = None;
        self.stats.clients.lock().push(ClientStat { id, label: attach.client.clone(), since: now });
        self.clients.push(client);
    }

    fn dial(&mut self) {
        let dialer = self.ctx.dialer.clone();
        let upstream = Arc::clone(&self.route.upstream);
        let upgrade = self.upgrade.clone();
        self.stats.set_upstream(UpstreamState::Dialing);
        self.upstream =
            Upstream::Dialing(Box::pin(async move { dialer.dial(&upstream, &upgrade).await }));
    }

    fn poll_dial(&mut self, cx: &mut Cx<'_>, progress: &mut bool) -> Option<Exit> {
        let Upstream::Dialing(dial) = &mut self.upstream else { return None };
        let Poll::Ready(result) = dial.as_mut().poll(cx) else { return None };
        *progress = true;
        self.retime = true;
        let name = &self.route.upstream.name;
        match result {
            Ok(connection) => {
                self.ctx.metrics.upstream_dial(name, Outcome::Ok);
                self.headers.clone_from(&connection.headers);
                self.subprotocol.clone_from(&connection.subprotocol);
                let gauge = self.ctx.metrics.upstream_connection(name);
                self.upstream = Upstream::Connected(Box::new(connection), gauge);
                self.last_upstream = Instant::now();
                self.stats.set_upstream(UpstreamState::Connected);
                for (attach, reply) in std::mem::take(&mut self.waiting) {
                    self.admit(&attach, reply);
                }
                let actions = self.turns.as_mut().map(Turns::on_connected).unwrap_or_default();
                self.perform(actions);
                None
            }
            Err(error) => {
                self.ctx.metrics.upstream_dial(name, Outcome::Failed);
                tracing::warn!(session = %self.id, upstream = %name, %error, "upstream dial failed");
                self.upstream = Upstream::None;
                self.stats.set_upstream(UpstreamState::None);
                if let Some(turns) = &mut self.turns {
                    let (status, body, code) = responses::dial_error(&error);
                    let actions = turns.on_unreachable(status, &body, code);
                    self.perform(actions);
                }
                for (_, reply) in std::mem::take(&mut self.waiting) {
                    drop(reply.send(Err(attach_error(&error))));
                }
                (self.clients.is_empty()).then_some(Exit::Unreachable)
            }
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
                    *progress = true;
                    if !self.on_client(at, frame) {
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

    /// False when the client is done.
    fn on_client(&mut self, at: usize, frame: Frame) -> bool {
        match (frame, &mut self.turns) {
            (Frame::Messages { batch, .. }, None) => {
                if let Upstream::Connected(connection, _) = &mut self.upstream {
                    connection.socket.queue(&batch);
                }
            }
            (Frame::Messages { batch, .. }, Some(_)) => {
                let id = self.clients[at].id;
                for message in batch.messages() {
                    let actions = self
                        .turns
                        .as_mut()
                        .map(|turns| turns.on_client(id, &message))
                        .unwrap_or_default();
                    self.perform(actions);
                }
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

    fn remove(&mut self, at: usize) {
        let client = self.clients.swap_remove(at);
        self.stats.clients.lock().retain(|stat| stat.id != client.id);
        if let Some(turns) = &mut self.turns {
            turns.on_client_gone(client.id);
        }
        if self.clients.is_empty() {
            self.alone_since = Some(Instant::now());
            self.retime = true;
        }
    }

    /// Turns that wait bring the upstream back.
    pub(super) fn want_upstream(&mut self) {
        let waits = self.turns.as_ref().is_some_and(|turns| turns.queued() > 0);
        if waits && matches!(self.upstream, Upstream::None) {
            self.dial();
        }
    }

    /// The detach time of a session without clients begins when its last turn ends.
    pub(super) fn turn_ended(&mut self) {
        self.alone_since = self.alone_since.map(|_| Instant::now());
        self.retime = true;
    }

    pub(super) fn send_upstream(&mut self, batch: &Batch) {
        if let Upstream::Connected(connection, _) = &mut self.upstream {
            connection.socket.queue(batch);
            self.last_upstream = Instant::now();
            self.retime = true;
        }
    }

    pub(super) fn hang_up(&mut self) {
        self.upstream = Upstream::None;
        self.stats.set_upstream(UpstreamState::None);
        self.want_upstream();
    }

    fn poll_upstream(&mut self, cx: &mut Cx<'_>, progress: &mut bool) -> Option<Exit> {
        if self.is_blocked(cx) {
            return None;
        }
        let Upstream::Connected(connection, _) = &mut self.upstream else { return None };
        let Poll::Ready(incoming) = connection.socket.poll_recv(cx) else { return None };
        *progress = true;
        self.last_upstream = Instant::now();
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
                return self.upstream_gone(frame, "the upstream closed");
            }
            Some(Err(SocketError::Protocol { close, what })) => {
                connection.socket.queue_close(close, what);
                drop(connection.socket.poll_flush(cx));
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

    fn on_upstream(&mut self, batch: Batch) {
        if let Some(turns) = &mut self.turns {
            let actions = turns.on_upstream(&batch);
            self.perform(actions);
        } else if let Some(stream) = self.streams.get_mut(OPAQUE) {
            let now = self.last_upstream;
            self.retime |= stream.log.bytes() == 0;
            stream.log.push(batch, now);
            stream.log.trim(self.ctx.limits.replay_bytes, self.ctx.limits.replay_ttl, now);
        }
    }

    fn upstream_gone(&mut self, frame: Option<CloseFrame>, why: &'static str) -> Option<Exit> {
        tracing::debug!(session = %self.id, why, "upstream connection ended");
        self.upstream = Upstream::None;
        self.stats.set_upstream(UpstreamState::None);
        self.retime = true;
        let Some(turns) = &mut self.turns else { return Some(Exit::UpstreamClosed(frame)) };
        let actions = turns.on_disconnected();
        self.perform(actions);
        self.want_upstream();
        None
    }

    /// Control frames are not numbered and not kept: a client that has no room misses them.
    fn tell_all(&mut self, frame: &Frame) {
        let mut cx = Cx::from_waker(std::task::Waker::noop());
        for client in &mut self.clients {
            if client.link.tx.queued() == 0 || client.link.tx.poll_ready(&mut cx).is_ready() {
                client.link.tx.send(frame.clone());
            }
        }
    }

    /// The upstream is not read while nobody can take what it would say: that is how a
    /// client that does not read slows its own session and no other.
    fn is_blocked(&mut self, cx: &mut Cx<'_>) -> bool {
        if self.clients.is_empty() {
            return false;
        }
        let streams = &self.streams;
        !self
            .clients
            .iter_mut()
            .any(|client| client.lag(streams) == 0 && client.link.tx.poll_ready(cx).is_ready())
    }

    fn deliver(&mut self, cx: &mut Cx<'_>, progress: &mut bool) {
        let mut at = 0;
        while at < self.clients.len() {
            if self.clients[at].deliver(&self.streams, cx) == Delivery::TooSlow {
                let place = if *self.clients[at].label.edge_node == *self.ctx.node_id {
                    Place::Local
                } else {
                    Place::Remote
                };
                self.ctx.metrics.slow_client(&self.route.path, place);
                let frame =
                    CloseFrame { code: 1013, reason: "too slow; resume from last_seq".into() };
                self.clients[at].link.tx.send(Frame::Close(Some(frame)));
                self.remove(at);
                *progress = true;
            } else {
                at += 1;
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Cx<'_>) -> Option<Exit> {
        let Upstream::Connected(connection, _) = &mut self.upstream else { return None };
        if connection.socket.pending() == 0 {
            return None;
        }
        match connection.socket.poll_flush(cx) {
            Poll::Ready(Err(_)) => {
                let frame = CloseFrame { code: 1011, reason: "upstream connection lost".into() };
                self.upstream_gone(Some(frame), "writing to the upstream failed")
            }
            _ => None,
        }
    }

    fn poll_timer(&mut self, cx: &mut Cx<'_>, progress: &mut bool) -> Option<Exit> {
        if std::mem::take(&mut self.retime) {
            let deadline = self.next_deadline();
            self.timer.as_mut().reset(deadline);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return None;
        }
        *progress = true;
        self.retime = true;
        let now = Instant::now();
        let limits = &self.ctx.limits;
        let clients = &self.clients;
        self.streams.trim(limits.replay_bytes, limits.replay_ttl, now, |no| {
            clients.iter().any(|client| client.reads(no))
        });
        if let Some(stream) = self.streams.get_mut(OPAQUE) {
            stream.log.trim(limits.replay_bytes, limits.replay_ttl, now);
        }
        let running = self.turns.as_ref().map_or(0, Turns::running);
        if running > 0 && now >= self.last_upstream + limits.turn_idle_timeout {
            let actions = self.turns.as_mut().map(Turns::on_silence).unwrap_or_default();
            self.perform(actions);
        }
        if running == 0 && self.is_idle() {
            if self.alone_since.is_some_and(|since| now >= since + self.route.detach_ttl) {
                return Some(Exit::Abandoned);
            }
            self.rotate(now);
        }
        None
    }

    /// Between turns, an upstream connection that is near its limit is given up before the
    /// upstream gives it up in the middle of one.
    fn rotate(&mut self, now: Instant) {
        let Upstream::Connected(connection, _) = &mut self.upstream else { return };
        if self.turns.is_some() && now >= connection.since + self.route.upstream.max_connection_age
        {
            tracing::info!(session = %self.id, "upstream connection reached its age, renewing it");
            connection.socket.queue_close(1000, "");
            drop(connection.socket.poll_flush(&mut Cx::from_waker(std::task::Waker::noop())));
            self.upstream = Upstream::None;
            self.dial();
        }
    }

    fn next_deadline(&self) -> Instant {
        /// A timer has to stand somewhere.
        const IDLE: Duration = Duration::from_hours(1);
        let now = Instant::now();
        let limits = &self.ctx.limits;
        let mut deadline = now + IDLE;
        if let Some(since) = self.alone_since {
            deadline = deadline.min(since + self.route.detach_ttl);
        }
        if let Upstream::Connected(connection, _) = &self.upstream
            && self.turns.is_some()
        {
            deadline = deadline.min(connection.since + self.route.upstream.max_connection_age);
        }
        if self.turns.as_ref().is_some_and(|turns| turns.running() > 0) {
            deadline = deadline.min(self.last_upstream + limits.turn_idle_timeout);
        }
        let expires = self.streams.expires(limits.replay_ttl);
        let expires = match self.streams.get(OPAQUE) {
            Some(stream) => stream.log.expires(limits.replay_ttl),
            None => expires,
        };
        if let Some(expires) = expires {
            deadline = deadline.min(expires);
        }
        // A deadline that has passed and moved nothing must not spin, and a log under
        // steady flow is trimmed in strides.
        deadline.max(now + (limits.replay_ttl / 8).min(Duration::from_millis(100)))
    }

    /// Brings the figures for operators up to date.
    fn publish(&mut self) {
        let bytes = self.streams.bytes();
        self.replay_share.set(bytes);
        self.stats.replay_bytes.store(bytes as u64, Relaxed);
        if let Some(stream) = self.streams.get(OPAQUE) {
            self.stats.head_seq.store(stream.log.head(), Relaxed);
            self.stats.floor_seq.store(stream.log.floor(), Relaxed);
        }
        if let Some(turns) = &self.turns {
            self.stats.turns_running.store(turns.running() as u64, Relaxed);
            self.stats.turns_queued.store(turns.queued() as u64, Relaxed);
            self.stats.turns_done.store(turns.done(), Relaxed);
        }
        let lag = self.clients.iter().map(|client| client.lag(&self.streams)).max();
        self.stats.lag.store(lag.unwrap_or(0), Relaxed);
    }

    /// Waits until every client has what is in the logs, or `limit` has passed.
    pub(super) async fn settle(&mut self, limit: Duration) {
        let settled = poll_fn(|cx| {
            self.deliver(cx, &mut false);
            let behind = |client: &Client| client.lag(&self.streams) > 0 || client.has_replies();
            if self.clients.iter().any(behind) { Poll::Pending } else { Poll::Ready(()) }
        });
        drop(tokio::time::timeout(limit, settled).await);
    }

    /// Says a last word to every client.
    pub(super) fn dismiss(&mut self, frame: &Frame) {
        for client in &mut self.clients {
            client.link.tx.send(frame.clone());
        }
        self.clients.clear();
        self.stats.clients.lock().clear();
    }

    /// Closes the upstream politely, within `limit`.
    pub(super) async fn close_upstream(&mut self, limit: Duration) {
        if let Upstream::Connected(mut connection, _) =
            std::mem::replace(&mut self.upstream, Upstream::None)
        {
            let frame = self.last_close.take();
            let (code, reason) = frame.as_ref().map_or((1000, ""), |f| (f.code, f.reason.as_str()));
            connection.socket.queue_close(code, reason);
            drop(tokio::time::timeout(limit, connection.socket.flush()).await);
        }
    }
}

/// What a client is told of a failed dial.
fn attach_error(error: &DialError) -> AttachError {
    match error {
        DialError::Refused(refusal) => AttachError::Refused(refusal.clone()),
        DialError::Unavailable(_) => {
            Error::new(Code::UpstreamUnavailable, "the upstream could not be reached").into()
        }
        DialError::Timeout(_) => {
            Error::new(Code::UpstreamTimeout, "the upstream did not answer the upgrade in time")
                .into()
        }
    }
}
