//! One vocabulary of failures: who is to blame, what a client is told, and how to retry.
//!
//! Every failure that can reach a client is a [`Code`]; the mapping of a code to an HTTP
//! status, a WebSocket close code and a `Retry-After` lives here and nowhere else.

use std::{fmt, time::Duration};

/// Who must act for the failure to go away. A label on metrics and traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The request itself is wrong.
    Client,
    /// Another node of the ring did not answer, or answered nonsense.
    Peer,
    /// The upstream refused, closed, hung or lied.
    Upstream,
    /// The database did not answer.
    Store,
    /// This node.
    Us,
}

impl Blame {
    /// Stable label for metrics and traces.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Peer => "peer",
            Self::Upstream => "upstream",
            Self::Store => "store",
            Self::Us => "us",
        }
    }
}

/// Codes with their texts: one list, so that neither direction can forget one.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident => $text:literal),+ $(,)?) => {
        /// The error codes of the client listener (see `docs/errors.md`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $variant),+ }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The code as it stands in `error.code`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The inverse of [`Code::as_str`]; what a peer sends is read with it.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

codes! {
    SessionUnavailable => "session_unavailable",
    OwnerMoving => "owner_moving",
    OutcomeUnknown => "outcome_unknown",
    NodeDraining => "node_draining",
    TooManySessions => "too_many_sessions",
    /// Between nodes: one node is full, others may have room.
    NodeFull => "node_full",
    QueueFull => "queue_full",
    /// The word that clients of the Responses API know.
    RateLimited => "rate_limit_exceeded",
    NotAuthorized => "not_authorized",
    Forbidden => "forbidden",
    SessionConflict => "session_conflict",
    TurnInProgress => "turn_in_progress",
    PreviousResponseNotFound => "previous_response_not_found",
    InvalidRequest => "invalid_request",
    InvalidStreamId => "invalid_stream_id",
    StreamLimitReached => "websocket_stream_limit_reached",
    FrameTooLarge => "frame_too_large",
    UpstreamUnavailable => "upstream_unavailable",
    UpstreamTimeout => "upstream_timeout",
    NotFound => "not_found",
    Internal => "internal_error",
}

impl Code {
    /// HTTP status, also the `status` of a WebSocket error event (Codex ignores events
    /// that carry none).
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::SessionUnavailable | Self::OwnerMoving | Self::NodeDraining => 503,
            Self::OutcomeUnknown | Self::UpstreamUnavailable => 502,
            Self::UpstreamTimeout => 504,
            Self::TooManySessions | Self::NodeFull | Self::QueueFull | Self::RateLimited => 429,
            Self::NotAuthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::SessionConflict | Self::TurnInProgress => 409,
            Self::FrameTooLarge => 413,
            Self::PreviousResponseNotFound
            | Self::InvalidRequest
            | Self::InvalidStreamId
            | Self::StreamLimitReached => 400,
            Self::Internal => 500,
        }
    }

    /// `error.type`, in the words that the SDKs of the Responses API know.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self.status() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// WebSocket close code for a connection that cannot go on.
    #[must_use]
    pub const fn close(self) -> u16 {
        match self {
            Self::FrameTooLarge => 1009,
            Self::NotAuthorized | Self::Forbidden | Self::SessionConflict => 1008,
            Self::Internal | Self::OutcomeUnknown => 1011,
            _ => 1013,
        }
    }

    /// When a retry makes sense, how long to wait first.
    #[must_use]
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::SessionUnavailable
            | Self::OwnerMoving
            | Self::NodeDraining
            | Self::UpstreamUnavailable
            | Self::UpstreamTimeout
            | Self::QueueFull
            | Self::RateLimited => Some(Duration::from_secs(1)),
            Self::TooManySessions | Self::NodeFull => Some(Duration::from_secs(5)),
            _ => None,
        }
    }

    /// Who is to blame unless the [`Error`] says otherwise.
    #[must_use]
    pub const fn blame(self) -> Blame {
        match self {
            Self::OwnerMoving => Blame::Peer,
            Self::UpstreamUnavailable | Self::UpstreamTimeout | Self::OutcomeUnknown => {
                Blame::Upstream
            }
            Self::SessionUnavailable => Blame::Store,
            Self::NodeDraining | Self::TooManySessions | Self::NodeFull | Self::Internal => {
                Blame::Us
            }
            _ => Blame::Client,
        }
    }
}

/// A failure as a client may see it: no secret, no payload, no address of an inner host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub code: Code,
    pub blame: Blame,
    /// What happened and what to do, in one sentence.
    pub message: String,
    /// The request field at fault, where there is one.
    pub param: Option<&'static str>,
    /// How long to wait before a retry, where more is known than the code says.
    pub after: Option<Duration>,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, blame: code.blame(), message: message.into(), param: None, after: None }
    }

    /// The same failure with the blame laid elsewhere than the code's default.
    #[must_use]
    pub fn blame(mut self, blame: Blame) -> Self {
        self.blame = blame;
        self
    }

    /// The same failure with a known time until a retry makes sense.
    #[must_use]
    pub fn after(mut self, after: Duration) -> Self {
        self.after = Some(after);
        self
    }

    /// How long to wait before a retry, if one makes sense, in whole seconds and at least one.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let after = self.after.or(self.code.retry_after())?;
        let whole = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        Some(Duration::from_secs(whole.max(1)))
    }

    /// The same failure as the end of a turn of which something was passed on: it was sent to the
    /// upstream, so a code that invites a retry would have it run twice.
    #[must_use]
    pub fn within_turn(&self) -> Self {
        if self.code == Code::OutcomeUnknown {
            return self.clone();
        }
        let text = "the turn was cut off after it had begun; whether it finished is unknown";
        Self::new(Code::OutcomeUnknown, text).blame(self.blame)
    }

    #[must_use]
    pub fn param(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    /// The `error` object of interface: `{"type","code","message","param"}`.
    #[must_use]
    pub fn body(&self) -> serde_json::Value {
        serde_json::json!({
            "type": self.code.kind(),
            "code": self.code.as_str(),
            "message": self.message,
            "param": self.param,
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code.as_str(), self.blame.label(), self.message)
    }
}

impl std::error::Error for Error {}

/// Result of anything a client may be told about.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_read_back_as_it_is_written() {
        for &code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(code));
        }
        assert_eq!(Code::parse("another"), None);
    }
}
