//! What a broken store would do, for the model that has to notice it.

use super::Table;
use crate::{
    ids::{Epoch, Incarnation, SessionId},
    store::SessionState,
};

impl Table {
    /// A call on a session that names this owner and epoch, whatever it named before; its row is
    /// put back unless the call changed it.
    pub(crate) fn unfenced<T>(
        &mut self,
        id: SessionId,
        owner: Option<Incarnation>,
        epoch: Epoch,
        call: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let before = self.sessions.get(&id).cloned();
        if let Some(row) = self.sessions.get_mut(&id) {
            (row.owner, row.epoch, row.state) = (owner, epoch, SessionState::Live);
        }
        let changed = self.sessions.get(&id).cloned();
        let answer = call(self);
        if self.sessions.get(&id) == changed.as_ref()
            && let Some(before) = before
        {
            self.sessions.insert(id, before);
        }
        answer
    }

    /// The session in this epoch.
    pub(crate) fn with_epoch(&mut self, id: SessionId, epoch: Epoch) {
        if let Some(row) = self.sessions.get_mut(&id) {
            row.epoch = epoch;
        }
    }

    /// The turns as they were in `before`.
    pub(crate) fn with_turns_of(&mut self, before: &Self) {
        self.turns.clone_from(&before.turns);
    }
}
