//! The last word of a node that has drained: it is no member any more.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    ids::Incarnation,
    store::{Store, StoreError},
};

/// Pause before another try; doubled each time, and spread.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(1);

/// Leaves the ring. While rows still name this node, `release` is asked to give them away; that
/// goes on, also without an answer of the store, as long as `has_time` says so of the pause.
///
/// # Errors
/// The store could not be told in time: others wait for the lease to end.
pub(super) async fn leave(
    store: &dyn Store,
    me: Incarnation,
    release: impl AsyncFn(),
    has_time: impl Fn(Duration) -> bool,
) -> anyhow::Result<()> {
    let (mut pause, mut failing) = (PAUSE, false);
    loop {
        match store.leave(me).await {
            Ok(0) => return Ok(()),
            // Rows that still name us belong to sessions that could not be released; the
            // lease ends, and with it their claim.
            Ok(named) if !has_time(pause) => {
                tracing::warn!(named, "left with sessions in our name; they wait for the lease");
                return Ok(());
            }
            Ok(_) => release().await,
            Err(error) if matches!(error, StoreError::Fenced(_)) || !has_time(pause) => {
                return Err(anyhow::Error::new(error).context("leaving the ring"));
            }
            Err(error) if !std::mem::replace(&mut failing, true) => {
                tracing::warn!(%error, "leaving the ring failed, trying again");
            }
            Err(error) => tracing::debug!(%error, "leaving the ring failed again"),
        }
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use super::leave;
    use crate::{
        app::metered::Metered,
        ownership::{outage::Bounds, witness::Witness},
        store::{
            MemberState, NewMember, Store as _,
            memory::{Fault, Memory},
        },
        telemetry::metrics::Metrics,
    };

    #[tokio::test]
    async fn a_node_whose_lease_is_renewed_no_more_leaves_when_the_store_answers_again() {
        const PATIENCE: Duration = Duration::from_secs(10);
        let memory = Arc::new(Memory::default());
        let me = memory.register(&NewMember::ordinary("a"), PATIENCE).await.unwrap();
        // Any time without a renewal is more than half of such a lease.
        let witness = Witness::new(me, Bounds::new(Duration::ZERO), Instant::now());
        let store = Metered::new(Arc::clone(&memory) as _, witness.clone(), Metrics::new());
        assert!(store.ring().await.is_err(), "who renews knows that the store is away");
        witness.resign();
        memory.fail_leaves([Fault::RequestLost, Fault::RequestLost]);
        let begun = Instant::now();
        leave(&store, me, async || {}, |_| begun.elapsed() < PATIENCE).await.unwrap();
        let ring = memory.ring().await.unwrap();
        assert!(ring.members.iter().all(|member| member.state == MemberState::Gone), "{ring:?}");
    }
}
