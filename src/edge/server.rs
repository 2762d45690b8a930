//! Accepts client connections and routes their requests.

use std::{future::pending, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{RawPathParams, Request},
    response::Response,
    routing::{any, get, post},
};
use futures_util::{
    TryFutureExt,
    future::{Either, ready},
};
use http::{HeaderValue, header::CONNECTION};
use hyper::{
    body::Incoming,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Edge, http as http_edge, hygiene, opaque, pass, patience::Patient, reply, responses, told,
    upgrade::Seat,
};
use crate::{
    config::{Profile, Route},
    error::{Blame, Code, Error},
    net::{self, TcpListener},
};

/// How long a full node waits before it looks again.
const FULL: Duration = Duration::from_millis(50);

/// Probes of a client connection that says nothing: a dead one is found within about a
/// minute and a half.
const KEEPALIVE: Duration = Duration::from_secs(45);

/// How long a connection may be silent between two requests, head of the second included. Longer
/// than balancers keep theirs (60 s): who closes first must be the one that sends.
const KEPT: Duration = Duration::from_secs(75);

/// Accepts clients until `stop`; connections that are open go on.
pub async fn serve(listener: TcpListener, edge: Arc<Edge>, stop: CancellationToken) {
    let service = TowerToHyperService::new(router(&edge));
    let text = "this node has as many clients as it may";
    let full = Error::new(Code::SessionUnavailable, text).blame(Blame::Us);
    let told_full = reply::bytes(&full);
    let clients = Arc::new(Semaphore::new(edge.limits.max_clients.min(Semaphore::MAX_PERMITS)));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most often: others may be closing theirs.
                tracing::warn!(%error, "accepting a client failed");
                sleep(FULL).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&clients).try_acquire_owned() else {
            tracing::warn!("as many clients as allowed; refusing one");
            edge.metrics.error(full.code, full.blame);
            // Not waited for: it fits into an empty socket buffer, or the client is no loss.
            drop(stream.try_write(&told_full));
            continue;
        };
        net::tune(&stream, KEEPALIVE);
        let (service, drain) = (service.clone(), edge.drain.closing.clone());
        let seat = Seat::new(permit);
        let begun = CancellationToken::new();
        let begins = begun.clone();
        let metrics = edge.metrics.clone();
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            begins.cancel();
            if let Err(error) = hygiene::check(&request) {
                let answer = reply::error(&error);
                told::answer(&metrics, &answer);
                return Either::Left(ready(Ok(last(answer))));
            }
            let is_last = hygiene::is_last(&request);
            request.extensions_mut().insert(seat.clone());
            let answer = service.call(request);
            let metrics = metrics.clone();
            Either::Right(answer.map_ok(move |answer| {
                told::answer(&metrics, &answer);
                if is_last { last(answer) } else { answer }
            }))
        });
        let head_timeout = edge.limits.upgrade_timeout;
        let write_timeout = edge.limits.write_timeout;
        edge.tracker.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                // From the end of one answer to the end of the next head: one that trickles in
                // holds no more than a connection that says nothing.
                .header_read_timeout(KEPT)
                .max_buf_size(64 * 1024)
                .serve_connection(TokioIo::new(Patient::new(stream, write_timeout)), service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            let served = async {
                tokio::select! {
                    result = connection.as_mut() => drop(result),
                    () = drain.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        drop(connection.await);
                    }
                }
            };
            tokio::select! {
                () = served => {}
                () = unless_begun(head_timeout, begun) => {}
            }
        });
    }
}

/// Ends when a new client has not sent a whole head in time.
async fn unless_begun(limit: Duration, begun: CancellationToken) {
    if timeout(limit, begun.cancelled()).await.is_ok() {
        pending::<()>().await;
    }
}

/// The answer after which the connection ends.
fn last(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn router(edge: &Arc<Edge>) -> Router {
    let mut router = Router::new();
    for route in edge.routes.iter() {
        router = match route.profile {
            Profile::Responses => router
                .route(&route.path, responses_route(edge, route))
                .route(&format!("{}/{{response}}", route.path), response_route(edge, route)),
            Profile::Opaque => router.route(&route.path, opaque_route(edge, route)),
        };
    }
    let passing = Arc::clone(edge);
    router
        .method_not_allowed_fallback(|| ready(reply::bad_method()))
        .fallback(move |request: Request| pass::beside(Arc::clone(&passing), request))
}

fn responses_route(edge: &Arc<Edge>, route: &Arc<Route>) -> axum::routing::MethodRouter {
    let (e1, r1) = (Arc::clone(edge), Arc::clone(route));
    let (e2, r2) = (Arc::clone(edge), Arc::clone(route));
    let upgrade =
        move |request: Request| responses::handle(Arc::clone(&e1), Arc::clone(&r1), request);
    let create =
        move |request: Request| http_edge::create(Arc::clone(&e2), Arc::clone(&r2), request);
    get(upgrade).merge(post(create))
}

fn response_route(edge: &Arc<Edge>, route: &Arc<Route>) -> axum::routing::MethodRouter {
    let (e1, r1) = (Arc::clone(edge), Arc::clone(route));
    let (e2, r2) = (Arc::clone(edge), Arc::clone(route));
    let resume =
        move |request: Request| http_edge::resume(Arc::clone(&e1), Arc::clone(&r1), request);
    let pass = move |request: Request| pass::to(Arc::clone(&e2), Arc::clone(&r2), request);
    get(resume).fallback(pass)
}

fn opaque_route(edge: &Arc<Edge>, route: &Arc<Route>) -> axum::routing::MethodRouter {
    let (edge, route) = (Arc::clone(edge), Arc::clone(route));
    any(
        move |params: RawPathParams,
              request: Request|
              -> futures_util::future::BoxFuture<'static, Response> {
            Box::pin(opaque::handle(Arc::clone(&edge), Arc::clone(&route), params, request))
        },
    )
}
