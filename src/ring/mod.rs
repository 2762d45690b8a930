//! Which node a session belongs to: the placement of new sessions and of heirs.
//!
//! *Invariant:* placement only proposes. What a session's row says is the truth, so two
//! nodes may hold different views for a while without two owners coming of it.

pub mod build;
pub mod departures;
pub mod membership;
pub mod placement;
pub mod rebalance;
mod tenure;

pub use membership::{Membership, Ring};
pub use placement::Placement;
