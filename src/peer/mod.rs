//! Between nodes: one gRPC stream for each pair, all their sessions on it.
//!
//! *Invariant:* only this module (and the OTLP set-up) imports tonic. What it hands out and
//! takes in are [`crate::link::Link`]s, so neither edge nor session knows that it exists.

mod auth;
mod convert;
mod describe;
mod door;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod heirs;
mod incoming;
pub mod mux;
mod outgoing;
mod testify;
#[cfg(test)]
pub(crate) mod tests;
mod tls;
mod transport;

pub use describe::{SessionReport, StoryEvent, story};
pub use incoming::{Incoming, serve};
pub use outgoing::{Identity, PeerError, Peers};
pub use testify::NoTestimony;

/// Generated from `proto/ringspan/peer/v1/peer.proto`.
#[expect(clippy::pedantic, missing_docs, reason = "generated; documented in the proto file")]
pub mod proto {
    tonic::include_proto!("ringspan.peer.v1");

    /// For reflection.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/peer_descriptor.bin"));
}

/// Protocol versions that this build speaks.
pub const PROTOCOL: std::ops::RangeInclusive<u32> = 1..=1;

/// Nodes an attach may pass: the edge and the owner it was told of.
pub const MAX_HOPS: u32 = 2;
