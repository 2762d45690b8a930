//! What an owner tells of its sessions, for operators.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, timeout};
use tonic::Request;

pub use super::proto::{SessionReport, StoryEvent};
use super::{
    convert::session_in,
    outgoing::Peers,
    proto::{self, ClientReport},
};
use crate::{
    ids::{Incarnation, SessionId},
    session::Handle,
    telemetry::events::Events,
};

/// Events of one session that a node tells: what a person reads.
const STORY: usize = 64;

/// What this node remembers of a session, oldest first.
#[must_use]
pub fn story(events: &Events, session: SessionId) -> Vec<StoryEvent> {
    let now = events.uptime();
    let told = events.story(&session.to_string(), STORY).into_iter().map(|event| StoryEvent {
        kind: event.kind,
        text: event.text,
        ago_millis: millis(now - event.at_seconds),
    });
    told.collect()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the time since an event of this process: no negative, no millennia"
)]
fn millis(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1_000.0) as u64
}

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
        session_in(&self.session)
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
        self.described(target, addr, sessions, false).await.sessions
    }

    /// Asks a member what it remembers of a session. One that does not answer in time
    /// remembers nothing.
    pub async fn story(
        &self,
        target: Incarnation,
        addr: &str,
        session: SessionId,
    ) -> Vec<StoryEvent> {
        self.described(target, addr, &[session], true).await.story
    }

    async fn described(
        &self,
        target: Incarnation,
        addr: &str,
        sessions: &[SessionId],
        story: bool,
    ) -> proto::DescribeResponse {
        let request = proto::DescribeRequest {
            target_incarnation: target.0,
            sessions: sessions.iter().map(|id| Bytes::copy_from_slice(&id.0)).collect(),
            story,
        };
        let asked = async {
            let mut client = self.client(target, addr).await?;
            let response = client.describe(Request::new(request)).await;
            response.map(tonic::Response::into_inner).map_err(|status| status.to_string())
        };
        match timeout(TIMEOUT, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::debug!(%target, error, "peer tells nothing of its sessions");
                proto::DescribeResponse::default()
            }
            Err(_) => proto::DescribeResponse::default(),
        }
    }
}
