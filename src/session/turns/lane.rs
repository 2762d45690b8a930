//! One turn and the lane it stands in.

use std::collections::{BTreeSet, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};

use super::{Action, ClientId, TurnNo};
use crate::{
    error::{Code, Error},
    session::{
        event::{Create, ServerEvent, Stage, done_item},
        history::{History, Past, input_items, output_item},
    },
    store::{TurnKey, TurnState},
    wire::Message,
};

/// How far a turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Progress {
    Queued,
    /// Being asked for; the upstream has not seen it.
    Accepted,
    /// The upstream may have it.
    Dispatched,
    /// Events of it were passed on.
    Visible,
}

#[expect(clippy::struct_excessive_bools, reason = "facts that change independently, not states")]
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub(super) struct Turn {
    pub(super) no: TurnNo,
    /// Who waits for it. None: its client went away and may come back.
    pub(super) client: Option<ClientId>,
    /// Others that asked for the same by its idempotency key.
    pub(super) also: Vec<ClientId>,
    /// Who reads it by its response and has not asked for it.
    pub(super) readers: Vec<ClientId>,
    pub(super) key: Option<TurnKey>,
    pub(super) create: Create,
    /// The request itself, kept while it may have to be sent (again).
    pub(super) payload: Option<Bytes>,
    /// Its own input items, where the conversation is kept: what stays of the payload.
    input: Option<Bytes>,
    /// Output items so far, as the upstream gave them; as long as there is `input`.
    output: Vec<String>,
    output_bytes: usize,
    pub(super) response_id: Option<String>,
    pub(super) progress: Progress,
    pub(super) redispatched: bool,
    /// The ledger has a row of it, or may have.
    pub(super) journaled: bool,
    /// The upstream may have had it, on this connection or an earlier one.
    pub(super) sent: bool,
    /// Send the whole conversation, also on a connection that should know it.
    pub(super) tell_all: bool,
    /// Its first events are not held any more.
    pub(super) trimmed: bool,
    /// Number of the last event that was passed on.
    pub(super) last_sequence: Option<u64>,
    /// Events of unknown types that were sent beside it and that no error has answered.
    pub(super) asides: u32,
}

impl Turn {
    pub(super) fn new(no: TurnNo, client: ClientId, create: Create, payload: Bytes) -> Self {
        Self {
            no,
            client: Some(client),
            also: Vec::new(),
            readers: Vec::new(),
            key: create.key,
            create,
            payload: Some(payload),
            input: None,
            output: Vec::new(),
            output_bytes: 0,
            response_id: None,
            progress: Progress::Queued,
            redispatched: false,
            journaled: false,
            sent: false,
            tell_all: false,
            trimmed: false,
            last_sequence: None,
            asides: 0,
        }
    }

    /// What is told to who asks for it again, but cannot have it from its start.
    pub(super) fn cannot_be_joined(&self) -> Error {
        let id = self.response_id.as_deref().unwrap_or("unnamed");
        let text = format!(
            "this request runs, as response {id}, but its first events are not held any more; wait for it to end"
        );
        Error::new(Code::TurnInProgress, text)
    }

    /// Something of it is passed on: it is never sent again, so of its request no more is kept
    /// than the conversation needs, and nothing where that would be longer than `max_bytes`.
    pub(super) fn becomes_visible(&mut self, max_bytes: usize) {
        self.progress = Progress::Visible;
        let payload = self.payload.take();
        // Only what no upstream stores has to be remembered here.
        if let Some(payload) = payload.filter(|_| !self.create.store) {
            self.input = input_items(&payload).filter(|input| input.len() <= max_bytes);
        }
    }

    /// Bytes held of its request and of what it has said.
    fn held_bytes(&self) -> usize {
        let payload = self.payload.as_ref().map_or(0, Bytes::len);
        payload + self.input.as_ref().map_or(0, |input| input.len() + self.output_bytes)
    }

    /// Remembers the output item that an event brings, where the conversation is kept. What is
    /// longer than `max_bytes` could not be told, so nothing of it is.
    pub(super) fn remember(&mut self, event: &Message, max_bytes: usize) {
        let Some(input) = &self.input else { return };
        let Some(item) = done_item(event) else { return };
        self.output_bytes += item.len();
        if input.len() + self.output_bytes > max_bytes {
            self.forget();
        } else {
            self.output.push(item);
        }
    }

