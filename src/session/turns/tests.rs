//! The rules of turns, one at a time. [`model`] drives them in any order.

mod edges;
mod model;
mod parting;
mod recall;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::wire::BatchBuilder;

/// Performs actions as a session would, and keeps what came of them.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// What the upstream was sent, in order.
    pub(super) sent: Vec<Value>,
    pub(super) logs: BTreeMap<TurnNo, Log>,
    /// Who reads which turn, in order.
    pub(super) readers: Vec<(ClientId, TurnNo)>,
    /// Answers outside any log: client, error code, creates that ended with it.
    pub(super) replies: Vec<(ClientId, String, u32)>,
    pub(super) aliases: Vec<String>,
    pub(super) hang_ups: usize,
    /// How often the database was asked.
    pub(super) recalls: usize,
    /// Turns that wait for the ledger's answer, in order.
    pub(super) journal: Vec<TurnNo>,
    pub(super) marks: Vec<(TurnNo, TurnState)>,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) events: Vec<Value>,
    pub(super) done: bool,
}

impl Desk {
    pub(super) fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Upstream(batch) | Action::Dispatch { batch, .. } => {
                    self.sent.extend(values(&batch));
                }
                Action::Open { turn, .. } => {
                    assert!(self.logs.insert(turn, Log::default()).is_none(), "opened twice");
                }
                Action::Subscribe { client, turn } => {
                    assert!(self.logs.contains_key(&turn), "subscribed to a log that is not open");
                    self.readers.push((client, turn));
                }
                Action::Join { client, from, turn } => {
                    let reader = self.readers.iter_mut().find(|reader| **reader == (client, from));
                    *reader.expect("it reads the log that it leaves") = (client, turn);
                }
                Action::Append { turn, batch, done } => {
                    let log = self.logs.get_mut(&turn).expect("appended to a log that is not open");
                    assert!(!log.done, "turn {turn} was appended to after its end");
                    log.events.extend(values(&batch));
                    log.done = done;
                }
                Action::Reply { client, batch, ended } => {
                    for event in values(&batch) {
                        self.replies.push((client, code(&event), ended));
                    }
                }
                Action::Forget(turn) => {
                    assert!(self.logs.contains_key(&turn), "forgot a log that is not open");
                }
                Action::Rejoin { client, turn, .. } => self.readers.push((client, turn)),
                Action::Journal { turn, .. } => {
                    // An earlier wish of this turn is given up, as the session does.
                    self.journal.retain(|earlier| *earlier != turn);
                    self.journal.push(turn);
                }
                Action::Mark { turn, state, .. } => self.marks.push((turn, state)),
                Action::Remembered(_) => {}
                Action::Recall => self.recalls += 1,
                Action::HangUp => self.hang_ups += 1,
                Action::Alias(id) => self.aliases.push(id),
            }
        }
    }

    /// Texts of the inputs that the upstream was sent.
    fn inputs(&self) -> Vec<&str> {
        self.sent.iter().map(|event| event["input"].as_str().unwrap_or("-")).collect()
    }

    /// Types of a turn's events; an error is named by its code.
    fn types(&self, turn: TurnNo) -> Vec<String> {
        let name = |event: &Value| match event["type"].as_str().unwrap() {
            "error" => code(event),
            other => other.trim_start_matches("response.").to_owned(),
        };
        self.logs[&turn].events.iter().map(name).collect()
    }

    fn is_done(&self, turn: TurnNo) -> bool {
        self.logs[&turn].done
    }
}

fn code(event: &Value) -> String {
    assert!(event["status"].is_u64(), "an error event without status is ignored by clients");
    event["error"]["code"].as_str().unwrap().to_owned()
}

pub(super) fn values(batch: &Batch) -> Vec<Value> {
    batch.messages().map(|m| serde_json::from_slice(&m.payload).unwrap()).collect()
}

pub(super) fn batch_of(events: &[Value]) -> Batch {
    let mut builder = BatchBuilder::default();
    for event in events {
        builder.push(Kind::Text, event.to_string().as_bytes());
    }
    builder.finish()
}

/// Turns with their desk.
struct Session {
    turns: Turns,
    desk: Desk,
}

