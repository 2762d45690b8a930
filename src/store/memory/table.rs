//! The rules of the store as plain functions over plain maps; what the SQL backends are
//! compared with.

#[cfg(feature = "simulation")]
mod rows;
#[cfg(test)]
mod sabotage;
mod sweeping;
mod turns;

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use tokio::time::Instant;

pub(super) use self::sweeping::remove;
use self::turns::TurnEntry;
use super::{conversations::Conversations, quotas::Quotas};
use crate::{
    ids::{Epoch, Incarnation, Principal, SessionId},
    store::{
        Alias, AliasKind, Claim, Claimed, Death, Heartbeat, LeaseEnd, Member, MemberState,
        NewMember, Result, RingView, SessionFilter, SessionRow, SessionState, StoreError,
        Transferred, sql::foreign_row, turns::TurnId,
    },
};

/// What [`RingView::clock`] counts from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Rows and counters. An instant is handed in by whoever calls.
#[derive(Default)]
#[cfg_attr(test, derive(Clone, Debug, PartialEq, Eq, Hash))]
pub(crate) struct Table {
    version: i64,
    epoch: i64,
    incarnation: i64,
    members: BTreeMap<Incarnation, MemberEntry>,
    sessions: BTreeMap<SessionId, SessionEntry>,
    aliases: BTreeMap<(Principal, &'static str, [u8; 16]), (SessionId, Instant)>,
    pub(super) conversations: Conversations,
    turns: BTreeMap<TurnId, TurnEntry>,
    pub(super) quotas: Quotas,
}

#[cfg_attr(test, derive(Clone, Debug, PartialEq, Eq, Hash))]
struct MemberEntry {
    said: NewMember,
    state: MemberState,
    load: u32,
    expires: Instant,
    ended: Option<Instant>,
}

#[cfg_attr(test, derive(Clone, Debug, PartialEq, Eq, Hash))]
struct SessionEntry {
    principal: Principal,
    route: String,
    key_label: String,
    owner: Option<Incarnation>,
    epoch: Epoch,
    state: SessionState,
    created: Instant,
    updated: Instant,
}

impl Table {
    pub(super) fn version(&self) -> i64 {
        self.version
    }

    pub(crate) fn register(
        &mut self,
        new: &NewMember,
        now: Instant,
        ttl: Duration,
    ) -> Result<Incarnation> {
        let holder = self
            .members
            .iter_mut()
            .find(|(_, member)| member.said.node_id == new.node_id && member.state.is_alive());
        if let Some((holder, member)) = holder {
            let remaining = member.expires.saturating_duration_since(now);
            if !new.supersede {
                let node_id = new.node_id.clone();
                let (holder, lease) = (*holder, member.lease());
                return Err(StoreError::NodeIdInUse { node_id, holder, remaining, lease });
            }
            member.end(MemberState::Dead, now);
        }
        self.incarnation += 1;
        self.version += 1;
        let me = Incarnation(self.incarnation);
        let entry = MemberEntry {
            said: new.clone(),
            state: MemberState::Joining,
            load: 0,
            expires: now + ttl,
            ended: None,
        };
        self.members.insert(me, entry);
        Ok(me)
    }

    pub(crate) fn heartbeat(
        &mut self,
        me: Incarnation,
        expires: Instant,
        load: u32,
    ) -> Result<Heartbeat> {
        let ring_version = self.version;
        let member = self.living(me)?;
        member.expires = expires;
        member.load = load;
        Ok(Heartbeat { ring_version, state: member.state })
    }

    pub(crate) fn activate(&mut self, me: Incarnation) -> Result<()> {
        let member = self.living(me)?;
        if member.state == MemberState::Joining {
            member.state = MemberState::Active;
            self.version += 1;
        }
        Ok(())
    }

    pub(crate) fn begin_drain(&mut self, node: Incarnation) -> Result<bool> {
        let member = self.living(node)?;
        let changed = member.state != MemberState::Draining;
        member.state = MemberState::Draining;
        self.version += i64::from(changed);
        Ok(changed)
    }

    pub(crate) fn leave(&mut self, me: Incarnation, now: Instant) -> Result<u64> {
        if self.members.get(&me).is_some_and(|member| member.state == MemberState::Gone) {
            return Ok(0);
        }
        let owned = self.sessions.values().filter(|row| row.owner == Some(me)).count();
        let member = self.living(me)?;
        if owned == 0 {
            member.end(MemberState::Gone, now);
            self.version += 1;
        }
        Ok(owned as u64)
    }

