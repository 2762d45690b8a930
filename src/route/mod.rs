//! From a session's name to a link, wherever the session lives.
//!
//! Local table, then owner cache, then the session's row, then placement. The answer has
//! one type: nobody above can tell a local owner from a remote one.

mod avoid;
mod cache;
#[cfg(test)]
pub(crate) mod tests;

use std::{mem, sync::Arc, time::Duration};

use avoid::Avoid;
use cache::OwnerCache;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{Instrument, field::Empty};

use crate::{
    config::{Continuity, Profile, Route},
    error::{Blame, Code, Error},
    ids::{Incarnation, Principal, SessionId},
    jitter::spread,
    peer::{MAX_HOPS, PeerError, Peers},
    ring::Ring,
    session::{Attach, AttachError, Attached, Owner, Registry, Row, owner, store_error},
    store::{Alias, AliasKind, Store, StoreError},
    telemetry::{
        metrics::{Metrics, Side},
        propagation,
    },
    upstream::Refusal,
};

/// How long an upgrade may wait for an owner that is being replaced. Longer waits are the
/// client's, by `Retry-After`, which the clients that matter honour in silence.
pub const UPGRADE_PATIENCE: Duration = Duration::from_secs(4);

/// How long a turn may wait for it on a connection that is open already: longer than a lease
/// lasts by default, shorter than clients' own time-outs.
pub const TURN_PATIENCE: Duration = Duration::from_secs(30);

/// First pause before another look; doubled each time, with jitter.
const PAUSE: Duration = Duration::from_millis(25);

/// Why there is no link.
#[derive(Debug)]
pub enum RouteError {
    /// The upstream refused the upgrade.
    Refused(Box<Refusal>),
    Failed(Error),
}

impl RouteError {
    /// A word for it, of a bounded set.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Refused(_) => "upstream_refused",
            Self::Failed(error) => error.code.as_str(),
        }
    }
}

impl From<Error> for RouteError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Finds owners and attaches clients to them.
pub struct Router {
    me: Incarnation,
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    peers: Arc<Peers>,
    ring: watch::Receiver<Arc<Ring>>,
    cache: OwnerCache,
    metrics: Metrics,
}

/// Where to try next.
enum Target {
    Here,
    There(Owner),
}

/// What one try came to.
enum Tried {
    Attached(Box<Attached>),
    /// Somebody named another owner.
    Redirected(Owner),
    /// Not now; the row may change.
    Later(Error),
    /// Not at all.
    Failed(RouteError),
}

impl Router {
    pub fn new(
        me: Incarnation,
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        peers: Arc<Peers>,
        ring: watch::Receiver<Arc<Ring>>,
        metrics: Metrics,
    ) -> Self {
        Self { me, store, registry, peers, ring, cache: OwnerCache::default(), metrics }
    }

    /// Attaches a client to its session, opening the session if nobody has it.
    ///
    /// An attach that reached nobody is tried again, here or elsewhere, because it has no
    /// effect that a second one could double. `patience` bounds the wait for an owner that is
    /// being replaced. Cancel-safe.
    pub async fn attach(
        &self,
        mut attach: Attach,
        patience: Duration,
    ) -> Result<Attached, RouteError> {
        let span = tracing::info_span!(
            parent: None,
            "attach",
            otel.status_code = Empty,
            "error.type" = Empty,
            http.route = attach.route.path,
            session.id = %attach.session,
            ringspan.epoch = Empty,
            ringspan.resume = attach.last_seq.is_some(),
        );
        propagation::enter(&span, &mut attach.upgrade.headers);
        let attached = self.find(attach, patience).instrument(span.clone()).await;
        match &attached {
            Ok(attached) => drop(span.record("ringspan.epoch", attached.epoch.0)),
            Err(error) => {
                propagation::failed(&span);
                span.record("error.type", error.as_str());
            }
        }
        attached
    }

