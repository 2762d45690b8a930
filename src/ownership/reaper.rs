//! Which members a node may declare dead. Pure: callers bring the time and the view.
//!
//! An expired lease accuses, but the store may have been away for all alike: after an
//! outage everybody's lease has lapsed and nobody has died. So a node must first have
//! renewed its own lease without a break for a full TTL, in which every living member had
//! its chance to do the same; and when many have expired together it waits longer. The
//! store checks the lease once more when it marks a member (I4), so a mistake in here can
//! cost time but never kills a member whose lease holds.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    ids::Incarnation,
    store::{Member, RingView},
};

/// TTLs that a mass death is watched for, beyond the first.
const MASS_PATIENCE: u32 = 3;

/// Watches leases on behalf of one node.
#[derive(Debug)]
pub struct Reaper {
    me: Incarnation,
    ttl: Duration,
    streak: Option<Streak>,
    /// When each expired member was first seen so, during the present streak. Bounded by
    /// the view.
    expired: BTreeMap<Incarnation, Instant>,
}

/// Heartbeats of our own without a break.
#[derive(Clone, Copy, Debug)]
struct Streak {
    since: Instant,
    last: Instant,
}

impl Reaper {
    /// A reaper for the member `me` of a ring whose leases last `ttl`.
    #[must_use]
    pub const fn new(me: Incarnation, ttl: Duration) -> Self {
        Self { me, ttl, streak: None, expired: BTreeMap::new() }
    }

    /// Our own heartbeat was answered at `now`. After a gap of a TTL (a stall, a stopped
    /// process) the count begins anew.
    pub fn heartbeat(&mut self, now: Instant) {
        let since = self.unbroken_since(now).unwrap_or(now);
        if since == now {
            self.expired.clear();
        }
        self.streak = Some(Streak { since, last: now });
    }

    /// Our own heartbeat failed: what the view accuses others of may be the store's fault.
    pub fn missed(&mut self) {
        self.streak = None;
        self.expired.clear();
    }

    /// Who may be declared dead, given a view that was read at `now`. Never this node.
    ///
    /// If more than a third of the live members (and more than one) have expired, each is
    /// only named after [`MASS_PATIENCE`] further TTLs of being seen so.
    #[must_use]
    pub fn verdict(&mut self, view: &RingView, now: Instant) -> Vec<Incarnation> {
        let Some(since) = self.unbroken_since(now) else { return Vec::new() };
        let live = view.members.iter().filter(|member| member.state.is_alive()).count();
        let expired = |member: &&Member| {
            member.state.is_alive()
                && member.lease_remaining.is_zero()
                && member.incarnation != self.me
        };
        let seen = |member: &Member| {
            let first = self.expired.get(&member.incarnation).copied().unwrap_or(now);
            (member.incarnation, first)
        };
        // Those who renewed or left are forgotten.
        self.expired = view.members.iter().filter(expired).map(seen).collect();

        let trusted = since + self.ttl;
        let patience = if self.expired.len() > (live / 3).max(1) {
            MASS_PATIENCE * self.ttl
        } else {
            Duration::ZERO
        };
        self.expired
            .iter()
            .filter(|(_, first)| now >= trusted.max(**first) + patience)
            .map(|(incarnation, _)| *incarnation)
            .collect()
    }

