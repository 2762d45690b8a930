//! What can break between processes and around them, while clients talk: judged by the
//! checker. `./test.sh faults` runs these, some with a network of their own, and others beside
//! them, and prints one table of all.

mod clocks;
mod delays;
mod kills;
mod names;
mod outages;
mod partitions;
mod stops;
mod upstream;

use std::time::Duration;

use super::roll::seed;
use crate::support::{
    RingOptions, Timing,
    checker::Conduct,
    crowd::{Crowd, Outcome, Pace},
    trial::Trial,
};

/// Of rings here: trouble of a second does not end it.
const LEASE: Duration = Duration::from_secs(3);

/// How busy the clients are.
const PACE: Pace = Pace { deltas: 8, delay: 20, think: 400, anew_after: None };

/// Nodes that cannot see whether another's process lives, as on several machines.
fn brisk(nodes: usize) -> RingOptions {
    leased(nodes).setting("database_timeout", "\"1s\"")
}

/// The same with so little patience with the database that a busy machine has time for
/// certificates within a lease.
fn certifiable(nodes: usize) -> RingOptions {
    leased(nodes).setting("database_timeout", "\"500ms\"")
}

fn leased(nodes: usize) -> RingOptions {
    apart(nodes).setting("lease_ttl", "\"3s\"").setting("heartbeat_interval", "\"400ms\"")
}

/// The same with the default lease, and patience with the database.
fn apart(nodes: usize) -> RingOptions {
    RingOptions::nodes(nodes)
        .timing(Timing::Default)
        .without_process_proof()
        .setting("ring_poll", "\"400ms\"")
        .setting("drain_dwell", "\"300ms\"")
        .setting("drain_timeout", "\"15s\"")
        .setting("drain_cleanup", "\"2s\"")
}

/// Twenty clients at work, each with a turn behind it.
async fn crowd(trial: &Trial, pace: Pace) -> Crowd {
    let crowd = Crowd::start(&trial.balancer.url, 20, pace, seed());
    crowd.until_more(2).await;
    crowd
}

/// Waits until all is well, and asserts that it stays so.
async fn until_recovered(trial: &Trial, crowd: &Crowd) {
    trial.ring.until_whole().await;
    // Turns that were under way may end as they must.
    crowd.until_each(1).await;
    let failed = crowd.failed();
    crowd.until_each(2).await;
    assert_eq!(crowd.failed(), failed, "turns fail although the trouble is over");
}

/// What users lost, and were told so.
struct Told {
    /// Turns of unknown outcome.
    unknown: usize,
    /// Conversations that began anew.
    forgotten: usize,
}

/// Asserts that whoever got no answer was told to come again, and that no invariant was broken.
async fn judge(fault: &str, trial: &Trial, crowd: Crowd, conduct: Conduct) -> Told {
    let outcome = crowd.stop().await;
    let Outcome { turns, hidden, unknown, forgotten, failures, .. } = &outcome;
    let (refused, others): (Vec<_>, Vec<_>) =
        failures.iter().partition(|failure| failure.contains("gave up: "));
    println!(
        "{fault}, {turns} turns: {unknown} of unknown outcome, {forgotten} conversations \
         forgotten, {} given up after several refusals; {hidden:?}\nREFUSED {}",
        refused.len(),
        refused.len()
    );
    for why in refused.iter().take(3) {
        println!("given up: {why}");
    }
    assert!(others.is_empty(), "{others:#?}");
    let told = Told { unknown: *unknown, forgotten: *forgotten };
    trial.judge(conduct, outcome).await.assert_holds();
    told
}
