//! A planned transfer that loses one of its sides, or an answer, in each of its phases.

use std::time::{Duration, Instant};

use node::{LEASE, Neighbours};

use super::*;
use crate::{
    config::Route,
    ids::Incarnation,
    session::replica::next_owner,
    store::{Death, MemberState, Store as _, memory::Fault},
};

pub(super) const CREATE: &str =
    r#"{"type":"response.create","model":"m","store":false,"input":"first"}"#;
const LONG: &str = r#"{"type":"response.create","model":"m","store":false,
    "input":"[deltas=1000][delay=10ms] long"}"#;

/// Three nodes, a session of the first one with a turn behind it, and its client.
pub(super) struct Scene {
    pub(super) nodes: [Node; 3],
    pub(super) neighbours: Arc<Neighbours>,
    pub(super) attach: Attach,
    pub(super) client: Reader,
    epoch: crate::ids::Epoch,
    /// The response of the turn that has ended.
    previous: String,
    _gate: Gate,
}

impl Scene {
    /// Its owner leaves.
    async fn set() -> Self {
        let scene = Self::talking().await;
        scene.leaves(scene.owner()).await;
        scene.neighbours.asked.lock().clear();
        scene
    }

    /// A node begins to drain, and every node knows.
    pub(super) async fn leaves(&self, node: &Node) {
        node.registry.begin_drain();
        node.store.begin_drain(node.me).await.unwrap();
        eventually("the drain is known", async || {
            self.nodes.iter().all(|other| {
                let ring = other.ring.borrow();
                ring.member(node.me).is_some_and(|node| node.state == MemberState::Draining)
            })
        })
        .await;
    }

    pub(super) async fn talking() -> Self {
        Self::talking_on(SampleAuth::Open, |_| ()).await
    }

    /// The session's route is changed before it begins.
    pub(super) async fn talking_on(auth: SampleAuth, change: impl FnOnce(&mut Route)) -> Self {
        let gate = Gate::open(auth).await;
        let mut route = Arc::new(route(Profile::Responses, &gate));
        change(Arc::make_mut(&mut route));
        let store = Arc::new(Memory::default());
        let neighbours = Arc::new(Neighbours::default());
        let node = |name| {
            let heirs = Arc::clone(&neighbours);
            Node::beside(&store, name, "127.0.0.1:1", limits(), LEASE, heirs, [&route])
        };
        let nodes = [node("a").await, node("b").await, node("c").await];
        neighbours.join(&nodes.each_ref());
        eventually("they know each other", async || {
            nodes.iter().all(|node| node.ring.borrow().alive().count() == 3)
        })
        .await;
        let mut attach = wish(&route, "thread");
        let bearer = http::HeaderValue::from_static("Bearer of the good");
        attach.upgrade.headers.insert(http::header::AUTHORIZATION, bearer);
        let attached = nodes[0].attach(&attach).await.unwrap();
        let epoch = attached.epoch;
        let mut client = Reader::new(attached.link);
        client.send(CREATE);
        let done = client.until("response.completed").await;
        let previous = done["response"]["id"].as_str().unwrap().to_owned();
        Self { nodes, neighbours, attach, client, epoch, previous, _gate: gate }
    }

    pub(super) fn owner(&self) -> &Node {
        &self.nodes[0]
    }

    /// Heirs of the session, best first.
    pub(super) fn heirs(&self) -> Vec<Incarnation> {
        let owner = self.owner();
        owner.ring.borrow().heirs(self.attach.session, owner.me)
    }

    pub(super) fn node(&self, me: Incarnation) -> &Node {
        self.nodes.iter().find(|node| node.me == me).unwrap()
    }

    /// A client of another session of the owner, whose best heir this is.
    pub(super) async fn client_with(&self, heir: Incarnation) -> Reader {
        let (ring, me) = (self.owner().ring.borrow().clone(), self.owner().me);
        let mut others = (0..).map(|n| wish(&self.attach.route, &format!("other {n}")));
        let other = others.find(|wish| next_owner(&ring, me, wish.session) == Some(heir)).unwrap();
        Reader::new(self.owner().attach(&other).await.unwrap().link)
    }

    pub(super) async fn drain(&self) {
        self.drain_within(Duration::from_mins(1)).await;
    }

