//! Orders of events that are rare and were once handled wrongly.

use super::*;

#[test]
fn an_error_behind_a_terminal_event_in_one_batch_does_not_settle_the_turn_that_follows() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(1, "b");
    // The upstream said this before it could know of the second turn.
    let error = json!({ "type": "error", "status": 500, "error": { "code": "late" } });
    session.upstream(&[created("r1"), completed("r1"), error]);
    assert_eq!(session.desk.types(1), ["created", "completed"]);
    assert!(!session.desk.is_done(2));
}

#[test]
fn an_event_behind_a_terminal_event_in_one_batch_does_not_make_the_next_turn_visible() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(1, "b");
    let timing = json!({ "type": "responsesapi.websocket_timing" });
    session.upstream(&[created("r1"), completed("r1"), timing]);
    session.disconnect();
    session.connect();
    assert_eq!(session.desk.inputs(), ["a", "b", "b"]);
    assert!(!session.desk.is_done(2));
}

#[test]
fn a_client_that_comes_back_before_the_next_connection_gets_the_turn_that_waits_for_it() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.turns.on_client_gone(1);
    session.disconnect();
    session.asks(2, "a");
    assert_eq!(session.turns.queued(), 1, "the same request would run twice");
    session.connect();
    session.answers("r1");
    assert_eq!(session.desk.readers.last(), Some(&(2, 1)));
    assert_eq!(session.desk.inputs(), ["a", "a"]);
}

#[test]
fn a_turn_that_nobody_waits_for_is_not_run_again() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks_in(2, "x", "b");
    session.turns.on_client_gone(1);
    session.disconnect();
    session.turns.on_client_gone(2);
    session.connect();
    assert_eq!(session.desk.inputs(), ["a", "b"], "work that nobody reads");
}

fn refusal() -> Value {
    json!({ "type": "error", "status": 400, "error": { "code": "unknown_event_type" } })
}

fn new_thing() -> Value {
    json!({ "type": "response.new_thing" })
}

#[test]
fn an_error_that_answers_another_event_does_not_end_the_turn() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(1, "b");
    session.upstream(&[created("r1")]);
    session.says(1, &new_thing());
    session.upstream(&[delta("1"), refusal()]);
    assert_eq!(session.desk.inputs(), ["a", "-"], "b would run beside a");
    session.upstream(&[delta("2"), completed("r1")]);
    assert_eq!(
        session.desk.types(1),
        ["created", "output_text.delta", "unknown_event_type", "output_text.delta", "completed"]
    );
    session.upstream(&[created("r2"), refusal()]);
    assert_eq!(session.desk.types(2), ["created", "unknown_event_type"]);
    assert!(session.desk.is_done(2), "nothing else was sent that it could answer");
}

#[test]
fn an_error_without_a_lane_answers_the_lane_that_sent_another_event() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks_in(1, "x", "b");
    session.upstream(&[created("r1"), in_lane("x", created("r2"))]);
    session.says(1, &in_lane("x", new_thing()));
    session.upstream(&[refusal()]);
    assert!(!session.desk.is_done(1) && !session.desk.is_done(2));
    assert_eq!(session.desk.types(2), ["created", "unknown_event_type"]);
}

#[test]
fn an_error_that_may_answer_an_event_beside_the_turn_before_ends_no_turn() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(1, "b");
    session.upstream(&[created("r1")]);
    session.says(1, &new_thing());
    session.upstream(&[completed("r1")]);
    session.upstream(&[refusal()]);
    assert_eq!((session.desk.hang_ups, session.turns.queued()), (1, 1));
    session.connect();
    session.upstream(&[refusal()]);
    assert_eq!(session.desk.types(2), ["unknown_event_type"], "here it can answer nothing else");

    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(1, "b");
    session.upstream(&[created("r1")]);
    session.says(1, &new_thing());
    session.upstream(&[completed("r1")]);
    session.upstream(&[refusal(), created("r2"), completed("r2")]);
    assert_eq!(session.desk.hang_ups, 0, "what follows shows what it answered");
    assert_eq!(session.desk.types(2), ["created", "completed"]);
}

