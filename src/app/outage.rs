//! Certificates: asks the other members whether they are cut off from the store as well, so
//! that what this node owns outlives its lease. The rules are in [`crate::ownership::outage`].

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use futures_util::future::join_all;
use tokio::time::sleep;

use super::Node;
use crate::{
    ids::Incarnation,
    ownership::{outage::Testimony, process},
    peer::NoTestimony,
    store::Member,
};

/// Runs until the node ends. It keeps acquainted with the others all the time, because who
/// is no acquaintance of a member has to wait long before it may declare it dead.
pub(super) async fn run(node: Arc<Node>) {
    let pause = node.witness.bounds().pause();
    loop {
        tokio::select! {
            biased;
            () = node.stop.background.cancelled() => return,
            () = sleep(pause.mul_f64(rand::random_range(0.8..1.2))) => {}
        }
        if node.lease.is_lost() {
            return;
        }
        if node.witness.cut_off(Instant::now()).is_some() {
            node.seek_certificate().await;
        } else {
            node.get_acquainted().await;
        }
    }
}

impl Node {
    /// The other living members of the view that this node answers others by.
    fn others(&self) -> Vec<Member> {
        let ring = self.ring.borrow();
        ring.alive().filter(|member| member.incarnation != self.me).cloned().collect()
    }

    async fn get_acquainted(&self) {
        let strangers: Vec<_> = self
            .others()
            .into_iter()
            .filter(|member| !self.witness.knows_us(member.incarnation))
            .collect();
        join_all(strangers.iter().map(|member| async {
            if let Err(NoTestimony::Silent(why)) = self.ask(member, false).await {
                tracing::debug!(incarnation = %member.incarnation, why, "not acquainted yet");
            }
        }))
        .await;
    }

    /// One round: a certificate, or the reason why there is none.
    async fn seek_certificate(&self) {
        let members = self.others();
        let asked = Instant::now();
        let lapsed = !self.lease.is_live(asked);
        let answers = join_all(members.iter().map(|member| self.hear(member, lapsed))).await;
        // Whoever joined the view meanwhile has not been asked.
        let heard: BTreeSet<Incarnation> = members.iter().map(|m| m.incarnation).collect();
        let joined = self.others().iter().any(|member| !heard.contains(&member.incarnation));
        let obstacles: Vec<_> = answers.into_iter().flatten().collect();
        if obstacles.is_empty() && !joined {
            let first = self.witness.certify(&self.lease, asked);
            if let Some(until) = self.lease.certified_until() {
                self.metrics.certified_until(until.into());
            }
            if first {
                let text = "no member reaches the database: owned sessions go on by certificate";
                tracing::warn!(witnesses = members.len(), "{text}");
                self.events.emit("outage", None, text);
            }
        } else if !obstacles.is_empty() && self.witness.refused(&obstacles.join("; ")) {
            let obstacle = obstacles.join("; ");
            tracing::warn!(obstacle, "no certificate: sessions are suspended when the lease ends");
            let text = format!("no certificate to outlive the lease: {obstacle}");
            self.events.emit("outage", None, &text);
        }
    }

    /// Why this member is an obstacle to a certificate; None if it promises, or is dead.
    async fn hear(&self, member: &Member, lapsed: bool) -> Option<String> {
        let name = &member.node_id;
        if process::is_proven_dead(&member.process) {
            return (!self.witness.bounds().spares_the_gone(lapsed))
                .then(|| format!("{name} is gone, and the lease had lapsed before"));
        }
        match self.ask(member, true).await {
            Ok(Testimony { promised: true, .. }) => None,
            Ok(_) => Some(format!("{name} promises nothing, it may reach the database")),
            Err(NoTestimony::Unknown) => {
                Some(format!("{name} is of a release without certificates"))
            }
            Err(NoTestimony::Silent(why)) => Some(format!("{name} does not answer ({why})")),
        }
    }

    /// Whatever was asked, who says that it knows us is an acquaintance from now on.
    async fn ask(&self, member: &Member, outage: bool) -> Result<Testimony, NoTestimony> {
        let bounds = self.witness.bounds();
        let said = self.peers.ask(member.incarnation, &member.peer_addr, bounds, outage).await;
        if matches!(said, Ok(Testimony { knows_you: true, .. }) | Err(NoTestimony::Unknown)) {
            self.witness.acquaint(member.incarnation);
        }
        said
    }
}
