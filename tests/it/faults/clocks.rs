//! Wall clocks that step by an hour while a ring runs: of nodes, and of the database.

use std::process::Command;

use super::{PACE, brisk, crowd, until_recovered};
use crate::{
    roll::assert_unnoticed,
    support::{Ring, Store, checker::Conduct, clock::Clock, crowd::Crowd, trial::Trial},
};

const HOUR: i64 = 3600;

/// The minute that a clock shows which is so many seconds ahead, give or take a few.
fn minutes(ahead: i64) -> [String; 2] {
    [ahead - 120, ahead + 120].map(|ahead| {
        let at = format!("{ahead:+} seconds");
        let date = Command::new("date").args(["-u", "-d", &at, "+%Y-%m-%dT%H:%M"]).output();
        String::from_utf8(date.unwrap().stdout).unwrap().trim().to_owned()
    })
}

/// Whether a log has a line of about that time.
fn believed(log: &str, ahead: i64) -> bool {
    let [from, to] = minutes(ahead);
    let stamps = log.split("\"timestamp\":\"").skip(1);
    stamps.filter_map(|rest| rest.get(..to.len())).any(|it| *from <= *it && *it <= *to)
}

/// Ends the run, of which nobody may have noticed anything.
async fn assert_nothing(trial: &Trial, crowd: Crowd) {
    crowd.until_more(1).await;
    let outcome = crowd.stop().await;
    assert_unnoticed(&outcome);
    trial.judge(Conduct::Planned, outcome).await.assert_holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs libfaketime: ./test.sh faults"]
async fn clocks_of_nodes_that_step_by_an_hour_change_nothing() {
    let mut ring = Ring::prepare(brisk(3)).await;
    let clocks: Vec<_> =
        (0..4).map(|n| Clock::new(&ring.dir().join(format!("clock-{n}")))).collect();
    let mut nodes = std::mem::take(&mut ring.nodes);
    nodes.push(ring.extra_node("spare"));
    let under = |(node, clock): (_, &Clock)| {
        clock
            .variables()
            .iter()
            .fold(node, |node: crate::support::Node, (name, value)| node.with(name, value))
    };
    ring.nodes = nodes.into_iter().zip(&clocks).map(under).collect();
    let spare = ring.nodes.pop().unwrap();
    let trial = Trial::of(ring, vec![spare]).await;
    let crowd = crowd(&trial, PACE).await;
    for steps in [[HOUR, -HOUR, 0, 0], [-HOUR, HOUR, -HOUR, HOUR], [0, -HOUR, HOUR, -HOUR]] {
        for (clock, step) in clocks.iter().zip(steps) {
            clock.step(step);
            crowd.until_more(1).await;
        }
    }
    // Who claims, hands over and is heir in other times than its neighbours.
    let (old, new) = (trial.ring.node(1), &trial.spare[0]);
    assert_eq!(trial.replace(old, new).await, 0, "{}", old.log());
    crowd.until_more(1).await;
    old.restart().await;
    clocks[3].step(HOUR);
    new.sigterm();
    assert_eq!(new.wait_exit(trial.ring.options.timing.drain()).await, 0, "{}", new.log());
    assert!(believed(&old.log(), -HOUR), "its clock was an hour behind: {}", old.log());
    assert!(believed(&new.log(), HOUR), "its clock was an hour ahead: {}", new.log());
    assert_nothing(&trial, crowd).await;
}

/// The clock by which leases are counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs libfaketime: ./test.sh faults"]
async fn a_clock_of_the_database_that_steps_by_an_hour_costs_no_node_its_lease() {
    let trial = Trial::start(brisk(3).store(Store::ClockedPostgres), 0).await;
    let crowd = crowd(&trial, PACE).await;
    let clock = trial.ring.clock.as_ref().unwrap();
    for ahead in [HOUR, 0, -HOUR, HOUR, 0] {
        clock.step(ahead);
        until_recovered(&trial, &crowd).await;
        assert_eq!(crowd.failed(), 0, "an hour ahead: {ahead}");
    }
    for node in &trial.ring.nodes {
        assert!(node.log().contains("the database's clock was set"), "{}", node.log());
    }
    let dead = trial.deaths_since(0).await;
    assert!(dead.is_empty(), "{dead:#?}");
    assert_nothing(&trial, crowd).await;
}
