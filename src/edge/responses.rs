//! The Responses API over a client's WebSocket.
//!
//! The client's socket outlives its link: when the session moves, the edge attaches to the
//! new owner and sends again what the old one had certainly not taken.

use std::{sync::Arc, time::Duration};

use axum::{extract::Request, response::Response};

use super::{
    Drain, Edge, body,
    comeback::Comeback,
    events::{leaving, lost},
    keeps, key,
    outstanding::Outstanding,
    pump::{Event, Pump},
    reply, told,
    upgrade::Pending,
};
use crate::{
    config::Route,
    error::{Code, Error, Result},
    ids::{Epoch, Principal, SessionId},
    link::{Frame, Link},
    route::{RouteError, TURN_PATIENCE, UPGRADE_PATIENCE},
    session::{
        Attach, Attached, ClientKind, Row,
        event::{ClientEvent, Create, error_event},
    },
    telemetry::{metrics::Direction, propagation},
    upstream::Upgrade,
    wire::{Batch, Incoming, Kind, Message},
};

/// Serves one client of a responses route.
pub(super) async fn handle(edge: Arc<Edge>, route: Arc<Route>, mut request: Request) -> Response {
    let pending = match Pending::check(&mut request) {
        Ok(pending) => pending,
        Err(response) => return *response,
    };
    let identity = match edge.auth.identify(request.headers()).await {
        Ok(identity) => identity,
        Err(error) => return reply::error(&error),
    };
    let mut client = match Client::new(&edge, &route, identity.principal, &request, &pending) {
        Ok(client) => client,
        Err(error) => return reply::error(&error),
    };
    let span = propagation::request("GET", &route.path);
    propagation::enter(&span, &mut client.upgrade.headers);
    // A client that names its session learns of a refusal now; for another one it takes its
    // first request to know which session it means.
    let attached = match client.session {
        Some(_) => match client.attach(UPGRADE_PATIENCE).await {
            Ok(attached) => Some(attached),
            Err(error) => return reply::traced(&span, &error),
        },
        None => None,
    };
    let limit = edge.limits.max_message_bytes;
    let session = client.session.map(|session| session.to_string());
    let (response, socket) = pending.accept(
        attached.as_ref(),
        session,
        route.compression,
        limit,
        edge.unfinished.share(),
    );
    client.link = attached.map(|attached| attached.link);
    propagation::answered(&span, response.status());
    edge.tracker.clone().spawn(async move {
        if let Some((socket, seat)) = socket.await {
            let up = edge.metrics.frames(&route.path, Direction::Up);
            let down = edge.metrics.frames(&route.path, Direction::Down);
            let drain = client.drain();
            let pump = Pump::new(socket, seat, &identity, &edge.limits, &drain, up, down);
            client.serve(pump).await;
        }
    });
    response
}

struct Client {
    edge: Arc<Edge>,
    route: Arc<Route>,
    principal: Principal,
    upgrade: Upgrade,
    key_label: String,
    /// None until the first request tells.
    session: Option<SessionId>,
    epoch: Epoch,
    link: Option<Link>,
    /// When the session is looked for; None while there is a link, or was none yet.
    comeback: Option<Comeback>,
    creates: Outstanding,
    /// It is closed at the last call of a drain only.
    kept: bool,
    /// The socket ends at the next boundary, with this close code and reason.
    closing: Option<(u16, &'static str)>,
}

/// What the loop does next.
enum Next {
    Go,
    Close { code: u16, reason: &'static str },
}

impl Client {
    fn new(
        edge: &Arc<Edge>,
        route: &Arc<Route>,
        principal: Principal,
        request: &Request,
        pending: &Pending,
    ) -> Result<Self> {
        let headers = request.headers();
        let key = key::responses(headers)?;
        let session = key.as_ref().map(|key| SessionId::derive(&principal, &route.path, &key.text));
        Ok(Self {
            edge: Arc::clone(edge),
            route: Arc::clone(route),
            principal,
            upgrade: Upgrade {
                path_and_query: key::forwarded_path(request.uri()),
                headers: edge.forwarded_headers(headers),
                subprotocols: pending.handshake.protocols().to_vec(),
            },
            key_label: key.map(|key| key.label).unwrap_or_default(),
            session,
            epoch: Epoch::default(),
            link: None,
            comeback: None,
            creates: Outstanding::default(),
            kept: keeps(route, headers),
            closing: None,
        })
    }

    /// When this socket is to close.
    fn drain(&self) -> Drain {
        if self.kept { self.edge.drain.patient() } else { self.edge.drain.clone() }
    }