fn bounds(queue: usize) -> Bounds {
    Bounds { queue, payload_bytes: 1 << 20, history_bytes: 1 << 20, asked: false, ledger: false }
}

impl Session {
    fn new() -> Self {
        Self { turns: Turns::new(bounds(8), Vec::new()), desk: Desk::default() }
    }

    /// With an upstream connection.
    fn connected() -> Self {
        let mut session = Self::new();
        session.connect();
        session
    }

    fn connect(&mut self) {
        let actions = self.turns.on_connected();
        self.desk.perform(actions);
    }

    fn disconnect(&mut self) {
        let actions = self.turns.on_disconnected();
        self.desk.perform(actions);
    }

    fn says(&mut self, client: ClientId, event: &Value) {
        let actions = self.turns.on_client(client, &Message::text(event.to_string()), None);
        self.desk.perform(actions);
    }

    /// A create without side effects in the default lane.
    fn asks(&mut self, client: ClientId, input: &str) {
        self.says(client, &create(input));
    }

    fn asks_in(&mut self, client: ClientId, lane: &str, input: &str) {
        self.says(client, &with(create(input), json!({ "stream_id": lane })));
    }

    fn upstream(&mut self, events: &[Value]) {
        let actions = self.turns.on_upstream(&batch_of(events));
        self.desk.perform(actions);
    }

    /// The default lane's response from its start to its end.
    fn answers(&mut self, id: &str) {
        self.upstream(&[created(id)]);
        self.upstream(&[delta("…"), completed(id)]);
    }
}

fn create(input: &str) -> Value {
    json!({ "type": "response.create", "store": false, "input": input })
}

fn with(mut event: Value, mut more: Value) -> Value {
    event.as_object_mut().unwrap().append(more.as_object_mut().unwrap());
    event
}

fn created(id: &str) -> Value {
    json!({ "type": "response.created", "response": { "id": id } })
}

fn completed(id: &str) -> Value {
    json!({ "type": "response.completed", "response": { "id": id } })
}

fn delta(text: &str) -> Value {
    json!({ "type": "response.output_text.delta", "delta": text })
}

fn in_lane(lane: &str, event: Value) -> Value {
    with(event, json!({ "stream_id": lane }))
}

#[test]
fn turns_of_one_lane_run_one_after_another_in_the_order_they_came() {
    let mut session = Session::connected();
    for input in ["a", "b", "c"] {
        session.asks(1, input);
    }
    assert_eq!(session.desk.inputs(), ["a"]);
    assert_eq!((session.turns.running(), session.turns.queued()), (1, 2));
    session.answers("r1");
    assert_eq!(session.desk.inputs(), ["a", "b"]);
    session.answers("r2");
    session.answers("r3");
    assert_eq!(session.desk.inputs(), ["a", "b", "c"]);
    assert!(session.turns.is_idle());
    assert_eq!(session.turns.done(), 3);
}

#[test]
fn lanes_run_beside_each_other_and_each_client_reads_its_own() {
    let mut session = Session::connected();
    session.asks_in(1, "x", "a");
    session.asks_in(2, "y", "b");
    assert_eq!(session.desk.inputs(), ["a", "b"]);
    session.upstream(&[
        in_lane("y", created("ry")),
        in_lane("x", created("rx")),
        in_lane("y", completed("ry")),
        in_lane("x", completed("rx")),
    ]);
    assert_eq!(session.desk.readers, [(1, 1), (2, 2)]);
    for (turn, lane) in [(1, "x"), (2, "y")] {
        assert_eq!(session.desk.types(turn), ["created", "completed"]);
        assert!(session.desk.logs[&turn].events.iter().all(|event| event["stream_id"] == lane));
        assert!(session.desk.is_done(turn));
    }
}

#[test]
fn a_lane_ends_another_lanes_turn_by_no_event() {
    let mut session = Session::connected();
    session.asks_in(1, "x", "a");
    session.asks_in(1, "y", "b");
    session.upstream(&[in_lane("x", created("r")), in_lane("y", completed("r"))]);
    assert!(!session.desk.is_done(2));
    assert_eq!(session.desk.types(2), [""; 0]);
}