#[test]
fn a_late_answer_to_an_event_beside_a_turn_ends_no_turn_of_another_lane() {
    let mut session = Session::connected();
    session.asks_in(1, "x", "a");
    session.asks_in(1, "y", "b");
    session.upstream(&[in_lane("x", created("r1")), in_lane("y", created("r2"))]);
    session.says(1, &in_lane("x", new_thing()));
    session.upstream(&[in_lane("x", completed("r1"))]);
    session.upstream(&[refusal()]);
    assert!(!session.desk.is_done(2));
    session.upstream(&[in_lane("y", completed("r2"))]);
    assert_eq!(session.desk.types(2), ["created", "completed"]);

    let mut session = Session::connected();
    session.asks_in(1, "x", "a");
    session.asks_in(1, "y", "b");
    session.upstream(&[in_lane("x", created("r1")), in_lane("y", created("r2"))]);
    session.says(1, &in_lane("x", new_thing()));
    let actions = session.turns.on_silence(&[1]);
    session.desk.perform(actions);
    session.upstream(&[refusal(), in_lane("y", completed("r2"))]);
    assert_eq!(session.desk.types(2), ["created", "completed"], "it was of the silent turn");
}

#[test]
fn an_answer_that_came_while_nothing_ran_is_not_waited_for() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    session.says(1, &new_thing());
    session.upstream(&[completed("r1")]);
    session.upstream(&[refusal()]);
    session.asks(1, "b");
    session.upstream(&[refusal()]);
    assert_eq!(session.desk.types(2), ["unknown_event_type"]);
    assert_eq!(session.desk.hang_ups, 0);
}

#[test]
fn a_refused_request_in_doubt_costs_no_other_lane_its_turn_and_is_told_as_it_came() {
    let mut session = Session::connected();
    session.asks_in(1, "x", "a");
    session.asks_in(1, "y", "b");
    session.upstream(&[in_lane("x", created("r1")), in_lane("y", created("r2"))]);
    session.says(1, &in_lane("x", new_thing()));
    session.upstream(&[in_lane("x", completed("r1"))]);
    session.asks_in(1, "x", "c");
    session.upstream(&[in_lane("x", refusal())]);
    assert_eq!(session.desk.types(3), ["unknown_event_type"]);
    assert_eq!(session.desk.hang_ups, 0);
    session.upstream(&[in_lane("y", completed("r2"))]);
    assert_eq!(session.desk.types(2), ["created", "completed"]);

    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    session.says(1, &new_thing());
    session.upstream(&[completed("r1")]);
    session.says(1, &with(create("b"), json!({ "store": true })));
    session.upstream(&[refusal()]);
    assert_eq!(session.desk.types(2), ["unknown_event_type"]);
    assert_eq!(session.desk.hang_ups, 1, "it may run all the same");
}

#[test]
fn after_an_error_in_doubt_the_next_turn_gets_no_answer_of_the_one_before() {
    let mut session = Session::connected();
    session.asks_in(1, "x", "a");
    session.asks_in(1, "y", "b");
    session.upstream(&[in_lane("x", created("r1")), in_lane("y", created("rb"))]);
    session.says(1, &in_lane("x", new_thing()));
    session.upstream(&[in_lane("x", completed("r1"))]);
    session.asks_in(1, "x", "c");
    session.asks_in(1, "x", "d");
    // It answers the other event: the upstream runs c.
    session.upstream(&[in_lane("x", refusal())]);
    session.upstream(&[in_lane("x", created("rc")), in_lane("x", completed("rc"))]);
    assert_eq!(session.desk.types(4), [""; 0], "d was told what c had asked for");
    session.upstream(&[in_lane("y", completed("rb"))]);
    assert_eq!(session.desk.hang_ups, 1, "nobody needs that connection any more");
    session.connect();
    session.upstream(&[in_lane("x", created("rd")), in_lane("x", completed("rd"))]);
    assert_eq!(session.desk.types(4), ["created", "completed"]);
    assert_eq!(session.desk.inputs(), ["a", "b", "-", "c", "d"]);
}

#[test]
fn an_error_that_no_other_event_gets_ends_the_turn() {
    for code in ["websocket_connection_limit_reached", "rate_limit_exceeded"] {
        let status = if code == "rate_limit_exceeded" { 429 } else { 400 };
        let mut session = Session::connected();
        session.asks(1, "a");
        session.upstream(&[created("r1")]);
        session.says(1, &new_thing());
        session
            .upstream(&[json!({ "type": "error", "status": status, "error": { "code": code } })]);
        assert_eq!(session.desk.types(1), ["created", code]);
        assert!(session.desk.is_done(1));
    }
}

