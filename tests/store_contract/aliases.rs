//! Promises about aliases and about what is swept.

use std::time::Duration;

use ringspan::{
    ids::{Principal, SessionId},
    store::{Alias, AliasKind, Began, Cursor, NewTurn, SessionState, Sweep, TurnKey},
};

use crate::ring::{ALICE, BOB, LONG, Ring, id};

const SECOND: Duration = Duration::from_secs(1);

fn alias(principal: Principal, kind: AliasKind, byte: u8, session: SessionId) -> Alias {
    Alias { principal, kind, digest: [byte; 16], session }
}

pub async fn an_alias_is_seen_by_its_principal_alone(ring: Ring) {
    let mine = alias(ALICE, AliasKind::Response, 1, id("k"));
    ring.store.put_aliases(&[mine]).await.unwrap();
    let look = async |who, kind| ring.other.alias(who, kind, [1; 16]).await.unwrap();
    assert_eq!(look(ALICE, AliasKind::Response).await, Some(id("k")));
    assert_eq!(look(BOB, AliasKind::Response).await, None);
    assert_eq!(look(ALICE, AliasKind::TurnState).await, None);

    let theirs = alias(BOB, AliasKind::Response, 1, id("bob's"));
    ring.store.put_aliases(&[theirs]).await.unwrap();
    assert_eq!(look(ALICE, AliasKind::Response).await, Some(id("k")), "not overwritten");
    assert_eq!(look(BOB, AliasKind::Response).await, Some(id("bob's")));
}

pub async fn an_alias_moves_to_the_newer_session(ring: Ring) {
    for key in ["old", "new"] {
        let one = alias(ALICE, AliasKind::TurnState, 1, id(key));
        ring.store.put_aliases(&[one]).await.unwrap();
    }
    let found = ring.other.alias(ALICE, AliasKind::TurnState, [1; 16]).await;
    assert_eq!(found, Ok(Some(id("new"))));
}

pub async fn the_last_of_equal_aliases_in_a_batch_counts(ring: Ring) {
    ring.store.put_aliases(&[]).await.unwrap();
    let batch = ["a", "b", "c"].map(|key| alias(ALICE, AliasKind::Response, 1, id(key)));
    ring.store.put_aliases(&batch).await.unwrap();
    let found = ring.other.alias(ALICE, AliasKind::Response, [1; 16]).await;
    assert_eq!(found, Ok(Some(id("c"))));
}

pub async fn a_sweep_takes_what_ended_and_spares_what_is_named(ring: Ring) {
    let (me, dead) = (ring.node("n1").await, ring.node("dead").await);
    let closed = ring.win(me, "closed", None).await;
    ring.win(me, "live", None).await;
    ring.win(dead, "orphan", None).await;
    assert!(ring.store.release(id("closed"), me, closed).await.unwrap());
    ring.kill(dead).await;
    let gone = ring.node("gone").await;
    assert_eq!(ring.store.leave(gone).await, Ok(0));
    let aliases = [(1, "closed"), (2, "live"), (3, "orphan"), (4, "never was")]
        .map(|(byte, key)| alias(ALICE, AliasKind::Response, byte, id(key)));
    ring.store.put_aliases(&aliases).await.unwrap();

    assert_eq!(ring.sweep(LONG, 100).await, 0, "nothing is that old");
    assert_eq!(ring.sweep(Duration::ZERO, 1).await, 4, "one of each kind");
    assert_eq!(ring.store.session(id("closed")).await, Ok(None));
    let orphan = ring.row("orphan").await;
    assert_eq!((orphan.owner, orphan.state), (None, SessionState::Closed), "a fence for a while");

    // What was closed goes, its alias, the other alias, and the member that it named.
    assert_eq!(ring.sweep(Duration::ZERO, 100).await, 4);
    assert_eq!(ring.sweep(Duration::ZERO, 100).await, 0);
    assert_eq!(ring.store.session(id("orphan")).await, Ok(None));
    assert_eq!(ring.row("live").await.owner, Some(me));
    for (byte, found) in [(1, None), (2, Some("live")), (3, None), (4, None)] {
        let alias = ring.other.alias(ALICE, AliasKind::Response, [byte; 16]).await.unwrap();
        assert_eq!(alias, found.map(id));
    }
}

