//! Becoming a member.

use std::{net::SocketAddr, time::Instant};

use anyhow::bail;

use crate::{
    config::Config,
    ids::Incarnation,
    ownership::{lease::LeaseHandle, process},
    store::{NewMember, Store, StoreError},
};

/// Registers this process, and takes the lease that comes with it.
///
/// A node id that a dead process holds is taken over: at once where the death is proven,
/// after its lease otherwise. One that a live process holds is refused.
pub(super) async fn join(
    store: &dyn Store,
    config: &Config,
    bound: SocketAddr,
    lease: &LeaseHandle,
) -> anyhow::Result<Incarnation> {
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
    let mut waited = false;
    loop {
        let sent = Instant::now();
        match store.register(&member, config.timing.lease_ttl).await {
            Ok(me) => {
                lease.renewed(sent, config.timing.lease_ttl, config.timing.lease_margin);
                return Ok(me);
            }
            Err(StoreError::NodeIdInUse { holder, remaining, .. }) => {
                if is_proven_dead(store, holder).await? {
                    store.mark_dead(holder, true).await?;
                } else if waited {
                    bail!(
                        "node id {:?} belongs to a live process (incarnation {holder}); \
                         give this one another --node-id, or stop the other",
                        member.node_id
                    );
                } else {
                    tracing::warn!(node = %member.node_id, %holder, ?remaining, "node id is taken; waiting for its lease to end");
                    tokio::time::sleep(remaining + config.timing.lease_margin).await;
                    waited = true;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn is_proven_dead(store: &dyn Store, holder: Incarnation) -> anyhow::Result<bool> {
    let ring = store.ring().await?;
    let member = ring.members.iter().find(|member| member.incarnation == holder);
    Ok(member.is_some_and(|member| process::is_proven_dead(&member.process)))
}