fn too_old() -> Value {
    json!({
        "type": "error", "status": 400, "error": { "code": "websocket_connection_limit_reached" },
    })
}

#[test]
fn a_turn_that_met_the_age_of_its_connection_goes_out_on_the_next_one() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[too_old()]);
    assert_eq!(session.desk.hang_ups, 1, "nothing more is sent on that connection");
    session.connect();
    session.upstream(&[created("r1"), completed("r1")]);
    assert_eq!(session.desk.types(1), ["created", "completed"]);
    assert_eq!(session.desk.inputs(), ["a", "a"]);
    // Once: an upstream that says so of each connection is heard.
    session.asks(1, "b");
    session.upstream(&[too_old()]);
    session.connect();
    session.upstream(&[too_old()]);
    assert_eq!(session.desk.types(2), ["websocket_connection_limit_reached"]);
}

#[test]
fn nothing_is_sent_on_a_connection_that_its_upstream_calls_too_old() {
    let stored = |input: &str| with(create(input), json!({ "store": true }));
    let mut session = Session::connected();
    session.says(1, &stored("a"));
    session.says(1, &stored("b"));
    session.upstream(&[too_old()]);
    assert_eq!(session.desk.types(1), ["websocket_connection_limit_reached"]);
    assert_eq!((session.desk.inputs(), session.desk.hang_ups), (vec!["a"], 1));
    session.connect();
    session.answers("r2");
    assert_eq!(session.desk.inputs(), ["a", "b"]);
    assert_eq!(session.desk.types(2), ["created", "output_text.delta", "completed"]);

    // It says so between turns, too.
    session.upstream(&[too_old()]);
    session.says(1, &stored("c"));
    assert_eq!((session.desk.inputs(), session.desk.hang_ups), (vec!["a", "b"], 2));
    session.connect();
    assert_eq!(session.desk.inputs(), ["a", "b", "c"]);
}

#[test]
fn the_age_of_a_connection_costs_no_turn_of_another_lane_that_runs_on_it() {
    let stored =
        |input: &str, lane: &str| with(create(input), json!({ "store": true, "stream_id": lane }));
    let mut session = Session::connected();
    session.says(1, &stored("a", "x"));
    session.says(1, &stored("b", "y"));
    session.upstream(&[in_lane("x", created("r1")), in_lane("y", created("r2"))]);
    session.says(1, &stored("c", "x"));
    session.upstream(&[in_lane("x", too_old())]);
    assert!(session.desk.is_done(1) && !session.desk.is_done(2));
    assert_eq!((session.desk.inputs(), session.desk.hang_ups), (vec!["a", "b"], 0));
    session.upstream(&[in_lane("y", completed("r2"))]);
    assert_eq!(session.desk.types(2), ["created", "completed"]);
    assert_eq!(session.desk.hang_ups, 1, "nobody needs that connection any more");
    session.connect();
    assert_eq!(session.desk.inputs(), ["a", "b", "c"]);
}

#[test]
fn a_turn_that_may_act_outside_is_unknown_where_its_connection_is_lost_before_it_began() {
    for more in [
        json!({ "tools": [{ "type": "function", "name": "f" }, { "type": "mcp" }] }),
        json!({ "conversation": "conv_1" }),
    ] {
        let mut session = Session::connected();
        session.says(1, &with(create("a"), more.clone()));
        session.disconnect();
        session.connect();
        assert_eq!(session.desk.types(1), ["outcome_unknown"], "{more}");
        assert_eq!(session.desk.inputs(), ["a"], "{more}");
    }
}

#[test]
fn a_turn_that_goes_on_from_tools_that_act_outside_is_unknown_where_its_connection_is_lost() {
    let brings =
        |kind| json!({ "type": "tool_search_output", "tools": [{ "type": kind, "name": "t" }] });
    let done = |item| json!({ "type": "response.output_item.done", "item": item });
    let nothing = json!({ "type": "message", "content": [] });
    for (input, output, again) in [
        (brings("function"), brings("custom"), true),
        (brings("mcp"), nothing.clone(), false),
        (nothing, brings("mcp"), false),
    ] {
        let mut session = Session::connected();
        session.says(1, &with(create("-"), json!({ "input": [input] })));
        session.upstream(&[created("r1"), done(output), completed("r1")]);
        // A turn between: what it goes on from is not all that was said.
        for (input, previous) in [("b", "r1"), ("c", "r2")] {
            session.says(1, &with(create(input), json!({ "previous_response_id": previous })));
            if input == "b" {
                session.answers("r2");
            }
        }
        session.disconnect();
        session.connect();
        assert_eq!(session.desk.is_done(3), !again, "{input}");
        assert_eq!(session.desk.sent.len(), if again { 4 } else { 3 }, "{input}");
    }
}

