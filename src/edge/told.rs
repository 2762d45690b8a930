//! Counts what clients are told of failures, where it is told: `ringspan_errors_total`.
//!
//! A session's own errors come as events. The edge counts them, which tells them: it is still there to
//! be asked when their owner is gone. What an upstream says in its own words counts with its turn.

use std::borrow::Cow;

use axum::response::Response;
use serde::Deserialize;

use crate::{
    error::{Blame, Code, Error},
    telemetry::metrics::Metrics,
    wire::{Batch, Message},
};

/// Events of ours are far shorter; a longer one is an upstream's.
const MAX_EVENT: usize = 4096;

/// Of an HTTP answer: the failure that it tells. Counted when it is given to its client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    code: Code,
    blame: Blame,
}

impl From<&Error> for Told {
    fn from(error: &Error) -> Self {
        Self { code: error.code, blame: error.blame }
    }
}

impl From<Code> for Told {
    fn from(code: Code) -> Self {
        Self { code, blame: code.blame() }
    }
}

/// Counts an HTTP answer that tells of a failure.
pub(super) fn answer(metrics: &Metrics, response: &Response) {
    if let Some(Told { code, blame }) = response.extensions().get() {
        metrics.error(*code, *blame);
    }
}

/// Counts a failure that the edge itself tells by this event.
pub(super) fn own(metrics: &Metrics, error: &Error, event: &Message) {
    // The end of a turn that had begun is told as unknown, whatever ended it.
    metrics.error(code(event).unwrap_or(error.code), error.blame);
}

/// Counts what a batch of a session's ends with, if that is an error of ours.
pub(super) fn last(metrics: &Metrics, batch: &Batch) {
    if let Some(code) = batch.messages().last().as_ref().and_then(code) {
        metrics.error(code, code.blame());
    }
}

/// The code of an `error` event of ours, by its code and type. None for what an upstream says, but
/// for one that says the very same.
pub(super) fn code(event: &Message) -> Option<Code> {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(borrow)]
        r#type: Cow<'a, str>,
        #[serde(borrow)]
        error: Head<'a>,
    }
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow)]
        r#type: Cow<'a, str>,
        #[serde(borrow)]
        code: Cow<'a, str>,
    }

    if event.payload.len() > MAX_EVENT {
        return None;
    }
    let event: Event<'_> = serde_json::from_slice(&event.payload).ok()?;
    let code = Code::parse(&event.error.code).filter(|_| event.r#type == "error")?;
    // This one is always an upstream's answer.
    (code.kind() == event.error.r#type && code != Code::PreviousResponseNotFound).then_some(code)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::session::event::error_event;

    #[test]
    fn an_error_of_ours_is_known_by_its_event_and_an_upstreams_words_are_not() {
        for &ours in Code::ALL {
            let event = error_event(&Error::new(ours, "x"), Some("lane"));
            let upstreams = ours == Code::PreviousResponseNotFound;
            assert_eq!(code(&event), (!upstreams).then_some(ours));
        }
        let long = "x".repeat(MAX_EVENT);
        for other in [
            json!({ "type": "error", "status": 401, "error": { "type": "invalid_request_error", "code": "invalid_api_key" } }),
            json!({ "type": "error", "status": 429, "error": { "type": "tokens", "code": "rate_limit_exceeded" } }),
            json!({ "type": "error", "error": { "type": "server_error", "code": null } }),
            json!({ "type": "error", "error": { "type": "server_error", "code": "internal_error", "message": long } }),
            json!({ "type": "response.failed", "error": { "type": "server_error", "code": "internal_error" } }),
        ] {
            assert_eq!(code(&Message::text(other.to_string())), None, "{other}");
        }
    }
}
