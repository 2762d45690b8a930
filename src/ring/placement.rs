//! Consistent placement of sessions on the ACTIVE members of the ring.
//!
//! A node stands on a circle of 2^64 places at several *points* ([`POINTS`] for an ordinary
//! weight); a session belongs to the first point at or after its own place. All places are
//! xxh3-64 of explicit bytes under a pinned seed:
//!
//! ```text
//! session   xxh3(16 bytes of its id)
//! point     xxh3(LE64(xxh3(node id)) ++ LE32(replica))      replica = 0, 1, 2, …
//! ```
//!
//! so two releases, compilers or machines never disagree in a rolling upgrade
//! (`placement/golden.txt` pins it). The node id is hashed and not the incarnation: a
//! restarted node comes back to its place.
//!
//! `hashring` finds the first point; beyond it the crate offers `get_with_replicas` alone,
//! which clones the whole ring. So each point also knows its *rank* (its index in circle
//! order), and the candidates after it are read off a plain array, `order`, from that rank
//! on: one step is one array access.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    mem,
    sync::Arc,
};

use hashring::HashRing;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::build::Build;
use crate::{
    ids::{Incarnation, SessionId},
    store::{Member, MemberState},
};

/// Points of a node of weight 100. With 160 the fullest of 30 nodes is 12% above the mean;
/// more would only slow the look-up down.
pub const POINTS: u32 = 160;

/// Most points of one node (weight 1000): bounds memory and the time of a build.
pub const MAX_POINTS: u32 = 10 * POINTS;

/// An heir is preferred while it stays below 5/4 of its fair share of all sessions. A
/// tighter bound moves sessions twice in a rolling update, a looser one overloads the
/// first new pods.
const LOAD_BOUND: (u64, u64) = (5, 4);

/// Seed of every place on the circle. A change moves nearly every session: never change it
/// without a migration that spans two releases.
const SEED: u64 = u64::from_be_bytes(*b"ringspan");

/// Who a session belongs to if nobody has claimed it, and who should inherit it. Cheap to
/// clone; never changes once built.
#[derive(Clone)]
pub struct Placement {
    circle: Arc<Circle>,
    /// By ascending node id, as in [`Circle::nodes`].
    candidates: Arc<[Candidate]>,
}

/// What depends on node ids and weights only, and so outlives heartbeats and restarts.
struct Circle {
    /// Node id and number of points, by ascending node id.
    nodes: Vec<(String, u32)>,
    ring: HashRing<Point, PinnedXxh3>,
    /// What `ring` holds, in circle order.
    points: Vec<Placed>,
    /// Fraction of the circle that belongs to each node.
    shares: Box<[f64]>,
}

struct Candidate {
    incarnation: Incarnation,
    build: Build,
    standing: Standing,
}

/// How much room a node has, the roomiest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    WithinBound,
    AboveBound,
    AtCapacity,
}

impl Placement {
    /// Placement over the ACTIVE ones of `members`, in whatever order they come. Of several
    /// incarnations of a node id the newest stands for it. A weight of 0 still gets one
    /// point (an ACTIVE member can always be chosen; drain it to take it out), and weights
    /// beyond 1000 count as 1000.
    #[must_use]
    pub fn build(members: &[Member]) -> Self {
        Self::assemble(members, None)
    }

    /// The placement over a newer view; equal to [`Placement::build`] of it. Costs a
    /// fraction of that where few nodes came or went, and next to nothing as long as node ids
    /// and weights are the same, so loads can be kept fresh at every poll.
    #[must_use]
    pub fn refreshed(&self, members: &[Member]) -> Self {
        Self::assemble(members, Some(&self.circle))
    }