#[test]
fn what_goes_on_from_tools_that_act_outside_does_not_run_again_by_its_key() {
    let tools = |kind| json!([{ "type": "additional_tools", "tools": [{ "type": kind }] }]);
    for (kind, again) in [("function", true), ("shell", false)] {
        let ledger = Bounds { asked: true, ledger: true, ..bounds(8) };
        let mut turns = Turns::new(ledger, Vec::new());
        turns.on_connected();
        let first = with(create("-"), json!({ "input": tools(kind) }));
        turns.on_client(1, &Message::text(first.to_string()), None);
        turns.on_journaled(1, &Journaled::Begun);
        turns.on_upstream(&batch_of(&[created("r1"), completed("r1")]));
        let next = with(create("b"), json!({ "previous_response_id": "r1" }));
        let key = Some(TurnKey::of("k"));
        let actions = turns.on_client(1, &Message::text(next.to_string()), key);
        let told = actions.iter().find_map(|action| match action {
            Action::Journal { repeatable, .. } => Some(*repeatable),
            _ => None,
        });
        assert_eq!(told, Some(again), "{kind}");
    }
}

#[test]
fn an_error_whose_details_are_not_understood_ends_the_turn_all_the_same() {
    for details in [json!("no quota"), json!({ "code": 429 }), json!([1]), json!(null)] {
        let mut session = Session::connected();
        session.asks(1, "a");
        session.upstream(&[json!({ "type": "error", "status": 429, "error": details })]);
        assert!(session.desk.is_done(1), "{details}");
        assert_eq!(session.desk.logs[&1].events[0]["error"], details, "passed on as it came");
    }
}

#[test]
fn what_comes_before_a_response_and_speaks_of_the_connection_is_told() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[json!({ "type": "response.metadata", "headers": {} }), created("r1")]);
    assert_eq!(session.desk.types(1), ["metadata", "created"]);
}

#[test]
fn a_request_that_comes_again_joins_its_turn_although_somebody_else_reads_that() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    session.says(2, &json!({ "type": "ringspan.resume", "response_id": "r1" }));
    let actions = session.turns.on_client_gone(1);
    session.desk.perform(actions);
    session.asks(3, "a");
    assert_eq!(session.desk.readers, [(1, 1), (2, 1), (3, 1)]);
    session.upstream(&[completed("r1")]);
    assert_eq!(session.desk.inputs(), ["a"]);
}

#[test]
fn what_is_said_of_a_response_before_its_name_is_of_an_earlier_one() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[delta("late"), json!({ "type": "response.output_item.done", "item": {} })]);
    assert_eq!(session.desk.types(1), [""; 0]);
    session.upstream(&[created("r1"), completed("r1")]);
    assert_eq!(session.desk.types(1), ["created", "completed"]);
    let said = String::from_utf8(session.turns.history().all()[0].items.to_vec()).unwrap();
    assert_eq!(said.matches("content").count(), 1, "{said}");
}

#[test]
fn an_event_of_the_connection_does_not_make_a_turn_visible() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[json!({ "type": "codex.rate_limits" })]);
    session.disconnect();
    session.connect();
    assert_eq!(session.desk.inputs(), ["a", "a"]);
    session.answers("r1");
    assert!(session.desk.is_done(1));
}

#[test]
fn a_turn_that_somebody_reads_is_not_superseded_when_who_asked_for_it_goes() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    for _ in 0..2 {
        session.says(2, &json!({ "type": "ringspan.resume", "response_id": "r1" }));
    }
    session.turns.on_client_gone(1);
    session.asks(3, "other");
    assert_eq!(session.desk.hang_ups, 0);
    session.upstream(&[completed("r1")]);
    assert_eq!(session.desk.types(1), ["created", "completed"]);
    assert_eq!(session.desk.inputs(), ["a", "other"]);

    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    session.says(2, &json!({ "type": "ringspan.resume", "response_id": "r1" }));
    session.turns.on_client_gone(1);
    session.turns.on_client_gone(2);
    session.asks(3, "other");
    assert_eq!(session.desk.hang_ups, 1, "nobody is left who reads it");
}

