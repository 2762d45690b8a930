//! Turns of a session that leaves for another node.

use super::*;

#[test]
fn a_session_that_leaves_dispatches_nothing_more_and_goes_when_the_running_turn_has_ended() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(1, "b");
    session.turns.hold();
    session.asks_in(2, "x", "c");
    assert!(!session.turns.may_leave());
    session.answers("r1");
    assert!(session.turns.may_leave(), "what waits is sent to the next owner by its edge");
    assert_eq!(session.desk.inputs(), ["a"]);
    assert!(session.desk.types(2).is_empty() && session.desk.types(3).is_empty());
}

#[test]
fn what_waited_is_dispatched_by_a_session_that_stays_after_all() {
    let mut session = Session::connected();
    session.turns.hold();
    session.asks(1, "a");
    assert!(session.desk.inputs().is_empty() && session.turns.may_leave());
    let actions = session.turns.go_on();
    session.desk.perform(actions);
    assert_eq!(session.desk.inputs(), ["a"]);
    assert!(!session.turns.may_leave());
}

#[test]
fn a_turn_that_the_ledger_was_told_of_as_left_behind_is_left_to_the_next_owner() {
    let mut turns = Turns::new(Bounds { asked: true, ledger: true, ..bounds(8) }, Vec::new());
    turns.on_connected();
    turns.on_client(1, &Message::text(create("a").to_string()), None);
    // While the ledger is asked.
    turns.on_disconnected();
    turns.hold();
    assert_eq!(turns.leave_behind().len(), 1);
    turns.on_connected();
    assert_eq!(turns.go_on(), []);
}

#[test]
fn a_turn_that_had_its_first_run_here_has_its_second_one_here_too() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks(1, "b");
    session.turns.hold();
    session.disconnect();
    assert!(!session.turns.may_leave(), "the next owner could not know of the first run");
    session.connect();
    session.answers("r1");
    assert_eq!(session.desk.inputs(), ["a", "a"]);
    assert!(session.turns.may_leave());
}

#[test]
fn a_severed_turn_ends_once_and_says_how_far_it_was_told() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.asks_in(1, "x", "b");
    session.asks(1, "waits");
    let seen = with(delta("seen"), json!({ "sequence_number": 7 }));
    session.upstream(&[created("r1"), seen]);
    session.turns.hold();
    let (actions, severed) = session.turns.sever();
    session.desk.perform(actions);
    assert_eq!(session.desk.types(1), ["created", "output_text.delta", "outcome_unknown"]);
    assert_eq!(session.desk.types(2), ["outcome_unknown"]);
    assert!(session.desk.types(3).is_empty(), "what was not dispatched moves along");
    let error = &session.desk.logs[&1].events[2]["error"];
    assert_eq!((&error["response_id"], &error["last_sequence_number"]), (&json!("r1"), &json!(7)));
    let error = &session.desk.logs[&2].events[0]["error"];
    assert_eq!((error.get("response_id"), error.get("last_sequence_number")), (None, None));
    assert_eq!(
        severed.iter().map(|turn| turn.response_id.as_deref()).collect::<Vec<_>>(),
        [Some("r1"), None]
    );
    assert!(session.turns.may_leave() && session.desk.hang_ups == 1);
    // The upstream may still speak of it.
    session.upstream(&[delta("late"), completed("r1")]);
    assert_eq!(session.desk.types(1).len(), 3);
}

#[test]
fn a_turn_that_waits_for_its_second_run_is_severed_too() {
    let mut session = Session::connected();
    session.asks(1, "a");
    session.disconnect();
    let (actions, severed) = session.turns.sever();
    session.desk.perform(actions);
    assert_eq!((session.desk.types(1), severed.len()), (vec!["outcome_unknown".to_owned()], 1));
    session.connect();
    assert_eq!(session.desk.inputs(), ["a"]);
}

#[test]
fn a_conversation_that_only_its_connection_knows_is_not_moved_for_the_sake_of_balance() {
    let mut session = Session::connected();
    assert!(session.turns.can_be_told());
    session.asks(1, "a");
    session.answers("r1");
    assert!(session.turns.can_be_told());
    let chained = with(create("b"), json!({ "previous_response_id": "of-another-life" }));
    session.says(1, &chained);
    session.answers("r2");
    assert!(!session.turns.can_be_told());
    session.says(1, &with(create("c"), json!({ "store": true })));
    session.answers("r3");
    assert!(session.turns.can_be_told());
}
