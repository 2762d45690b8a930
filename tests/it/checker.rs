//! The checker finds what it is there to find, and nothing else: violations planted in made-up
//! histories, and random histories in which nothing is wrong.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{
    checker::{
        COMPLETED, Change, Conduct, Connection, Create, History, Invariant, Proof, Seen, Table,
        What, judge,
    },
    responses::digest,
};

const UNKNOWN: &str = "outcome_unknown";
const TOO_OLD: &str = "websocket_connection_limit_reached";

/// Ends that an upstream gives turns, and what may be told of them.
const ENDS: [(&str, &str); 7] = [
    ("failed:server_is_overloaded", "failed:server_is_overloaded"),
    ("incomplete:max_output_tokens", "incomplete:max_output_tokens"),
    ("refused:server_error", "server_error"),
    ("closed", UNKNOWN),
    ("hung", UNKNOWN),
    ("aged", UNKNOWN),
    ("aged", TOO_OLD),
];

/// Events of a made-up turn before its last.
const EVENTS: u64 = 3;

/// Writes histories as a correct ring would make them.
struct Writer {
    history: History,
    clock: u64,
    epochs: i64,
    responses: u64,
}

/// One session of a [`Writer`].
struct Talk {
    key: String,
    owner: i64,
    epoch: i64,
    turn: usize,
    texts: Vec<String>,
}

impl Writer {
    fn new(conduct: Conduct) -> Self {
        let history = History { conduct, ..History::default() };
        let mut writer = Self { history, clock: 0, epochs: 0, responses: 0 };
        for incarnation in 1..=3 {
            writer.member(incarnation, None, "ACTIVE");
        }
        writer
    }

    fn now(&mut self) -> u64 {
        self.clock += 1000;
        self.clock
    }

    fn change(&mut self, table: Table, before: Value, after: Value) {
        let order = i64::try_from(self.now()).unwrap();
        self.history.changes.push(Change { order, table, before, after });
    }

    fn member(&mut self, incarnation: i64, before: Option<&str>, state: &str) {
        let row = |state: &str| json!({ "incarnation": incarnation, "state": state });
        let before = before.map_or(Value::Null, row);
        self.change(Table::Member, before, row(state));
    }

    fn row(talk: &Talk, state: &str) -> Value {
        json!({
            "id": format!("\\x{}", talk.key), "key_label": talk.key,
            "owner": talk.owner, "epoch": talk.epoch, "state": state,
        })
    }

    fn connect(&mut self, talk: &Talk) {
        let opened = self.now() / 1000;
        let id = self.history.connections.len() as u64;
        let session = talk.key.clone();
        for connection in self.history.connections.iter_mut().filter(|it| it.session == session) {
            connection.closed.get_or_insert(opened);
        }
        self.history.connections.push(Connection { id, session, opened, closed: None });
    }

    fn begin(&mut self, key: &str) -> Talk {
        self.epochs += 1;
        let (key, epoch) = (key.to_owned(), self.epochs);
        let talk = Talk { key, owner: 1, epoch, turn: 0, texts: Vec::new() };
        self.change(Table::Session, Value::Null, Self::row(&talk, "LIVE"));
        self.connect(&talk);
        talk
    }

    /// A planned transfer, or a takeover from an owner that is dead.
    fn pass(&mut self, talk: &mut Talk, planned: bool) {
        let (live, quiescing) = (Self::row(talk, "LIVE"), Self::row(talk, "QUIESCING"));
        let before = if planned {
            self.change(Table::Session, live, quiescing.clone());
            quiescing
        } else {
            // A dead owner of two sessions is marked once.
            self.member(talk.owner, None, "DEAD");
            live
        };
        self.epochs += 1;
        // Always a new incarnation: no number comes back.
        (talk.owner, talk.epoch) = (100 + self.epochs, self.epochs);
        self.member(talk.owner, None, "ACTIVE");
        self.change(Table::Session, before, Self::row(talk, "LIVE"));
        self.connect(talk);
    }