#[test]
fn at_most_16_turns_are_active_and_the_next_starts_when_one_ends() {
    let mut session = Session::connected();
    for lane in 0..20 {
        session.asks_in(1, &format!("l{lane}"), &format!("i{lane}"));
    }
    assert_eq!((session.turns.running(), session.turns.queued()), (16, 4));
    session.upstream(&[in_lane("l3", created("r")), in_lane("l3", completed("r"))]);
    assert_eq!((session.turns.running(), session.turns.queued()), (16, 3));
    assert_eq!(session.desk.inputs()[16], "i16");
}

#[test]
fn a_33rd_stream_id_is_refused_and_the_default_lane_is_not_counted() {
    let mut session = Session::connected();
    for lane in 0..32 {
        session.asks_in(1, &format!("l{lane}"), "x");
    }
    session.asks(1, "default");
    assert_eq!(session.desk.replies, []);
    session.asks_in(1, "one-too-many", "x");
    assert_eq!(session.desk.replies, [(1, "websocket_stream_limit_reached".to_owned(), 1)]);
    session.asks_in(1, "l5", "known");
    assert_eq!(session.desk.replies.len(), 1);
}

#[test]
fn a_full_queue_refuses_one_create_and_keeps_the_others() {
    let mut session = Session::connected();
    for n in 0..9 {
        session.asks(1, &format!("i{n}"));
    }
    session.asks(2, "too much");
    assert_eq!(session.desk.replies, [(2, "queue_full".to_owned(), 1)]);
    session.asks_in(2, "other", "room here");
    assert_eq!(session.desk.replies.len(), 1);
    assert_eq!((session.turns.running(), session.turns.queued()), (2, 8));
}

#[test]
fn nonsense_and_bad_stream_ids_are_answered_and_reach_nobody() {
    let mut session = Session::connected();
    let long = "x".repeat(257);
    for lane in ["", "a b", "ä", "a/b", long.as_str()] {
        session.says(7, &with(create("x"), json!({ "stream_id": lane })));
        assert_eq!(session.desk.replies.pop(), Some((7, "invalid_stream_id".to_owned(), 0)));
    }
    session.asks_in(7, &"x".repeat(256), "fine");
    session.asks_in(7, "A-z_0.9", "fine");
    for text in ["", "{", "[]", "3", r#"{"type":null}"#] {
        let actions = session.turns.on_client(7, &Message::text(text), None);
        session.desk.perform(actions);
        assert_eq!(session.desk.replies.pop(), Some((7, "invalid_request".to_owned(), 0)));
    }
    let actions = session.turns.on_client(7, &Message::binary("x"), None);
    session.desk.perform(actions);
    assert_eq!(session.desk.replies.pop(), Some((7, "invalid_request".to_owned(), 0)));
    session.says(7, &json!({ "type": "response.append" }));
    assert_eq!(session.desk.replies.pop(), Some((7, "invalid_request".to_owned(), 0)));
    assert_eq!(session.desk.inputs(), ["fine", "fine"]);
}

#[test]
fn interrupt_and_steer_reach_a_running_response_and_no_other() {
    let mut session = Session::connected();
    let interrupt = |id: &str| json!({ "type": "response.interrupt", "response_id": id });
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    session.says(1, &interrupt("r0"));
    session.says(1, &interrupt("r1"));
    session.says(1, &json!({ "type": "response.steer", "previous_response_id": "r1" }));
    session.upstream(&[completed("r1")]);
    session.says(1, &interrupt("r1"));
    let types: Vec<_> = session.desk.sent.iter().map(|event| event["type"].clone()).collect();
    assert_eq!(types, ["response.create", "response.interrupt", "response.steer"]);
    assert_eq!(session.desk.sent[1]["response_id"], "r1");
    assert_eq!(session.desk.replies, [], "one that comes too late lost a race it could not see");
}