    fn assemble(members: &[Member], known: Option<&Arc<Circle>>) -> Self {
        let mut active: BTreeMap<&str, &Member> = BTreeMap::new();
        for member in members.iter().filter(|member| member.state == MemberState::Active) {
            let newest = active.entry(&member.node_id).or_insert(member);
            if member.incarnation > newest.incarnation {
                *newest = member;
            }
        }

        // Sessions of a draining node count: they are about to land on the active ones.
        let sessions: u64 = members
            .iter()
            .filter(|member| member.state.is_alive())
            .map(|member| u64::from(member.load))
            .sum();
        let all_points: u64 = active.values().map(|member| u64::from(points(member.weight))).sum();
        let candidates = active
            .values()
            .map(|member| Candidate {
                incarnation: member.incarnation,
                build: Build::parse(&member.build),
                standing: Standing::of(member, sessions, all_points),
            })
            .collect();

        let unchanged =
            known.filter(|circle| {
                circle.nodes.len() == active.len()
                    && circle.nodes.iter().zip(active.values()).all(|((id, count), now)| {
                        *id == now.node_id && *count == points(now.weight)
                    })
            });
        let circle = unchanged.map_or_else(
            || {
                let nodes = active.values().map(|m| (m.node_id.clone(), points(m.weight)));
                Arc::new(Circle::build(nodes.collect(), known.map(Arc::as_ref)))
            },
            Arc::clone,
        );
        Self { circle, candidates }
    }

    /// Where a new session belongs; None if no member is ACTIVE.
    #[must_use]
    pub fn owner(&self, id: SessionId) -> Option<Incarnation> {
        let rank = self.circle.rank(id)?;
        Some(self.candidates[self.circle.points[rank].node as usize].incarnation)
    }

    /// All ACTIVE members, each once, in circle order from `id` on: the owner first, then
    /// who would be the owner without it, and so on.
    pub fn successors(&self, id: SessionId) -> impl Iterator<Item = Incarnation> {
        self.candidates_from(id).map(|candidate| candidate.incarnation)
    }

    /// Fraction of new sessions that belong to `incarnation`; 0 if it is not ACTIVE.
    #[must_use]
    pub fn share(&self, incarnation: Incarnation) -> f64 {
        self.candidates
            .iter()
            .zip(&self.circle.shares)
            .find(|(candidate, _)| candidate.incarnation == incarnation)
            .map_or(0.0, |(_, share)| *share)
    }

    /// Who should inherit session `id`, best first: nodes within the load bound before
    /// those above it, and those before nodes at capacity; among equals the newest build,
    /// so that a rolling update moves a session once; among equals those of the lower
    /// `rank`; and then in circle order, which spreads the sessions of one node over many.
    ///
    /// The loads are those of the view: callers that move many sessions at once refresh in
    /// between, or let the heir refuse and pass it in `exclude`.
    #[must_use]
    pub fn heirs<R: Ord>(
        &self,
        id: SessionId,
        exclude: &[Incarnation],
        rank: impl Fn(Incarnation) -> R,
    ) -> Vec<Incarnation> {
        let mut heirs: Vec<&Candidate> = self
            .candidates_from(id)
            .filter(|candidate| !exclude.contains(&candidate.incarnation))
            .collect();
        heirs.sort_by_key(|heir| (heir.standing, Reverse(&heir.build), rank(heir.incarnation)));
        heirs.into_iter().map(|heir| heir.incarnation).collect()
    }

    fn candidates_from(&self, id: SessionId) -> impl Iterator<Item = &Candidate> {
        let rank = self.circle.rank(id).unwrap_or(0);
        let (wrapped, ahead) = self.circle.points.split_at(rank);
        let mut seen = vec![false; self.candidates.len()];
        ahead
            .iter()
            .chain(wrapped)
            .map(|point| point.node as usize)
            .filter(move |node| !mem::replace(&mut seen[*node], true))
            // Ends the walk at the last node instead of after the last point.
            .take(self.candidates.len())
            .map(|node| &self.candidates[node])
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placement").field("nodes", &self.circle.nodes).finish_non_exhaustive()
    }
}

impl Circle {
    /// The circle of `nodes`, which ascend by id. What `known` has of them is taken from it.
    fn build(nodes: Vec<(String, u32)>, known: Option<&Self>) -> Self {
        let mut points = Vec::new();
        let mut newcomers = vec![true; nodes.len()];
        if let Some(known) = known.filter(|known| known.is_whole()) {
            points = known.kept_by(&nodes, &mut newcomers);
        }
        for (node, (id, count)) in (0_u32..).zip(&nodes).filter(|(n, _)| newcomers[*n as usize]) {
            let name = name(id);
            points.extend((0..*count).map(|replica| Placed { place: place(name, replica), node }));
        }
        // Of two points at one place the lower node id has it, on every node of the ring. A
        // stable sort, because it takes what is kept, and is in order, as it is.
        points.sort_by_key(|point| (point.place, point.node));
        points.dedup_by_key(|point| point.place);

        let mut ring = HashRing::with_hasher(PinnedXxh3);
        let ranked = (0_u32..).zip(&points).map(|(rank, at)| Point { place: at.place, rank });
        ring.batch_add(ranked.collect());
        Self { shares: shares(&points, nodes.len()), nodes, ring, points }
    }