    pub(crate) fn mark_dead(&mut self, node: Incarnation, now: Instant, death: Death) -> bool {
        let Ok(member) = self.living(node) else { return false };
        if let Death::Lapsed(lease) = death
            && (member.expires > now || member.lease() != lease)
        {
            return false;
        }
        member.end(MemberState::Dead, now);
        self.version += 1;
        true
    }

    pub(crate) fn ring(&self, now: Instant) -> RingView {
        let named = |me| self.sessions.values().any(|row| row.owner == Some(me));
        let members = self
            .members
            .iter()
            .filter(|(me, member)| member.state.is_alive() || named(**me))
            .map(|(me, member)| member.row(*me, now))
            .collect();
        let clock = now.saturating_duration_since(*START);
        RingView { version: self.version, clock, members }
    }

    pub(crate) fn claim(&mut self, claim: &Claim, now: Instant) -> Result<Claimed> {
        let fit = self.members.get(&claim.me).is_some_and(|me| {
            matches!(me.state, MemberState::Joining | MemberState::Active) && me.expires > now
        });
        if !fit {
            return Ok(Claimed::Fenced);
        }
        let row = self.session(claim.id, now);
        if let Some(row) = &row {
            if row.principal != claim.principal {
                return Err(foreign_row());
            }
            if !claim.would_win(row) {
                return Ok(Claimed::Lost(row.clone()));
            }
        }
        if self.is_full(claim) {
            return Ok(Claimed::Full);
        }
        let from = row.and_then(|row| row.owner).filter(|owner| *owner != claim.me);
        self.epoch += 1;
        let epoch = Epoch(self.epoch);
        let entry = self.sessions.entry(claim.id).or_insert_with(|| SessionEntry {
            principal: claim.principal,
            route: claim.route.clone(),
            key_label: claim.key_label.clone(),
            owner: None,
            epoch,
            state: SessionState::Live,
            created: now,
            updated: now,
        });
        entry.owner = Some(claim.me);
        entry.epoch = epoch;
        entry.state = SessionState::Live;
        entry.updated = now;
        self.forget_turns(claim.id);
        Ok(Claimed::Won { epoch, from })
    }

    pub(crate) fn session(&self, id: SessionId, now: Instant) -> Option<SessionRow> {
        let row = self.sessions.get(&id)?;
        let owner = row.owner.and_then(|owner| self.members.get(&owner));
        Some(SessionRow {
            id,
            principal: row.principal,
            route: row.route.clone(),
            key_label: row.key_label.clone(),
            owner: row.owner,
            owner_state: owner.map(|member| member.state),
            owner_addr: owner.map(|member| member.said.peer_addr.clone()),
            epoch: row.epoch,
            state: row.state,
            age: now.saturating_duration_since(row.created),
        })
    }

    pub(super) fn sessions(&self, filter: &SessionFilter, now: Instant) -> Vec<SessionRow> {
        self.sessions
            .keys()
            .filter(|id| filter.after.is_none_or(|after| **id > after))
            .filter_map(|id| self.session(*id, now))
            .filter(|row| filter.owner.is_none() || row.owner == filter.owner)
            .filter(|row| filter.key_label.as_ref().is_none_or(|label| row.key_label == *label))
            .take(filter.limit as usize)
            .collect()
    }

    /// Changes the state of a session that is ours in that epoch; `Closed` drops the owner.
    pub(crate) fn set_state(
        &mut self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        state: SessionState,
        now: Instant,
    ) -> bool {
        let row = self.sessions.get_mut(&id);
        let Some(row) = row.filter(|row| row.owner == Some(me) && row.epoch == epoch) else {
            return false;
        };
        row.owner = Some(me).filter(|_| state != SessionState::Closed);
        row.state = state;
        row.updated = now;
        true
    }