    pub(super) async fn drain_within(&self, time: Duration) {
        self.owner().drain(self.attach.session, time).await;
    }

    /// It moves to `heir`, and goes on there.
    pub(super) async fn moves_to(&mut self, heir: Incarnation) {
        self.moved().await;
        assert_eq!(self.owner().row(self.attach.session).await.owner, Some(heir));
        self.goes_on_at(heir).await;
    }

    /// Its client follows to `heir` and goes on by the id of the response before.
    pub(super) async fn goes_on_at(&mut self, heir: Incarnation) {
        let row = self.owner().row(self.attach.session).await;
        let attach = Attach { min_epoch: row.epoch, ..self.attach.clone() };
        let attached = self.node(heir).attach(&attach).await.unwrap();
        assert!(attached.epoch > self.epoch);
        let client = std::mem::replace(&mut self.client, Reader::new(attached.link));
        self.goes_on().await;
        self.client = client;
    }

    /// The same where its client is.
    pub(super) async fn goes_on(&mut self) {
        self.client.send(&format!(
            r#"{{"type":"response.create","model":"m","store":false,"input":"second",
                "previous_response_id":"{}"}}"#,
            self.previous
        ));
        let done = self.client.until("response.completed").await;
        let text = done["response"]["output"][0]["content"][0]["text"].as_str().unwrap();
        assert!(text.contains("turn 2 of"), "{text}");
    }

    pub(super) async fn moved(&mut self) {
        assert_eq!(self.client.next().await, Err(Some(Frame::Moved)));
    }
}

#[tokio::test]
async fn the_end_of_a_turn_is_told_when_the_heir_has_it_or_has_had_its_time() {
    /// As long as an heir may hold it up.
    const HOLD: Duration = Duration::from_millis(250);

    let mut scene = Scene::talking().await;
    scene.neighbours.silent.lock().extend(scene.heirs());
    scene.client.send(CREATE);
    let sent = Instant::now();
    scene.client.until("response.completed").await;
    assert!(sent.elapsed() >= HOLD, "{:?}", sent.elapsed());
}

#[tokio::test]
async fn an_heir_that_does_not_answer_holds_up_no_copy_to_another_one() {
    let mut scene = Scene::talking().await;
    let heirs = scene.heirs();
    let mut client = scene.client_with(heirs[1]).await;
    scene.neighbours.silent.lock().insert(heirs[0]);
    scene.neighbours.asked.lock().clear();
    scene.client.send(CREATE);
    eventually("the first one is asked", async || !scene.neighbours.asked.lock().is_empty()).await;
    client.send(CREATE);
    client.until("response.completed").await;
    let heir = &scene.node(heirs[1]).registry;
    eventually("the second one has the copy", async || heir.copies() == 1).await;
}

#[tokio::test]
async fn an_heir_that_dies_before_the_commit_is_passed_over() {
    let mut scene = Scene::set().await;
    let heirs = scene.heirs();
    scene.neighbours.silent.lock().insert(heirs[0]);
    scene.drain().await;
    scene.moved().await;
    // Once it serves, the second one copies to an heir of its own.
    assert_eq!(scene.neighbours.asked.lock()[..2], heirs[..2]);
    scene.goes_on_at(heirs[1]).await;
}

#[tokio::test]
async fn an_owner_that_dies_before_the_commit_leaves_a_warm_heir_and_disturbs_no_successor() {
    let mut scene = Scene::set().await;
    let heirs = scene.heirs();
    // The first heir holds the transfer up for as long as it is given; meanwhile the owner is
    // declared dead and its session claimed.
    scene.neighbours.silent.lock().insert(heirs[0]);
    scene.drain().await;
    eventually("the transfer is under way", async || !scene.neighbours.asked.lock().is_empty())
        .await;
    scene.owner().store.mark_dead(scene.owner().me, Death::Proven).await.unwrap();
    // It has the copy of the last turn's end.
    scene.goes_on_at(heirs[0]).await;
    let taken = scene.owner().row(scene.attach.session).await;
    scene.moved().await;
    let owner = scene.owner();
    eventually("the late owner forgets it", async || owner.registry.is_empty()).await;
    let after = scene.owner().row(scene.attach.session).await;
    assert_eq!((after.owner, after.epoch), (Some(heirs[0]), taken.epoch));
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_read_again_and_not_made_twice() {
    let mut scene = Scene::set().await;
    let heirs = scene.heirs();
    scene.owner().store.fail_transfers([Fault::ReplyLost]);
    scene.drain().await;
    scene.moved().await;
    let row = scene.owner().row(scene.attach.session).await;
    assert_eq!(row.owner, Some(heirs[0]), "no second heir was made the owner");
    let story = scene.owner().registry.ctx.events.story(&row.id.to_string(), 100);
    let told: Vec<_> = story.iter().filter(|event| event.kind == "handoff").collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].text.starts_with(&format!("handed over to incarnation {}, ", heirs[0])));
    scene.goes_on_at(heirs[0]).await;
}

