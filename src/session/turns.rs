//! The rules of turns: lanes, queues, who gets which event, and what happens to a turn
//! when its client or its upstream goes. Pure: no socket, no clock, no store.
//!
//! *Invariant (I2):* a turn is dispatched once. It is dispatched again only by the rule in
//! [`Turn::may_redispatch`], and only if the upstream connection that had it is gone.
//! *Invariant (I3):* a turn gets one terminal event; what an upstream says of a response
//! that is not running is dropped, because a stale terminal event corrupts clients.

use std::collections::VecDeque;

use bytes::Bytes;

use super::event::{ClientEvent, Create, ServerEvent, Stage, error_event, error_event_with};
use crate::{
    error::{Code, Error},
    wire::{Batch, BatchBuilder, Kind, Message},
};

/// Names a client within its session.
pub type ClientId = u32;

/// Numbers a turn within its session and epoch.
pub type TurnNo = u64;

/// Distinct lanes on a connection, and lanes that run at once: the API's limits.
const MAX_LANES: usize = 32;
const MAX_ACTIVE: usize = 16;

/// What the session must do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Send to the upstream.
    Upstream(Batch),
    /// A turn begins: its log is opened.
    Open(TurnNo),
    /// The client reads the turn's log from its start.
    Subscribe { client: ClientId, turn: TurnNo },
    /// Append to a turn's log; `done` ends it.
    Append { turn: TurnNo, batch: Batch, done: bool },
    /// Answer one client outside any turn's log; `ended` of its creates end with it.
    Reply { client: ClientId, batch: Batch, ended: u32 },
    /// Hang up on the upstream: what it is doing is no longer wanted.
    HangUp,
    /// The response is known by this id from now on.
    Alias(String),
}

/// How far a turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Queued,
    /// The upstream may have it.
    Dispatched,
    /// Events of it were passed on.
    Visible,
}

#[derive(Debug)]
struct Turn {
    no: TurnNo,
    client: Option<ClientId>,
    create: Create,
    /// The request itself, kept while it may have to be sent (again).
    payload: Option<Bytes>,
    response_id: Option<String>,
    progress: Progress,
    redispatched: bool,
}

impl Turn {
    /// A turn that asked for nothing to be stored, refers to nothing that only the lost
    /// connection knew, and of which nobody has seen anything, has no effect that a second
    /// run could double: the model's answer is all there is, and it was not delivered.
    fn may_redispatch(&self) -> bool {
        self.progress == Progress::Dispatched
            && !self.redispatched
            && !self.create.store
            && self.create.previous_response_id.is_none()
            && self.payload.is_some()
    }
}

#[derive(Debug)]
struct Lane {
    name: Option<String>,
    running: Option<Turn>,
    queue: VecDeque<Turn>,
}

impl Lane {
    fn error(&self, error: &Error) -> Batch {
        Batch::one(&error_event(error, self.name.as_deref()))
    }
}

/// All turns of a session.
#[derive(Debug)]
pub struct Turns {
    lanes: Vec<Lane>,
    next: TurnNo,
    max_queue: usize,
    connected: bool,
    /// Turns finished, for operators.
    done: u64,
}

impl Turns {
    #[must_use]
    pub fn new(max_queue: usize) -> Self {
        Self { lanes: Vec::new(), next: 1, max_queue, connected: false, done: 0 }
    }

    /// Turns that the upstream has.
    #[must_use]
    pub fn running(&self) -> usize {
        self.lanes.iter().filter(|lane| lane.running.is_some()).count()
    }

