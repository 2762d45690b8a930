//! Real processes, a real database, real sockets and signals: what users and operators of a
//! ring notice. Nothing here reads ringspan's own code; the clients are other libraries.
//!
//! `RINGSPAN_IT_KEEP=1` keeps the directories (configuration, logs) of tests that pass; those
//! of tests that fail are always kept, and printed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking and reports by printing"
)]

mod access;
mod attacks;
mod autobahn;
mod bad_days;
mod balance;
mod checker;
mod client_rolls;
mod clients;
mod continuity;
mod continuity_database;
mod crash;
mod drain;
mod failover;
mod faults;
mod foreign_grpc;
mod leaving;
mod ledger;
mod opaque_messages;
mod opaque_session;
mod outage;
mod overload;
mod peers;
mod pool;
mod quotas;
mod responses;
mod responses_http;
mod resume;
mod roll;
mod scrape;
mod secrets;
mod slow_client;
mod smuggling;
mod soak;
#[path = "../support/mod.rs"]
mod support;
mod upgrade;