    fn see(&mut self, talk: &Talk, attempt: usize, what: What) {
        let at = self.now();
        let (session, turn) = (talk.key.clone(), talk.turn);
        self.history.clients.push(Seen { at, session, turn, attempt, what });
    }

    fn dispatch(&mut self, talk: &Talk, text: &str, outcome: &str) -> String {
        self.responses += 1;
        let response = format!("resp_{}", self.responses);
        let texts: Vec<_> = talk.texts.iter().cloned().chain([text.to_owned()]).collect();
        let mut connections = self.history.connections.iter();
        let connection = connections.rfind(|it| it.session == talk.key).unwrap().id;
        let at = self.now() / 1000;
        self.history.creates.push(Create {
            at,
            ended: Some(at),
            connection,
            session: talk.key.clone(),
            response: Some(response.clone()),
            conversation: digest(&texts),
            generate: true,
            outcome: outcome.to_owned(),
        });
        response
    }

    fn send(&mut self, talk: &Talk, attempt: usize, text: &str) {
        self.see(talk, attempt, What::Attached { epoch: talk.epoch, gap: false });
        self.see(talk, attempt, What::Sent { text: text.to_owned(), stored: false });
    }

    fn events(&mut self, talk: &Talk, attempt: usize, response: &str) {
        for sequence in 0..EVENTS {
            let response = response.to_owned();
            self.see(talk, attempt, What::Event { response, sequence });
        }
    }

    /// A turn that the user sees answered in attempt `attempt`.
    fn answer(&mut self, talk: &mut Talk, attempt: usize, text: &str) {
        let response = self.dispatch(talk, text, "completed");
        self.events(talk, attempt, &response);
        talk.texts.push(text.to_owned());
        let proof = Some(Proof { digest: digest(&talk.texts), whole: true });
        let (sequence, outcome) = (Some(EVENTS), COMPLETED.to_owned());
        self.see(talk, attempt, What::Ended { response, sequence, outcome, proof });
        talk.turn += 1;
    }

    fn error(&mut self, talk: &Talk, attempt: usize, code: &str) {
        let (code, message) = (code.to_owned(), String::new());
        self.see(talk, attempt, What::Error { code, message });
    }

    /// A turn that the upstream ended in this way, of which the client is told something.
    fn failed(&mut self, talk: &mut Talk, outcome: &str, told: &[&str]) {
        let text = format!("{} turn {}", talk.key, talk.turn);
        self.send(talk, 0, &text);
        let response = self.dispatch(talk, &text, outcome);
        if outcome.starts_with("refused") {
            self.history.creates.last_mut().unwrap().response = None;
        } else {
            self.events(talk, 0, &response);
        }
        for told in told {
            if told.contains(':') {
                let (sequence, outcome) = (Some(EVENTS), (*told).to_owned());
                let response = response.clone();
                self.see(talk, 0, What::Ended { response, sequence, outcome, proof: None });
            } else {
                self.error(talk, 0, told);
            }
        }
        talk.turn += 1;
    }

    fn turn(&mut self, talk: &mut Talk) {
        let text = format!("{} turn {}", talk.key, talk.turn);
        self.send(talk, 0, &text);
        self.answer(talk, 0, &text);
    }
}

/// Two sessions, one of which moves by plan between turns.
fn clean() -> (Writer, Talk) {
    let mut writer = Writer::new(Conduct::Planned);
    let (mut one, mut two) = (writer.begin("one"), writer.begin("two"));
    writer.turn(&mut one);
    writer.turn(&mut two);
    writer.pass(&mut one, true);
    writer.turn(&mut one);
    writer.turn(&mut two);
    writer.turn(&mut one);
    (writer, one)
}

/// The index of the last fact of a kind.
fn last(history: &History, is: impl Fn(&What) -> bool) -> usize {
    history.clients.iter().rposition(|seen| is(&seen.what)).unwrap()
}

