//! Which members a node may declare dead. Pure: callers bring the time and the view.
//!
//! An expired lease accuses, but the store may have been away for all alike: after an
//! outage everybody's lease has lapsed and nobody has died. So a node must first have
//! renewed its own lease without a break for a full TTL, in which every living member had
//! its chance to do the same; and when many have expired together it waits longer. The
//! store checks the lease once more when it marks a member (I4), so a mistake about leases
//! can cost time but never kills a member whose lease holds.
//!
//! All that rests on the store's clock, which somebody may set. After a step every lease is
//! wrong until it is renewed, so a step that is seen (the clock went otherwise than our own)
//! begins the count of heartbeats anew, like an outage.
//!
//! The store knows nothing of certificates ([`super::outage`]). That no member is declared
//! dead while it holds one, and gets none once it was, rests on three rules in here: a promise is
//! kept; no promise is given to a member that is dead by our last view, or that we may have
//! declared dead since; and a member that may not know of us, and so cannot have asked us, is
//! given all the time that a certificate can last.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::outage::Bounds;
use crate::{
    ids::Incarnation,
    store::{Member, RingView},
};

/// TTLs that a mass death is watched for, beyond the first.
const MASS_PATIENCE: u32 = 3;

/// Promises that may bind at once: more than members that a ring can have.
const MAX_PROMISES: usize = 4096;

/// Watches leases on behalf of one node. What it remembers is bounded by the view, but for
/// promises.
#[derive(Debug)]
pub struct Reaper {
    me: Incarnation,
    bounds: Bounds,
    streak: Option<Streak>,
    /// When each expired member was first seen so, during the present streak.
    expired: BTreeMap<Incarnation, Instant>,
    /// The view before this one.
    looked: Option<Look>,
    /// The store's clock had stepped between the last two views.
    stepped: bool,
    /// Members that have us in their view although they are older, and when they said so.
    acquainted: BTreeMap<Incarnation, Instant>,
    /// Until when we have promised a member not to declare it dead.
    promised: BTreeMap<Incarnation, Instant>,
    /// Who lives by the last view, less those of whom the store has said more since.
    alive: BTreeSet<Incarnation>,
    /// Whom we have declared dead, while the view holds them, for it may be of before.
    buried: BTreeSet<Incarnation>,
    /// The newest member of any view, dead or alive. Who is newer registered later than we
    /// looked, so we cannot have declared it dead.
    newest: Option<Incarnation>,
    /// Members that we began to declare dead and that still live, as far as we know.
    accused: BTreeMap<Incarnation, Accusation>,
}

/// How the store answered when we declared a member dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accusation {
    /// Not yet.
    Open,
    /// Not at all, once at least: it may do it at any later time.
    InDoubt,
}

/// When a view was asked for, when it came, and what the store's clock was in between.
#[derive(Clone, Copy, Debug)]
struct Look {
    asked: Instant,
    came: Instant,
    clock: Duration,
}

impl Look {
    /// Whether the store's clock went otherwise than ours until `next`, by more than the
    /// tenth of a lease. What clocks drift apart within a lease is far less, and a margin, by
    /// which a node gives its lease up before its time, is more.
    fn stepped(&self, next: &Self, ttl: Duration) -> bool {
        let least = next.asked.saturating_duration_since(self.came);
        let most = next.came.saturating_duration_since(self.asked);
        next.clock + ttl / 10 < self.clock + least || next.clock > self.clock + most + ttl / 10
    }
}

/// Heartbeats of our own without a break.
#[derive(Clone, Copy, Debug)]
struct Streak {
    since: Instant,
    last: Instant,
}