#[tokio::test]
async fn a_commit_that_never_arrived_is_made_again() {
    let mut scene = Scene::set().await;
    let heirs = scene.heirs();
    scene.owner().store.fail_transfers([Fault::RequestLost, Fault::RequestLost]);
    scene.drain().await;
    scene.moved().await;
    scene.goes_on_at(heirs[0]).await;
}

#[tokio::test]
async fn an_heir_that_is_not_nudged_learns_of_the_session_from_its_client() {
    let mut scene = Scene::set().await;
    let heirs = scene.heirs();
    scene.neighbours.loses_activations.store(true, std::sync::atomic::Ordering::Relaxed);
    scene.drain().await;
    scene.moved().await;
    assert!(!scene.node(heirs[0]).registry.knows(scene.attach.session));
    scene.goes_on_at(heirs[0]).await;
}

#[tokio::test]
async fn an_heir_that_drains_before_it_opened_the_session_passes_it_on_with_its_conversation() {
    let mut scene = Scene::set().await;
    let heirs = scene.heirs();
    scene.neighbours.loses_activations.store(true, std::sync::atomic::Ordering::Relaxed);
    scene.drain().await;
    scene.moved().await;
    let heir = scene.node(heirs[0]);
    assert_eq!(heir.row(scene.attach.session).await.owner, Some(heirs[0]));
    // What the last turn's end left with the other node must not be what helps.
    let other = &scene.node(heirs[1]).registry;
    eventually("the copy is let go of, or was not there", async || other.copies() == 0).await;
    scene.leaves(heir).await;
    assert_eq!(heir.registry.pass_on_unopened(false).await, 1);
    assert_eq!(heir.row(scene.attach.session).await.owner, Some(heirs[1]));
    assert_eq!((heir.registry.copies(), other.copies()), (0, 1));
    assert_eq!(heir.registry.pass_on_unopened(true).await, 0, "none is left");
    scene.goes_on_at(heirs[1]).await;
}

#[tokio::test]
async fn what_an_heir_does_not_take_now_is_offered_again_until_the_end_of_the_drain() {
    let mut scene = Scene::set().await;
    let heirs = scene.heirs();
    scene.neighbours.loses_activations.store(true, std::sync::atomic::Ordering::Relaxed);
    scene.drain().await;
    scene.moved().await;
    let heir = scene.node(heirs[0]);
    let other = &scene.node(heirs[1]).registry;
    eventually("the copy is let go of, or was not there", async || other.copies() == 0).await;
    scene.leaves(heir).await;
    scene.neighbours.silent.lock().insert(heirs[1]);
    assert_eq!(heir.registry.pass_on_unopened(false).await, 0);
    assert_eq!(heir.row(scene.attach.session).await.owner, Some(heirs[0]));
    scene.neighbours.silent.lock().remove(&heirs[1]);
    assert_eq!(heir.registry.pass_on_unopened(false).await, 1);
    scene.goes_on_at(heirs[1]).await;
}