#[track_caller]
fn found(history: &History, invariant: Invariant) {
    let verdict = judge(history);
    assert!(verdict.broken().contains(&invariant), "{invariant:?} was not found\n{verdict}");
    assert!(verdict.to_string().contains('!'), "no evidence\n{verdict}");
}

#[test]
fn a_clean_history_passes_and_every_invariant_was_looked_at() {
    let verdict = judge(&clean().0.history);
    verdict.assert_holds();
    for invariant in Invariant::ALL {
        assert!(verdict.checked(invariant) > 0, "{invariant:?}\n{verdict}");
    }
}

#[test]
fn an_epoch_with_two_holders_is_found() {
    let (mut writer, mut talk) = clean();
    let before = Writer::row(&talk, "QUIESCING");
    talk.owner = 3;
    writer.change(Table::Session, before, Writer::row(&talk, "LIVE"));
    found(&writer.history, Invariant::I1);
}

#[test]
fn an_epoch_that_shrinks_is_found() {
    let (mut writer, mut talk) = clean();
    let before = Writer::row(&talk, "QUIESCING");
    talk.epoch -= 2;
    writer.change(Table::Session, before, Writer::row(&talk, "LIVE"));
    found(&writer.history, Invariant::I1);
}

#[test]
fn an_epoch_that_a_client_was_told_and_nobody_was_given_is_found() {
    let (mut writer, talk) = clean();
    writer.see(&talk, 0, What::Attached { epoch: 999, gap: false });
    found(&writer.history, Invariant::I1);
}

#[test]
fn a_second_run_of_a_turn_that_the_client_had_seen_is_found() {
    let (mut writer, mut talk) = clean();
    writer.history.conduct = Conduct::Losses;
    let text = "seen and run again";
    writer.send(&talk, 0, text);
    let first = writer.dispatch(&talk, text, "cancelled");
    writer.see(&talk, 0, What::Event { response: first, sequence: 0 });
    writer.answer(&mut talk, 1, text);
    found(&writer.history, Invariant::I2);
}

#[test]
fn a_second_run_of_a_stored_turn_is_found() {
    let (mut writer, mut talk) = clean();
    writer.history.conduct = Conduct::Losses;
    let text = "stored and run again";
    writer.see(&talk, 0, What::Sent { text: text.to_owned(), stored: true });
    writer.dispatch(&talk, text, "cancelled");
    writer.answer(&mut talk, 0, text);
    found(&writer.history, Invariant::I2);
}

#[test]
fn a_second_run_of_a_turn_that_ended_unheard_is_found_where_no_way_was_lost() {
    let run_twice = |conduct, stored, runs| {
        let (mut writer, mut talk) = clean();
        writer.history.conduct = conduct;
        let text = "ended and run again";
        writer.see(&talk, 0, What::Sent { text: text.to_owned(), stored });
        for _ in 1..runs {
            writer.dispatch(&talk, text, "completed");
        }
        writer.answer(&mut talk, 0, text);
        writer.history
    };
    judge(&run_twice(Conduct::Partitions, false, 2)).assert_holds();
    found(&run_twice(Conduct::Losses, false, 2), Invariant::I2);
    found(&run_twice(Conduct::Partitions, true, 2), Invariant::I2);
    found(&run_twice(Conduct::Partitions, false, 3), Invariant::I2);
}

#[test]
fn a_second_run_of_a_turn_whose_end_was_lost_with_its_owner_is_by_the_rule_unless_it_is_stored() {
    let lost = |conduct, stored, late| {
        let (mut writer, mut talk) = clean();
        writer.history.conduct = conduct;
        let text = "ended, and its owner died";
        writer.see(&talk, 0, What::Sent { text: text.to_owned(), stored });
        writer.dispatch(&talk, text, "completed");
        for _ in 0..late {
            writer.now();
        }
        writer.pass(&mut talk, false);
        writer.answer(&mut talk, 0, text);
        writer.history
    };
    judge(&lost(Conduct::Losses, false, 0)).assert_holds();
    found(&lost(Conduct::Losses, true, 0), Invariant::I2);
    found(&lost(Conduct::Losses, false, 300), Invariant::I2);
}

