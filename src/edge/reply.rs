//! HTTP answers that are ours, in the one shape of all errors.

use axum::{body::Body, response::Response};
use http::{
    HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER, SEC_WEBSOCKET_VERSION, WWW_AUTHENTICATE},
};
use tracing::Span;

use super::told::Told;
use crate::{
    error::{Code, Error},
    route::RouteError,
    telemetry::propagation,
    upstream::{self, Refusal},
};

/// The body of every failure.
fn document(error: &Error) -> String {
    serde_json::json!({ "error": error.body() }).to_string()
}

/// A failure with a status that may be another one than its code's.
fn failed(status: u16, error: &Error) -> Response {
    let mut response = json(status, document(error));
    response.extensions_mut().insert(Told::from(error));
    response
}

/// A failure as an HTTP response.
pub(super) fn error(error: &Error) -> Response {
    let mut response = failed(error.code.status(), error);
    let headers = response.headers_mut();
    if let Some(after) = error.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
    }
    if error.code == Code::NotAuthorized {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The same for a connection of which nothing is read: the whole answer, after which it ends.
pub(super) fn bytes(error: &Error) -> Vec<u8> {
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let after = error.retry_after();
    let after = after.map(|after| format!("{RETRY_AFTER}: {}\r\n", after.as_secs()));
    let body = document(error);
    let answer = format!(
        "HTTP/1.1 {status}\r\n{}connection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        after.unwrap_or_default(),
        body.len()
    );
    answer.into_bytes()
}

/// A method that the path does not have; the router adds those that it has.
pub(super) fn bad_method() -> Response {
    let text = "this path does not have this method; the Allow header names those that it has";
    failed(StatusCode::METHOD_NOT_ALLOWED.as_u16(), &Error::new(Code::InvalidRequest, text))
}

/// An upgrade that is not one.
pub(super) fn bad_upgrade(status: StatusCode, what: &'static str) -> Response {
    let mut response = failed(status.as_u16(), &Error::new(Code::InvalidRequest, what));
    response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}

/// A failure to reach a session.
pub(super) fn route_error(failure: &RouteError) -> Response {
    match failure {
        RouteError::Failed(failed) => error(failed),
        RouteError::Refused(refusal) => refused(refusal),
    }
}

/// The same, said in the request's span too.
pub(super) fn traced(span: &Span, failure: &RouteError) -> Response {
    let response = route_error(failure);
    propagation::answered(span, response.status());
    response
}

/// The upstream's own words, where they are an error that clients may see.
fn refused(refusal: &Refusal) -> Response {
    if !upstream::may_be_told(refusal.status) {
        return error(&Refusal::unspoken());
    }
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut response = Response::new(Body::from(refusal.body.clone()));
    *response.status_mut() = status;
    *response.headers_mut() = refusal.headers.clone();
    response
}

/// A JSON body.
pub(super) fn json(status: u16, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Adds a header whose value we made ourselves.
pub(super) fn put(response: &mut Response, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
}
