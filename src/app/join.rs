//! Becoming a member.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::core_files;
use crate::{
    config::Config,
    ids::Incarnation,
    net::TcpListener,
    ownership::{lease::LeaseHandle, outage::Bounds, process},
    store::{self, Cluster, Death, NewMember, Store, StoreError, schema},
};

/// Longest pause between two looks at the holder of our node id.
const LOOK: Duration = Duration::from_secs(1);

/// A member of the ring that nobody renews and that serves nobody yet.
pub struct Joined {
    pub(super) config: Config,
    pub(super) store: Arc<dyn Store>,
    pub(super) cluster: Cluster,
    pub(super) client: TcpListener,
    pub(super) peer: TcpListener,
    pub(super) admin: TcpListener,
    pub(super) lease: LeaseHandle,
    pub(super) me: Incarnation,
    /// When the registration was sent.
    pub(super) registered: Instant,
}

impl Joined {
    /// Opens the store, binds the listeners and registers, which may have to wait for whoever had
    /// the node id. Dropped, it has done nothing, but where the registration is just under way:
    /// that goes with its lease.
    ///
    /// # Errors
    /// A store that cannot be reached or has the wrong schema, an address in use, a node id
    /// that another live process holds.
    pub async fn new(config: Config) -> anyhow::Result<Self> {
        core_files::forbid();
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        if config.migrate_on_start {
            schema::migrate(&config.store, |step| tracing::info!(?step, "schema"))
                .await
                .context("migrating the database")?;
        }
        let store = store::open(&config.store).await.context("opening the database")?;
        let cluster = store.cluster().await.context("reading the cluster's identity")?;
        let client = bind(config.node.listen, "listen").await?;
        let peer = bind(config.node.peer_listen, "peer-listen").await?;
        let admin = bind(config.node.admin_listen, "admin-listen").await?;
        let lease = LeaseHandle::default();
        let (me, registered) = join(&*store, &config, peer.local_addr()?, &lease).await?;
        Ok(Self { config, store, cluster, client, peer, admin, lease, me, registered })
    }
}

async fn bind(addr: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| format!("binding --{what} {addr}"))
}

/// Registers this process, and takes the lease that comes with it. Returns also when the
/// registration was sent.
///
/// A node id that a dead process holds is taken over: at once where the death is proven;
/// otherwise when another member has declared it, or when it has been silent for longer
/// than it could outlive its lease ([`Bounds::stranger`]). One that a live process holds is
/// refused.
async fn join(
    store: &dyn Store,
    config: &Config,
    bound: SocketAddr,
    lease: &LeaseHandle,
) -> anyhow::Result<(Incarnation, Instant)> {
    let member = NewMember {
        node_id: config.node.id.clone(),
        peer_addr: config.node.advertise.clone().unwrap_or_else(|| bound.to_string()),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        zone: config.node.zone.clone(),
        weight: config.node.weight,
        capacity: config.node.capacity,
        process: process::identity(),
        supersede: config.node.supersede,
    };
    let ttl = config.timing.lease_ttl;
    let mut silence = Silence::new(Bounds::new(ttl));
    let mut waited = None;
    loop {
        let sent = Instant::now();
        match store.register(&member, ttl).await {
            Ok(me) => {
                lease.renewed(sent, ttl, config.timing.lease_margin);
                return Ok((me, sent));
            }
            Err(StoreError::NodeIdInUse { holder, remaining, lease: judged, .. }) => {
                if is_proven_dead(store, holder).await? {
                    store.mark_dead(holder, Death::Proven).await?;
                } else if remaining.is_zero() {
                    if silence.is_over(holder, sent, Instant::now()) {
                        store.mark_dead(holder, Death::Lapsed(judged)).await?;
                    }
                    let pause = LOOK.min(ttl / 4).mul_f64(rand::random_range(0.5..1.0));
                    tokio::time::sleep(pause).await;
                } else if waited == Some(holder) {
                    bail!(
                        "node id {:?} belongs to a live process (incarnation {holder}); \
                         give this one another --node-id, or stop the other",
                        member.node_id
                    );
                } else {
                    tracing::warn!(node = %member.node_id, %holder, ?remaining, "node id is taken; waiting for its lease to end");
                    tokio::time::sleep(remaining + config.timing.lease_margin).await;
                    waited = Some(holder);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// For how long the holder of our node id has not renewed its lease.
struct Silence {
    bounds: Bounds,
    /// Who, since when it was seen expired, and when we asked last.
    seen: Option<(Incarnation, Instant, Instant)>,
}

impl Silence {
    const fn new(bounds: Bounds) -> Self {
        Self { bounds, seen: None }
    }

    /// `holder` was expired in a look that began at `asked` and ended at `now`: whether no
    /// certificate of it can hold any more. Two looks must be closer than a lease, or one
    /// could have come and gone in between.
    fn is_over(&mut self, holder: Incarnation, asked: Instant, now: Instant) -> bool {
        let since = match self.seen {
            Some((seen, since, looked))
                if seen == holder && now.duration_since(looked) < self.bounds.ttl() =>
            {
                since
            }
            _ => {
                let limit = self.bounds.stranger();
                tracing::warn!(%holder, ?limit, "the holder of this node id is silent; waiting until its death is certain");
                now
            }
        };
        self.seen = Some((holder, since, asked));
        now.duration_since(since) >= self.bounds.stranger()
    }
}

async fn is_proven_dead(store: &dyn Store, holder: Incarnation) -> anyhow::Result<bool> {
    let ring = store.ring().await?;
    let member = ring.members.iter().find(|member| member.incarnation == holder);
    Ok(member.is_some_and(|member| process::is_proven_dead(&member.process)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(15);

    #[test]
    fn a_silent_holder_is_given_all_the_time_of_a_certificate() {
        let (bounds, holder, start) = (Bounds::new(TTL), Incarnation(1), Instant::now());
        let mut silence = Silence::new(bounds);
        let mut now = start;
        while now < start + bounds.stranger() {
            assert!(!silence.is_over(holder, now, now));
            now += Duration::from_secs(1);
        }
        assert!(silence.is_over(holder, now, now));
        assert!(!silence.is_over(Incarnation(2), now, now), "another holder counts anew");
        let later = now + 2 * bounds.stranger();
        assert!(!silence.is_over(Incarnation(2), later, later), "so does one not looked at");
    }
}
