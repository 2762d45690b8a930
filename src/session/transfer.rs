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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{Principal, SessionId},
        store::{MemberState, SessionState},
    };

    #[test]
    fn a_row_that_was_read_again_says_whose_the_session_is_and_in_which_epoch() {
        let (me, other) = (Incarnation(1), Incarnation(2));
        let row = |owner, owner_state, epoch| SessionRow {
            id: SessionId([0; 16]),
            principal: Principal([0; 16]),
            route: String::new(),
            key_label: String::new(),
            owner,
            owner_state,
            owner_addr: None,
            epoch: Epoch(epoch),
            state: SessionState::Live,
            age: std::time::Duration::ZERO,
        };
        let (alive, dead) = (Some(MemberState::Active), Some(MemberState::Dead));
        let went = |row: SessionRow| after_reread(Some(&row), me, Epoch(3));
        assert_eq!(went(row(Some(me), alive, 3)), None, "it may be tried again");
        assert_eq!(went(row(Some(other), alive, 5)), Some(Went::To(other, Epoch(5))));
        assert_eq!(went(row(Some(other), dead, 5)), Some(Went::Nowhere), "nobody has it");
        assert_eq!(went(row(None, None, 3)), Some(Went::Nowhere));
        assert_eq!(after_reread(None, me, Epoch(3)), Some(Went::Nowhere));
    }
}
