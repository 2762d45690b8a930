//! What a node does beside serving: says how loaded it is, forgets peers that left, sweeps
//! rows that nobody needs.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Node;

/// How often the load is looked at; heartbeats carry it.
const LOOK: Duration = Duration::from_millis(500);

/// How often each node sweeps, give or take: a sweep of nothing costs three index look-ups.
const SWEEP: Duration = Duration::from_mins(2);

/// How long closed sessions stay as fences and their aliases can be asked for.
const KEEP: Duration = Duration::from_hours(1);

/// Rows of one sweep.
const SWEEP_ROWS: u32 = 1_000;

/// Runs until the node ends.
pub(super) async fn run(node: Arc<Node>) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweep_at = next_sweep();
    loop {
        tokio::select! {
            biased;
            () = node.stop.background.cancelled() => return,
            _ = tick.tick() => {}
        }
        node.load.store(u32::try_from(node.registry.len()).unwrap_or(u32::MAX), Relaxed);
        let live: Vec<_> = node.ring.borrow().alive().map(|member| member.incarnation).collect();
        node.peers.retain(&live);
        if Instant::now() >= sweep_at {
            sweep_at = next_sweep();
            match node.store.sweep(KEEP, SWEEP_ROWS).await {
                Ok(0) => {}
                Ok(rows) => tracing::debug!(rows, "swept"),
                Err(error) => tracing::debug!(%error, "sweeping failed"),
            }
        }
    }
}

fn next_sweep() -> Instant {
    Instant::now() + SWEEP.mul_f64(rand::random_range(0.5..1.5))
}