    pub(crate) fn transfer(
        &mut self,
        id: SessionId,
        me: Incarnation,
        epoch: Epoch,
        heir: Incarnation,
        forced: bool,
        now: Instant,
    ) -> Transferred {
        let running = self.has_open_turn(id);
        let fit = self
            .members
            .get(&heir)
            .is_some_and(|heir| heir.state == MemberState::Active && heir.expires > now);
        let row = self.sessions.get_mut(&id);
        let Some(row) = row.filter(|row| row.owner == Some(me) && row.epoch == epoch) else {
            return Transferred::NotOwner;
        };
        if row.state != SessionState::Quiescing {
            return Transferred::NotQuiescing;
        }
        if !fit {
            return Transferred::HeirUnfit;
        }
        if running && !forced {
            return Transferred::TurnsRunning;
        }
        self.epoch += 1;
        let epoch = Epoch(self.epoch);
        row.epoch = epoch;
        row.owner = Some(heir);
        row.state = SessionState::Live;
        row.updated = now;
        self.forget_turns(id);
        Transferred::Moved(epoch)
    }

    pub(super) fn put_aliases(&mut self, aliases: &[Alias], now: Instant) {
        for alias in aliases {
            let key = (alias.principal, alias.kind.as_str(), alias.digest);
            self.aliases.insert(key, (alias.session, now));
        }
    }

    pub(super) fn alias(
        &self,
        principal: Principal,
        kind: AliasKind,
        digest: [u8; 16],
    ) -> Option<SessionId> {
        self.aliases.get(&(principal, kind.as_str(), digest)).map(|(session, _)| *session)
    }

    fn is_full(&self, claim: &Claim) -> bool {
        let other = |id: &SessionId| *id != claim.id && self.is_served(*id);
        let own = self.sessions.iter().filter(|(_, row)| row.principal == claim.principal);
        let others = own.filter(|(id, _)| other(id)).count();
        claim.limit.is_some_and(|limit| others >= limit as usize)
    }

    pub(super) fn is_alive(&self, me: Incarnation) -> bool {
        self.members.get(&me).is_some_and(|member| member.state.is_alive())
    }

    /// Whether somebody owns the session, alive or not.
    pub(super) fn is_owned(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|row| row.owner.is_some())
    }

    /// Whether the session's owner, if it has one, may still be serving it.
    pub(super) fn is_served(&self, id: SessionId) -> bool {
        let owner = self.sessions.get(&id).and_then(|row| row.owner);
        let owner = owner.and_then(|owner| self.members.get(&owner));
        owner.is_some_and(|member| member.state.is_alive())
    }

    /// A member's state, and whether its lease is over.
    #[cfg(test)]
    pub(crate) fn member(&self, me: Incarnation, now: Instant) -> (MemberState, bool) {
        let member = &self.members[&me];
        (member.state, member.expires <= now)
    }

    /// Which lease a member has.
    #[cfg(test)]
    pub(crate) fn lease(&self, me: Incarnation) -> LeaseEnd {
        self.members[&me].lease()
    }

    /// Owner, epoch and state of a session.
    #[cfg(test)]
    pub(crate) fn owner(
        &self,
        id: SessionId,
    ) -> Option<(Option<Incarnation>, Epoch, SessionState)> {
        self.sessions.get(&id).map(|row| (row.owner, row.epoch, row.state))
    }

    fn living(&mut self, me: Incarnation) -> Result<&mut MemberEntry> {
        self.members
            .get_mut(&me)
            .filter(|member| member.state.is_alive())
            .ok_or(StoreError::Fenced(me))
    }
}

impl MemberEntry {
    fn end(&mut self, state: MemberState, now: Instant) {
        self.state = state;
        self.ended = Some(now);
    }

    fn lease(&self) -> LeaseEnd {
        let nanos = |it: Duration| i64::try_from(it.as_nanos()).unwrap_or(i64::MAX);
        let (after, before) = (
            self.expires.saturating_duration_since(*START),
            START.saturating_duration_since(self.expires),
        );
        LeaseEnd(nanos(after) - nanos(before))
    }

    fn row(&self, incarnation: Incarnation, now: Instant) -> Member {
        Member {
            incarnation,
            node_id: self.said.node_id.clone(),
            peer_addr: self.said.peer_addr.clone(),
            build: self.said.build.clone(),
            zone: self.said.zone.clone(),
            weight: self.said.weight,
            capacity: self.said.capacity,
            process: self.said.process.clone(),
            state: self.state,
            load: self.load,
            lease_remaining: self.expires.saturating_duration_since(now),
            lease: self.lease(),
        }
    }
}
