//! A session with something to remember, where the store, its heirs or the upstream are not
//! there when it moves.

use std::time::{Duration, Instant};

use super::{
    phases::{CREATE, Scene},
    *,
};
use crate::{
    config::{Continuity, Route},
    ids::Incarnation,
    store::{Death, NewMember, SessionState, memory::Fault},
};

#[tokio::test]
async fn a_session_that_stays_after_a_quiesce_that_nobody_heard_of_goes_on() {
    let mut scene = Scene::talking().await;
    let heirs = scene.heirs();
    let resumes = [Fault::RequestLost; 3];
    scene.owner().store.fail_states([Fault::ReplyLost].into_iter().chain(resumes));
    scene.owner().registry.get(scene.attach.session).unwrap().offer(heirs);
    eventually("it quiesces", async || {
        scene.owner().row(scene.attach.session).await.state == SessionState::Quiescing
    })
    .await;
    scene.goes_on().await;
    let row = scene.owner().row(scene.attach.session).await;
    assert_eq!((row.owner, row.state), (Some(scene.owner().me), SessionState::Live));
}

#[tokio::test]
async fn a_drain_that_the_store_does_not_hear_of_at_once_costs_no_conversation() {
    for fault in [Fault::RequestLost, Fault::ReplyLost] {
        let mut scene = in_memory_of_a_drain().await;
        let heirs = scene.heirs();
        scene.owner().store.fail_states([fault]);
        scene.drain().await;
        scene.moved().await;
        scene.goes_on_at(heirs[0]).await;
    }
}

/// Nobody else has the conversation.
async fn in_memory_of_a_drain() -> Scene {
    let in_memory = |route: &mut Route| route.continuity = Continuity::Memory;
    let scene = Scene::talking_on(SampleAuth::Open, in_memory).await;
    scene.leaves(scene.owner()).await;
    scene
}

/// The same, offered to all heirs, in this order; none has room.
async fn that_nobody_takes(within: Duration) -> (Scene, Vec<Incarnation>) {
    let scene = in_memory_of_a_drain().await;
    let heirs = scene.heirs();
    scene.neighbours.full.lock().extend(&heirs);
    scene.drain_within(within).await;
    eventually("all were asked", async || scene.neighbours.asked.lock()[..] == heirs[..]).await;
    (scene, heirs)
}

#[tokio::test]
async fn a_conversation_that_no_heir_takes_waits_at_its_owner_and_is_served_until_one_does() {
    let (mut scene, heirs) = that_nobody_takes(Duration::from_mins(1)).await;
    scene.goes_on().await;
    assert_eq!(scene.owner().row(scene.attach.session).await.owner, Some(scene.owner().me));
    scene.neighbours.full.lock().remove(&heirs[1]);
    scene.moves_to(heirs[1]).await;
}

#[tokio::test]
async fn a_conversation_that_no_heir_takes_is_given_up_at_the_deadline() {
    let (mut scene, _) = that_nobody_takes(Duration::from_mins(1)).await;
    severed(Duration::from_secs(4), &mut scene).await;
    assert_eq!(scene.owner().row(scene.attach.session).await.owner, None);
}

/// A drain's quiesce was heard, and then the store falls silent: to the transfer it says this,
/// then nothing to so many questions whose the session is. Its client asks for a turn meanwhile.
async fn silent_behind_the_quiesce(transfer: Fault, questions: usize) -> (Scene, Vec<Incarnation>) {
    // No row of the ledger keeps a turn from being sent.
    let alone = |route: &mut Route| {
        (route.continuity, route.ledger) = (Continuity::Memory, false);
    };
    let mut scene = Scene::talking_on(SampleAuth::Open, alone).await;
    scene.leaves(scene.owner()).await;
    let heirs = scene.heirs();
    scene.neighbours.silent.lock().insert(heirs[0]);
    scene.drain().await;
    eventually("an heir is asked", async || !scene.neighbours.asked.lock().is_empty()).await;
    scene.neighbours.silent.lock().clear();
    let store = &scene.owner().store;
    store.fail_transfers([transfer]);
    store.fail_reads([Fault::RequestLost; 3]);
    store.fail_states(std::iter::repeat_n(Fault::RequestLost, questions));
    scene.client.send(CREATE);
    (scene, heirs)
}

#[tokio::test]
async fn a_transfer_that_a_silent_store_never_heard_of_is_made_once_it_answers() {
    let (mut scene, heirs) = silent_behind_the_quiesce(Fault::RequestLost, 3).await;
    // Before anything of the turn.
    scene.moves_to(heirs[0]).await;
}

