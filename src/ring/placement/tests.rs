use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::*;

/// An ACTIVE member without a load.
pub fn member(incarnation: i64, node_id: &str) -> Member {
    Member {
        incarnation: Incarnation(incarnation),
        node_id: node_id.into(),
        peer_addr: "127.0.0.1:1".into(),
        build: "1.0.0".into(),
        zone: None,
        weight: 100,
        capacity: 10_000,
        process: String::new(),
        state: MemberState::Active,
        load: 0,
        lease_remaining: Duration::from_secs(15),
        lease: crate::store::LeaseEnd::default(),
    }
}

pub fn nodes(count: i64) -> Vec<Member> {
    (1..=count).map(|n| member(n, &format!("node-{n}"))).collect()
}

fn session(n: u64) -> SessionId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.to_le_bytes());
    SessionId(id)
}

fn sessions(count: u64) -> impl Iterator<Item = SessionId> {
    (0..count).map(session)
}

/// The seed of a random test: `SEED` if set, else a new one; printed so that a failure can
/// be run again.
fn seed() -> u64 {
    let seed =
        std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("SEED={seed}");
    seed
}

/// An arbitrary odd number whose multiples fill all bytes of an id.
const GOLDEN_STRIDE: u128 = 0x0123_4567_89ab_cdef_0fed_cba9_8765;

/// The fixture as this build would write it.
fn golden() -> String {
    let members = nodes(5);
    let placement = Placement::build(&members);
    let owner_of = |owner| &members.iter().find(|m| Some(m.incarnation) == owner).unwrap().node_id;
    let mut text = String::new();
    for id in ["", "a", "node-1", "ringspan-29.ringspan.default", "узел", &"n".repeat(253)] {
        for replica in [0, 1, 159, 1599] {
            let place = PinnedXxh3.hash_one(&Point { place: place(name(id), replica), rank: 7 });
            writeln!(text, "point {id:?} {replica} {place:016x}").unwrap();
        }
    }
    for n in 0..256_u128 {
        let id = SessionId((n * GOLDEN_STRIDE).to_le_bytes());
        let place = PinnedXxh3.hash_one(Key(id.0));
        writeln!(text, "session {id} {place:016x} {}", owner_of(placement.owner(id))).unwrap();
    }
    text
}

#[test]
fn every_release_places_the_golden_sessions_alike() {
    let golden = golden();
    for (line, (ours, pinned)) in golden.lines().zip(include_str!("golden.txt").lines()).enumerate()
    {
        assert_eq!(ours, pinned, "golden.txt:{}: the ring of another release differs", line + 1);
    }
    assert_eq!(golden.lines().count(), include_str!("golden.txt").lines().count());
}

#[test]
fn an_empty_ring_owns_nothing() {
    let placement = Placement::build(&[]);
    assert_eq!(placement.owner(session(1)), None);
    assert_eq!(placement.successors(session(1)).count(), 0);
    assert!(placement.heirs(session(1), &[], |_| ()).is_empty());
}

#[test]
fn only_active_members_are_ever_chosen() {
    let mut members = nodes(5);
    members[0].state = MemberState::Joining;
    members[1].state = MemberState::Draining;
    members[2].state = MemberState::Dead;
    members[3].state = MemberState::Gone;
    let placement = Placement::build(&members);
    for id in sessions(1000) {
        assert_eq!(placement.owner(id), Some(Incarnation(5)));
        assert_eq!(placement.successors(id).collect::<Vec<_>>(), [Incarnation(5)]);
        assert_eq!(placement.heirs(id, &[], |_| ()), [Incarnation(5)]);
    }
    assert_eq!(placement.share(Incarnation(2)).to_bits(), 0_f64.to_bits());
}

#[test]
fn a_restarted_node_comes_back_to_its_place() {
    let before = Placement::build(&nodes(5));
    let mut members = nodes(5);
    members[1].state = MemberState::Dead;
    members.push(member(9, "node-2"));
    let after = before.refreshed(&members);
    assert!(Arc::ptr_eq(&before.circle, &after.circle));
    for id in sessions(1000) {
        let owner = before.owner(id).unwrap();
        let expected = if owner == Incarnation(2) { Incarnation(9) } else { owner };
        assert_eq!(after.owner(id), Some(expected));
    }
}

#[test]
fn the_newest_incarnation_stands_for_its_node_id() {
    let mut members = nodes(3);
    members.insert(0, member(7, "node-1"));
    members.push(member(5, "node-1"));
    let placement = Placement::build(&members);
    let mut chosen: Vec<_> = placement.successors(session(1)).collect();
    chosen.sort_unstable();
    assert_eq!(chosen, [Incarnation(2), Incarnation(3), Incarnation(7)]);
}

