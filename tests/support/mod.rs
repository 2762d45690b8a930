//! What the integration tests share: a ring of processes, and clients of it.

pub mod audit;
pub mod autobahn;
pub mod balancer;
pub mod certificates;
pub mod checker;
pub mod clock;
pub mod codexish;
pub mod crowd;
pub mod eventually;
pub mod gate;
pub mod held;
pub mod history;
pub mod http;
pub mod lab;
pub mod net;
pub mod pg_control;
pub mod postgres;
pub mod process;
pub mod real;
pub mod responses;
pub mod ring;
pub mod scripted;
pub mod slow_line;
pub mod trial;
pub mod ws;

pub use eventually::eventually;
pub use ring::{Node, Ring, RingOptions, Store, Timing};
pub use ws::{Received, Refused, Ws};

/// `Authorization` of a client that is nobody special.
pub const ALICE: (&str, &str) = ("authorization", "Bearer alice");
/// `Authorization` of somebody else.
pub const BOB: (&str, &str) = ("authorization", "Bearer bob");
