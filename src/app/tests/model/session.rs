//! The session's task: performs what the rules decide, and leaves.

use super::{
    mutants::Mutant,
    protocol::{Protocol, create},
    steps::{nothing, put, task},
    world::{Departure, Frame, Node, Phase, SESSION, TURN_BOUNDS, Task, World, stored},
};
use crate::{
    session::{
        history::History,
        transfer::{self, Step, Went},
        turns::{Action, Answer, Journaled, TurnNo},
    },
    store::{NewTurn, SessionState, Transferred, TurnMark, TurnState},
    wire::{Batch, Message},
};

impl Protocol {
    pub(super) fn perform(&self, world: &mut World, n: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Upstream(batch) | Action::Dispatch { batch, .. } => {
                    let payload = batch.messages().next().expect("a request").payload;
                    self.sent(world, &payload);
                    if let Some(upstream) = &mut task(world, n).upstream {
                        upstream.up.push_back(payload);
                    }
                }
                Action::Open { turn, .. } => drop(task(world, n).logs.insert(turn, Vec::new())),
                Action::Subscribe { client, turn }
                | Action::Join { client, turn, .. }
                | Action::Rejoin { client, turn, .. } => {
                    let task = task(world, n);
                    if task.client == Some(client) {
                        task.watching.insert(turn);
                        let log = task.logs.get(&turn).cloned().unwrap_or_default();
                        for (batch, done) in log {
                            tell(world, n, batch, u32::from(done));
                        }
                    }
                }
                Action::Journal { turn, key, request, repeatable } => {
                    let task = task(world, n);
                    if task.wishes.iter().all(|(wish, _)| wish.no != turn) {
                        let wish = NewTurn {
                            session: SESSION,
                            epoch: task.epoch,
                            no: turn,
                            key,
                            request: request.to_be_bytes(),
                            repeatable,
                        };
                        task.wishes.push((wish, None));
                        if self.is(Mutant::SendBeforeTheLedger) {
                            let actions = task.turns.on_journaled(turn, &Journaled::Begun);
                            self.perform(world, n, actions);
                        }
                    }
                }
                Action::Mark { turn, state, response } => {
                    let wrong = self.is(Mutant::SentCountsAsFailed) && state == TurnState::Unknown;
                    let state = if wrong { TurnState::Failed } else { state };
                    mark(world, n, turn, state, response);
                }
                Action::Append { turn, batch, done } => {
                    let task = task(world, n);
                    let waits = done && std::mem::take(&mut task.copying);
                    if (waits && !self.is(Mutant::EndBeforeTheCopy)) || !task.held.is_empty() {
                        task.held.push_back((turn, batch, done));
                    } else {
                        append(world, n, turn, batch, done);
                    }
                }
                Action::Reply { client, batch, ended } => {
                    if task(world, n).client == Some(client) {
                        tell(world, n, batch, ended);
                    }
                }
                Action::Forget(turn) => drop(task(world, n).logs.remove(&turn)),
                Action::HangUp => {
                    self.hang_up(world, n);
                    task(world, n).upstream = None;
                }
                Action::Remembered(past) => {
                    let task = task(world, n);
                    let append = past.previous.is_some() && task.replicated;
                    let past =
                        if append { vec![past] } else { task.turns.history().all().to_vec() };
                    task.copy = Some((append, past));
                    (task.replicated, task.copying) = (true, true);
                }
                Action::Alias(_) | Action::Recall => {}
            }
        }
    }

    /// What waited for its copy is told.
    pub(super) fn release_held(&self, world: &mut World, n: usize) {
        task(world, n).copying = false;
        while let Some((turn, batch, done)) = task(world, n).held.pop_front() {
            append(world, n, turn, batch, done);
        }
    }

    pub(super) fn read(&self, world: &mut World, n: usize) {
        let task = task(world, n);
        let Some(message) = task.upstream.as_mut().and_then(|upstream| upstream.down.pop_front())
        else {
            return;
        };
        let actions = task.turns.on_upstream(&Batch::one(&message));
        self.perform(world, n, actions);
    }

    pub(super) fn begin_answer(&self, world: &mut World, n: usize) {
        let task = task(world, n);
        let Some(at) = task.wishes.iter().position(|(_, answer)| answer.is_some()) else { return };
        let (turn, began) = task.wishes.remove(at);
        self.answered(world, n, turn.no, Answer::of(began, turn.epoch));
    }

    pub(super) fn begin_timeout(&self, world: &mut World, n: usize) {
        world.left.losses -= 1;
        let me = world.nodes[n].me;
        let task = task(world, n);
        let Some(at) = task.wishes.iter().position(|(_, answer)| answer.is_none()) else { return };
        let (turn, _) = task.wishes.remove(at);
        let answer = Answer::of(None, turn.epoch);
        let no = turn.no;
        world.late.push((None, me, turn));
        self.answered(world, n, no, answer);
    }

    fn answered(&self, world: &mut World, n: usize, no: TurnNo, answer: Answer) {
        let journaled = match answer {
            Answer::Told(journaled) => journaled,
            Answer::GivenUp(given_up) => {
                self.sees("a turn is found that was given up before its answer came");
                mark(world, n, given_up, TurnState::Failed, None);
                Journaled::Unwritten
            }
            Answer::Fenced => {
                self.sees("the ledger says that the session has another owner");
                let actions = task(world, n).turns.on_fenced();
                self.release_held(world, n);
                self.perform(world, n, actions);
                return self.leaves(world, n);
            }
        };
        let actions = task(world, n).turns.on_journaled(no, &journaled);
        self.perform(world, n, actions);
    }

    pub(super) fn quiesce(&self, world: &mut World, n: usize, lost: bool) {
        let (now, me) = (stored(world.now), world.nodes[n].me);
        let epoch = task(world, n).epoch;
        let ours = world.table.set_state(SESSION, me, epoch, SessionState::Quiescing, now);
        let departure = task(world, n).departure;
        if departure != Some(Departure::Balance) {
            let actions = task(world, n).turns.leave_behind();
            self.perform(world, n, actions);
        }
        if lost {
            world.left.losses -= 1;
        }
        if lost || !ours {
            return self.stays_or_goes(world, n);
        }
        let forced = departure == Some(Departure::Deadline);
        task(world, n).phase = Phase::Preparing { tried: 0, forced };
    }

    /// Leaves the conversation with an heir, which answers.
    pub(super) fn prepare(&self, world: &mut World, n: usize, heir: usize) {
        if !world.nodes[n].marks.is_empty() {
            // The ledger was not written in time.
            world.left.losses -= 1;
        }
        let Phase::Preparing { tried, forced } = task(world, n).phase else { return };
        let past = task(world, n).turns.history().all().to_vec();
        let warm = History::kept(None, false, past, TURN_BOUNDS.history_bytes);
        if !self.is(Mutant::NothingPrepared) {
            world.nodes[heir].warm = warm;
        }
        world.facts.lossy = false;
        let tried = tried | 1 << heir;
        task(world, n).phase = Phase::Committing { heir, tried, forced, answer: None };
    }

    pub(super) fn transfer(&self, world: &mut World, n: usize, lost: bool, done: bool) {
        let Phase::Committing { heir, tried, forced, .. } = task(world, n).phase else { return };
        let (now, me, to) = (stored(world.now), world.nodes[n].me, world.nodes[heir].me);
        let epoch = task(world, n).epoch;
        let mut answer = None;
        if done {
            let transferred = world.table.transfer(SESSION, me, epoch, to, forced, now);
            if self.is(Mutant::EpochStays) && matches!(transferred, Transferred::Moved(_)) {
                world.table.with_epoch(SESSION, epoch);
            }
            answer = Some(transferred);
        }
        task(world, n).phase = if lost {
            world.left.losses -= 1;
            Phase::Rereading { heir, tried, forced }
        } else {
            Phase::Committing { heir, tried, forced, answer }
        };
    }

    pub(super) fn transfer_answer(&self, world: &mut World, n: usize) {
        let Phase::Committing { heir, tried, forced, answer: Some(answer) } = task(world, n).phase
        else {
            return;
        };
        let must_leave = task(world, n).departure != Some(Departure::Balance);
        match transfer::after_answer(&Ok(answer), forced, must_leave) {
            Step::Moved(_) => self.went(world, n, heir),
            Step::NextHeir => task(world, n).phase = Phase::Preparing { tried, forced },
            Step::Force => {
                self.sees("a transfer is forced");
                task(world, n).phase =
                    Phase::Committing { heir, tried, forced: true, answer: None };
            }
            Step::GiveUp => self.stays_or_goes(world, n),
            Step::Reread => {}
        }
    }

    pub(super) fn reread(&self, world: &mut World, n: usize) {
        let Phase::Rereading { heir, tried, forced } = task(world, n).phase else { return };
        assert_eq!(transfer::after_answer(&Err(nothing()), forced, true), Step::Reread);
        let (me, epoch) = (world.nodes[n].me, task(world, n).epoch);
        if self.is(Mutant::UnansweredIsFailed) {
            task(world, n).phase = Phase::Serving;
            task(world, n).departure = None;
            return;
        }
        match transfer::after_reread(world.row().as_ref(), me, epoch) {
            None => task(world, n).phase = Phase::Committing { heir, tried, forced, answer: None },
            Some(Went::To(owner, _)) => {
                self.sees("a transfer whose answer was lost is found done");
                let heir = world.nodes.iter().position(|node| node.me == owner);
                self.went(world, n, heir.unwrap_or(world.heir_of(n)));
            }
            Some(Went::Nowhere) => self.stays_or_goes(world, n),
        }
    }

    /// The session is the heir's.
    fn went(&self, world: &mut World, n: usize, heir: usize) {
        self.sees("a session is handed over");
        world.nodes[heir].nudged = world.nodes[heir].runs;
        self.leaves(world, n);
    }

    /// No heir has it.
    pub(super) fn stays_or_goes(&self, world: &mut World, n: usize) {
        let (now, me) = (stored(world.now), world.nodes[n].me);
        let Task { epoch, departure, .. } = *task(world, n);
        let heir = |(other, node): (usize, &Node)| other != n && node.runs && !node.draining;
        let may_find_heir = departure == Some(Departure::Drain)
            && !task(world, n).turns.history().all().is_empty()
            && world.nodes.iter().enumerate().any(heir);
        if (departure == Some(Departure::Balance) || may_find_heir)
            && world.table.set_state(SESSION, me, epoch, SessionState::Live, now)
        {
            task(world, n).phase = Phase::Serving;
            if may_find_heir {
                self.sees("a drain offers a conversation again");
                let actions = task(world, n).turns.go_on();
                self.perform(world, n, actions);
                task(world, n).turns.hold();
            } else {
                self.sees("a session that could as well stay stays");
                task(world, n).departure = None;
            }
            return;
        }
        world.release(me, epoch, !self.is(Mutant::UnfencedRelease));
        self.leaves(world, n);
    }

    /// The task ends; its client is told to follow.
    pub(super) fn leaves(&self, world: &mut World, n: usize) {
        if let Some(link) = world.edge.link.as_mut().filter(|link| link.node == n) {
            link.down.push_back(Frame::Moved);
            link.over = true;
        }
        self.hang_up(world, n);
        world.nodes[n].task = None;
    }

    pub(super) fn hear(&self, world: &mut World, n: usize) {
        let Some(message) = world.edge.link.as_mut().and_then(|link| link.up.pop_front()) else {
            return;
        };
        let message = if self.is(Mutant::StoredTurnsRunAgain) {
            let text = String::from_utf8(message.payload.to_vec()).unwrap();
            let message = Message::text(text.replace(r#""store":true"#, r#""store":false"#));
            world.facts.requests[0].fingerprint = create(&message).fingerprint;
            message
        } else {
            message
        };
        let task = task(world, n);
        let client = task.client.expect("a client that is heard");
        let actions = task.turns.on_client(client, &message, None);
        self.perform(world, n, actions);
    }
}

fn mark(world: &mut World, n: usize, no: TurnNo, state: TurnState, response: Option<String>) {
    let epoch = task(world, n).epoch;
    let mark = TurnMark { session: SESSION, epoch, no, state, response };
    put(&mut world.nodes[n].marks, mark);
}

fn append(world: &mut World, n: usize, turn: TurnNo, batch: Batch, done: bool) {
    let task = task(world, n);
    let Some(log) = task.logs.get_mut(&turn) else { return };
    log.push((batch.clone(), done));
    if task.watching.contains(&turn) {
        tell(world, n, batch, u32::from(done));
    }
}

/// A frame on its way to the client, if one is attached.
fn tell(world: &mut World, n: usize, batch: Batch, ended: u32) {
    let attached = task(world, n).client.is_some();
    if let Some(link) = world.edge.link.as_mut().filter(|link| attached && link.node == n) {
        link.down.push_back(Frame::Events { batch, ended });
    }
}