#[test]
fn a_lone_node_of_weight_zero_owns_the_whole_circle() {
    let mut members = nodes(1);
    members[0].weight = 0;
    let placement = Placement::build(&members);
    assert_eq!(placement.owner(session(1)), Some(Incarnation(1)));
    assert!((placement.share(Incarnation(1)) - 1.0).abs() < 1e-9);
}

#[test]
fn an_excessive_weight_is_bounded() {
    assert_eq!(points(u32::MAX), MAX_POINTS);
    assert_eq!((points(0), points(1), points(100)), (1, 2, POINTS));
}

#[test]
fn successors_follow_the_owners_that_would_be() {
    let members = nodes(8);
    for id in sessions(200) {
        let mut left = members.clone();
        for expected in Placement::build(&members).successors(id) {
            assert_eq!(Placement::build(&left).owner(id), Some(expected));
            left.retain(|member| member.incarnation != expected);
        }
        assert!(left.is_empty(), "every node comes up once");
    }
}

#[test]
fn heirs_of_the_newest_build_come_first() {
    let mut members = nodes(6);
    for (member, build) in members.iter_mut().zip(["1.9", "1.10", "1.10.0", "2.0-rc.1", "2", "0"]) {
        member.build = build.into();
    }
    let placement = Placement::build(&members);
    for id in sessions(100) {
        let heirs = placement.heirs(id, &[Incarnation(6)], |_| ());
        assert_eq!(heirs[..2], [Incarnation(5), Incarnation(4)]);
        assert_eq!(heirs[4], Incarnation(1));
        // The two of 1.10 in circle order.
        let circle: Vec<_> = placement.successors(id).filter(|i| matches!(i.0, 2 | 3)).collect();
        assert_eq!(heirs[2..4], circle);
    }
}

#[test]
fn a_loaded_heir_waits_however_new_and_a_full_one_waits_longest() {
    let mut members = nodes(4);
    for (member, load) in members.iter_mut().zip([100, 100, 126, 90]) {
        member.load = load;
    }
    members[2].build = "2.0.0".into();
    members[3].build = "3.0.0".into();
    members[3].capacity = 90;
    let heirs = Placement::build(&members).heirs(session(1), &[], |_| ());
    // Fair is 104, the bound 131: 126 is within, and new.
    assert_eq!((heirs[0], heirs[3]), (Incarnation(3), Incarnation(4)));

    members[2].load = 140;
    let heirs = Placement::build(&members).heirs(session(1), &[], |_| ());
    assert_eq!(heirs[2..], [Incarnation(3), Incarnation(4)]);
}

#[test]
fn twice_the_weight_may_carry_twice_the_load() {
    let mut members = nodes(3);
    members[0].weight = 200;
    for (member, load) in members.iter_mut().zip([240, 130, 30]) {
        member.load = load;
    }
    let heirs = Placement::build(&members).heirs(session(1), &[], |_| ());
    assert_eq!(heirs[2], Incarnation(2), "130 is above its bound, 240 of the heavy one is not");
}

#[test]
fn sessions_of_a_draining_node_count_towards_the_bound() {
    let mut members = nodes(3);
    members[0].state = MemberState::Draining;
    members[0].load = 100;
    members[1].load = 60;
    members[1].build = "2.0.0".into();
    members[2].load = 0;
    // 160 sessions for two nodes: 60 is little.
    assert_eq!(Placement::build(&members).heirs(session(1), &[], |_| ())[0], Incarnation(2));
}

#[test]
fn balance_and_movement_keep_their_figures_for_random_names() {
    const NODES: i64 = 30;
    const SESSIONS: u32 = 30_000;
    let mut rng = StdRng::seed_from_u64(seed());
    let mut members: Vec<Member> =
        (1..=NODES + 1).map(|n| member(n, &format!("pod-{:08x}", rng.random::<u32>()))).collect();
    let joined = Placement::build(&members);
    let newcomer = members.pop().unwrap().incarnation;
    let before = Placement::build(&members);

    // A share's deviation is 1/sqrt(160) = 8% of the mean: five of them is 40%.
    for member in &members {
        let of_mean = before.share(member.incarnation) * 30.0;
        assert!((0.6..1.4).contains(&of_mean), "{} has {of_mean}", member.node_id);
    }
    let mut moved = 0;
    let mut taken = BTreeMap::new();
    for _ in 0..SESSIONS {
        let id = SessionId(rng.random());
        *taken.entry(before.owner(id)).or_insert(0_u32) += 1;
        if before.owner(id) != joined.owner(id) {
            assert_eq!(joined.owner(id), Some(newcomer));
            moved += 1;
        }
    }
    let moved = f64::from(moved) / f64::from(SESSIONS);
    let expected = joined.share(newcomer);
    assert!((moved - expected).abs() < 0.01, "moved {moved}, share {expected}");
    for (owner, sessions) in taken {
        let found = f64::from(sessions) / f64::from(SESSIONS);
        let share = before.share(owner.unwrap());
        assert!((found - share).abs() < 0.01, "found {found}, share {share}");
    }
}

