//! The Responses API over HTTP: one turn a request, as SSE or as JSON, on the same session
//! and the same link as over WebSocket. Other paths pass through to the upstream.

use std::{
    convert::Infallible,
    io::Read,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    response::Response,
};
use futures_util::Stream;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::{BodyExt, Limited, combinators::UnsyncBoxBody};
use serde_json::{Map, Value, value::RawValue};
use tracing::{Instrument, field::Empty};

use super::{Edge, key, reply};
use crate::{
    config::Route,
    error::{Code, Error, Result},
    ids::{Epoch, SessionId},
    link::{Frame, Link},
    route::RouteError,
    session::{
        Attach, ClientKind,
        event::{ClientEvent, ServerEvent, Stage, error_event},
    },
    store::AliasKind,
    telemetry::propagation,
    upstream::{HttpError, Upgrade},
    wire::{Batch, Kind, Message},
};

/// Events that the API sends over WebSocket only; over HTTP they are headers, and the SDKs'
/// stream helpers fail on them.
const WEBSOCKET_ONLY: [&str; 3] =
    ["response.metadata", "codex.rate_limits", "responsesapi.websocket_timing"];

/// Owners that one request follows.
const MAX_MOVES: u32 = 3;

/// One turn.
pub(super) async fn create(edge: Arc<Edge>, route: Arc<Route>, mut request: Request) -> Response {
    let span = tracing::info_span!("request", route = %route.path, session = Empty);
    propagation::enter(&span, request.headers_mut());
    match turn(&edge, &route, request).instrument(span).await {
        Ok(response) => response,
        Err(error) => edge.refuse_route(&error),
    }
}

async fn turn(
    edge: &Arc<Edge>,
    route: &Arc<Route>,
    request: Request,
) -> Result<Response, RouteError> {
    if edge.drain.closing.is_cancelled() {
        return Err(Error::new(Code::NodeDraining, "this node is leaving; retry elsewhere").into());
    }
    let principal = edge.auth.principal(request.headers())?;
    let named = key::responses(request.headers())?;
    let (parts, body) = request.into_parts();
    let bytes = read_body(&parts.headers, body, edge.limits.max_message_bytes).await?;
    let mut fields: Map<String, Value> = serde_json::from_slice(&bytes)
        .map_err(|_| Error::new(Code::InvalidRequest, "the body is not a JSON object"))?;
    drop(bytes);
    let stream = fields.get("stream").and_then(Value::as_bool).unwrap_or(false);
    fields.insert("type".to_owned(), "response.create".into());
    fields.insert("stream".to_owned(), true.into());
    let message = Message { kind: Kind::Text, payload: Value::Object(fields).to_string().into() };
    let ClientEvent::Create(create) = ClientEvent::parse(&message.payload)? else {
        return Err(Error::new(Code::Internal, "the request was not understood").into());
    };
    let (session, key_label) = if let Some(key) = named {
        (SessionId::derive(&principal, &route.path, &key.text), key.label)
    } else {
        let alias = match &create.previous_response_id {
            Some(id) => edge.router.alias(principal, AliasKind::Response, id).await?,
            None => None,
        };
        match (alias, create.prompt_cache_key) {
            (Some(session), _) => (session, String::new()),
            (None, Some(key)) => (SessionId::derive(&principal, &route.path, &key), key),
            (None, None) => (SessionId::random(), String::new()),
        }
    };
    tracing::Span::current().record("session", tracing::field::display(session));
    let upgrade = Upgrade {
        path_and_query: key::forwarded_path(&parts.uri),
        headers: upgrade_headers(edge.forwarded_headers(&parts.headers)),
        subprotocols: Vec::new(),
    };
    let batch = Batch::one(&message);
    let mut tries = 0;
    let (attached, first, events) = loop {
        let mut attached = edge
            .router
            .attach(Attach {
                session,
                principal,
                route: Arc::clone(route),
                key_label: key_label.clone(),
                upgrade: upgrade.clone(),
                last_seq: None,
                last_epoch: None,
                min_epoch: Epoch::default(),
                client: edge.label(ClientKind::Http),
            })
            .await?;
        let frame = Frame::Messages { batch: batch.clone(), first_seq: 0, ended: 0 };
        attached.link.tx.send(frame);
        let mut events = Events { link: attached.link, over: false };
        // The first event decides between an answer and an error with a status of its own.
        let first = events.next().await;
        tries += 1;
        // A planned transfer takes nothing with it that was not answered (I5): ask the heir.
        if !matches!(first, Step::Moved) || tries >= MAX_MOVES {
            break ((attached.headers, attached.epoch), first, events);
        }
    };
    drop(batch);
    if let Some(error) = failure(&first) {
        return Ok(error);
    }
    let mut response = if stream { sse(first, events) } else { collect(first, events).await };
    let (headers, epoch) = attached;
    for (name, value) in &headers {
        response.headers_mut().entry(name).or_insert(value.clone());
    }
    reply::put(&mut response, "ringspan-session", &session.to_string());
    reply::put(&mut response, "ringspan-epoch", &epoch.to_string());
    Ok(response)
}

