//! The admin listener: health, metrics, the status page and its API.
//!
//! It is meant for operators and probes inside the cluster: whoever reaches it may read. What
//! it can change is one thing, a drain, and that takes the admin token, or without one a caller
//! on the node's own machine.

pub(crate) mod access;
mod api;
pub mod client;
mod events;
mod health;
mod listener;
mod page;
pub mod terminal;
pub mod view;

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderValue, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio_util::sync::CancellationToken;
pub use view::NodeView;

use crate::{
    config::AdminToken,
    error::{Code, Error},
    net::TcpListener,
    telemetry::Metrics,
};

/// How long a shutdown waits for answers that are under way.
const LINGER: Duration = Duration::from_secs(2);

/// What the handlers share.
#[derive(Clone)]
struct Admin {
    view: Arc<dyn NodeView>,
    metrics: Metrics,
    feed: Arc<events::Feed>,
    token: Arc<AdminToken>,
}

/// Answers on `listener` until `shutdown`, and then for a short while what is under way.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    view: Arc<dyn NodeView>,
    metrics: Metrics,
    token: AdminToken,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let router = router(view, metrics, token, shutdown.clone());
    let service = router.into_make_service_with_connect_info::<listener::Caller>();
    let server = axum::serve(listener::of(listener), service)
        .with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let deadline = async {
        shutdown.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        ended = server.into_future() => ended,
        () = deadline => Ok(()),
    }
}

/// All routes of the listener.
fn router(
    view: Arc<dyn NodeView>,
    metrics: Metrics,
    token: AdminToken,
    shutdown: CancellationToken,
) -> Router {
    let feed = Arc::new(events::Feed::new(shutdown));
    let token = Arc::new(token);
    let refuse_rebound = middleware::from_fn_with_state(Arc::clone(&token), access::refuse_rebound);
    let api = Router::new()
        .route("/api/v1/ring", get(api::ring))
        .route("/api/v1/sessions", get(api::sessions))
        .route("/api/v1/sessions/{id}", get(api::session))
        .route("/api/v1/events", get(events::subscribe))
        .route("/api/v1/drain", post(api::drain))
        .route_layer(refuse_rebound);
    Router::new()
        .route("/", get(page::index))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .merge(api)
        .method_not_allowed_fallback(api::no_such_method)
        .fallback(api::not_found)
        .with_state(Admin { view, metrics, feed, token })
}

/// A failure in the form that all of ringspan's HTTP answers share.
struct Failure(Error);

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Error::new(code, message))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let status = axum::http::StatusCode::from_u16(error.code.status())
            .unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::Json(serde_json::json!({ "error": error.body() }));
        let mut response = (status, body).into_response();
        if let Some(wait) = error.retry_after() {
            let wait = HeaderValue::from(wait.as_secs());
            response.headers_mut().insert(header::RETRY_AFTER, wait);
        }
        if error.code == Code::NotAuthorized {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

#[cfg(test)]
mod tests;
