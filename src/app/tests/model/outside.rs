//! What is outside of the owner: the edge with its client, and the upstream.

use bytes::Bytes;

use super::{
    mutants::Mutant,
    protocol::{I2_ONCE, I2_ROW, I3_ONE, I5, I6, Protocol, create, text},
    steps::task,
    world::{Frame, Link, Opening, World},
};
use crate::{
    edge::lost,
    ids::Epoch,
    session::event::{ServerEvent, Stage},
    store::TurnState,
    wire::Message,
};

const NOT_FOUND: &str = "previous_response_not_found";

impl Protocol {
    /// The edge asks a node to attach its client, which claims the session if need be.
    pub(super) fn attach(&self, world: &mut World, n: usize) {
        let least = world.edge.epoch;
        let Some(task) = &mut world.nodes[n].task else {
            world.nodes[n].opening = Some(Opening::default());
            return;
        };
        if task.epoch < least {
            // The edge has seen a later owner.
            self.sees("an owner of the past is asked to go");
            let epoch = task.epoch;
            let me = world.nodes[n].me;
            self.leaves(world, n);
            return world.release(me, epoch, !self.is(Mutant::UnfencedRelease));
        }
        task.gone.extend(task.client.take());
        task.client = Some(task.next_client);
        task.next_client += 1;
        task.watching.clear();
        world.edge.epoch = task.epoch;
        let waiting = world.edge.outstanding.not_taken();
        let up = waiting.into_iter().map(|(_, message)| message).collect();
        world.edge.link =
            Some(Link { node: n, up, down: std::collections::VecDeque::new(), over: false });
    }

    pub(super) fn ask(&self, world: &mut World) {
        let Some(n) = self.next_request(world) else { return };
        if n == world.edge.next {
            world.edge.next += 1;
        } else {
            world.left.retries -= 1;
            self.sees("a client asks again by its key");
            // It asks for a whole answer, whatever it saw of the one before.
            world.facts.requests[n].seen = false;
        }
        let request = &world.facts.requests[n];
        let previous = request.chained.then(|| world.facts.requests[n - 1].response.clone());
        let message = text(n, request, previous.flatten().as_deref());
        let create = create(&message);
        world.facts.requests[n].fingerprint = create.fingerprint;
        world.edge.outstanding.push(&create, &message, true);
        (world.edge.current, world.edge.failed) = (Some(n), None);
        if let Some(link) = world.edge.link.as_mut().filter(|link| !link.over) {
            link.up.push_back(message);
        }
    }

    pub(super) fn deliver(&self, world: &mut World) {
        let Some(link) = &mut world.edge.link else { return };
        match link.down.pop_front() {
            Some(Frame::Events { batch, ended }) => {
                for message in batch.messages() {
                    self.client_hears(world, &message);
                }
                // There is one request at a time, so who does not name it means it.
                world.edge.outstanding.seen(&batch, 0, ended);
            }
            Some(Frame::Moved) => {
                if world.edge.current.is_some() {
                    self.sees("a waiting request follows its session");
                }
                world.edge.link = None;
            }
            None => {}
        }
    }

    /// The link ended without a word.
    pub(super) fn link_gone(&self, world: &mut World) {
        if let Some(link) = world.edge.link.take()
            && let Some(task) = &mut world.nodes[link.node].task
        {
            task.gone.extend(task.client.take());
        }
        let before = world.edge.outstanding.clone();
        let said = world.edge.outstanding.lose(&lost());
        if self.is(Mutant::EdgeRedispatches) {
            world.edge.outstanding = before;
            return;
        }
        if self.is(Mutant::LossIsSilent) {
            return;
        }
        if !world.edge.outstanding.is_empty() {
            self.sees("the edge keeps a request for the next owner");
        }
        for message in said {
            self.client_hears(world, &message);
        }
    }

