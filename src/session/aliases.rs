//! Writes aliases in batches, off the frame path.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::{
    jitter::spread,
    store::{Alias, Store, StoreError},
};

/// Aliases that may wait. A node that makes more within one write loses the newest, which
/// costs a client one `previous_response_not_found` after a reconnect elsewhere.
const QUEUE: usize = 4096;

/// Aliases in one statement.
const BATCH: usize = 256;

/// Attempts at one batch that the database refuses. One that is away is waited for.
const ATTEMPTS: u32 = 5;

/// Longest pause between two attempts: for as long, clients whose turns ended in an outage miss
/// their sessions after it.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Where sessions leave their new names.
#[derive(Clone, Debug)]
pub struct AliasWriter(mpsc::Sender<Alias>);

impl AliasWriter {
    /// Starts the writing task; it ends when every writer is dropped.
    pub fn start(store: Arc<dyn Store>, tracker: &TaskTracker) -> Self {
        let (tx, mut rx) = mpsc::channel(QUEUE);
        tracker.spawn(async move {
            let mut batch = Vec::new();
            while rx.recv_many(&mut batch, BATCH).await > 0 {
                write(&*store, &batch).await;
                batch.clear();
            }
        });
        Self(tx)
    }

    /// Leaves an alias to be written soon. Never waits.
    pub fn put(&self, alias: Alias) {
        if self.0.try_send(alias).is_err() {
            tracing::warn!("alias queue is full; a response id will not be found from other nodes");
        }
    }
}

async fn write(store: &dyn Store, batch: &[Alias]) {
    let mut pause = Duration::from_millis(50);
    let mut attempt = 1;
    while attempt <= ATTEMPTS {
        match store.put_aliases(batch).await {
            Ok(()) => return,
            // Turns that end during an outage are found by their ids after it.
            Err(
                error @ (StoreError::Unavailable(_) | StoreError::Away(_) | StoreError::Timeout(_)),
            ) => {
                tracing::debug!(%error, count = batch.len(), "aliases wait for the database");
            }
            Err(error) => {
                tracing::warn!(%error, attempt, count = batch.len(), "writing aliases failed");
                attempt += 1;
            }
        }
        tokio::time::sleep(spread(pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{
        ids::{Principal, SessionId},
        store::{
            AliasKind,
            memory::{Fault, Memory},
        },
    };

    #[tokio::test(start_paused = true)]
    async fn what_an_outage_kept_waiting_is_written_within_a_second_of_its_end() {
        const LOOKS: u32 = 100;

        let store = Arc::new(Memory::default());
        store.fail_aliases(vec![Fault::RequestLost; LOOKS as usize]);
        let (begun, tracker) = (Instant::now(), TaskTracker::new());
        let writer = AliasWriter::start(Arc::clone(&store) as Arc<dyn Store>, &tracker);
        let (principal, kind, session) =
            (Principal([1; 16]), AliasKind::Response, SessionId([2; 16]));
        writer.put(Alias { principal, kind, digest: [3; 16], session });
        drop(writer);
        tracker.close();
        tracker.wait().await;
        let found = store.alias(principal, kind, [3; 16]).await;
        assert_eq!(found, Ok(Some(session)));
        let between = begun.elapsed() / LOOKS;
        assert!(between < Duration::from_secs(1), "it looked every {between:?}");
    }
}
