//! The node as the admin listener shows it.

use std::{collections::HashMap, sync::atomic::Ordering::Relaxed, time::Duration};

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::Node;
use crate::{
    admin::view::{
        ClientInfo, Database, DrainAnswer, DrainOrder, Health, LocalSession, MemberInfo, NodeEvent,
        NodeView, OutageInfo, RingInfo, SessionInfo, SessionQuery, StoryEvent, UpstreamState,
    },
    error::{Code, Error, Result},
    ids::{Incarnation, SessionId},
    peer::{self, SessionReport},
    ring::Ring,
    session::store_error,
    store::{Member, MemberState, SessionFilter, SessionRow},
};

/// Members that are asked for a session's story.
const STORY_MEMBERS: usize = 64;

#[async_trait]
impl NodeView for Node {
    async fn health(&self) -> Health {
        let ring = self.ring.borrow().clone();
        let now = std::time::Instant::now();
        let until = self.lease.until();
        let remaining =
            until.map_or(0.0, |until| until.saturating_duration_since(now).as_secs_f64());
        let active = ring.member(self.me).is_some_and(|me| me.state == MemberState::Active);
        let outage = self.witness.unreachable(now);
        let draining = self.draining.load(Relaxed);
        Health {
            node_id: self.id.to_string(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            joined: active && self.lease.is_live(now),
            ring_version: ring.view.version,
            members: ring.alive().count(),
            database: if outage.is_none() { Database::Ok } else { Database::Unreachable },
            database_away_seconds: outage.map(|away| away.as_secs_f64()),
            certified: outage.is_some() && self.lease.is_certified(now),
            draining,
            lease_remaining_seconds: remaining,
            uptime_seconds: self.events.uptime(),
        }
    }

    async fn ring(&self) -> RingInfo {
        let ring = self.ring.borrow().clone();
        let members = ring.view.members.iter().map(|member| member_info(&ring, member)).collect();
        let now = std::time::Instant::now();
        let outage = self.witness.unreachable(now).map(|away| OutageInfo {
            away_seconds: away.as_secs_f64(),
            certified_seconds: self
                .lease
                .certified_until()
                .map_or(0.0, |until| until.saturating_duration_since(now).as_secs_f64()),
            obstacle: self.witness.obstacle(),
        });
        RingInfo { version: ring.view.version, me: Some(self.me.0), members, outage }
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
        Ok(self.described(rows).await)
    }

    async fn session(&self, id: &str) -> Result<Option<SessionInfo>> {
        let row = self.store.session(parse_id(id)?).await.map_err(|error| store_error(&error))?;
        Ok(self.described(row.into_iter().collect()).await.pop())
    }

    async fn story(&self, id: &str) -> Vec<StoryEvent> {
        let Ok(id) = parse_id(id) else { return Vec::new() };
        let ring = self.ring.borrow().clone();
        let asked = ring.alive().take(STORY_MEMBERS).map(|member| async move {
            let told = if member.incarnation == self.me {
                peer::story(&self.events, id)
            } else {
                self.peers.story(member.incarnation, &member.peer_addr, id).await
            };
            let of = |event: peer::StoryEvent| StoryEvent {
                node: member.node_id.clone(),
                kind: event.kind,
                text: event.text,
                ago_seconds: Duration::from_millis(event.ago_millis).as_secs_f64(),
            };
            told.into_iter().map(of).collect::<Vec<_>>()
        });
        let mut story: Vec<_> =
            futures_util::future::join_all(asked).await.into_iter().flatten().collect();
        story.sort_by(|one, other| one.ago_seconds.total_cmp(&other.ago_seconds));
        story
    }

    async fn drain(&self, order: DrainOrder) -> DrainAnswer {
        let last = !self.ring.borrow().has_other_active(self.me);
        if last && !order.force && self.times.borrow().is_none() {
            return DrainAnswer::LastActive;
        }
        self.begin_drain(order.within_seconds.map(Duration::from_secs))
    }

    fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.events.listen()
    }
}

impl Node {
    /// Rows with what their owners know, this node's own and the others'.
    async fn described(&self, rows: Vec<SessionRow>) -> Vec<SessionInfo> {
        let ring = self.ring.borrow().clone();
        let mut owners: HashMap<Incarnation, Vec<SessionId>> = HashMap::new();
        for row in &rows {
            if let Some(owner) = row.live_owner() {
                owners.entry(owner).or_default().push(row.id);
            }
        }
        let asked = owners.into_iter().map(|(owner, ids)| {
            let addr = ring.member(owner).map(|member| member.peer_addr.clone());
            async move {
                if owner == self.me {
                    let own = ids.iter().filter_map(|id| self.registry.get(*id));
                    return own.map(|handle| SessionReport::of(&handle)).collect();
                }
                match addr {
                    Some(addr) => self.peers.describe(owner, &addr, &ids).await,
                    None => Vec::new(),
                }
            }
        });
        let reports = futures_util::future::join_all(asked).await.into_iter().flatten();
        let mut reports: HashMap<SessionId, SessionReport> =
            reports.filter_map(|report| Some((report.id()?, report))).collect();
        rows.into_iter()
            .map(|row| {
                let report = reports.remove(&row.id).filter(|report| report.epoch == row.epoch.0);
                session_info(&ring, row, report)
            })
            .collect()
    }
}

fn session_info(ring: &Ring, row: SessionRow, report: Option<SessionReport>) -> SessionInfo {
    let member = row.owner.and_then(|owner| ring.member(owner));
    SessionInfo {
        id: row.id.to_string(),
        principal: row.principal.to_string().chars().take(8).collect(),
        profile: report.as_ref().map_or("", |report| &report.profile).to_owned(),
        route: row.route,
        key: Some(row.key_label).filter(|label| !label.is_empty()),
        owner_node: member.map(|member| member.node_id.clone()),
        owner_incarnation: row.owner.map(|owner| owner.0),
        epoch: row.epoch.0,
        state: row.state.as_str().to_owned(),
        age_seconds: row.age.as_secs_f64(),
        local: report.map(local),
    }
}

fn local(report: SessionReport) -> LocalSession {
    let lag = report.lag;
    let clients = report.clients.into_iter().map(|client| ClientInfo {
        edge_node: client.edge_node,
        kind: client.kind,
        since_seconds: Duration::from_millis(client.attached_millis).as_secs_f64(),
        lag,
    });
    let count = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    LocalSession {
        clients: clients.collect(),
        upstream: match report.upstream.as_str() {
            "connected" => UpstreamState::Connected,
            "dialing" => UpstreamState::Dialing,
            _ => UpstreamState::None,
        },
        head_seq: report.head_seq,
        floor_seq: report.floor_seq,
        replay_bytes: report.replay_bytes,
        turns_running: count(report.turns_running),
        turns_queued: count(report.turns_queued),
        turns_done: report.turns_done,
        busy: report.turns_running + report.turns_queued > 0,
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