#[test]
fn a_steer_that_comes_too_late_is_returned_to_its_sender() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.answers("r1");
    let input = json!([{ "type": "message", "role": "user", "content": "no, b" }]);
    let steer = json!({ "type": "response.steer", "previous_response_id": "r1", "input": input });
    let actions = session.turns.on_client(1, &Message::text(steer.to_string()), None);
    let [Action::Reply { client: 1, batch, ended: 0 }] = &actions[..] else {
        panic!("{actions:?}")
    };
    let told = &values(batch)[0];
    assert_eq!(told["type"], "response.steer.failed");
    assert_eq!(told["error"]["code"], "response_not_active");
    assert_eq!(told["steer"], json!({ "input": input, "previous_response_id": "r1" }));
}

#[test]
fn a_conversation_is_not_told_without_what_steered_it() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    session
        .says(1, &json!({ "type": "response.steer", "previous_response_id": "r1", "input": "b" }));
    let steered = json!({ "type": "response.incomplete", "response":
        { "id": "r1", "incomplete_details": { "reason": "steered" } } });
    session.upstream(&[steered, created("r2"), completed("r2")]);
    assert!(session.desk.is_done(1));
    let after = with(create("c"), json!({ "previous_response_id": "r2" }));
    session.says(1, &after);
    assert_eq!(session.desk.sent.last(), Some(&after), "this connection knows it");
    session.upstream(&[created("r3"), completed("r3")]);
    session.disconnect();
    session.connect();
    let last = with(create("d"), json!({ "previous_response_id": "r3" }));
    session.says(1, &last);
    assert_eq!(session.desk.sent.last(), Some(&last), "for the upstream to say that it does not");
}

#[test]
fn an_event_of_an_unknown_type_passes_only_beside_the_clients_own_turn() {
    let mut session = Session::connected();
    let other = json!({ "type": "response.new_thing" });
    session.asks(1, "a");
    session.says(1, &other);
    session.upstream(&[created("r1")]);
    session.says(2, &other);
    let refused = [1, 2].map(|client| (client, "invalid_request".to_owned(), 0));
    assert_eq!(session.desk.replies, refused, "too early, and not its own");
    session.says(1, &other);
    assert_eq!(session.desk.sent[1], other);
}

#[test]
fn a_steered_response_goes_on_with_its_successor_in_the_same_turn() {
    let mut session = Session::connected();
    session.asks(1, "a");
    let steered = json!({ "type": "response.incomplete", "response":
        { "id": "r1", "incomplete_details": { "reason": "steered" } } });
    session.upstream(&[created("r1"), steered]);
    assert!(!session.desk.is_done(1));
    session.upstream(&[completed("r1")]);
    assert!(!session.desk.is_done(1), "the predecessor's terminal event is stale");
    session.upstream(&[created("r2"), completed("r2")]);
    assert_eq!(session.desk.types(1), ["created", "incomplete", "created", "completed"]);
    assert!(session.desk.is_done(1));
    assert_eq!(session.desk.aliases, ["r1", "r2"]);
}

#[test]
fn a_terminal_event_reaches_nobody_while_nothing_runs() {
    let mut session = Session::connected();
    session.upstream(&[completed("r0"), json!({ "type": "response.failed" }), delta("late")]);
    session.asks(1, "a");
    session.answers("r1");
    session.upstream(&[completed("r1")]);
    assert_eq!(session.desk.types(1), ["created", "output_text.delta", "completed"]);
}

#[test]
fn a_duplicate_terminal_event_does_not_settle_the_next_turn() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(1, "b");
    session.upstream(&[created("r1"), completed("r1"), completed("r1")]);
    session.upstream(&[completed("r1")]);
    assert!(!session.desk.is_done(2));
    session.upstream(&[created("r2"), completed("r1")]);
    assert!(!session.desk.is_done(2));
    session.upstream(&[completed("r2")]);
    assert_eq!(session.desk.types(2), ["created", "completed"]);
}

#[test]
fn events_of_a_wrong_response_and_terminal_events_of_none_are_dropped() {
    let mut session = Session::connected();
    session.asks(1, "a");
    let foreign = json!({ "type": "response.output_text.delta", "response_id": "rX" });
    session.upstream(&[foreign.clone(), completed("rX")]);
    assert_eq!(session.desk.types(1), [""; 0], "nothing was created yet");
    session.upstream(&[created("r1"), foreign, completed("rX"), created("rX")]);
    session.upstream(&[json!({ "type": "response.completed", "response": {} })]);
    session.upstream(&[json!({ "type": "response.completed" }), delta("mine"), completed("r1")]);
    assert_eq!(session.desk.types(1), ["created", "output_text.delta", "completed"]);
}

