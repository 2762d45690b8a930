//! A ring under load whose every history is kept, to be judged at the end.

use std::time::Duration;

use super::{
    Node, Ring, RingOptions,
    audit::Audit,
    balancer::Balancer,
    checker::{Change, Conduct, History, Verdict, judge, moves},
    crowd::Outcome,
    eventually, history,
};

/// How long others may take to declare nodes dead.
const DEATH: Duration = Duration::from_secs(30);

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
        let (connections, creates) = history::History::read(&self.ring.sample_url).await.facts();
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

    /// Members that were declared dead since the mark `from`.
    pub async fn deaths_since(&self, from: i64) -> Vec<Change> {
        let mut changes = self.audit.changes().await;
        changes.retain(|change| change.order >= from && change.after["state"] == "DEAD");
        changes
    }

    /// Waits for so many of them.
    pub async fn until_deaths_since(&self, from: i64, count: usize) {
        eventually(&format!("{count} declared dead"), DEATH, async || {
            (self.deaths_since(from).await.len() >= count).then_some(())
        })
        .await;
    }
}
