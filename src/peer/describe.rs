//! What an owner tells of its sessions, for operators.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, timeout};
use tonic::Request;

pub use super::proto::SessionReport;
use super::{
    outgoing::Peers,
    proto::{self, ClientReport},
};
use crate::{
    ids::{Incarnation, SessionId},
    session::Handle,
};

/// How long an owner may take; an operator sees the row without it.
const TIMEOUT: Duration = Duration::from_secs(1);

impl SessionReport {
    /// What the registry's handle knows.
    #[must_use]
    pub fn of(handle: &Handle) -> Self {
        let stats = &handle.stats;
        let now = Instant::now();
        let clients = stats
            .clients
            .lock()
            .iter()
            .map(|client| ClientReport {
                edge_node: client.label.edge_node.to_string(),
                kind: client.label.kind.as_str().to_owned(),
                attached_millis: u64::try_from((now - client.since).as_millis())
                    .unwrap_or(u64::MAX),
            })
            .collect();
        Self {
            session: Bytes::copy_from_slice(&handle.id.0),
            epoch: handle.epoch.0,
            profile: handle.route.profile.as_str().to_owned(),
            upstream: stats.upstream().as_str().to_owned(),
            head_seq: stats.head_seq.load(Relaxed),
            floor_seq: stats.floor_seq.load(Relaxed),
            replay_bytes: stats.replay_bytes.load(Relaxed),
            turns_running: stats.turns_running.load(Relaxed),
            turns_queued: stats.turns_queued.load(Relaxed),
            turns_done: stats.turns_done.load(Relaxed),
            lag: stats.lag.load(Relaxed),
            clients,
        }
    }

    /// The session it speaks of.
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.session.as_ref().try_into().ok().map(SessionId)
    }
}

impl Peers {
    /// Asks an owner about its sessions. An owner that does not answer in time, or has none
    /// of them, tells nothing.
    pub async fn describe(
        &self,
        target: Incarnation,
        addr: &str,
        sessions: &[SessionId],
    ) -> Vec<SessionReport> {
        let request = proto::DescribeRequest {
            target_incarnation: target.0,
            sessions: sessions.iter().map(|id| Bytes::copy_from_slice(&id.0)).collect(),
        };
        let asked = async {
            let mut client = self.client(target, addr).await?;
            let response = client.describe(Request::new(request)).await;
            response.map(|response| response.into_inner().sessions).map_err(|s| s.to_string())
        };
        match timeout(TIMEOUT, asked).await {
            Ok(Ok(reports)) => reports,
            Ok(Err(error)) => {
                tracing::debug!(%target, error, "owner tells nothing of its sessions");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }
}