#[tokio::test]
async fn while_an_heir_may_have_a_session_nothing_of_it_is_sent_or_told_here() {
    let (mut scene, heirs) = silent_behind_the_quiesce(Fault::ReplyLost, 3).await;
    scene.moves_to(heirs[1]).await;
}

#[tokio::test]
async fn a_store_that_stays_silent_holds_up_no_deadline() {
    let (mut scene, _) = silent_behind_the_quiesce(Fault::RequestLost, 100).await;
    // Answered behind the transfer, which takes no orders.
    match scene.owner().attach(&scene.attach).await {
        Err(AttachError::Failed(error)) => assert_eq!(error.code, Code::OwnerMoving),
        other => panic!("{other:?}"),
    }
    severed(Duration::from_secs(4), &mut scene).await;
}

/// The node's time is over; how long its client is not told.
async fn severed(within: Duration, scene: &mut Scene) -> Duration {
    let begun = Instant::now();
    let until = tokio::time::Instant::now() + within;
    scene.owner().registry.get(scene.attach.session).unwrap().sever(until).await;
    scene.moved().await;
    begun.elapsed()
}

#[tokio::test]
async fn what_is_asked_for_right_before_the_deadline_is_left_to_the_next_owner() {
    let (mut scene, _) = that_nobody_takes(Duration::from_secs(1)).await;
    scene.client.send(CREATE);
    eventually("it waits", async || {
        let session = scene.owner().registry.get(scene.attach.session).unwrap();
        session.stats.turns_queued.load(std::sync::atomic::Ordering::Relaxed) == 1
    })
    .await;
    // Nothing is said of it.
    severed(Duration::from_secs(4), &mut scene).await;
}

#[tokio::test]
async fn heirs_that_do_not_answer_are_asked_until_the_deadline_and_no_longer() {
    let mut scene = in_memory_of_a_drain().await;
    scene.neighbours.silent.lock().extend(scene.heirs());
    let within = Duration::from_secs(1);
    let told = severed(within, &mut scene).await;
    // Each of them may take two seconds else.
    assert!(told < 3 * within, "{told:?}");
}

#[tokio::test]
async fn without_an_heir_a_drain_does_not_trouble_the_store() {
    let mut scene = in_memory_of_a_drain().await;
    for heir in scene.heirs() {
        scene.owner().store.mark_dead(heir, Death::Proven).await.unwrap();
    }
    eventually("nobody is left", async || scene.heirs().is_empty()).await;
    let joins = NewMember::ordinary("d");
    scene.owner().store.register(&joins, super::node::LEASE).await.unwrap();
    eventually("somebody joins", async || {
        scene.owner().ring.borrow().has_joining(scene.owner().me)
    })
    .await;
    // Whoever asks it gets no answer, and sends nothing before one.
    scene.owner().store.fail_states([Fault::RequestLost; 100]);
    scene.drain().await;
    scene.goes_on().await;
    assert_eq!(scene.owner().row(scene.attach.session).await.state, SessionState::Live);
}

#[tokio::test]
async fn a_drain_of_a_node_that_is_alone_waits_for_nobody() {
    let mut scene = in_memory_of_a_drain().await;
    for heir in scene.heirs() {
        scene.owner().store.mark_dead(heir, Death::Proven).await.unwrap();
    }
    eventually("it is alone", async || scene.heirs().is_empty()).await;
    scene.drain().await;
    scene.moved().await;
    assert_eq!(scene.owner().row(scene.attach.session).await.owner, None);
}

#[tokio::test]
async fn a_session_waits_for_a_client_that_the_upstream_turns_away() {
    const TTL: Duration = Duration::from_secs(2);

    let mut scene = Scene::talking_on(SampleAuth::AnyBearer, |route| route.detach_ttl = TTL).await;
    scene.leaves(scene.owner()).await;
    let heirs = scene.heirs();
    // Its heir does not dial before its client comes.
    scene.neighbours.loses_activations.store(true, std::sync::atomic::Ordering::Relaxed);
    scene.drain().await;
    scene.moved().await;
    let mut refused = scene.attach.clone();
    refused.upgrade.headers.clear();
    let begun = Instant::now();
    while begun.elapsed() < 2 * TTL {
        let attached = scene.node(heirs[0]).attach(&refused).await;
        assert!(matches!(attached, Err(AttachError::Refused(_))));
        tokio::time::sleep(TTL / 5).await;
    }
    scene.goes_on_at(heirs[0]).await;
}
