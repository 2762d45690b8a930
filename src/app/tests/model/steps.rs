//! Time, leases, claims, deaths, and the calls of the store.

use super::{
    mutants::Mutant,
    protocol::{Act, I3_ONE, Protocol, granted},
    world::{
        Departure, MARGIN, Opening, PRINCIPAL, Phase, Renewal, SESSION, TTL, TURN_BOUNDS, Task,
        Upstream, World, stored, ticks,
    },
};
use crate::{
    ids::{Epoch, Incarnation},
    session::{
        claiming::{self, Step},
        history::{History, Past},
        turns::Turns,
    },
    store::{Began, Claim, Claimed, Death, NewTurn, StoreError, TurnMark, TurnState},
};

impl Protocol {
    #[expect(clippy::too_many_lines, reason = "a line or two for each step")]
    pub(super) fn step(&self, world: &mut World, act: Act) {
        match act {
            Act::Tick { slow } => {
                world.left.ticks -= 1;
                world.now += 1;
                if let Some(n) = slow {
                    world.nodes[n].lag += 1;
                }
            }
            Act::Renew(n) => self.renew(world, n),
            Act::RenewAnswer(n) => self.renew_answer(world, n),
            Act::MarkDead(n) => {
                let me = world.nodes[n].me;
                let lapsed = world.nodes[n].runs.then(|| Death::Lapsed(world.table.lease(me)));
                let death = lapsed.unwrap_or(Death::Proven);
                world.facts.disturbed = true;
                world.table.mark_dead(me, stored(world.now), death);
            }
            Act::Crash(n) => {
                world.left.crashes -= 1;
                self.ends(world, n);
            }
            Act::Drain(n) => self.drain(world, n),
            Act::Deadline(n) => self.deadline(world, n),
            Act::Balance(n) => {
                world.left.balances -= 1;
                let task = task(world, n);
                task.departure = Some(Departure::Balance);
                task.phase = Phase::Quiescing;
            }
            Act::Claim { node, lost } => Self::claim(self, world, node, lost),
            Act::ClaimAnswer(n) => self.claim_answer(world, n),
            Act::Nudge(n) => {
                world.nodes[n].nudged = false;
                if world.nodes[n].task.is_none() && world.nodes[n].warm.is_some() {
                    self.sees("an heir opens the session before its client asks");
                    world.nodes[n].opening = Some(Opening::default());
                }
            }
            Act::Begin { node, lost } => self.begin(world, node, lost),
            Act::BeginAnswer(n) => self.begin_answer(world, n),
            Act::BeginTimeout(n) => self.begin_timeout(world, n),
            Act::LateBegin => {
                let (heard, me, turn) = world.late.remove(0);
                let began = self.write(world, me, &turn);
                let NewTurn { session, epoch, no, .. } = turn;
                if let Some(n) = heard.filter(|n| world.nodes[*n].runs)
                    && began == Began::Begun
                {
                    // No session heard it, so none sends it.
                    let (state, response) = (TurnState::Failed, None);
                    put(
                        &mut world.nodes[n].marks,
                        TurnMark { session, epoch, no, state, response },
                    );
                }
            }
            Act::Mark(n) => {
                let marks = std::mem::take(&mut world.nodes[n].marks);
                world.table.mark_turns(&marks);
            }
            Act::Copy { node, lost } => self.copy(world, node, lost),
            Act::HoldOver(n) => {
                world.left.losses -= 1;
                world.facts.lossy = true;
                self.release_held(world, n);
            }
            Act::HandOff(n) => task(world, n).phase = Phase::Quiescing,
            Act::Quiesce { node, lost } => self.quiesce(world, node, lost),
            Act::Prepare { node, heir } => self.prepare(world, node, heir),
            Act::NoHeir(n) => self.stays_or_goes(world, n),
            Act::Transfer { node, lost } => self.transfer(world, node, lost, true),
            Act::TransferLost { node, done } => self.transfer(world, node, true, done),
            Act::TransferAnswer(n) => self.transfer_answer(world, n),
            Act::Reread(n) => self.reread(world, n),
            Act::Hear(n) => self.hear(world, n),
            Act::NoticeGone(n) => {
                let task = task(world, n);
                let client = task.gone.remove(0);
                let actions = task.turns.on_client_gone(client);
                self.perform(world, n, actions);
            }
            Act::Dial(n) => {
                let task = task(world, n);
                task.upstream = Some(Upstream { open: true, ..Upstream::default() });
                let actions = task.turns.on_connected();
                self.perform(world, n, actions);
            }
            Act::Read(n) => self.read(world, n),
            Act::NoticeHangUp(n) => {
                let task = task(world, n);
                task.upstream = None;
                let actions = task.turns.on_disconnected();
                if task.turns.queued() > 0 {
                    self.sees("a turn is dispatched again on another connection");
                }
                self.perform(world, n, actions);
            }
            Act::Attach(n) => self.attach(world, n),
            Act::Ask => self.ask(world),
            Act::Deliver => self.deliver(world),
            Act::LinkGone => self.link_gone(world),
            Act::Cut => {
                world.left.cuts -= 1;
                world.facts.disturbed = true;
                self.link_gone(world);
            }
            Act::Take(n) => self.take(world, n),
            Act::Say(n) => self.say(world, n),
            Act::TakeStray => {
                let (epoch, payload) = world.stray.remove(0);
                self.run(world, epoch, &payload);
            }
            Act::HangUp(n) => {
                world.left.hang_ups -= 1;
                world.facts.disturbed = true;
                self.hang_up(world, n);
            }
        }
    }

