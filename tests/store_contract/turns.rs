//! Promises about the ledger of turns: nothing is begun without the session, nothing that
//! ended ends again, and a key names one turn.

use std::{sync::Arc, time::Duration};

use ringspan::{
    ids::{Epoch, Incarnation},
    store::{Began, Cursor, NewTurn, Sweep, Transferred, TurnKey, TurnMark, TurnRow, TurnState},
};

use crate::ring::{LONG, Ring, id};

/// A turn of session "k" that stores something.
fn turn(epoch: Epoch, no: u64, key: Option<&str>) -> NewTurn {
    let key = key.map(TurnKey::of);
    NewTurn { session: id("k"), epoch, no, key, request: [1; 16], repeatable: false }
}

fn mark(epoch: Epoch, no: u64, state: TurnState, response: Option<&str>) -> TurnMark {
    TurnMark { session: id("k"), epoch, no, state, response: response.map(Into::into) }
}

async fn begin(ring: &Ring, me: Incarnation, turn: NewTurn) -> Began {
    ring.store.begin_turns(me, &[turn]).await.unwrap().remove(0)
}

async fn set(ring: &Ring, mark: TurnMark) -> bool {
    ring.store.mark_turns(&[mark]).await.unwrap() > 0
}

async fn of_key(ring: &Ring, key: &str) -> Option<TurnRow> {
    ring.other.turn_by_key(id("k"), TurnKey::of(key)).await.unwrap()
}

async fn state(ring: &Ring, key: &str) -> Option<TurnState> {
    of_key(ring, key).await.map(|row| row.state)
}

pub async fn a_turn_is_begun_by_the_owner_in_its_epoch_alone(ring: Ring) {
    let (me, other) = (ring.node("n1").await, ring.node("n2").await);
    let stale = ring.win(me, "k", None).await;
    let epoch = ring.win(me, "k", Some(stale)).await;
    for (who, epoch) in [(me, stale), (other, epoch), (me, Epoch(epoch.0 + 1))] {
        assert_eq!(begin(&ring, who, turn(epoch, 1, Some("a"))).await, Began::Fenced);
    }
    let nowhere = NewTurn { session: id("nothing"), ..turn(epoch, 1, None) };
    assert_eq!(begin(&ring, me, nowhere).await, Began::Fenced);
    assert_eq!(state(&ring, "a").await, None, "a refusal writes nothing");
    assert_eq!(begin(&ring, me, turn(epoch, 1, Some("a"))).await, Began::Begun);
    assert_eq!(state(&ring, "a").await, Some(TurnState::Dispatched));

    assert!(ring.store.quiesce(id("k"), me, epoch).await.unwrap());
    assert_eq!(begin(&ring, me, turn(epoch, 2, None)).await, Began::Fenced, "it is leaving");
}

pub async fn a_batch_is_answered_in_its_order(ring: Ring) {
    let me = ring.node("n1").await;
    let epoch = ring.win(me, "k", None).await;
    let theirs = NewTurn { session: id("theirs"), ..turn(epoch, 1, None) };
    let first = turn(epoch, 7, Some("a"));
    let again = turn(epoch, 8, Some("a"));
    let began = ring.store.begin_turns(me, &[theirs, first, again, turn(epoch, 9, None)]).await;
    let began = began.unwrap();
    assert_eq!((&began[0], &began[1], &began[3]), (&Began::Fenced, &Began::Begun, &Began::Begun));
    assert!(matches!(&began[2], Began::Duplicate(row) if row.no == 7), "{began:?}");
    assert_eq!(ring.store.begin_turns(me, &[]).await, Ok(Vec::new()));
}

pub async fn a_key_names_one_turn_of_its_session(ring: Ring) {
    let me = ring.node("n1").await;
    let epoch = ring.win(me, "k", None).await;
    let elsewhere = ring.win(me, "elsewhere", None).await;
    assert_eq!(begin(&ring, me, turn(epoch, 1, Some("a"))).await, Began::Begun);
    assert!(set(&ring, mark(epoch, 1, TurnState::Visible, Some("resp_1"))).await);
    let Began::Duplicate(row) = begin(&ring, me, turn(epoch, 2, Some("a"))).await else {
        panic!("begun twice");
    };
    assert_eq!((row.no, row.epoch, row.state), (1, epoch, TurnState::Visible));
    assert_eq!((row.response.as_deref(), row.request), (Some("resp_1"), [1; 16]));
    let of_another = NewTurn { session: id("elsewhere"), ..turn(elsewhere, 1, Some("a")) };
    assert_eq!(begin(&ring, me, of_another).await, Began::Begun);
}

