//! Packets between nodes, or between a node and the database, that do not arrive.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{LEASE, PACE, brisk, crowd, judge, until_recovered};
use crate::{
    outage::until_suspended,
    support::{Node, checker::Conduct, lab, trial::Trial},
};

/// Within any patience.
const SHORT: Duration = Duration::from_secs(1);
/// Longer than a lease, and than a silent peer stays unnoticed.
const LONG: Duration = Duration::from_secs(10);
/// Bound of what follows.
const RECOVERY: Duration = Duration::from_secs(30);

/// Cuts for a time; what was said meanwhile must have been lost.
async fn for_a_time(time: Duration, cuts: &[(&str, &str)]) {
    let before = lab::dropped();
    for (from, to) in cuts {
        lab::cut(from, to);
    }
    sleep(time).await;
    let dropped = lab::dropped() - before;
    lab::heal();
    println!("for {time:?} {dropped} packets were lost");
    assert!(dropped > 0, "nothing was lost");
}

/// Two of three nodes, which both reach the third and the database. Nobody dies of it, and
/// clients reach every session through some node.
async fn between_nodes(fault: &str, cuts: impl Fn(&Node, &Node) -> Vec<(String, String)>) {
    let trial = Trial::start(brisk(3), 0).await;
    let crowd = crowd(&trial, PACE).await;
    let cuts = cuts(trial.ring.node(0), trial.ring.node(1));
    let cuts: Vec<_> = cuts.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
    let mark = trial.audit.mark().await;
    for time in [SHORT, LONG] {
        for_a_time(time, &cuts).await;
        until_recovered(&trial, &crowd).await;
    }
    let moves = trial.moves_since(mark).await;
    assert!(moves.is_empty(), "all nodes have the database, no session may move: {moves:?}");
    judge(fault, &trial, crowd, Conduct::Partitions).await;
}

fn pair(from: &Node, to: &Node) -> (String, String) {
    (from.host().to_owned(), to.host().to_owned())
}

fn both_ways(one: &str, two: &str) -> [(String, String); 2] {
    [(one.to_owned(), two.to_owned()), (two.to_owned(), one.to_owned())]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a network of its own: ./test.sh faults"]
async fn nodes_that_do_not_reach_each_other_fail_no_session_for_good() {
    between_nodes("two nodes apart", |one, two| both_ways(one.host(), two.host()).into()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a network of its own: ./test.sh faults"]
async fn a_node_that_is_not_heard_by_another_fails_no_session_for_good() {
    between_nodes("a node is deaf to one", |one, two| vec![pair(one, two)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a network of its own: ./test.sh faults"]
async fn a_node_that_does_not_hear_another_fails_no_session_for_good() {
    between_nodes("a node is not heard by one", |one, two| vec![pair(two, one)]).await;
}

/// One node, given with the others, and the database: for a moment, and until others have
/// declared the node dead.
async fn from_database(fault: &str, cuts: impl Fn(&Node, &[&Node]) -> Vec<(String, String)>) {
    let trial = Trial::start(brisk(3), 0).await;
    let crowd = crowd(&trial, PACE).await;
    let victim = trial.ring.youngest().await;
    let cuts = cuts(victim, &trial.ring.others(victim));
    let cuts: Vec<_> = cuts.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
    for_a_time(SHORT, &cuts).await;
    until_recovered(&trial, &crowd).await;
    assert!(victim.is_running(), "a second is less than its lease of {LEASE:?}");

    let mark = trial.audit.mark().await;
    let (suspended, ()) =
        tokio::join!(timeout(LONG, until_suspended(victim)), for_a_time(LONG, &cuts));
    assert!(suspended.is_ok(), "it serves beyond its lease: {}", victim.log());
    trial.until_deaths_since(mark, 1).await;
    assert_eq!(victim.wait_exit(RECOVERY).await, 1, "{}", victim.log());
    victim.restart().await;
    until_recovered(&trial, &crowd).await;
    judge(fault, &trial, crowd, Conduct::Freezes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a network of its own: ./test.sh faults"]
async fn a_node_apart_from_the_database_doubles_nothing() {
    from_database("a node apart from the database", |node, _| {
        both_ways(node.host(), lab::DATABASE).into()
    })
    .await;
}

/// It cannot tell this from an outage for all, nor can it ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a network of its own: ./test.sh faults"]
async fn a_node_apart_from_the_database_and_its_peers_doubles_nothing() {
    from_database("a node apart from the database and its peers", |node, others| {
        let others = others.iter().map(|other| other.host()).chain([lab::DATABASE]);
        others.flat_map(|other| both_ways(node.host(), other)).collect()
    })
    .await;
}

/// What it asks for is done, and it never hears so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a network of its own: ./test.sh faults"]
async fn a_node_whose_commits_are_not_answered_doubles_nothing() {
    from_database("a node's commits are not answered", |node, _| {
        vec![(lab::DATABASE.to_owned(), node.host().to_owned())]
    })
    .await;
}