    fn renew(&self, world: &mut World, n: usize) {
        let sent = world.tick_of(n);
        let (me, expires) = (world.nodes[n].me, stored(world.now) + ticks(TTL));
        let granted = world.table.heartbeat(me, expires, 0).is_ok();
        let granted = granted || self.is(Mutant::TheDeadGoOn);
        world.nodes[n].renewal = Some(if granted { Renewal::Granted(sent) } else { Renewal::Dead });
    }

    fn renew_answer(&self, world: &mut World, n: usize) {
        let now = world.tick_of(n);
        let node = &mut world.nodes[n];
        if let Some(Renewal::Granted(sent)) = node.renewal.take() {
            let sent = if self.is(Mutant::LeaseFromTheAnswer) { now } else { sent };
            let margin = if self.is(Mutant::NoMargin) { 0 } else { MARGIN };
            node.lease = granted(node.lease, sent, margin);
            if node.task.is_some() && now > sent {
                self.sees("an answer to a renewal comes late");
            }
        } else {
            node.lease = node.lease.fenced();
            self.sees("a node learns that it was declared dead");
            self.ends(world, n);
        }
    }

    /// A process ends: what it wrote to others may arrive yet.
    fn ends(&self, world: &mut World, n: usize) {
        world.facts.disturbed = true;
        // One loss is survived, but not of what has only just come.
        let arriving = world.nodes[n].task.as_ref().is_some_and(|task| task.arriving);
        world.facts.lossy |= arriving || world.facts.lost;
        world.facts.lost = true;
        self.hang_up(world, n);
        let node = &mut world.nodes[n];
        (node.runs, node.opening, node.nudged, node.warm) = (false, None, false, None);
        (node.renewal, node.marks) = (None, Vec::new());
        let me = node.me;
        if let Some(task) = node.task.take() {
            world.late.extend(unanswered(&task).map(|turn| (None, me, turn)));
        }
    }

    fn drain(&self, world: &mut World, n: usize) {
        world.left.drains -= 1;
        let me = world.nodes[n].me;
        assert_eq!(world.table.begin_drain(me), Ok(true));
        world.nodes[n].draining = true;
        if let Some(task) = &mut world.nodes[n].task {
            task.turns.hold();
            task.departure.get_or_insert(Departure::Drain);
        }
    }

    fn deadline(&self, world: &mut World, n: usize) {
        world.left.deadlines -= 1;
        world.facts.disturbed = true;
        let me = world.nodes[n].me;
        let task = task(world, n);
        task.turns.hold();
        task.departure = Some(Departure::Deadline);
        let (actions, severed) = task.turns.sever();
        let late: Vec<_> = unanswered(task).collect();
        task.wishes.clear();
        world.late.extend(late.into_iter().map(|turn| (Some(n), me, turn)));
        if !severed.is_empty() {
            self.sees("a turn is severed at the deadline");
        }
        self.perform(world, n, actions);
    }

    fn claim(&self, world: &mut World, n: usize, lost: bool) {
        let now = stored(world.now);
        let me = world.nodes[n].me;
        let seen = world.nodes[n].opening.as_ref().and_then(|opening| opening.seen);
        let claim = Claim {
            id: SESSION,
            principal: PRINCIPAL,
            route: String::new(),
            key_label: String::new(),
            me,
            seen,
            limit: None,
        };
        let before = world.table.clone();
        let row = world.row();
        let answer = match row.filter(|_| self.is(Mutant::ClaimFromTheLiving)) {
            Some(row) => {
                world.table.unfenced(SESSION, None, row.epoch, |table| table.claim(&claim, now))
            }
            None => world.table.claim(&claim, now),
        };
        if self.is(Mutant::OpenTurnsStay) {
            world.table.with_turns_of(&before);
        }
        let answer = match answer.unwrap() {
            Claimed::Lost(_) => Claimed::Lost(world.row().unwrap()),
            other => other,
        };
        let opening = &mut world.nodes[n].opening;
        if lost {
            world.left.losses -= 1;
            *opening = None;
        } else if let Some(opening) = opening {
            opening.answer = Some(answer);
        }
    }

