//! A `response.create` as it is asked, and how one is refused.

use std::borrow::Cow;

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// The fields of a create that the sample acts on; others are ignored.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct CreateRequest {
    pub(super) model: Option<String>,
    #[serde(default)]
    pub(super) input: Value,
    pub(super) previous_response_id: Option<String>,
    pub(super) store: Option<bool>,
    pub(super) stream: Option<bool>,
    pub(super) generate: Option<bool>,
    #[serde(default)]
    pub(super) tools: Value,
    pub(super) tool_choice: Option<Value>,
    pub(super) parallel_tool_calls: Option<bool>,
    pub(super) stream_id: Option<String>,
    pub(super) prompt_cache_key: Option<String>,
    pub(super) metadata: Option<Value>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    #[serde(default)]
    pub(super) client_metadata: Value,
}

impl CreateRequest {
    /// Reads a create from its JSON.
    pub(super) fn from_value(value: Value) -> Result<Self, Refusal> {
        serde_json::from_value(value).map_err(|error| {
            Refusal::new(400, "invalid_request", format!("not a response.create: {error}"))
        })
    }

    /// Whether the response outlives its connection; so it does unless told otherwise.
    pub(super) fn stores(&self) -> bool {
        self.store.unwrap_or(true)
    }

    /// False for a prewarm.
    pub(super) fn generates(&self) -> bool {
        self.generate.unwrap_or(true)
    }

    pub(super) fn input_items(&self) -> usize {
        match &self.input {
            Value::Null => 0,
            Value::Array(items) => items.len(),
            _ => 1,
        }
    }
}

/// An error instead of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// HTTP status; the same number on a WebSocket.
    pub(super) status: u16,
    pub(super) code: Cow<'static, str>,
    pub(super) message: Cow<'static, str>,
    pub(super) param: Option<&'static str>,
}

impl Refusal {
    pub(super) fn new(
        status: u16,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { status, code: code.into(), message: message.into(), param: None }
    }

    /// A request that is wrong in one field.
    pub(super) fn invalid(param: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { param: Some(param), ..Self::new(400, "invalid_request", message) }
    }

    pub(super) fn previous_response_not_found(id: &str) -> Self {
        let message = format!("Previous response with id '{id}' not found.");
        Self {
            param: Some("previous_response_id"),
            ..Self::new(400, "previous_response_not_found", message)
        }
    }

    /// What `[fail=STATUS]` answers.
    pub(super) fn scripted(status: u16) -> Self {
        let code = match status {
            429 => "rate_limit_exceeded",
            500.. => "server_error",
            _ => "invalid_request",
        };
        Self::new(status, code, "asked for by a directive")
    }

    fn error(&self) -> Value {
        let kind = match self.status {
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({
            "type": kind, "code": self.code, "message": self.message, "param": self.param,
        })
    }

    /// The WebSocket event, on its lane if it has one.
    pub(super) fn to_event(&self, stream_id: Option<&str>) -> String {
        let mut event = json!({ "type": "error", "status": self.status, "error": self.error() });
        if let Some(stream_id) = stream_id {
            event["stream_id"] = stream_id.into();
        }
        event.to_string()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_REQUEST);
        (status, Json(json!({ "error": self.error() }))).into_response()
    }
}