    /// Nothing of it is remembered: it is too long, or was steered by input that the upstream may
    /// take, return or keep for the next turn. A conversation without it would be a wrong one.
    pub(super) fn forget(&mut self) {
        (self.input, self.output) = (None, Vec::new());
    }

    /// Bytes of output held.
    #[cfg(test)]
    pub(super) fn held_output(&self) -> usize {
        self.output.iter().map(String::len).sum()
    }

    /// Whether this client waits for it.
    pub(super) fn is_of(&self, client: ClientId) -> bool {
        self.client == Some(client) || self.also.contains(&client)
    }

    /// Whether it answers that request too. One with a key joins a turn of that key only: under
    /// another name, or without one, nothing would know of it when the key comes again.
    fn answers(&self, create: &Create, key: Option<TurnKey>) -> bool {
        self.create.fingerprint == create.fingerprint && (key.is_none() || key == self.key)
    }

    /// Another client waits for it.
    pub(super) fn join(&mut self, client: ClientId) {
        match self.client {
            None => self.client = Some(client),
            Some(_) if self.is_of(client) => {}
            Some(_) => self.also.push(client),
        }
    }

    /// A client reads it that has not asked for it.
    pub(super) fn read(&mut self, client: ClientId) {
        if !self.readers.contains(&client) {
            self.readers.push(client);
        }
    }

    /// Whether a new request may take its place: nobody waits for it, or reads it, and no key
    /// says that somebody will ask again.
    pub(super) fn is_abandoned(&self) -> bool {
        self.client.is_none() && self.readers.is_empty() && self.key.is_none()
    }

    /// A client does not wait for it any more. True if that was the last one.
    pub(super) fn leave(&mut self, client: ClientId) -> bool {
        self.readers.retain(|reader| *reader != client);
        if !self.is_of(client) {
            return false;
        }
        self.also.retain(|also| *also != client);
        if self.client == Some(client) {
            self.client = self.also.pop();
        }
        self.client.is_none()
    }

    /// Whether an event of a type that we do not know may go out beside it. Before the response
    /// is named, an error could as well be the answer to the create.
    pub(super) fn takes_asides_of(&self, client: ClientId) -> bool {
        self.response_id.is_some() && self.is_of(client)
    }

    /// Whether an error answers such an event: the response goes on.
    pub(super) fn is_aside(&self, event: &ServerEvent) -> bool {
        self.asides > 0 && self.response_id.is_some() && event.blames_a_request()
    }

    /// Whether the upstream has it.
    pub(super) fn runs(&self) -> bool {
        matches!(self.progress, Progress::Dispatched | Progress::Visible)
    }

    /// What the ledger is told of a turn that ends without a word of the upstream, if it
    /// knows the turn.
    pub(super) fn cut_short(&self) -> Option<Action> {
        let state = if self.sent { TurnState::Unknown } else { TurnState::Failed };
        self.journaled.then_some(Action::Mark { turn: self.no, state, response: None })
    }

    /// A turn that stores nothing and acts nowhere, whose conversation can be told to another
    /// connection, and of which nobody has seen anything, has no effect that a second run
    /// could double: the model's answer is all there is, and it was not delivered.
    pub(super) fn may_redispatch(&self, history: &History) -> bool {
        self.progress == Progress::Dispatched
            && !self.redispatched
            && self.payload.is_some()
            && self.is_repeatable(history)
    }

    /// Whether a second run could double nothing, by the request and by what it goes on from.
    pub(super) fn is_repeatable(&self, history: &History) -> bool {
        let previous = self.create.previous_response_id.as_deref();
        self.create.repeatable && previous.is_none_or(|id| history.acts_nowhere(id))
    }

    /// The upstream said, before any output, that it does not know the conversation, so
    /// nothing ran; and we can tell it.
    pub(super) fn may_tell_all(&self, history: &History) -> bool {
        self.progress == Progress::Dispatched
            && !self.tell_all
            && self.payload.is_some()
            && self.create.previous_response_id.as_deref().is_some_and(|id| history.has(id))
    }

    /// What is sent: the request as it came, or with the whole conversation where the
    /// connection has not heard it.
    pub(super) fn request(&self, known: &BTreeSet<String>, history: &History) -> Option<Bytes> {
        let payload = self.payload.clone()?;
        let Some(previous) = &self.create.previous_response_id else { return Some(payload) };
        if known.contains(previous) && !self.tell_all {
            return Some(payload);
        }
        // What is not remembered may be stored by the upstream; if not, it says so.
        Some(history.rebuild(previous, &payload).unwrap_or(payload))
    }

