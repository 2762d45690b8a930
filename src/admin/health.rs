//! Probes and metrics.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
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

/// Everything that is measured, as `OpenMetrics` to whoever asks for it, else as text of
/// version 0.0.4.
pub(super) async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let (kind, text) = if prefers_open_metrics(&headers) {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        (kind, admin.metrics.encode())
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", admin.metrics.encode_classic())
    };
    ([(header::CONTENT_TYPE, kind), (header::VARY, "accept")], text).into_response()
}

/// Whether `Accept` names `OpenMetrics`, and no other text with more weight. A wildcard names
/// nothing: it is what programs say that know no format.
fn prefers_open_metrics(headers: &HeaderMap) -> bool {
    let (mut open, mut classic) = (0.0, 0.0);
    let lines = headers.get_all(header::ACCEPT).iter();
    for range in lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| {
            part.split_once('=').filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
        });
        let weight = weight.map_or(1.0, |(_, weight)| weight.trim().parse::<f32>().unwrap_or(0.0));
        if kind.eq_ignore_ascii_case("application/openmetrics-text") {
            open = weight.max(open);
        } else if kind.eq_ignore_ascii_case("text/plain") {
            classic = weight.max(classic);
        }
    }
    open > 0.0 && open >= classic
}
