//! Gives sessions away to nodes that joined later: few at a time, idle ones only, and only
//! while the ring is still.

use std::{sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep};

use super::Node;
use crate::{
    config::{Profile, Rebalance},
    ring::{Ring, rebalance},
    session::Handle,
};

/// Runs until the node ends.
pub(super) async fn run(node: Arc<Node>, rules: Rebalance) {
    // What a round did is in everybody's figures before the next one begins: loads travel with
    // heartbeats, and are read with the ring.
    let period = node.timing.heartbeat_interval + node.timing.ring_poll + Duration::from_secs(1);
    let mut seen = (0, Instant::now());
    let mut begun = false;
    loop {
        tokio::select! {
            biased;
            () = node.stop.background.cancelled() => return,
            () = sleep(period.mul_f64(rand::random_range(1.0..1.5))) => {}
        }
        let ring = node.ring.borrow().clone();
        if ring.view.version != seen.0 {
            // Somebody came or went, and perhaps the next one does soon: a roll is not the time.
            seen = (ring.view.version, Instant::now());
        }
        let still = seen.1.elapsed() >= rules.idle;
        if !still || node.draining.load(Relaxed) {
            begun = false;
            continue;
        }
        begun = give(&node, &ring, &rules, begun, period).await;
    }
}

/// One round. Whether there is more to give.
async fn give(node: &Node, ring: &Ring, rules: &Rebalance, begun: bool, period: Duration) -> bool {
    let Some(mut plan) = rebalance::plan(&ring.view.members, node.me, rules.tolerance, begun)
    else {
        return false;
    };
    let most = u32::try_from(period.as_secs()).unwrap_or(u32::MAX).saturating_mul(rules.per_second);
    plan.give = plan.give.min(most);
    let home = |handle: &Handle| ring.placement.owner(handle.id);
    let mut idle: Vec<Handle> = node.registry.list();
    idle.retain(|handle| {
        handle.route.profile == Profile::Responses && handle.stats.idle_for() >= rules.idle
    });
    // Those that the ring would place with a taker first: they are where they belong then.
    idle.sort_by_key(|handle| !home(handle).is_some_and(|home| plan.takes(home)));
    let text = format!("{} sessions are offered to nodes with fewer", plan.give.min(most));
    tracing::info!(idle = idle.len(), "{text}");
    node.events.emit("rebalance", None, &text);
    for handle in idle {
        let Some(taker) = plan.next(home(&handle)) else { break };
        if node.draining.load(Relaxed) || node.ring.borrow().view.version != ring.view.version {
            return false;
        }
        handle.offer(vec![taker]);
        sleep(Duration::from_secs(1) / rules.per_second).await;
    }
    true
}
