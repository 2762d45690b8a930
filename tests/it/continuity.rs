//! A client that keeps its one socket and never resends its history: what is stored nowhere
//! (`store: false`) goes on all the same when its owner is replaced.

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    ALICE, Node, Ring, RingOptions, Ws, eventually,
    gate::Gate,
    history::History,
    responses::{Turn, create, user},
};

/// A conversation on one socket at a time.
pub struct Talk {
    key: String,
    socket: Ws,
    pub texts: Vec<String>,
    previous: Option<String>,
}

impl Talk {
    pub async fn begin(edge: &Node, key: &str) -> Self {
        let socket = Self::open(edge, key).await;
        Self { key: key.to_owned(), socket, texts: Vec::new(), previous: None }
    }

    async fn open(edge: &Node, key: &str) -> Ws {
        Ws::open(&edge.url("/v1/responses"), &[ALICE, ("session-id", key)]).await
    }

    /// Goes on over a new socket, with nothing but the id of the last response.
    pub async fn again(&mut self, edge: &Node) {
        self.socket = Self::open(edge, &self.key).await;
    }

    /// The socket is closed by its node.
    pub async fn ended(&mut self) {
        self.socket.end().await;
    }

    /// Asks once more, with nothing but its own text and the id of the response before.
    pub async fn ask(&mut self) -> Turn {
        let text = format!("turn {} of one socket", self.texts.len() + 1);
        let request: Value = create(&[user(&text)], self.previous.as_deref());
        self.texts.push(text);
        Turn::run(&mut self.socket, &request).await
    }

    /// One more turn, which has to answer the whole conversation.
    pub async fn turn(&mut self) {
        let turn = self.ask().await;
        turn.assert_answers(&self.texts);
        self.previous = Some(turn.id());
    }
}

/// A conversation through `edge` that another node owns, after its first turn.
pub async fn owned_elsewhere<'a>(ring: &'a Ring, edge: &Node) -> (String, Talk, &'a Node) {
    for n in 0..64 {
        let key = format!("one-socket-{n}");
        let mut talk = Talk::begin(edge, &key).await;
        talk.turn().await;
        let owner = ring.owner_of(&key).await;
        if owner.id != edge.id {
            return (key, talk, owner);
        }
    }
    panic!("{} owns all of 64 conversations", edge.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_on_one_socket_goes_on_while_its_owners_are_restarted() {
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let edge = ring.node(0);
    let (key, mut talk, _) = owned_elsewhere(&ring, edge).await;
    let mut moves = 0;
    for _ in 0..8 {
        let owner = ring.owner_of(&key).await;
        if owner.id == edge.id {
            // The edge itself stays: its socket is the one that must not break.
            break;
        }
        owner.sigterm();
        // In the middle of the drain as well as after it.
        talk.turn().await;
        assert_eq!(owner.wait_exit(ring.options.timing.drain()).await, 0, "{}", owner.log());
        talk.turn().await;
        moves += 1;
        owner.restart().await;
        ring.until_whole().await;
    }
    assert!(moves > 0);
    let history = History::read(&ring.sample_url).await;
    history.assert_one_connection_each();
    println!("{moves} planned moves under {} turns", talk.texts.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_on_one_socket_goes_on_after_its_owner_was_killed() {
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let (_, mut talk, owner) = owned_elsewhere(&ring, ring.node(0)).await;
    talk.turn().await;
    owner.kill9().await;
    let begun = std::time::Instant::now();
    talk.turn().await;
    println!("the next turn was answered {:?} after the kill", begun.elapsed());
    talk.turn().await;
}

/// Who owns a session, and who keeps its conversation as the next owner.
type Place<'a> = (&'a Node, &'a Node);

/// Conversations that each node keeps for others.
async fn kept(ring: &Ring) -> Vec<u64> {
    let mut kept = Vec::new();
    for node in &ring.nodes {
        let running = node.is_running();
        kept.push(if running { node.metric("ringspan_heir_conversations").await } else { 0 });
    }
    kept
}

/// A conversation through `edge` that another node owns and a third one keeps, with the
/// places of all that were begun until one was found.
async fn kept_by_a_third<'a>(ring: &'a Ring, edge: &Node) -> (Talk, Vec<Place<'a>>) {
    let mut places = Vec::new();
    for n in 0..64 {
        let (key, before) = (format!("kept-{n}"), kept(ring).await);
        let mut talk = Talk::begin(edge, &key).await;
        talk.turn().await;
        let owner = ring.owner_of(&key).await;
        let heir = eventually("a copy is kept", Duration::from_secs(10), async || {
            let after = kept(ring).await;
            (0..ring.nodes.len()).find(|n| after[*n] > before[*n])
        })
        .await;
        let heir = ring.node(heir);
        places.push((owner, heir));
        if owner.id != edge.id && heir.id != edge.id {
            return (talk, places);
        }
    }
    panic!("{} is part of all of 64 conversations", edge.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_at_rest_is_copied_again_when_its_heir_dies() {
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let edge = ring.node(0);
    let (mut talk, places) = kept_by_a_third(&ring, edge).await;
    let (owner, heir) = *places.last().unwrap();
    heir.kill9().await;
    ring.until_whole().await;
    // The edge is the next owner of all that the owner has, and still has what it kept for
    // the one that was killed.
    let is_for_edge =
        |(of, by): &&Place| of.id == owner.id || (of.id == heir.id && by.id == edge.id);
    let expected = places.iter().filter(is_for_edge).count() as u64;
    eventually("the next heir has its copies", Duration::from_secs(20), async || {
        (edge.metric("ringspan_heir_conversations").await == expected).then_some(())
    })
    .await;
    owner.kill9().await;
    talk.turn().await;
    talk.turn().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_at_rest_that_lost_its_owner_for_a_moment_keeps_its_conversation() {
    const DETACH: Duration = Duration::from_secs(3);

    let mut ring = Ring::prepare(RingOptions::nodes(2).responses("detach_ttl", "3s")).await;
    let owner = ring.nodes.pop().unwrap();
    // What the edge says to the owner goes through a gate.
    let gate = Gate::open(&owner.peer).await;
    let owner = owner.with("RINGSPAN_ADVERTISE", &format!("127.0.0.1:{}", gate.port));
    ring.nodes.push(owner);
    ring.migrate().await;
    ring.start_nodes().await;
    let (_, mut talk, _) = owned_elsewhere(&ring, ring.node(0)).await;
    gate.shut().await;
    gate.reopen().await;
    // Its client reads for longer than a session is kept without clients.
    tokio::time::sleep(2 * DETACH).await;
    talk.turn().await;
}
