//! Promises about planned transfers and the fences of an ownership.

use ringspan::{
    ids::Epoch,
    store::{SessionState, Transferred},
};

use crate::ring::{OVER, Ring, id, member};

pub async fn a_stale_epoch_changes_nothing(ring: Ring) {
    let (me, heir) = (ring.node("n1").await, ring.node("heir").await);
    let stale = ring.win(me, "k", None).await;
    let epoch = ring.win(me, "k", Some(stale)).await;
    assert!(ring.store.quiesce(id("k"), me, epoch).await.unwrap());
    let before = ring.row("k").await;
    for (owner, epoch) in [(me, stale), (me, Epoch(0)), (heir, epoch)] {
        assert!(!ring.store.release(id("k"), owner, epoch).await.unwrap());
        assert!(!ring.store.quiesce(id("k"), owner, epoch).await.unwrap());
        assert!(!ring.store.resume(id("k"), owner, epoch).await.unwrap());
        let moved = ring.store.transfer(id("k"), owner, epoch, heir, false).await;
        assert_eq!(moved, Ok(Transferred::NotOwner));
    }
    let after = ring.row("k").await;
    assert_eq!((after.owner, after.epoch, after.state), (before.owner, epoch, before.state));
    let moved = ring.store.transfer(id("nothing"), me, epoch, heir, false).await;
    assert_eq!(moved, Ok(Transferred::NotOwner), "no such session");
}

pub async fn a_transfer_moves_owner_and_epoch_together(ring: Ring) {
    let (me, heir) = (ring.node("n1").await, ring.node("heir").await);
    let epoch = ring.win(me, "k", None).await;
    ring.store.begin_drain(me).await.unwrap();
    assert!(ring.store.quiesce(id("k"), me, epoch).await.unwrap());
    let Ok(Transferred::Moved(next)) = ring.store.transfer(id("k"), me, epoch, heir, false).await
    else {
        panic!("not moved");
    };
    assert!(next > epoch);
    let row = ring.row("k").await;
    assert_eq!((row.owner, row.epoch, row.state), (Some(heir), next, SessionState::Live));
    let again = ring.store.transfer(id("k"), me, epoch, heir, false).await;
    assert_eq!(again, Ok(Transferred::NotOwner), "a repeated commit finds it done");
    assert!(!ring.store.release(id("k"), me, epoch).await.unwrap(), "a late release is fenced");
    assert_eq!(ring.store.leave(me).await, Ok(0));
}

pub async fn a_transfer_needs_an_active_heir(ring: Ring) {
    let me = ring.node("n1").await;
    let joining = ring.store.register(&member("joining"), crate::ring::LONG).await.unwrap();
    let (draining, dead, paused) =
        (ring.node("draining").await, ring.node("dead").await, ring.node("paused").await);
    ring.store.begin_drain(draining).await.unwrap();
    ring.kill(dead).await;
    ring.store.heartbeat(paused, OVER, 0).await.unwrap();
    let epoch = ring.win(me, "k", None).await;
    assert!(ring.store.quiesce(id("k"), me, epoch).await.unwrap());
    for heir in [joining, draining, dead, paused, ringspan::ids::Incarnation(4711)] {
        let refused = ring.store.transfer(id("k"), me, epoch, heir, false).await;
        assert_eq!(refused, Ok(Transferred::HeirUnfit), "{heir}");
    }
    let row = ring.row("k").await;
    assert_eq!((row.owner, row.epoch), (Some(me), epoch), "a refusal is not lost ownership");
}

pub async fn a_transfer_needs_a_quiescent_session(ring: Ring) {
    let (me, heir) = (ring.node("n1").await, ring.node("heir").await);
    let epoch = ring.win(me, "k", None).await;
    let refused = ring.store.transfer(id("k"), me, epoch, heir, false).await;
    assert_eq!(refused, Ok(Transferred::NotQuiescing));
    let row = ring.row("k").await;
    assert_eq!((row.owner, row.epoch, row.state), (Some(me), epoch, SessionState::Live));
}

pub async fn a_session_can_be_transferred_to_oneself(ring: Ring) {
    let me = ring.node("n1").await;
    let epoch = ring.win(me, "k", None).await;
    assert!(ring.store.quiesce(id("k"), me, epoch).await.unwrap());
    let moved = ring.store.transfer(id("k"), me, epoch, me, false).await.unwrap();
    assert!(matches!(moved, Transferred::Moved(next) if next > epoch));
}

pub async fn a_quiesced_session_resumes(ring: Ring) {
    let me = ring.node("n1").await;
    let epoch = ring.win(me, "k", None).await;
    for _ in 0..2 {
        assert!(ring.store.quiesce(id("k"), me, epoch).await.unwrap());
        assert_eq!(ring.row("k").await.state, SessionState::Quiescing);
    }
    for _ in 0..2 {
        assert!(ring.store.resume(id("k"), me, epoch).await.unwrap());
        assert_eq!(ring.row("k").await.state, SessionState::Live);
    }
    assert_eq!(ring.row("k").await.epoch, epoch);
}
