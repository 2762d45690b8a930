//! `continuity = "database"` and its contrary, `"memory"`: what a client that has nothing but
//! the id of its last response can count on, and what the operator's database shows of it.

use std::{fs, time::Duration};

use sqlx::{Connection, PgConnection, Row};

use crate::{
    continuity::{Talk, owned_elsewhere},
    support::{Ring, RingOptions, eventually},
};

/// Keys as `openssl rand -base64 32` prints them.
const KEYS: [&str; 2] = [
    "8J+Xne2FiYqLjI2Oj5CRkpOUlZaXmJmam5ydnp+goaI=",
    "o6SlpqeoqaqrrK2ur7CxsrO0tba3uLm6u7y9vr/AwcI=",
];

const PATIENCE: Duration = Duration::from_secs(20);

fn database(nodes: usize) -> RingOptions {
    kept(RingOptions::nodes(nodes))
}

/// The ring with its conversations in the database.
pub fn kept(options: RingOptions) -> RingOptions {
    options.responses("continuity", "database").setting("history_key", format!("\"{}\"", KEYS[0]))
}

/// All that the database holds of conversations.
async fn sealed(ring: &Ring) -> Vec<Vec<u8>> {
    let mut connection = PgConnection::connect(&ring.database_url).await.unwrap();
    let rows = sqlx::query("SELECT sealed FROM conversation ORDER BY session, epoch, part_no")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// One more turn, and the part that it makes is in the database, also where the machine is
/// too busy to have it there by the end of the turn.
async fn turn(ring: &Ring, talk: &mut Talk) {
    let written = async || {
        let mut parts = 0;
        for node in ring.nodes.iter().filter(|node| node.is_running()) {
            parts += node.metric("ringspan_conversation_parts_total").await;
        }
        parts
    };
    let before = written().await;
    talk.turn().await;
    eventually("a part is kept", PATIENCE, async || (written().await > before).then_some(())).await;
}

/// Gives the nodes other keys, from their next start on.
fn change_keys(ring: &Ring, from: &str, to: &str) {
    let path = ring.dir().join("ringspan.toml");
    let text = fs::read_to_string(&path).unwrap();
    let (from, to) = (format!("history_key = \"{from}\""), format!("history_key = \"{to}\""));
    assert!(text.contains(&from), "{text}");
    fs::write(&path, text.replace(&from, &to)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_goes_on_when_the_only_node_is_killed_and_restarted() {
    let ring = Ring::start(database(1)).await;
    let node = ring.node(0);
    let mut talk = Talk::begin(node, "one-node").await;
    turn(&ring, &mut talk).await;
    turn(&ring, &mut talk).await;
    for _ in 0..2 {
        node.kill9().await;
        node.restart().await;
        talk.again(node).await;
        turn(&ring, &mut talk).await;
    }
    // And when it is stopped in order.
    node.sigterm();
    talk.ended().await;
    assert_eq!(node.wait_exit(ring.options.timing.drain()).await, 0, "{}", node.log());
    node.restart().await;
    talk.again(node).await;
    turn(&ring, &mut talk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_goes_on_when_its_owner_and_the_next_owner_are_killed_at_once() {
    let ring = Ring::start(database(3)).await;
    let edge = ring.node(0);
    let (_, mut talk, _) = owned_elsewhere(&ring, edge).await;
    turn(&ring, &mut talk).await;
    tokio::join!(ring.node(1).kill9(), ring.node(2).kill9());
    turn(&ring, &mut talk).await;
    turn(&ring, &mut talk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_in_memory_is_moved_by_a_drain_and_honestly_lost_by_a_kill() {
    let ring = Ring::start(RingOptions::nodes(3).responses("continuity", "memory")).await;
    let edge = ring.node(0);
    let (key, mut talk, owner) = owned_elsewhere(&ring, edge).await;
    for node in &ring.nodes {
        assert_eq!(node.metric("ringspan_heir_conversations").await, 0, "{} has a copy", node.id);
    }
    owner.sigterm();
    assert_eq!(owner.wait_exit(ring.options.timing.drain()).await, 0, "{}", owner.log());
    talk.turn().await;
    let owner = ring.owner_of(&key).await;
    // The socket's own node may own it by now; then the client is gone with it.
    owner.kill9().await;
    let edge = ring.nodes.iter().find(|node| node.is_running()).unwrap();
    talk.again(edge).await;
    let turn = talk.ask().await;
    assert_eq!(turn.last()["error"]["code"], "previous_response_not_found", "{:?}", turn.events);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_shows_nothing_of_what_was_said_and_a_close_deletes_it() {
    let ring = Ring::start(database(1).responses("detach_ttl", "500ms")).await;
    let node = ring.node(0);
    let mut talk = Talk::begin(node, "read-me").await;
    turn(&ring, &mut talk).await;
    turn(&ring, &mut talk).await;
    let rows = sealed(&ring).await;
    assert_eq!(rows.len(), 2, "one part for each turn");
    for row in &rows {
        for text in ["turn", "socket", "message", "role", "resp"] {
            let shown = row.windows(text.len()).any(|window| window == text.as_bytes());
            assert!(!shown, "{text:?} is in a row");
        }
    }
    assert_eq!(node.metric("ringspan_conversation_parts_total").await, 2);
    assert!(!node.log().contains("of one socket"), "no payload is logged");
    drop(talk);
    eventually("the rows are deleted", PATIENCE, async || {
        sealed(&ring).await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_under_a_conversation_and_one_taken_away_too_early_is_told() {
    let ring = Ring::start(database(1)).await;
    let node = ring.node(0);
    let mut talk = Talk::begin(node, "rotated").await;
    turn(&ring, &mut talk).await;
    let old = sealed(&ring).await[0][1..5].to_vec();
    let both = format!("{},{}", KEYS[1], KEYS[0]);

    change_keys(&ring, KEYS[0], &both);
    node.kill9().await;
    node.restart().await;
    talk.again(node).await;
    turn(&ring, &mut talk).await;
    let rows = sealed(&ring).await;
    assert_eq!(rows.len(), 1, "written anew as a whole");
    assert_ne!(rows[0][1..5], old[..], "with the first key");

    change_keys(&ring, &both, KEYS[1]);
    node.kill9().await;
    node.restart().await;
    talk.again(node).await;
    turn(&ring, &mut talk).await;

    change_keys(&ring, KEYS[1], KEYS[0]);
    node.kill9().await;
    node.restart().await;
    talk.again(node).await;
    let turn = talk.ask().await;
    assert_eq!(turn.last()["error"]["code"], "previous_response_not_found", "{:?}", turn.events);
    assert!(node.log().contains("a part of a conversation cannot be read"), "{}", node.log());
    assert!(node.log().contains("which this node does not have"), "{}", node.log());
}
