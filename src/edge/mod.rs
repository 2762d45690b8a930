//! The client listener: sockets and requests in, links out.
//!
//! *Invariant:* nothing in here knows whether a session's owner is this node.

mod auth;
mod http;
mod key;
mod opaque;
mod pump;
mod reply;
mod responses;
mod server;
mod upgrade;

use std::sync::Arc;

pub use auth::Authenticator;
pub use server::serve;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::{Limits, Route},
    route::Router,
    telemetry::metrics::Metrics,
    upstream::HttpClient,
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
    pub tracker: TaskTracker,
}

/// How the edge is told to let its clients go.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// Close sockets at boundaries: idle ones soon, busy ones when their turn has ended.
    pub closing: CancellationToken,
    /// Close what is left.
    pub cut: CancellationToken,
}

/// Reason of the close code 1012, in the words that clients know.
const RESTART: &str = "service restart";

/// RFC 6455 registry: service restart.
const CLOSE_RESTART: u16 = 1012;
