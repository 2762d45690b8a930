//! The requests of one client's socket that have not ended, and how far it has heard of them.

use std::collections::VecDeque;

use super::heard::{Heard, created};
use crate::{
    error::{Code, Error},
    session::event::{Create, ServerEvent, error_event},
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
    /// The newest number that was given to a create.
    newest: u32,
}

#[cfg_attr(test, derive(Clone, Debug, PartialEq, Eq, Hash))]
struct Begun {
    /// Its number on this socket: refusals and replays end a create before older ones, so the
    /// owner says which one it speaks of.
    number: u32,
    /// The request, until the owner is known to have taken it: something of its turn was shown.
    message: Option<Message>,
    /// The next owner may be asked: see [`Outstanding::lose`].
    repeatable: bool,
    heard: Heard,
}

/// Whether the next owner may be asked, once, where one was lost before anything was seen of the
/// turn (I2): a second run doubles nothing, or the ledger knows by the key whether it was sent.
pub(super) fn may_be_asked_again(create: &Create, has_key: bool, ledger: bool) -> bool {
    create.repeatable || (has_key && ledger)
}

impl Outstanding {
    pub(crate) fn is_empty(&self) -> bool {
        self.creates.is_empty()
    }

    /// Whether this client was told of the response on this socket.
    pub(super) fn knows(&self, response_id: &str) -> bool {
        self.known.iter().any(|known| known == response_id)
    }

    /// A request goes out; `ledger` if its owner writes it down first. Its number, never zero.
    pub(crate) fn push(&mut self, create: &Create, message: &Message, ledger: bool) -> u32 {
        self.newest = self.newest.wrapping_add(1).max(1);
        self.creates.push_back(Begun {
            number: self.newest,
            message: Some(message.clone()),
            repeatable: may_be_asked_again(create, create.key.is_some(), ledger),
            heard: Heard::nothing(create.lane.clone()),
        });
        self.newest
    }

    /// Events were passed on that answer the create of this number, and end it if `ended` is
    /// not zero.
    pub(crate) fn seen(&mut self, batch: &Batch, number: u32, ended: u32) {
        self.learn(batch);
        let at = match number {
            0 => self.guess(batch, ended),
            _ => self.creates.iter().position(|create| create.number == number),
        };
        // One that has ended already: what is said of it twice changes nothing.
        let Some(at) = at else { return };
        if ended > 0 {
            self.creates.remove(at);
            return;
        }
        let create = &mut self.creates[at];
        // It was taken: a transfer from here on waits for its end.
        create.message = None;
        create.heard.note(batch);
    }

    /// The create that events are of whose owner does not say it. In one lane they end in
    /// order, except for refusals and replays; over lanes the last message tells. What ends
    /// nothing and names no response may answer what was no create: an error, a steer that
    /// came too late.
    fn guess(&self, batch: &Batch, ended: u32) -> Option<usize> {
        let events = || batch.messages().filter_map(|message| ServerEvent::parse(&message));
        if ended == 0 && !events().any(|event| event.response_id.is_some()) {
            return None;
        }
        let lane = events().last().and_then(|event| event.lane);
        let at = self.creates.iter().position(|create| create.heard.lane() == lane.as_deref());
        at.or((ended > 0 && !self.creates.is_empty()).then_some(0))
    }

    /// Remembers the responses that the client learns of.
    fn learn(&mut self, batch: &Batch) {
        for event in created(batch) {
            if self.known.len() >= KNOWN {
                self.known.pop_front();
            }
            self.known.extend(event.response_id);
        }
    }

    /// What the owner was not seen to take, with its number, to be sent again.
    pub(crate) fn not_taken(&self) -> Vec<(u32, Message)> {
        let message = |create: &Begun| Some((create.number, create.message.clone()?));
        self.creates.iter().filter_map(message).collect()
    }

    /// The owner, or the way to it, is gone: what it had taken may have run. A request that
    /// stores nothing, acts nowhere and of which nothing was seen has no effect that running it
    /// once more could double (the rule of `Turn::may_redispatch`), so it is kept for the next owner,
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

    /// The socket goes on with another session, which knows of none of these responses.
    pub(super) fn move_on(&mut self) {
        self.known.clear();
    }

    /// Ends all of them with `error`; what the client is told of each.
    pub(crate) fn fail(&mut self, error: &Error) -> Vec<Message> {
        let event = |create: Begun| {
            if error.code != Code::OutcomeUnknown && create.message.is_some() {
                return error_event(error, create.heard.lane());
            }
            create.heard.unknown(error)
        };
        std::mem::take(&mut self.creates).into_iter().map(event).collect()
    }

