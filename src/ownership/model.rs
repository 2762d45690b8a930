//! I4 over random histories of a small ring: members whose store and links come and go, that
//! stand still, newcomers, and declarations of death that take effect late. Nodes are made of
//! the real rules; store, network and time are the model's.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*};

use super::{lease::Lease, outage::Bounds, reaper::Reaper};
use crate::{
    ids::Incarnation,
    store::{LeaseEnd, Member, MemberState, RingView},
};

const TTL: Duration = Duration::from_secs(16);
const MARGIN: Duration = Duration::from_secs(3);
/// One step; a member that can beats once in each, and asks once.
const STEP: Duration = Duration::from_secs(2);
/// How late the store does what it was asked, at worst: a member can come back and lapse
/// again meanwhile.
const LATE: Duration = Duration::from_secs(16 * 4);
/// Members, those that join later included.
const NODES: usize = 4;

struct Node {
    me: Incarnation,
    view: BTreeSet<Incarnation>,
    lease: Lease,
    certified: Option<Instant>,
    renewed: Instant,
    reaper: Reaper,
    /// It runs, and reaches the store.
    runs: bool,
    connected: bool,
    /// Its process is gone, and everybody can prove it.
    gone: bool,
}

impl Node {
    fn serves(&self, now: Instant) -> bool {
        self.lease.is_live(now) || self.certified.is_some_and(|until| now < until)
    }
}

/// The members of the store: when their lease ends, and whether they are dead.
#[derive(Default)]
struct Store(BTreeMap<Incarnation, (Instant, bool)>);

/// One change of the surroundings before a step.
#[derive(Clone, Copy, Debug)]
enum Change {
    Nothing,
    /// One member loses the store, or has it back.
    Connect(usize, bool),
    /// All do.
    ConnectAll(bool),
    /// Two members lose, or find, each other.
    Link(usize, usize, bool),
    Run(usize, bool),
    Kill(usize),
    Join,
    /// The store executes declarations of death late from now on, or at once.
    Delay(bool),
    /// Many quiet steps.
    Long(u8),
}

fn change() -> impl Strategy<Value = Change> {
    let node = 0..NODES;
    prop_oneof![
        6 => Just(Change::Nothing),
        3 => (node.clone(), any::<bool>()).prop_map(|(n, on)| Change::Connect(n, on)),
        4 => any::<bool>().prop_map(Change::ConnectAll),
        2 => (node.clone(), node.clone(), any::<bool>()).prop_map(|(a, b, on)| Change::Link(a, b, on)),
        1 => (node.clone(), any::<bool>()).prop_map(|(n, on)| Change::Run(n, on)),
        1 => node.prop_map(Change::Kill),
        1 => Just(Change::Join),
        1 => any::<bool>().prop_map(Change::Delay),
        3 => (4..100u8).prop_map(Change::Long),
    ]
}

struct Model {
    bounds: Bounds,
    began: Instant,
    now: Instant,
    store: Store,
    nodes: Vec<Node>,
    cut: BTreeSet<(usize, usize)>,
    delays: bool,
    /// Declarations of death under way: whom, for which lease, and when they take effect.
    late: Vec<(Incarnation, Instant, Instant)>,
    certificates: usize,
    deaths: usize,
}

impl Model {
    fn new(members: usize) -> Self {
        let mut model = Self {
            bounds: Bounds::new(TTL),
            began: Instant::now(),
            now: Instant::now(),
            store: Store::default(),
            nodes: Vec::new(),
            cut: BTreeSet::new(),
            delays: false,
            late: Vec::new(),
            certificates: 0,
            deaths: 0,
        };
        (0..members).for_each(|_| model.join());
        model
    }

    fn join(&mut self) {
        if self.nodes.len() == NODES {
            return;
        }
        let me = Incarnation(i64::try_from(self.nodes.len()).unwrap());
        self.store.0.insert(me, (self.now + TTL, false));
        self.nodes.push(Node {
            me,
            view: self.alive(),
            lease: Lease::SUSPENDED.renewed(self.now, TTL, MARGIN),
            certified: None,
            renewed: self.now,
            reaper: Reaper::new(me, self.bounds),
            runs: true,
            connected: true,
            gone: false,
        });
    }

    fn alive(&self) -> BTreeSet<Incarnation> {
        let alive = self.store.0.iter().filter(|(_, (_, dead))| !dead);
        alive.map(|(member, _)| *member).collect()
    }

