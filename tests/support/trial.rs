//! A ring under load whose every history is kept, to be judged at the end.

use std::time::Duration;

use super::{
    Node, Ring, RingOptions,
    audit::Audit,
    balancer::Balancer,
    checker::{Conduct, Connection, Create, History, Verdict, judge, moves},
    crowd::Outcome,
    history,
};

/// A ring, places for the nodes that replace its first ones, and the audit of its database.
pub struct Trial {
    pub ring: Ring,
    /// Not started.
    pub spare: Vec<Node>,
    pub balancer: Balancer,
    pub audit: Audit,
}

impl Trial {
    /// A whole ring behind a balancer; `spare` more places.
    pub async fn start(options: RingOptions, spare: usize) -> Self {
        let ring = Ring::prepare(options).await;
        let spare = (0..spare).map(|n| ring.extra_node(&format!("spare-{n}"))).collect();
        Self::of(ring, spare).await
    }

    /// Of a ring that was prepared.
    pub async fn of(ring: Ring, spare: Vec<Node>) -> Self {
        ring.migrate().await;
        let audit = Audit::install(&ring.direct_database_url()).await;
        ring.start_nodes().await;
        let balancer = Balancer::over(ring.nodes.iter().chain(&spare)).await;
        Self { ring, spare, balancer, audit }
    }

    /// Tells `old` to go when `new` serves. Its exit status.
    pub async fn replace(&self, old: &Node, new: &Node) -> i32 {
        new.restart().await;
        old.sigterm();
        // Its dwell and cleanup come on top.
        old.wait_exit(self.ring.options.timing.drain() + Duration::from_secs(5)).await
    }

    /// Judges what came of a crowd; prints the table.
    pub async fn judge(&self, conduct: Conduct, outcome: Outcome) -> Verdict {
        let (connections, creates) = upstream(&self.ring.sample_url).await;
        let changes = self.audit.changes().await;
        let clients = outcome.seen;
        let verdict = judge(&History { conduct, clients, connections, creates, changes });
        println!("{verdict}");
        verdict
    }

    /// Moves of every session since the mark `from` of the audit, in ascending order.
    pub async fn moves_since(&self, from: i64) -> Vec<usize> {
        let changes = self.audit.changes().await;
        let mut moves: Vec<_> = moves(&changes, from..i64::MAX).into_values().collect();
        moves.sort_unstable();
        moves
    }
}

/// What the sample upstream noted.
async fn upstream(url: &str) -> (Vec<Connection>, Vec<Create>) {
    let (mut connections, mut creates) = (Vec::new(), Vec::new());
    for noted in history::History::read(url).await.all() {
        let session = noted["session_id"].as_str().unwrap_or_default().to_owned();
        let id = noted["id"].as_u64().unwrap();
        if noted["transport"] == "websocket" {
            let (opened, closed) =
                (noted["opened_ms"].as_u64().unwrap(), noted["closed_ms"].as_u64());
            connections.push(Connection { id, session: session.clone(), opened, closed });
        }
        for create in noted["creates"].as_array().unwrap() {
            let text = |name: &str| create[name].as_str().map(str::to_owned);
            creates.push(Create {
                at: create["started_ms"].as_u64().unwrap(),
                connection: id,
                session: session.clone(),
                response: text("response_id"),
                conversation: text("conversation").unwrap_or_default(),
                generate: create["generate"] != false,
                outcome: text("outcome").unwrap_or_default(),
            });
        }
    }
    (connections, creates)
}
