//! A node that joins a ring in which sessions live for long.

use std::time::Duration;

use crate::support::{
    ALICE, Ring, RingOptions, Ws, eventually, http,
    responses::{Turn, create, user},
};

const SECONDS: Duration = Duration::from_mins(1);
const SESSIONS: usize = 60;

/// Sessions handed over for the sake of balance, as the metrics of all nodes say.
async fn moves(ring: &Ring) -> usize {
    let mut moves = 0;
    for node in &ring.nodes {
        let metrics = http::get(&format!("{}/metrics", node.admin_url), &[]).await.text();
        let wanted = |line: &&str| {
            line.starts_with("ringspan_handoffs_total{") && line.contains("reason=\"balance\"")
        };
        let values = metrics.lines().filter(wanted).filter_map(|line| line.rsplit(' ').next());
        moves += values.filter_map(|value| value.parse::<usize>().ok()).sum::<usize>();
    }
    moves
}

/// Sessions of each node.
async fn loads(ring: &Ring) -> Vec<usize> {
    let sessions = ring.sessions().await;
    let owned = |id: &str| sessions.iter().filter(|it| it["owner_node"] == id).count();
    ring.nodes.iter().map(|node| owned(&node.id)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_gets_its_part_of_idle_sessions_and_no_client_notices() {
    let options =
        RingOptions::nodes(3).setting("rebalance_idle", "\"1s\"").setting("rebalance_rate", 50);
    let ring = Ring::prepare(options).await;
    ring.migrate().await;
    for node in &ring.nodes[..2] {
        node.start();
    }
    ring.until_whole().await;
    let mut talks = Vec::new();
    for n in 0..SESSIONS {
        let (key, text) = (format!("long-{n}"), format!("first of {n}"));
        let headers = [ALICE, ("session-id", key.as_str())];
        let mut socket = Ws::open(&ring.node(n % 2).url("/v1/responses"), &headers).await;
        let first = Turn::run(&mut socket, &create(&[user(&text)], None)).await;
        talks.push((socket, vec![text], first.id()));
    }
    ring.node(2).start();
    ring.until_whole().await;
    let fair = SESSIONS / 3;
    let balanced = eventually("the load is even", SECONDS, async || {
        let loads = loads(&ring).await;
        loads.iter().all(|load| load * 100 <= fair * 125 + 100).then_some(loads)
    })
    .await;
    for (n, (socket, said, previous)) in talks.iter_mut().enumerate() {
        let text = format!("second of {n}");
        let turn = Turn::run(socket, &create(&[user(&text)], Some(previous))).await;
        said.push(text);
        turn.assert_answers(said);
    }
    let moved = moves(&ring).await;
    println!("{balanced:?} after {moved} moves");
    assert!(moved >= 10 && moved <= fair + 5, "{moved} moves");
    // It stays so.
    eventually("it is still for some rounds", SECONDS, async || {
        let before = moves(&ring).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        (moves(&ring).await == before).then_some(())
    })
    .await;
    assert!(moves(&ring).await <= fair + 5);
}