#[test]
fn a_request_that_came_before_the_loss_of_the_earlier_socket_was_noticed_does_not_wait_for_it() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    session.asks(2, "other");
    let actions = session.turns.on_client_gone(1);
    session.desk.perform(actions);
    assert_eq!(session.desk.hang_ups, 1);
    assert_eq!(session.desk.types(1), ["created", "outcome_unknown"]);
    session.connect();
    session.answers("r2");
    assert_eq!(session.desk.inputs(), ["a", "other"]);
    assert_eq!(session.desk.types(2), ["created", "output_text.delta", "completed"]);

    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    session.says(2, &with(create("next"), json!({ "previous_response_id": "r1" })));
    session.asks(2, "other");
    let actions = session.turns.on_client_gone(1);
    session.desk.perform(actions);
    assert_eq!(session.desk.hang_ups, 0, "the next one needs what the connection knows");
}

#[test]
fn a_turn_with_an_idempotency_key_is_not_superseded() {
    let mut session = Session::connected();
    session.says(1, &keyed("a", "k"));
    session.upstream(&[created("r1")]);
    session.turns.on_client_gone(1);
    session.asks(2, "other");
    assert_eq!(session.desk.hang_ups, 0, "its client may ask for it by its key");
    session.upstream(&[completed("r1")]);
    assert_eq!(session.desk.inputs(), ["a", "other"]);
}

fn keyed(input: &str, key: &str) -> Value {
    with(create(input), json!({ "client_metadata": { "idempotency_key": key } }))
}

#[test]
fn a_request_with_a_key_joins_no_turn_that_does_not_have_it_and_runs_once_under_it() {
    for left_first in [true, false] {
        let mut session = Session::connected();
        session.asks(1, "a");
        session.upstream(&[created("r1")]);
        if left_first {
            session.turns.on_client_gone(1);
            session.says(2, &keyed("a", "k"));
        } else {
            session.says(2, &keyed("a", "k"));
            session.turns.on_client_gone(1);
        }
        assert_eq!(session.desk.readers, [(1, 1), (2, 2)], "left first: {left_first}");
        session.disconnect();
        session.connect();
        session.answers("r2");
        session.says(3, &keyed("a", "k"));
        assert_eq!(session.desk.readers.last(), Some(&(3, 2)), "its end is replayed");
        assert_eq!(session.desk.inputs(), ["a", "a"], "left first: {left_first}");
    }
}

#[test]
fn a_resent_request_does_not_join_a_turn_without_its_first_events() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.upstream(&[created("r1")]);
    session.turns.on_trimmed(1);
    session.turns.on_client_gone(1);
    for _ in 0..2 {
        session.asks(2, "a");
        assert_eq!(session.desk.replies.pop(), Some((2, "turn_in_progress".to_owned(), 1)));
    }
    assert_eq!(session.desk.readers, [(1, 1)]);
    session.upstream(&[completed("r1")]);
    assert_eq!(session.desk.inputs(), ["a"], "it does not run a second time either");
}

#[test]
fn however_a_turn_is_lost_its_end_says_how_far_it_was_told_and_its_events_can_be_asked_for() {
    type Loss = fn(&mut Turns) -> Vec<Action>;
    let losses: [(&str, Loss); 4] = [
        ("disconnected", Turns::on_disconnected),
        ("silence", |turns| turns.on_silence(&[1])),
        ("fenced", Turns::on_fenced),
        ("severed", |turns| turns.sever().0),
    ];
    for (how, loss) in losses {
        let mut session = Session::connected();
        session.says(1, &with(create("a"), json!({ "store": true })));
        let seen = with(delta("seen"), json!({ "sequence_number": 7 }));
        session.upstream(&[created("r1"), seen, delta("has no number")]);
        let actions = loss(&mut session.turns);
        session.desk.perform(actions);
        let end = session.desk.logs[&1].events.last().unwrap();
        assert_eq!(code(end), "outcome_unknown", "{how}");
        assert_eq!(end["error"]["response_id"], "r1", "{how}");
        assert_eq!(end["error"]["last_sequence_number"], 7, "{how}");
        session.says(2, &json!({ "type": "ringspan.resume", "response_id": "r1" }));
        assert_eq!(session.desk.readers.last(), Some(&(2, 1)), "{how}");
    }
}

