//! Paths that are the upstream's alone to answer: stored responses, models, files.

use std::sync::Arc;

use axum::{body::Body, extract::Request, response::Response};
use http::StatusCode;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};

use super::{Edge, hygiene, lent, reply};
use crate::{
    config::{Profile, Route},
    error::{Code, Error},
    ids::Principal,
    upstream::HttpError,
};

/// A path that no route has.
pub(super) async fn beside(edge: Arc<Edge>, request: Request) -> Response {
    match upstream_of(&edge, request.uri().path()) {
        Some(route) => to(edge, route, request).await,
        None => reply::error(&Error::new(Code::NotFound, "no route has this path")),
    }
}

/// A path of this route's upstream.
pub(super) async fn to(edge: Arc<Edge>, route: Arc<Route>, request: Request) -> Response {
    if reads_as_turn(&edge, request.uri().path()) {
        let text = "this path could be read as a route's: write it as the route does";
        return reply::error(&Error::new(Code::InvalidRequest, text));
    }
    let identified = edge.auth.identify(request.headers());
    let identity = match identified.await {
        Ok(identity) => identity,
        Err(error) => return reply::error(&error),
    };
    let key = endpoint_key(&edge, &route, identity.principal, request.uri().path()).await;
    let mut request = request.map(|body| UnsyncBoxBody::new(body.map_err(Into::into)));
    *request.headers_mut() = edge.forwarded_headers(request.headers());
    match edge.http.forward(&route.upstream, &key, request).await {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            let mut response = Response::new(lent::body(Body::new(body), &identity));
            *response.status_mut() = match parts.status {
                StatusCode::UPGRADE_REQUIRED => StatusCode::BAD_GATEWAY,
                status => status,
            };
            *response.headers_mut() =
                crate::wire::handshake::forwardable_response_headers(&parts.headers);
            response
        }
        Err(HttpError::Dial(error)) => reply::error(&error.told()),
        Err(HttpError::Timeout(_)) => {
            reply::error(&Error::new(Code::UpstreamTimeout, "the upstream did not answer in time"))
        }
        Err(HttpError::Unavailable(reason)) => {
            tracing::warn!(upstream = %route.upstream.name, reason, "passing a request on failed");
            reply::error(&Error::new(
                Code::UpstreamUnavailable,
                "the upstream could not be reached",
            ))
        }
    }
}

/// What decides between several endpoints: a response that is named is with the session that
/// made it, everything else stays together for a principal.
async fn endpoint_key(edge: &Edge, route: &Route, principal: Principal, path: &str) -> [u8; 16] {
    let id = below(route, path).and_then(|rest| rest.split('/').next()).filter(|id| !id.is_empty());
    let Some(id) = id.filter(|_| route.upstream.endpoints.len() > 1) else { return principal.0 };
    let session = edge.router.alias(principal, route, id).await;
    session.ok().flatten().map_or(principal.0, |session| session.0)
}

/// Whether an upstream could take a path that no route has for that of one, or for its own, and run
/// a turn that no limit and no ledger knows of.
fn reads_as_turn(edge: &Edge, path: &str) -> bool {
    let known = responses_routes(edge).flat_map(|route| {
        let own = route.upstream.endpoints.iter().map(|endpoint| endpoint.url.path());
        own.filter(|own| *own != "/").chain([&*route.path])
    });
    hygiene::reads_as(path, known)
}

fn responses_routes(edge: &Edge) -> impl Iterator<Item = &Arc<Route>> {
    edge.routes.iter().filter(|route| route.profile == Profile::Responses)
}

/// The responses route whose upstream is meant: the one that the path is below, else the one that
/// shares the most of its parent's path.
fn upstream_of(edge: &Edge, path: &str) -> Option<Arc<Route>> {
    let shared = |route: &&Arc<Route>| {
        let parent = route.path.rsplit_once('/').map_or("", |(parent, _)| parent);
        path.strip_prefix(parent).filter(|rest| rest.starts_with('/')).map(|_| parent.len())
    };
    let owner = responses_routes(edge)
        .filter(|route| below(route, path).is_some())
        .max_by_key(|route| literals(route));
    let beside = || responses_routes(edge).filter(|r| shared(r).is_some()).max_by_key(shared);
    owner.or_else(beside).cloned()
}

/// What follows a route's own parts in a path, whole parts only.
fn below<'a>(route: &Route, path: &'a str) -> Option<&'a str> {
    let mut rest = path;
    for named in route.path.split('/').skip(1) {
        rest = rest.strip_prefix('/')?;
        let (part, behind) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let is_any = named.starts_with('{') && !part.is_empty();
        if part != named && !is_any {
            return None;
        }
        rest = behind;
    }
    rest.strip_prefix('/')
}

/// Which of two patterns a path belongs to that fits both: as for the router, a literal part wins.
fn literals(route: &Route) -> Vec<bool> {
    route.path.split('/').map(|part| !part.starts_with('{')).collect()
}