#[test]
fn what_is_no_event_is_not_believed() {
    let mut session = Session::connected();
    session.asks(1, "a");
    let mut builder = BatchBuilder::default();
    builder.push(Kind::Binary, created("r1").to_string().as_bytes());
    builder.push(Kind::Text, b"not json");
    builder.push(Kind::Text, b"{}");
    let actions = session.turns.on_upstream(&builder.finish());
    session.desk.perform(actions);
    assert_eq!(session.desk.types(1), [""; 0]);
}

#[test]
fn an_error_event_ends_the_turn_and_the_next_one_runs() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(1, "b");
    let error = json!({ "type": "error", "status": 400, "error": { "code": "bad" } });
    session.upstream(std::slice::from_ref(&error));
    assert_eq!(session.desk.types(1), ["bad"]);
    assert!(session.desk.is_done(1));
    session.upstream(&[created("r2"), error]);
    assert_eq!(session.desk.types(2), ["created", "bad"]);
    assert!(session.desk.is_done(2));
}

#[test]
fn failed_and_incomplete_are_terminal_too() {
    for kind in ["response.failed", "response.incomplete"] {
        let mut session = Session::connected();
        session.asks(1, "a");
        session.upstream(&[created("r"), json!({ "type": kind, "response": { "id": "r" } })]);
        assert!(session.desk.is_done(1), "{kind}");
    }
}

#[test]
fn events_that_arrived_together_stay_together() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r")]);
    let batch = batch_of(&[delta("1"), delta("2"), delta("3")]);
    let actions = session.turns.on_upstream(&batch);
    assert_eq!(actions, [Action::Append { turn: 1, batch, done: false }]);
}

#[test]
fn a_turn_that_nobody_saw_anything_of_runs_again_on_the_next_connection() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(1, "b");
    session.disconnect();
    assert_eq!(session.turns.queued(), 2);
    session.connect();
    assert_eq!(session.desk.inputs(), ["a", "a"], "before what waits behind it");
    session.answers("r1");
    assert_eq!(session.desk.types(1), ["created", "output_text.delta", "completed"]);
    assert_eq!(session.desk.inputs(), ["a", "a", "b"]);
}

#[test]
fn a_turn_runs_again_once_and_not_twice() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.disconnect();
    session.connect();
    session.disconnect();
    session.connect();
    assert_eq!(session.desk.inputs(), ["a", "a"]);
    assert_eq!(session.desk.types(1), ["outcome_unknown"]);
    assert!(session.desk.is_done(1));
}

#[test]
fn a_turn_that_may_have_had_an_effect_ends_with_an_unknown_outcome() {
    let stored = with(create("a"), json!({ "store": true }));
    let mut unsaid = create("a");
    unsaid.as_object_mut().unwrap().remove("store");
    let chained = with(create("a"), json!({ "previous_response_id": "r0" }));
    for event in [stored, unsaid, chained] {
        let mut session = Session::connected();
        session.says(1, &event);
        session.disconnect();
        session.connect();
        assert_eq!(session.desk.sent.len(), 1, "{event}");
        assert_eq!(session.desk.types(1), ["outcome_unknown"], "{event}");
    }
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1"), delta("seen")]);
    session.disconnect();
    session.connect();
    assert_eq!(session.desk.inputs(), ["a"]);
    assert_eq!(session.desk.types(1), ["created", "output_text.delta", "outcome_unknown"]);
}

#[test]
fn what_waits_survives_a_lost_connection_even_if_it_has_effects() {
    let mut session = Session::new();
    session.says(1, &with(create("a"), json!({ "store": true })));
    session.disconnect();
    session.connect();
    assert_eq!(session.desk.inputs(), ["a"]);
}

