//! Writes aliases in batches, off the frame path.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::store::{Alias, Store};

/// Aliases that may wait. A node that makes more within one write loses the newest, which
/// costs a client one `previous_response_not_found` after a reconnect elsewhere.
const QUEUE: usize = 4096;

/// Aliases in one statement.
const BATCH: usize = 256;

/// Attempts at one batch while the database is away.
const ATTEMPTS: u32 = 5;

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
    for attempt in 1..=ATTEMPTS {
        match store.put_aliases(batch).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(%error, attempt, count = batch.len(), "writing aliases failed");
            }
        }
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
        pause *= 2;
    }
}
