//! The rules of turns: lanes, queues, who gets which event, and what happens to a turn
//! when its client or its upstream goes. Pure: no socket, no clock, no store.
//!
//! *Invariant (I2):* a turn is dispatched once. It is dispatched again only by the rule in
//! [`Turn::may_redispatch`], and only if the upstream connection that had it is gone, or
//! has answered that it does not know the conversation (then nothing ran).
//! *Invariant (I3):* a turn gets one terminal event; what an upstream says of a response
//! that is not running is dropped, because a stale terminal event corrupts clients.

mod keys;
mod lane;
mod ledger;
mod losses;
mod parting;
mod recall;
mod upstream;

use std::collections::{BTreeSet, VecDeque};

use keys::Keyed;
use lane::{Lane, Turn};
pub use ledger::{Answer, Journaled};
pub use parting::Severed;
use recall::Recall;

use super::{
    event::{ClientEvent, Create, error_event, steer_failed},
    history::{History, Past},
};
use crate::{
    error::{Code, Error},
    store::{TurnKey, TurnState},
    wire::{Batch, Kind, Message},
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
    /// Send to the upstream, beside its turn or for it.
    Upstream(Batch),
    /// The turn itself is sent to the upstream.
    Dispatch { turn: TurnNo, batch: Batch },
    /// A turn begins in a lane: its log is opened.
    Open { turn: TurnNo, lane: Option<String> },
    /// The client reads the turn's log from its start.
    Subscribe { client: ClientId, turn: TurnNo },
    /// The same, if the log still has its start; if not, the client is told the error.
    Rejoin { client: ClientId, turn: TurnNo, otherwise: Batch },
    /// The client that waits for `from`, which will not run, reads `turn` in its place.
    Join { client: ClientId, from: TurnNo, turn: TurnNo },
    /// Write to the ledger that the turn is about to be sent; [`Turns::on_journaled`] is told.
    Journal { turn: TurnNo, key: Option<TurnKey>, request: u128, repeatable: bool },
    /// Write to the ledger, some time, what became of the turn.
    Mark { turn: TurnNo, state: TurnState, response: Option<String> },
    /// Append to a turn's log; `done` ends it.
    Append { turn: TurnNo, batch: Batch, done: bool },
    /// A turn that never ran and never will: its log is closed.
    Forget(TurnNo),
    /// Answer one client outside any turn's log; `ended` of its creates end with it.
    Reply { client: ClientId, batch: Batch, ended: u32 },
    /// Hang up on the upstream: what it is doing is no longer wanted.
    HangUp,
    /// The response is known by this id from now on.
    Alias(String),
    /// The conversation has grown by this response.
    Remembered(Past),
    /// Read what the database knows of the conversation.
    Recall,
}

/// Bounds of a session's turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Turns that may wait in one lane behind the one that runs.
    pub queue: usize,
    /// Bytes of all requests that wait or run, and of what was said to them, above which no
    /// more are taken.
    pub payload_bytes: usize,
    /// Bytes of conversation kept.
    pub history_bytes: usize,
    /// Turns are asked for (the ledger, the limits of their principal) before they are sent.
    pub asked: bool,
    /// The ledger has a row of each turn that was asked for.
    pub ledger: bool,
}

/// The upstream connection, as turns see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Connection {
    None,
    Open,
    /// What comes on it may be of a turn that was ended here, or it is as old as it may be:
    /// nothing more is sent on it, and it is given up as soon as nothing runs on it.
    Spent,
}

/// All turns of a session.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub struct Turns {
    lanes: Vec<Lane>,
    next: TurnNo,
    bounds: Bounds,
    connection: Connection,
    /// The session is about to leave.
    holding: bool,
    /// Responses that the present connection made: it knows them, and no other does.
    known: BTreeSet<String>,
    history: History,
    recall: Recall,
    /// Responses that ended, newest last, for clients that ask for one again.
    ended: VecDeque<(String, TurnNo)>,
    /// The newest response was told to nobody but the connection, and is not remembered.
    untold: bool,
    /// The same for those that ask by an idempotency key.
    keyed: VecDeque<Keyed>,
    /// Turns finished, for operators.
    done: u64,
}

