//! Questions about the store's absence, and their answers.

use std::time::Duration;

use tokio::time::timeout;
use tonic::{Code, Status};

use super::{
    incoming::Incoming,
    outgoing::{Identity, Peers},
    proto,
};
use crate::{
    ids::Incarnation,
    ownership::outage::{Bounds, Testimony},
};

/// Why a peer is no witness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoTestimony {
    /// Its release knows no certificates: it never outlives its own lease.
    Unknown,
    /// No answer within the time of a question, or a refusal.
    Silent(String),
}

impl Peers {
    /// Asks a member what it knows of the store; with `outage`, for its promise too. Takes
    /// at most [`Bounds::question`]. Cancel-safe: a promise that nobody hears binds only
    /// who gave it.
    ///
    /// # Errors
    /// The member does not answer in time, refuses, or knows no such question.
    pub async fn ask(
        &self,
        target: Incarnation,
        addr: &str,
        bounds: Bounds,
        outage: bool,
    ) -> Result<Testimony, NoTestimony> {
        let request = proto::TestifyRequest {
            target_incarnation: target.0,
            cluster_id: self.identity().cluster_id.clone(),
            incarnation: self.identity().incarnation.0,
            lease_ttl_millis: millis(bounds.ttl()),
            outage,
        };
        let asked = async {
            let mut client = self.client(target, addr).await.map_err(NoTestimony::Silent)?;
            match client.testify(request).await {
                Ok(response) => {
                    let proto::TestifyResponse { knows_you, promised } = response.into_inner();
                    Ok(Testimony { knows_you, promised })
                }
                Err(status) if status.code() == Code::Unimplemented => Err(NoTestimony::Unknown),
                Err(status) => Err(NoTestimony::Silent(status.message().to_owned())),
            }
        };
        timeout(bounds.question(), asked)
            .await
            .unwrap_or_else(|_| Err(NoTestimony::Silent("no answer in time".into())))
    }
}

impl Incoming {
    /// Answers one question, at once.
    pub(super) fn testify_to(
        &self,
        request: &proto::TestifyRequest,
    ) -> Result<proto::TestifyResponse, Status> {
        check(&self.identity, self.witness.bounds(), request)?;
        let asker = Incarnation(request.incarnation);
        let known = self.ring.borrow().member(asker).is_some_and(|member| member.state.is_alive());
        let Testimony { knows_you, promised } = self.witness.testify(asker, known, request.outage);
        Ok(proto::TestifyResponse { knows_you, promised })
    }
}

/// Refuses, before any work, who asks another node or counts in other times.
pub(super) fn check(
    identity: &Identity,
    bounds: Bounds,
    request: &proto::TestifyRequest,
) -> Result<(), Status> {
    identity.check_target(request.target_incarnation)?;
    if request.cluster_id != identity.cluster_id {
        return Err(Status::permission_denied("this node belongs to another cluster"));
    }
    if request.lease_ttl_millis != millis(bounds.ttl()) {
        return Err(Status::failed_precondition("the nodes' lease_ttl differ"));
    }
    Ok(())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
