//! Who gives sessions away after a join, and how many. Pure.
//!
//! A node that joins gets new sessions only, so where sessions live for long the others stay
//! fuller than they should. Each owner decides for itself, from the loads that all nodes say
//! with their heartbeats, and gives only its part of what fits below the takers' fair share: so
//! however many give at once on the same figures, no taker becomes a giver, and nothing
//! swings back and forth.

use crate::{
    ids::Incarnation,
    store::{Member, MemberState},
};

/// What one node gives away in one round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Sessions to give away.
    pub give: u32,
    /// Who takes them, and how many of ours each has room for below its share.
    takers: Vec<(Incarnation, u32)>,
}

/// A member with its fair share of all sessions.
struct Share<'a> {
    member: &'a Member,
    fair: f64,
}

impl Share<'_> {
    /// Sessions above `times` the fair share.
    fn above(&self, times: f64) -> f64 {
        (f64::from(self.member.load) - self.fair * times).max(0.0)
    }

    /// Whole sessions that are missing to the fair share and fit into the capacity.
    fn room(&self) -> u32 {
        let room = self.member.capacity.saturating_sub(self.member.load);
        whole(self.fair - f64::from(self.member.load)).min(room)
    }
}

/// What `me` is to give away now; None while there is nothing to do. It begins above
/// `tolerance` (in percent of its fair share by weight), and then goes on to half of that
/// (`begun`), so that a load near the bound does not make it begin again and again. Nothing
/// moves while any member joins or leaves.
#[must_use]
pub fn plan(members: &[Member], me: Incarnation, tolerance: u32, begun: bool) -> Option<Plan> {
    let alive = || members.iter().filter(|member| member.state.is_alive());
    if alive().any(|member| member.state != MemberState::Active) {
        return None;
    }
    let sessions: f64 = alive().map(|member| f64::from(member.load)).sum();
    let weight: f64 = alive().map(|member| f64::from(member.weight.max(1))).sum();
    let share =
        |member| Share { member, fair: sessions * f64::from(member.weight.max(1)) / weight };
    let shares: Vec<Share<'_>> = alive().map(share).collect();
    let mine = shares.iter().find(|share| share.member.incarnation == me)?;
    let bound = f64::from(tolerance.max(100)) / 100.0;
    let half = f64::midpoint(1.0, bound);
    if mine.above(if begun { half } else { bound }) < 1.0 {
        return None;
    }
    // Others that are above give at the same time: each gets its part of each taker's room.
    let all: f64 = shares.iter().map(|share| share.above(half)).sum();
    let surplus = mine.above(half);
    let part = |room: u32| whole(f64::from(room) * surplus / all);
    let mut takers: Vec<_> = shares
        .iter()
        .map(|share| (share.member.incarnation, part(share.room())))
        .filter(|(_, room)| *room > 0)
        .collect();
    takers.sort_by_key(|(taker, room)| (std::cmp::Reverse(*room), *taker));
    let room = takers.iter().map(|(_, room)| *room).fold(0, u32::saturating_add);
    let give = whole(surplus).min(room);
    (give > 0).then_some(Plan { give, takers })
}

impl Plan {
    /// Who takes the next session: `home` (where the ring would place it) if it has room,
    /// else who has most. None when everything is given.
    pub fn next(&mut self, home: Option<Incarnation>) -> Option<Incarnation> {
        self.give = self.give.checked_sub(1)?;
        let homely = self.takers.iter().position(|(taker, room)| Some(*taker) == home && *room > 0);
        let at = homely.or_else(|| {
            let rooms = self.takers.iter().enumerate().filter(|(_, (_, room))| *room > 0);
            rooms.max_by_key(|(_, (_, room))| *room).map(|(at, _)| at)
        })?;
        self.takers[at].1 -= 1;
        Some(self.takers[at].0)
    }

