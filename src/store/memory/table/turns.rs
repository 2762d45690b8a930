//! The ledger of turns.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::Table;
use crate::{
    ids::{Incarnation, SessionId},
    store::{Began, NewTurn, SessionState, TurnKey, TurnMark, TurnRow, TurnState, turns::TurnId},
};

#[cfg_attr(test, derive(Clone, Debug, PartialEq, Eq, Hash))]
pub(super) struct TurnEntry {
    state: TurnState,
    key: Option<TurnKey>,
    request: [u8; 16],
    response: Option<String>,
    pub(super) begun: Instant,
}

/// Whether a key names a turn of the session.
pub(super) fn has_keys(turns: &BTreeMap<TurnId, TurnEntry>, session: SessionId) -> bool {
    turns.iter().any(|(at, turn)| at.0 == session && turn.key.is_some())
}

impl Table {
    pub(crate) fn begin_turns(
        &mut self,
        me: Incarnation,
        turns: &[NewTurn],
        now: Instant,
    ) -> Vec<Began> {
        turns.iter().map(|new| self.begin_turn(me, new, now)).collect()
    }

    fn begin_turn(&mut self, me: Incarnation, new: &NewTurn, now: Instant) -> Began {
        let held = self.sessions.get(&new.session).is_some_and(|row| {
            row.owner == Some(me) && row.epoch == new.epoch && row.state == SessionState::Live
        });
        if !held {
            return Began::Fenced;
        }
        let id = (new.session, new.epoch, new.no);
        let of_key = self
            .turns
            .iter()
            .find(|(at, turn)| at.0 == new.session && new.key.is_some() && turn.key == new.key)
            .map(|(at, _)| *at);
        let Some(at) = of_key.or_else(|| self.turns.contains_key(&id).then_some(id)) else {
            let (key, request) = (new.key, new.request);
            let state = TurnState::Dispatched;
            let entry = TurnEntry { state, key, request, response: None, begun: now };
            self.turns.insert(id, entry);
            return Began::Begun;
        };
        let again = self.turns.get(&at).is_some_and(|turn| {
            (at == id && turn.state == TurnState::Dispatched)
                || (of_key.is_some()
                    && turn.request == new.request
                    && turn.response.is_none()
                    && (turn.state == TurnState::Failed
                        || (new.repeatable && turn.state == TurnState::Unknown)))
        });
        if again && let Some(mut turn) = self.turns.remove(&at) {
            turn.state = TurnState::Dispatched;
            self.turns.insert(id, turn);
            return Began::Begun;
        }
        self.turn_row(at).map_or(Began::Begun, Began::Duplicate)
    }

    fn turn_row(&self, at: super::TurnId) -> Option<TurnRow> {
        let turn = self.turns.get(&at)?;
        Some(TurnRow {
            session: at.0,
            epoch: at.1,
            no: at.2,
            state: turn.state,
            request: turn.request,
            response: turn.response.clone(),
        })
    }

    pub(crate) fn mark_turns(&mut self, marks: &[TurnMark]) -> u64 {
        let mut changed = 0;
        for (id, mark) in TurnMark::coalesce(marks) {
            if let Some(turn) = self.turns.get_mut(&id).filter(|turn| turn.state.is_open()) {
                turn.state = mark.state;
                turn.response = mark.response.or(turn.response.take());
                changed += 1;
            }
        }
        changed
    }

    pub(crate) fn turn_by_key(&self, session: SessionId, key: TurnKey) -> Option<TurnRow> {
        let of_key = |turn: &TurnEntry| turn.key == Some(key);
        let found = self.turns.iter().find(|(at, turn)| at.0 == session && of_key(turn));
        self.turn_row(*found?.0)
    }

    /// Every row of the ledger.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn turns(&self) -> impl Iterator<Item = TurnRow> {
        self.turns.keys().filter_map(|at| self.turn_row(*at))
    }

    /// A turn of this session is dispatched and has not ended.
    pub(super) fn has_open_turn(&self, session: SessionId) -> bool {
        self.turns.iter().any(|(at, turn)| at.0 == session && turn.state.is_open())
    }

    /// The session's epoch changed: nobody will hear how its turns end.
    pub(super) fn forget_turns(&mut self, session: SessionId) {
        let ours = self.turns.iter_mut().filter(|(at, _)| at.0 == session);
        for (_, turn) in ours.filter(|(_, turn)| turn.state.is_open()) {
            turn.state = TurnState::Unknown;
        }
    }
}