    /// Waits for an owner, but not longer than this node lives.
    async fn attach(&mut self, patience: Duration) -> Result<Attached, RouteError> {
        let row = if self.session.is_none() { Row::Missing } else { Row::Unknown };
        let session = *self.session.get_or_insert_with(SessionId::random);
        let cut = self.edge.drain.cut.clone();
        // Boxed: else each client would hold its five kilobytes for as long as it is there.
        let attaching = Box::pin(self.edge.router.attach(
            Attach {
                session,
                row,
                principal: self.principal,
                route: Arc::clone(&self.route),
                key_label: self.key_label.clone(),
                upgrade: self.upgrade.clone(),
                reads: false,
                last_seq: None,
                last_epoch: None,
                turn_key: None,
                min_epoch: self.epoch,
                client: self.edge.label(ClientKind::WebSocket),
            },
            patience,
        ));
        let attached = tokio::select! {
            biased;
            attached = attaching => attached?,
            () = cut.cancelled() => return Err(leaving().into()),
        };
        self.epoch = attached.epoch;
        self.comeback = None;
        Ok(attached)
    }

    /// Attaches to the session that this socket has lost, so that it does not end for want of
    /// clients while this one reads its last answer. Cancel-safe.
    async fn come_back(&mut self) -> Link {
        let ttl = self.route.detach_ttl;
        loop {
            self.comeback.get_or_insert_with(|| Comeback::new(ttl)).due().await;
            match self.attach(Duration::ZERO).await {
                Ok(attached) => return attached.link,
                Err(error) => {
                    tracing::debug!(error = error.as_str(), "an idle socket has no session yet");
                }
            }
            if let Some(comeback) = &mut self.comeback {
                comeback.later(ttl);
            }
        }
    }

    async fn serve(mut self, mut pump: Box<Pump>) {
        loop {
            let mut link = self.link.take();
            // One that never had the session has nothing to lose.
            let absent = link.is_none() && self.epoch > Epoch::default();
            let event = tokio::select! {
                biased;
                event = pump.next(&mut link) => event,
                found = self.come_back(), if absent => {
                    self.link = Some(found);
                    continue;
                }
            };
            self.link = link;
            let next = match event {
                Event::FromClient(Incoming::Messages(batch)) => {
                    self.on_messages(&batch, &mut pump).await
                }
                Event::FromClient(Incoming::Ping(payload)) => {
                    pump.pong(&payload);
                    Next::Go
                }
                Event::FromClient(Incoming::Pong(_)) => Next::Go,
                Event::FromClient(Incoming::Close(close)) => {
                    self.link = None;
                    return pump.close_as(close).await;
                }
                Event::FromSession(frame) => self.on_frame(frame, &mut pump).await,
                Event::SessionGone => {
                    self.lost(&mut pump);
                    if !self.creates.is_empty() {
                        self.follow(&mut pump).await;
                    }
                    self.boundary()
                }
                Event::ClientBroke { close, what } => Next::Close { code: close, reason: what },
                Event::ClientGone => return,
                Event::Closing => {
                    self.closing.get_or_insert((super::CLOSE_RESTART, super::RESTART));
                    self.boundary()
                }
                Event::Unauthorized => {
                    self.closing = Some((super::CLOSE_POLICY, super::UNAUTHORIZED));
                    self.boundary()
                }
                Event::Cut => {
                    self.fail_all(&lost(), &mut pump);
                    let (code, reason) =
                        self.closing.unwrap_or((super::CLOSE_RESTART, super::RESTART));
                    Next::Close { code, reason }
                }
            };
            if let Next::Close { code, reason } = next {
                self.link = None;
                return pump.close(code, reason).await;
            }
        }
    }

    /// Between turns is where a socket can be closed without harm.
    fn boundary(&self) -> Next {
        match self.closing {
            Some((code, reason)) if self.creates.is_empty() => Next::Close { code, reason },
            _ => Next::Go,
        }
    }

    async fn on_messages(&mut self, batch: &Batch, pump: &mut Pump) -> Next {
        // The socket is not looked at meanwhile, so what came together waits together: there
        // may be thousands in a batch, and each wait may be as long as `TURN_PATIENCE`.
        let mut unreachable = None;
        for message in batch.messages() {
            if message.kind == Kind::Binary {
                return Next::Close { code: 1003, reason: "this protocol is text" };
            }
            let create = match read(&message) {
                Ok(create) => create,
                Err(error) => {
                    self.tell(&error, &[error_event(&error, None)], pump);
                    continue;
                }
            };
            if unreachable.is_none() {
                unreachable = self.reach(create.as_ref(), batch.weight()).await.err();
            }
            if let Some(error) = &unreachable {
                let lane = create.as_ref().and_then(|create| create.lane.as_deref());
                self.tell_unreachable(error, lane, pump);
                continue;
            }
            let ledger = self.route.ledger;
            let number = create.map_or(0, |create| self.creates.push(&create, &message, ledger));
            self.send(&message, number);
        }
        Next::Go
    }

    /// `create` is its number among the creates, zero for anything else.
    fn send(&mut self, message: &Message, create: u32) {
        if let Some(link) = &mut self.link {
            let batch = Batch::one(message);
            link.tx.send(Frame::Messages { batch, first_seq: 0, ended: 0, create });
        }
    }

