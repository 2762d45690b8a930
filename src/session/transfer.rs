//! What the store's answers mean to a planned transfer. Pure: the task that moves a session
//! asks, and so does the model that checks every order of answers and losses.

use crate::{
    ids::{Epoch, Incarnation},
    store::{SessionRow, StoreError, Transferred},
};

/// Where a session went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Went {
    /// To this owner, in this epoch.
    To(Incarnation, Epoch),
    /// It is ours, or nobody knows.
    Nowhere,
}

/// What follows the answer to a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is the heir's, in this epoch.
    Moved(Epoch),
    /// This heir cannot have it; another one may.
    NextHeir,
    /// Once more, and what the ledger has open becomes unknown.
    Force,
    /// It cannot be moved, or is not ours.
    GiveUp,
    /// The answer may be what was lost, and not the commit: the row knows.
    Reread,
}

/// What an answer to a transfer asks for. `forced`: it was a forced one; `must_leave`: the
/// session may not stay here, so what the ledger has open must not hold it up.
pub(crate) fn after_answer(
    answer: &Result<Transferred, StoreError>,
    forced: bool,
    must_leave: bool,
) -> Step {
    match answer {
        Ok(Transferred::Moved(epoch)) => Step::Moved(*epoch),
        Ok(Transferred::HeirUnfit) => Step::NextHeir,
        // No turn runs here: what the ledger has open is one that it was told of too late.
        // Unknown is what the next owner is to make of it.
        Ok(Transferred::TurnsRunning) if !forced && must_leave => Step::Force,
        Ok(Transferred::NotOwner | Transferred::NotQuiescing | Transferred::TurnsRunning) => {
            Step::GiveUp
        }
        Err(_) => Step::Reread,
    }
}

/// What the row says of a transfer that was not answered, for the owner `me` of `epoch`.
/// None: it did not take effect and may be tried again.
pub(crate) fn after_reread(
    row: Option<&SessionRow>,
    me: Incarnation,
    epoch: Epoch,
) -> Option<Went> {
    match row {
        Some(row) if row.owner == Some(me) && row.epoch == epoch => None,
        Some(row) if row.epoch > epoch => {
            Some(row.live_owner().map_or(Went::Nowhere, |owner| Went::To(owner, row.epoch)))
        }
        _ => Some(Went::Nowhere),
    }
}
