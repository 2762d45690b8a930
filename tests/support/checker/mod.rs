//! Judges the invariants I1 to I8 over what was recorded outside of ringspan: what clients
//! saw, what the upstream was asked, and every change of the database's rows.
//!
//! It knows nothing of how ringspan works, and nothing here waits: a history is read once a
//! run is over.

mod conversations;
mod facts;
mod order;
mod owners;
mod talks;
mod told;
mod turns;
mod verdict;

pub use facts::{
    COMPLETED, Change, Conduct, Connection, Create, History, Proof, Seen, Table, What,
};
pub use owners::moves;
pub use verdict::{Invariant, Verdict};

/// Judges everything.
pub fn judge(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    let talks = talks::read(history);
    owners::judge(history, &mut verdict);
    order::judge(history, &mut verdict);
    turns::judge(history, &talks, &mut verdict);
    told::judge(history, &talks, &mut verdict);
    conversations::judge(history, &talks, &mut verdict);
    verdict
}