    /// What the conversation has grown by, if the turn came to an end that can be built on.
    pub(super) fn into_past(self, stage: Stage, lane: Option<String>) -> Option<Past> {
        if !matches!(stage, Stage::Completed | Stage::Incomplete) {
            return None;
        }
        let mut items = BytesMut::from(&self.input?[..]);
        for item in self.output.iter().filter_map(|item| output_item(item)) {
            if !items.is_empty() {
                items.put_u8(b',');
            }
            items.put_slice(item.as_bytes());
        }
        let (id, previous) = (self.response_id?, self.create.previous_response_id);
        Some(Past { id, previous, lane, items: items.freeze() })
    }
}

/// Turns of one stream id, first in, first out.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub(super) struct Lane {
    pub(super) name: Option<String>,
    pub(super) running: Option<Turn>,
    pub(super) queue: VecDeque<Turn>,
    /// What [`Turn::asides`] was when turns ended. An upstream answers in order, so the next turn
    /// that begins shows that there is no answer to come.
    pub(super) late_asides: u32,
}

impl Lane {
    pub(super) fn new(name: Option<String>) -> Self {
        Self { name, running: None, queue: VecDeque::new(), late_asides: 0 }
    }

    /// A turn of the same request whose client went away.
    pub(super) fn orphan(&mut self, create: &Create, key: Option<TurnKey>) -> Option<&mut Turn> {
        let same = |turn: &&mut Turn| turn.client.is_none() && turn.answers(create, key);
        self.running.iter_mut().chain(&mut self.queue).find(same)
    }

    /// The running turn has lost its client. If that came back by another way before its loss was
    /// noticed, its request waits here as one of its own: it joins the turn instead of running again.
    pub(super) fn adopt(&mut self, actions: &mut Vec<Action>) {
        let Some(turn) = self.running.as_mut().filter(|turn| !turn.trimmed) else { return };
        let same = |waiting: &Turn| {
            waiting.client.is_some()
                && !waiting.redispatched
                && turn.answers(&waiting.create, waiting.key)
        };
        let at = self.queue.iter().position(same);
        let Some(waiting) = at.and_then(|at| self.queue.remove(at)) else { return };
        for client in waiting.client.into_iter().chain(waiting.also.iter().copied()) {
            turn.join(client);
            actions.push(Action::Join { client, from: waiting.no, turn: turn.no });
        }
        actions.extend(waiting.cut_short());
        actions.push(Action::Forget(waiting.no));
    }

    /// Whether an event of an unknown type may still be answered by an error.
    pub(super) fn has_asides(&self) -> bool {
        self.late_asides > 0 || self.running.as_ref().is_some_and(|turn| turn.asides > 0)
    }

    /// Whether its turn has begun and sent nothing that an error could answer.
    pub(super) fn goes_on_without_asides(&self) -> bool {
        self.at_upstream().is_some_and(|turn| turn.response_id.is_some() && turn.asides == 0)
    }

    /// The running turn, if the upstream has it.
    pub(super) fn at_upstream(&self) -> Option<&Turn> {
        self.running.as_ref().filter(|turn| turn.runs())
    }

    /// The turn that is being asked for waits again: its connection is gone.
    pub(super) fn withdraw(&mut self) {
        if let Some(mut turn) = self.running.take_if(|turn| turn.progress == Progress::Accepted) {
            turn.progress = Progress::Queued;
            self.queue.push_front(turn);
        }
    }

    /// The running turn has ended; an answer to what was sent beside it may still come.
    pub(super) fn finish(&mut self) -> Option<Turn> {
        let turn = self.running.take()?;
        self.late_asides = self.late_asides.saturating_add(turn.asides);
        Some(turn)
    }

    /// The running turn goes back to the head of the queue, to be sent once more.
    pub(super) fn requeue(&mut self) {
        if let Some(mut turn) = self.running.take() {
            turn.progress = Progress::Queued;
            turn.redispatched = true;
            turn.last_sequence = None;
            self.queue.push_front(turn);
        }
    }

    /// Bytes held of its turns' requests and of what they have said.
    pub(super) fn held_bytes(&self) -> usize {
        self.running.iter().chain(&self.queue).map(Turn::held_bytes).sum()
    }
}
