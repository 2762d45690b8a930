//! Whose drain may go on when several nodes are told to leave at once. Pure.
//!
//! Every node decides for itself from the same rows, so there is nothing to agree on: the
//! member that registered first goes first. One whose sessions would find no room waits, and
//! serves on meanwhile, because a node that left may come back, or another one may join.
//! A session is never handed to a member that leaves: heirs are ACTIVE ([`super::Placement`],
//! and again the store at the commit of a transfer), so it moves once.

use crate::{
    ids::Incarnation,
    store::{Member, MemberState},
};

/// Whether a draining node hands its sessions over now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Go,
    /// There is no heir, or too little room behind the drains before this one.
    Wait,
}

/// What `me`, which drains, is to do; `waited` if it has been told to wait before. Loads are
/// those of the last heartbeats, so the room is an estimate; the drain's deadline is what
/// bounds a wait.
#[must_use]
pub fn verdict(members: &[Member], me: Incarnation, waited: bool) -> Verdict {
    let others = || members.iter().filter(|m| m.incarnation != me && !m.lease_remaining.is_zero());
    let ahead = || others().filter(|m| m.state == MemberState::Draining && m.incarnation < me);
    let heirs = || others().filter(|m| m.state == MemberState::Active);
    let mine = members.iter().find(|m| m.incarnation == me);
    let need: u64 = ahead().chain(mine).map(|m| u64::from(m.load)).sum();
    let room: u64 = heirs().map(|m| u64::from(m.capacity.saturating_sub(m.load))).sum();
    let heir = heirs().next().is_some();
    if heir && need <= room {
        return Verdict::Go;
    }
    let coming = others().any(|m| m.state == MemberState::Joining);
    // The first one goes even so: its return may be the room that the others wait for.
    let later = ahead().next().is_some() || (waited && heir);
    if coming || later { Verdict::Wait } else { Verdict::Go }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ring::placement::tests;

    fn member(n: i64, state: MemberState, load: u32) -> Member {
        Member { state, load, capacity: 100, ..tests::member(n, &format!("node-{n}")) }
    }

    fn verdicts(members: &[Member]) -> Vec<Verdict> {
        let draining = members.iter().filter(|m| m.state == MemberState::Draining);
        draining.map(|m| verdict(members, m.incarnation, false)).collect()
    }

    use MemberState::{Active, Draining, Joining};
    use Verdict::{Go, Wait};

    #[test]
    fn two_of_three_leave_at_once_where_the_third_has_room_for_both() {
        let ring = [member(1, Draining, 40), member(2, Draining, 40), member(3, Active, 20)];
        assert_eq!(verdicts(&ring), [Go, Go]);
    }

    #[test]
    fn the_second_waits_where_there_is_room_for_one_only() {
        let mut ring = [member(1, Draining, 40), member(2, Draining, 40), member(3, Active, 40)];
        assert_eq!(verdicts(&ring), [Go, Wait]);
        // The first has gone, and then come back as another incarnation.
        assert_eq!(verdict(&ring[1..], Incarnation(2), true), Go);
        ring[2].load = 80;
        assert_eq!(verdict(&ring[1..], Incarnation(2), true), Wait);
        ring[0] = member(4, Active, 0);
        assert_eq!(verdicts(&ring), [Go]);
    }

    #[test]
    fn all_of_a_ring_leave_one_after_another_and_the_last_one_alone() {
        let ring = [member(1, Draining, 5), member(2, Draining, 5), member(3, Draining, 5)];
        assert_eq!(verdicts(&ring), [Go, Wait, Wait]);
        assert_eq!(verdicts(&ring[1..]), [Go, Wait]);
        assert_eq!(verdicts(&ring[2..]), [Go]);
    }

    #[test]
    fn a_node_that_is_about_to_be_an_heir_is_waited_for() {
        let ring = [member(1, Draining, 5), member(2, Joining, 0)];
        assert_eq!(verdicts(&ring), [Wait]);
        assert_eq!(verdicts(&[member(1, Draining, 5), member(2, Active, 0)]), [Go]);
    }

    #[test]
    fn a_drain_that_died_under_way_holds_up_nobody() {
        let mut ring = [member(1, Draining, 5), member(2, Draining, 5)];
        ring[0].lease_remaining = Duration::ZERO;
        assert_eq!(verdict(&ring, Incarnation(2), true), Go);
    }

    #[test]
    fn a_full_ring_that_nobody_joins_holds_up_the_later_drains_only() {
        let ring = [member(1, Draining, 90), member(2, Draining, 90), member(3, Active, 100)];
        assert_eq!(verdicts(&ring), [Go, Wait]);
    }
}