    /// Lanes of all of them, which are over.
    pub(super) fn take_lanes(&mut self) -> impl Iterator<Item = Option<String>> + use<> {
        let creates = std::mem::take(&mut self.creates).into_iter();
        creates.map(|create| create.heard.lane().map(str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::session::event::{ClientEvent, steer_failed};

    fn begin(outstanding: &mut Outstanding, lane: Option<&str>, input: &str) -> u32 {
        let mut event = json!({ "type": "response.create", "store": false, "input": input });
        if let Some(lane) = lane {
            event["stream_id"] = lane.into();
        }
        let message = Message::text(event.to_string());
        let Ok(ClientEvent::Create(create)) = ClientEvent::parse(&message.payload) else {
            panic!()
        };
        outstanding.push(&create, &message, true)
    }

    fn batch(event: &Value) -> Batch {
        Batch::one(&Message::text(event.to_string()))
    }

    fn created(id: &str) -> Batch {
        let response = json!({ "id": id });
        batch(&json!({ "type": "response.created", "sequence_number": 0, "response": response }))
    }

    fn completed(id: &str) -> Batch {
        batch(&json!({ "type": "response.completed", "response": { "id": id } }))
    }

    fn refusal() -> Batch {
        Batch::one(&error_event(&Error::new(Code::QueueFull, "full"), None))
    }

    fn told(messages: &[Message]) -> Vec<Value> {
        messages.iter().map(|message| serde_json::from_slice(&message.payload).unwrap()).collect()
    }

    /// What would be sent to the next owner.
    fn waiting(outstanding: &Outstanding) -> Vec<String> {
        let messages: Vec<_> = outstanding.not_taken().into_iter().map(|(_, m)| m).collect();
        told(&messages).iter().map(|m| m["input"].as_str().unwrap().to_owned()).collect()
    }

    fn lost() -> Error {
        Error::new(Code::OutcomeUnknown, "lost")
    }

    #[test]
    fn a_client_that_is_cut_off_is_told_how_far_it_had_heard_in_each_lane() {
        let mut outstanding = Outstanding::default();
        let a = begin(&mut outstanding, Some("a"), "x");
        let b = begin(&mut outstanding, Some("b"), "y");
        for (create, lane, id) in [(a, "a", "r1"), (b, "b", "r2")] {
            let response = json!({ "id": id });
            let event = json!({ "type": "response.created", "stream_id": lane,
                                "sequence_number": 0, "response": response });
            outstanding.seen(&batch(&event), create, 0);
        }
        for (create, lane, number) in [(a, "a", 7), (b, "b", 3)] {
            let event = json!({ "type": "response.output_text.delta", "stream_id": lane,
                                "sequence_number": number });
            outstanding.seen(&batch(&event), create, 0);
        }
        let said = told(&outstanding.fail(&lost()));
        let far = |said: &Value| {
            let error = &said["error"];
            (error["response_id"].clone(), error["last_sequence_number"].clone())
        };
        assert_eq!(far(&said[0]), (json!("r1"), json!(7)));
        assert_eq!(far(&said[1]), (json!("r2"), json!(3)));
        assert_eq!(said.len(), 2);
        assert!(outstanding.is_empty() && outstanding.knows("r1"));
    }

    #[test]
    fn what_an_upstream_says_beside_a_turn_does_not_hide_how_far_it_was_heard() {
        let mut outstanding = Outstanding::default();
        let create = begin(&mut outstanding, None, "a");
        outstanding.seen(&created("r1"), create, 0);
        outstanding.seen(&batch(&json!({ "type": "keepalive" })), create, 0);
        let error = &told(&outstanding.fail(&lost()))[0]["error"];
        assert_eq!(
            (&error["response_id"], &error["last_sequence_number"]),
            (&"r1".into(), &0.into())
        );
    }

    #[test]
    fn a_turn_that_was_seen_to_run_is_never_told_to_be_retried() {
        let mut outstanding = Outstanding::default();
        let a = begin(&mut outstanding, None, "a");
        begin(&mut outstanding, None, "b");
        outstanding.seen(&created("r1"), a, 0);
        let stopped = Error::new(Code::SessionUnavailable, "this node stopped; retry");
        let said = told(&outstanding.fail(&stopped));
        let codes: Vec<_> = said.iter().map(|said| &said["error"]["code"]).collect();
        assert_eq!(codes, ["outcome_unknown", "session_unavailable"]);
        assert_eq!(said[0]["error"]["response_id"], "r1");
    }

    #[test]
    fn a_request_of_which_nothing_was_seen_is_kept_for_the_next_owner_once() {
        let mut outstanding = Outstanding::default();
        let a = begin(&mut outstanding, Some("a"), "x");
        begin(&mut outstanding, Some("b"), "y");
        let event = json!({ "type": "response.created", "stream_id": "a",
                            "response": { "id": "r1" } });
        outstanding.seen(&batch(&event), a, 0);
        let said = told(&outstanding.lose(&lost()));
        assert_eq!((said.len(), &said[0]["stream_id"]), (1, &"a".into()));
        assert_eq!(waiting(&outstanding), ["y"]);
        let said = told(&outstanding.lose(&lost()));
        assert_eq!((said.len(), &said[0]["stream_id"]), (1, &"b".into()));
    }

    #[test]
    fn a_request_that_may_act_outside_is_unknown_when_its_owner_is_lost() {
        let mut outstanding = Outstanding::default();
        let event = json!({ "type": "response.create", "store": false, "input": "a",
                            "tools": [{ "type": "mcp", "server_label": "s" }] });
        let message = Message::text(event.to_string());
        let Ok(ClientEvent::Create(create)) = ClientEvent::parse(&message.payload) else {
            panic!()
        };
        outstanding.push(&create, &message, false);
        let said = told(&outstanding.lose(&lost()));
        assert_eq!((said.len(), &said[0]["error"]["code"]), (1, &"outcome_unknown".into()));
        assert!(waiting(&outstanding).is_empty(), "it would act twice");
    }

    #[test]
    fn a_refusal_ends_the_request_that_was_refused_and_no_older_one() {
        let mut outstanding = Outstanding::default();
        let a = begin(&mut outstanding, None, "a");
        let b = begin(&mut outstanding, None, "b");
        let c = begin(&mut outstanding, None, "c");
        outstanding.seen(&created("r1"), a, 0);
        outstanding.seen(&refusal(), c, 1);
        outstanding.seen(&completed("r1"), a, 1);
        assert_eq!(waiting(&outstanding), ["b"], "what waits at a drain");
        outstanding.seen(&created("r2"), b, 0);
        outstanding.seen(&completed("r2"), b, 1);
        assert!(outstanding.is_empty());
    }

    #[test]
    fn a_replay_of_another_turn_leaves_the_running_one_to_be_told_of() {
        let mut outstanding = Outstanding::default();
        let a = begin(&mut outstanding, None, "a");
        let repeat = begin(&mut outstanding, None, "repeat");
        outstanding.seen(&created("old"), repeat, 0);
        outstanding.seen(&completed("old"), repeat, 1);
        assert_eq!(waiting(&outstanding), ["a"], "nothing was seen of it");
        outstanding.seen(&created("r1"), a, 0);
        let said = told(&outstanding.lose(&lost()));
        assert_eq!((said.len(), &said[0]["error"]["response_id"]), (1, &"r1".into()));
        assert!(outstanding.is_empty());
    }

    #[test]
    fn a_request_of_which_only_a_later_event_was_seen_is_not_sent_again() {
        let mut outstanding = Outstanding::default();
        let create = begin(&mut outstanding, None, "a");
        // The start of its log was trimmed.
        let delta = json!({ "type": "response.output_text.delta", "sequence_number": 9 });
        outstanding.seen(&batch(&delta), create, 0);
        assert!(outstanding.not_taken().is_empty());
        assert_eq!(told(&outstanding.lose(&lost()))[0]["error"]["last_sequence_number"], 9);
    }

    #[test]
    fn an_answer_to_what_is_no_request_takes_none() {
        let mut outstanding = Outstanding::default();
        begin(&mut outstanding, None, "a");
        outstanding.seen(&refusal(), 0, 0);
        assert_eq!(waiting(&outstanding), ["a"]);
    }

    #[test]
    fn a_steer_that_came_too_late_takes_no_request_that_waits() {
        let mut outstanding = Outstanding::default();
        begin(&mut outstanding, None, "a");
        let steer = json!({ "type": "response.steer", "previous_response_id": "r0", "input": "x" });
        let failed = steer_failed(steer.to_string().as_bytes(), Some("r0"));
        outstanding.seen(&Batch::one(&failed), 0, 0);
        assert_eq!(waiting(&outstanding), ["a"], "what is sent to the next owner");
        assert!(told(&outstanding.lose(&lost())).is_empty(), "it may be asked again");
    }

    #[test]
    fn a_turn_that_was_steered_is_unknown_by_the_response_that_ran_last() {
        let mut outstanding = Outstanding::default();
        let create = begin(&mut outstanding, None, "a");
        outstanding.seen(&created("r1"), create, 0);
        outstanding.seen(&created("r2"), create, 0);
        assert_eq!(told(&outstanding.fail(&lost()))[0]["error"]["response_id"], "r2");
    }

    #[test]
    fn an_owner_that_names_no_request_is_taken_to_answer_the_oldest_of_the_lane() {
        let mut outstanding = Outstanding::default();
        begin(&mut outstanding, Some("a"), "x");
        begin(&mut outstanding, Some("b"), "y");
        let event = |kind: &str| {
            batch(&json!({ "type": kind, "stream_id": "b", "response": { "id": "r" } }))
        };
        outstanding.seen(&event("response.created"), 0, 0);
        assert_eq!(waiting(&outstanding), ["x"]);
        outstanding.seen(&event("response.completed"), 0, 1);
        assert_eq!(waiting(&outstanding), ["x"]);
        outstanding.seen(&completed("r2"), 0, 1);
        assert!(outstanding.is_empty());
    }
}
