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
