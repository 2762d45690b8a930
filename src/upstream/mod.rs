//! Connections to what sessions talk to. Knows no session and no ring.

mod breaker;
mod choice;
mod dial;
mod fetch;
mod http;
mod pool;
mod stream;

use std::fmt;

use ::http::HeaderMap;
use bytes::Bytes;
pub use dial::{Connection, DialError, Dialer};
pub use fetch::{Fetcher, read_text};
pub use http::{HttpClient, HttpError};
pub use pool::Member;
pub use stream::Stream;

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

/// The upstream's own answer to an upgrade it did not want. The client is given its words.
#[derive(Clone)]
pub struct Refusal {
    pub status: u16,
    /// End-to-end headers only.
    pub headers: HeaderMap,
    pub body: Bytes,
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
}