/// The body, inflated and bounded.
async fn read_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes> {
    let too_large = || Error::new(Code::FrameTooLarge, "the body is larger than this node accepts");
    let bytes = Limited::new(body, limit).collect().await.map_err(|_| too_large())?.to_bytes();
    match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(bytes),
        Some(b"zstd") => {
            let bad = || Error::new(Code::InvalidRequest, "the body is not valid zstd");
            let decoder = ruzstd::decoding::StreamingDecoder::new(&bytes[..]).map_err(|_| bad())?;
            let mut plain = Vec::new();
            let read = decoder.take(limit as u64 + 1).read_to_end(&mut plain).map_err(|_| bad())?;
            if read > limit { Err(too_large()) } else { Ok(plain.into()) }
        }
        Some(_) => {
            Err(Error::new(Code::InvalidRequest, "content-encoding must be identity or zstd"))
        }
    }
}

/// Headers that describe the body do not describe the upgrade that it becomes.
fn upgrade_headers(mut headers: HeaderMap) -> HeaderMap {
    for name in
        [CONTENT_TYPE, CONTENT_ENCODING, http::header::ACCEPT, http::header::ACCEPT_ENCODING]
    {
        headers.remove(name);
    }
    // What Codex says on its own upgrades; upstreams that know no such header ignore it.
    headers
        .entry("openai-beta")
        .or_insert(HeaderValue::from_static("responses_websockets=2026-02-06"));
    headers
}

/// The events of one turn, one after another.
struct Events {
    link: Link,
    over: bool,
}

/// One step of a turn.
enum Step {
    Events(Batch),
    Failed(Error),
    /// The session has a new owner, and the old one had not taken the request.
    Moved,
    /// The turn has ended.
    End,
}

impl Events {
    async fn next(&mut self) -> Step {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        loop {
            if self.over {
                return Poll::Ready(Step::End);
            }
            let Poll::Ready(frame) = self.link.rx.poll_recv(cx) else { return Poll::Pending };
            let lost = || {
                Error::new(
                    Code::OutcomeUnknown,
                    "the node that ran this turn was lost; whether it finished is unknown",
                )
            };
            let step = match frame {
                Some(Frame::Messages { batch, ended, .. }) => {
                    self.over = ended > 0;
                    return Poll::Ready(Step::Events(batch));
                }
                Some(Frame::Ping(_) | Frame::Pong(_)) => continue,
                Some(Frame::Failed(error)) => Step::Failed(error),
                Some(Frame::Moved) => Step::Moved,
                Some(Frame::Close(_)) | None => Step::Failed(lost()),
            };
            self.over = true;
            return Poll::Ready(step);
        }
    }
}

fn moving() -> Error {
    Error::new(Code::OwnerMoving, "the session keeps moving; retry")
}

/// The response to a turn that failed before anything else was said.
fn failure(first: &Step) -> Option<Response> {
    match first {
        Step::Failed(error) => Some(reply::error(error)),
        Step::Moved => Some(reply::error(&moving())),
        Step::End => {
            let text = "the turn ended without a word";
            Some(reply::error(&Error::new(Code::UpstreamUnavailable, text)))
        }
        Step::Events(batch) => batch.messages().next().and_then(|message| error_response(&message)),
    }
}

/// An `error` event as an HTTP response.
fn error_response(message: &Message) -> Option<Response> {
    if ServerEvent::parse(message)?.stage != Stage::Error {
        return None;
    }
    let mut event: Value = serde_json::from_slice(&message.payload).ok()?;
    let status = event["status"].as_u64().and_then(|status| u16::try_from(status).ok());
    let status = status.filter(|status| (400..600).contains(status)).unwrap_or(502);
    let body = serde_json::json!({ "error": event["error"].take() }).to_string();
    let mut response = reply::json(status, body);
    if let Some(after) = event["headers"]["retry-after"].as_str()
        && let Ok(after) = HeaderValue::from_str(after)
    {
        response.headers_mut().insert(RETRY_AFTER, after);
    }
    Some(response)
}

