//! Who may serve a session and for how long: leases, deaths and their proofs.

pub mod lease;
pub mod process;
pub mod reaper;
pub mod renewer;
