//! ringspan: a session-bridge ring. See ARCHITECTURE.md for the way of a frame.

pub mod config;
pub mod error;
pub mod ids;
pub mod link;
pub mod store;
pub mod wire;
