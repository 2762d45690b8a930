//! Probes and metrics.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::Admin;

/// The process answers. Nothing else is asked: a restart cures no database.
pub(super) async fn live() -> Response {
    Json(json!({ "live": true })).into_response()
}

/// 200 if clients should be sent here, else 503; the body says why.
pub(super) async fn ready(State(admin): State<Admin>) -> Response {
    let health = admin.view.health().await;
    let ready = health.ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = json!(health);
    body["ready"] = ready.into();
    (status, Json(body)).into_response()
}

/// Everything that is measured.
pub(super) async fn metrics(State(admin): State<Admin>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.metrics.encode()).into_response()
}