impl Reaper {
    /// A reaper for the member `me` of a ring whose leases have these bounds.
    #[must_use]
    pub const fn new(me: Incarnation, bounds: Bounds) -> Self {
        Self {
            me,
            bounds,
            streak: None,
            expired: BTreeMap::new(),
            looked: None,
            stepped: false,
            acquainted: BTreeMap::new(),
            promised: BTreeMap::new(),
            alive: BTreeSet::new(),
            buried: BTreeSet::new(),
            newest: None,
            accused: BTreeMap::new(),
        }
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

    /// Who may be declared dead, given a view that was asked for at `asked` and has come by
    /// `now`. Never this node. Say [`Reaper::settled`] of each whose fate the store has told, and
    /// [`Reaper::withdraw`] of each that it was not asked about.
    ///
    /// If more than a third of the live members (and more than one) have expired, each is
    /// only named after [`MASS_PATIENCE`] further TTLs of being seen so; a member that may
    /// not know us only after [`Bounds::stranger`].
    #[must_use]
    pub fn verdict(&mut self, view: &RingView, asked: Instant, now: Instant) -> Vec<Incarnation> {
        let ttl = self.bounds.ttl();
        // Between two looks that are further apart a lease can have been renewed and lapsed.
        let look = Look { asked, came: now, clock: view.clock };
        let before = self.looked.replace(look);
        if before.is_none_or(|before| now.saturating_duration_since(before.asked) >= ttl) {
            self.expired.clear();
        }
        self.stepped = before.is_some_and(|before| before.stepped(&look, ttl));
        if self.stepped {
            self.missed();
        }
        let alive: BTreeSet<_> = view.alive().map(|member| member.incarnation).collect();
        self.acquainted.retain(|incarnation, _| alive.contains(incarnation));
        self.accused.retain(|incarnation, _| alive.contains(incarnation));
        self.newest = self.newest.max(view.members.iter().map(|it| it.incarnation).max());
        self.alive.clone_from(&alive);
        self.buried.retain(|dead| view.members.iter().any(|it| it.incarnation == *dead));

        let Some(since) = self.unbroken_since(now) else { return Vec::new() };
        let expired =
            |member: &&Member| member.lease_remaining.is_zero() && member.incarnation != self.me;
        let seen = |member: &Member| {
            let first = self.expired.get(&member.incarnation).copied().unwrap_or(now);
            (member.incarnation, first)
        };
        // Those who renewed or left are forgotten.
        self.expired = view.alive().filter(expired).map(seen).collect();

        let trusted = since + ttl;
        let patience = if self.expired.len() > (alive.len() / 3).max(1) {
            MASS_PATIENCE * ttl
        } else {
            Duration::ZERO
        };
        let due = |(&incarnation, &first): (&Incarnation, &Instant)| {
            let patience = if self.is_acquainted(incarnation, now) {
                patience
            } else {
                self.bounds.stranger()
            };
            let promised = self.promised.get(&incarnation).is_some_and(|until| now < *until);
            (!promised && now >= trusted.max(first) + patience).then_some(incarnation)
        };
        let due: Vec<_> = self.expired.iter().filter_map(due).collect();
        for accused in &due {
            self.accused
                .entry(*accused)
                .and_modify(|before| *before = Accusation::InDoubt)
                .or_insert(Accusation::Open);
        }
        due
    }

    /// Whether the last view showed that the store's clock had stepped.
    #[must_use]
    pub const fn saw_step(&self) -> bool {
        self.stepped
    }

    /// The store has said what became of declaring a member dead: that it is, or that it was
    /// not done. An earlier attempt that it has not answered stays in doubt for as long as the
    /// member lives.
    pub fn settled(&mut self, member: Incarnation, dead: bool) {
        // If it lives after all, the next view says so.
        self.alive.remove(&member);
        if dead {
            self.buried.insert(member);
        }
        self.withdraw(member);
    }

    /// The store was not asked to declare this one dead after all.
    pub fn withdraw(&mut self, member: Incarnation) {
        if self.accused.get(&member) == Some(&Accusation::Open) {
            self.accused.remove(&member);
        }
    }

    /// Promises `member` not to declare it dead for [`Bounds::promise`]. False if that may
    /// be under way already, or is done: it may have lost its lease to us long before the
    /// outage, and not know.
    #[must_use]
    pub fn promise(&mut self, member: Incarnation, now: Instant) -> bool {
        self.promised.retain(|_, until| now < *until);
        let gone = Some(member) <= self.newest && !self.alive.contains(&member);
        let dead = gone || self.buried.contains(&member);
        if dead || self.accused.contains_key(&member) || self.promised.len() >= MAX_PROMISES {
            return false;
        }
        self.promised.insert(member, now + self.bounds.promise());
        true
    }

    /// `member` has said by `now` that this node is in its view, or is of a release that
    /// holds no certificates.
    pub fn acquaint(&mut self, member: Incarnation, now: Instant) {
        self.acquainted.entry(member).or_insert(now);
    }

    /// Whether this node is certainly in `member`'s view: it has said so, or it registered
    /// after us. Registrations take turns, and the first view is read after one's own.
    #[must_use]
    pub fn knows_us(&self, member: Incarnation) -> bool {
        member > self.me || self.acquainted.contains_key(&member)
    }

    /// A certificate that it got just before it knew us must be over as well.
    fn is_acquainted(&self, member: Incarnation, now: Instant) -> bool {
        if member > self.me {
            // It has never held one without us.
            return true;
        }
        let since = self.acquainted.get(&member);
        since.is_some_and(|since| now >= *since + self.bounds.promise())
    }

    fn unbroken_since(&self, now: Instant) -> Option<Instant> {
        self.streak
            .filter(|streak| now.saturating_duration_since(streak.last) < self.bounds.ttl())
            .map(|streak| streak.since)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::store::{LeaseEnd, MemberState};

    const TTL: Duration = Duration::from_secs(15);
    const BEAT: Duration = Duration::from_secs(3);
    const HOUR: Duration = Duration::from_hours(1);
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
            lease: LeaseEnd::default(),
        };
        RingView { version: 1, members: (1..=members).map(member).collect(), ..RingView::default() }
    }

