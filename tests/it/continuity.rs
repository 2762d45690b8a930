//! A client that keeps its one socket and never resends its history: what is stored nowhere
//! (`store: false`) goes on all the same when its owner is replaced.

use serde_json::Value;

use crate::support::{
    ALICE, Node, Ring, RingOptions, Ws,
    history::History,
    responses::{Turn, create, user},
};

/// A conversation on one socket.
struct Talk {
    socket: Ws,
    texts: Vec<String>,
    previous: Option<String>,
}

impl Talk {
    async fn begin(edge: &Node, key: &str) -> Self {
        let url = edge.url("/v1/responses");
        let socket = Ws::open(&url, &[ALICE, ("session-id", key)]).await;
        Self { socket, texts: Vec::new(), previous: None }
    }

    /// One more turn, with nothing but its own text and the id of the one before.
    async fn turn(&mut self) {
        let text = format!("turn {} of one socket", self.texts.len() + 1);
        let request: Value = create(&[user(&text)], self.previous.as_deref());
        self.texts.push(text);
        let turn = Turn::run(&mut self.socket, &request).await;
        turn.assert_answers(&self.texts);
        self.previous = Some(turn.id());
    }
}

/// A conversation through `edge` that another node owns, after its first turn.
async fn owned_elsewhere<'a>(ring: &'a Ring, edge: &Node) -> (String, Talk, &'a Node) {
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