#[tokio::test]
async fn what_nobody_can_inherit_waits_for_an_heir_until_the_end_of_the_drain() {
    let scene = Scene::set().await;
    let heirs = scene.heirs();
    scene.neighbours.loses_activations.store(true, std::sync::atomic::Ordering::Relaxed);
    scene.drain().await;
    let heir = scene.node(heirs[0]);
    eventually("it is handed over", async || {
        heir.row(scene.attach.session).await.owner == Some(heirs[0])
    })
    .await;
    scene.leaves(scene.node(heirs[1])).await;
    scene.leaves(heir).await;
    assert_eq!(heir.registry.pass_on_unopened(false).await, 0);
    assert_eq!(heir.row(scene.attach.session).await.owner, Some(heirs[0]));
    assert_eq!(heir.registry.pass_on_unopened(true).await, 1);
    assert_eq!(heir.row(scene.attach.session).await.owner, None);
}

#[tokio::test]
async fn an_heir_that_drains_before_the_store_knows_is_passed_over() {
    let mut scene = Scene::set().await;
    let heirs = scene.heirs();
    scene.node(heirs[0]).registry.begin_drain();
    scene.drain().await;
    scene.moved().await;
    scene.goes_on_at(heirs[1]).await;
}

#[tokio::test]
async fn an_heir_that_dies_after_the_commit_is_followed_by_an_ordinary_takeover() {
    let mut scene = Scene::set().await;
    let heirs = scene.heirs();
    scene.drain().await;
    scene.moved().await;
    let row = scene.owner().row(scene.attach.session).await;
    assert_eq!(row.owner, Some(heirs[0]));
    scene.owner().store.mark_dead(heirs[0], Death::Proven).await.unwrap();
    let attach = Attach { min_epoch: row.epoch, ..scene.attach.clone() };
    let taken = scene.node(heirs[1]).attach(&attach).await.unwrap();
    assert!(taken.epoch > row.epoch);
}

