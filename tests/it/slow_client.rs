//! A client that does not read slows itself only.

use std::time::{Duration, Instant};

use crate::support::{ALICE, Node, Received, Ring, RingOptions, Ws};

/// Clients that do not read.
const STALLED: usize = 16;
/// Round trips of the session that must not notice.
const ROUNDS: usize = 200;
/// Memory that a stalled session may take on each node: windows, sockets, replay log.
const BYTES_PER_STALLED: u64 = 6 << 20;

/// Median round trip of an echo.
async fn median(client: &mut Ws) -> Duration {
    let mut times = Vec::with_capacity(ROUNDS);
    for n in 0..ROUNDS {
        let began = Instant::now();
        client.text(n.to_string()).await;
        assert_eq!(client.data().await, Received::Text(n.to_string()));
        times.push(began.elapsed());
    }
    times.sort();
    times[ROUNDS / 2]
}

/// A client at node 0 of a session that node 1 owns.
async fn across(ring: &Ring, path: impl Fn(&str) -> String) -> Ws {
    for n in 0..64 {
        let key = format!("across-{}-{n}", ring.sessions().await.len());
        let client = Ws::open(&ring.node(0).url(&path(&key)), &[ALICE]).await;
        if ring.owner_of(&key).await.id == "node-1" {
            return client;
        }
    }
    panic!("node-1 owns none of 64 sessions");
}

fn memory(node: &Node) -> Option<u64> {
    node.process().resident_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_cost_bounded_memory_and_others_no_time() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let mut lively = across(&ring, |key| format!("/rooms/{key}")).await;
    median(&mut lively).await;
    let alone = median(&mut lively).await;
    let before: Vec<_> = ring.nodes.iter().map(memory).collect();

    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let flood = |key: &str| format!("/stream?session={key}&frames=1000000&bytes=4096");
        stalled.push(across(&ring, flood).await);
    }
    let beside: Duration = {
        // The floods fill every buffer between the upstream and the clients first.
        for _ in 0..3 {
            median(&mut lively).await;
        }
        median(&mut lively).await
    };
    println!("round trip alone {alone:?}, beside {STALLED} stalled clients {beside:?}");
    assert!(
        beside < alone * 3 + Duration::from_millis(10),
        "the round trip was {alone:?} and is {beside:?}"
    );
    for (node, before) in ring.nodes.iter().zip(before) {
        let (Some(before), Some(now)) = (before, memory(node)) else { continue };
        let grown = now.saturating_sub(before);
        println!("{}: {} MiB, {} MiB more", node.id, now >> 20, grown >> 20);
        assert!(grown < BYTES_PER_STALLED * STALLED as u64, "{} grew by {grown} bytes", node.id);
    }
    // One that reads on gets its stream, in order, or is told that it was too slow.
    let mut late = stalled.swap_remove(0);
    for n in 0..10_000 {
        match late.data().await {
            Received::Text(text) => assert_eq!(text.trim_end_matches('.'), n.to_string()),
            Received::Close(code, _) => {
                assert_eq!(code, 1013);
                break;
            }
            other => panic!("frame {n}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_slow_reader_of_a_session_does_not_hold_up_the_others_in_it() {
    const FRAMES: usize = 20_000;
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let path = format!("/stream?session=mixed&frames={FRAMES}&bytes=2048&last_seq=0");
    let slow = Ws::open(&ring.node(0).url(&path), &[ALICE]).await;
    let mut quick = Ws::open(&ring.node(1).url(&path), &[ALICE]).await;
    let resume = quick.header("ringspan-resume").to_owned();
    let mut next = None;
    loop {
        let text = quick.expect_text().await;
        let n: usize = text.trim_end_matches('.').parse().unwrap();
        if let Some(next) = next {
            assert_eq!(n, next, "in order, without a gap");
        } else if resume == "ok" {
            assert_eq!(n, 0);
        }
        next = Some(n + 1);
        if n == FRAMES - 1 {
            break;
        }
    }
    drop(slow);
}
