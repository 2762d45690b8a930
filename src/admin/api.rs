//! The JSON API.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{
        ConnectInfo, Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{
    Admin, Failure, access,
    listener::Caller,
    view::{DrainAnswer, DrainOrder, RingInfo, SessionPage, SessionQuery, SessionStory},
};
use crate::error::{Code, Error};

pub(super) async fn ring(State(admin): State<Admin>) -> Json<RingInfo> {
    Json(admin.view.ring().await)
}

pub(super) async fn sessions(
    State(admin): State<Admin>,
    query: Result<Query<SessionQuery>, QueryRejection>,
) -> Result<Json<SessionPage>, Failure> {
    let Query(query) =
        query.map_err(|fault| Failure::new(Code::InvalidRequest, fault.body_text()))?;
    let mut sessions = admin.view.sessions(&query).await?;
    sessions.truncate(query.limit());
    let full = sessions.len() == query.limit();
    let next = sessions.last().filter(|_| full).map(|last| last.id.clone());
    Ok(Json(SessionPage { sessions, next }))
}

pub(super) async fn session(
    State(admin): State<Admin>,
    Path(id): Path<String>,
) -> Result<Json<SessionStory>, Failure> {
    let (found, story) = tokio::join!(admin.view.session(&id), admin.view.story(&id));
    let found = found?.map(|session| Json(SessionStory { session, story }));
    found.ok_or_else(|| Failure::new(Code::NotFound, "There is no such session."))
}

pub(super) async fn drain(
    State(admin): State<Admin>,
    peer: Option<Extension<ConnectInfo<Caller>>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    const ACTION: &str = "drain";

    let peer = peer.map(|Extension(ConnectInfo(Caller(peer)))| peer);
    let actor = if same_site(&headers) {
        access::judge(&admin.token, &headers, peer).await
    } else {
        Err(Error::new(Code::Forbidden, "A page of another site may not drain this node."))
    };
    if let Err(error) = &actor {
        access::record(ACTION, &actor, peer, "denied");
        return Err(Failure(error.clone()));
    }
    let order = match body {
        Ok(body) if body.is_empty() => Ok(DrainOrder::default()),
        Ok(body) => serde_json::from_slice(&body).map_err(|fault| fault.to_string()),
        Err(fault) => Err(fault.body_text()),
    };
    let order = order.map_err(|fault| {
        access::record(ACTION, &actor, peer, "invalid");
        Failure::new(Code::InvalidRequest, fault)
    })?;
    let answer = admin.view.drain(order).await;
    access::record(ACTION, &actor, peer, answer.as_str());
    let status = match answer {
        DrainAnswer::Accepted => StatusCode::ACCEPTED,
        DrainAnswer::Already | DrainAnswer::Tightened => StatusCode::OK,
        DrainAnswer::LastActive | DrainAnswer::Refused => StatusCode::CONFLICT,
    };
    Ok((status, Json(json!({ "drain": answer }))).into_response())
}

/// Whether a browser, if it is one, sends this from our own page. An operator's browser
/// must not be a way for any page it visits to drain the nodes it can reach.
fn same_site(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let origin_is_ours = text("origin").is_none_or(|origin| {
        let host = text(header::HOST.as_str()).unwrap_or_default();
        origin.split_once("://").is_some_and(|(_, from)| from == host)
    });
    let fetch_is_ours =
        text("sec-fetch-site").is_none_or(|site| matches!(site, "same-origin" | "none"));
    origin_is_ours && fetch_is_ours
}

pub(super) async fn not_found() -> Failure {
    Failure::new(Code::NotFound, "There is nothing at this path of the admin listener.")
}

/// The router adds the header that names the methods.
pub(super) async fn no_such_method() -> impl IntoResponse {
    let text = "This path does not have this method; the Allow header names those that it has.";
    (StatusCode::METHOD_NOT_ALLOWED, Failure::new(Code::InvalidRequest, text))
}
