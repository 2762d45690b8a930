//! Turns on a conversation of which the database knows more than the session.

use bytes::Bytes;

use super::*;

fn past(id: &str, previous: Option<&str>, said: &str) -> Past {
    let items = Bytes::from(format!("\"{said}\""));
    Past { id: id.into(), previous: previous.map(Into::into), lane: None, items }
}

/// A session that another owner has left behind, on a fresh connection.
fn unread() -> Session {
    let mut session = Session::new();
    session.turns = Turns::new(bounds(8), Vec::new()).with_unread();
    session.connect();
    session
}

impl Session {
    fn builds_on(&mut self, previous: &str, input: &str) {
        self.says(1, &with(create(input), json!({ "previous_response_id": previous })));
    }

    fn is_told(&mut self, past: Vec<Past>) {
        let actions = self.turns.on_recalled(past);
        self.desk.perform(actions);
    }
}

#[test]
fn a_turn_on_what_nobody_here_knows_waits_for_the_database_and_is_sent_with_all_of_it() {
    let mut session = unread();
    session.builds_on("r2", "three");
    assert_eq!((session.desk.recalls, session.desk.sent.len()), (1, 0));
    assert!(!session.turns.is_idle(), "somebody waits");
    session.is_told(vec![past("r1", None, "one"), past("r2", Some("r1"), "two")]);
    let sent = &session.desk.sent[0];
    assert_eq!(sent["input"][0], "one");
    assert_eq!(sent["input"][1], "two");
    assert_eq!(sent["input"][2]["content"], "three");
    assert_eq!(sent.get("previous_response_id"), None);
}

#[test]
fn the_database_is_asked_while_the_upstream_is_dialled_and_once_only() {
    let mut session = Session::new();
    session.turns = Turns::new(bounds(8), Vec::new()).with_unread();
    session.builds_on("r1", "two");
    session.builds_on("r1", "three");
    assert_eq!(session.desk.recalls, 1);
    session.connect();
    assert_eq!((session.desk.recalls, session.desk.sent.len()), (1, 0));
    session.is_told(vec![past("r1", None, "one")]);
    assert_eq!(session.desk.sent.len(), 1);
    assert_eq!(session.desk.recalls, 1);
}

#[test]
fn a_turn_that_needs_nothing_does_not_wait_and_nothing_is_read() {
    let mut session = unread();
    session.asks(1, "one");
    assert_eq!((session.desk.recalls, session.desk.inputs()), (0, vec!["one"]));
    session.answers("r1");
    session.builds_on("r1", "two");
    assert_eq!((session.desk.recalls, session.desk.sent.len()), (0, 2), "the connection knows r1");
}

#[test]
fn one_lane_waits_and_the_others_go_on() {
    let mut session = unread();
    session.builds_on("r1", "waits");
    session.asks_in(2, "b", "goes on");
    assert_eq!(session.desk.inputs(), ["goes on"]);
}

#[test]
fn what_the_database_does_not_know_either_is_the_upstreams_to_refuse() {
    let mut session = unread();
    session.builds_on("r9", "two");
    session.is_told(Vec::new());
    assert_eq!(session.desk.sent[0]["previous_response_id"], "r9");
    session.builds_on("r8", "three");
    assert_eq!(session.desk.recalls, 1, "it has said all it knows");
}

#[test]
fn a_database_that_does_not_answer_is_a_reason_to_retry_and_no_end() {
    let mut session = unread();
    session.builds_on("r1", "two");
    let actions = session.turns.on_recall_failed();
    session.desk.perform(actions);
    assert_eq!(session.desk.types(1), ["session_unavailable"]);
    assert!(session.desk.is_done(1) && session.desk.sent.is_empty());
    assert!(session.turns.is_idle());
    session.builds_on("r1", "two");
    assert_eq!(session.desk.recalls, 2, "asked again");
    session.is_told(vec![past("r1", None, "one")]);
    assert_eq!(session.desk.sent.len(), 1);
}

#[test]
fn what_is_known_here_stays_the_newest() {
    let mut session = unread();
    session.asks(1, "new");
    session.answers("s1");
    let actions = session.turns.recall();
    session.desk.perform(actions);
    session.is_told(vec![past("r1", None, "old"), past("s1", None, "never")]);
    assert!(session.turns.history().has("s1"));
    assert!(!session.turns.history().has("r1"), "the lane has begun anew");
    assert_eq!(session.turns.history().all().len(), 1);
}
