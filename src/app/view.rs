//! The node as the admin listener shows it.

use std::sync::atomic::Ordering::Relaxed;

use async_trait::async_trait;
use tokio::{sync::broadcast, time::Instant};

use super::Node;
use crate::{
    admin::view::{
        ClientInfo, Database, DrainAnswer, Health, LocalSession, MemberInfo, NodeEvent, NodeView,
        RingInfo, SessionInfo, SessionQuery, UpstreamState,
    },
    error::{Code, Error, Result},
    ids::{Incarnation, SessionId},
    ring::Ring,
    session::{Handle, stats, store_error},
    store::{Member, MemberState, SessionFilter, SessionRow},
};

#[async_trait]
impl NodeView for Node {
    async fn health(&self) -> Health {
        let ring = self.ring.borrow().clone();
        let now = std::time::Instant::now();
        let until = self.lease.until();
        let remaining =
            until.map_or(0.0, |until| until.saturating_duration_since(now).as_secs_f64());
        let active = ring.member(self.me).is_some_and(|me| me.state == MemberState::Active);
        // A lease older than two heartbeats is one that the store did not renew.
        let fresh = self.timing.lease_ttl - self.timing.lease_margin;
        let database =
            until.is_some_and(|until| until + self.timing.heartbeat_interval * 2 > now + fresh);
        let draining = self.draining.load(Relaxed);
        Health {
            node_id: self.id.to_string(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            joined: active && remaining > 0.0,
            ring_version: ring.view.version,
            members: ring.alive().count(),
            database: if database { Database::Ok } else { Database::Unreachable },
            draining,
            lease_remaining_seconds: remaining,
            uptime_seconds: self.events.uptime(),
        }
    }

    async fn ring(&self) -> RingInfo {
        let ring = self.ring.borrow().clone();
        let members = ring.view.members.iter().map(|member| member_info(&ring, member)).collect();
        RingInfo { version: ring.view.version, me: Some(self.me.0), members }
    }

    async fn sessions(&self, query: &SessionQuery) -> Result<Vec<SessionInfo>> {
        let ring = self.ring.borrow().clone();
        let owner = query.owner.as_deref().map(|text| owner_of(&ring, text)).transpose()?;
        let after = query.after.as_deref().map(parse_id).transpose()?;
        let filter = SessionFilter {
            owner,
            key_label: query.key.clone(),
            after,
            limit: u32::try_from(query.limit()).unwrap_or(u32::MAX),
        };
        let rows = self.store.sessions(&filter).await.map_err(|error| store_error(&error))?;
        Ok(rows.into_iter().map(|row| self.session_info(&ring, row)).collect())
    }

    async fn session(&self, id: &str) -> Result<Option<SessionInfo>> {
        let row = self.store.session(parse_id(id)?).await.map_err(|error| store_error(&error))?;
        let ring = self.ring.borrow().clone();
        Ok(row.map(|row| self.session_info(&ring, row)))
    }

    async fn drain(&self) -> DrainAnswer {
        if self.draining.load(Relaxed) {
            return DrainAnswer::Already;
        }
        self.drain_wanted.notify_one();
        DrainAnswer::Accepted
    }

    fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.events.listen()
    }
}

impl Node {
    fn session_info(&self, ring: &Ring, row: SessionRow) -> SessionInfo {
        let handle = self.registry.get(row.id).filter(|handle| handle.epoch == row.epoch);
        let member = row.owner.and_then(|owner| ring.member(owner));
        SessionInfo {
            id: row.id.to_string(),
            principal: row.principal.to_string().chars().take(8).collect(),
            profile: handle.as_ref().map_or("", |h| h.route.profile.as_str()).to_owned(),
            route: row.route,
            key: Some(row.key_label).filter(|label| !label.is_empty()),
            owner_node: member.map(|member| member.node_id.clone()),
            owner_incarnation: row.owner.map(|owner| owner.0),
            epoch: row.epoch.0,
            state: row.state.as_str().to_owned(),
            age_seconds: row.age.as_secs_f64(),
            local: handle.map(|handle| local(&handle)),
        }
    }
}

fn local(handle: &Handle) -> LocalSession {
    let stats = &handle.stats;
    let now = Instant::now();
    let lag = stats.lag.load(Relaxed);
    let info = |client: &stats::ClientStat| ClientInfo {
        edge_node: client.label.edge_node.to_string(),
        kind: client.label.kind.as_str().to_owned(),
        since_seconds: now.duration_since(client.since).as_secs_f64(),
        lag,
    };
    let clients = stats.clients.lock().iter().map(info).collect();
    let count = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    LocalSession {
        clients,
        upstream: match stats.upstream() {
            stats::UpstreamState::Connected => UpstreamState::Connected,
            stats::UpstreamState::Dialing => UpstreamState::Dialing,
            stats::UpstreamState::None => UpstreamState::None,
        },
        head_seq: stats.head_seq.load(Relaxed),
        floor_seq: stats.floor_seq.load(Relaxed),
        replay_bytes: stats.replay_bytes.load(Relaxed),
        turns_running: count(stats.turns_running.load(Relaxed)),
        turns_queued: count(stats.turns_queued.load(Relaxed)),
        turns_done: stats.turns_done.load(Relaxed),
        busy: !stats.is_idle(),
    }
}

fn member_info(ring: &Ring, member: &Member) -> MemberInfo {
    MemberInfo {
        incarnation: member.incarnation.0,
        node_id: member.node_id.clone(),
        peer_addr: member.peer_addr.clone(),
        build: member.build.clone(),
        zone: member.zone.clone(),
        weight: member.weight,
        state: member.state.as_str().to_owned(),
        load: member.load,
        capacity: member.capacity,
        lease_remaining_seconds: member.lease_remaining.as_secs_f64(),
        share: ring.placement.share(member.incarnation),
    }
}

fn parse_id(text: &str) -> Result<SessionId> {
    text.parse()
        .map_err(|_| Error::new(Code::InvalidRequest, "a session id is 32 hexadecimal digits"))
}

fn owner_of(ring: &Ring, text: &str) -> Result<Incarnation> {
    let named = ring.view.members.iter().filter(|member| member.node_id == text);
    let newest = named.map(|member| member.incarnation).max();
    newest.or_else(|| text.parse().ok().map(Incarnation)).ok_or_else(|| {
        Error::new(Code::InvalidRequest, "no member has this node id").param("owner")
    })
}