#[test]
fn a_connection_that_was_open_when_the_upstream_was_asked_is_judged_until_then() {
    let read_after = |millis| {
        let (mut writer, talk) = clean();
        writer.connect(&talk);
        let [.., before, last] = &mut writer.history.connections[..] else { panic!("two") };
        before.closed = Some(last.opened + millis);
        writer.history
    };
    judge(&read_after(100)).assert_holds();
    found(&read_after(300), Invariant::I4);
}

#[test]
fn a_second_run_is_found_where_only_the_upstream_told() {
    let (mut writer, talk) = clean();
    writer.history.clients.clear();
    judge(&writer.history).assert_holds();
    for _ in 0..2 {
        writer.dispatch(&talk, "twice", "completed");
    }
    found(&writer.history, Invariant::I2);
}

#[test]
fn a_second_terminal_event_is_found() {
    let (mut writer, _) = clean();
    let at = last(&writer.history, |what| matches!(what, What::Ended { .. }));
    let twice = writer.history.clients[at].clone();
    writer.history.clients.push(twice);
    found(&writer.history, Invariant::I3);
}

#[test]
fn a_terminal_event_of_the_turn_before_is_found() {
    let (mut writer, _) = clean();
    let ends: Vec<_> = (0..writer.history.clients.len())
        .filter(|&at| matches!(writer.history.clients[at].what, What::Ended { .. }))
        .collect();
    writer.history.clients[ends[4]].what = writer.history.clients[ends[2]].what.clone();
    found(&writer.history, Invariant::I3);
}

#[test]
fn a_turn_without_an_end_is_found() {
    let (mut writer, _) = clean();
    let at = last(&writer.history, |what| matches!(what, What::Ended { .. }));
    writer.history.clients.remove(at);
    found(&writer.history, Invariant::I3);
}

#[test]
fn a_final_state_of_the_ledger_that_changes_is_found() {
    let (mut writer, _) = clean();
    writer.change(Table::Turn, json!({ "state": "UNKNOWN" }), json!({ "state": "DONE" }));
    found(&writer.history, Invariant::I3);
}

#[test]
fn a_turn_that_the_ledger_lets_run_again_after_a_response_is_found() {
    let (mut writer, _) = clean();
    writer.history.conduct = Conduct::Losses;
    let row = |state: &str, dispatches: u64, response: Value| json!({ "state": state, "dispatches": dispatches, "response": response });
    let again = row("DISPATCHED", 2, Value::Null);
    writer.change(Table::Turn, row("UNKNOWN", 1, Value::Null), again.clone());
    judge(&writer.history).assert_holds();
    writer.change(Table::Turn, row("VISIBLE", 1, "resp_1".into()), again);
    found(&writer.history, Invariant::I2);
}

#[test]
fn a_session_taken_from_a_living_owner_is_found() {
    let (mut writer, mut talk) = clean();
    let before = Writer::row(&talk, "LIVE");
    (talk.owner, talk.epoch) = (3, 99);
    writer.change(Table::Session, before, Writer::row(&talk, "LIVE"));
    found(&writer.history, Invariant::I4);
}

#[test]
fn a_dead_node_that_rises_is_found() {
    let (mut writer, _) = clean();
    writer.member(2, Some("DEAD"), "ACTIVE");
    found(&writer.history, Invariant::I4);
}

#[test]
fn output_of_a_stale_owner_is_found() {
    let (mut writer, talk) = clean();
    let stale = writer.history.creates.iter().find(|it| it.session == talk.key).unwrap();
    let response = stale.response.clone().unwrap();
    writer.history.conduct = Conduct::Freezes;
    writer.see(&talk, 9, What::Event { response, sequence: 0 });
    found(&writer.history, Invariant::I4);
}

