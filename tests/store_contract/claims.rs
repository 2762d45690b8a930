//! Promises about claims: one winner, growing epochs, no takeover from the living.

use std::{collections::BTreeSet, time::Duration};

use ringspan::{
    ids::{Epoch, Incarnation},
    store::{Claim, Claimed, SessionFilter, SessionState, StoreError},
};

use crate::ring::{ALICE, BOB, LONG, OVER, Ring, claim, id};

/// Lets all of them claim at once; answers who won and what the others were told.
async fn race(ring: &Ring, nodes: &[Incarnation], seen: Option<Epoch>) -> (Incarnation, Epoch) {
    let tasks: Vec<_> = nodes
        .iter()
        .enumerate()
        .map(|(n, me)| {
            let (me, store) = (*me, if n % 2 == 0 { &ring.store } else { &ring.other }.clone());
            tokio::spawn(async move { (me, store.claim(&claim(me, "k", seen)).await.unwrap()) })
        })
        .collect();
    let (mut won, mut lost) = (Vec::new(), Vec::new());
    for task in tasks {
        match task.await.unwrap() {
            (me, Claimed::Won { epoch, .. }) => won.push((me, epoch)),
            (_, Claimed::Lost(row)) => lost.push((row.owner.unwrap(), row.epoch)),
            (_, other) => panic!("nobody is refused here: {other:?}"),
        }
    }
    assert_eq!(won.len(), 1, "one winner");
    assert!(lost.iter().all(|told| *told == won[0]), "losers learn who won: {won:?} {lost:?}");
    won[0]
}

pub async fn of_many_claimants_of_a_new_session_one_wins(ring: Ring) {
    let mut nodes = Vec::new();
    for n in 0..8 {
        nodes.push(ring.node(&format!("n{n}")).await);
    }
    let (owner, epoch) = race(&ring, &nodes, None).await;
    let row = ring.row("k").await;
    assert_eq!((row.owner, row.epoch, row.state), (Some(owner), epoch, SessionState::Live));
}

pub async fn of_many_claimants_of_an_orphan_one_wins(ring: Ring) {
    let first = ring.node("first").await;
    let seen = ring.win(first, "k", None).await;
    let mut nodes = Vec::new();
    for n in 0..8 {
        nodes.push(ring.node(&format!("n{n}")).await);
    }
    ring.kill(first).await;
    let (owner, epoch) = race(&ring, &nodes, Some(seen)).await;
    assert!(epoch > seen);
    assert_eq!(ring.row("k").await.live_owner(), Some(owner));
}

pub async fn epochs_are_unique_and_grow(ring: Ring) {
    let me = ring.node("n1").await;
    let mut epochs = BTreeSet::new();
    let mut last = None;
    for round in 0..5 {
        for key in ["a", "b", "c"] {
            let seen = (round > 0).then_some(()).and(match ring.other.session(id(key)).await {
                Ok(row) => row.map(|row| row.epoch),
                Err(error) => panic!("{error}"),
            });
            let epoch = ring.win(me, key, seen).await;
            assert!(epochs.insert(epoch), "{epoch} twice");
            assert!(Some(epoch) > last, "{epoch} after {last:?}");
            last = Some(epoch);
        }
    }
}

pub async fn a_call_that_is_dropped_half_way_leaves_the_store_usable(ring: Ring) {
    let me = ring.node("n1").await;
    for n in 0..100 {
        let key = format!("k{n}");
        // From "not even begun" to "just answered", in steps.
        let after = Duration::from_micros(50 * n);
        let claim = claim(me, &key, None);
        let answered = tokio::time::timeout(after, ring.store.claim(&claim)).await;
        let row = ring.other.session(id(&key)).await.unwrap();
        if let Ok(won) = answered {
            let epoch = row.unwrap().epoch;
            assert_eq!(won, Ok(Claimed::Won { epoch, from: None }));
        }
    }
    ring.win(me, "after", None).await;
}

pub async fn a_claim_needs_the_epoch_that_the_row_has(ring: Ring) {
    let (old, heir) = (ring.node("old").await, ring.node("heir").await);
    let epoch = ring.win(old, "k", None).await;
    ring.kill(old).await;
    for stale in [None, Some(Epoch(0)), Some(Epoch(epoch.0 + 1))] {
        match ring.other.claim(&claim(heir, "k", stale)).await.unwrap() {
            Claimed::Lost(row) => assert_eq!((row.owner, row.epoch), (Some(old), epoch)),
            other => panic!("{other:?}"),
        }
    }
}

pub async fn a_takeover_waits_for_the_owners_death(ring: Ring) {
    let (old, heir) = (ring.node("old").await, ring.node("heir").await);
    let epoch = ring.win(old, "k", None).await;
    let attempt = claim(heir, "k", Some(epoch));
    assert!(matches!(ring.other.claim(&attempt).await, Ok(Claimed::Lost(_))), "alive");
    ring.store.heartbeat(old, OVER, 0).await.unwrap();
    assert!(matches!(ring.other.claim(&attempt).await, Ok(Claimed::Lost(_))), "expired only");
    ring.store.begin_drain(old).await.unwrap();
    match ring.other.claim(&attempt).await.unwrap() {
        Claimed::Lost(row) => {
            assert_eq!(row.live_owner(), Some(old));
            assert_eq!(row.owner_addr.as_deref(), Some("old.ring:50051"));
        }
        other => panic!("{other:?}"),
    }
    assert!(ring.lapse(old).await);
    assert_eq!(ring.row("k").await.live_owner(), None);
    match ring.other.claim(&attempt).await.unwrap() {
        Claimed::Won { epoch: next, from } => {
            assert!(next > epoch);
            assert_eq!(from, Some(old));
        }
        other => panic!("{other:?}"),
    }
}

