//! Copies that their heir does not take.

use node::Neighbours;

use super::{
    phases::{CREATE, Scene},
    *,
};
use crate::ids::Incarnation;

/// How often that heir was asked to keep a conversation.
fn asked(neighbours: &Neighbours, heir: Incarnation) -> usize {
    neighbours.asked.lock().iter().filter(|asked| **asked == heir).count()
}

#[tokio::test]
async fn an_heir_without_room_is_asked_again_when_the_ring_changes_and_one_that_fails_at_once() {
    let mut scene = Scene::talking().await;
    let heirs = scene.heirs();
    let mut client = scene.client_with(heirs[1]).await;
    let neighbours = Arc::clone(&scene.neighbours);
    neighbours.full.lock().insert(heirs[0]);
    neighbours.lose(heirs[1]);
    for client in [&mut scene.client, &mut client] {
        client.send(CREATE);
        client.until("response.completed").await;
    }
    let refused = asked(&neighbours, heirs[0]);
    let owner = scene.owner();
    owner.tracker.spawn(Arc::clone(&owner.registry).follow_heirs());
    // Each pass looks at both sessions.
    let failed = asked(&neighbours, heirs[1]);
    eventually("passes", async || asked(&neighbours, heirs[1]) >= failed + 4).await;
    assert_eq!(asked(&neighbours, heirs[0]), refused);
    neighbours.full.lock().clear();
    let more = Node::start(&owner.store, "more", limits(), [&scene.attach.route]).await;
    eventually("it is asked again, or another one is", async || {
        asked(&neighbours, heirs[0]) > refused || asked(&neighbours, more.me) > 0
    })
    .await;
}
