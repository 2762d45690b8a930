//! What this node believes of the ring: read from the store, shared by a watch.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Placement, tenure::Tenure};
use crate::{
    ids::{Incarnation, SessionId},
    store::{Member, MemberState, RingView, Store},
    telemetry::{events::Events, metrics::Metrics},
};

/// A view of the members and the placement that follows from it.
#[derive(Clone, Debug)]
pub struct Ring {
    pub view: RingView,
    pub placement: Placement,
    tenure: Tenure,
}

impl Ring {
    #[must_use]
    pub fn new(view: RingView) -> Self {
        let placement = Placement::build(&view.members);
        let tenure = Tenure::new(&view, Instant::now());
        Self { view, placement, tenure }
    }

    fn refreshed(&self, view: RingView) -> Self {
        let placement = self.placement.refreshed(&view.members);
        let tenure = self.tenure.of_view(&view, Instant::now());
        Self { view, placement, tenure }
    }

    /// The member of that incarnation.
    #[must_use]
    pub fn member(&self, incarnation: Incarnation) -> Option<&Member> {
        self.view.members.iter().find(|member| member.incarnation == incarnation)
    }

    /// Who should inherit session `id` of the member `from`, best first: as
    /// [`Placement::heirs`], and among equals those that came last, who are the last to
    /// leave in a roll that replaces all; then those in the same zone.
    #[must_use]
    pub fn heirs(&self, id: SessionId, from: Incarnation) -> Vec<Incarnation> {
        let now = Instant::now();
        let zone = |member| self.member(member).and_then(|member| member.zone.as_deref());
        let rank = |heir| (!self.tenure.is_newcomer(heir, now), zone(heir) != zone(from));
        self.placement.heirs(id, &[from], rank)
    }

    /// Members that may own sessions.
    pub fn alive(&self) -> impl Iterator<Item = &Member> {
        self.view.alive()
    }

    /// Whether another member could take sessions over.
    #[must_use]
    pub fn has_other_active(&self, me: Incarnation) -> bool {
        let other = |m: &Member| m.incarnation != me && m.state == MemberState::Active;
        self.view.members.iter().any(other)
    }

    /// Whether another member is about to be able to take sessions over.
    #[must_use]
    pub fn has_joining(&self, me: Incarnation) -> bool {
        let joining = |m: &Member| {
            m.incarnation != me && m.state == MemberState::Joining && !m.lease_remaining.is_zero()
        };
        self.view.members.iter().any(joining)
    }
}

/// Keeps a [`Ring`] current: hints make it quick, polling makes it true.
pub struct Membership {
    store: Arc<dyn Store>,
    ring: watch::Sender<Arc<Ring>>,
    /// Addresses that override the store's, by node id.
    static_members: Vec<(String, String)>,
    poll: Duration,
    metrics: Metrics,
    events: Events,
}

impl Membership {
    /// Reads the ring once.
    ///
    /// # Errors
    /// The store's, if it cannot be read.
    pub async fn start(
        store: Arc<dyn Store>,
        static_members: Vec<(String, String)>,
        poll: Duration,
        metrics: Metrics,
        events: Events,
    ) -> crate::store::Result<(Self, watch::Receiver<Arc<Ring>>)> {
        let view = with_static(store.ring().await?, &static_members);
        let (ring, receiver) = watch::channel(Arc::new(Ring::new(view)));
        let membership = Self { store, ring, static_members, poll, metrics, events };
        membership.count();
        Ok((membership, receiver))
    }

    /// Follows the store until `stop`. An unreachable store leaves the last ring in place:
    /// known owners are still reached while it is away.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = timeout(jittered(self.poll), self.store.ring_hint()) => {}
            }
            match self.store.ring().await {
                Ok(view) => self.apply(with_static(view, &self.static_members)),
                Err(error) => {
                    tracing::debug!(%error, "reading the ring failed; the last one stays in force");
                    sleep(jittered(self.poll)).await;
                }
            }
        }
    }

    fn apply(&self, view: RingView) {
        let current = self.ring.borrow().clone();
        // Versions only grow; an older view is a stale read.
        if view.version < current.view.version {
            return;
        }
        let moved = view.version != current.view.version;
        if moved {
            let members: Vec<String> = view
                .members
                .iter()
                .map(|m| format!("{}#{}={}", m.node_id, m.incarnation, m.state.as_str()))
                .collect();
            tracing::info!(version = view.version, members = members.join(" "), "ring changed");
            let text = format!("version {}: {}", view.version, members.join(" "));
            self.events.emit("member", None, &text);
        }
        self.ring.send_replace(Arc::new(current.refreshed(view)));
        self.count();
    }

    fn count(&self) {
        let ring = self.ring.borrow();
        self.metrics.ring(ring.view.version, ring.view.members.iter().map(|member| member.state));
    }
}

fn with_static(mut view: RingView, members: &[(String, String)]) -> RingView {
    if members.is_empty() {
        return view;
    }
    for member in &mut view.members {
        if let Some((_, addr)) = members.iter().find(|(id, _)| *id == member.node_id) {
            member.peer_addr.clone_from(addr);
        } else if member.state.is_alive() {
            // Not on the list: it may own what it owns, but is given nothing new.
            member.state = MemberState::Draining;
        }
    }
    view
}

/// Spreads polls so that nodes that started together do not read together.
fn jittered(period: Duration) -> Duration {
    period.mul_f64(rand::random_range(0.8..1.2))
}
