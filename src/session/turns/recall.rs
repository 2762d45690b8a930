//! What was said before this node owned the session, where the database keeps it: asked for
//! when a turn needs it, and waited for by those turns only.

use super::{Action, Turns, lane::Lane, refuse};
use crate::{
    error::{Code, Error},
    session::history::Past,
};

/// How much of what the database knows is known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Recall {
    /// All of it, or there is none.
    #[default]
    Done,
    /// It has not been asked.
    Unread,
    /// It has been asked.
    Reading,
}

impl Turns {
    /// The database may know more of what was said than these turns.
    #[must_use]
    pub fn with_unread(self) -> Self {
        Self { recall: Recall::Unread, ..self }
    }

    /// Asks for what the database knows, unless that is known or under way.
    pub fn recall(&mut self) -> Vec<Action> {
        if self.recall != Recall::Unread {
            return Vec::new();
        }
        self.recall = Recall::Reading;
        vec![Action::Recall]
    }

    /// Asks for what the database knows, if a turn waits for it.
    pub(super) fn ask(&mut self, actions: &mut Vec<Action>) {
        if self.lanes.iter().any(|lane| lane.running.is_none() && self.waits_for_recall(lane)) {
            actions.extend(self.recall());
        }
    }

    /// Whether the next turn of a lane waits for what the database knows.
    pub(super) fn waits_for_recall(&self, lane: &Lane) -> bool {
        let next = lane.queue.front().filter(|turn| turn.client.is_some());
        let previous = next.and_then(|turn| turn.create.previous_response_id.as_ref());
        self.recall != Recall::Done
            && previous.is_some_and(|id| !self.known.contains(id) && !self.history.has(id))
    }

    /// What the database knew. Turns that still name what nobody knows are sent as they are,
    /// and the upstream says so.
    pub fn on_recalled(&mut self, past: Vec<Past>) -> Vec<Action> {
        let mut actions = Vec::new();
        self.recall = Recall::Done;
        self.history.precede(past);
        self.dispatch(&mut actions);
        actions
    }

    /// The database did not answer. To send what waits for it would be answered with
    /// "not found", which may be wrong and makes clients give up: they are told to retry.
    pub fn on_recall_failed(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        let text = "the conversation cannot be read at the moment; retry";
        let error = Error::new(Code::SessionUnavailable, text);
        for at in 0..self.lanes.len() {
            while self.waits_for_recall(&self.lanes[at]) {
                let lane = &mut self.lanes[at];
                let Some(turn) = lane.queue.pop_front() else { break };
                self.done += 1;
                actions.extend(turn.cut_short());
                actions.push(refuse(turn.no, &error, lane.name.as_deref()));
            }
        }
        self.recall = Recall::Unread;
        self.dispatch(&mut actions);
        actions
    }
}
