//! Rings that are replaced node by node under load, judged by the checker. The long forms
//! are run by `./test.sh continuity`.

use std::time::{Duration, Instant};

use crate::support::{
    Node, RingOptions, Store,
    checker::{Conduct, Invariant},
    crowd::{Crowd, Outcome, Pace},
    trial::Trial,
};

/// The seed of this run: `RINGSPAN_SEED`, or a new one.
pub fn seed() -> u64 {
    let set = std::env::var("RINGSPAN_SEED").ok();
    set.map_or_else(rand::random, |seed| seed.parse().expect("RINGSPAN_SEED is a number"))
}

/// A number of this run: a variable, or `otherwise`.
pub fn number(variable: &str, otherwise: usize) -> usize {
    let set = std::env::var(variable).ok();
    set.map_or(otherwise, |number| number.parse().expect("a number"))
}

/// Replaces every node in `old` by one in `new`, each new one first. Prints the moves, and
/// returns how many there were for each client.
pub async fn roll(trial: &Trial, crowd: &Crowd, clients: usize, old: &[Node], new: &[Node]) -> f64 {
    let mark = trial.audit.mark().await;
    let began = Instant::now();
    for (old, new) in old.iter().zip(new) {
        assert_eq!(trial.replace(old, new).await, 0, "{}", old.log());
        crowd.until_more(1).await;
    }
    let moves = trial.moves_since(mark).await;
    let (sessions, all) = (moves.len(), moves.iter().sum::<usize>());
    println!(
        "a roll of {} nodes took {:.1?}: {all} moves of {sessions} sessions, at most {} of one, \
         {:.2} for each of {clients} clients",
        old.len(),
        began.elapsed(),
        moves.last().unwrap_or(&0),
        ratio(all, clients),
    );
    ratio(all, clients)
}

#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn ratio(of: usize, to: usize) -> f64 {
    of as f64 / to as f64
}

pub fn assert_unnoticed(outcome: &Outcome) {
    let Outcome { turns, hidden, unknown, forgotten, failures, .. } = outcome;
    println!("{turns} turns, {} failed; hidden from users: {hidden:?}", failures.len());
    assert!(failures.is_empty(), "{} of {turns} turns failed: {failures:#?}", failures.len());
    assert_eq!(
        (*unknown, *forgotten, hidden.restarted),
        (0, 0, 0),
        "unknown, forgotten, restarted"
    );
}