    fn unbroken_since(&self, now: Instant) -> Option<Instant> {
        self.streak
            .filter(|streak| now.saturating_duration_since(streak.last) < self.ttl)
            .map(|streak| streak.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemberState;

    const TTL: Duration = Duration::from_secs(15);
    const BEAT: Duration = Duration::from_secs(3);
    const ME: Incarnation = Incarnation(1);

    /// `members` nodes, of which the last `expired` have expired.
    fn view(members: i64, expired: i64) -> RingView {
        let member = |n| Member {
            incarnation: Incarnation(n),
            node_id: format!("node-{n}"),
            peer_addr: "127.0.0.1:1".into(),
            build: "1.0.0".into(),
            zone: None,
            weight: 100,
            capacity: 1000,
            process: String::new(),
            state: MemberState::Active,
            load: 0,
            lease_remaining: if n > members - expired { Duration::ZERO } else { TTL },
        };
        RingView { version: 1, members: (1..=members).map(member).collect() }
    }

    /// A reaper that beats until `beats` have passed since `start`, looking at `view` each
    /// time; what it said last, and the time.
    fn watch(
        reaper: &mut Reaper,
        view: &RingView,
        start: Instant,
        beats: u32,
    ) -> (Vec<i64>, Instant) {
        let mut said = Vec::new();
        for beat in 0..=beats {
            reaper.heartbeat(start + beat * BEAT);
            said = reaper.verdict(view, start + beat * BEAT);
        }
        (said.iter().map(|incarnation| incarnation.0).collect(), start + beats * BEAT)
    }

    #[test]
    fn a_node_without_heartbeats_of_its_own_accuses_nobody() {
        assert!(Reaper::new(ME, TTL).verdict(&view(3, 1), Instant::now()).is_empty());
    }

    #[test]
    fn one_expired_member_is_dead_after_a_full_ttl_of_own_heartbeats() {
        let start = Instant::now();
        assert!(watch(&mut Reaper::new(ME, TTL), &view(3, 1), start, 4).0.is_empty());
        assert_eq!(watch(&mut Reaper::new(ME, TTL), &view(3, 1), start, 5).0, [3]);
        assert_eq!(watch(&mut Reaper::new(ME, TTL), &view(2, 1), start, 5).0, [2]);
    }

    #[test]
    fn a_seasoned_node_declares_a_death_at_its_first_sight() {
        let mut reaper = Reaper::new(ME, TTL);
        let (_, now) = watch(&mut reaper, &view(9, 0), Instant::now(), 20);
        assert_eq!(reaper.verdict(&view(9, 3), now).len(), 3, "a third is not a mass");
    }

    #[test]
    fn a_missed_heartbeat_starts_the_wait_anew() {
        let mut reaper = Reaper::new(ME, TTL);
        let (_, now) = watch(&mut reaper, &view(3, 0), Instant::now(), 20);
        reaper.missed();
        assert!(reaper.verdict(&view(3, 1), now).is_empty());
        assert!(watch(&mut reaper, &view(3, 1), now, 4).0.is_empty());
        assert_eq!(watch(&mut reaper, &view(3, 1), now + 5 * BEAT, 0).0, [3]);
    }

    #[test]
    fn a_process_that_was_stopped_trusts_its_view_no_more() {
        let mut reaper = Reaper::new(ME, TTL);
        let (_, now) = watch(&mut reaper, &view(3, 0), Instant::now(), 20);
        let woken = now + 2 * TTL;
        assert!(reaper.verdict(&view(3, 1), woken).is_empty());
        assert!(watch(&mut reaper, &view(3, 1), woken, 4).0.is_empty());
    }

    #[test]
    fn a_mass_death_is_believed_only_after_three_more_ttls() {
        let mut reaper = Reaper::new(ME, TTL);
        let (_, now) = watch(&mut reaper, &view(9, 0), Instant::now(), 20);
        let (said, later) = watch(&mut reaper, &view(9, 4), now, 14);
        assert_eq!(said, [0; 0]);
        assert_eq!(watch(&mut reaper, &view(9, 4), later + BEAT, 0).0, [6, 7, 8, 9]);
    }

    #[test]
    fn after_an_outage_a_mass_gets_four_ttls_from_the_first_heartbeat() {
        let start = Instant::now();
        let mut reaper = Reaper::new(ME, TTL);
        assert!(watch(&mut reaper, &view(3, 2), start, 19).0.is_empty());
        assert_eq!(watch(&mut reaper, &view(3, 2), start + 20 * BEAT, 0).0, [2, 3]);
    }

    #[test]
    fn members_that_return_from_an_outage_are_forgiven() {
        let mut reaper = Reaper::new(ME, TTL);
        let (_, now) = watch(&mut reaper, &view(9, 0), Instant::now(), 20);
        let (_, now) = watch(&mut reaper, &view(9, 8), now, 10);
        let (said, now) = watch(&mut reaper, &view(9, 0), now + BEAT, 0);
        assert!(said.is_empty());
        assert!(watch(&mut reaper, &view(9, 8), now + BEAT, 10).0.is_empty(), "counts anew");
    }

    #[test]
    fn neither_itself_nor_those_out_of_the_ring_are_ever_named() {
        let mut members = view(4, 4);
        members.members[2].state = MemberState::Dead;
        members.members[3].state = MemberState::Gone;
        let (said, _) = watch(&mut Reaper::new(ME, TTL), &members, Instant::now(), 60);
        assert_eq!(said, [2]);
    }
}
