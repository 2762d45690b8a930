//! Which steps a state allows, and what must hold in every state.

use std::{collections::BTreeSet, fmt::Write as _, sync::Arc};

use parking_lot::Mutex;
use stateright::{Model, Property};

use super::{
    mutants::Mutant,
    world::{Budget, DRIFT, Phase, Request, SESSION, TTL, World, local, stored, ticks},
};
use crate::{
    ownership::lease::{Lease, LeaseState},
    session::event::{ClientEvent, Create},
    store::{MemberState, SessionState, TurnRow, TurnState},
    wire::Message,
};

pub(super) const I1: &str = "I1 an epoch has one holder and only grows";
pub(super) const I2_ONCE: &str = "I2 a turn runs once, or again where nothing can be doubled";
pub(super) const I2_ROW: &str =
    "I2 no turn is sent before its row, none that the ledger calls failed";
pub(super) const I3_ONE: &str = "I3 a request ends once, and with its own answer";
pub(super) const I3_FINAL: &str = "I3 the end of a turn in the ledger stays";
pub(super) const I4: &str = "I4 who serves is the owner that the row names";
pub(super) const I4_DEAD: &str = "I4 a node that was declared dead has no lease";
pub(super) const I5: &str = "I5 a move alone makes no outcome unknown";
pub(super) const I6: &str = "I6 an acknowledged turn is in the conversation after one loss";
pub(super) const OPEN: &str = "a turn of an earlier epoch is not open";
pub(super) const SAID: &str = "every request is answered, and the session goes on";

/// What one step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Act {
    /// Time goes on; one node's clock may stand.
    Tick {
        slow: Option<usize>,
    },
    Renew(usize),
    RenewAnswer(usize),
    MarkDead(usize),
    Crash(usize),
    Drain(usize),
    Deadline(usize),
    Balance(usize),
    Claim {
        node: usize,
        lost: bool,
    },
    ClaimAnswer(usize),
    Nudge(usize),
    /// The task hears its client, dials, hears the upstream, and so on.
    Hear(usize),
    NoticeGone(usize),
    Dial(usize),
    Read(usize),
    NoticeHangUp(usize),
    Begin {
        node: usize,
        lost: bool,
    },
    BeginAnswer(usize),
    BeginTimeout(usize),
    LateBegin,
    Mark(usize),
    Copy {
        node: usize,
        lost: bool,
    },
    HoldOver(usize),
    HandOff(usize),
    Quiesce {
        node: usize,
        lost: bool,
    },
    Prepare {
        node: usize,
        heir: usize,
    },
    NoHeir(usize),
    Transfer {
        node: usize,
        lost: bool,
    },
    TransferAnswer(usize),
    /// The transfer was not answered; `done`: it took effect all the same.
    TransferLost {
        node: usize,
        done: bool,
    },
    Reread(usize),
    /// The edge attaches, asks, reads its link, loses it.
    Attach(usize),
    Ask,
    Deliver,
    LinkGone,
    Cut,
    Take(usize),
    Say(usize),
    TakeStray,
    HangUp(usize),
}

/// The model: bounds, and what is broken on purpose.
pub(super) struct Protocol {
    pub(super) nodes: usize,
    pub(super) budget: Budget,
    pub(super) requests: Vec<Ask>,
    pub(super) mutant: Option<Mutant>,
    /// What was seen to happen in some state.
    pub(super) sights: Arc<Mutex<BTreeSet<&'static str>>>,
}

/// A request that the client will make.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ask {
    pub(super) store: bool,
    pub(super) keyed: bool,
    /// It names the response before it.
    pub(super) chained: bool,
}