    /// Makes sure that there is a link, to the session that the request belongs to. So many bytes
    /// wait for it.
    async fn reach(&mut self, create: Option<&Create>, bytes: usize) -> Result<(), RouteError> {
        if let Some(create) = create {
            // Turns that run may end; none begins with a credential that is good no more.
            if self.closing.is_some_and(|(code, _)| code == super::CLOSE_POLICY) {
                return Err(Error::new(Code::NotAuthorized, super::UNAUTHORIZED).into());
            }
            self.choose(create).await?;
        }
        if self.link.is_none() {
            let mut share = self.edge.unfinished.share();
            if !share.holds(bytes) {
                return Err(body::crowded().into());
            }
            let attached = self.attach(TURN_PATIENCE).await?;
            self.link = Some(attached.link);
        }
        Ok(())
    }

    /// A response id belongs to the connection that made it, so a request that names one
    /// goes to that session, wherever it is; never in the middle of other turns.
    async fn choose(&mut self, create: &Create) -> Result<(), Error> {
        let mut found = None;
        if let Some(previous) = &create.previous_response_id
            && self.creates.is_empty()
            && !self.creates.knows(previous)
        {
            let alias = self.edge.router.alias(self.principal, &self.route, previous).await;
            found = match alias {
                Err(error) if self.session.is_none() => return Err(error),
                // The store is away; the session that we have is the likely one.
                other => other.ok().flatten(),
            };
        }
        if found.is_none()
            && self.session.is_none()
            && let Some(key) = &create.prompt_cache_key
        {
            self.key_label = key::label(key);
            found = Some(SessionId::derive(&self.principal, &self.route.path, key));
        }
        if let Some(session) = found.filter(|session| self.session != Some(*session)) {
            self.session = Some(session);
            self.epoch = Epoch::default();
            self.link = None;
            self.creates.move_on();
        }
        Ok(())
    }

    async fn on_frame(&mut self, frame: Frame, pump: &mut Pump) -> Next {
        match frame {
            Frame::Messages { batch, ended, create, .. } => {
                // What ends no request and is of none answers another event.
                if ended > 0 || create == 0 {
                    told::last(&self.edge.metrics, &batch);
                }
                pump.send(&batch);
                self.creates.seen(&batch, create, ended);
                self.boundary()
            }
            Frame::Ping(_) | Frame::Pong(_) => Next::Go,
            Frame::Close(close) => {
                let code = close.map_or(1011, |close| close.code);
                Next::Close { code, reason: "the session ended" }
            }
            Frame::Moved => {
                self.link = None;
                self.follow(pump).await;
                self.boundary()
            }
            Frame::Failed(error) => {
                self.fail_all(&error, pump);
                self.boundary()
            }
        }
    }

    /// The session has a new owner. A planned transfer happens between turns, so whatever is
    /// outstanding was never taken by the old one (I5): it is sent to the new one.
    async fn follow(&mut self, pump: &mut Pump) {
        // Without a request there is no hurry, and a socket that is to close need not wait.
        let idle = self.creates.is_empty();
        let closing = self.drain().closing;
        let attached = tokio::select! {
            biased;
            attached = self.attach(TURN_PATIENCE) => attached,
            () = closing.cancelled(), if idle => return,
        };
        match attached {
            Ok(attached) => {
                self.link = Some(attached.link);
                for (create, message) in self.creates.not_taken() {
                    self.send(&message, create);
                }
            }
            Err(error) => {
                for lane in self.creates.take_lanes() {
                    self.tell_unreachable(&error, lane.as_deref(), pump);
                }
            }
        }
    }

    /// The owner, or the way to it, is gone.
    fn lost(&mut self, pump: &mut Pump) {
        self.link = None;
        let said = self.creates.lose(&lost());
        self.tell(&lost(), &said, pump);
    }

    fn fail_all(&mut self, error: &Error, pump: &mut Pump) {
        self.link = None;
        let said = self.creates.fail(error);
        self.tell(error, &said, pump);
    }

    fn tell(&self, error: &Error, said: &[Message], pump: &mut Pump) {
        for message in said {
            told::own(&self.edge.metrics, error, message);
            pump.send(&Batch::one(message));
        }
    }

    /// A request found no session; `lane` is its own.
    fn tell_unreachable(&self, error: &RouteError, lane: Option<&str>, pump: &mut Pump) {
        match error {
            RouteError::Failed(error) => self.tell(error, &[error_event(error, lane)], pump),
            RouteError::Refused(refusal) => {
                let batch = Batch::one(&reply::refused_event(refusal, lane));
                told::last(&self.edge.metrics, &batch);
                pump.send(&batch);
            }
        }
    }
}

/// The create that a client sent; None for another event.
fn read(message: &Message) -> Result<Option<Create>> {
    match ClientEvent::parse(&message.payload)? {
        ClientEvent::Create(create) => Ok(Some(create)),
        // Between nodes only: its answer is of no request that this socket knows of.
        ClientEvent::Resume { .. } => {
            let text = "unknown event type; a response is resumed by GET";
            Err(Error::new(Code::InvalidRequest, text).param("type"))
        }
        ClientEvent::Control { .. } | ClientEvent::Other { .. } => Ok(None),
    }
}
