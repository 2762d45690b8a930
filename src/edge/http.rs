//! The Responses API over HTTP: one turn a request, as SSE or as JSON, on the same session
//! and the same link as over WebSocket.

use std::{sync::Arc, time::Duration};

use axum::{extract::Request, response::Response};
use http::{
    HeaderMap, HeaderValue, StatusCode, Uri,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use serde_json::value::RawValue;
use tokio::time::sleep;

use super::{
    Edge,
    auth::Identity,
    body,
    events::{Events, Step, error_response, failure, leaving, lost, moving, opening},
    key::{self, Key, Repeat},
    outstanding::may_be_asked_again,
    pass, reply, sse,
};
use crate::{
    config::Route,
    error::{Code, Error, Result},
    ids::{Epoch, Principal, SessionId},
    jitter::spread,
    link::Frame,
    route::{RouteError, TURN_PATIENCE},
    session::{
        Attach, Attached, ClientKind, Row,
        event::{ClientEvent, Create, ServerEvent, Stage, resume_event},
        fields::Fields,
    },
    telemetry::propagation,
    upstream::Upgrade,
    wire::{Batch, Kind, Message, Share},
};

/// Owners that one request follows.
const MAX_MOVES: u32 = 3;

/// One turn.
pub(super) async fn create(edge: Arc<Edge>, route: Arc<Route>, mut request: Request) -> Response {
    let span = propagation::request("POST", &route.path);
    propagation::enter(&span, request.headers_mut());
    let response = match turn(&edge, &route, request).await {
        Ok(response) => response,
        Err(error) => reply::route_error(&error),
    };
    propagation::answered(&span, response.status());
    response
}

async fn turn(
    edge: &Arc<Edge>,
    route: &Arc<Route>,
    request: Request,
) -> Result<Response, RouteError> {
    if edge.drain.closing.is_cancelled() {
        return Err(leaving().into());
    }
    let identified = edge.auth.identify(request.headers());
    let identity = identified.await?;
    let principal = identity.principal;
    let named = key::responses(request.headers())?;
    let repeat = key::idempotency(request.headers())?;
    let (parts, sent) = request.into_parts();
    let (bytes, mut share) = body::read(&parts.headers, sent, edge).await?;
    // A body may take minutes.
    identity.stands()?;
    let fields = Fields::parse(&bytes)
        .ok_or_else(|| Error::new(Code::InvalidRequest, "the body is not a JSON object"))?;
    let stream = fields.get("stream").unwrap_or(false);
    let payload = fields.with(&[("type", Some(b"\"response.create\"")), ("stream", Some(b"true"))]);
    drop(bytes);
    if payload.len() > edge.limits.max_message_bytes {
        return Err(body::too_large().into());
    }
    let message = Message { kind: Kind::Text, payload };
    let ClientEvent::Create(create) = ClientEvent::parse(&message.payload)? else {
        return Err(Error::new(Code::Internal, "the request was not understood").into());
    };
    let batch = Batch::one(&message);
    drop(message);
    if !share.holds(batch.weight()) {
        return Err(body::crowded().into());
    }
    let place = session_of_request(edge, route, principal, named, repeat.as_ref(), &create).await?;
    let session = place.session;
    let upgrade = Upgrade {
        path_and_query: key::forwarded_path(&parts.uri),
        headers: upgrade_headers(edge.forwarded_headers(&parts.headers)),
        subprotocols: Vec::new(),
    };
    let turn_key = repeat.map(|repeat| repeat.key).or(create.key);
    let attach = Attach { turn_key, ..wish(edge, route, principal, place, upgrade) };
    let waiting = Waiting { create, batch, share };
    let Asked { headers, epoch, first, events } = ask(edge, &identity, attach, waiting).await?;
    if let Some(error) = failure(&first) {
        return Ok(error);
    }
    let mut response = if stream {
        sse::stream(first, events, None, edge.metrics.clone())
    } else {
        collect(first, events).await
    };
    for (name, value) in &headers {
        response.headers_mut().entry(name).or_insert(value.clone());
    }
    reply::put(&mut response, "ringspan-session", &session.to_string());
    reply::put(&mut response, "ringspan-epoch", &epoch.to_string());
    Ok(response)
}

/// Where a request belongs.
struct Place {
    session: SessionId,
    key_label: String,
    row: Row,
}

impl Place {
    fn of(session: SessionId, key_label: String) -> Self {
        Self { session, key_label, row: Row::Unknown }
    }
}

/// The session that a request means, by what it says first of: a key of its own, the response
/// that it goes on from, its cache key, its idempotency key. One that says nothing has a new one.
async fn session_of_request(
    edge: &Edge,
    route: &Route,
    principal: Principal,
    named: Option<Key>,
    repeat: Option<&Repeat>,
    create: &Create,
) -> Result<Place> {
    let derived =
        |text: &str, label| Place::of(SessionId::derive(&principal, &route.path, text), label);
    if let Some(key) = named {
        return Ok(derived(&key.text, key.label));
    }
    if let Some(id) = &create.previous_response_id
        && let Some(session) = edge.router.alias(principal, route, id).await?
    {
        return Ok(Place::of(session, String::new()));
    }
    Ok(match (&create.prompt_cache_key, repeat) {
        (Some(key), _) => derived(key, key::label(key)),
        // A repeat, on whatever node, meets the same session.
        (None, Some(repeat)) => derived(&repeat.session.text, repeat.session.label.clone()),
        (None, None) => {
            Place { row: Row::Missing, ..Place::of(SessionId::random(), String::new()) }
        }
    })
}

/// A request that has no session yet.
struct Waiting {
    create: Create,
    batch: Batch,
    /// What it counts for until then.
    share: Share,
}

/// A turn whose first step is known.
struct Asked {
    /// The upstream's, of its answer to the upgrade.
    headers: HeaderMap,
    epoch: Epoch,
    /// Decides between an answer and an error with a status of its own.
    first: Step,
    events: Events,
}

/// Asks the session's owner for a turn, and those who follow it where I2 allows that.
async fn ask(
    edge: &Edge,
    identity: &Identity,
    mut wish: Attach,
    waiting: Waiting,
) -> Result<Asked, RouteError> {
    let Waiting { create, batch, share } = waiting;
    let mut share = Some(share);
    let has_key = wish.turn_key.is_some();
    let mut may_repeat = may_be_asked_again(&create, has_key, wish.route.ledger);
    let mut tries = 0;
    loop {
        let mut attached = attach(edge, wish.clone()).await?;
        identity.stands()?;
        wish.row = Row::Unknown;
        let frame = Frame::Messages { batch: batch.clone(), first_seq: 0, ended: 0, create: 0 };
        attached.link.tx.send(frame);
        // From here on it counts for its session.
        drop(share.take());
        let cut = edge.drain.cut.clone();
        let shut_out = identity.grace_over();
        let mut events = Events::of(attached.link, create.lane.clone(), cut, shut_out);
        let first = events.next().await;
        tries += 1;
        let again = match first {
            // A planned transfer takes nothing with it that was not answered (I5).
            Step::Moved => true,
            Step::Lost => std::mem::take(&mut may_repeat),
            _ => false,
        };
        if !again || tries >= MAX_MOVES {
            let Attached { headers, epoch, .. } = attached;
            return Ok(Asked { headers, epoch, first, events });
        }
    }
}

/// Waits for an owner, but not longer than this node lives.
async fn attach(edge: &Edge, wish: Attach) -> Result<Attached, RouteError> {
    tokio::select! {
        biased;
        () = edge.drain.cut.cancelled() => Err(leaving().into()),
        attached = edge.router.attach(wish, TURN_PATIENCE) => attached,
    }
}

/// `GET …/{id}?stream=true&starting_after=N`: a response that runs, or has just ended, from
/// an event on. Everything else about a response is the upstream's to answer.
pub(super) async fn resume(edge: Arc<Edge>, route: Arc<Route>, mut request: Request) -> Response {
    let span = propagation::request("GET", &route.path);
    propagation::enter(&span, request.headers_mut());
    // Copies, because a request's body cannot be shared between threads.
    let (uri, headers) = (request.uri().clone(), request.headers().clone());
    let response = match resumed(&edge, &route, &uri, &headers).await {
        Ok(Some(response)) => response,
        Ok(None) => pass::to(edge, route, request).await,
        Err(error) => reply::route_error(&error),
    };
    propagation::answered(&span, response.status());
    response
}

/// None where the upstream is to be asked.
async fn resumed(
    edge: &Arc<Edge>,
    route: &Arc<Route>,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Option<Response>, RouteError> {
    let Some(again) = key::again(uri)? else { return Ok(None) };
    let identity = edge.auth.identify(headers).await?;
    let principal = identity.principal;
    let id = uri.path().rsplit_once('/').map_or("", |(_, id)| id);
    let Some(session) = session_of(edge, principal, route, id).await? else { return Ok(None) };
    let upgrade = Upgrade {
        path_and_query: route.path.clone(),
        headers: upgrade_headers(edge.forwarded_headers(headers)),
        subprotocols: Vec::new(),
    };
    let place = Place::of(session, String::new());
    let wish = Attach { reads: true, ..wish(edge, route, principal, place, upgrade) };
    let mut attached = attach(edge, wish).await?;
    let batch = Batch::one(&resume_event(id));
    attached.link.tx.send(Frame::Messages { batch, first_seq: 0, ended: 0, create: 0 });
    let (cut, shut_out) = (edge.drain.cut.clone(), identity.grace_over());
    let mut events = Events::of(attached.link, None, cut, shut_out);
    let first = events.next_of_response().await;
    if let Some(error) = failure(&first) {
        // What is not held here may be stored by the upstream.
        return Ok(Some(error).filter(|error| error.status() != StatusCode::NOT_FOUND));
    }
    if !begins(&first) {
        return Ok(None);
    }
    Ok(Some(sse::stream(first, events, again.after, edge.metrics.clone())))
}

/// The session that made a response. Its name is written just after the client was told of it, so
/// who asks at once is given a moment.
async fn session_of(
    edge: &Edge,
    principal: Principal,
    route: &Route,
    response_id: &str,
) -> Result<Option<SessionId>, Error> {
    const LOOKS: u32 = 4;
    const PAUSE: Duration = Duration::from_millis(50);

    let look = || edge.router.alias(principal, route, response_id);
    for _ in 1..LOOKS {
        let found = look().await?;
        if found.is_some() {
            return Ok(found);
        }
        sleep(spread(PAUSE)).await;
    }
    look().await
}

/// The attach of one HTTP request: it brings no cursor and knows no epoch.
fn wish(
    edge: &Edge,
    route: &Arc<Route>,
    principal: Principal,
    place: Place,
    upgrade: Upgrade,
) -> Attach {
    let Place { session, key_label, row } = place;
    Attach {
        session,
        row,
        principal,
        route: Arc::clone(route),
        key_label,
        upgrade,
        reads: false,
        last_seq: None,
        last_epoch: None,
        turn_key: None,
        min_epoch: Epoch::default(),
        client: edge.label(ClientKind::Http),
    }
}

/// Whether what is held of a response begins where the response did.
fn begins(first: &Step) -> bool {
    matches!(first, Step::Events(batch) if opening(batch) == Some(Stage::Created))
}

/// Headers that describe the body do not describe the upgrade that it becomes.
fn upgrade_headers(mut headers: HeaderMap) -> HeaderMap {
    for name in
        [CONTENT_TYPE, CONTENT_ENCODING, http::header::ACCEPT, http::header::ACCEPT_ENCODING]
    {
        headers.remove(name);
    }
    // Of this turn, not of the connection, which other turns share.
    headers.remove(key::IDEMPOTENCY);
    // What Codex says on its own upgrades; upstreams that know no such header ignore it.
    headers
        .entry("openai-beta")
        .or_insert(HeaderValue::from_static("responses_websockets=2026-02-06"));
    headers
}

/// The whole turn, answered with its final response object.
async fn collect(first: Step, mut events: Events) -> Response {
    #[derive(serde::Deserialize)]
    struct Last<'a> {
        #[serde(borrow)]
        response: &'a RawValue,
    }

    let mut step = first;
    loop {
        match step {
            Step::Events(batch) => {
                for message in batch.messages() {
                    if let Some(response) = error_response(&message) {
                        return response;
                    }
                    let last = ServerEvent::parse(&message).is_some_and(|e| e.stage.is_last());
                    if last && let Ok(last) = serde_json::from_slice::<Last<'_>>(&message.payload) {
                        return reply::json(200, last.response.get().to_owned());
                    }
                }
            }
            Step::Failed(error) | Step::Cut(error) => return events.broken_off(&error),
            Step::Lost => return events.broken_off(&lost()),
            Step::Moved => return events.broken_off(&moving()),
            Step::End => {
                let text = "the turn ended without a final response";
                return reply::error(&Error::new(Code::UpstreamUnavailable, text));
            }
        }
        step = events.next().await;
    }
}
