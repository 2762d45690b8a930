//! The step between accepted and dispatched: the ledger first.

use std::collections::BTreeSet;

use super::{
    Action, Connection, MAX_ACTIVE, TurnNo, Turns,
    keys::refusal,
    lane::{Progress, Turn},
    losses::LOST,
};
use crate::{
    error::{Code, Error},
    ids::Epoch,
    session::{event::error_event, history::History},
    store::{Began, TurnRow},
    wire::{Batch, Message},
};

/// What the ledger answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Journaled {
    /// The turn may be sent.
    Begun,
    /// A turn of its key is there.
    Duplicate(TurnRow),
    /// It could not be written in time, so the turn was not sent.
    Unwritten,
    /// Its principal may not run it now; it was neither written nor sent.
    Refused(Error),
}

/// What an answer of the ledger means to the session that asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Told(Journaled),
    /// A turn of this session and epoch that the session does not have: it was given up before
    /// its answer came, and not sent. It failed, and this one may be tried again.
    GivenUp(TurnNo),
    /// The session is not ours.
    Fenced,
}

impl Answer {
    /// What `began` means to the owner of `epoch`; None if nothing was heard in time.
    #[must_use]
    pub fn of(began: Option<Began>, epoch: Epoch) -> Self {
        match began {
            Some(Began::Begun) => Self::Told(Journaled::Begun),
            Some(Began::Fenced) => Self::Fenced,
            Some(Began::Duplicate(row)) if row.epoch == epoch && row.state.is_open() => {
                Self::GivenUp(row.no)
            }
            Some(Began::Duplicate(row)) => Self::Told(Journaled::Duplicate(row)),
            None => Self::Told(Journaled::Unwritten),
        }
    }
}

impl Turn {
    pub(super) fn journal(&self, history: &History) -> Action {
        Action::Journal {
            turn: self.no,
            key: self.key,
            request: self.create.fingerprint,
            // Only who asks by the key is told.
            repeatable: self.key.is_some() && self.is_repeatable(history),
        }
    }

    /// From here on the upstream may have it.
    pub(super) fn send(&mut self, known: &BTreeSet<String>, history: &History) -> Option<Action> {
        let payload = self.request(known, history)?;
        self.progress = Progress::Dispatched;
        self.sent = true;
        let batch = Batch::one(&Message::text(payload));
        Some(Action::Dispatch { turn: self.no, batch })
    }
}

impl Turns {
    /// Sends what may be sent.
    pub(super) fn dispatch(&mut self, actions: &mut Vec<Action>) {
        // Reading takes as long as dialling: both at once.
        self.ask(actions);
        if self.connection != Connection::Open {
            return;
        }
        let mut active = self.lanes.iter().filter(|lane| lane.running.is_some()).count();
        for at in 0..self.lanes.len() {
            while active < MAX_ACTIVE && self.lanes[at].running.is_none() {
                let first = self.lanes[at].queue.front();
                if self.holding && first.is_some_and(|turn| !turn.redispatched) {
                    break;
                }
                if self.waits_for_recall(&self.lanes[at]) {
                    self.ask(actions);
                    break;
                }
                let lane = &mut self.lanes[at];
                let Some(mut turn) = lane.queue.pop_front() else { break };
                if turn.client.is_none() {
                    // It waited to be run again, and nobody came back for it.
                    actions.extend(turn.cut_short());
                    actions.push(Action::Forget(turn.no));
                    continue;
                }
                if self.bounds.asked {
                    turn.progress = Progress::Accepted;
                    turn.journaled = self.bounds.ledger;
                    actions.push(turn.journal(&self.history));
                } else {
                    actions.extend(turn.send(&self.known, &self.history));
                }
                lane.running = Some(turn);
                active += 1;
            }
        }
    }

    /// Asks the ledger once more, if the turn waits for its word and nothing else.
    #[must_use]
    pub fn ask_again(&self, no: TurnNo) -> Option<Action> {
        let mut running = self.lanes.iter().filter_map(|lane| lane.running.as_ref());
        let turn = running.find(|turn| turn.no == no && turn.progress == Progress::Accepted)?;
        Some(turn.journal(&self.history))
    }

    /// The ledger's answer to [`Action::Journal`].
    pub fn on_journaled(&mut self, no: TurnNo, journaled: &Journaled) -> Vec<Action> {
        let mut actions = Vec::new();
        let accepted = |turn: &Turn| turn.no == no && turn.progress == Progress::Accepted;
        let mut lanes = self.lanes.iter_mut();
        let Some(lane) = lanes.find(|lane| lane.running.as_ref().is_some_and(accepted)) else {
            // Its connection went away meanwhile: it waits, and is written again.
            return actions;
        };
        let Some(mut turn) = lane.running.take() else { return actions };
        let name = lane.name.clone();
        let error = match journaled {
            Journaled::Begun if turn.client.is_none() && !turn.sent => {
                // Nobody waits for it any more, and it was not sent.
                actions.extend(turn.cut_short());
                actions.push(Action::Forget(no));
                None
            }
            Journaled::Begun => {
                actions.extend(turn.send(&self.known, &self.history));
                lane.running = Some(turn);
                None
            }
            Journaled::Duplicate(row) => Some(refusal(row, turn.create.fingerprint)),
            Journaled::Refused(error) => Some(error.clone()),
            Journaled::Unwritten if turn.sent => {
                self.lose(turn, name.as_deref(), LOST, &mut actions);
                None
            }
            Journaled::Unwritten => {
                actions.extend(turn.cut_short());
                let text =
                    "the ledger of turns cannot be written now; the turn was not sent, retry";
                Some(Error::new(Code::SessionUnavailable, text))
            }
        };
        if let Some(error) = error {
            self.done += 1;
            let batch = Batch::one(&error_event(&error, name.as_deref()));
            actions.push(Action::Append { turn: no, batch, done: true });
        }
        self.dispatch(&mut actions);
        actions
    }

    /// The session is not ours any more. What the upstream has ends with an honest error;
    /// what waits was not sent and is left to the next owner.
    pub fn on_fenced(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for at in 0..self.lanes.len() {
            self.lanes[at].withdraw();
            let text = "the session has a new owner; whether this turn finished is unknown";
            self.end(at, text, &mut actions);
        }
        actions
    }
}