    fn client_hears(&self, world: &mut World, message: &Message) {
        let event = ServerEvent::parse(message).expect("an event");
        let Some(n) = world.edge.current else { return world.breaks(I3_ONE) };
        if let Some(id) = &event.response_id
            && event.stage != Stage::Error
        {
            world.facts.requests[n].seen = true;
            if !id.starts_with(&format!("r{n}-")) {
                world.breaks(I3_ONE);
            }
        }
        if !event.stage.is_last() {
            return;
        }
        world.edge.current = None;
        let request = &mut world.facts.requests[n];
        if event.stage == Stage::Completed {
            request.response = event.response_id;
            if request.runs > 1 {
                self.sees("a turn that ran again is answered");
            }
            return;
        }
        if request.keyed {
            world.edge.failed = Some(n);
        }
        match event.error_code.as_deref() {
            Some("outcome_unknown") => {
                self.sees("an outcome is said to be unknown");
                if !world.facts.disturbed {
                    world.breaks(I5);
                }
            }
            Some(NOT_FOUND) => {
                self.sees("a conversation is lost");
                if !world.facts.lossy {
                    world.breaks(I6);
                }
            }
            _ => self.sees("a request is refused"),
        }
    }

    /// The upstream takes the next request of the owner's connection.
    pub(super) fn take(&self, world: &mut World, n: usize) {
        let task = task(world, n);
        let epoch = task.epoch;
        let Some(upstream) = &mut task.upstream else { return };
        let Some(payload) = upstream.up.pop_front() else { return };
        let previous = create(&Message::text(payload.clone())).previous_response_id;
        if previous.is_some_and(|id| !upstream.known.contains(&id)) {
            let text =
                format!(r#"{{"type":"error","status":400,"error":{{"code":"{NOT_FOUND}"}}}}"#);
            upstream.down.push_back(Message::text(text));
            return;
        }
        let id = self.run(world, epoch, &payload);
        let Some(upstream) = &mut super::steps::task(world, n).upstream else { return };
        upstream.running = Some((id, false));
    }

    /// An owner sends a request. What was sent before may arrive later.
    pub(super) fn sent(&self, world: &mut World, payload: &Bytes) {
        let n = which(world, payload);
        let request = &mut world.facts.requests[n];
        request.sent += 1;
        if request.sent > 2 {
            self.sees("a turn that stores nothing is sent a third time");
        }
        if request.sent > 1 && (request.store || request.seen) {
            world.breaks(I2_ONCE);
        }
    }

    /// The upstream runs a request; the id of its response.
    pub(super) fn run(&self, world: &mut World, epoch: Epoch, payload: &Bytes) -> String {
        let n = which(world, payload);
        let request = &mut world.facts.requests[n];
        request.runs += 1;
        let (runs, store, keyed) = (request.runs, request.store, request.keyed);
        let fingerprint = request.fingerprint.to_be_bytes();
        // A keyed turn's row goes along where it may run again.
        let row = world.table.turns().find(|row| row.epoch == epoch && row.request == fingerprint);
        let moved = keyed && !store;
        if !moved && row.is_none_or(|row| row.state == TurnState::Failed) {
            world.breaks(I2_ROW);
        }
        format!("r{n}-{runs}")
    }

    /// The upstream speaks: first it names the response, then the response is complete.
    pub(super) fn say(&self, world: &mut World, n: usize) {
        let Some(upstream) = &mut task(world, n).upstream else { return };
        let Some((id, announced)) = upstream.running.take() else { return };
        let kind = if announced { "completed" } else { "created" };
        let text = format!(r#"{{"type":"response.{kind}","response":{{"id":"{id}"}}}}"#);
        upstream.down.push_back(Message::text(text));
        if announced {
            upstream.known.insert(id);
        } else {
            upstream.running = Some((id, true));
        }
    }

    /// The owner's connection ends, on either side. What was written to it may arrive yet.
    pub(super) fn hang_up(&self, world: &mut World, n: usize) {
        let Some(task) = &mut world.nodes[n].task else { return };
        let epoch = task.epoch;
        let Some(upstream) = &mut task.upstream else { return };
        upstream.open = false;
        upstream.running = None;
        upstream.down.clear();
        let stray = std::mem::take(&mut upstream.up);
        world.stray.extend(stray.into_iter().map(|payload| (epoch, payload)));
    }
}

/// Which request a message to the upstream is: the last one that it holds.
fn which(world: &World, payload: &Bytes) -> usize {
    let named = |n: &usize| memchr::memmem::find(payload, format!("ask-{n}").as_bytes()).is_some();
    (0..world.facts.requests.len()).rev().find(named).expect("a known request")
}
