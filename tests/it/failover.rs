//! Figures: from the kill of an owner to the end of the next turn on a socket that stayed.
//! Printed by `./test.sh continuity`.

use std::time::{Duration, Instant};

use crate::support::{
    ALICE, Node, Ring, RingOptions, Timing, Ws,
    responses::{Turn, create, user},
};

/// A conversation through `edge` that another node owns, after its first turn.
async fn owned_elsewhere<'a>(ring: &'a Ring, edge: &Node, round: usize) -> (Ws, Turn, &'a Node) {
    for n in 0..64 {
        let key = format!("round-{round}-{n}");
        let headers = [ALICE, ("session-id", key.as_str())];
        let mut socket = Ws::open(&edge.url("/v1/responses"), &headers).await;
        let turn = Turn::run(&mut socket, &create(&[user("before")], None)).await;
        let owner = ring.owner_of(&key).await;
        if owner.id != edge.id {
            return (socket, turn, owner);
        }
    }
    panic!("{} owns all of 64 conversations", edge.id);
}

/// Kills owners, `rounds` times; prints how long the next turn took.
async fn figures(what: &str, options: RingOptions, rounds: usize) {
    let ring = Ring::start(options).await;
    let edge = ring.node(0);
    let mut times = Vec::new();
    for round in 0..rounds {
        let (mut socket, before, owner) = owned_elsewhere(&ring, edge, round).await;
        owner.process().signal(rustix::process::Signal::KILL);
        let began = Instant::now();
        let next = create(&[user("after")], Some(&before.id()));
        let turn = Turn::run(&mut socket, &next).await;
        times.push(began.elapsed());
        turn.assert_answers(&["before".to_owned(), "after".to_owned()]);
        owner.wait_exit(Duration::from_secs(10)).await;
        owner.restart().await;
        ring.until_whole().await;
    }
    times.sort_unstable();
    let at = |percent: usize| times[(rounds * percent).div_ceil(100) - 1];
    println!("failover, {what}: p50 {:.2?}, p99 {:.2?}, {rounds} kills", at(50), at(99));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures: ./test.sh continuity"]
async fn long_failover_with_proof_of_death() {
    figures("fast timing, death proven", RingOptions::nodes(3), 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures: ./test.sh continuity"]
async fn long_failover_by_lease() {
    let options = RingOptions::nodes(3).without_process_proof();
    figures("fast timing, lease only", options, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures: ./test.sh continuity"]
async fn long_failover_by_default_with_proof_of_death() {
    let options = RingOptions::nodes(3).timing(Timing::Default);
    figures("default timing, death proven", options, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures: ./test.sh continuity"]
async fn long_failover_by_default_by_lease() {
    let options = RingOptions::nodes(3).timing(Timing::Default).without_process_proof();
    figures("default timing, lease only", options, 5).await;
}