pub async fn a_turn_that_ended_stays_as_it_ended(ring: Ring) {
    use TurnState::{Done, Failed, Unknown, Visible};

    let me = ring.node("n1").await;
    let epoch = ring.win(me, "k", None).await;
    for (no, end) in [(1, Done), (2, Failed), (3, Unknown)] {
        let key = format!("{no}");
        assert_eq!(begin(&ring, me, turn(epoch, no, Some(&key))).await, Began::Begun);
        assert!(!set(&ring, mark(Epoch(epoch.0 + 1), no, end, None)).await, "another epoch");
        assert!(set(&ring, mark(epoch, no, Visible, Some("resp"))).await);
        assert!(set(&ring, mark(epoch, no, end, None)).await);
        for late in [Visible, Done, Failed, Unknown] {
            assert!(!set(&ring, mark(epoch, no, late, Some("late"))).await);
        }
        let row = of_key(&ring, &key).await.unwrap();
        assert_eq!((row.state, row.response.as_deref()), (end, Some("resp")));
        let again = begin(&ring, me, turn(epoch, no + 10, Some(&key))).await;
        assert!(matches!(again, Began::Duplicate(_)), "{again:?}");
    }
    assert!(!set(&ring, mark(epoch, 99, Done, None)).await, "no such turn");
}

pub async fn a_takeover_makes_open_turns_unknown(ring: Ring) {
    let (dead, heir) = (ring.node("dead").await, ring.node("heir").await);
    let epoch = ring.win(dead, "k", None).await;
    for (no, key) in [(1, "sent"), (2, "seen"), (3, "done")] {
        assert_eq!(begin(&ring, dead, turn(epoch, no, Some(key))).await, Began::Begun);
    }
    assert!(set(&ring, mark(epoch, 2, TurnState::Visible, Some("resp_2"))).await);
    assert!(set(&ring, mark(epoch, 3, TurnState::Done, Some("resp_3"))).await);
    ring.kill(dead).await;
    let next = ring.win(heir, "k", Some(epoch)).await;
    for (key, end) in
        [("sent", TurnState::Unknown), ("seen", TurnState::Unknown), ("done", TurnState::Done)]
    {
        assert_eq!(state(&ring, key).await, Some(end), "{key}");
    }
    assert!(!set(&ring, mark(epoch, 1, TurnState::Done, None)).await, "a late word is not heard");
    assert_eq!(begin(&ring, dead, turn(epoch, 4, None)).await, Began::Fenced);
    for key in ["sent", "seen", "done"] {
        let again = begin(&ring, heir, turn(next, 1, Some(key))).await;
        assert!(matches!(again, Began::Duplicate(_)), "{key}: {again:?}");
    }
}

pub async fn only_what_stores_nothing_and_named_no_response_runs_again_by_its_key(ring: Ring) {
    let (dead, heir) = (ring.node("dead").await, ring.node("heir").await);
    let epoch = ring.win(dead, "k", None).await;
    let repeatable = |turn: NewTurn| NewTurn { repeatable: true, ..turn };
    for (no, key) in [(1, "sent"), (2, "seen")] {
        let turn = repeatable(turn(epoch, no, Some(key)));
        assert_eq!(begin(&ring, dead, turn).await, Began::Begun);
    }
    assert!(set(&ring, mark(epoch, 2, TurnState::Visible, Some("resp_2"))).await);
    let running = begin(&ring, dead, repeatable(turn(epoch, 3, Some("sent")))).await;
    assert!(matches!(running, Began::Duplicate(_)), "it runs: {running:?}");
    ring.kill(dead).await;
    let next = ring.win(heir, "k", Some(epoch)).await;

    let other = NewTurn { request: [2; 16], ..repeatable(turn(next, 1, Some("sent"))) };
    assert!(matches!(begin(&ring, heir, other).await, Began::Duplicate(_)), "another request");
    let stored = turn(next, 1, Some("sent"));
    assert!(matches!(begin(&ring, heir, stored).await, Began::Duplicate(_)), "it stores");
    let seen = repeatable(turn(next, 1, Some("seen")));
    assert!(matches!(begin(&ring, heir, seen).await, Began::Duplicate(_)), "it was seen");

    let again = repeatable(turn(next, 5, Some("sent")));
    assert_eq!(begin(&ring, heir, again.clone()).await, Began::Begun);
    let row = of_key(&ring, "sent").await.unwrap();
    assert_eq!((row.epoch, row.no, row.state), (next, 5, TurnState::Dispatched));
    assert!(!set(&ring, mark(epoch, 1, TurnState::Done, None)).await, "the first run is over");
    assert_eq!(begin(&ring, heir, again).await, Began::Begun, "dispatched again by its number");
}