pub async fn an_epoch_outlives_the_row_that_held_it(ring: Ring) {
    let me = ring.node("n1").await;
    let first = ring.win(me, "k", None).await;
    assert!(ring.store.release(id("k"), me, first).await.unwrap());
    assert_eq!(ring.sweep(Duration::ZERO, 100).await, 1);
    let second = ring.win(me, "k", Some(first)).await;
    assert!(second > first);
}

pub async fn a_sweep_gets_past_aliases_that_have_to_stay(ring: Ring) {
    let me = ring.node("n1").await;
    ring.win(me, "live", None).await;
    for (bytes, key) in [(0..7, "live"), (7..9, "never was"), (9..12, "live")] {
        let aliases: Vec<_> =
            bytes.map(|byte| alias(ALICE, AliasKind::Response, byte, id(key))).collect();
        ring.store.put_aliases(&aliases).await.unwrap();
    }
    let (mut from, mut rows, mut steps) = (Cursor::START, 0, 0);
    loop {
        let swept = ring.other.sweep(Sweep::Aliases, Duration::ZERO, 2, from).await.unwrap();
        (rows, steps) = (rows + swept.rows, steps + 1);
        assert!(swept.rows <= 2 && steps < 10, "step {steps}: {swept:?}");
        let Some(next) = swept.next else { break };
        from = next;
    }
    assert_eq!(rows, 2);
    for byte in 0..12 {
        let alias = ring.other.alias(ALICE, AliasKind::Response, [byte; 16]).await.unwrap();
        assert_eq!(alias.is_some(), !(7..9).contains(&byte), "{byte}");
    }
}

pub async fn what_a_keyed_turn_was_found_by_stays_as_long_as_the_turn(ring: Ring) {
    let me = ring.node("n1").await;
    for (byte, name, key) in [(1, "keyed", Some("a")), (2, "plain", None)] {
        let epoch = ring.win(me, name, None).await;
        let key = key.map(TurnKey::of);
        let turn =
            NewTurn { session: id(name), epoch, no: 1, key, request: [1; 16], repeatable: false };
        assert_eq!(ring.store.begin_turns(me, &[turn]).await.unwrap(), [Began::Begun]);
        let one = alias(ALICE, AliasKind::Response, byte, id(name));
        ring.store.put_aliases(&[one]).await.unwrap();
        assert!(ring.store.release(id(name), me, epoch).await.unwrap());
    }
    let found = async |byte| ring.other.alias(ALICE, AliasKind::Response, [byte; 16]).await;
    let sweep =
        async |what| ring.other.sweep(what, Duration::ZERO, 100, Cursor::START).await.unwrap().rows;
    assert_eq!(sweep(Sweep::Aliases).await, 1);
    assert_eq!((found(1).await, found(2).await), (Ok(Some(id("keyed"))), Ok(None)));
    assert_eq!(sweep(Sweep::Turns).await, 2);
    assert_eq!(sweep(Sweep::Aliases).await, 1);
    assert_eq!(found(1).await, Ok(None));
}

pub async fn a_session_that_is_retired_is_swept_sooner(ring: Ring) {
    let (me, other) = (ring.node("n1").await, ring.node("n2").await);
    let first = ring.win(me, "k", None).await;
    let second = ring.win(me, "k", Some(first)).await;
    let retire = async |who, epoch| ring.other.retire(id("k"), who, epoch, SECOND).await.unwrap();
    assert!(!retire(me, first).await, "an earlier epoch");
    assert!(!retire(other, second).await, "another's");
    assert_eq!(ring.row("k").await.owner, Some(me));
    assert!(retire(me, second).await);
    assert_eq!(ring.row("k").await.state, SessionState::Closed, "a fence all the same");
    assert_eq!(ring.sweep(LONG, 100).await, 0);
    assert_eq!(ring.sweep(SECOND, 100).await, 1);
    assert!(ring.win(other, "k", None).await > second);
}