pub async fn a_member_with_an_expired_lease_claims_nothing(ring: Ring) {
    let me = ring.node("paused").await;
    ring.store.heartbeat(me, OVER, 0).await.unwrap();
    assert_eq!(ring.store.claim(&claim(me, "k", None)).await, Ok(Claimed::Fenced));
    assert_eq!(ring.store.session(id("k")).await, Ok(None));
    ring.store.heartbeat(me, LONG, 0).await.unwrap();
    ring.win(me, "k", None).await;
    ring.kill(me).await;
    assert_eq!(ring.store.claim(&claim(me, "l", None)).await, Ok(Claimed::Fenced));
}

pub async fn a_draining_member_claims_nothing(ring: Ring) {
    let me = ring.node("n1").await;
    let epoch = ring.win(me, "k", None).await;
    ring.store.begin_drain(me).await.unwrap();
    assert_eq!(ring.store.claim(&claim(me, "new", None)).await, Ok(Claimed::Fenced));
    assert_eq!(ring.store.claim(&claim(me, "k", Some(epoch))).await, Ok(Claimed::Fenced));
    assert_eq!(ring.row("k").await.epoch, epoch);
}

pub async fn an_owner_reclaims_its_session_under_a_higher_epoch(ring: Ring) {
    let me = ring.node("n1").await;
    let first = ring.win(me, "k", None).await;
    match ring.store.claim(&claim(me, "k", Some(first))).await.unwrap() {
        Claimed::Won { epoch, from } => {
            assert!(epoch > first);
            assert_eq!(from, None, "it had no other owner");
        }
        other => panic!("{other:?}"),
    }
    assert!(!ring.store.release(id("k"), me, first).await.unwrap(), "the old task is fenced");
}

pub async fn a_session_of_another_principal_is_never_handed_out(ring: Ring) {
    let me = ring.node("n1").await;
    let epoch = ring.win(me, "k", None).await;
    assert!(ring.store.release(id("k"), me, epoch).await.unwrap());
    let mut theft = claim(me, "k", Some(epoch));
    theft.principal = BOB;
    assert!(matches!(ring.other.claim(&theft).await, Err(StoreError::Corrupt(_))));
    let row = ring.row("k").await;
    assert_eq!((row.principal, row.owner, row.epoch), (ALICE, None, epoch));
}

pub async fn a_released_session_is_claimed_from_nobody(ring: Ring) {
    let (one, two) = (ring.node("one").await, ring.node("two").await);
    let epoch = ring.win(one, "k", None).await;
    assert!(ring.store.release(id("k"), one, epoch).await.unwrap());
    assert!(!ring.store.release(id("k"), one, epoch).await.unwrap(), "released already");
    let row = ring.row("k").await;
    assert_eq!((row.owner, row.state, row.epoch), (None, SessionState::Closed, epoch));
    match ring.other.claim(&claim(two, "k", Some(epoch))).await.unwrap() {
        Claimed::Won { epoch: next, from } => {
            assert!(next > epoch);
            assert_eq!(from, None);
        }
        other => panic!("{other:?}"),
    }
}

pub async fn sessions_are_listed_by_owner_and_label_in_order(ring: Ring) {
    let (one, two) = (ring.node("one").await, ring.node("two").await);
    for n in 0..6 {
        ring.win(if n % 2 == 0 { one } else { two }, &format!("k{n}"), None).await;
    }
    let list = async |filter: SessionFilter| ring.other.sessions(&filter).await.unwrap();
    let all = list(SessionFilter { limit: 100, ..SessionFilter::default() }).await;
    assert_eq!(all.len(), 6);
    assert!(all.is_sorted_by_key(|row| row.id));

    let owned = list(SessionFilter { owner: Some(one), limit: 100, ..Default::default() }).await;
    assert!(owned.len() == 3 && owned.iter().all(|row| row.owner == Some(one)));
    let label = Some("k4".to_owned());
    let named = list(SessionFilter { key_label: label, limit: 100, ..Default::default() }).await;
    assert_eq!(named.iter().map(|row| row.id).collect::<Vec<_>>(), [id("k4")]);

    let first = list(SessionFilter { limit: 4, ..Default::default() }).await;
    let after = first.last().map(|row| row.id);
    let rest = list(SessionFilter { after, limit: 4, ..Default::default() }).await;
    let pages: Vec<_> = first.iter().chain(&rest).map(|row| row.id).collect();
    assert_eq!(pages, all.iter().map(|row| row.id).collect::<Vec<_>>());

    let nameless = Claim { key_label: String::new(), ..claim(one, "nameless", None) };
    ring.store.claim(&nameless).await.unwrap();
    let label = Some(String::new());
    let unnamed = list(SessionFilter { key_label: label, limit: 100, ..Default::default() }).await;
    assert_eq!(unnamed.iter().map(|row| row.id).collect::<Vec<_>>(), [nameless.id]);
}