/// Rolls under load that nobody may notice; the moves for each client of each.
async fn rolls(clients: usize, rolls: usize, pace: Pace) -> Vec<f64> {
    let trial = Trial::start(RingOptions::nodes(3), 3).await;
    let crowd = Crowd::start(&trial.balancer.url, clients, pace, seed());
    crowd.until_more(2).await;
    let mut moves = Vec::new();
    for n in 0..rolls {
        let (old, new) = (&trial.ring.nodes, &trial.spare);
        let (old, new) = if n % 2 == 0 { (old, new) } else { (new, old) };
        moves.push(roll(&trial, &crowd, clients, old, new).await);
    }
    crowd.until_more(1).await;
    let outcome = crowd.stop().await;
    assert_unnoticed(&outcome);
    let verdict = trial.judge(Conduct::Planned, outcome).await;
    verdict.assert_holds();
    for invariant in Invariant::ALL {
        assert!(verdict.checked(invariant) > clients, "{invariant:?} was hardly looked at");
    }
    moves
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_replaced_under_load_fails_no_turn_and_breaks_no_invariant() {
    rolls(30, 1, Pace { deltas: 8, delay: 20, think: 400, anew_after: None }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh continuity"]
async fn long_two_rolls_under_two_hundred_busy_sessions() {
    let clients = number("RINGSPAN_CLIENTS", 200);
    let moves =
        rolls(clients, 2, Pace { deltas: 10, delay: 20, think: 2000, anew_after: None }).await;
    assert!(moves.iter().all(|moves| *moves <= 1.2), "moves for each client: {moves:?}");
}

/// What users saw of losses.
fn report(what: &str, outcome: &Outcome) {
    let Outcome { turns, hidden, unknown, forgotten, failures, .. } = outcome;
    println!(
        "{what}, {turns} turns: {unknown} of unknown outcome, {forgotten} conversations \
         forgotten, {} other failures; {hidden:?}",
        failures.len()
    );
}

/// Owners and edges die one after another; what a user may see of it is an unknown outcome or
/// an answer that begins anew, never a wrong one.
async fn kills(clients: usize, rounds: usize, pace: Pace) {
    let trial = Trial::start(RingOptions::nodes(3), 0).await;
    let crowd = Crowd::start(&trial.balancer.url, clients, pace, seed());
    crowd.until_more(2).await;
    for round in 0..rounds {
        let victim = trial.ring.node(round % 3);
        victim.kill9().await;
        crowd.until_more(1).await;
        victim.restart().await;
        trial.ring.until_whole().await;
        crowd.until_more(1).await;
    }
    let outcome = crowd.stop().await;
    report(&format!("{rounds} kills"), &outcome);
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    trial.judge(Conduct::Losses, outcome).await.assert_holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_killed_under_load_leave_only_what_is_said_to_be_unknown() {
    kills(20, 2, Pace { deltas: 8, delay: 20, think: 400, anew_after: None }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh continuity"]
async fn long_every_node_killed_three_times_under_a_hundred_sessions() {
    kills(
        number("RINGSPAN_CLIENTS", 100),
        9,
        Pace { deltas: 10, delay: 20, think: 1000, anew_after: None },
    )
    .await;
}

/// Nodes are frozen for longer than their lease and come back as if nothing had happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh continuity"]
async fn long_nodes_frozen_past_their_lease_double_nothing() {
    let trial = Trial::start(RingOptions::nodes(3), 0).await;
    let pace = Pace { deltas: 10, delay: 20, think: 1000, anew_after: None };
    let crowd = Crowd::start(&trial.balancer.url, 60, pace, seed());
    crowd.until_more(2).await;
    for victim in &trial.ring.nodes {
        victim.freeze().await;
        // Until the others have declared it dead and taken what they were asked for.
        let mark = trial.audit.mark().await;
        trial.until_deaths_since(mark, 1).await;
        crowd.until_more(1).await;
        victim.cont();
        assert_eq!(victim.wait_exit(Duration::from_secs(20)).await, 1, "{}", victim.log());
        victim.restart().await;
        trial.ring.until_whole().await;
        crowd.until_more(1).await;
    }
    let outcome = crowd.stop().await;
    report("3 freezes", &outcome);
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    trial.judge(Conduct::Freezes, outcome).await.assert_holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh continuity"]
async fn long_the_database_goes_for_half_a_minute_and_comes_back() {
    let options = RingOptions::nodes(3).store(Store::OwnPostgres);
    let trial = Trial::start(options, 0).await;
    let pace = Pace { deltas: 10, delay: 20, think: 1000, anew_after: None };
    let crowd = Crowd::start(&trial.balancer.url, 40, pace, seed());
    crowd.until_more(2).await;
    let server = trial.ring.server.as_ref().expect("it has a server of its own");
    let before = crowd.turns();
    tokio::task::block_in_place(|| server.stop_immediate());
    tokio::time::sleep(Duration::from_secs(30)).await;
    println!("{} turns were answered while the database was away", crowd.turns() - before);
    tokio::task::block_in_place(|| server.start_again());
    let began = Instant::now();
    crowd.until_more(2).await;
    println!("two more turns of each client {:.1?} after its return", began.elapsed());
    let outcome = crowd.stop().await;
    report("an outage of the database", &outcome);
    trial.judge(Conduct::Losses, outcome).await.assert_holds();
}
