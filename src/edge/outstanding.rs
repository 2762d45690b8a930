//! The requests of one client's socket that have not ended, and how far it has heard of them.

use std::collections::VecDeque;

use crate::{
    error::{Code, Error},
    session::event::{Create, ServerEvent, Stage, error_event, last_sequence, unknown_event},
    wire::{Batch, Message},
};

/// Response ids that are known to be of the attached session. A client chains on its latest
/// ones; for an older one the store is asked.
const KNOWN: usize = 64;

/// Creates that have not ended, oldest first. Bounded by what the session accepts: it answers
/// the others, which ends them.
#[derive(Default)]
#[cfg_attr(test, derive(Clone, Debug, PartialEq, Eq, Hash))]
pub(crate) struct Outstanding {
    creates: VecDeque<Begun>,
    known: VecDeque<String>,
    /// The newest events that were passed on while a create was outstanding.
    last: Option<Batch>,
}

#[cfg_attr(test, derive(Clone, Debug, PartialEq, Eq, Hash))]
struct Begun {
    lane: Option<String>,
    /// The request, until the owner is known to have taken it.
    message: Option<Message>,
    /// The next owner may be asked: see [`Outstanding::lose`].
    repeatable: bool,
    response_id: Option<String>,
}

impl Outstanding {
    pub(crate) fn is_empty(&self) -> bool {
        self.creates.is_empty()
    }

    /// Whether this client was told of the response on this socket.
    pub(super) fn knows(&self, response_id: &str) -> bool {
        self.known.iter().any(|known| known == response_id)
    }

    /// A request goes out; `ledger` if its owner writes it down first.
    pub(crate) fn push(&mut self, create: &Create, message: &Message, ledger: bool) {
        self.creates.push_back(Begun {
            lane: create.lane.clone(),
            message: Some(message.clone()),
            repeatable: !create.store || (create.key.is_some() && ledger),
            response_id: None,
        });
    }

    /// Events were passed on, and `ended` creates end with them. In one lane they end in
    /// order; over lanes the last message tells whose turn it was.
    pub(crate) fn seen(&mut self, batch: &Batch, ended: u32) {
        self.note_created(batch);
        for _ in 0..ended {
            let at = if self.creates.len() > 1 {
                let lane = batch
                    .messages()
                    .last()
                    .and_then(|m| ServerEvent::parse(&m))
                    .and_then(|e| e.lane);
                self.creates.iter().position(|create| create.lane == lane).unwrap_or(0)
            } else {
                0
            };
            self.creates.remove(at);
        }
        self.last = if self.creates.is_empty() { None } else { Some(batch.clone()) };
    }

    fn note_created(&mut self, batch: &Batch) {
        // Most batches are deltas, and looking for the word is cheaper than reading JSON.
        if memchr::memmem::find(batch.bytes(), b"response.created").is_none() {
            return;
        }
        for event in batch.messages().filter_map(|message| ServerEvent::parse(&message)) {
            if event.stage != Stage::Created {
                continue;
            }
            // It was taken: a transfer from here on waits for its end.
            let create = self.creates.iter_mut().find(|create| create.lane == event.lane);
            if let Some(create) = create {
                create.message = None;
                create.response_id.clone_from(&event.response_id);
            }
            if self.known.len() >= KNOWN {
                self.known.pop_front();
            }
            self.known.extend(event.response_id);
        }
    }

    /// What the owner was not seen to take, to be sent again.
    pub(crate) fn not_taken(&self) -> Vec<Message> {
        self.creates.iter().filter_map(|create| create.message.clone()).collect()
    }

    /// The owner, or the way to it, is gone: what it had taken may have run. A request that
    /// stores nothing and of which nothing was seen has no effect that running it once more
    /// could double (the rule of `Turn::may_redispatch`), so it is kept for the next owner,
    /// once; so is one with an idempotency key, since the ledger knows whether it was sent.
    /// Of every other one the client is told `error`.
    pub(crate) fn lose(&mut self, error: &Error) -> Vec<Message> {
        let (kept, unknown): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.creates)
            .into_iter()
            .partition(|create| create.repeatable && create.message.is_some());
        self.creates = unknown;
        let said = self.fail(error);
        self.creates = kept;
        for create in &mut self.creates {
            create.repeatable = false;
        }
        said
    }

    /// Ends all of them with `error`; what the client is told of each.
    pub(crate) fn fail(&mut self, error: &Error) -> Vec<Message> {
        let last = self.last.take();
        let event = |create: Begun| {
            let lane = create.lane.as_deref();
            if error.code != Code::OutcomeUnknown {
                return error_event(error, lane);
            }
            let number = last.as_ref().and_then(|last| last_sequence(last, lane));
            unknown_event(error, lane, create.response_id.as_deref(), number)
        };
        std::mem::take(&mut self.creates).into_iter().map(event).collect()
    }

    /// Lanes of all of them, which are over.
    pub(super) fn take_lanes(&mut self) -> impl Iterator<Item = Option<String>> {
        self.last = None;
        std::mem::take(&mut self.creates).into_iter().map(|create| create.lane)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::session::event::ClientEvent;

    fn begin(outstanding: &mut Outstanding, lane: Option<&str>) {
        let mut event = json!({ "type": "response.create", "store": false, "input": "x" });
        if let Some(lane) = lane {
            event["stream_id"] = lane.into();
        }
        let message = Message::text(event.to_string());
        let Ok(ClientEvent::Create(create)) = ClientEvent::parse(&message.payload) else {
            panic!()
        };
        outstanding.push(&create, &message, true);
    }

    fn pass(outstanding: &mut Outstanding, event: &Value) {
        outstanding.seen(&Batch::one(&Message::text(event.to_string())), 0);
    }

    fn told(messages: &[Message]) -> Vec<Value> {
        messages.iter().map(|message| serde_json::from_slice(&message.payload).unwrap()).collect()
    }

    #[test]
    fn a_client_that_is_cut_off_is_told_how_far_it_had_heard() {
        let mut outstanding = Outstanding::default();
        begin(&mut outstanding, None);
        let created =
            json!({ "type": "response.created", "sequence_number": 0, "response": { "id": "r1" } });
        pass(&mut outstanding, &created);
        pass(
            &mut outstanding,
            &json!({ "type": "response.output_text.delta", "sequence_number": 7 }),
        );
        let said = told(&outstanding.fail(&Error::new(Code::OutcomeUnknown, "cut")));
        assert_eq!(said.len(), 1);
        assert_eq!(said[0]["error"]["response_id"], "r1");
        assert_eq!(said[0]["error"]["last_sequence_number"], 7);
        assert!(outstanding.is_empty() && outstanding.knows("r1"));
    }

    #[test]
    fn a_request_of_which_nothing_was_seen_is_kept_for_the_next_owner_once() {
        let mut outstanding = Outstanding::default();
        begin(&mut outstanding, Some("a"));
        begin(&mut outstanding, Some("b"));
        pass(
            &mut outstanding,
            &json!({ "type": "response.created", "stream_id": "a",
                                         "response": { "id": "r1" } }),
        );
        let error = Error::new(Code::OutcomeUnknown, "lost");
        let said = told(&outstanding.lose(&error));
        assert_eq!((said.len(), &said[0]["stream_id"]), (1, &"a".into()));
        assert_eq!(outstanding.not_taken().len(), 1);
        let said = told(&outstanding.lose(&error));
        assert_eq!((said.len(), &said[0]["stream_id"]), (1, &"b".into()));
    }
}