impl Turns {
    #[must_use]
    pub fn new(bounds: Bounds, past: Vec<Past>) -> Self {
        Self {
            lanes: Vec::new(),
            next: 1,
            bounds,
            connection: Connection::None,
            holding: false,
            known: BTreeSet::new(),
            history: History::new(bounds.history_bytes, past),
            recall: Recall::default(),
            ended: VecDeque::new(),
            untold: false,
            keyed: VecDeque::new(),
            done: 0,
        }
    }

    /// Turns that the upstream has.
    #[must_use]
    pub fn running(&self) -> usize {
        self.at_upstream().count()
    }

    pub(super) fn at_upstream(&self) -> impl Iterator<Item = TurnNo> {
        self.lanes.iter().filter_map(|lane| lane.at_upstream().map(|turn| turn.no))
    }

    /// Turns that wait, and somebody waits for them.
    #[must_use]
    pub fn queued(&self) -> usize {
        let accepted = |lane: &Lane| lane.running.iter().filter(|turn| !turn.runs()).count();
        let wanted = |lane: &Lane| lane.queue.iter().filter(|turn| turn.client.is_some()).count();
        self.lanes.iter().map(|lane| accepted(lane) + wanted(lane)).sum()
    }

    /// Turns that have ended.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// No turn runs, and nobody waits for one.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running() == 0 && self.queued() == 0
    }

    /// What has been said, for the session's heir.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// A message from a client. `key` is the idempotency key of a client that sends just
    /// one create; one in the create itself wins.
    pub fn on_client(
        &mut self,
        client: ClientId,
        message: &Message,
        key: Option<TurnKey>,
    ) -> Vec<Action> {
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
            Ok(ClientEvent::Create(mut create)) => {
                create.key = create.key.or(key);
                // Of use to the edge alone, and of any length.
                create.prompt_cache_key = None;
                self.create(client, create, message, &mut actions);
            }
            Ok(ClientEvent::Resume { response_id }) => {
                self.resume(client, &response_id, &mut actions);
            }
            Ok(ClientEvent::Control { lane, response_id, steers }) => {
                let running = |lane: &&mut Lane| lane.at_upstream().is_some();
                let target = self.lanes.iter_mut().filter(running).find_map(|l| {
                    let meant = match &response_id {
                        Some(id) => l.at_upstream()?.response_id.as_ref() == Some(id),
                        None => l.name == lane,
                    };
                    l.running.as_mut().filter(|_| meant)
                });
                match target {
                    Some(turn) => {
                        if steers {
                            turn.forget();
                        }
                        actions.push(Action::Upstream(Batch::one(message)));
                    }
                    // What it says is lost with it, so its sender has to know.
                    None if steers => {
                        let event = steer_failed(&message.payload, response_id.as_deref());
                        let batch = Batch::one(&event);
                        actions.push(Action::Reply { client, batch, ended: 0 });
                    }
                    // It has lost a race that its sender could not see: the terminal event is on
                    // its way to the client, so there is nothing to say.
                    None => {}
                }
            }
            Ok(ClientEvent::Other { lane }) => {
                let at = self.lane(lane.as_deref());
                let turn = at.and_then(|at| self.lanes[at].running.as_mut());
                if let Some(turn) = turn.filter(|turn| turn.takes_asides_of(client)) {
                    turn.asides = turn.asides.saturating_add(1);
                    actions.push(Action::Upstream(Batch::one(message)));
                } else {
                    let error = Error::new(
                        Code::InvalidRequest,
                        "unknown event type; before a response has begun and after its end only response.create is understood",
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
        let name = create.lane.clone();
        if self.repeat(client, &create, actions) {
            return;
        }
        let Some(at) = self.lane_or_new(name.as_deref()) else {
            let error = Error::new(Code::StreamLimitReached, "at most 32 distinct stream ids");
            reply(actions, client, &error.param("stream_id"), name.as_deref(), 1);
            return;
        };
        if let Some(turn) = self.lanes[at].orphan(&create, create.key) {
            // The client lost its socket and asks again: the answer is under way.
            if turn.trimmed {
                reply(actions, client, &turn.cannot_be_joined(), name.as_deref(), 1);
                return;
            }
            turn.client = Some(client);
            actions.push(Action::Subscribe { client, turn: turn.no });
            self.dispatch(actions);
            return;
        }
        let held: usize = self.lanes.iter().map(Lane::held_bytes).sum();
        let lane = &self.lanes[at];
        let busy = lane.running.is_some() || self.connection != Connection::Open;
        if (busy && lane.queue.len() >= self.bounds.queue.max(1))
            || (held > 0 && held + message.payload.len() > self.bounds.payload_bytes)
        {
            let error = Error::new(Code::QueueFull, "too much waits in this session; retry later");
            reply(actions, client, &error, name.as_deref(), 1);
            return;
        }
        let turn = Turn::new(self.next, client, create, message.payload.clone());
        self.next += 1;
        actions.push(Action::Open { turn: turn.no, lane: name });
        actions.push(Action::Subscribe { client, turn: turn.no });
        self.lanes[at].queue.push_back(turn);
        self.supersede(at, actions);
        self.dispatch(actions);
    }

    /// Where nobody waits for the turn that runs, and the next one brings its whole history: does
    /// what the client's own connection would have done, hangs up.
    fn supersede(&mut self, at: usize, actions: &mut Vec<Action>) {
        let lane = &self.lanes[at];
        let next = lane.queue.front().filter(|turn| turn.client.is_some());
        if next.is_some_and(|turn| turn.create.previous_response_id.is_none())
            && lane.at_upstream().is_some_and(Turn::is_abandoned)
            && self.running() == 1
        {
            let text = "superseded after its client went away; whether it finished is unknown";
            self.end(at, text, actions);
            self.lost_connection();
            actions.push(Action::HangUp);
        }
    }

    /// The events of a response once more: of the one that runs, or of one that ended and
    /// whose log may still be there.
    fn resume(&mut self, client: ClientId, response_id: &str, actions: &mut Vec<Action>) {
        let running = self.lanes.iter_mut().filter_map(|lane| lane.running.as_mut());
        let mut running = running.filter(|turn| turn.response_id.as_deref() == Some(response_id));
        let turn = if let Some(turn) = running.next() {
            turn.read(client);
            Some(turn.no)
        } else {
            self.ended.iter().find(|(id, _)| id == response_id).map(|(_, turn)| *turn)
        };
        if let Some(turn) = turn {
            actions.push(Action::Subscribe { client, turn });
        } else {
            let text = "the events of this response are not held any more";
            reply(actions, client, &Error::new(Code::NotFound, text), None, 1);
        }
    }

    /// The first events of a turn are not held any more: it cannot be read from its start.
    pub fn on_trimmed(&mut self, no: TurnNo) {
        let mut running = self.lanes.iter_mut().filter_map(|lane| lane.running.as_mut());
        if let Some(turn) = running.find(|turn| turn.no == no) {
            turn.trimmed = true;
        }
    }

    /// A client is gone. Its waiting turns never ran and never will; a running one goes on,
    /// so that the client can come back for it.
    pub fn on_client_gone(&mut self, client: ClientId) -> Vec<Action> {
        let mut actions = Vec::new();
        for lane in &mut self.lanes {
            lane.queue.retain_mut(|turn| {
                if !turn.leave(client) || turn.redispatched {
                    // One that ran before is kept like a running one: the client may come back.
                    return true;
                }
                actions.extend(turn.cut_short());
                actions.push(Action::Forget(turn.no));
                false
            });
            if lane.running.as_mut().is_some_and(|turn| turn.leave(client)) {
                lane.adopt(&mut actions);
            }
        }
        // A request that came before this loss was noticed need not wait either.
        let abandoned = |lane: &Lane| lane.at_upstream().is_some_and(Turn::is_abandoned);
        if let Some(at) = self.lanes.iter().position(abandoned) {
            self.supersede(at, &mut actions);
        }
        actions
    }

    /// The upstream connection is there.
    pub fn on_connected(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.connection = Connection::Open;
        self.dispatch(&mut actions);
        actions
    }

    fn lane(&self, name: Option<&str>) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.name.as_deref() == name)
    }

    fn lane_or_new(&mut self, name: Option<&str>) -> Option<usize> {
        if let Some(at) = self.lane(name) {
            return Some(at);
        }
        let named = self.lanes.iter().filter(|lane| lane.name.is_some()).count();
        if named >= MAX_LANES && name.is_some() {
            return None;
        }
        self.lanes.push(Lane::new(name.map(str::to_owned)));
        Some(self.lanes.len() - 1)
    }
}

/// Ends a turn with an error of ours.
fn refuse(turn: TurnNo, error: &Error, lane: Option<&str>) -> Action {
    Action::Append { turn, batch: Batch::one(&error_event(error, lane)), done: true }
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
