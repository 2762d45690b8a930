//! Names whose answer lags behind: a node has another address, and its old one has another
//! user.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::sleep;

use super::{PACE, brisk, crowd, judge};
use crate::support::{
    Node, Ring, checker::Conduct, crowd::Pace, lab, process::Program, trial::Trial,
};

/// How long a name gives the old address: longer than a lease.
const LAG: Duration = Duration::from_secs(6);

/// Names of nodes.
const NAMES: [&str; 3] = ["a.ring.test", "b.ring.test", "c.ring.test"];

fn named(node: Node, name: &str) -> Node {
    node.with("RINGSPAN_ADVERTISE", &format!("{name}:50051"))
}

/// The names of the nodes, of which the second is at `second`.
fn tell(nodes: &[Node], second: &str) {
    let hosts = [nodes[0].host(), second, nodes[2].host()];
    let names: Vec<_> = NAMES.into_iter().zip(hosts).collect();
    lab::name(&names);
}

/// What the old address has come to.
enum Occupant {
    Node(Node),
    Server(Program),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a network of its own: ./test.sh faults"]
async fn a_name_that_leads_to_another_process_leads_no_session_astray() {
    // What peers answer is told once at a higher level.
    let filter = "\"info,ringspan::peer=debug\"";
    let mut ring = Ring::prepare(brisk(3).setting("log_filter", filter)).await;
    let nodes = std::mem::take(&mut ring.nodes);
    ring.nodes = nodes.into_iter().zip(NAMES).map(|(node, name)| named(node, name)).collect();
    tell(&ring.nodes, ring.node(1).host());
    // The second node, three times at a new address.
    let moved: Vec<_> =
        (0..3).map(|_| named(ring.node_at("node-1", lab::place()), NAMES[1])).collect();
    let other = Ring::start(brisk(0)).await;
    let trial = Trial::of(ring, moved).await;
    let crowd = crowd(&trial, Pace { anew_after: Some(3), ..PACE }).await;

    let mut before = trial.ring.node(1);
    for (n, after) in trial.spare.iter().enumerate() {
        // The first time without a farewell.
        before.process().signal(if n == 0 { Signal::KILL } else { Signal::TERM });
        before.wait_exit(trial.ring.options.timing.drain()).await;
        let place = before.place.clone();
        let occupant = match n {
            // A node of the same ring.
            0 => Occupant::Node(trial.ring.node_at("latecomer", place)),
            // A node of another ring with the same secret.
            1 => {
                // Where no client looks for it.
                Occupant::Node(other.node_at("stranger", place).on_ports(8081, 9091))
            }
            // Something that speaks no gRPC.
            _ => {
                let listen = ["sample-upstream", "--listen", &before.peer];
                let mut program = Program::new(trial.ring.dir().join("occupant.log"), &listen);
                program.namespace = place.map(|place| place.namespace);
                Occupant::Server(program)
            }
        };
        after.restart().await;
        let said = |node: &Node| node.log().matches("peer cannot be reached").count();
        let warnings = said(trial.ring.node(0)) + said(trial.ring.node(2));
        let server = match &occupant {
            Occupant::Node(node) => {
                node.restart().await;
                None
            }
            Occupant::Server(program) => Some(program.start()),
        };
        sleep(LAG).await;
        let met = said(trial.ring.node(0)) + said(trial.ring.node(2)) > warnings;
        assert!(met, "nobody asked for the node by its old address: {n}");
        tell(&trial.ring.nodes, after.host());
        drop(server);
        if let Occupant::Node(node) = occupant {
            node.sigterm();
            assert_eq!(
                node.wait_exit(trial.ring.options.timing.drain()).await,
                0,
                "{}",
                node.log()
            );
        }
        // Turns that were under way may end as they must.
        crowd.until_each(1).await;
        let failed = crowd.failed();
        crowd.until_each(2).await;
        assert_eq!(crowd.failed(), failed, "turns fail although all names are right");
        before = after;
    }
    let logs = trial.ring.node(0).log() + &trial.ring.node(2).log();
    for refusal in ["another incarnation", "another cluster"] {
        assert!(logs.contains(refusal), "nobody was refused as {refusal}");
    }
    judge("names lag behind", &trial, crowd, Conduct::Losses).await;
}