#[test]
fn a_dispatch_of_a_stale_owner_is_found() {
    let (mut writer, talk) = clean();
    writer.history.conduct = Conduct::Freezes;
    writer.dispatch(&talk, "late", "completed");
    let connections = writer.history.connections.iter();
    let oldest = connections.clone().find(|it| it.session == talk.key).unwrap().id;
    writer.history.creates.last_mut().unwrap().connection = oldest;
    found(&writer.history, Invariant::I4);
}

#[test]
fn two_upstream_connections_at_a_time_are_found() {
    let (mut writer, talk) = clean();
    let of = |it: &&mut Connection| it.session == talk.key;
    writer.history.connections.iter_mut().find(of).unwrap().closed = None;
    found(&writer.history, Invariant::I4);
}

#[test]
fn an_unknown_outcome_is_found_after_a_drain_and_granted_after_a_loss() {
    let (mut writer, talk) = clean();
    writer.send(&talk, 0, "unknown");
    writer.error(&talk, 0, UNKNOWN);
    found(&writer.history, Invariant::I5);
    writer.history.conduct = Conduct::Losses;
    judge(&writer.history).assert_holds();
}

#[test]
fn a_turn_cut_by_a_drain_is_found() {
    let (mut writer, talk) = clean();
    writer.send(&talk, 0, "cut");
    let response = writer.dispatch(&talk, "cut", "cancelled");
    writer.events(&talk, 0, &response);
    writer.see(&talk, 0, What::Cut { how: "1012".to_owned() });
    found(&writer.history, Invariant::I5);
}

#[test]
fn an_acknowledged_turn_that_the_model_does_not_know_is_found() {
    let (mut writer, mut talk) = clean();
    talk.texts.pop();
    writer.turn(&mut talk);
    found(&writer.history, Invariant::I6);
}

#[test]
fn a_missing_event_and_a_repeated_one_are_found() {
    for (from, to) in [(1, 2), (1, 0)] {
        let (mut writer, _) = clean();
        let at = last(
            &writer.history,
            |what| matches!(what, What::Event { sequence, .. } if *sequence == from),
        );
        let What::Event { sequence, .. } = &mut writer.history.clients[at].what else { continue };
        *sequence = to;
        found(&writer.history, Invariant::I7);
    }
}

#[test]
fn a_resume_that_begins_one_event_late_is_found() {
    let (mut writer, talk) = clean();
    writer.send(&talk, 0, "resumed");
    let response = writer.dispatch(&talk, "resumed", "completed");
    writer.events(&talk, 0, &response);
    writer.see(&talk, 1, What::Resumed { after: EVENTS - 1 });
    writer.see(&talk, 1, What::Event { response, sequence: EVENTS + 1 });
    found(&writer.history, Invariant::I7);
}

#[test]
fn a_message_that_comes_twice_is_found() {
    let (mut writer, talk) = clean();
    for number in [1, 2, 2] {
        writer.see(&talk, 0, What::Message { number });
    }
    found(&writer.history, Invariant::I7);
}

#[test]
fn one_that_was_passed_on_too_often_is_found() {
    let (mut writer, talk) = clean();
    writer.send(&talk, 0, "lost in the ring");
    let (code, message) = ("owner_moving".to_owned(), "passed on too often; retry".to_owned());
    writer.see(&talk, 0, What::Error { code, message });
    found(&writer.history, Invariant::I8);
}

/// A history in which the upstream ended a turn so, and its client was told that.
fn told(outcome: &str, told: &[&str]) -> History {
    let (mut writer, mut talk) = clean();
    writer.history.conduct = Conduct::Upstream;
    writer.failed(&mut talk, outcome, told);
    writer.connect(&talk);
    writer.turn(&mut talk);
    writer.history
}

