//! A client that does not read slows itself only.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _, future::join_all, stream::SplitStream};
use tokio::{net::TcpStream, task::AbortHandle};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use crate::support::{ALICE, Node, Received, Ring, RingOptions, Ws, eventually};

/// Clients that do not read.
const STALLED: usize = 16;
/// Round trips of the session that must not notice.
const ROUNDS: usize = 200;
/// Bytes of a message that a stalled client sends.
const BYTES: usize = 16 << 10;
/// A client that could send nothing for so long has filled every buffer.
const STILL: Duration = Duration::from_millis(500);
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

/// A client at node 0 of a room that node 1 owns.
async fn across(ring: &Ring) -> Ws {
    for n in 0..64 {
        let key = format!("across-{}-{n}", ring.sessions().await.len());
        let client = Ws::open(&ring.node(0).url(&format!("/rooms/{key}")), &[ALICE]).await;
        if ring.owner_of(&key).await.id == "node-1" {
            return client;
        }
    }
    panic!("node-1 owns none of 64 rooms");
}

/// A client that sends numbered messages and reads nothing, until every buffer between it
/// and the upstream is full. Both halves stay open.
async fn stall(client: Ws) -> Stalled {
    let (mut sink, stream) = client.split();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let sending = tokio::spawn(async move {
        for n in 0.. {
            let message = Message::text(format!("{n:.<BYTES$}"));
            if sink.send(message).await.is_err() {
                return;
            }
            count.store(n + 1, Ordering::Relaxed);
        }
    });
    let mut last = (0, Instant::now());
    eventually("the buffers are full", Duration::from_mins(1), async || {
        let sent = sent.load(Ordering::Relaxed);
        if sent != last.0 {
            last = (sent, Instant::now());
        }
        (sent > 0 && last.1.elapsed() > STILL).then_some(())
    })
    .await;
    Stalled { stream, sending: sending.abort_handle(), sent }
}

struct Stalled {
    stream: SplitStream<WebSocketStream<TcpStream>>,
    sending: AbortHandle,
    sent: Arc<AtomicUsize>,
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.sending.abort();
    }
}

fn memory(node: &Node) -> Option<u64> {
    node.process().resident_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_cost_bounded_memory_and_others_no_time() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let mut lively = across(&ring).await;
    median(&mut lively).await;
    let alone = median(&mut lively).await;
    let mut before = Vec::new();
    before.extend(ring.nodes.iter().map(memory));

    let mut clients = Vec::new();
    for _ in 0..STALLED {
        clients.push(across(&ring).await);
    }
    let mut stalled = join_all(clients.into_iter().map(stall)).await;
    let beside = median(&mut lively).await;
    println!("round trip alone {alone:?}, beside {STALLED} stalled clients {beside:?}");
    // How much slower is for benches; here the machine may be busy with other tests.
    assert!(beside < Duration::from_secs(1), "the round trip was {alone:?} and is {beside:?}");
    for (node, before) in ring.nodes.iter().zip(before) {
        let (Some(before), Some(now)) = (before, memory(node)) else { continue };
        let grown = now.saturating_sub(before);
        println!("{}: {} MiB, {} MiB more", node.id, now >> 20, grown >> 20);
        assert!(grown < BYTES_PER_STALLED * STALLED as u64, "{} grew by {grown} bytes", node.id);
    }
    // One that reads at last gets every message, in order.
    let mut late = stalled.swap_remove(0);
    let full = late.sent.load(Ordering::Relaxed);
    for n in 0..full {
        match late.stream.next().await {
            Some(Ok(Message::Text(text))) => {
                assert_eq!(text.trim_end_matches('.'), n.to_string());
            }
            other => panic!("message {n} of {full}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_slow_reader_of_a_session_does_not_hold_up_the_others_in_it() {
    const FRAMES: usize = 20_000;
    // More than the slow one's buffers take: as long as it reads, it is the one that sets the pace.
    let ring = Ring::start(RingOptions::nodes(2).setting("replay_bytes", "\"16MiB\"")).await;
    let path = format!("/stream?session=mixed&frames={FRAMES}&bytes=2048");
    let slow = Ws::open(&ring.node(0).url(&path), &[ALICE]).await;
    let mut quick = Ws::open(&ring.node(1).url(&path), &[ALICE]).await;
    let mut next = None;
    while next != Some(FRAMES) {
        match quick.data().await {
            Received::Text(text) => {
                let n: usize = text.trim_end_matches('.').parse().unwrap();
                assert_eq!(n, next.unwrap_or(n), "in order, without a gap");
                next = Some(n + 1);
            }
            end => panic!("the quick reader, before frame {next:?}: {end:?}"),
        }
    }
    drop(slow);
}