    async fn find(&self, mut attach: Attach, patience: Duration) -> Result<Attached, RouteError> {
        let deadline = Instant::now() + patience;
        let mut pause = PAUSE;
        let mut avoid = Avoid::default();
        let mut told: Option<Owner> = None;
        let mut hops = 1;
        loop {
            // What was known may have changed: a try may have come about without an answer.
            let known = mem::replace(&mut attach.row, Row::Unknown);
            let target = match told.take() {
                Some(owner) if owner.incarnation == self.me => Ok(Target::Here),
                Some(owner) => Ok(Target::There(owner)),
                None => self.target(&mut attach, known, &mut avoid).await,
            };
            let tried = match &target {
                Ok(Target::Here) => self.try_here(&attach, &mut avoid).await,
                Ok(Target::There(owner)) => self.try_there(&attach, owner, hops, &mut avoid).await,
                // An outage outlasts any patience; one call that fails does not.
                Err(error @ StoreError::Away(_)) => {
                    Tried::Failed(RouteError::Failed(store_error(error)))
                }
                Err(error) => Tried::Later(store_error(error)),
            };
            let reason = match tried {
                Tried::Attached(attached) => {
                    if let Ok(Target::There(owner)) = target {
                        let owner = Owner { epoch: attached.epoch, ..owner };
                        self.cache.put(attach.session, owner);
                    }
                    return Ok(*attached);
                }
                Tried::Failed(error) => return Err(error),
                // Only knowledge that is newer than ours moves us, so two nodes that point
                // at each other cannot send us round (I8).
                Tried::Redirected(owner) if owner.epoch > attach.min_epoch && hops < MAX_HOPS => {
                    attach.min_epoch = owner.epoch;
                    told = Some(owner);
                    hops += 1;
                    continue;
                }
                Tried::Redirected(_) => {
                    Error::new(Code::OwnerMoving, "the session is moving; retry")
                }
                Tried::Later(reason) => reason,
            };
            hops = 1;
            let next = Instant::now() + spread(pause);
            if next >= deadline {
                return Err(for_client(reason).into());
            }
            sleep_until(next).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// The session that made a response for this principal on this route.
    ///
    /// # Errors
    /// `session_unavailable` when the store does not answer.
    pub async fn alias(
        &self,
        principal: Principal,
        route: &Route,
        response_id: &str,
    ) -> Result<Option<SessionId>, Error> {
        let digest = Alias::digest(&route.path, response_id);
        let found = self.store.alias(principal, AliasKind::Response, digest).await;
        found.map_err(|error| store_error(&error))
    }

    /// Where to try; in `attach` the epoch of the row, if that was looked at and is nobody's.
    async fn target(
        &self,
        attach: &mut Attach,
        known: Row,
        avoid: &mut Avoid,
    ) -> Result<Target, StoreError> {
        let id = attach.session;
        if self.registry.has(id) {
            return Ok(Target::Here);
        }
        if let Some(owner) = self.cache.get(id)
            && self.is_alive(owner.incarnation)
            && !avoid.has(owner.incarnation)
        {
            return Ok(Target::There(owner));
        }
        let row = match known {
            Row::Missing => None,
            Row::Unknown | Row::Free(_) => self.store.session(id).await?,
        };
        if let Some(owner) = row.as_ref().and_then(owner) {
            let here = owner.incarnation == self.me;
            return Ok(if here { Target::Here } else { Target::There(self.addressed(owner)) });
        }
        // Nobody's: the ring proposes who claims it; who cannot be reached is passed over.
        let copied = row.is_some() && has_copies(&attach.route);
        let epoch = row.map(|row| row.epoch);
        attach.row = epoch.map_or(Row::Unknown, Row::Free);
        let ring = self.ring.borrow().clone();
        let mut candidates =
            ring.placement.owner(id).into_iter().chain(ring.placement.successors(id));
        let Some(candidate) = candidates.find(|candidate| !avoid.passes(*candidate, copied)) else {
            // At the next look one of them may be reached, or have room.
            avoid.clear();
            return Ok(Target::Here);
        };
        let member = ring.member(candidate).filter(|_| candidate != self.me);
        Ok(member.map_or(Target::Here, |member| {
            let addr = member.peer_addr.clone();
            Target::There(Owner { incarnation: candidate, addr, epoch: epoch.unwrap_or_default() })
        }))
    }

    /// A static member list overrides the address that the row names.
    fn addressed(&self, owner: Owner) -> Owner {
        let ring = self.ring.borrow();
        match ring.member(owner.incarnation) {
            Some(member) => Owner { addr: member.peer_addr.clone(), ..owner },
            None => owner,
        }
    }

    fn is_alive(&self, incarnation: Incarnation) -> bool {
        self.ring.borrow().member(incarnation).is_some_and(|member| member.state.is_alive())
    }

    async fn try_here(&self, attach: &Attach, avoid: &mut Avoid) -> Tried {
        match self.registry.attach(attach.clone()).await {
            Ok(attached) => Tried::Attached(Box::new(attached)),
            Err(AttachError::NotOwner(owner)) => Tried::Redirected(self.addressed(owner)),
            Err(AttachError::Refused(refusal)) => Tried::Failed(RouteError::Refused(refusal)),
            Err(AttachError::Failed(error)) => {
                if elsewhere(&error) {
                    avoid.refused(self.me);
                }
                failed(error)
            }
        }
    }

    async fn try_there(
        &self,
        attach: &Attach,
        owner: &Owner,
        hop: u32,
        avoid: &mut Avoid,
    ) -> Tried {
        let asked = Instant::now();
        match self.peers.attach(owner.incarnation, &owner.addr, attach, hop).await {
            Ok(attached) => Tried::Attached(Box::new(attached)),
            Err(PeerError::Answer(AttachError::NotOwner(owner))) => {
                self.metrics.not_owner(Side::Caller);
                self.cache.remove(attach.session);
                Tried::Redirected(self.addressed(owner))
            }
            Err(PeerError::Answer(AttachError::Refused(refusal))) => {
                Tried::Failed(RouteError::Refused(refusal))
            }
            Err(PeerError::Answer(AttachError::Failed(error))) => {
                self.cache.remove(attach.session);
                if elsewhere(&error) {
                    avoid.refused(owner.incarnation);
                }
                failed(error)
            }
            Err(PeerError::Unreachable(reason)) => {
                tracing::debug!(session = %attach.session, owner = %owner.incarnation, reason, "owner not reached");
                self.cache.remove(attach.session);
                avoid.unreached(owner.incarnation, asked);
                let text = "the session's owner cannot be reached; it is replaced when its death is certain";
                Tried::Later(Error::new(Code::OwnerMoving, text).blame(Blame::Peer))
            }
        }
    }
}

/// Whether a member may keep a copy of what an owner that was lost knew.
fn has_copies(route: &Route) -> bool {
    route.profile == Profile::Responses && route.continuity == Continuity::Replica
}

/// Whether another node may do what this one will not.
fn elsewhere(error: &Error) -> bool {
    matches!(error.code, Code::NodeDraining | Code::NodeFull)
}

/// What a client is told when no node has room.
fn for_client(error: Error) -> Error {
    if error.code != Code::NodeFull {
        return error;
    }
    Error::new(Code::TooManySessions, "the ring owns as many sessions as it may; retry later")
}

/// Whether a failure may pass by itself within our patience.
fn failed(error: Error) -> Tried {
    match error.code {
        Code::OwnerMoving | Code::NodeDraining | Code::NodeFull | Code::SessionUnavailable => {
            Tried::Later(error)
        }
        _ => Tried::Failed(RouteError::Failed(error)),
    }
}