#[test]
fn a_failure_of_the_upstream_that_is_told_once_and_in_its_words_is_no_violation() {
    for (outcome, word) in ENDS {
        judge(&told(outcome, &[word])).assert_holds();
    }
}

#[test]
fn a_failure_of_the_upstream_that_is_told_in_other_words_or_twice_or_not_is_found() {
    for (outcome, word) in ENDS {
        for (_, other) in ENDS {
            let fits = ENDS.contains(&(outcome, other));
            assert_eq!(
                judge(&told(outcome, &[other])).broken().is_empty(),
                fits,
                "{outcome} {other}"
            );
        }
        found(&told(outcome, &[word, word]), Invariant::I3);
        found(&told(outcome, &[]), Invariant::I3);
    }
}

#[test]
fn a_turn_that_the_upstream_broke_off_and_that_is_told_as_answered_is_found() {
    for outcome in ["closed", "aged", "hung", "failed:server_error"] {
        let (mut writer, _) = clean();
        writer.history.conduct = Conduct::Upstream;
        writer.history.creates.last_mut().unwrap().outcome = outcome.to_owned();
        found(&writer.history, Invariant::I3);
    }
}

#[test]
fn an_unknown_outcome_of_a_turn_that_the_upstream_ended_is_found() {
    for outcome in [COMPLETED, "failed:server_error"] {
        found(&told(outcome, &[UNKNOWN]), Invariant::I5);
    }
}

#[test]
fn a_turn_that_was_broken_off_by_no_upstream_is_found_also_where_that_fails_turns() {
    found(&told("cancelled", &[UNKNOWN]), Invariant::I5);
    let mut history = told("closed", &[UNKNOWN]);
    history.conduct = Conduct::Planned;
    found(&history, Invariant::I5);
}

/// A turn of which nothing was seen runs so often; all runs but the last are broken off.
fn unseen(outcome: &str, stored: bool, runs: usize) -> History {
    let (mut writer, mut talk) = clean();
    writer.history.conduct = Conduct::Upstream;
    let text = "broken off before anything was seen";
    writer.see(&talk, 0, What::Sent { text: text.to_owned(), stored });
    for _ in 1..runs {
        writer.dispatch(&talk, text, outcome);
        writer.connect(&talk);
    }
    writer.answer(&mut talk, 0, text);
    writer.history
}

#[test]
fn a_turn_that_its_upstream_broke_off_unseen_runs_once_more_and_no_more() {
    for outcome in ["closed", "aged", "hung"] {
        judge(&unseen(outcome, false, 2)).assert_holds();
        found(&unseen(outcome, false, 3), Invariant::I2);
        found(&unseen(outcome, true, 2), Invariant::I2);
    }
    found(&unseen("failed:server_error", false, 2), Invariant::I2);
}

#[test]
fn a_turn_that_its_upstream_broke_off_unseen_and_of_which_nothing_is_told_is_found() {
    for runs in 1..3 {
        let (mut writer, talk) = clean();
        writer.history.conduct = Conduct::Upstream;
        let text = "broken off, and nothing told";
        writer.send(&talk, 0, text);
        for _ in 0..runs {
            writer.dispatch(&talk, text, "closed");
            writer.connect(&talk);
        }
        writer.see(&talk, 0, What::Cut { how: "1012".to_owned() });
        found(&writer.history, Invariant::I3);
    }
}

#[test]
fn a_turn_that_came_to_no_upstream_may_be_unknown_where_it_is_stored_and_connections_end() {
    let unheard = |conduct, stored| {
        let (mut writer, talk) = clean();
        writer.history.conduct = conduct;
        writer.see(&talk, 0, What::Sent { text: "sent as it ended".to_owned(), stored });
        writer.error(&talk, 0, UNKNOWN);
        writer.history
    };
    judge(&unheard(Conduct::Upstream, true)).assert_holds();
    found(&unheard(Conduct::Upstream, false), Invariant::I5);
    found(&unheard(Conduct::Planned, true), Invariant::I5);
}

