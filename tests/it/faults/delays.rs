//! A ring whose nodes and database are far from each other.

use std::time::Duration;

use super::{PACE, apart, crowd};
use crate::{
    roll::{assert_unnoticed, roll, seed},
    support::{Node, Ring, checker::Conduct, slow_line::SlowLine, trial::Trial},
};

const DELAY: Duration = Duration::from_millis(50);
const JITTER: Duration = Duration::from_millis(40);

/// Lines to whatever they lead to.
#[derive(Default)]
struct Lines {
    seed: u64,
    open: Vec<SlowLine>,
}

impl Lines {
    async fn to(&mut self, target: &str) -> String {
        self.seed += 1;
        let line = SlowLine::to(target, DELAY, JITTER, self.seed).await;
        let addr = line.addr.clone();
        self.open.push(line);
        addr
    }

    /// The node as others reach it, and the database as it does, over lines of their own.
    async fn before(&mut self, node: Node, database_url: &str) -> Node {
        let (credentials, rest) = database_url.split_once('@').unwrap();
        let (target, database) = rest.split_once('/').unwrap();
        let url = format!("{credentials}@{}/{database}", self.to(target).await);
        let here = self.to(&node.peer).await;
        node.with("RINGSPAN_DATABASE_URL", &url).with("RINGSPAN_ADVERTISE", &here)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh faults"]
async fn a_ring_replaced_over_long_lines_fails_no_turn() {
    let mut ring = Ring::prepare(apart(3)).await;
    let mut lines = Lines { seed: seed(), open: Vec::new() };
    let (mut nodes, mut spare) = (Vec::new(), Vec::new());
    for node in std::mem::take(&mut ring.nodes) {
        nodes.push(lines.before(node, &ring.database_url).await);
    }
    for n in 0..nodes.len() {
        let node = ring.extra_node(&format!("spare-{n}"));
        spare.push(lines.before(node, &ring.database_url).await);
    }
    ring.nodes = nodes;
    let trial = Trial::of(ring, spare).await;
    let crowd = crowd(&trial, PACE).await;
    roll(&trial, &crowd, 20, &trial.ring.nodes, &trial.spare).await;
    crowd.until_more(1).await;
    let outcome = crowd.stop().await;
    assert_unnoticed(&outcome);
    trial.judge(Conduct::Planned, outcome).await.assert_holds();
}