#[tokio::test]
async fn at_the_deadline_a_turn_ends_as_unknown_and_the_heir_has_the_conversation_and_its_events() {
    let mut scene = Scene::set().await;
    let heirs = scene.heirs();
    scene.client.send(LONG);
    let created = scene.client.until("response.created").await;
    let id = created["response"]["id"].as_str().unwrap().to_owned();
    let mut seen = scene.client.until("response.output_text.delta").await;
    scene.drain().await;
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(4);
    scene.owner().registry.get(scene.attach.session).unwrap().sever(until).await;
    let error = loop {
        let text = scene.client.text().await;
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        if event["type"] == "error" {
            break event["error"].clone();
        }
        seen = event;
    };
    assert_eq!(error["code"], "outcome_unknown");
    assert_eq!(error["response_id"], id.as_str());
    assert_eq!(error["last_sequence_number"], seen["sequence_number"]);
    scene.moved().await;
    scene.goes_on_at(heirs[0]).await;
    let severed = "ringspan_severed_turns_total";
    assert_eq!(
        scene.node(heirs[0]).counted(severed),
        Some(1),
        "its owner is gone before it could tell"
    );
    // Who asks for the severed response finds it where the session is now.
    let row = scene.owner().row(scene.attach.session).await;
    let attach = Attach { min_epoch: row.epoch, ..scene.attach.clone() };
    let mut again = Reader::new(scene.node(heirs[0]).attach(&attach).await.unwrap().link);
    again.send(&format!(r#"{{"type":"ringspan.resume","response_id":"{id}"}}"#));
    assert_eq!(again.until("response.created").await["response"]["id"], id.as_str());
    let end = again.until("error").await;
    assert_eq!(end["error"], error);
}

#[tokio::test]
async fn what_waits_behind_a_running_turn_is_left_to_the_next_owner() {
    let mut scene = Scene::set().await;
    scene.client.send(&LONG.replace("1000", "20"));
    scene.client.until("response.created").await;
    scene.client.send(CREATE);
    eventually("it waits", async || {
        let handle = scene.owner().registry.get(scene.attach.session).unwrap();
        handle.stats.turns_queued.load(std::sync::atomic::Ordering::Relaxed) == 1
    })
    .await;
    scene.drain().await;
    scene.client.until("response.completed").await;
    scene.moved().await;
}

#[tokio::test]
async fn what_an_heir_keeps_of_a_session_goes_with_the_session() {
    let scene =
        Scene::talking_on(SampleAuth::Open, |route| route.detach_ttl = Duration::from_millis(30))
            .await;
    let heir = Arc::clone(&scene.node(scene.heirs()[0]).registry);
    assert_eq!(heir.copies(), 1);
    drop(scene.client);
    eventually("the copy is let go of", async || heir.copies() == 0).await;
}

#[tokio::test]
async fn a_former_heir_keeps_nothing_and_the_owner_after_the_next_keeps_the_copy_left_to_it() {
    let mut scene = Scene::set().await;
    let heirs = scene.heirs();
    // The session goes to the second node, though the first has the copy of its last turn.
    scene.owner().registry.get(scene.attach.session).unwrap().offer(vec![heirs[1]]);
    scene.moved().await;
    let (first, second) = (scene.node(heirs[0]), scene.node(heirs[1]));
    assert_eq!(scene.owner().row(scene.attach.session).await.owner, Some(heirs[1]));
    // Its own heir is the first node, whom the former owner told to let go of what it had left.
    eventually("the new owner has a copy there", async || {
        let handle = second.registry.get(scene.attach.session);
        handle.is_some_and(|handle| handle.stats.heir() == Some(heirs[0]))
    })
    .await;
    assert_eq!((first.registry.copies(), second.registry.copies()), (1, 0));
    // That it is told again, and late, changes nothing.
    first.registry.let_go(scene.owner().me, &[scene.attach.session]);
    assert_eq!(first.registry.copies(), 1);
    second.store.mark_dead(heirs[1], Death::Proven).await.unwrap();
    scene.goes_on_at(heirs[0]).await;
}

#[tokio::test]
async fn a_new_owner_that_dies_before_it_copied_costs_no_conversation_that_its_next_owner_has() {
    let mut scene = Scene::talking().await;
    let heirs = scene.heirs();
    let (ring, me) = (scene.owner().ring.borrow().clone(), scene.owner().me);
    let mut others = (0..).map(|n| wish(&scene.attach.route, &format!("other {n}")));
    let same_heir = |wish: &Attach| next_owner(&ring, me, wish.session) == Some(heirs[0]);
    let other = others.find(same_heir).unwrap();
    let mut client = Reader::new(scene.owner().attach(&other).await.unwrap().link);
    scene.leaves(scene.owner()).await;
    // The session goes to another node than the one that has the copy of its last turn; there
    // nobody opens it.
    scene.neighbours.loses_activations.store(true, std::sync::atomic::Ordering::Relaxed);
    scene.owner().registry.get(scene.attach.session).unwrap().offer(vec![heirs[1]]);
    scene.moved().await;
    assert_eq!(scene.owner().row(scene.attach.session).await.owner, Some(heirs[1]));
    // What the former owner had to say of its copy was said before the copies of later turns.
    for _ in 0..2 {
        client.send(CREATE);
        client.until("response.completed").await;
    }
    let heir = &scene.node(heirs[0]).registry;
    eventually("both copies are there", async || heir.copies() == 2).await;
    scene.owner().store.mark_dead(heirs[1], Death::Proven).await.unwrap();
    scene.goes_on_at(heirs[0]).await;
}

#[tokio::test]
async fn a_session_that_is_offered_moves_only_while_nothing_happens_in_it() {
    let mut scene = Scene::set().await;
    let heir = scene.heirs()[0];
    let handle = scene.owner().registry.get(scene.attach.session).unwrap();
    scene.client.send(&LONG.replace("1000", "20"));
    scene.client.until("response.created").await;
    handle.offer(vec![heir]);
    scene.client.until("response.completed").await;
    assert_eq!(scene.owner().row(scene.attach.session).await.epoch, scene.epoch);
    // Nobody takes it: it stays, and works.
    scene.neighbours.silent.lock().insert(heir);
    handle.offer(vec![heir]);
    scene.client.send(CREATE);
    scene.client.until("response.completed").await;
    scene.neighbours.silent.lock().clear();
    handle.offer(vec![heir]);
    scene.moved().await;
    assert_eq!(scene.owner().row(scene.attach.session).await.owner, Some(heir));
}

#[tokio::test]
async fn a_session_whose_task_panics_takes_no_place_any_more() {
    let scene = Scene::set().await;
    scene.neighbours.panics.store(true, std::sync::atomic::Ordering::Relaxed);
    scene.drain().await;
    let registry = &scene.owner().registry;
    eventually("its place is free", async || registry.is_empty()).await;
}
