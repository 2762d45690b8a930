//! Processes that stand still, wherever they are, and go on as if nothing had happened.

use tokio::time::sleep;

use super::{LEASE, PACE, brisk, crowd, judge, until_recovered};
use crate::support::{checker::Conduct, eventually, trial::Trial};

async fn stop(fault: &str, leases: u32) {
    let trial = Trial::start(brisk(3), 0).await;
    let crowd = crowd(&trial, PACE).await;
    for victim in &trial.ring.nodes {
        victim.freeze().await;
        sleep(LEASE * leases).await;
        victim.cont();
        // One that was declared dead hears so with its next heartbeat, and ends.
        eventually("it serves or has ended", LEASE * 10, async || {
            let health = victim.health().await;
            let serves = health.is_some_and(|it| it["lease_remaining_seconds"] != 0.0);
            (serves || !victim.is_running()).then_some(())
        })
        .await;
        if !victim.is_running() {
            victim.restart().await;
        }
        until_recovered(&trial, &crowd).await;
    }
    judge(fault, &trial, crowd, Conduct::Freezes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh faults"]
async fn nodes_that_stand_still_for_a_lease_double_nothing() {
    stop("each node stands still for a lease", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh faults"]
async fn nodes_that_stand_still_for_three_leases_double_nothing() {
    stop("each node stands still for three leases", 3).await;
}