    fn apply(&mut self, change: Change) -> u8 {
        match change {
            Change::Nothing => {}
            Change::Connect(n, on) => {
                if let Some(node) = self.nodes.get_mut(n) {
                    node.connected = on;
                }
            }
            Change::ConnectAll(on) => self.nodes.iter_mut().for_each(|node| node.connected = on),
            Change::Link(a, b, true) => {
                self.cut.remove(&(a.min(b), a.max(b)));
            }
            Change::Link(a, b, false) => {
                self.cut.insert((a.min(b), a.max(b)));
            }
            Change::Run(n, on) => {
                if let Some(node) = self.nodes.get_mut(n) {
                    node.runs = on && !node.gone;
                }
            }
            Change::Kill(n) => {
                if let Some(node) = self.nodes.get_mut(n) {
                    (node.runs, node.gone) = (false, true);
                }
            }
            Change::Join => self.join(),
            Change::Delay(on) => self.delays = on,
            Change::Long(steps) => return steps,
        }
        1
    }

    /// The store executes what `mark_dead` asks.
    fn bury(&mut self, member: Incarnation, judged: Instant) {
        let Some(row) = self.store.0.get_mut(&member) else { return };
        if row.1 || row.0 > self.now || row.0 != judged {
            return;
        }
        row.1 = true;
        self.deaths += 1;
        let node = self.nodes.iter().find(|node| node.me == member).unwrap();
        assert!(!node.lease.is_live(self.now), "{member} is dead and has its lease");
        let certified = node.certified.is_some_and(|until| self.now < until);
        assert!(!certified, "{member} is dead and holds a certificate");
    }

    /// Who reaches the store tells it of those that are proven gone.
    fn bury_the_gone(&mut self) {
        for node in self.nodes.iter().filter(|node| node.gone) {
            let row = self.store.0.get_mut(&node.me).unwrap();
            self.deaths += usize::from(!row.1);
            row.1 = true;
        }
    }

    fn beat(&mut self, n: usize) {
        if self.nodes[n].connected {
            self.bury_the_gone();
        }
        let (now, view) = (self.now, self.ring());
        let node = &mut self.nodes[n];
        if !node.connected {
            node.reaper.missed();
            return;
        }
        let row = self.store.0.get_mut(&node.me).unwrap();
        if row.1 {
            node.lease = node.lease.fenced();
            node.certified = None;
            node.runs = false;
            return;
        }
        row.0 = now + TTL;
        node.lease = node.lease.renewed(now, TTL, MARGIN);
        node.renewed = now;
        node.reaper.heartbeat(now);
        node.view = view.alive().map(|member| member.incarnation).collect();
        for dead in node.reaper.verdict(&view, now, now) {
            let judged = self.store.0[&dead].0;
            if self.delays {
                // The answer is lost, and the store does it much later.
                self.late.push((dead, judged, now + LATE));
            } else {
                self.bury(dead, judged);
                let buried = self.store.0[&dead].1;
                self.nodes[n].reaper.settled(dead, buried);
            }
        }
    }

    fn ring(&self) -> RingView {
        let member = |(incarnation, (expires, dead)): (&Incarnation, &(Instant, bool))| Member {
            incarnation: *incarnation,
            node_id: incarnation.to_string(),
            peer_addr: String::new(),
            build: String::new(),
            zone: None,
            weight: 1,
            capacity: 1,
            process: String::new(),
            state: if *dead { MemberState::Dead } else { MemberState::Active },
            load: 0,
            lease_remaining: expires.saturating_duration_since(self.now),
            lease: LeaseEnd::default(),
        };
        let clock = self.now.duration_since(self.began);
        RingView { version: 1, clock, members: self.store.0.iter().map(member).collect() }
    }

    fn cut_off(&self, n: usize) -> bool {
        self.now.duration_since(self.nodes[n].renewed) >= self.bounds.cut_off()
    }

