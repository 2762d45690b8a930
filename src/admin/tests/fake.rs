//! A node that exists only as data.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::{sync::broadcast, time::Instant};

use crate::{
    admin::view::{
        ClientInfo, Database, DrainAnswer, DrainOrder, Health, LocalSession, MemberInfo, NodeEvent,
        NodeView, RingInfo, SessionInfo, SessionQuery, StoryEvent, UpstreamState,
    },
    error::{Code, Error, Result},
};

pub(in crate::admin) struct Fake {
    pub(in crate::admin) events: broadcast::Sender<NodeEvent>,
    pub(in crate::admin) born: Instant,
    pub(in crate::admin) sessions: u32,
    pub(in crate::admin) draining: AtomicBool,
    pub(in crate::admin) store_down: AtomicBool,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            events: broadcast::Sender::new(4),
            born: Instant::now(),
            sessions: 6,
            draining: AtomicBool::new(false),
            store_down: AtomicBool::new(false),
        }
    }
}

#[async_trait]
impl NodeView for Fake {
    async fn health(&self) -> Health {
        let down = self.store_down.load(Ordering::Relaxed);
        Health {
            node_id: "ringspan-0".into(),
            build: "0.1.0".into(),
            joined: true,
            ring_version: 12,
            members: 3,
            database: if down { Database::Unreachable } else { Database::Ok },
            database_away_seconds: down.then_some(20.0),
            certified: down,
            draining: self.draining.load(Ordering::Relaxed),
            lease_remaining_seconds: if down { 0.0 } else { 13.5 },
            uptime_seconds: 3_700.0 + self.born.elapsed().as_secs_f64(),
        }
    }

    async fn ring(&self) -> RingInfo {
        ring()
    }

    async fn sessions(&self, query: &SessionQuery) -> Result<Vec<SessionInfo>> {
        if self.store_down.load(Ordering::Relaxed) {
            return Err(Error::new(Code::SessionUnavailable, "The store does not answer."));
        }
        let wanted = |session: &SessionInfo| {
            query.key.as_ref().is_none_or(|key| session.key.as_ref() == Some(key))
                && query.after.as_ref().is_none_or(|after| session.id > *after)
                && query.owner.as_ref().is_none_or(|id| session.owner_node.as_ref() == Some(id))
        };
        Ok((0..self.sessions).map(session).filter(wanted).take(query.limit()).collect())
    }

    async fn session(&self, id: &str) -> Result<Option<SessionInfo>> {
        Ok((0..self.sessions).map(session).find(|session| session.id == id))
    }

    async fn story(&self, id: &str) -> Vec<StoryEvent> {
        let told = |node: &str, kind: &str, text: &str, ago_seconds| StoryEvent {
            node: node.into(),
            kind: kind.into(),
            text: format!("{text} {id}"),
            ago_seconds,
        };
        vec![
            told("ringspan-2", "turn", "turn 3 completed after 1.20 s", 4.0),
            told("ringspan-1", "handoff", "handed over to incarnation 42, epoch 107", 61.0),
        ]
    }

    async fn drain(&self, _: DrainOrder) -> DrainAnswer {
        let before = self.draining.swap(true, Ordering::Relaxed);
        if before { DrainAnswer::Already } else { DrainAnswer::Accepted }
    }

    fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.events.subscribe()
    }
}

pub(in crate::admin) fn ring() -> RingInfo {
    let member = |n: i64, state: &str, share, zone: Option<&str>| MemberInfo {
        incarnation: 40 + n,
        node_id: format!("ringspan-{n}"),
        peer_addr: format!("ringspan-{n}.ringspan.default.svc:50051"),
        build: "0.1.0".into(),
        zone: zone.map(str::to_owned),
        weight: 100,
        state: state.into(),
        load: 1_000 + u32::try_from(n).unwrap() * 137,
        capacity: 20_000,
        lease_remaining_seconds: 14.25 - 2.5 * share,
        share,
    };
    RingInfo {
        version: 12,
        me: Some(40),
        members: vec![
            member(0, "ACTIVE", 0.5625, Some("eu-1a")),
            member(1, "DRAINING", 0.0, Some("eu-1b")),
            member(2, "ACTIVE", 0.4375, None),
        ],
        outage: None,
    }
}

pub(in crate::admin) fn session(n: u32) -> SessionInfo {
    let clients = (0..n % 3).map(|edge| ClientInfo {
        edge_node: format!("ringspan-{edge}"),
        kind: "websocket".into(),
        since_seconds: 42.0,
        lag: u64::from(edge),
    });
    SessionInfo {
        id: format!("{:032x}", u128::from(n) * 0x0f1e_2d3c_4b5a_6978_8796_a5b4),
        principal: "9f86d081".into(),
        route: if n.is_multiple_of(2) { "/v1/responses" } else { "/rooms/{room}" }.into(),
        profile: if n.is_multiple_of(2) { "responses" } else { "opaque" }.into(),
        key: (!n.is_multiple_of(4)).then(|| format!("room-{n}")),
        owner_node: Some(format!("ringspan-{}", n % 3)),
        owner_incarnation: Some(i64::from(40 + n % 3)),
        epoch: i64::from(100 + n),
        state: "LIVE".into(),
        age_seconds: f64::from(n) * 97.0,
        local: n.is_multiple_of(3).then(|| LocalSession {
            clients: clients.collect(),
            upstream: UpstreamState::Connected,
            head_seq: 1_234,
            floor_seq: 1_000,
            replay_bytes: 65_000,
            turns_running: n % 2,
            turns_queued: 0,
            turns_done: 17,
            busy: n % 2 == 1,
        }),
    }
}

pub(in crate::admin) fn event(n: u32) -> NodeEvent {
    NodeEvent {
        kind: ["claimed", "handoff", "takeover", "member", "drain"][n as usize % 5].into(),
        session: Some(session(n).id),
        text: format!("Event {n} <img src=x onerror=alert(1)>"),
        at_seconds: 3_700.0 + 0.7 * f64::from(n),
    }
}
