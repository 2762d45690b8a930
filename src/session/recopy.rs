//! What becomes of copies of conversations when the ring changes. Those of our sessions are made
//! again: another member may be the next owner of a session at rest, and the copy that the former
//! one has is of no use. Those that were left here by nodes that are gone are let go of.
//!
//! What counts is who has the copy, not whose it was by the ring of the last pass: a ring that
//! changes twice within a pass may have had another heir in between.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Registry, actor::Command, replica::next_owner};
use crate::{config::Continuity, ids::Incarnation, jitter::spread};

/// A ring that changes once often changes again (a rollout, a crash of several): one pass for
/// all, and not by all nodes at one instant.
const SETTLE: Duration = Duration::from_millis(300);

/// Most that is copied in a second: it shares the network with clients and their turns.
const SESSIONS_PER_SECOND: u32 = 200;
const BYTES_PER_SECOND: f64 = 32.0 * 1024.0 * 1024.0;

/// How long an heir that had no room is not asked again while the ring stays as it is: what it is
/// sent shares its lane with the copies that ends of turns wait for.
const FULL: Duration = Duration::from_mins(1);

/// The share of a copy of so many bytes in the time for all.
#[expect(clippy::cast_precision_loss, reason = "a pause needs no precision")]
pub(super) fn pace(bytes: u64) -> Duration {
    let wire = Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND);
    wire + Duration::from_secs(1) / SESSIONS_PER_SECOND
}

impl Registry {
    /// Lets go of conversations that were left here by nodes that have been gone for long. Looks at
    /// all of them: for upkeep.
    pub fn let_go_of_orphans(&self, is_there: impl Fn(Incarnation) -> bool) {
        self.warm.let_go_of_orphans(is_there);
        self.ctx.metrics.heir_conversations(self.copies());
    }

    /// Runs until the ring is not watched any more.
    pub async fn follow_heirs(self: Arc<Self>) {
        let mut ring = self.ctx.ring.clone();
        let mut version = ring.borrow_and_update().view.version;
        let mut full_until = Instant::now() + spread(FULL);
        // Also at each poll of a ring that has not changed: copies fail.
        while ring.changed().await.is_ok() {
            sleep(spread(SETTLE)).await;
            let now = ring.borrow_and_update().clone();
            let me = self.ctx.me;
            let ask_full = now.view.version != version || Instant::now() >= full_until;
            if ask_full {
                (version, full_until) = (now.view.version, Instant::now() + spread(FULL));
            }
            for handle in self.list() {
                let bytes = handle.stats.history_bytes();
                let replica = handle.route.continuity == Continuity::Replica;
                let next = next_owner(&now, me, handle.id);
                let same = handle.stats.heir() == next;
                let full = next.is_some() && handle.stats.refused_by() == next && !ask_full;
                if bytes == 0 || !replica || same || full {
                    continue;
                }
                // A full inbox is a busy one: its next turn finds that the heir has nothing.
                drop(handle.inbox.try_send(Box::new(Command::Replicate)));
                sleep(pace(bytes)).await;
            }
        }
    }
}
