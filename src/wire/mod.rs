//! WebSocket frames as bytes: messages, codec, handshake. Knows no session and no ring.
//!
//! Inside ringspan a message has one *canonical form*: the bytes of a single unmasked,
//! uncompressed, final RFC 6455 frame. That is what a server sends to a client that asked
//! for no compression, so the most common leg (upstream to client) copies nothing.

pub mod batch;
pub mod budget;
pub mod codec;
pub mod deflate;
pub mod handshake;
pub mod socket;

mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod outbox;
mod scratch;

pub use batch::{Batch, BatchBuilder, Kind, Message};
pub use budget::{Budget, FREE_BYTES, Share};
pub use codec::{CloseFrame, Incoming};
pub use frame::Role;
pub use socket::{Socket, SocketError, SocketOptions};
