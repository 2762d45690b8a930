//! How evenly does placement spread sessions, how many move when the ring changes, and how
//! often does a session move in a rolling update? The figures of `docs/placement.md`:
//! `cargo run --release --example balance [seed]`.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

#[path = "../benches/parts/mod.rs"]
mod parts;

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, rngs::StdRng};
use ringspan::{
    ids::{Incarnation, SessionId},
    ring::placement::Placement,
    store::{Member, MemberState},
};

const SESSIONS: usize = 1_000_000;
const PODS: i64 = 30;

/// Sessions that a leaving pod hands off between two looks at the loads of the others.
const HANDOFFS_PER_REFRESH: usize = 100;

fn main() {
    let seed = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut rng = StdRng::seed_from_u64(seed);
    let ids: Vec<SessionId> = (0..SESSIONS).map(|_| SessionId(rng.random())).collect();
    println!("seed {seed}, {SESSIONS} sessions\n");

    println!("nodes  max/mean  moved on a join x (n+1)  astray  hottest successor/mean");
    for nodes in [3, 30, 300, 3000] {
        spread(nodes, &ids);
    }

    println!("\nrolling update of {PODS} pods  moves/session  peak load/mean  final load/mean");
    for (name, policy) in [
        ("sessions follow the ring    ", Policy::FollowRing),
        ("claims stick, ring successor", Policy::Successor),
        ("claims stick, heirs         ", Policy::Heirs),
        ("the same, of one build      ", Policy::Newcomers),
    ] {
        rolling_update(name, policy, &ids);
    }
}

fn member(incarnation: i64, build: &str) -> Member {
    Member { capacity: u32::MAX, ..parts::member(incarnation, build) }
}

/// Largest of `loads` in means of `nodes`.
fn peak(loads: &BTreeMap<Incarnation, u32>, nodes: i64) -> f64 {
    let total: u32 = loads.values().sum();
    let max = loads.values().max().copied().unwrap_or(0);
    f64::from(max) * f64::from(u32::try_from(nodes).unwrap_or(u32::MAX)) / f64::from(total)
}

fn spread(nodes: i64, ids: &[SessionId]) {
    let mut members: Vec<Member> = (1..=nodes + 1).map(|n| member(n, "1.0.0")).collect();
    let joined = Placement::build(&members);
    let newcomer = members.pop().map(|member| member.incarnation);
    let before = Placement::build(&members);
    let leaver = members[0].incarnation;
    members[0].state = MemberState::Draining;
    let left = Placement::build(&members);

    let (mut moved, mut astray) = (0_u32, 0_u32);
    let (mut loads, mut inherited) = (BTreeMap::new(), BTreeMap::new());
    for id in ids {
        let (Some(owner), now) = (before.owner(*id), joined.owner(*id)) else { continue };
        *loads.entry(owner).or_insert(0) += 1;
        if now != Some(owner) {
            moved += 1;
            astray += u32::from(now != newcomer);
        }
        if owner == leaver
            && let Some(heir) = left.owner(*id)
        {
            *inherited.entry(heir).or_insert(0) += 1;
        }
    }
    let all = f64::from(loads.values().sum::<u32>());
    let times = f64::from(u32::try_from(nodes + 1).unwrap_or(u32::MAX));
    println!(
        "{nodes:>5}  {:>8.2}  {:>23.2}  {astray:>6}  {:>22.2}",
        peak(&loads, nodes),
        f64::from(moved) / all * times,
        peak(&inherited, nodes - 1),
    );
}

/// Where a session goes.
#[derive(Clone, Copy, PartialEq)]
enum Policy {
    /// Always to the owner by the ring, whenever that changes.
    FollowRing,
    /// It stays; when its pod leaves, to the next on the ring.
    Successor,
    /// It stays; when its pod leaves, to the first of [`Placement::heirs`].
    Heirs,
    /// The same where the new pods are of the same build: the pods that came last go first.
    Newcomers,
}

/// Each pod in turn: a new one joins under a new name, then an old one leaves.
fn rolling_update(name: &str, policy: Policy, ids: &[SessionId]) {
    let mut members: Vec<Member> = (1..=PODS).map(|n| member(n, "1.0.0")).collect();
    let mut placement = Placement::build(&members);
    let mut owners: Vec<Option<Incarnation>> = ids.iter().map(|id| placement.owner(*id)).collect();
    let mut loads: BTreeMap<Incarnation, u32> = BTreeMap::new();
    for owner in owners.iter().flatten() {
        *loads.entry(*owner).or_insert(0) += 1;
    }
    let (mut moves, mut highest) = (0_u32, 0_f64);
    let mut go =
        |owner: &mut Option<Incarnation>, to: Option<Incarnation>, loads: &mut BTreeMap<_, u32>| {
            if *owner != to {
                moves += 1;
                for (node, change) in [(*owner, -1), (to, 1)] {
                    if let Some(node) = node {
                        let load = loads.entry(node).or_insert(0);
                        *load = load.saturating_add_signed(change);
                    }
                }
                *owner = to;
            }
        };

    for step in 1..=PODS {
        let build = if policy == Policy::Newcomers { "1.0.0" } else { "2.0.0" };
        members.push(member(PODS + step, build));
        placement = placement.refreshed(&members);
        if policy == Policy::FollowRing {
            for (id, owner) in ids.iter().zip(&mut owners) {
                go(owner, placement.owner(*id), &mut loads);
            }
        }
        let leaver = Some(Incarnation(step));
        for member in members.iter_mut().filter(|member| Some(member.incarnation) == leaver) {
            member.state = MemberState::Draining;
        }
        placement = placement.refreshed(&members);
        let leaving = ids.iter().zip(&mut owners).filter(|(_, owner)| **owner == leaver);
        for (handoff, (id, owner)) in leaving.enumerate() {
            let by_load = matches!(policy, Policy::Heirs | Policy::Newcomers);
            if by_load && handoff % HANDOFFS_PER_REFRESH == 0 {
                for member in &mut members {
                    member.load = loads.get(&member.incarnation).copied().unwrap_or(0);
                }
                placement = placement.refreshed(&members);
            }
            let heir = match policy {
                Policy::FollowRing | Policy::Successor => placement.owner(*id),
                Policy::Heirs | Policy::Newcomers => {
                    placement.heirs(*id, &[], |heir| heir.0 <= PODS).first().copied()
                }
            };
            go(owner, heir, &mut loads);
        }
        members.retain(|member| Some(member.incarnation) != leaver);
        loads.retain(|_, load| *load > 0);
        highest = highest.max(peak(&loads, PODS));
    }
    let total = f64::from(u32::try_from(ids.len()).unwrap_or(u32::MAX));
    println!(
        "{name}  {:>19.2}  {highest:>14.2}  {:>15.2}",
        f64::from(moves) / total,
        peak(&loads, PODS)
    );
}
