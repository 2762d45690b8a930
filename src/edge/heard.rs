//! How far a client has been told of one turn.

use crate::{
    error::Error,
    session::event::{ServerEvent, Stage, is_numbered, last_sequence, unknown_event},
    wire::{Batch, Message},
};

/// What was passed on of one turn.
#[cfg_attr(test, derive(Clone, Debug, PartialEq, Eq, Hash))]
pub(super) struct Heard {
    /// The turn's lane; of a turn that was not asked for here, once an event has told.
    lane: Option<String>,
    /// The newest one: a response that is steered has a successor in the same turn.
    response_id: Option<String>,
    /// The newest events that have numbers. Kept whole: most are never looked at.
    last: Option<Batch>,
}

impl Heard {
    /// Of a turn of which nothing was passed on yet.
    pub(super) fn nothing(lane: Option<String>) -> Self {
        Self { lane, response_id: None, last: None }
    }

    pub(super) fn lane(&self) -> Option<&str> {
        self.lane.as_deref()
    }

    /// Events of the turn were passed on.
    pub(super) fn note(&mut self, batch: &Batch) {
        if let Some(event) = created(batch).last() {
            self.response_id = event.response_id;
            self.lane = self.lane.take().or(event.lane);
        }
        if is_numbered(batch) {
            self.last = Some(batch.clone());
        }
    }

    /// The end of the turn where nobody knows how it ended: what was heard, and of which response.
    pub(super) fn unknown(&self, error: &Error) -> Message {
        let lane = self.lane();
        let number = self.last.as_ref().and_then(|last| last_sequence(last, lane));
        unknown_event(&error.within_turn(), lane, self.response_id.as_deref(), number)
    }
}

/// The starts of responses in a batch.
pub(super) fn created(batch: &Batch) -> impl Iterator<Item = ServerEvent> {
    // Most batches are deltas, and looking for the word is cheaper than reading JSON.
    let any = memchr::memmem::find(batch.bytes(), b"response.created").is_some();
    let messages = any.then(|| batch.messages()).into_iter().flatten();
    messages
        .filter_map(|message| ServerEvent::parse(&message))
        .filter(|event| event.stage == Stage::Created)
}