prop_compose! {
    fn any_members()(rows in prop::collection::vec((0_u8..24, 0_u32..300, 0_usize..5, 0_u32..200), 1..24))
        -> Vec<Member> {
        let states = [
            MemberState::Active, MemberState::Active, MemberState::Draining,
            MemberState::Dead, MemberState::Joining,
        ];
        (1..).zip(rows).map(|(incarnation, (name, weight, state, load))| {
            let mut member = member(incarnation, &format!("n{name}"));
            (member.weight, member.state, member.load) = (weight, states[state], load);
            member
        }).collect()
    }
}

#[test]
fn shares_add_up_to_the_circle_and_follow_weights() {
    for heavy in (50..400).step_by(5) {
        let mut members = nodes(12);
        members[0].weight = heavy;
        let placement = Placement::build(&members);
        let shares: Vec<f64> = members.iter().map(|m| placement.share(m.incarnation)).collect();
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let fair = f64::from(heavy) / (f64::from(heavy) + 1100.0);
        assert!((shares[0] / fair - 1.0).abs() < 0.35, "{heavy}: {} of {fair}", shares[0]);
    }
}

/// As after two nodes met at one place and the one that has it leaves.
#[test]
fn a_point_that_had_given_way_comes_back() {
    let names = || nodes(3).into_iter().map(|node| (node.node_id, 160)).collect::<Vec<_>>();
    let whole = Circle::build(names(), None);
    let mut known = Circle::build(names(), None);
    known.points.remove(7);
    let places =
        |circle: &Circle| circle.points.iter().map(|point| point.place).collect::<Vec<_>>();
    assert_eq!(places(&Circle::build(names(), Some(&known))), places(&whole));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_members_does_not_matter(members in any_members(), seed: u64) {
        let mut shuffled = members.clone();
        shuffled.shuffle(&mut StdRng::seed_from_u64(seed));
        let (one, two) = (Placement::build(&members), Placement::build(&shuffled));
        for id in sessions(64) {
            prop_assert_eq!(one.owner(id), two.owner(id));
            prop_assert_eq!(one.heirs(id, &[], |_| ()), two.heirs(id, &[], |_| ()));
        }
    }

    #[test]
    fn every_answer_is_an_active_member_and_comes_once(members in any_members(), n: u64) {
        let placement = Placement::build(&members);
        let chosen: Vec<_> = placement.successors(session(n)).collect();
        prop_assert_eq!(placement.owner(session(n)), chosen.first().copied());
        let mut heirs = placement.heirs(session(n), &[], |_| ());
        heirs.sort_unstable();
        let mut sorted = chosen.clone();
        sorted.sort_unstable();
        prop_assert_eq!(&heirs, &sorted);
        sorted.dedup();
        prop_assert_eq!(sorted.len(), chosen.len());
        for incarnation in chosen {
            let member = members.iter().find(|m| m.incarnation == incarnation).unwrap();
            prop_assert_eq!(member.state, MemberState::Active);
        }
    }

    #[test]
    fn a_leaver_moves_its_own_sessions_only_and_to_its_successors(members in any_members(), gone: prop::sample::Index) {
        let before = Placement::build(&members);
        let gone = gone.get(&members).node_id.clone();
        let rest: Vec<_> = members.iter().filter(|m| m.node_id != gone).cloned().collect();
        let after = before.refreshed(&rest);
        for id in sessions(256) {
            let owner = before.owner(id);
            let stays = members.iter().any(|m| Some(m.incarnation) == owner && m.node_id != gone);
            if stays {
                prop_assert_eq!(after.owner(id), owner);
            } else {
                prop_assert_eq!(after.owner(id), before.successors(id).nth(1));
            }
        }
    }

    #[test]
    fn refreshing_equals_building(members in any_members(), newer in any_members()) {
        let (built, refreshed) = (Placement::build(&newer), Placement::build(&members).refreshed(&newer));
        for id in sessions(64) {
            prop_assert_eq!(built.heirs(id, &[], |_| ()), refreshed.heirs(id, &[], |_| ()));
        }
        for member in &newer {
            let share = built.share(member.incarnation);
            prop_assert!((refreshed.share(member.incarnation) - share).abs() < f64::EPSILON);
        }
    }
}
