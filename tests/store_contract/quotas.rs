//! Promises about what one principal may use on all nodes: never more, whatever is asked at once.

use std::time::Duration;

use ringspan::{
    ids::{Incarnation, Principal},
    store::{Claim, Claimed, Pace, TurnAdmission, TurnWish},
};

use crate::ring::{ALICE, BOB, OVER, Ring, claim};

fn limited(me: Incarnation, key: &str, limit: u32) -> Claim {
    Claim { limit: Some(limit), ..claim(me, key, None) }
}

fn wish(me: Incarnation, running: u32, at_once: u32) -> TurnWish {
    TurnWish { principal: ALICE, me, running, at_once: Some(at_once), pace: None }
}

pub async fn a_principal_has_as_many_sessions_as_it_may_and_no_more(ring: Ring) {
    let [one, two] = [ring.node("one").await, ring.node("two").await];
    let a = ring.store.claim(&limited(one, "a", 2)).await.unwrap();
    let Claimed::Won { epoch, .. } = a else { panic!("{a:?}") };
    assert!(matches!(ring.store.claim(&limited(two, "b", 2)).await.unwrap(), Claimed::Won { .. }));
    assert_eq!(ring.other.claim(&limited(one, "c", 2)).await.unwrap(), Claimed::Full);
    let others = Claim { principal: BOB, ..limited(one, "bobs", 2) };
    assert!(matches!(ring.store.claim(&others).await.unwrap(), Claimed::Won { .. }));
    // One that ends leaves its place, and its own place is no obstacle to itself.
    assert!(ring.store.release(crate::ring::id("a"), one, epoch).await.unwrap());
    let c = ring.store.claim(&limited(one, "c", 2)).await.unwrap();
    let Claimed::Won { epoch, .. } = c else { panic!("{c:?}") };
    let again = Claim { seen: Some(epoch), ..limited(one, "c", 2) };
    assert!(matches!(ring.store.claim(&again).await.unwrap(), Claimed::Won { .. }));
}

/// Principals for whom the same race is run: one alone may happen to be won by its order.
const ROUNDS: u8 = 8;

