//! One turn and the lane it stands in.

use std::collections::{HashSet, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};

use super::{ClientId, TurnNo};
use crate::session::{
    event::{Create, Stage},
    history::{History, Past, input_items, output_item},
};

/// How far a turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Queued,
    /// The upstream may have it.
    Dispatched,
    /// Events of it were passed on.
    Visible,
}

#[derive(Debug)]
pub(super) struct Turn {
    pub(super) no: TurnNo,
    /// Who waits for it. None: its client went away and may come back.
    pub(super) client: Option<ClientId>,
    pub(super) create: Create,
    /// The request itself, kept while it may have to be sent (again).
    pub(super) payload: Option<Bytes>,
    /// Its own input items, where the conversation is kept.
    input: Option<Bytes>,
    /// Output items so far, as the upstream gave them.
    pub(super) output: Vec<String>,
    pub(super) response_id: Option<String>,
    pub(super) progress: Progress,
    pub(super) redispatched: bool,
    /// Send the whole conversation, also on a connection that should know it.
    pub(super) tell_all: bool,
}

impl Turn {
    pub(super) fn new(no: TurnNo, client: ClientId, create: Create, payload: Bytes) -> Self {
        // Only what no upstream stores has to be remembered here.
        let input = if create.store { None } else { input_items(&payload) };
        Self {
            no,
            client: Some(client),
            create,
            payload: Some(payload),
            input,
            output: Vec::new(),
            response_id: None,
            progress: Progress::Queued,
            redispatched: false,
            tell_all: false,
        }
    }

    /// A turn that asked for nothing to be stored, whose conversation can be told to another
    /// connection, and of which nobody has seen anything, has no effect that a second run
    /// could double: the model's answer is all there is, and it was not delivered.
    pub(super) fn may_redispatch(&self, history: &History) -> bool {
        self.progress == Progress::Dispatched
            && !self.redispatched
            && !self.create.store
            && self.create.previous_response_id.as_deref().is_none_or(|id| history.has(id))
            && self.payload.is_some()
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
    pub(super) fn request(&self, known: &HashSet<String>, history: &History) -> Option<Bytes> {
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
pub(super) struct Lane {
    pub(super) name: Option<String>,
    pub(super) running: Option<Turn>,
    pub(super) queue: VecDeque<Turn>,
}

impl Lane {
    pub(super) fn new(name: Option<String>) -> Self {
        Self { name, running: None, queue: VecDeque::new() }
    }

    /// A turn of the same request whose client went away.
    pub(super) fn orphan(&mut self, fingerprint: u128) -> Option<&mut Turn> {
        let turns = self.running.iter_mut().chain(&mut self.queue);
        turns
            .into_iter()
            .find(|turn| turn.client.is_none() && turn.create.fingerprint == fingerprint)
    }

    /// The running turn goes back to the head of the queue, to be sent once more.
    pub(super) fn requeue(&mut self) {
        if let Some(mut turn) = self.running.take() {
            turn.progress = Progress::Queued;
            turn.redispatched = true;
            self.queue.push_front(turn);
        }
    }

    /// Bytes of requests held.
    pub(super) fn payload_bytes(&self) -> usize {
        let turns = self.running.iter().chain(&self.queue);
        turns.filter_map(|turn| turn.payload.as_ref()).map(Bytes::len).sum()
    }
}
