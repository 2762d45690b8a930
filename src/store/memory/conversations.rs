//! Sealed parts of conversations.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::table::{Table, remove};
use crate::{
    ids::{Epoch, Incarnation, SessionId},
    store::{NewPart, Part, SessionState},
};

/// Session, epoch and number of a part.
type Place = (SessionId, Epoch, u32);

/// Parts in their order, with the time of their writing.
pub(super) type Conversations = BTreeMap<Place, (Vec<u8>, Instant)>;

/// The place before all parts of a session.
fn first(session: SessionId) -> Place {
    (session, Epoch(i64::MIN), 0)
}

impl Table {
    pub(super) fn close(
        &mut self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        now: Instant,
    ) -> bool {
        let closed = self.set_state(id, me, epoch, SessionState::Closed, now);
        if closed {
            self.conversations.retain(|(session, ..), _| *session != id);
        }
        closed
    }

    pub(super) fn put_parts(&mut self, parts: &[NewPart], now: Instant) {
        for NewPart { session, part, whole } in parts {
            if !self.is_owned(*session) {
                continue;
            }
            let place = (*session, part.epoch, part.no);
            if *whole {
                let old: Vec<_> =
                    self.conversations.range(first(*session)..place).map(|(it, _)| *it).collect();
                for place in old {
                    self.conversations.remove(&place);
                }
            }
            self.conversations.entry(place).or_insert_with(|| (part.sealed.clone(), now));
        }
    }

    pub(super) fn parts_of(&self, session: SessionId, limit: u32) -> Vec<Part> {
        self.conversations
            .range(first(session)..)
            .take_while(|((owner, ..), _)| *owner == session)
            .take(limit as usize)
            .map(|((_, epoch, no), (sealed, _))| Part {
                epoch: *epoch,
                no: *no,
                sealed: sealed.clone(),
            })
            .collect()
    }

    /// Removes old parts of sessions that nobody serves; answers how many went.
    pub(super) fn sweep_conversations(&mut self, limit: u32, old: impl Fn(Instant) -> bool) -> u64 {
        let mut conversations = std::mem::take(&mut self.conversations);
        let gone = remove(&mut conversations, limit, |(session, ..), (_, since)| {
            old(*since) && !self.is_served(*session)
        });
        self.conversations = conversations;
        gone
    }
}