pub async fn of_many_claims_for_the_last_places_no_more_win_than_there_are(ring: Ring) {
    let nodes = [ring.node("one").await, ring.node("two").await];
    for round in 0..ROUNDS {
        let tasks: Vec<_> = (0..24)
            .map(|n| {
                let store = if n % 2 == 0 { &ring.store } else { &ring.other }.clone();
                let claim = limited(nodes[n % 2], &format!("{round}-{n}"), 5);
                let claim = Claim { principal: Principal([round; 16]), ..claim };
                tokio::spawn(async move { store.claim(&claim).await.unwrap() })
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            match task.await.unwrap() {
                Claimed::Won { .. } => won += 1,
                Claimed::Full => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(won, 5, "round {round}");
    }
}

pub async fn sessions_of_the_dead_leave_room_and_count_again_when_they_are_taken_over(ring: Ring) {
    let [one, two] = [ring.node("one").await, ring.node("two").await];
    let Claimed::Won { epoch, .. } = ring.store.claim(&limited(one, "a", 1)).await.unwrap() else {
        panic!("the first")
    };
    assert_eq!(ring.store.claim(&limited(two, "b", 1)).await.unwrap(), Claimed::Full);
    ring.kill(one).await;
    assert!(matches!(ring.store.claim(&limited(two, "b", 1)).await.unwrap(), Claimed::Won { .. }));
    let orphan = Claim { seen: Some(epoch), ..limited(two, "a", 1) };
    assert_eq!(ring.store.claim(&orphan).await.unwrap(), Claimed::Full);
    let orphan = Claim { limit: Some(2), ..orphan };
    assert!(matches!(ring.store.claim(&orphan).await.unwrap(), Claimed::Won { .. }));
}

pub async fn a_full_principal_still_learns_who_owns_its_sessions(ring: Ring) {
    let [one, two] = [ring.node("one").await, ring.node("two").await];
    ring.win(one, "a", None).await;
    ring.win(one, "b", None).await;
    match ring.store.claim(&limited(two, "a", 1)).await.unwrap() {
        Claimed::Lost(row) => assert_eq!(row.live_owner(), Some(one)),
        other => panic!("{other:?}"),
    }
}

pub async fn turns_of_all_nodes_count_together(ring: Ring) {
    use TurnAdmission::{Admitted, TooMany};
    let [one, two] = [ring.node("one").await, ring.node("two").await];
    for running in 1..=2 {
        assert_eq!(ring.store.admit_turn(&wish(one, running, 3)).await.unwrap(), Admitted);
    }
    assert_eq!(ring.other.admit_turn(&wish(two, 1, 3)).await.unwrap(), Admitted);
    assert_eq!(ring.other.admit_turn(&wish(two, 2, 3)).await.unwrap(), TooMany);
    assert_eq!(ring.store.admit_turn(&wish(one, 3, 3)).await.unwrap(), TooMany);
    let bobs = TurnWish { principal: BOB, ..wish(two, 3, 3) };
    assert_eq!(ring.store.admit_turn(&bobs).await.unwrap(), Admitted);
    ring.store.keep_turns(one, ALICE, 0).await.unwrap();
    assert_eq!(ring.other.admit_turn(&wish(two, 3, 3)).await.unwrap(), Admitted);
    ring.other.keep_turns(two, ALICE, 1).await.unwrap();
    assert_eq!(ring.store.admit_turn(&wish(one, 2, 3)).await.unwrap(), Admitted);
    assert_eq!(ring.store.admit_turn(&wish(one, 3, 3)).await.unwrap(), TooMany);
}

pub async fn of_many_turns_for_the_last_places_no_more_are_admitted_than_there_are(ring: Ring) {
    let mut nodes = Vec::new();
    for n in 0..16 {
        nodes.push(ring.node(&format!("n{n}")).await);
    }
    for round in 0..ROUNDS {
        let mut tasks = Vec::new();
        for (n, me) in nodes.iter().enumerate() {
            let store = if n % 2 == 0 { &ring.store } else { &ring.other }.clone();
            let wish = TurnWish { principal: Principal([round; 16]), ..wish(*me, 1, 4) };
            tasks.push(tokio::spawn(async move { store.admit_turn(&wish).await.unwrap() }));
        }
        let mut admitted = 0;
        for task in tasks {
            admitted += u32::from(task.await.unwrap() == TurnAdmission::Admitted);
        }
        assert_eq!(admitted, 4, "round {round}");
    }
}

pub async fn turns_of_a_dead_node_count_no_more_and_are_swept(ring: Ring) {
    let [one, two] = [ring.node("one").await, ring.node("two").await];
    assert_eq!(ring.store.admit_turn(&wish(one, 2, 2)).await.unwrap(), TurnAdmission::Admitted);
    assert_eq!(ring.store.admit_turn(&wish(two, 1, 2)).await.unwrap(), TurnAdmission::TooMany);
    ring.kill(one).await;
    assert_eq!(ring.store.admit_turn(&wish(two, 2, 2)).await.unwrap(), TurnAdmission::Admitted);
    // The member and its share; the living one's share stays.
    assert_eq!(ring.sweep(OVER, 100).await, 2);
    let three = ring.node("three").await;
    assert_eq!(ring.store.admit_turn(&wish(three, 1, 2)).await.unwrap(), TurnAdmission::TooMany);
}

pub async fn turns_begin_at_their_pace_after_a_burst(ring: Ring) {
    let me = ring.node("one").await;
    let pace = Pace { interval: Duration::from_secs(3), burst: 3 };
    let wish = TurnWish { principal: ALICE, me, running: 1, at_once: None, pace: Some(pace) };
    for _ in 0..3 {
        assert_eq!(ring.store.admit_turn(&wish).await.unwrap(), TurnAdmission::Admitted);
    }
    let wait = match ring.other.admit_turn(&wish).await.unwrap() {
        TurnAdmission::TooFast(wait) => wait,
        other => panic!("{other:?}"),
    };
    assert!(wait <= pace.interval && wait > Duration::ZERO, "{wait:?}");
    tokio::time::sleep(wait + Duration::from_millis(5)).await;
    assert_eq!(ring.store.admit_turn(&wish).await.unwrap(), TurnAdmission::Admitted);
}

pub async fn of_many_turns_at_once_no_more_than_the_burst_are_admitted(ring: Ring) {
    let me = ring.node("one").await;
    let pace = Pace { interval: Duration::from_mins(10), burst: 5 };
    let tasks: Vec<_> = (0..24)
        .map(|n| {
            let store = if n % 2 == 0 { &ring.store } else { &ring.other }.clone();
            let wish =
                TurnWish { principal: ALICE, me, running: 1, at_once: None, pace: Some(pace) };
            tokio::spawn(async move { store.admit_turn(&wish).await.unwrap() })
        })
        .collect();
    let mut admitted = 0;
    for task in tasks {
        admitted += u32::from(task.await.unwrap() == TurnAdmission::Admitted);
    }
    assert_eq!(admitted, 5);
}
