//! Promises about members, their leases and the ring.

use std::{collections::HashSet, future::poll_fn, task::Poll, time::Duration};

use ringspan::{
    ids::Incarnation,
    store::{Death, MemberState, StoreError},
};

use crate::ring::{LONG, OVER, Ring, member};

async fn version(ring: &Ring) -> i64 {
    ring.other.ring().await.unwrap().version
}

pub async fn a_node_registers_joins_drains_and_leaves(ring: Ring) {
    let me = ring.store.register(&member("n1"), LONG).await.unwrap();
    let view = ring.other.ring().await.unwrap();
    let row = &view.members[0];
    assert_eq!((row.incarnation, row.state), (me, MemberState::Joining));
    assert_eq!((row.node_id.as_str(), row.peer_addr.as_str()), ("n1", "n1.ring:50051"));
    assert_eq!((row.zone.as_deref(), row.weight, row.capacity), (Some("a"), 100, 1000));
    assert!(row.lease_remaining > LONG / 2 && row.lease_remaining <= LONG);

    ring.store.activate(me).await.unwrap();
    ring.store.activate(me).await.unwrap();
    let beat = ring.store.heartbeat(me, LONG, 7).await.unwrap();
    assert_eq!(beat.state, MemberState::Active);
    assert_eq!(ring.other.ring().await.unwrap().members[0].load, 7);

    assert!(ring.other.begin_drain(me).await.unwrap());
    assert!(!ring.store.begin_drain(me).await.unwrap(), "a second drain changes nothing");
    ring.store.activate(me).await.unwrap();
    let beat = ring.store.heartbeat(me, LONG, 0).await.unwrap();
    assert_eq!(beat.state, MemberState::Draining, "a drain is not undone");

    assert_eq!(ring.store.leave(me).await, Ok(0));
    assert_eq!(ring.store.leave(me).await, Ok(0));
    assert_eq!(ring.store.heartbeat(me, LONG, 0).await, Err(StoreError::Fenced(me)));
    assert!(ring.other.ring().await.unwrap().members.is_empty());
}