/// A request's text.
pub(super) fn text(n: usize, request: &Request, previous: Option<&str>) -> Message {
    let mut text =
        format!(r#"{{"type":"response.create","store":{},"input":"ask-{n}""#, request.store);
    if request.keyed {
        write!(text, r#","client_metadata":{{"idempotency_key":"k{n}"}}"#).unwrap();
    }
    if let Some(previous) = previous {
        write!(text, r#","previous_response_id":"{previous}""#).unwrap();
    }
    text.push('}');
    Message::text(text)
}

pub(super) fn create(message: &Message) -> Create {
    match ClientEvent::parse(&message.payload) {
        Ok(ClientEvent::Create(create)) => create,
        other => panic!("no create: {other:?}"),
    }
}

impl Protocol {
    pub(super) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(super) fn sees(&self, what: &'static str) {
        self.sights.lock().insert(what);
    }

    /// The node may move frames now.
    pub(super) fn is_live(&self, world: &World, n: usize) -> bool {
        let node = &world.nodes[n];
        node.runs && (self.is(Mutant::NoLookAtTheLease) || node.lease.is_live(world.local(n)))
    }

    /// Steps that need no fault and no plan: what goes on by itself.
    fn progress(&self, world: &World, acts: &mut Vec<Act>) {
        for n in 0..world.nodes.len() {
            self.node_acts(world, n, acts);
        }
        if !world.late.is_empty() {
            acts.push(Act::LateBegin);
        }
        if !world.stray.is_empty() {
            acts.push(Act::TakeStray);
        }
        self.edge_acts(world, acts);
    }

    fn node_acts(&self, world: &World, n: usize, acts: &mut Vec<Act>) {
        let node = &world.nodes[n];
        if !node.runs {
            // Its process is gone, which others can prove.
            if world.state_of(n).is_alive() && world.nodes.iter().any(|other| other.runs) {
                acts.push(Act::MarkDead(n));
            }
            return;
        }
        if node.renewal.is_some() {
            acts.push(Act::RenewAnswer(n));
        } else {
            let renewed =
                node.lease.renewed(world.local(n), ticks(TTL), ticks(super::world::MARGIN));
            if renewed != node.lease || world.state_of(n) == MemberState::Dead {
                acts.push(Act::Renew(n));
            }
        }
        if !node.marks.is_empty() {
            acts.push(Act::Mark(n));
        }
        match &node.opening {
            Some(opening) if opening.answer.is_some() => acts.push(Act::ClaimAnswer(n)),
            Some(_) => acts.push(Act::Claim { node: n, lost: false }),
            None => {}
        }
        let leased = node.lease.is_live(world.local(n));
        if node.nudged && node.opening.is_none() && leased {
            acts.push(Act::Nudge(n));
        }
        let Some(task) = &node.task else { return };
        if task.copy.is_some() {
            acts.push(Act::Copy { node: n, lost: false });
        }
        if task.wishes.iter().any(|(_, answer)| answer.is_none()) {
            acts.push(Act::Begin { node: n, lost: false });
        }
        if let Some(upstream) = task.upstream.as_ref().filter(|upstream| upstream.open) {
            if !upstream.up.is_empty() {
                acts.push(Act::Take(n));
            }
            if upstream.running.is_some() {
                acts.push(Act::Say(n));
            }
        }
        match &task.phase {
            Phase::Serving if self.is_live(world, n) => self.task_acts(world, n, acts),
            Phase::Serving => {}
            Phase::Quiescing => acts.push(Act::Quiesce { node: n, lost: false }),
            Phase::Preparing { tried, .. } => {
                if node.marks.is_empty() || world.left.losses > 0 {
                    let heirs = (0..world.nodes.len())
                        .filter(|heir| *heir != n && tried & (1 << heir) == 0)
                        .filter(|heir| world.nodes[*heir].runs);
                    let before = acts.len();
                    acts.extend(heirs.map(|heir| Act::Prepare { node: n, heir }));
                    if acts.len() == before {
                        acts.push(Act::NoHeir(n));
                    }
                }
            }
            Phase::Committing { answer: None, .. } => {
                acts.push(Act::Transfer { node: n, lost: false });
            }
            Phase::Committing { .. } => acts.push(Act::TransferAnswer(n)),
            Phase::Rereading { .. } => acts.push(Act::Reread(n)),
        }
    }

    fn task_acts(&self, world: &World, n: usize, acts: &mut Vec<Act>) {
        let Some(task) = &world.nodes[n].task else { return };
        let linked = world.edge.link.as_ref().filter(|link| link.node == n && !link.over);
        if task.client.is_some() && linked.is_some_and(|link| !link.up.is_empty()) {
            acts.push(Act::Hear(n));
        }
        if !task.gone.is_empty() {
            acts.push(Act::NoticeGone(n));
        }
        match &task.upstream {
            None if task.turns.queued() > 0 => acts.push(Act::Dial(n)),
            Some(upstream) if !upstream.down.is_empty() => acts.push(Act::Read(n)),
            Some(upstream) if !upstream.open => acts.push(Act::NoticeHangUp(n)),
            _ => {}
        }
        if task.wishes.iter().any(|(_, answer)| answer.is_some()) {
            acts.push(Act::BeginAnswer(n));
        }
        let at_boundary = task.held.is_empty() && task.wishes.is_empty() && task.turns.may_leave();
        if task.departure.is_some() && (at_boundary || self.is(Mutant::TransferInMidTurn)) {
            acts.push(Act::HandOff(n));
        }
    }

    fn edge_acts(&self, world: &World, acts: &mut Vec<Act>) {
        let edge = &world.edge;
        let Some(link) = &edge.link else {
            if self.wants_link(world) {
                let fit = (0..world.nodes.len()).filter(|n| self.may_attach(world, *n));
                acts.extend(fit.map(Act::Attach));
            }
            return;
        };
        if !link.down.is_empty() {
            acts.push(Act::Deliver);
        }
        if !world.nodes[link.node].runs || (link.over && link.down.is_empty()) {
            acts.push(Act::LinkGone);
        }
        if self.next_request(world).is_some() {
            acts.push(Act::Ask);
        }
    }

    /// The request that the client would make now.
    pub(super) fn next_request(&self, world: &World) -> Option<usize> {
        let edge = &world.edge;
        if edge.current.is_some() {
            return None;
        }
        let again = edge.failed.filter(|_| world.left.retries > 0);
        again.or_else(|| (edge.next < world.facts.requests.len()).then_some(edge.next)).filter(
            |n| {
                let request = &world.facts.requests[*n];
                !request.chained || world.facts.requests[*n - 1].response.is_some()
            },
        )
    }

    fn wants_link(&self, world: &World) -> bool {
        // A client that only listens.
        let listens = self.requests.is_empty();
        listens || !world.edge.outstanding.is_empty() || self.next_request(world).is_some()
    }

    fn may_attach(&self, world: &World, n: usize) -> bool {
        let node = &world.nodes[n];
        if !node.runs || node.opening.is_some() {
            return false;
        }
        match &node.task {
            Some(task) => self.is_live(world, n) && task.phase == Phase::Serving,
            None => !node.draining && node.lease.is_live(world.local(n)),
        }
    }

    /// Faults and plans, as far as the budget goes.
    fn events(&self, world: &World, acts: &mut Vec<Act>) {
        let left = &world.left;
        if left.ticks > 0 {
            acts.push(Act::Tick { slow: None });
            let slow = |n: &usize| world.nodes[*n].runs && world.nodes[*n].lag < DRIFT;
            acts.extend((0..world.nodes.len()).filter(slow).map(|n| Act::Tick { slow: Some(n) }));
        }
        for (n, node) in world.nodes.iter().enumerate().filter(|(_, node)| node.runs) {
            let (state, expired) = world.table.member(node.me, stored(world.now));
            let others =
                world.nodes.iter().enumerate().any(|(other, node)| other != n && node.runs);
            if others && expired && state.is_alive() {
                acts.push(Act::MarkDead(n));
            }
            if left.crashes > 0 && others {
                acts.push(Act::Crash(n));
            }
            if left.drains > 0 && !node.draining && world.state_of(n) == MemberState::Active {
                acts.push(Act::Drain(n));
            }
            if left.losses > 0
                && node.opening.as_ref().is_some_and(|opening| opening.answer.is_none())
            {
                acts.push(Act::Claim { node: n, lost: true });
            }
            self.task_events(world, n, acts);
        }
        if left.cuts > 0 && world.edge.link.is_some() {
            acts.push(Act::Cut);
        }
    }

    fn task_events(&self, world: &World, n: usize, acts: &mut Vec<Act>) {
        let left = &world.left;
        let node = &world.nodes[n];
        let Some(task) = &node.task else { return };
        let live = self.is_live(world, n) && task.phase == Phase::Serving;
        if left.deadlines > 0 && node.draining && live {
            acts.push(Act::Deadline(n));
        }
        let idle = task.held.is_empty() && task.wishes.is_empty() && task.turns.is_empty();
        if left.balances > 0 && live && idle && task.departure.is_none() && task.turns.can_be_told()
        {
            acts.push(Act::Balance(n));
        }
        if left.hang_ups > 0 && task.upstream.as_ref().is_some_and(|upstream| upstream.open) {
            acts.push(Act::HangUp(n));
        }
        if left.losses == 0 {
            return;
        }
        if task.wishes.iter().any(|(_, answer)| answer.is_none()) {
            acts.push(Act::Begin { node: n, lost: true });
            if live {
                acts.push(Act::BeginTimeout(n));
            }
        }
        if task.copy.is_some() {
            acts.push(Act::Copy { node: n, lost: true });
        }
        if live && !task.held.is_empty() {
            acts.push(Act::HoldOver(n));
        }
        match task.phase {
            Phase::Quiescing => acts.push(Act::Quiesce { node: n, lost: true }),
            Phase::Committing { answer: None, .. } => {
                acts.extend([true, false].map(|done| Act::TransferLost { node: n, done }));
            }
            _ => {}
        }
    }

    /// Compares two states that follow each other.
    fn check(&self, before: &World, after: &mut World) {
        let row = after.table.owner(SESSION);
        if let (Some((owner, epoch, _)), Some(is)) = (before.table.owner(SESSION), row) {
            let same = is.1 == epoch && (is.0 == owner || is.0.is_none());
            if is.1 <= epoch && !same {
                after.breaks(I1);
            }
        }
        for n in 0..after.nodes.len() {
            let node = &after.nodes[n];
            let Some(task) = node.task.as_ref().filter(|task| task.phase == Phase::Serving) else {
                continue;
            };
            let owner = row.is_some_and(|(owner, epoch, state)| {
                owner == Some(node.me) && epoch == task.epoch && state != SessionState::Closed
            });
            if self.is_live(after, n) && !owner {
                after.breaks(I4);
            }
        }
        for n in 0..after.nodes.len() {
            let dead = after.state_of(n) == MemberState::Dead;
            let lease: LeaseState = after.nodes[n].lease.state(after.local(n));
            if dead && after.nodes[n].runs && matches!(lease, LeaseState::Live { .. }) {
                after.breaks(I4_DEAD);
            }
        }
        if after.table == before.table {
            return;
        }
        let is: Vec<_> = after.table.turns().collect();
        for was in before.table.turns().filter(|turn| !turn.state.is_open()) {
            let id = (was.epoch, was.no);
            // By its key a turn begins anew where nothing ran, or where a second run doubles
            // nothing.
            let anew = was.response.is_none()
                && after.facts.requests.iter().any(|request| {
                    request.keyed
                        && request.fingerprint.to_be_bytes() == was.request
                        && (was.state == TurnState::Failed
                            || (was.state == TurnState::Unknown && !request.store))
                });
            let same = |turn: &TurnRow| {
                turn.state == was.state || (anew && turn.state == TurnState::Dispatched)
            };
            if is.iter().any(|turn| (turn.epoch, turn.no) == id && !same(turn)) {
                after.breaks(I3_FINAL);
            }
        }
        let epoch = row.map(|row| row.1);
        if is.iter().any(|turn| turn.state.is_open() && Some(turn.epoch) != epoch) {
            after.breaks(OPEN);
        }
    }

    /// Nothing goes on by itself, and somebody waits although a node could serve.
    fn is_stuck(&self, world: &World) -> bool {
        let waits = world.edge.current.is_some() || self.next_request(world).is_some();
        let goes_on = |node: &super::world::Node| {
            node.runs
                && (node.renewal.is_some() || node.opening.is_some() || !node.marks.is_empty())
        };
        if !waits
            || world.nodes.iter().any(goes_on)
            || !(0..world.nodes.len()).any(|n| world.is_fit(n))
        {
            return false;
        }
        let mut acts = Vec::new();
        self.progress(world, &mut acts);
        acts.is_empty()
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let requests = self.requests.iter().enumerate().map(|(n, ask)| {
            let Ask { store, keyed, chained } = *ask;
            let mut request = Request {
                store,
                keyed,
                chained,
                fingerprint: 0,
                sent: 0,
                runs: 0,
                seen: false,
                response: None,
            };
            request.fingerprint = create(&text(n, &request, None)).fingerprint;
            request
        });
        vec![World::new(self.nodes, requests.collect(), self.budget)]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        if world.facts.broken.is_none() {
            self.progress(world, acts);
            self.events(world, acts);
        }
    }

    fn next_state(&self, before: &World, act: Act) -> Option<World> {
        let mut after = before.clone();
        self.step(&mut after, act);
        self.check(before, &mut after);
        Some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        macro_rules! unbroken {
            ($($name:ident),*) => {
                vec![$(Property::always($name, |_, world: &World| world.facts.broken != Some($name)),)*
                    Property::always(SAID, |model: &Self, world: &World| !model.is_stuck(world))]
            };
        }
        unbroken!(I1, I2_ONCE, I2_ROW, I3_ONE, I3_FINAL, I4, I4_DEAD, I5, I6, OPEN)
    }
}

/// A lease as the node that asked for it at its time `sent` counts it.
pub(super) fn granted(lease: Lease, sent: u8, margin: u8) -> Lease {
    lease.renewed(local(sent), ticks(TTL), ticks(margin))
}
