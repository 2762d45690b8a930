//! ringspan: a session-bridge ring. See ARCHITECTURE.md for the way of a frame.

pub mod admin;
pub mod app;
pub mod bell;
pub mod cli;
pub mod config;
pub mod edge;
pub mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod ids;
pub mod jitter;
pub mod link;
pub mod net;
pub mod ownership;
pub mod peer;
pub mod ring;
pub mod route;
pub mod sample;
pub mod session;
pub mod store;
pub mod telemetry;
pub mod upstream;
pub mod wire;
