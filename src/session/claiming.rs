//! What the store's answer to a claim means. Pure: the registry asks, and so does the model
//! that checks every order of claims.

use crate::{
    ids::{Epoch, Incarnation, Principal},
    session::Owner,
    store::{Claimed, SessionRow},
};

/// What follows the answer to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The session is ours. `from`: another's before, who is dead.
    Won { epoch: Epoch, from: Option<Incarnation> },
    /// It was released, its owner is dead, or it is ours from a task that ended or because
    /// it was handed over (`handed`): claim it from this epoch.
    Again { seen: Epoch, handed: bool },
    /// A living node has it.
    Elsewhere(Owner),
    /// Ids are derived from principals, so this client came by somebody else's.
    Forbidden,
    /// The principal has as many sessions as it may.
    Full,
    /// This node may not own sessions now.
    Unfit,
}

/// The live owner that a row names.
#[must_use]
pub fn owner(row: &SessionRow) -> Option<Owner> {
    Some(Owner { incarnation: row.live_owner()?, addr: row.owner_addr.clone()?, epoch: row.epoch })
}

/// What the node `me` does about an answer to its claim for `principal`.
pub(crate) fn after_answer(claimed: Claimed, me: Incarnation, principal: Principal) -> Step {
    match claimed {
        Claimed::Won { epoch, from } => Step::Won { epoch, from: from.filter(|from| *from != me) },
        Claimed::Lost(row) if row.principal != principal => Step::Forbidden,
        Claimed::Lost(row) => match owner(&row) {
            Some(owner) if owner.incarnation != me => Step::Elsewhere(owner),
            named => Step::Again { seen: row.epoch, handed: named.is_some() },
        },
        Claimed::Full => Step::Full,
        Claimed::Fenced => Step::Unfit,
    }
}