    /// What `asker` hears of each other member of its view: the member, whether it knows the
    /// asker, whether it promises.
    fn ask(&mut self, asker: usize, outage: bool) -> Vec<(Incarnation, bool, bool)> {
        let me = self.nodes[asker].me;
        let others = self.nodes[asker].view.clone().into_iter().filter(|other| *other != me);
        others
            .map(|other| {
                let n = usize::try_from(other.0).unwrap();
                if self.nodes[n].gone {
                    let live = self.nodes[asker].serves(self.now);
                    return (other, false, self.bounds.spares_the_gone(!live));
                }
                let cut = self.cut.contains(&(asker.min(n), asker.max(n)));
                if cut || !self.nodes[n].runs {
                    return (other, false, false);
                }
                let cut_off = self.cut_off(n);
                let witness = &mut self.nodes[n];
                let promised = outage && cut_off && witness.reaper.promise(me, self.now);
                (other, witness.view.contains(&me), promised)
            })
            .collect()
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        let (due, late): (Vec<_>, Vec<_>) = self.late.drain(..).partition(|(_, _, at)| *at <= now);
        self.late = late;
        for (dead, judged, _) in due {
            self.bury(dead, judged);
        }
        for n in 0..self.nodes.len() {
            if !self.nodes[n].runs {
                continue;
            }
            self.beat(n);
            let cut_off = self.cut_off(n);
            let answers = self.ask(n, cut_off);
            let node = &mut self.nodes[n];
            for (other, _, _) in answers.iter().filter(|(_, knows, _)| *knows) {
                node.reaper.acquaint(*other, now);
            }
            if cut_off && answers.iter().all(|(_, _, promised)| *promised) {
                let until = self.bounds.certified_until(node.renewed, now);
                node.certified = node.certified.max(Some(until));
                self.certificates += 1;
            }
        }
        for node in &self.nodes {
            let dead = self.store.0[&node.me].1 && !node.gone;
            assert!(!(dead && node.serves(now)), "{} was declared dead and serves", node.me);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_member_is_declared_dead_while_its_lease_or_a_certificate_holds(
        members in 1..NODES,
        changes in vec(change(), 1..60),
    ) {
        let mut model = Model::new(members);
        for change in changes {
            for _ in 0..model.apply(change) {
                model.step();
            }
        }
    }
}

#[test]
fn who_was_declared_dead_is_promised_nothing_in_a_later_outage() {
    let mut model = Model::new(2);
    (0..20).for_each(|_| model.step());
    model.apply(Change::Connect(0, false));
    (0..40).for_each(|_| model.step());
    assert_eq!(model.deaths, 1);
    model.apply(Change::ConnectAll(false));
    (0..20).for_each(|_| model.step());
}

#[test]
fn who_was_declared_dead_gets_no_certificate_when_the_declarer_is_gone() {
    let mut model = Model::new(2);
    (0..20).for_each(|_| model.step());
    model.apply(Change::Connect(0, false));
    while model.deaths == 0 {
        model.step();
    }
    model.apply(Change::ConnectAll(false));
    model.apply(Change::Kill(1));
    (0..20).for_each(|_| model.step());
    assert_eq!(model.certificates, 0);
}

#[test]
fn the_gone_are_no_obstacle_while_the_lease_is_live() {
    let mut model = Model::new(2);
    (0..20).for_each(|_| model.step());
    model.apply(Change::ConnectAll(false));
    model.apply(Change::Kill(1));
    (0..20).for_each(|_| model.step());
    assert!(model.certificates > 0);
}

#[test]
fn a_declaration_that_comes_late_from_the_dead_spares_who_has_come_back() {
    let mut model = Model::new(2);
    (0..20).for_each(|_| model.step());
    model.apply(Change::Delay(true));
    model.apply(Change::Connect(0, false));
    while model.late.is_empty() {
        model.step();
    }
    // The declarer stands still; the accused comes back, buries it, and is alone from now on.
    model.apply(Change::Delay(false));
    model.apply(Change::Run(1, false));
    model.apply(Change::Connect(0, true));
    while model.deaths == 0 {
        model.step();
    }
    // It reads that it is alone now.
    model.step();
    assert!(!model.late.is_empty(), "{LATE:?} is too short");
    model.apply(Change::Connect(0, false));
    while !model.late.is_empty() {
        model.step();
    }
    let (me, now) = (&model.nodes[0], model.now);
    assert!(!me.lease.is_live(now) && me.certified.is_some_and(|until| now < until));
    assert_eq!(model.deaths, 1);
}

#[test]
fn the_model_sees_certificates_and_deaths() {
    let mut model = Model::new(3);
    (0..20).for_each(|_| model.step());
    model.apply(Change::ConnectAll(false));
    (0..20).for_each(|_| model.step());
    assert!(model.certificates > 30, "{}", model.certificates);
    model.apply(Change::ConnectAll(true));
    (0..40).for_each(|_| model.step());
    assert_eq!(model.deaths, 0);
    model.apply(Change::Connect(0, false));
    (0..40).for_each(|_| model.step());
    assert_eq!(model.deaths, 1);
}
