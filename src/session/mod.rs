//! A session: one key, one owner, one epoch, one upstream connection, one ordered log.
//!
//! [`Registry`] opens sessions (claim, then actor) and attaches clients to them. The actor
//! performs; the rules it follows ([`turns`], [`history`]) know no socket and no SQL.

mod actor;
pub mod aliases;
pub mod archive;
pub(crate) mod claiming;
mod clients;
mod continuity;
pub mod event;
pub mod fields;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod handoff;
pub mod history;
pub mod ledger;
pub mod log;
pub mod numbering;
mod passing;
pub mod quota;
mod recopy;
mod registry;
pub mod replica;
mod responses;
pub mod seal;
pub mod stats;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod transfer;
pub mod turns;
pub mod warm;

use std::sync::Arc;

pub use claiming::owner;
pub use handoff::{KEEP_CLOSED, keep_closed};
use http::HeaderMap;
pub use registry::{Context, Handle, ORDERS_PER_SECOND, Registry};

use crate::{
    config::Route,
    error::{Code, Error},
    ids::{Epoch, Incarnation, Principal, SessionId},
    link::Link,
    store::{StoreError, TurnKey},
    upstream::{Refusal, Upgrade},
};

/// The client's side of an attachment, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientLabel {
    /// Node that holds the client's socket.
    pub edge_node: Arc<str>,
    pub kind: ClientKind,
}

/// How a client is connected to its edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientKind {
    WebSocket,
    Http,
}

impl ClientKind {
    /// Stable label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Http => "http",
        }
    }

    /// The inverse of [`ClientKind::as_str`]; anything else is taken for a WebSocket.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text == "http" { Self::Http } else { Self::WebSocket }
    }
}

/// What is known of a session's row before it is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    Unknown,
    /// There is none: the id was made for this attach.
    Missing,
    /// It was nobody's a moment ago, at this epoch: the claim may begin from there. If the row has
    /// changed, the claim fails and says how.
    Free(Epoch),
}

/// A wish to attach a client to a session, wherever it lives.
#[derive(Clone)]
pub struct Attach {
    pub session: SessionId,
    pub row: Row,
    pub principal: Principal,
    pub route: Arc<Route>,
    pub key_label: String,
    pub upgrade: Upgrade,
    /// It only reads what is held: how the upstream is asked stays as it is, but for credentials.
    pub reads: bool,
    /// Resume after this server message.
    pub last_seq: Option<u64>,
    /// The epoch whose numbering `last_seq` is of, if the client said so.
    pub last_epoch: Option<Epoch>,
    /// Idempotency key of the one create that follows, where the create itself has none.
    pub turn_key: Option<TurnKey>,
    /// The caller knows that the session had this epoch; an owner with less is stale.
    pub min_epoch: Epoch,
    pub client: ClientLabel,
}

/// An attached client.
#[derive(Debug)]
pub struct Attached {
    pub link: Link,
    pub epoch: Epoch,
    pub resume: Resume,
    /// Number of the message before the first that follows; 0 where messages have none.
    pub seq: u64,
    /// End-to-end headers of the upstream's answer to the upgrade.
    pub headers: HeaderMap,
    pub subprotocol: Option<String>,
}

/// Whether the client gets every message after the one it named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Nothing was to be resumed.
    New,
    /// Everything after `last_seq` follows.
    Ok,
    /// Messages up to `floor` are gone; the ones from `floor` on follow.
    Gap { floor: u64 },
}

/// Why a client was not attached.
#[derive(Debug)]
pub enum AttachError {
    /// Somebody else owns the session (or should claim it).
    NotOwner(Owner),
    /// The upstream refused the upgrade; the client is given its words.
    Refused(Box<Refusal>),
    /// Anything else.
    Failed(Error),
}

impl From<Error> for AttachError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Where a session is, as far as the teller knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub incarnation: Incarnation,
    pub addr: String,
    pub epoch: Epoch,
}

/// What a client is told of the store's failure.
#[must_use]
pub fn store_error(error: &StoreError) -> Error {
    match error {
        // An outage is told of once, by the lease's thread.
        StoreError::Unavailable(_) | StoreError::Away(_) => {
            tracing::debug!(%error, "store call failed");
        }
        error => tracing::warn!(%error, "store call failed"),
    }
    Error::new(Code::SessionUnavailable, "the session store is not reachable; retry")
}
