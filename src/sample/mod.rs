//! The sample upstream: something to try, test and measure ringspan with.
//!
//! It is built on axum, hyper and tungstenite and shares no wire code with the rest of the
//! crate, so that it is an independent party to test against.
//!
//! # Endpoints
//!
//! | Path | Does |
//! |---|---|
//! | `/echo?greet=N` | WebSocket: N text messages first, then echoes text, binary, close |
//! | `/stream?frames=N&bytes=B&delay_ms=D` | WebSocket: N text frames of B bytes, D ms apart, then echoes |
//! | `/v1/responses` | Responses API: WebSocket upgrade, or `POST` (SSE with `stream:true`, else JSON) |
//! | `/v1/models` | a list of one model |
//! | `/backend-api/codex/…` | the same two under the path of `ChatGPT` accounts |
//! | `/_sample/connections` | JSON history of connections and their creates, for checkers |
//! | `/_sample/health` | 200 once it serves |
//!
//! A response id lives on the connection that made it, as the latest of its lane; with
//! `store:true` it is also known everywhere. A request by HTTP is a connection of its own.
//!
//! # Replies
//!
//! `turn N of conversation D: you said "…"`, or `the tool said "…"` after tool output. N
//! counts the user messages of the whole conversation, D is the first 16 hex digits of the
//! SHA-256 over every user text (`u` U+001F text U+001E) and tool output (`t` U+001F text
//! U+001E) in order: whoever loses, repeats or reorders history changes it. A tool call
//! without output, or output without its call, is refused with 400 as upstreams do.
//!
//! # Directives
//!
//! In the last user message. The first row only paces and also holds after tool output;
//! the others act on the turn that brought the message.
//!
//! | Directive | Effect |
//! |---|---|
//! | `[deltas=20]` `[bytes=40]` `[delay=5ms]` | number of text deltas, bytes in each, pause before each |
//! | `[tool=shell:echo hi]` | calls the offered tool of that name, else the first that runs commands |
//! | `[incomplete]` | ends with `response.incomplete`, reason `max_output_tokens` |
//! | `[hang]` | nothing after `response.in_progress`, until interrupted or left |
//! | `[fail=500]` | refused with that status before anything was created |
//! | `[error=server_is_overloaded]` | `response.failed` with that code after `response.created` |
//! | `[close=1011]` `[close_after=3]` | closes with that code in mid-turn, after so many deltas; 0 drops the socket |
//! | `[reset]` | as `[close]`, by a reset |
//! | `[close_first]` | with `[close]` or `[reset]`: before any event of the turn |
//! | `[lie=foreign]` | events of an unknown response id around its own, a terminal one included |
//! | `[lie=duplicate]` | the terminal event twice; plain `[lie]` does both |
//! | `[once]` | the rows above misbehave only the first time this conversation is seen |
//!
//! # Steering
//!
//! `response.steer` is accepted while its response runs: that ends as `response.incomplete`,
//! reason `steered`, and a successor answers the steering text. `response.interrupt` ends a
//! response as `response.incomplete`, reason `interrupted`; one that comes too late is
//! ignored, for it raced the terminal event.

mod conversation;
mod directives;
mod echo;
mod events;
mod history;
mod lanes;
mod post;
mod reply;
mod request;
mod socket;
#[cfg(test)]
mod tests;
mod tools;
mod turn;
mod websocket;

use std::{future::Future, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, Query, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use history::History;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use request::Refusal;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use self::conversation::{Seen, Store};
use crate::{
    config::Secret,
    net::{TcpListener, TcpStream},
};

/// Largest body and message, bytes.
const MAX_MESSAGE_BYTES: usize = 128 << 20;
/// How long connections get to end once the server stops.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Pause after a failed accept (no file descriptors left), so that it does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(20);
/// `created_at` of a response made at start, seconds: fixed, as nothing here reads a wall clock.
const CREATED_AT_BASE: u64 = 1_767_225_600;

/// How the sample upstream behaves.
#[derive(Clone, Debug)]
pub struct SampleOptions {
    /// Who is let in, everywhere but under `/_sample`.
    pub auth: SampleAuth,
    /// Model named when a request names none, and in the `openai-model` header of an upgrade.
    /// Codex warns its user if it asked for another one.
    pub model: String,
    /// Age at which an idle Responses connection is ended with
    /// `websocket_connection_limit_reached`; a running turn ends first.
    pub max_connection_age: Option<Duration>,
    /// Whether no turn is waited for: at that age the connection ends with all its turns.
    pub cut_at_age: bool,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self {
            auth: SampleAuth::Open,
            model: "gpt-5.5".to_owned(),
            max_connection_age: None,
            cut_at_age: false,
        }
    }
}

