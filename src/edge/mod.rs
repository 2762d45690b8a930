//! The client listener: sockets and requests in, links out.
//!
//! *Invariant:* nothing in here knows whether a session's owner is this node.

mod auth;
mod body;
mod comeback;
mod events;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod heard;
mod http;
mod hygiene;
mod key;
mod lent;
mod opaque;
pub(crate) mod outstanding;
mod pace;
mod pass;
mod patience;
mod pump;
mod reply;
mod responses;
mod server;
mod sse;
#[cfg(test)]
mod tests;
mod told;
mod upgrade;

#[cfg(test)]
pub(crate) use self::events::lost;
use std::sync::Arc;

use ::http::{HeaderMap, header::AUTHORIZATION};
pub use auth::Authenticator;
pub use server::serve;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::{Limits, Route, SocketsAtDrain},
    route::Router,
    session::{ClientKind, ClientLabel},
    telemetry::metrics::Metrics,
    upstream::HttpClient,
    wire::{Budget, handshake},
};

/// What every client connection needs.
pub struct Edge {
    pub node_id: Arc<str>,
    pub router: Arc<Router>,
    pub routes: Arc<[Arc<Route>]>,
    pub auth: Authenticator,
    pub limits: Limits,
    pub metrics: Metrics,
    pub http: HttpClient,
    pub drain: Drain,
    /// What all clients may hold of messages and bodies that have not ended, or wait for their
    /// sessions.
    pub unfinished: Budget,
    pub tracker: TaskTracker,
}

impl Edge {
    /// This node's name for a client.
    pub(super) fn label(&self, kind: ClientKind) -> ClientLabel {
        ClientLabel { edge_node: Arc::clone(&self.node_id), kind }
    }

    /// The headers that the upstream may see.
    pub(super) fn forwarded_headers(&self, headers: &HeaderMap) -> HeaderMap {
        let mut forwarded = handshake::forwardable_request_headers(headers);
        if self.auth.consumes_credential() {
            forwarded.remove(AUTHORIZATION);
        }
        key::remove_own(&mut forwarded);
        hygiene::remove_claims(&mut forwarded);
        forwarded
    }
}

/// Bytes of messages and bodies that have not ended, of all clients, where messages are small.
const UNFINISHED: usize = 256 * 1024 * 1024;

/// What a node takes of messages that have not ended: many, or several of the largest.
#[must_use]
pub fn budget(limits: &Limits) -> Budget {
    Budget::new(UNFINISHED.max(limits.max_message_bytes.saturating_mul(4)))
}

/// How the edge is told to let its clients go.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// Close sockets at boundaries: idle ones soon, busy ones when their turn has ended.
    pub closing: CancellationToken,
    /// Close also the sockets that were kept, at their boundaries.
    pub last_call: CancellationToken,
    /// Close what is left.
    pub cut: CancellationToken,
}

impl Drain {
    /// The same for a socket that is closed at the last call only.
    fn patient(&self) -> Self {
        Self { closing: self.last_call.clone(), ..self.clone() }
    }
}

/// Reason of the close code 1012, in the words that clients know.
const RESTART: &str = "service restart";

/// RFC 6455: the endpoint's policy does not allow to go on.
const CLOSE_POLICY: u16 = 1008;

/// Its reason, for a credential that is good no more.
const UNAUTHORIZED: &str = "credential expired or revoked";

/// RFC 6455 registry: service restart.
const CLOSE_RESTART: u16 = 1012;

/// Whether a drain of this node leaves the socket open for as long as it can. A client that
/// sends its whole history after a reconnect notices no close between turns; the SDKs do not
/// reconnect, so for them every close is a failure.
fn keeps(route: &Route, headers: &HeaderMap) -> bool {
    match route.sockets_at_drain {
        SocketsAtDrain::Boundary => false,
        SocketsAtDrain::Deadline => true,
        SocketsAtDrain::Auto => !key::is_codex(headers),
    }
}
