//! Idempotency keys: a repeat of a create joins the turn that its key names.

use super::{Action, ClientId, TurnNo, Turns, lane::Turn, reply};
use crate::{
    error::{Code, Error},
    session::event::{Create, error_event},
    store::{TurnKey, TurnRow, TurnState},
    wire::Batch,
};

/// A turn that ended, as its key names it.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub(super) struct Keyed {
    key: TurnKey,
    request: u128,
    turn: TurnNo,
    response: String,
}

impl Keyed {
    /// None for a turn without a key, and for one that named no response: whether such a
    /// one may run again is for the ledger to say.
    pub(super) fn of(turn: &Turn) -> Option<Self> {
        let (key, response) = (turn.key?, turn.response_id.clone()?);
        Some(Self { key, request: turn.create.fingerprint, turn: turn.no, response })
    }
}

impl Turns {
    /// Whether a create was answered by a turn that its key names, one that runs, waits or
    /// ended here.
    pub(super) fn repeat(
        &mut self,
        client: ClientId,
        create: &Create,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(key) = create.key else { return false };
        let lane = create.lane.as_deref();
        let turns = self.lanes.iter_mut().flat_map(|l| l.running.iter_mut().chain(&mut l.queue));
        if let Some(turn) = turns.into_iter().find(|turn| turn.key == Some(key)) {
            if turn.create.fingerprint != create.fingerprint {
                reply(actions, client, &conflict(), lane, 1);
            } else if turn.is_of(client) {
                let text = "a turn of this idempotency key runs for this client already";
                reply(actions, client, &Error::new(Code::TurnInProgress, text), lane, 1);
            } else {
                turn.join(client);
                let text = "the turn of this idempotency key runs, but its first events are \
                            not held any more; wait for it to end";
                let otherwise = Error::new(Code::TurnInProgress, text);
                let otherwise = Batch::one(&error_event(&otherwise, lane));
                actions.push(Action::Rejoin { client, turn: turn.no, otherwise });
                // One that waited for its client to come back may be sent now.
                self.dispatch(actions);
            }
            return true;
        }
        let Some(ended) = self.keyed.iter().find(|ended| ended.key == key) else { return false };
        if ended.request == create.fingerprint {
            let otherwise = Batch::one(&error_event(&over(Some(&ended.response)), lane));
            actions.push(Action::Rejoin { client, turn: ended.turn, otherwise });
        } else {
            reply(actions, client, &conflict(), lane, 1);
        }
        true
    }
}

/// What is said of a turn that must not be sent, because the ledger has its key.
pub(super) fn refusal(row: &TurnRow, request: u128) -> Error {
    if row.request != request.to_be_bytes() {
        return conflict();
    }
    match row.state {
        TurnState::Unknown => {
            let text = match &row.response {
                Some(id) => format!(
                    "the turn of this idempotency key was lost with its owner; whether response {id} finished is unknown"
                ),
                None => "the turn of this idempotency key was lost with its owner; whether it ran is unknown".into(),
            };
            Error::new(Code::OutcomeUnknown, text)
        }
        TurnState::Done | TurnState::Failed => over(row.response.as_deref()),
        TurnState::Dispatched | TurnState::Visible => {
            let text = "the turn of this idempotency key runs and cannot be joined; retry later";
            Error::new(Code::TurnInProgress, text)
        }
    }
}

fn conflict() -> Error {
    let text = "this idempotency key was used for another request";
    Error::new(Code::SessionConflict, text).param("idempotency_key")
}

fn over(response: Option<&str>) -> Error {
    let text = match response {
        Some(id) => format!(
            "the turn of this idempotency key ended as response {id}, whose events are not held any more"
        ),
        None => {
            "the turn of this idempotency key ended, and its events are not held any more".into()
        }
    };
    Error::new(Code::SessionConflict, text).param("idempotency_key")
}