#[test]
fn without_a_connection_to_come_everything_that_waits_ends_with_the_reason() {
    let mut session = Session::new();
    session.asks(1, "a");
    session.asks_in(1, "x", "b");
    let body = json!({ "code": "no_quota" });
    let actions = session.turns.on_unreachable(429, &body, Code::UpstreamUnavailable.retry_after());
    session.desk.perform(actions);
    for turn in [1, 2] {
        assert_eq!(session.desk.types(turn), ["no_quota"]);
        assert_eq!(session.desk.logs[&turn].events[0]["status"], 429);
        assert!(session.desk.is_done(turn));
    }
    assert_eq!(session.desk.logs[&2].events[0]["stream_id"], "x");
    assert!(session.turns.is_idle());
}

#[test]
fn a_client_that_comes_back_with_the_same_request_gets_the_running_answer() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    session.turns.on_client_gone(1);
    session.asks(2, "a");
    assert_eq!(session.desk.inputs(), ["a"]);
    assert_eq!(session.desk.readers, [(1, 1), (2, 1)]);
    session.upstream(&[completed("r1")]);
    assert!(session.desk.is_done(1));
}

#[test]
fn a_client_that_is_back_before_its_loss_was_noticed_gets_the_running_answer_too() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    session.asks(2, "other");
    session.asks(2, "a");
    let actions = session.turns.on_client_gone(1);
    session.desk.perform(actions);
    assert_eq!(session.desk.readers, [(1, 1), (2, 2), (2, 1)]);
    session.upstream(&[completed("r1")]);
    session.upstream(&[created("r2"), completed("r2")]);
    assert_eq!(session.desk.inputs(), ["a", "other"], "nothing ran twice");
    assert!(session.turns.is_idle());
}

#[test]
fn a_request_of_another_client_never_joins_a_turn_that_has_one() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(2, "a");
    assert_eq!(session.desk.readers, [(1, 1), (2, 2)]);
    assert_eq!(session.turns.queued(), 1);
}

#[test]
fn a_new_request_supersedes_an_abandoned_turn_by_hanging_up() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    session.turns.on_client_gone(1);
    session.asks(2, "other");
    assert_eq!(session.desk.hang_ups, 1);
    assert_eq!(session.desk.types(1), ["created", "outcome_unknown"]);
    assert_eq!(session.desk.inputs(), ["a"], "nothing is sent before the new connection");
    session.connect();
    assert_eq!(session.desk.inputs(), ["a", "other"]);
    session.upstream(&[completed("r1")]);
    assert!(!session.desk.is_done(2));
}

#[test]
fn an_abandoned_turn_is_left_alone_where_hanging_up_would_hurt_others() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks_in(2, "x", "b");
    session.turns.on_client_gone(1);
    session.asks(3, "other");
    assert_eq!(session.desk.hang_ups, 0, "another lane is busy");

    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    session.turns.on_client_gone(1);
    session.says(3, &with(create("next"), json!({ "previous_response_id": "r1" })));
    assert_eq!(session.desk.hang_ups, 0, "it needs what the connection knows");
    session.upstream(&[completed("r1")]);
    assert_eq!(session.desk.inputs(), ["a", "next"]);
}

#[test]
fn what_a_client_left_waiting_never_runs_and_its_running_turn_goes_on() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(1, "b");
    session.says(2, &with(create("c"), json!({ "previous_response_id": "r0" })));
    session.turns.on_client_gone(1);
    assert_eq!((session.turns.running(), session.turns.queued()), (1, 1));
    session.answers("r1");
    assert_eq!(session.desk.inputs(), ["a", "c"]);
}

#[test]
fn silence_ends_what_runs_and_hangs_up_so_that_what_waits_gets_a_fresh_connection() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(1, "b");
    session.asks_in(1, "x", "c");
    let actions = session.turns.on_silence(&[1, 3]);
    session.desk.perform(actions);
    assert_eq!(session.desk.types(1), ["outcome_unknown"]);
    assert_eq!(session.desk.types(3), ["outcome_unknown"]);
    assert_eq!(session.desk.logs[&3].events[0]["stream_id"], "x");
    assert_eq!((session.desk.hang_ups, session.turns.queued()), (1, 1));
    session.connect();
    assert_eq!(session.desk.inputs(), ["a", "c", "b"]);
}
