//! What becomes of turns whose upstream connection is lost, silent or not to be had. Pure.

use std::time::Duration;

use super::{Action, Connection, TurnNo, Turns, lane::Turn, parting::Severed};
use crate::{
    error::{Code, Error},
    session::event::{error_event_with, unknown_event},
    wire::Batch,
};

/// What is told of a turn that was lost with its connection.
pub(super) const LOST: &str =
    "the upstream connection was lost during this turn; whether it finished is unknown";

impl Turns {
    /// The upstream connection is gone: each turn it had is redispatched by its rule, or
    /// ends with an honest error.
    pub fn on_disconnected(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for at in 0..self.lanes.len() {
            let lane = &mut self.lanes[at];
            lane.withdraw();
            if lane.running.as_ref().is_some_and(|turn| turn.may_redispatch(&self.history)) {
                lane.requeue();
                continue;
            }
            self.end(at, LOST, &mut actions);
        }
        self.lost_connection();
        actions
    }

    pub(super) fn lost_connection(&mut self) {
        self.connection = Connection::None;
        self.known.clear();
        for lane in &mut self.lanes {
            lane.withdraw();
            lane.late_asides = 0;
        }
        // Lanes are the connection's; the next one begins with none.
        self.lanes.retain(|lane| lane.running.is_some() || !lane.queue.is_empty());
    }

    /// Ends a lane's running turn, if it has one: whether it finished is unknown, as `text` says.
    pub(super) fn end(&mut self, at: usize, text: &str, actions: &mut Vec<Action>) {
        let lane = &mut self.lanes[at];
        let name = lane.name.clone();
        if let Some(turn) = lane.finish() {
            self.lose(turn, name.as_deref(), text, actions);
        }
    }

    /// There will be no upstream connection now: what waits ends with the reason, what an
    /// earlier connection may have run as unknown.
    pub fn on_unreachable(
        &mut self,
        status: u16,
        body: &serde_json::Value,
        retry_after: Option<Duration>,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        for at in 0..self.lanes.len() {
            let name = self.lanes[at].name.clone();
            for turn in std::mem::take(&mut self.lanes[at].queue) {
                if turn.sent {
                    self.lose(turn, name.as_deref(), LOST, &mut actions);
                    continue;
                }
                self.done += 1;
                actions.extend(turn.cut_short());
                let event = error_event_with(status, body, retry_after, name.as_deref());
                let batch = Batch::one(&event);
                actions.push(Action::Append { turn: turn.no, batch, done: true });
            }
        }
        actions
    }

    /// The upstream has said nothing of these turns for too long: those that run end as unknown.
    /// Their connection ends when nothing else runs on it.
    pub fn on_silence(&mut self, silent: &[TurnNo]) -> Vec<Action> {
        let mut actions = Vec::new();
        let text = "the upstream fell silent during this turn; whether it finished is unknown";
        for at in 0..self.lanes.len() {
            if self.lanes[at].at_upstream().is_some_and(|turn| silent.contains(&turn.no)) {
                self.end(at, text, &mut actions);
                self.connection = Connection::Spent;
            }
        }
        self.renew(&mut actions);
        actions
    }

    /// The upstream connection is as old as it may be: no turn begins on it any more, and it is
    /// given up when those that run have ended.
    pub fn on_aged(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.spend();
        self.renew(&mut actions);
        actions
    }

    /// Nothing more is sent on the upstream connection, if there is one.
    pub(super) fn spend(&mut self) {
        if self.connection == Connection::Open {
            self.connection = Connection::Spent;
        }
    }

    /// Whether nothing more is sent on the upstream connection.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.connection == Connection::Spent
    }

    /// Gives up a connection that is spent, as soon as that costs no turn anything.
    pub(super) fn renew(&mut self, actions: &mut Vec<Action>) {
        if self.connection != Connection::Spent {
            return;
        }
        for lane in &mut self.lanes {
            lane.withdraw();
        }
        if self.running() == 0 {
            actions.extend(self.on_disconnected());
            actions.push(Action::HangUp);
        }
    }

    /// Ends a turn that the upstream had and of which nobody will know whether it finished. Its
    /// events stay known by its response, and its end says how far its clients are told.
    pub(super) fn lose(
        &mut self,
        turn: Turn,
        lane: Option<&str>,
        text: &str,
        actions: &mut Vec<Action>,
    ) -> Severed {
        self.done += 1;
        actions.extend(turn.cut_short());
        let error = Error::new(Code::OutcomeUnknown, text);
        let (no, id) = (turn.no, turn.response_id);
        let event = unknown_event(&error, lane, id.as_deref(), turn.last_sequence);
        actions.push(Action::Append { turn: no, batch: Batch::one(&event), done: true });
        if let Some(id) = &id {
            self.remember_ended(id.clone(), no);
        }
        Severed { turn: no, response_id: id }
    }
}
