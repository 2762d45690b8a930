//! Clients and checker of the tests of processes, over the simulated network.

#[path = "../tests/support/checker/mod.rs"]
pub mod checker;
#[path = "../tests/support/crowd/mod.rs"]
pub mod crowd;
#[path = "../tests/support/eventually.rs"]
mod eventually;
#[path = "../tests/support/history.rs"]
pub mod history;
#[path = "../tests/support/http.rs"]
pub mod http;
pub mod net;
#[path = "../tests/support/responses.rs"]
pub mod responses;
#[path = "../tests/support/ws.rs"]
mod ws;

pub use eventually::eventually;
pub use ws::{Received, Ws};

/// `Authorization` of a client that is nobody special.
pub const ALICE: (&str, &str) = ("authorization", "Bearer alice");