#[test]
fn a_silent_turn_ends_alone_and_nothing_follows_it_on_its_connection() {
    let mut session = Session::connected();
    session.asks_in(1, "x", "a");
    session.asks_in(1, "y", "b");
    session.upstream(&[in_lane("x", created("r1")), in_lane("y", created("r2"))]);
    let actions = session.turns.on_silence(&[1]);
    session.desk.perform(actions);
    assert_eq!(session.desk.types(1), ["created", "outcome_unknown"]);
    session.asks_in(1, "x", "c");
    assert_eq!(session.desk.inputs(), ["a", "b"], "it would run beside what fell silent");
    session.upstream(&[in_lane("x", completed("r1")), in_lane("y", completed("r2"))]);
    assert_eq!(session.desk.types(2), ["created", "completed"], "it was not silent");
    assert_eq!(session.desk.hang_ups, 1);
    session.connect();
    assert_eq!(session.desk.inputs(), ["a", "b", "c"]);
}

#[test]
fn a_turn_that_was_sent_once_ends_as_unknown_where_no_connection_comes_for_its_second_run() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(1, "b");
    session.disconnect();
    let body = json!({ "code": "no_quota" });
    let actions = session.turns.on_unreachable(429, &body, None);
    session.desk.perform(actions);
    assert_eq!(session.desk.types(1), ["outcome_unknown"]);
    assert_eq!(session.desk.types(2), ["no_quota"], "it was never sent");
    assert!(session.turns.is_idle());
}

#[test]
fn what_a_turn_says_is_kept_within_the_bound_of_a_conversation_and_only_where_it_is_needed() {
    let item = |text: &str| json!({ "type": "response.output_item.done", "item": { "type": "message", "content": text } });
    for (store, items, kept) in [(false, 3, true), (false, 30, false), (true, 3, false)] {
        let small = Bounds { history_bytes: 1000, ..bounds(8) };
        let mut session = Session { turns: Turns::new(small, Vec::new()), desk: Desk::default() };
        session.connect();
        session.says(1, &with(create("a"), json!({ "store": store })));
        session.upstream(&[created("r1")]);
        for _ in 0..items {
            session.upstream(&[item(&"x".repeat(100))]);
            let turn = session.turns.lanes[0].running.as_ref().unwrap();
            assert!(turn.held_output() <= 1000, "{} bytes", turn.held_output());
        }
        session.upstream(&[completed("r1")]);
        assert_eq!(session.turns.history().has("r1"), kept, "store: {store}, {items} items");
    }
}

#[test]
fn requests_count_once_and_until_their_turns_end() {
    let bounds = Bounds { payload_bytes: 10_000, ..bounds(8) };
    let mut session = Session { turns: Turns::new(bounds, Vec::new()), desk: Desk::default() };
    session.connect();
    session.asks_in(1, "x", &"a".repeat(4_500));
    session.asks_in(1, "y", &"b".repeat(4_500));
    assert_eq!(session.desk.sent.len(), 2, "there is room for both");
    let (x, y) = (in_lane("x", created("r1")), in_lane("y", created("r2")));
    session.upstream(&[x, y]);
    session.asks_in(1, "z", &"c".repeat(2_000));
    assert_eq!(session.desk.replies, [(1, "queue_full".to_owned(), 1)], "their input is held");
    session.upstream(&[in_lane("x", completed("r1"))]);
    session.asks_in(1, "z", &"c".repeat(2_000));
    assert_eq!(session.desk.sent.len(), 3);
    let text = json!({ "type": "output_text", "text": "d".repeat(4_500) });
    let item = json!({ "type": "message", "content": [text] });
    let said = json!({ "type": "response.output_item.done", "item": item });
    session.upstream(&[in_lane("y", said)]);
    session.asks_in(1, "w", "e");
    assert_eq!(session.desk.replies.len(), 2, "what is said is held too");
    session.upstream(&[in_lane("y", completed("r2"))]);
    session.asks_in(1, "w", "e");
    assert_eq!(session.desk.sent.len(), 4);
}
