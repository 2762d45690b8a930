//! What goes for good.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{Table, turns::has_keys};
use crate::{
    ids::Incarnation,
    store::{SessionState, Sweep},
};

impl Table {
    pub(in crate::store::memory) fn sweep(
        &mut self,
        what: Sweep,
        now: Instant,
        age: Duration,
        limit: u32,
    ) -> u64 {
        let old = |since: Instant| now.saturating_duration_since(since) >= age;
        let (sessions, turns) = (&self.sessions, &self.turns);
        match what {
            Sweep::Sessions => {
                let gone = remove(&mut self.sessions, limit, |_, row| {
                    row.state == SessionState::Closed && old(row.updated)
                });
                let sessions = &self.sessions;
                self.turns.retain(|(session, ..), _| sessions.contains_key(session));
                gone
            }
            Sweep::Aliases => remove(&mut self.aliases, limit, |_, (session, since)| {
                old(*since)
                    && sessions.get(session).is_none_or(|row| row.owner.is_none())
                    && !has_keys(turns, *session)
            }),
            Sweep::Members => remove(&mut self.members, limit, |me, member| {
                let named = || sessions.values().any(|row| row.owner == Some(*me));
                member.ended.is_some_and(old) && !named()
            }),
            Sweep::Conversations => self.sweep_conversations(limit, old),
            Sweep::Shares => self.sweep_shares(limit),
            Sweep::Paces => self.sweep_paces(limit, old),
            Sweep::Orphans => {
                let members = &self.members;
                let dead =
                    |me: Incarnation| members.get(&me).is_some_and(|it| it.ended.is_some_and(old));
                let orphans = self.sessions.values_mut().filter(|row| row.owner.is_some_and(dead));
                let mut closed = 0;
                for row in orphans.take(limit as usize) {
                    (row.owner, row.state, row.updated) = (None, SessionState::Closed, now);
                    closed += 1;
                }
                closed
            }
            Sweep::Turns => remove(&mut self.turns, limit, |_, turn| old(turn.begun)),
        }
    }
}

/// Removes at most `limit` entries; answers how many went.
pub(in crate::store::memory) fn remove<K: Ord + Clone, V>(
    map: &mut BTreeMap<K, V>,
    limit: u32,
    which: impl Fn(&K, &V) -> bool,
) -> u64 {
    let keys: Vec<K> = map
        .iter()
        .filter(|(key, value)| which(key, value))
        .map(|(key, _)| key.clone())
        .take(limit as usize)
        .collect();
    for key in &keys {
        map.remove(key);
    }
    keys.len() as u64
}
