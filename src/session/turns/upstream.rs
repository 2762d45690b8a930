//! Which turn an upstream's message belongs to, and what it does to it.

use std::collections::VecDeque;

use super::{
    Action, Connection, TurnNo, Turns,
    keys::Keyed,
    lane::{Lane, Progress},
};
use crate::{
    session::event::{ServerEvent, Stage},
    store::TurnState,
    wire::{Batch, BatchBuilder, Message},
};

/// Ended responses remembered by id; their logs are bounded by bytes and time.
const MAX_ENDED: usize = 64;

/// The upstream's word for a response that its connection has not made.
const NOT_FOUND: &str = "previous_response_not_found";

/// Its word for a connection that is as old as it may be.
const TOO_OLD: &str = "websocket_connection_limit_reached";

impl Turns {
    /// Messages of the upstream. Events of one turn that arrived together stay together.
    pub fn on_upstream(&mut self, batch: &Batch) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut run: Option<(TurnNo, BatchBuilder)> = None;
        let mut whole = true;
        let mut doubt = None;
        for message in batch.messages() {
            let Some((turn, done)) = self.place(&message, &mut doubt, &mut actions) else {
                whole = false;
                continue;
            };
            match &mut run {
                Some((current, builder)) if *current == turn => {
                    builder.push(message.kind, &message.payload);
                }
                _ => {
                    whole &= run.is_none();
                    flush(&mut actions, run.take(), false);
                    let mut builder = BatchBuilder::default();
                    builder.push(message.kind, &message.payload);
                    run = Some((turn, builder));
                }
            }
            if done {
                whole = false;
                flush(&mut actions, run.take(), true);
            }
        }
        match run {
            // The ordinary case, a run of deltas: the bytes go on as they came.
            Some((turn, _)) if whole => {
                actions.push(Action::Append { turn, batch: batch.clone(), done: false });
            }
            run => flush(&mut actions, run, false),
        }
        if doubt.is_some() {
            actions.extend(self.on_disconnected());
            actions.push(Action::HangUp);
        }
        self.renew(&mut actions);
        // Only now: nothing in this batch can be of a turn that the upstream did not have.
        self.dispatch(&mut actions);
        actions
    }

    /// The turn that a message belongs to, and whether it ends it. None: not for anybody.
    /// `doubt` is of a turn that may have ended, until something shows that it has not.
    fn place(
        &mut self,
        message: &Message,
        doubt: &mut Option<TurnNo>,
        actions: &mut Vec<Action>,
    ) -> Option<(TurnNo, bool)> {
        let event = ServerEvent::parse(message)?;
        if event.stage == Stage::Error && event.error_code.as_deref() == Some(TOO_OLD) {
            // Whichever turn it ends, or none: the upstream takes nothing more on it.
            self.spend();
        }
        let met = self.meant(&event).filter(|at| self.lanes[*at].at_upstream().is_some());
        if event.blames_a_request() && met.is_none_or(|at| self.lanes[at].goes_on_without_asides())
        {
            let sent = |lane: &&mut Lane| {
                lane.late_asides > 0 && (event.lane.is_none() || event.lane == lane.name)
            };
            if let Some(lane) = self.lanes.iter_mut().find(sent) {
                // The answer to an event beside a turn that has ended.
                lane.late_asides -= 1;
                return None;
            }
        }
        let at = met?;
        let asides = self.lanes[at].has_asides()
            || event.lane.is_none() && self.lanes.iter().any(Lane::has_asides);
        let alone = (0..self.lanes.len())
            .all(|other| other == at || self.lanes[other].at_upstream().is_none());
        let lane = &mut self.lanes[at];
        let turn = lane.running.as_mut().filter(|turn| turn.runs())?;
        match (&turn.response_id, &event.response_id) {
            (Some(known), Some(told)) if known != told => return None,
            (None, Some(told)) => {
                if event.stage != Stage::Created {
                    return None;
                }
                turn.response_id = Some(told.clone());
                lane.late_asides = 0;
                doubt.take_if(|doubt| *doubt == turn.no);
                self.known.insert(told.clone());
                actions.push(Action::Alias(told.clone()));
                if turn.journaled {
                    let (state, response) = (TurnState::Visible, Some(told.clone()));
                    actions.push(Action::Mark { turn: turn.no, state, response });
                }
            }
            (Some(_), _) if event.stage == Stage::Created => return None,
            // A terminal event that names no response proves nothing.
            (_, None) if event.stage.is_last() && event.stage != Stage::Error => return None,
            // Nothing is said of a response before its name: this is of an earlier one.
            (None, None)
                if turn.progress == Progress::Dispatched && event.stage.is_of_response() =>
            {
                return None;
            }
            _ => {}
        }
        if turn.is_aside(&event) {
            turn.asides -= 1;
            return Some((turn.no, false));
        }
        if asides && turn.response_id.is_none() && event.blames_a_request() {
            // The answer to the create, or to an event beside an earlier turn. A new connection
            // tells, where that costs nobody anything; else it counts for the create, which may
            // run on unseen: nothing that follows on this connection may be taken for it.
            *doubt = alone.then_some(turn.no);
            if alone && turn.may_redispatch(&self.history) {
                return None;
            }
            if !alone {
                self.connection = Connection::Spent;
            }
        }
        if event.error_code.as_deref() == Some(NOT_FOUND) && turn.may_tell_all(&self.history) {
            // This connection has not heard what the conversation was: told once, in full.
            turn.tell_all = true;
            lane.requeue();
            return None;
        }
        if event.error_code.as_deref() == Some(TOO_OLD) && turn.may_redispatch(&self.history) {
            // It speaks of the connection, and nobody has seen anything of the turn.
            lane.requeue();
            return None;
        }
        turn.last_sequence = event.sequence.or(turn.last_sequence);
        if event.stage != Stage::Connection {
            turn.becomes_visible(self.bounds.history_bytes);
        }
        match event.stage {
            Stage::Steered => turn.response_id = None,
            Stage::ItemDone => turn.remember(message, self.bounds.history_bytes),
            _ => {}
        }
        let (no, done) = (turn.no, event.stage.is_last());
        if done {
            self.settle(at, event.stage, actions);
        }
        Some((no, done))
    }

    /// A lane's running turn has ended by the upstream's word.
    fn settle(&mut self, at: usize, end: Stage, actions: &mut Vec<Action>) {
        let lane = &mut self.lanes[at];
        let Some(turn) = lane.finish() else { return };
        self.done += 1;
        let kept = !turn.create.store && end == Stage::Completed;
        if turn.journaled {
            let state = match end {
                Stage::Completed | Stage::Incomplete => TurnState::Done,
                _ => TurnState::Failed,
            };
            actions.push(Action::Mark { turn: turn.no, state, response: None });
        }
        self.keyed.extend(Keyed::of(&turn));
        if self.keyed.len() > MAX_ENDED {
            self.keyed.pop_front();
        }
        if let Some(id) = &turn.response_id {
            remember(&mut self.ended, id.clone(), turn.no);
        }
        if let Some(past) = turn.into_past(end, lane.name.clone()) {
            self.history.push(past.clone());
            actions.push(Action::Remembered(past));
        }
        self.untold = kept && !self.ended.back().is_some_and(|(id, _)| self.history.has(id));
    }

    /// A response that ended can be asked for again, while its log is there.
    pub(super) fn remember_ended(&mut self, response_id: String, turn: TurnNo) {
        remember(&mut self.ended, response_id, turn);
    }

    /// The lane that an event is of. An error of the whole connection, or of what is no create,
    /// names none: it is of the turn that has sent such a thing, else of the only one that runs.
    fn meant(&self, event: &ServerEvent) -> Option<usize> {
        let named = self.lane(event.lane.as_deref());
        if event.stage != Stage::Error || event.lane.is_some() {
            return named;
        }
        let running = |at: &usize| self.lanes[*at].at_upstream().is_some();
        let begins =
            |at: usize| self.lanes[at].at_upstream().is_some_and(|turn| turn.response_id.is_none());
        let aside =
            |at: &usize| self.lanes[*at].running.as_ref().is_some_and(|turn| turn.is_aside(event));
        // The lane without a name first, if it has sent such a thing too.
        if let Some(at) = named.filter(aside).or_else(|| (0..self.lanes.len()).find(aside))
            && named.is_none_or(|at| !begins(at))
        {
            return Some(at);
        }
        named.filter(running).or_else(|| {
            let mut busy = (0..self.lanes.len()).filter(running);
            busy.next().filter(|_| busy.next().is_none())
        })
    }
}

fn remember(ended: &mut VecDeque<(String, TurnNo)>, response_id: String, turn: TurnNo) {
    if ended.len() >= MAX_ENDED {
        ended.pop_front();
    }
    ended.push_back((response_id, turn));
}

fn flush(actions: &mut Vec<Action>, run: Option<(TurnNo, BatchBuilder)>, done: bool) {
    if let Some((turn, builder)) = run {
        actions.push(Action::Append { turn, batch: builder.finish(), done });
    }
}