    /// Turns that wait.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.lanes.iter().map(|lane| lane.queue.len()).sum()
    }

    /// Turns that have ended.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// No turn runs or waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.lanes.iter().all(|lane| lane.running.is_none() && lane.queue.is_empty())
    }

    /// A message from a client.
    pub fn on_client(&mut self, client: ClientId, message: &Message) -> Vec<Action> {
        let mut actions = Vec::new();
        if message.kind == Kind::Binary {
            let error = Error::new(Code::InvalidRequest, "binary messages have no meaning here");
            reply(&mut actions, client, &error, None, 0);
            return actions;
        }
        match ClientEvent::parse(&message.payload) {
            Err(error) => {
                // The edge counts what it could not read as no create, like us.
                reply(&mut actions, client, &error, None, 0);
            }
            Ok(ClientEvent::Create(create)) => self.create(client, create, message, &mut actions),
            Ok(ClientEvent::Control { lane, response_id }) => {
                let target = self.lanes.iter().find(|l| {
                    l.running.as_ref().is_some_and(|turn| match &response_id {
                        Some(id) => turn.response_id.as_ref() == Some(id),
                        None => l.name == lane,
                    })
                });
                // One that comes too late has lost a race that its sender could not see:
                // the terminal event is on its way to the client, so there is nothing to say.
                if target.is_some() {
                    actions.push(Action::Upstream(Batch::one(message)));
                }
            }
            Ok(ClientEvent::Other { lane }) => {
                let known = self.lane(lane.as_deref()).is_some_and(|at| {
                    self.lanes[at].running.as_ref().is_some_and(|turn| turn.client == Some(client))
                });
                if known {
                    actions.push(Action::Upstream(Batch::one(message)));
                } else {
                    let error = Error::new(
                        Code::InvalidRequest,
                        "unknown event type; outside a running response only response.create is understood",
                    );
                    reply(&mut actions, client, &error.param("type"), lane.as_deref(), 0);
                }
            }
        }
        actions
    }

    fn create(
        &mut self,
        client: ClientId,
        create: Create,
        message: &Message,
        actions: &mut Vec<Action>,
    ) {
        let lane_name = create.lane.clone();
        let Some(at) = self.lane_or_new(create.lane.as_deref()) else {
            let error = Error::new(Code::StreamLimitReached, "at most 32 distinct stream ids");
            reply(actions, client, &error.param("stream_id"), lane_name.as_deref(), 1);
            return;
        };
        let lane = &mut self.lanes[at];
        let same = |turn: &&mut Turn| {
            turn.client.is_none() && turn.create.fingerprint == create.fingerprint
        };
        if let Some(turn) = lane.running.as_mut().filter(same) {
            // The client lost its socket and asks again: the answer is under way.
            turn.client = Some(client);
            actions.push(Action::Subscribe { client, turn: turn.no });
            return;
        }
        let abandons = create.previous_response_id.is_none()
            && lane.running.as_ref().is_some_and(|turn| turn.client.is_none())
            && self.running() == 1;
        let lane = &mut self.lanes[at];
        if lane.queue.len() >= self.max_queue {
            let error =
                Error::new(Code::QueueFull, "too many turns wait in this stream; retry later");
            reply(actions, client, &error, lane_name.as_deref(), 1);
            return;
        }
        let turn = Turn {
            no: self.next,
            client: Some(client),
            create,
            payload: Some(message.payload.clone()),
            response_id: None,
            progress: Progress::Queued,
            redispatched: false,
        };
        self.next += 1;
        actions.push(Action::Open(turn.no));
        actions.push(Action::Subscribe { client, turn: turn.no });
        lane.queue.push_back(turn);
        if abandons {
            // Nobody waits for the turn that runs, and the new one brings its whole
            // history: do what the client's own connection would have done, hang up.
            let error = Error::new(Code::OutcomeUnknown, "superseded after its client went away");
            let batch = lane.error(&error);
            if let Some(turn) = lane.running.take() {
                self.done += 1;
                actions.push(Action::Append { turn: turn.no, batch, done: true });
            }
            self.connected = false;
            actions.push(Action::HangUp);
        }
        self.dispatch(actions);
    }

    /// Sends what may be sent.
    fn dispatch(&mut self, actions: &mut Vec<Action>) {
        if !self.connected {
            return;
        }
        let mut active = self.running();
        for lane in &mut self.lanes {
            if active >= MAX_ACTIVE {
                break;
            }
            if lane.running.is_some() {
                continue;
            }
            let Some(mut turn) = lane.queue.pop_front() else { continue };
            let Some(payload) = turn.payload.clone() else { continue };
            turn.progress = Progress::Dispatched;
            if turn.create.store || turn.create.previous_response_id.is_some() {
                turn.payload = None;
            }
            actions.push(Action::Upstream(Batch::one(&Message::text(payload))));
            lane.running = Some(turn);
            active += 1;
        }
    }

    /// A client is gone. Its waiting turns never ran and never will; a running one goes on,
    /// so that the client can come back for it.
    pub fn on_client_gone(&mut self, client: ClientId) {
        for lane in &mut self.lanes {
            lane.queue.retain(|turn| turn.client != Some(client));
            if let Some(turn) = lane.running.as_mut().filter(|turn| turn.client == Some(client)) {
                turn.client = None;
            }
        }
    }

    /// The upstream connection is there.
    pub fn on_connected(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.connected = true;
        self.dispatch(&mut actions);
        actions
    }

    /// The upstream connection is gone: each turn it had is redispatched by its rule, or
    /// ends with an honest error.
    pub fn on_disconnected(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.connected = false;
        for lane in &mut self.lanes {
            let Some(mut turn) = lane.running.take() else { continue };
            if turn.may_redispatch() {
                turn.progress = Progress::Queued;
                turn.redispatched = true;
                lane.queue.push_front(turn);
                continue;
            }
            self.done += 1;
            let error = Error::new(
                Code::OutcomeUnknown,
                "the upstream connection was lost during this turn; whether it finished is unknown",
            );
            let batch = lane.error(&error);
            actions.push(Action::Append { turn: turn.no, batch, done: true });
        }
        actions
    }

    /// There will be no upstream connection now: what waits ends with the reason.
    pub fn on_unreachable(
        &mut self,
        status: u16,
        body: &serde_json::Value,
        code: Code,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        for lane in &mut self.lanes {
            for turn in std::mem::take(&mut lane.queue) {
                self.done += 1;
                let event =
                    error_event_with(status, body, code.retry_after(), lane.name.as_deref());
                actions.push(Action::Append {
                    turn: turn.no,
                    batch: Batch::one(&event),
                    done: true,
                });
            }
        }
        actions
    }

    /// A running turn has been silent for too long: it ends, and the connection with it.
    pub fn on_silence(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for lane in &mut self.lanes {
            if let Some(turn) = lane.running.take() {
                self.done += 1;
                let error =
                    Error::new(Code::UpstreamTimeout, "the upstream fell silent during this turn");
                let batch = lane.error(&error);
                actions.push(Action::Append { turn: turn.no, batch, done: true });
            }
        }
        self.connected = false;
        actions.push(Action::HangUp);
        actions
    }

    /// Messages of the upstream. Events of one turn that arrived together stay together.
    pub fn on_upstream(&mut self, batch: &Batch) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut run: Option<(TurnNo, BatchBuilder)> = None;
        let mut whole = true;
        for message in batch.messages() {
            let Some((turn, done)) = self.place(&message, &mut actions) else {
                whole = false;
                continue;
            };
            match &mut run {
                Some((current, builder)) if *current == turn => {
                    builder.push(message.kind, &message.payload);
                }
                _ => {
                    whole &= run.is_none();
                    flush(&mut actions, run.take(), None);
                    let mut builder = BatchBuilder::default();
                    builder.push(message.kind, &message.payload);
                    run = Some((turn, builder));
                }
            }
            if done {
                whole = false;
                flush(&mut actions, run.take(), Some(true));
                self.dispatch(&mut actions);
            }
        }
        match run {
            // The ordinary case, a run of deltas: the bytes go on as they came.
            Some((turn, _)) if whole => {
                actions.push(Action::Append { turn, batch: batch.clone(), done: false });
            }
            run => flush(&mut actions, run, None),
        }
        actions
    }

    /// The turn that a message belongs to, and whether it ends it. None: not for anybody.
    fn place(&mut self, message: &Message, actions: &mut Vec<Action>) -> Option<(TurnNo, bool)> {
        let event = ServerEvent::parse(message)?;
        let at = self.lane(event.lane.as_deref())?;
        let lane = &mut self.lanes[at];
        let turn = lane.running.as_mut()?;
        match (&turn.response_id, &event.response_id) {
            (Some(known), Some(told)) if known != told => return None,
            (None, Some(told)) => {
                if event.stage != Stage::Created {
                    return None;
                }
                turn.response_id = Some(told.clone());
                actions.push(Action::Alias(told.clone()));
            }
            (Some(_), _) if event.stage == Stage::Created => return None,
            // A terminal event that names no response proves nothing.
            (_, None) if event.stage.is_last() && event.stage != Stage::Error => return None,
            _ => {}
        }
        turn.progress = Progress::Visible;
        turn.payload = None;
        if event.stage == Stage::Steered {
            turn.response_id = None;
        }
        let (no, done) = (turn.no, event.stage.is_last());
        if done {
            lane.running = None;
            self.done += 1;
        }
        Some((no, done))
    }

    fn lane(&self, name: Option<&str>) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.name.as_deref() == name)
    }

    fn lane_or_new(&mut self, name: Option<&str>) -> Option<usize> {
        if let Some(at) = self.lane(name) {
            return Some(at);
        }
        if self.lanes.iter().filter(|lane| lane.name.is_some()).count() >= MAX_LANES
            && name.is_some()
        {
            return None;
        }
        let name = name.map(str::to_owned);
        self.lanes.push(Lane { name, running: None, queue: VecDeque::new() });
        Some(self.lanes.len() - 1)
    }
}

fn flush(actions: &mut Vec<Action>, run: Option<(TurnNo, BatchBuilder)>, done: Option<bool>) {
    if let Some((turn, builder)) = run {
        actions.push(Action::Append { turn, batch: builder.finish(), done: done.unwrap_or(false) });
    }
}

fn reply(
    actions: &mut Vec<Action>,
    client: ClientId,
    error: &Error,
    lane: Option<&str>,
    ended: u32,
) {
    let batch = Batch::one(&error_event(error, lane));
    actions.push(Action::Reply { client, batch, ended });
}

#[cfg(test)]
mod tests;