    /// Whether that member takes sessions at all.
    #[must_use]
    pub fn takes(&self, member: Incarnation) -> bool {
        self.takers.iter().any(|(taker, _)| *taker == member)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of sessions, clamped to its type; the fraction is what is to go"
)]
fn whole(sessions: f64) -> u32 {
    sessions.clamp(0.0, f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ring::placement::tests::nodes;

    fn ring(loads: &[(u32, u32)]) -> Vec<Member> {
        let member = |(member, &(load, weight)): (Member, &(u32, u32))| Member {
            load,
            weight,
            capacity: 1_000_000,
            ..member
        };
        nodes(i64::try_from(loads.len()).unwrap()).into_iter().zip(loads).map(member).collect()
    }

    /// One round: everybody decides on the same figures, then moves at most `most`. How many
    /// each gave.
    fn round(members: &mut [Member], tolerance: u32, begun: &mut [bool], most: u32) -> Vec<u32> {
        let view = members.to_vec();
        let mut given = vec![0; members.len()];
        for at in 0..view.len() {
            let plan = plan(&view, view[at].incarnation, tolerance, begun[at]);
            begun[at] = plan.is_some();
            let Some(mut plan) = plan else { continue };
            while given[at] < most
                && let Some(taker) = plan.next(None)
            {
                given[at] += 1;
                members[at].load -= 1;
                members.iter_mut().find(|m| m.incarnation == taker).unwrap().load += 1;
            }
        }
        given
    }

    proptest! {
        #[test]
        fn loads_converge_and_nobody_who_takes_ever_gives(
            loads in prop::collection::vec((0..5_000_u32, 50..200_u32), 1..12),
            tolerance in 105..200_u32,
            most in 1..500_u32,
        ) {
            let mut members = ring(&loads);
            let total: u32 = loads.iter().map(|(load, _)| load).sum();
            let mut begun = vec![false; members.len()];
            let (mut gave, mut took) = (vec![false; members.len()], vec![false; members.len()]);
            let mut moves = 0;
            let mut rounds = 0;
            loop {
                let before: Vec<u32> = members.iter().map(|member| member.load).collect();
                let given: u32 = round(&mut members, tolerance, &mut begun, most).iter().sum();
                if given == 0 {
                    break;
                }
                moves += given;
                rounds += 1;
                prop_assert!(rounds <= total + 1, "it goes on for ever");
                for (at, member) in members.iter().enumerate() {
                    gave[at] |= member.load < before[at];
                    took[at] |= member.load > before[at];
                    prop_assert!(!(gave[at] && took[at]), "node {at} swings");
                }
            }
            let weight: u32 = loads.iter().map(|(_, weight)| weight).sum();
            let nodes = f64::from(u32::try_from(loads.len()).unwrap());
            let mut surplus = 0.0;
            for ((member, (before, _)), n) in members.iter().zip(&loads).zip(1..) {
                let fair = f64::from(total) * f64::from(member.weight) / f64::from(weight);
                surplus += (f64::from(*before) - fair).max(0.0);
                // Takers that miss less than one session each take no more.
                let bound = (fair * f64::from(tolerance) / 100.0).max(fair + nodes) + 1.0;
                prop_assert!(f64::from(member.load) <= bound, "node {n}: {} of {bound}", member.load);
            }
            prop_assert!(f64::from(moves) <= surplus + 1.0, "{moves} moves for {surplus}");
        }
    }

    #[test]
    fn a_third_node_gets_its_part_from_both_others() {
        let mut members = ring(&[(30, 100), (30, 100), (0, 100)]);
        let given = round(&mut members, 125, &mut [false; 3], 100);
        assert_eq!(given, [7, 7, 0], "down to half of the tolerance above 20");
        assert_eq!(round(&mut members, 125, &mut [true, true, false], 100), [0, 0, 0]);
    }

    #[test]
    fn within_the_tolerance_nothing_begins_and_what_has_begun_goes_on() {
        let members = ring(&[(24, 100), (18, 100), (18, 100)]);
        assert_eq!(plan(&members, Incarnation(1), 125, false), None);
        assert_eq!(plan(&members, Incarnation(1), 125, true).unwrap().give, 1);
    }

    #[test]
    fn nothing_moves_while_a_member_joins_or_leaves() {
        for state in [MemberState::Joining, MemberState::Draining] {
            let mut members = ring(&[(60, 100), (0, 100), (0, 100)]);
            members[2].state = state;
            assert_eq!(plan(&members, Incarnation(1), 125, true), None);
        }
    }

    #[test]
    fn a_session_goes_home_if_there_is_room_and_otherwise_where_there_is_most() {
        let mut plan =
            plan(&ring(&[(90, 100), (28, 100), (2, 100)]), Incarnation(1), 125, false).unwrap();
        assert!(plan.takes(Incarnation(2)) && !plan.takes(Incarnation(1)));
        assert_eq!(plan.next(Some(Incarnation(2))), Some(Incarnation(2)));
        assert_eq!(plan.next(Some(Incarnation(1))), Some(Incarnation(3)));
    }
}