    /// A reaper whom all of nine members know.
    fn reaper() -> Reaper {
        let mut reaper = Reaper::new(ME, Bounds::new(TTL));
        for n in 2..=9 {
            reaper.acquaint(Incarnation(n), long_ago());
        }
        reaper
    }

    /// What a reaper says to a view that is read in no time, by a clock that goes as its own.
    fn look(reaper: &mut Reaper, view: &RingView, now: Instant) -> Vec<Incarnation> {
        static START: LazyLock<Instant> = LazyLock::new(long_ago);
        let clock = now.duration_since(*START);
        reaper.verdict(&RingView { clock, ..view.clone() }, now, now)
    }

    fn long_ago() -> Instant {
        Instant::now().checked_sub(TTL).unwrap()
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
            let now = start + beat * BEAT;
            said = look(reaper, view, now);
        }
        (said.iter().map(|incarnation| incarnation.0).collect(), start + beats * BEAT)
    }

    #[test]
    fn a_node_without_heartbeats_of_its_own_accuses_nobody() {
        assert!(look(&mut reaper(), &view(3, 1), Instant::now()).is_empty());
    }

    #[test]
    fn one_expired_member_is_dead_after_a_full_ttl_of_own_heartbeats() {
        let start = Instant::now();
        assert!(watch(&mut reaper(), &view(3, 1), start, 4).0.is_empty());
        assert_eq!(watch(&mut reaper(), &view(3, 1), start, 5).0, [3]);
        assert_eq!(watch(&mut reaper(), &view(2, 1), start, 5).0, [2]);
    }

    #[test]
    fn after_a_step_of_the_stores_clock_every_lease_gets_a_ttl_to_be_renewed() {
        for step in [1, -1] {
            let mut reaper = reaper();
            let mut clock = 2 * HOUR;
            let said = |reaper: &mut Reaper, clock: &mut Duration, expired, now| {
                *clock += BEAT;
                reaper.heartbeat(now);
                reaper.verdict(&RingView { clock: *clock, ..view(3, expired) }, now, now)
            };
            let start = Instant::now();
            for beat in 0..20 {
                assert!(said(&mut reaper, &mut clock, 0, start + beat * BEAT).is_empty());
            }
            if step > 0 {
                clock += HOUR;
            } else {
                clock -= HOUR;
            }
            let stepped = start + 20 * BEAT;
            for beat in 0..6 {
                assert!(
                    said(&mut reaper, &mut clock, 1, stepped + beat * BEAT).is_empty(),
                    "{beat}"
                );
                assert_eq!(reaper.saw_step(), beat == 0);
            }
            let then = stepped + 6 * BEAT;
            assert_eq!(said(&mut reaper, &mut clock, 1, then), [Incarnation(3)]);
        }
    }

    #[test]
    fn a_view_that_comes_late_is_no_step() {
        for (late, stepped) in [(BEAT, false), (BEAT + TTL / 9, true)] {
            let mut reaper = reaper();
            let (_, now) = watch(&mut reaper, &view(3, 0), Instant::now(), 20);
            let clock = reaper.looked.unwrap().clock;
            let view = RingView { clock: clock + BEAT + late, ..view(3, 1) };
            // The store may have answered at any time between question and answer.
            drop(reaper.verdict(&view, now + BEAT, now + 2 * BEAT));
            assert_eq!(reaper.saw_step(), stepped, "{late:?}");
        }
    }

    #[test]
    fn a_seasoned_node_declares_a_death_at_its_first_sight() {
        let mut reaper = reaper();
        let (_, now) = watch(&mut reaper, &view(9, 0), Instant::now(), 20);
        assert_eq!(look(&mut reaper, &view(9, 3), now).len(), 3, "a third is not a mass");
    }

    #[test]
    fn a_missed_heartbeat_starts_the_wait_anew() {
        let mut reaper = reaper();
        let (_, now) = watch(&mut reaper, &view(3, 0), Instant::now(), 20);
        reaper.missed();
        assert!(look(&mut reaper, &view(3, 1), now).is_empty());
        assert!(watch(&mut reaper, &view(3, 1), now, 4).0.is_empty());
        assert_eq!(watch(&mut reaper, &view(3, 1), now + 5 * BEAT, 0).0, [3]);
    }

    #[test]
    fn a_process_that_was_stopped_trusts_its_view_no_more() {
        let mut reaper = reaper();
        let (_, now) = watch(&mut reaper, &view(3, 0), Instant::now(), 20);
        let woken = now + 2 * TTL;
        assert!(look(&mut reaper, &view(3, 1), woken).is_empty());
        assert!(watch(&mut reaper, &view(3, 1), woken, 4).0.is_empty());
    }

    #[test]
    fn a_mass_death_is_believed_only_after_three_more_ttls() {
        let mut reaper = reaper();
        let (_, now) = watch(&mut reaper, &view(9, 0), Instant::now(), 20);
        let (said, later) = watch(&mut reaper, &view(9, 4), now, 14);
        assert_eq!(said, [0; 0]);
        assert_eq!(watch(&mut reaper, &view(9, 4), later + BEAT, 0).0, [6, 7, 8, 9]);
    }

    #[test]
    fn after_an_outage_a_mass_gets_four_ttls_from_the_first_heartbeat() {
        let start = Instant::now();
        let mut reaper = reaper();
        assert!(watch(&mut reaper, &view(3, 2), start, 19).0.is_empty());
        assert_eq!(watch(&mut reaper, &view(3, 2), start + 20 * BEAT, 0).0, [2, 3]);
    }

    #[test]
    fn members_that_return_from_an_outage_are_forgiven() {
        let mut reaper = reaper();
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
        let (said, _) = watch(&mut reaper(), &members, Instant::now(), 60);
        assert_eq!(said, [2]);
    }

    #[test]
    fn a_promise_is_kept_for_its_time() {
        let mut reaper = reaper();
        let (_, now) = watch(&mut reaper, &view(9, 0), Instant::now(), 20);
        assert!(reaper.promise(Incarnation(9), now));
        assert!(look(&mut reaper, &view(9, 1), now).is_empty());
        let later = now + TTL / 2;
        reaper.heartbeat(later);
        assert_eq!(look(&mut reaper, &view(9, 1), later), [Incarnation(9)]);
    }

    #[test]
    fn nobody_is_promised_what_may_be_under_way_already() {
        let mut reaper = reaper();
        let (said, now) = watch(&mut reaper, &view(9, 1), Instant::now(), 5);
        assert_eq!(said, [9]);
        assert!(!reaper.promise(Incarnation(9), now));
        reaper.settled(Incarnation(9), false);
        assert!(!reaper.promise(Incarnation(9), now), "it is dead, or the next view says that not");
        assert!(look(&mut reaper, &view(9, 0), now).is_empty());
        assert!(reaper.promise(Incarnation(9), now), "the store refused: its lease holds");
    }

    #[test]
    fn whom_we_declared_dead_is_promised_nothing_though_a_late_view_has_it_alive() {
        let mut reaper = reaper();
        let (said, now) = watch(&mut reaper, &view(9, 1), Instant::now(), 5);
        assert_eq!(said, [9]);
        reaper.settled(Incarnation(9), true);
        assert!(look(&mut reaper, &view(9, 0), now).is_empty());
        assert!(!reaper.promise(Incarnation(9), now));
    }

    #[test]
    fn the_dead_are_promised_nothing_and_who_came_after_the_last_look_is() {
        let mut reaper = reaper();
        let (_, now) = watch(&mut reaper, &view(9, 0), Instant::now(), 5);
        assert!(look(&mut reaper, &view(8, 0), now).is_empty());
        assert!(!reaper.promise(Incarnation(9), now), "somebody else has declared it dead");
        assert!(reaper.promise(Incarnation(10), now), "nobody here can have declared it dead");
    }

    #[test]
    fn an_attempt_without_an_answer_is_not_settled_by_a_later_one() {
        let mut reaper = reaper();
        let (_, now) = watch(&mut reaper, &view(9, 1), Instant::now(), 6);
        reaper.settled(Incarnation(9), false);
        assert!(!reaper.promise(Incarnation(9), now));
        assert!(look(&mut reaper, &view(9, 0), now).is_empty());
        assert!(!reaper.promise(Incarnation(9), now), "the first attempt may still be done");
    }

    /// Registered after all others of these tests.
    const NEWCOMER: Incarnation = Incarnation(99);

    #[test]
    fn a_member_that_registered_after_us_knows_us_without_a_word() {
        let reaper = Reaper::new(ME, Bounds::new(TTL));
        assert!(reaper.knows_us(Incarnation(ME.0 + 1)));
        assert!(!Reaper::new(NEWCOMER, Bounds::new(TTL)).knows_us(ME));
    }

    #[test]
    fn a_member_that_may_not_know_us_gets_all_the_time_of_a_certificate() {
        let bounds = Bounds::new(TTL);
        let mut newcomer = Reaper::new(NEWCOMER, bounds);
        let start = Instant::now();
        let (said, now) = watch(&mut newcomer, &view(2, 1), start, 59);
        assert!(said.is_empty() && now > start + bounds.stranger(), "its own first TTL counts");
        assert_eq!(watch(&mut newcomer, &view(2, 1), now + BEAT, 0).0, [2]);
    }

    #[test]
    fn an_acquaintance_counts_after_the_certificates_from_before_it() {
        let mut newcomer = Reaper::new(NEWCOMER, Bounds::new(TTL));
        let (_, now) = watch(&mut newcomer, &view(3, 0), Instant::now(), 20);
        newcomer.acquaint(Incarnation(3), now);
        assert!(look(&mut newcomer, &view(3, 1), now).is_empty());
        let later = now + TTL / 2;
        newcomer.heartbeat(later);
        assert_eq!(look(&mut newcomer, &view(3, 1), later), [Incarnation(3)]);
    }

    #[test]
    fn a_lease_that_may_have_been_renewed_between_two_looks_counts_anew() {
        let mut reaper = reaper();
        let (_, now) = watch(&mut reaper, &view(9, 4), Instant::now(), 19);
        // Heartbeats went on, but the view could not be read for a lease's time.
        for beat in 1..6 {
            reaper.heartbeat(now + beat * BEAT);
        }
        let now = now + 6 * BEAT;
        assert!(watch(&mut reaper, &view(9, 4), now, 14).0.is_empty());
        assert_eq!(watch(&mut reaper, &view(9, 4), now + 15 * BEAT, 0).0, [6, 7, 8, 9]);
    }
}
