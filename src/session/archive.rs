//! Keeps conversations in the database, for routes that ask for it: one writer for the node,
//! in batches, off the frame path; and reads them back for whoever opens the session next.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use super::{
    history::Past,
    seal::{Place, Seal},
};
use crate::{
    config::HistoryKeys,
    ids::SessionId,
    jitter::spread,
    store::{NewPart, Part, Store},
    telemetry::metrics::{ArchiveFailure, Metrics},
};

/// Parts that may wait. What does not fit is written whole with the session's next turn.
const QUEUE: usize = 1024;

/// Parts, and bytes of them, in one statement. One part may be larger.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Attempts at one batch while the database is away.
const ATTEMPTS: u32 = 4;

/// Conversations being read at a time: each may hold all of a session's bytes.
const READERS: usize = 16;

/// How long a turn may wait for its conversation to be read.
const READ: Duration = Duration::from_secs(3);

/// Parts of one session that are read; writers keep far fewer.
const MAX_PARTS: u32 = 4096;

/// A part on its way to the database.
pub(super) struct Write {
    pub(super) place: Place,
    /// It takes the place of all before it.
    pub(super) whole: bool,
    pub(super) past: Vec<Past>,
    /// Resolves when it is there, or will not be.
    pub(super) acknowledge: oneshot::Sender<()>,
    /// Set when it will not be there, so that the next one is written whole.
    pub(super) torn: Arc<AtomicBool>,
}

/// What the database had of a conversation.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In the order in which it was said.
    pub(super) past: Vec<Past>,
    /// Rows.
    pub(super) parts: usize,
    /// Some were sealed with a key that is on its way out, or cannot be read.
    pub(super) outdated: bool,
}

/// Where sessions keep their conversations.
#[derive(Clone)]
pub struct Archive {
    queue: mpsc::Sender<Write>,
    store: Arc<dyn Store>,
    seal: Arc<Seal>,
    readers: Arc<Semaphore>,
    metrics: Metrics,
}

impl Archive {
    /// Starts the writing task; it ends when every archive is dropped.
    pub fn start(
        store: Arc<dyn Store>,
        keys: &HistoryKeys,
        metrics: Metrics,
        tracker: &TaskTracker,
    ) -> Self {
        let (queue, mut writes) = mpsc::channel(QUEUE);
        let seal = Arc::new(Seal::new(keys));
        let readers = Arc::new(Semaphore::new(READERS));
        let task =
            Writer { store: Arc::clone(&store), seal: Arc::clone(&seal), metrics: metrics.clone() };
        tracker.spawn(async move {
            let mut batch = Vec::new();
            while writes.recv_many(&mut batch, BATCH).await > 0 {
                task.write_all(std::mem::take(&mut batch)).await;
            }
        });
        Self { queue, store, seal, readers, metrics }
    }

    /// Leaves a part to be written soon. Never waits; false if too many wait already.
    pub(super) fn put(&self, write: Write) -> bool {
        let taken = self.queue.try_send(write).is_ok();
        if !taken {
            self.metrics.archive_failure(ArchiveFailure::Queue);
        }
        taken
    }

    /// Reads what the database has of a session's conversation, within [`READ`]. What cannot
    /// be opened is left out and logged. None if the database did not answer.
    ///
    /// Cancel-safe.
    pub(super) async fn read(self, session: SessionId) -> Option<Found> {
        let read = async {
            let _turn = self.readers.acquire().await.ok()?;
            match self.store.parts_of(session, MAX_PARTS).await {
                Ok(parts) => Some(self.open(session, parts)),
                Err(error) => {
                    tracing::warn!(%session, %error, "reading a conversation failed");
                    None
                }
            }
        };
        let found = timeout(READ, read).await.ok().flatten();
        if found.is_none() {
            self.metrics.archive_failure(ArchiveFailure::Read);
        }
        found
    }

    fn open(&self, session: SessionId, parts: Vec<Part>) -> Found {
        let mut found = Found { past: Vec::new(), parts: parts.len(), outdated: false };
        for Part { epoch, no, sealed } in parts {
            found.outdated |= self.seal.is_outdated(&sealed);
            match self.seal.open(Place { session, epoch, no }, sealed) {
                Ok(past) => found.past.extend(past),
                Err(error) => {
                    self.metrics.archive_failure(ArchiveFailure::Open);
                    tracing::warn!(%session, %epoch, part = no, %error, "a part of a conversation cannot be read");
                }
            }
        }
        found
    }
}

struct Writer {
    store: Arc<dyn Store>,
    seal: Arc<Seal>,
    metrics: Metrics,
}

impl Writer {
    /// Writes all, in statements of bounded size.
    async fn write_all(&self, writes: Vec<Write>) {
        let (mut batch, mut parts, mut bytes) = (Vec::new(), Vec::new(), 0);
        for write in writes {
            let Place { session, epoch, no } = write.place;
            match self.seal.seal(write.place, &write.past) {
                Ok(sealed) => {
                    bytes += sealed.len();
                    let part = Part { epoch, no, sealed };
                    parts.push(NewPart { session, part, whole: write.whole });
                    batch.push(write);
                }
                Err(error) => {
                    tracing::error!(%session, %error, "sealing a conversation failed");
                    self.metrics.archive_failure(ArchiveFailure::Write);
                    write.torn.store(true, Relaxed);
                }
            }
            if bytes >= BATCH_BYTES {
                self.write(std::mem::take(&mut batch), std::mem::take(&mut parts), bytes).await;
                bytes = 0;
            }
        }
        self.write(batch, parts, bytes).await;
    }

    async fn write(&self, batch: Vec<Write>, parts: Vec<NewPart>, bytes: usize) {
        if parts.is_empty() {
            return;
        }
        let mut pause = Duration::from_millis(50);
        for attempt in 1..=ATTEMPTS {
            match self.store.put_parts(&parts).await {
                Ok(()) => {
                    self.metrics.archived(parts.len(), bytes);
                    for write in batch {
                        // The session may have stopped waiting.
                        let _ = write.acknowledge.send(());
                    }
                    return;
                }
                Err(error) => {
                    let count = parts.len();
                    tracing::warn!(%error, attempt, count, "keeping conversations failed");
                    self.metrics.archive_failure(ArchiveFailure::Write);
                }
            }
            if attempt < ATTEMPTS {
                tokio::time::sleep(spread(pause)).await;
                pause *= 2;
            }
        }
        for write in batch {
            write.torn.store(true, Relaxed);
        }
    }
}