/// The credential that requests must carry.
#[derive(Clone, Debug)]
pub enum SampleAuth {
    /// None.
    Open,
    /// `Authorization: Bearer` with any value.
    AnyBearer,
    /// `Authorization: Bearer` with this value.
    Bearer(Secret),
}

impl SampleAuth {
    fn admits(&self, headers: &axum::http::HeaderMap) -> bool {
        let bearer = headers
            .get(axum::http::header::AUTHORIZATION)
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        match (self, bearer) {
            (Self::Open, _) => true,
            (Self::AnyBearer, Some(token)) => !token.is_empty(),
            (Self::Bearer(secret), Some(token)) => secret.matches(token),
            (_, None) => false,
        }
    }
}

/// What all connections share.
struct Sample {
    options: SampleOptions,
    history: History,
    /// Responses of `store:true`.
    stored: Mutex<Store>,
    /// Conversations that misbehaved with `[once]`.
    seen: Mutex<Seen>,
    started: Instant,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Sample {
    fn created_at(&self) -> u64 {
        CREATED_AT_BASE + self.started.elapsed().as_secs()
    }
}

/// Serves the sample upstream on `listener` until `shutdown` resolves, then drops what is
/// still open. Failed accepts are retried, so this does not fail once it runs.
/// Dropping the future stops accepting and leaves running connections to the runtime.
pub async fn serve(
    listener: TcpListener,
    options: SampleOptions,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let started = Instant::now();
    let sample = Arc::new(Sample {
        options,
        history: History::new(started),
        stored: Mutex::default(),
        seen: Mutex::default(),
        started,
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });
    let service = router(&sample);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        // Latency over fewer packets; a socket that refuses the option still works.
        stream.set_nodelay(true).ok();
        sample.tasks.spawn(connection(stream, service.clone(), sample.stop.clone()));
    }
    sample.stop.cancel();
    sample.tasks.close();
    tokio::time::timeout(STOP_GRACE, sample.tasks.wait()).await.ok();
    Ok(())
}

/// HTTP/1 on one accepted socket, until it ends, is upgraded or the server stops.
async fn connection(stream: TcpStream, service: Router, stop: CancellationToken) {
    let service = hyper::service::service_fn(move |request: hyper::Request<_>| {
        service.clone().oneshot(request.map(Body::new))
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // An error here is a client that left or spoke no HTTP: its own business.
    stop.run_until_cancelled(serving).await;
}

fn router(sample: &Arc<Sample>) -> Router {
    let responses = get(websocket::upgrade).post(post::create);
    Router::new()
        .route("/echo", any(echo::echo))
        .route("/stream", any(echo::stream))
        .route("/v1/responses", responses.clone())
        .route("/backend-api/codex/responses", responses)
        .route("/v1/models", get(models))
        .route("/backend-api/codex/models", get(models))
        .layer(middleware::from_fn_with_state(Arc::clone(sample), authorize))
        .route("/_sample/connections", get(connections))
        .route("/_sample/health", get(|| async { "ok\n" }))
        .fallback(|| async {
            Refusal::new(404, "not_found", "no such path, see sample-upstream --help")
        })
        .layer(DefaultBodyLimit::max(MAX_MESSAGE_BYTES))
        .with_state(Arc::clone(sample))
}

async fn authorize(State(sample): State<Arc<Sample>>, request: Request, next: Next) -> Response {
    if sample.options.auth.admits(request.headers()) {
        next.run(request).await
    } else {
        Refusal::new(401, "invalid_api_key", "Incorrect API key provided.").into_response()
    }
}

async fn models(State(sample): State<Arc<Sample>>) -> Response {
    let model = serde_json::json!({
        "id": sample.options.model, "object": "model",
        "created": CREATED_AT_BASE, "owned_by": "ringspan-sample",
    });
    // `models` is what Codex reads: an empty list leaves it with its built-in ones.
    axum::Json(serde_json::json!({ "object": "list", "data": [model], "models": [] }))
        .into_response()
}

/// Narrows the history.
#[derive(serde::Deserialize)]
struct HistoryQuery {
    /// Only connections that are open (true) or closed (false).
    open: Option<bool>,
}

async fn connections(
    State(sample): State<Arc<Sample>>,
    Query(query): Query<HistoryQuery>,
) -> Response {
    axum::Json(sample.history.to_json(query.open)).into_response()
}