pub async fn a_node_id_has_one_living_holder(ring: Ring) {
    let first = ring.node("n1").await;
    let version = version(&ring).await;
    match ring.other.register(&member("n1"), LONG).await {
        Err(StoreError::NodeIdInUse { node_id, holder, remaining, .. }) => {
            assert_eq!((node_id.as_str(), holder), ("n1", first));
            assert!(remaining > Duration::ZERO && remaining <= LONG);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(ring.store.ring().await.unwrap().version, version);
    assert!(ring.store.heartbeat(first, LONG, 0).await.is_ok());
}

pub async fn an_expired_holder_keeps_its_node_id_until_it_is_declared_dead(ring: Ring) {
    let first = ring.node("n1").await;
    ring.store.heartbeat(first, OVER, 0).await.unwrap();
    match ring.other.register(&member("n1"), LONG).await {
        Err(StoreError::NodeIdInUse { holder, remaining, .. }) => {
            assert_eq!((holder, remaining), (first, Duration::ZERO));
        }
        other => panic!("{other:?}"),
    }
    assert!(ring.lapse(first).await);
    let second = ring.other.register(&member("n1"), LONG).await.unwrap();
    assert!(second > first);
    assert_eq!(ring.store.heartbeat(first, LONG, 0).await, Err(StoreError::Fenced(first)));
}

pub async fn a_superseded_holder_of_a_node_id_is_dead_at_once(ring: Ring) {
    let first = ring.node("n1").await;
    let mut again = member("n1");
    again.supersede = true;
    let second = ring.other.register(&again, LONG).await.unwrap();
    assert_eq!(ring.store.heartbeat(first, LONG, 0).await, Err(StoreError::Fenced(first)));
    assert!(ring.store.heartbeat(second, LONG, 0).await.is_ok());
}

pub async fn of_concurrent_first_starts_one_wins(ring: Ring) {
    let starts = (0..8).map(|n| {
        let store = if n % 2 == 0 { &ring.store } else { &ring.other }.clone();
        tokio::spawn(async move { store.register(&member("n1"), LONG).await })
    });
    let mut won = 0;
    for start in starts.collect::<Vec<_>>() {
        match start.await.unwrap() {
            Ok(_) => won += 1,
            Err(StoreError::NodeIdInUse { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(ring.store.ring().await.unwrap().members.len(), 1);
}

pub async fn death_is_one_way_and_fences_the_heartbeat(ring: Ring) {
    let me = ring.node("n1").await;
    ring.store.heartbeat(me, OVER, 0).await.unwrap();
    assert!(ring.lapse(me).await);
    assert!(!ring.other.mark_dead(me, Death::Proven).await.unwrap(), "dead already");
    let fenced = StoreError::Fenced(me);
    assert_eq!(ring.store.heartbeat(me, LONG, 0).await.unwrap_err(), fenced);
    assert_eq!(ring.store.activate(me).await.unwrap_err(), fenced);
    assert_eq!(ring.store.begin_drain(me).await.unwrap_err(), fenced);
    assert_eq!(ring.store.leave(me).await.unwrap_err(), fenced);
}

pub async fn an_expired_lease_can_be_renewed_until_someone_declares_death(ring: Ring) {
    let me = ring.node("n1").await;
    ring.store.heartbeat(me, OVER, 0).await.unwrap();
    assert_eq!(ring.other.ring().await.unwrap().members[0].lease_remaining, Duration::ZERO);
    ring.store.heartbeat(me, LONG, 0).await.unwrap();
    assert!(!ring.lapse(me).await);
}

pub async fn a_lease_that_was_renewed_is_not_the_one_that_was_judged(ring: Ring) {
    let me = ring.node("n1").await;
    ring.store.heartbeat(me, OVER, 0).await.unwrap();
    let judged = ring.lease(me).await;
    // It comes back, and lapses once more: who judged the first lease knows nothing of that.
    ring.store.heartbeat(me, LONG, 0).await.unwrap();
    ring.store.heartbeat(me, OVER, 0).await.unwrap();
    // Another end, also where the store's clock is coarse.
    while ring.lease(me).await == judged {
        ring.store.heartbeat(me, OVER, 0).await.unwrap();
    }
    assert!(!ring.other.mark_dead(me, Death::Lapsed(judged)).await.unwrap());
    assert!(ring.store.heartbeat(me, OVER, 0).await.is_ok());
    assert!(ring.lapse(me).await);
}

pub async fn a_living_lease_cannot_be_declared_dead_without_proof(ring: Ring) {
    let me = ring.node("n1").await;
    assert!(!ring.lapse(me).await);
    assert!(ring.store.heartbeat(me, LONG, 0).await.is_ok());
    assert!(ring.other.mark_dead(me, Death::Proven).await.unwrap());
}

pub async fn the_ring_version_moves_with_members_and_not_with_heartbeats(ring: Ring) {
    let mut seen = HashSet::from([version(&ring).await]);
    let me = ring.store.register(&member("n1"), LONG).await.unwrap();
    assert!(seen.insert(version(&ring).await), "registered");
    ring.store.activate(me).await.unwrap();
    assert!(seen.insert(version(&ring).await), "activated");
    let settled = version(&ring).await;
    for load in 0..5 {
        assert_eq!(ring.store.heartbeat(me, LONG, load).await.unwrap().ring_version, settled);
    }
    ring.store.activate(me).await.unwrap();
    ring.win(me, "k", None).await;
    assert!(!ring.lapse(me).await);
    assert_eq!(version(&ring).await, settled);
    ring.store.begin_drain(me).await.unwrap();
    assert!(seen.insert(version(&ring).await), "draining");
    ring.kill(me).await;
    assert!(seen.insert(version(&ring).await), "dead");
    assert_eq!(seen.iter().max(), Some(&version(&ring).await));
}

pub async fn leaving_counts_sessions_and_succeeds_without(ring: Ring) {
    let me = ring.node("n1").await;
    let one = ring.win(me, "one", None).await;
    let two = ring.win(me, "two", None).await;
    ring.store.begin_drain(me).await.unwrap();
    assert_eq!(ring.store.leave(me).await, Ok(2));
    assert!(ring.store.release(crate::ring::id("one"), me, one).await.unwrap());
    assert_eq!(ring.store.leave(me).await, Ok(1));
    assert!(ring.store.heartbeat(me, LONG, 0).await.is_ok(), "not gone yet");
    assert!(ring.store.release(crate::ring::id("two"), me, two).await.unwrap());
    assert_eq!(ring.store.leave(me).await, Ok(0));
}

pub async fn the_ring_shows_the_dead_only_while_a_session_names_them(ring: Ring) {
    let (old, heir) = (ring.node("old").await, ring.node("heir").await);
    let seen = ring.win(old, "k", None).await;
    ring.kill(old).await;
    let states = async || {
        let members = ring.other.ring().await.unwrap().members;
        members.into_iter().map(|m| (m.incarnation, m.state)).collect::<Vec<_>>()
    };
    assert_eq!(states().await, [(old, MemberState::Dead), (heir, MemberState::Active)]);
    ring.win(heir, "k", Some(seen)).await;
    assert_eq!(states().await, [(heir, MemberState::Active)]);
}

pub async fn a_hint_follows_a_membership_change(ring: Ring) {
    // The first hint may come at once: it stands for all that was missed before.
    let _ = tokio::time::timeout(Duration::from_millis(500), ring.other.ring_hint()).await;
    let other = ring.other.clone();
    let (waiting, started) = tokio::sync::oneshot::channel();
    let waiter = tokio::spawn(async move {
        let hint = other.ring_hint();
        tokio::pin!(hint);
        // Polled once, so that it waits before the change happens.
        poll_fn(|context| {
            let _ = hint.as_mut().poll(context);
            Poll::Ready(())
        })
        .await;
        waiting.send(()).unwrap();
        hint.await;
    });
    started.await.unwrap();
    ring.node("n1").await;
    tokio::time::timeout(Duration::from_secs(10), waiter).await.expect("a hint").unwrap();
}

pub async fn an_unknown_incarnation_is_fenced_everywhere(ring: Ring) {
    let nobody = Incarnation(4711);
    let fenced = StoreError::Fenced(nobody);
    assert_eq!(ring.store.heartbeat(nobody, LONG, 0).await.unwrap_err(), fenced);
    assert_eq!(ring.store.activate(nobody).await.unwrap_err(), fenced);
    assert_eq!(ring.store.begin_drain(nobody).await.unwrap_err(), fenced);
    assert_eq!(ring.store.leave(nobody).await.unwrap_err(), fenced);
    assert!(!ring.store.mark_dead(nobody, Death::Proven).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn the_leases_of_the_memory_store_follow_paused_time() {
    let ring = Ring::memory();
    let me = ring.node("n1").await;
    tokio::time::advance(LONG / 2).await;
    assert!(!ring.lapse(me).await);
    tokio::time::advance(LONG / 2).await;
    assert!(ring.lapse(me).await);
}
