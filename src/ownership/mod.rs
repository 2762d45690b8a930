//! Who may serve a session and for how long: leases, deaths and their proofs,
//! and what holds while the store is away.

pub mod lease;
#[cfg(test)]
mod model;
pub mod outage;
pub mod process;
pub mod reaper;
pub mod renewer;
pub mod witness;