pub async fn what_failed_before_it_named_a_response_runs_again_by_its_key(ring: Ring) {
    let me = ring.node("n1").await;
    let epoch = ring.win(me, "k", None).await;
    assert_eq!(begin(&ring, me, turn(epoch, 1, Some("a"))).await, Began::Begun);
    assert!(set(&ring, mark(epoch, 1, TurnState::Failed, None)).await);
    let other = NewTurn { request: [2; 16], ..turn(epoch, 2, Some("a")) };
    assert!(matches!(begin(&ring, me, other).await, Began::Duplicate(_)), "another request");
    assert_eq!(begin(&ring, me, turn(epoch, 2, Some("a"))).await, Began::Begun);
    let row = of_key(&ring, "a").await.unwrap();
    assert_eq!((row.no, row.state), (2, TurnState::Dispatched));
}

pub async fn a_transfer_waits_for_open_turns_unless_it_is_forced(ring: Ring) {
    let (me, heir) = (ring.node("n1").await, ring.node("heir").await);
    let epoch = ring.win(me, "k", None).await;
    assert_eq!(begin(&ring, me, turn(epoch, 1, Some("a"))).await, Began::Begun);
    assert!(ring.store.quiesce(id("k"), me, epoch).await.unwrap());
    for _ in 0..2 {
        let refused = ring.store.transfer(id("k"), me, epoch, heir, false).await;
        assert_eq!(refused, Ok(Transferred::TurnsRunning));
        set(&ring, mark(epoch, 1, TurnState::Visible, Some("r"))).await;
    }
    assert_eq!(ring.row("k").await.owner, Some(me), "a refusal is not lost ownership");
    let moved = ring.store.transfer(id("k"), me, epoch, heir, true).await.unwrap();
    assert!(matches!(moved, Transferred::Moved(_)), "{moved:?}");
    assert_eq!(state(&ring, "a").await, Some(TurnState::Unknown));
}

pub async fn a_transfer_moves_a_session_whose_turns_ended(ring: Ring) {
    let (me, heir) = (ring.node("n1").await, ring.node("heir").await);
    let epoch = ring.win(me, "k", None).await;
    assert_eq!(begin(&ring, me, turn(epoch, 1, Some("a"))).await, Began::Begun);
    assert!(set(&ring, mark(epoch, 1, TurnState::Done, Some("r"))).await);
    assert!(ring.store.quiesce(id("k"), me, epoch).await.unwrap());
    let moved = ring.store.transfer(id("k"), me, epoch, heir, false).await.unwrap();
    assert!(matches!(moved, Transferred::Moved(_)), "{moved:?}");
    assert_eq!(state(&ring, "a").await, Some(TurnState::Done));
}

async fn swept(ring: &Ring, age: Duration, limit: u32) -> u64 {
    ring.other.sweep(Sweep::Turns, age, limit, Cursor::START).await.unwrap().rows
}

pub async fn turns_go_with_their_session_and_with_time(ring: Ring) {
    let me = ring.node("n1").await;
    let epoch = ring.win(me, "k", None).await;
    for (no, key) in [(1, "a"), (2, "b"), (3, "c")] {
        assert_eq!(begin(&ring, me, turn(epoch, no, Some(key))).await, Began::Begun);
    }
    assert_eq!(swept(&ring, LONG, 100).await, 0, "nothing is that old");
    assert_eq!(swept(&ring, Duration::ZERO, 2).await, 2);
    let left = [of_key(&ring, "a").await, of_key(&ring, "b").await, of_key(&ring, "c").await];
    assert_eq!(left.iter().flatten().count(), 1);
    assert!(ring.store.release(id("k"), me, epoch).await.unwrap());
    assert_eq!(ring.sweep(Duration::ZERO, 100).await, 1);
    for key in ["a", "b", "c"] {
        assert_eq!(of_key(&ring, key).await, None);
    }
}

pub async fn a_turn_begun_while_the_session_changes_hands_is_fenced_or_unknown(ring: Ring) {
    let me = ring.node("n1").await;
    let mut epoch = ring.win(me, "k", None).await;
    for round in 0..40 {
        let key = format!("{round}");
        let store = Arc::clone(&ring.other);
        let wish = turn(epoch, 1, Some(&key));
        let beginning = tokio::spawn(async move { store.begin_turns(me, &[wish]).await });
        epoch = ring.win(me, "k", Some(epoch)).await;
        let began = beginning.await.unwrap().unwrap().remove(0);
        let left = match began {
            Began::Begun => Some(TurnState::Unknown),
            Began::Fenced => None,
            Began::Duplicate(row) => panic!("{row:?}"),
        };
        assert_eq!(state(&ring, &key).await, left, "round {round}");
    }
}
