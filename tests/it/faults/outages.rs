//! A database that is away from all nodes for longer than a lease, while clients talk.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::{LEASE, PACE, certifiable, crowd, judge, until_recovered};
use crate::{
    outage::{until_certified, until_suspended},
    support::{
        Store,
        checker::{Conduct, Table},
        trial::Trial,
    },
};

/// How often the database stands still.
const ROUNDS: usize = 2;

async fn until_all_certified(trial: &Trial) {
    for node in &trial.ring.nodes {
        until_certified(node).await;
    }
}

/// Asserts that since the mark no session got another owner or epoch, and nobody died.
async fn assert_nothing_moved(trial: &Trial, mark: i64) {
    let mut moved = trial.audit.changes().await;
    moved.retain(|change| {
        let differs = |field: &str| change.before[field] != change.after[field];
        let claimed = change.table == Table::Session && (differs("owner") || differs("epoch"));
        change.order >= mark && claimed
    });
    assert!(moved.is_empty(), "owners or epochs changed: {moved:#?}");
    let dead = trial.deaths_since(mark).await;
    assert!(dead.is_empty(), "{dead:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh faults"]
async fn a_database_that_stands_still_for_three_leases_moves_no_session_and_doubles_nothing() {
    let trial = Trial::start(certifiable(3).store(Store::OwnPostgres), 0).await;
    let crowd = crowd(&trial, PACE).await;
    // From now on every session has its owner.
    crowd.until_each(1).await;
    let server = trial.ring.server.as_ref().expect("it has a server of its own");
    let mark = trial.audit.mark().await;
    for _ in 0..ROUNDS {
        server.freeze();
        let began = Instant::now();
        until_all_certified(&trial).await;
        let before = crowd.turns();
        sleep((LEASE * 3).saturating_sub(began.elapsed())).await;
        let answered = crowd.turns() - before;
        server.thaw();
        println!("{answered} turns were answered by certificate");
        assert!(answered > 0, "nobody was served while the database stood still");
        until_recovered(&trial, &crowd).await;
    }
    assert_nothing_moved(&trial, mark).await;
    let told = judge("the database stands still", &trial, crowd, Conduct::Losses).await;
    assert_eq!((told.unknown, told.forgotten), (0, 0), "unknown, forgotten: every owner lived");
}

/// Until it wakes it has neither lease nor certificate any more, and another may have its
/// sessions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh faults"]
async fn certified_nodes_that_stand_still_double_nothing() {
    let trial = Trial::start(certifiable(3).store(Store::GatedPostgres), 0).await;
    let crowd = crowd(&trial, PACE).await;
    let gate = trial.ring.gate.as_ref().expect("it is behind a gate");
    for victim in &trial.ring.nodes {
        let mark = trial.audit.mark().await;
        gate.shut().await;
        until_all_certified(&trial).await;
        victim.freeze().await;
        // Without its promise nobody else is sure of the database.
        for other in trial.ring.others(victim) {
            let suspended = timeout(LEASE * 3, until_suspended(other)).await;
            assert!(suspended.is_ok(), "{} is certified by one that stands still", other.id);
        }
        gate.reopen().await;
        trial.until_deaths_since(mark, 1).await;
        // Others have its sessions.
        crowd.until_more(1).await;
        victim.cont();
        assert_eq!(victim.wait_exit(Duration::from_secs(30)).await, 1, "{}", victim.log());
        victim.restart().await;
        until_recovered(&trial, &crowd).await;
    }
    judge("certified nodes stand still", &trial, crowd, Conduct::Freezes).await;
}