    /// Whether no point gave way to another at its place: it would be missing when that one
    /// leaves.
    fn is_whole(&self) -> bool {
        self.points.len() == self.nodes.iter().map(|(_, count)| *count as usize).sum::<usize>()
    }

    /// The points of those of `nodes` that stand here already, in circle order; they are struck
    /// off `newcomers`.
    fn kept_by(&self, nodes: &[(String, u32)], newcomers: &mut [bool]) -> Vec<Placed> {
        let mut now = vec![None; self.nodes.len()];
        for ((node, known), newcomer) in (0_u32..).zip(nodes).zip(newcomers) {
            if let Ok(index) = self.nodes.binary_search(known) {
                (now[index], *newcomer) = (Some(node), false);
            }
        }
        let kept = |point: &Placed| Some(Placed { node: now[point.node as usize]?, ..*point });
        self.points.iter().filter_map(kept).collect()
    }

    /// Index in `points` of the point that `id` belongs to; None on an empty circle.
    fn rank(&self, id: SessionId) -> Option<usize> {
        self.ring.get(&Key(id.0)).map(|point| point.rank as usize)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share needs no 64 bits of precision")]
fn shares(points: &[Placed], nodes: usize) -> Box<[f64]> {
    const CIRCLE: u128 = 1 << 64;
    let mut lengths = vec![0_u128; nodes];
    let mut before = points.last().map_or(0, |point| point.place);
    for Placed { place, node } in points {
        // Places are distinct, so no distance at all means once around the circle.
        lengths[*node as usize] += match place.wrapping_sub(before) {
            0 => CIRCLE,
            distance => distance.into(),
        };
        before = *place;
    }
    lengths.into_iter().map(|length| length as f64 / CIRCLE as f64).collect()
}

impl Standing {
    fn of(member: &Member, sessions: u64, all_points: u64) -> Self {
        let (times, over) = LOAD_BOUND;
        // One session more than there are, so that an empty ring has room for its first.
        let fair = (sessions + 1) * u64::from(points(member.weight)) * times;
        if member.load >= member.capacity {
            Self::AtCapacity
        } else if u64::from(member.load) < fair.div_ceil(over * all_points) {
            Self::WithinBound
        } else {
            Self::AboveBound
        }
    }
}

/// Points of a node of `weight`.
fn points(weight: u32) -> u32 {
    (weight.min(1000) * POINTS).div_ceil(100).clamp(1, MAX_POINTS)
}

/// Name of the node `id` in the places of its points.
fn name(id: &str) -> u64 {
    xxh3_64_with_seed(id.as_bytes(), SEED)
}

/// Where the point `replica` of the node called `name` stands.
fn place(name: u64, replica: u32) -> u64 {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&name.to_le_bytes());
    bytes[8..].copy_from_slice(&replica.to_le_bytes());
    xxh3_64_with_seed(&bytes, SEED)
}

/// One point of a node and where it stands.
struct Placed {
    place: u64,
    /// Index of the node in [`Circle::nodes`].
    node: u32,
}

/// One point on the circle, as `hashring` keeps it.
struct Point {
    place: u64,
    /// Index among all points in circle order.
    rank: u32,
}

/// Its place is known: to hash all points again would be half of what a change costs.
impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.place);
    }
}

/// A session's id as the circle sees it: bytes without the length that `[u8; 16]` writes.
struct Key([u8; 16]);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

/// xxh3-64 under [`SEED`] of bytes, and a number as it is: exact for the single `write` of a
/// [`Key`] and the single `write_u64` of a [`Point`].
#[derive(Clone, Copy)]
struct PinnedXxh3;

struct PinnedXxh3Hasher(u64);

impl BuildHasher for PinnedXxh3 {
    type Hasher = PinnedXxh3Hasher;

    fn build_hasher(&self) -> PinnedXxh3Hasher {
        PinnedXxh3Hasher(SEED)
    }
}

impl Hasher for PinnedXxh3Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn write_u64(&mut self, place: u64) {
        self.0 = place;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
pub(super) mod tests;