#[test]
fn a_turn_that_was_seen_runs_again_only_where_its_client_was_told_to_ask_anew() {
    let anew = |word| {
        let (mut writer, mut talk) = clean();
        writer.history.conduct = Conduct::Upstream;
        let text = "met the age of its connection";
        writer.send(&talk, 0, text);
        let response = writer.dispatch(&talk, text, "aged");
        writer.events(&talk, 0, &response);
        writer.error(&talk, 0, word);
        writer.connect(&talk);
        writer.send(&talk, 1, text);
        writer.answer(&mut talk, 1, text);
        writer.history
    };
    judge(&anew(TOO_OLD)).assert_holds();
    found(&anew(UNKNOWN), Invariant::I2);
}

#[test]
fn a_ledger_that_does_not_know_what_the_upstream_ended_is_found() {
    let unknown = |outcome, word, named| {
        let mut history = told(outcome, &[word]);
        let create = history.creates.iter().rfind(|it| it.outcome == outcome);
        let response = create.and_then(|it| it.response.clone()).filter(|_| named);
        let row = |state: &str| json!({ "state": state, "response": response });
        let (before, after) = (row("VISIBLE"), row("UNKNOWN"));
        history.changes.push(Change { order: 9_999_999, table: Table::Turn, before, after });
        history
    };
    for named in [true, false] {
        judge(&unknown("closed", UNKNOWN, named)).assert_holds();
        let failed = "failed:server_error";
        found(&unknown(failed, failed, named), Invariant::I5);
    }
}

/// What befalls a session next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Turn,
    Handoff,
    /// The owner dies between two turns.
    Takeover,
    /// The owner dies before anything of a turn was seen, and it is run again.
    RunAgain,
    /// The owner dies in mid-turn.
    Unknown,
    /// The client loses its socket in mid-turn and asks again at once.
    Resent,
}

proptest! {
    #[test]
    fn whatever_a_correct_ring_goes_through_is_no_violation(
        steps in prop::collection::vec((0_usize..4, prop_oneof![
            4 => Just(Step::Turn),
            2 => Just(Step::Handoff),
            1 => Just(Step::Takeover),
            1 => Just(Step::RunAgain),
            1 => Just(Step::Unknown),
            1 => Just(Step::Resent),
        ]), 0..60),
    ) {
        let mut writer = Writer::new(Conduct::Losses);
        let mut talks: Vec<_> = (0..4).map(|n| writer.begin(&format!("talk-{n}"))).collect();
        for (at, step) in steps {
            let talk = &mut talks[at];
            let text = format!("{} turn {}", talk.key, talk.turn);
            match step {
                Step::Turn => writer.turn(talk),
                Step::Handoff => writer.pass(talk, true),
                Step::Takeover => writer.pass(talk, false),
                Step::RunAgain => {
                    writer.send(talk, 0, &text);
                    writer.dispatch(talk, &text, "cancelled");
                    writer.pass(talk, false);
                    writer.answer(talk, 0, &text);
                }
                Step::Unknown => {
                    writer.send(talk, 0, &text);
                    let response = writer.dispatch(talk, &text, "cancelled");
                    writer.events(talk, 0, &response);
                    writer.error(talk, 0, UNKNOWN);
                    talk.turn += 1;
                    writer.pass(talk, false);
                }
                Step::Resent => {
                    writer.send(talk, 0, &text);
                    let response = writer.dispatch(talk, &text, "completed");
                    writer.events(talk, 0, &response);
                    writer.see(talk, 0, What::Cut { how: "reset".to_owned() });
                    writer.send(talk, 1, &text);
                    writer.answer(talk, 1, &text);
                }
            }
        }
        let verdict = judge(&writer.history);
        prop_assert!(verdict.broken().is_empty(), "\n{}", verdict);
    }
}
