//! Connections to what sessions talk to. Knows no session and no ring.

mod breaker;
mod choice;
mod dial;
mod fetch;
mod http;
mod pool;
mod stream;

use std::{fmt, time::Duration};

use ::http::{HeaderMap, HeaderName, header::RETRY_AFTER};
use bytes::Bytes;
pub use dial::{Connection, DialError, Dialer};
pub use fetch::{Fetcher, read_text};
pub use http::{HttpClient, HttpError};
pub use pool::Member;
use serde_json::Value;
pub use stream::Stream;

use crate::error::{Code, Error};

/// What the client's upgrade or request said, as far as it is repeated to the upstream.
/// Holds credentials: no `Debug`.
#[derive(Clone, Default)]
pub struct Upgrade {
    /// Path and query as the client sent them, without ringspan's own parameters.
    pub path_and_query: String,
    /// End-to-end headers only.
    pub headers: HeaderMap,
    pub subprotocols: Vec<String>,
}

/// Headers by which an upstream knows a client.
const CREDENTIALS: [&str; 5] =
    ["authorization", "chatgpt-account-id", "api-key", "x-api-key", "cookie"];

impl Upgrade {
    /// Takes over what `newer` shows of these headers, and nothing else of it.
    pub fn take_credentials(&mut self, newer: &Self) {
        for name in CREDENTIALS.map(HeaderName::from_static) {
            let shown = newer.headers.get_all(&name);
            if shown.iter().next().is_some() {
                self.headers.remove(&name);
            }
            for value in shown {
                self.headers.append(&name, value.clone());
            }
        }
    }
}

/// The upstream's own answer to an upgrade it did not want. The client is given its words.
#[derive(Clone)]
pub struct Refusal {
    pub status: u16,
    /// End-to-end headers only.
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A refusal as clients are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// One that [`may_be_told`].
    pub status: u16,
    /// The `error` object.
    pub error: Value,
    /// Only where the upstream itself said so.
    pub retry_after: Option<Duration>,
}

/// Whether a client may be told this status of an upstream: it is an error, and not 426, which
/// clients take for "never try this again".
#[must_use]
pub fn may_be_told(status: u16) -> bool {
    (400..600).contains(&status) && status != 426
}

/// The status of an upstream's error as clients are told it: its own, if it [`may_be_told`].
#[must_use]
pub fn told_status(own: Option<u16>) -> u16 {
    own.filter(|status| may_be_told(*status)).unwrap_or(502)
}

/// The `error` object of an upstream's words, if they have one.
#[must_use]
pub fn error_object(json: &[u8]) -> Option<Value> {
    let mut said = serde_json::from_slice::<Value>(json).ok()?;
    said.get_mut("error").map(Value::take).filter(Value::is_object)
}

impl From<&Error> for Told {
    fn from(error: &Error) -> Self {
        let (status, retry_after) = (error.code.status(), error.retry_after());
        Self { status, error: error.body(), retry_after }
    }
}

impl Refusal {
    /// What is said in the place of an upstream whose own words are none.
    #[must_use]
    pub fn unspoken() -> Error {
        Error::new(Code::UpstreamUnavailable, "the upstream refused the connection")
    }

    /// What clients are told where they cannot be given the whole answer.
    #[must_use]
    pub fn told(&self) -> Told {
        let ours = Self::unspoken();
        if !may_be_told(self.status) {
            return Told::from(&ours);
        }
        // A date says nothing here: the clocks of two machines differ.
        let after = self.headers.get(RETRY_AFTER).and_then(|after| after.to_str().ok());
        Told {
            status: self.status,
            error: error_object(&self.body).unwrap_or_else(|| ours.body()),
            retry_after: after.and_then(|after| after.parse().ok()).map(Duration::from_secs),
        }
    }
}

/// Its status alone: what an upstream says is no line of a log.
impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal").field("status", &self.status).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_upstream_said_in_a_refusal_is_in_no_line_of_a_log() {
        let headers = HeaderMap::from_iter([(
            ::http::header::WWW_AUTHENTICATE,
            ::http::HeaderValue::from_static("secret"),
        )]);
        let refusal = Refusal { status: 403, headers, body: Bytes::from_static(b"secret") };
        assert_eq!(format!("{refusal:?}"), "Refusal { status: 403, .. }");
    }

    fn refusal(status: u16, retry_after: &'static str, body: &'static str) -> Refusal {
        let after = ::http::HeaderValue::from_static(retry_after);
        let headers = HeaderMap::from_iter([(RETRY_AFTER, after)]);
        Refusal { status, headers, body: Bytes::from_static(body.as_bytes()) }
    }

    #[test]
    fn a_refusal_is_told_with_its_status_whatever_its_body_is() {
        let own = r#"{"error":{"code":"x"}}"#;
        let told = refusal(429, "7", own).told();
        assert_eq!((told.status, told.retry_after), (429, Some(Duration::from_secs(7))));
        assert_eq!(told.error, serde_json::json!({ "code": "x" }));
        for body in ["", "no", "\"no\"", "[]", "7", "true", "null", "{}", r#"{"error":"no"}"#] {
            let told = refusal(401, "Fri, 31 Dec 1999 23:59:59 GMT", body).told();
            assert_eq!((told.status, told.retry_after), (401, None), "{body}");
            assert_eq!(told.error["code"], "upstream_unavailable", "{body}");
        }
    }

    #[test]
    fn what_is_no_error_or_would_make_clients_give_up_is_told_as_the_upstreams_absence() {
        for status in [101, 200, 307, 426, 600, 999] {
            let told = refusal(status, "7", r#"{"error":{"code":"x"}}"#).told();
            assert_eq!((told.status, told.retry_after), (502, Some(Duration::from_secs(1))));
            assert_eq!(told.error["code"], "upstream_unavailable", "{status}");
        }
    }
}