/// The events as they come.
fn sse(first: Step, events: Events) -> Response {
    let mut response = Response::new(Body::from_stream(Sse { first: Some(first), events }));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

struct Sse {
    first: Option<Step>,
    events: Events,
}

impl Stream for Sse {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let step = match self.first.take() {
            Some(step) => step,
            None => match self.events.poll(cx) {
                Poll::Ready(step) => step,
                Poll::Pending => return Poll::Pending,
            },
        };
        Poll::Ready(match step {
            Step::Events(batch) => Some(Ok(sse_text(&batch))),
            Step::Failed(error) => Some(Ok(sse_text(&Batch::one(&error_event(&error, None))))),
            Step::Moved => Some(Ok(sse_text(&Batch::one(&error_event(&moving(), None))))),
            Step::End => None,
        })
    }
}

/// Only the name of an event is read; its data goes out as it came.
fn sse_text(batch: &Batch) -> Bytes {
    #[derive(serde::Deserialize)]
    struct Name<'a> {
        #[serde(borrow, default)]
        r#type: std::borrow::Cow<'a, str>,
    }

    let mut out = Vec::with_capacity(batch.weight() + 64 * batch.len() as usize);
    for message in batch.messages() {
        if let Ok(Name { r#type: name }) = serde_json::from_slice(&message.payload) {
            if WEBSOCKET_ONLY.contains(&&*name) {
                continue;
            }
            out.extend_from_slice(b"event: ");
            out.extend_from_slice(name.as_bytes());
            out.push(b'\n');
        }
        // JSON text may be spread over lines; each of them is a data line.
        for line in message.payload.split(|byte| *byte == b'\n') {
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        out.push(b'\n');
    }
    out.into()
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
            Step::Failed(error) => return reply::error(&error),
            Step::Moved => return reply::error(&moving()),
            Step::End => {
                let text = "the turn ended without a final response";
                return reply::error(&Error::new(Code::UpstreamUnavailable, text));
            }
        }
        step = events.next().await;
    }
}

/// Every other path of an upstream.
pub(super) async fn pass(edge: Arc<Edge>, request: Request) -> Response {
    let Some(route) = upstream_of(&edge, request.uri().path()) else {
        return edge.refuse(&Error::new(Code::NotFound, "no route has this path"));
    };
    if let Err(error) = edge.auth.principal(request.headers()) {
        return edge.refuse(&error);
    }
    let mut request = request.map(|body| UnsyncBoxBody::new(body.map_err(Into::into)));
    if edge.auth.consumes_credential() {
        request.headers_mut().remove(http::header::AUTHORIZATION);
    }
    match edge.http.forward(&route.upstream, request).await {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            let mut response = Response::new(Body::new(body));
            *response.status_mut() = match parts.status {
                StatusCode::UPGRADE_REQUIRED => StatusCode::BAD_GATEWAY,
                status => status,
            };
            *response.headers_mut() =
                crate::wire::handshake::forwardable_response_headers(&parts.headers);
            response
        }
        Err(HttpError::Timeout(_)) => {
            edge.refuse(&Error::new(Code::UpstreamTimeout, "the upstream did not answer in time"))
        }
        Err(HttpError::Unavailable(reason)) => {
            tracing::warn!(upstream = %route.upstream.name, reason, "passing a request on failed");
            edge.refuse(&Error::new(Code::UpstreamUnavailable, "the upstream could not be reached"))
        }
    }
}

/// The responses route whose path shares the most with this one: its upstream is meant.
fn upstream_of<'a>(edge: &'a Edge, path: &str) -> Option<&'a Arc<Route>> {
    let shared = |route: &&Arc<Route>| {
        let parent = route.path.rsplit_once('/').map_or("", |(parent, _)| parent);
        path.strip_prefix(parent).filter(|rest| rest.starts_with('/')).map(|_| parent.len())
    };
    let responses = |route: &&Arc<Route>| route.profile == crate::config::Profile::Responses;
    edge.routes.iter().filter(responses).filter(|route| shared(route).is_some()).max_by_key(shared)
}
