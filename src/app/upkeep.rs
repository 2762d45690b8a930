//! What a node does beside serving: says how loaded it is, forgets peers that left, sweeps
//! rows that nobody needs.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Node, strays::Strays};

/// How often the load is looked at; heartbeats carry it.
const LOOK: Duration = Duration::from_millis(500);

/// How often each node sweeps, give or take: a sweep of nothing costs a few index look-ups.
const SWEEP: Duration = Duration::from_mins(2);

/// How long closed sessions stay as fences and their aliases can be asked for.
const KEEP: Duration = Duration::from_hours(1);

/// Rows of one sweep.
const SWEEP_ROWS: u32 = 1_000;

/// Turns of one statement of a sweep, and statements of one sweep. Turns come far faster than
/// sessions go: this is 400 a second for each node.
const SWEEP_TURNS: u32 = 5_000;
const SWEEP_STATEMENTS: u32 = 10;

/// Runs until the node ends.
pub(super) async fn run(node: Arc<Node>) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweep_at = next_sweep();
    let mut strays = Strays::default();
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
            sweep_turns(&node).await;
            if let Err(error) = strays.release(&*node.store, &node.registry, node.me).await {
                tracing::debug!(%error, "looking for strays failed");
            }
        }
    }
}

/// Deletes turns that are older than their retention, as many as are allowed at once.
async fn sweep_turns(node: &Node) {
    for _ in 0..SWEEP_STATEMENTS {
        match node.store.sweep_turns(node.turn_retention, SWEEP_TURNS).await {
            Ok(rows) if rows == u64::from(SWEEP_TURNS) => {}
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%error, "sweeping turns failed");
                return;
            }
        }
    }
}

fn next_sweep() -> Instant {
    Instant::now() + SWEEP.mul_f64(rand::random_range(0.5..1.5))
}