    fn claim_answer(&self, world: &mut World, n: usize) {
        let node = &mut world.nodes[n];
        let Some(Opening { seen, handed, answer: Some(answer) }) = node.opening.take() else {
            return;
        };
        match claiming::after_answer(answer, node.me, PRINCIPAL) {
            Step::Won { epoch, from } => {
                if from.is_some() {
                    self.sees("a dead node's session is taken over");
                }
                if handed {
                    self.sees("the heir of a transfer opens the session");
                }
                let past = node.warm.take().filter(|_| seen.is_some());
                let past = past.map(|history| history.all().to_vec()).unwrap_or_default();
                node.task = Some(Box::new(Task::new(epoch, past)));
                if node.draining {
                    // Not told: what is opened when a drain begins is found by its next look.
                    self.sees("a claim ends after its node began to drain");
                    let task = task(world, n);
                    task.turns.hold();
                    task.departure = Some(Departure::Drain);
                }
            }
            Step::Again { seen, handed } => {
                node.opening = Some(Opening { seen: Some(seen), handed, answer: None });
            }
            Step::Elsewhere(owner) if self.is(Mutant::ClaimFromTheLiving) => {
                let seen = Some(owner.epoch);
                node.opening = Some(Opening { seen, handed: false, answer: None });
            }
            Step::Elsewhere(_) | Step::Unfit => {}
            Step::Forbidden => world.breaks(I3_ONE),
            Step::Full => unreachable!("no principal has a limit here"),
        }
    }

    /// The store executes a wish to begin a turn.
    fn write(&self, world: &mut World, me: Incarnation, turn: &NewTurn) -> Began {
        let now = stored(world.now);
        let mut turn = turn.clone();
        turn.repeatable |= self.is(Mutant::UnknownKeysRunAgain);
        let turns = [turn];
        let mut began = if self.is(Mutant::UnfencedLedger) {
            let epoch = turns[0].epoch;
            world.table.unfenced(SESSION, Some(me), epoch, |t| t.begin_turns(me, &turns, now))
        } else {
            world.table.begin_turns(me, &turns, now)
        };
        began.remove(0)
    }

    fn begin(&self, world: &mut World, n: usize, lost: bool) {
        let me = world.nodes[n].me;
        let open = task(world, n).wishes.iter().position(|(_, answer)| answer.is_none());
        let Some(at) = open else { return };
        let turn = task(world, n).wishes[at].0.clone();
        let began =
            if self.is(Mutant::NoLedger) { Began::Begun } else { self.write(world, me, &turn) };
        if lost {
            // The ledger tries again.
            world.left.losses -= 1;
        } else {
            if matches!(began, Began::Duplicate(_)) {
                self.sees("the ledger knows a key");
            }
            task(world, n).wishes[at].1 = Some(began);
        }
    }

    /// Leaves a copy of the conversation with the next owner.
    fn copy(&self, world: &mut World, n: usize, lost: bool) {
        let heir = world.heir_of(n);
        let Some((append, past)) = task(world, n).copy.take() else { return };
        let mut kept = None;
        if lost {
            world.left.losses -= 1;
            world.facts.lossy = true;
        } else if world.nodes[heir].runs && world.nodes[heir].task.is_none() {
            let had = world.nodes[heir].warm.take();
            world.nodes[heir].warm = History::kept(had, append, past, TURN_BOUNDS.history_bytes);
            kept = Some(world.nodes[heir].warm.is_some());
        } else {
            world.facts.lossy = true;
        }
        let task = task(world, n);
        task.arriving = false;
        if kept == Some(false) && append {
            let all = task.turns.history().all().to_vec();
            task.copy = Some((false, all));
        }
        self.release_held(world, n);
    }
}

impl Task {
    /// A task that begins in `epoch` with what its node knew of the conversation.
    fn new(epoch: Epoch, past: Vec<Past>) -> Self {
        let copy = (!past.is_empty()).then(|| (false, past.clone()));
        Self {
            epoch,
            replicated: copy.is_some(),
            arriving: copy.is_some(),
            turns: Turns::new(TURN_BOUNDS, past),
            phase: Phase::Serving,
            departure: None,
            upstream: None,
            client: None,
            gone: Vec::new(),
            next_client: 1,
            logs: std::collections::BTreeMap::new(),
            watching: std::collections::BTreeSet::new(),
            wishes: Vec::new(),
            copy,
            copying: false,
            held: std::collections::VecDeque::new(),
        }
    }
}

/// The node's task, which the step is of.
pub(super) fn task(world: &mut World, n: usize) -> &mut Task {
    world.nodes[n].task.as_mut().expect("a step of a task that is there")
}

/// Wishes that the store has not executed.
pub(super) fn unanswered(task: &Task) -> impl Iterator<Item = NewTurn> + '_ {
    task.wishes.iter().filter(|(_, answer)| answer.is_none()).map(|(turn, _)| turn.clone())
}

/// No answer.
pub(super) fn nothing() -> StoreError {
    StoreError::Unavailable(String::new())
}

/// Leaves a mark for the ledger, as one with what waits for the same turn.
pub(super) fn put(marks: &mut Vec<TurnMark>, mark: TurnMark) {
    marks.push(mark);
    *marks = TurnMark::coalesce(marks).into_values().collect();
}
