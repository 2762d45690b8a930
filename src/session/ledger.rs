//! Writes the ledger of turns for all sessions of a node: what gathers while one round trip
//! is under way goes out together with the next.
//!
//! Two tasks, so that what became of turns never holds up those that are to begin.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::task::TaskTracker;

use crate::{
    ids::{Incarnation, SessionId},
    jitter::spread,
    store::{Began, NewTurn, Store, TurnId, TurnMark, TurnState},
    telemetry::metrics::{LedgerWrite, Metrics},
};

/// How long a turn waits for the ledger before its client is told to retry. A database that
/// fails over takes longer; one that is busy does not.
pub const WAIT: Duration = Duration::from_secs(2);

/// Turns that may wait to begin; one more is answered at once as if the time were over.
const QUEUE: usize = 4096;

/// Turns in one statement.
const BATCH: usize = 256;

/// Turns whose marks may wait while the database is away. What is dropped beyond stays open
/// until its session changes hands, and then is unknown.
const MAX_MARKS: usize = 65_536;

/// How long the news that a turn is visible waits for the turn's end to go with it: most
/// turns that are short then cost one write less.
const LINGER: Duration = Duration::from_millis(500);

/// Pause after a failure of the store, give or take half.
const PAUSE: Duration = Duration::from_millis(100);

/// The ledger could not be written in time; the turn may not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwritten;

/// Where sessions leave what they begin and what became of it.
#[derive(Clone)]
pub struct Ledger {
    begin: mpsc::Sender<Wish>,
    marks: Arc<Marks>,
    /// The marking task ends when every handle is gone.
    _alive: mpsc::Sender<()>,
}

/// A turn that wants to begin, and who waits for that.
struct Wish {
    turn: NewTurn,
    reply: oneshot::Sender<Result<Began, Unwritten>>,
    until: Instant,
}

/// Marks that are not written yet.
#[derive(Default)]
struct Marks {
    state: Mutex<Waiting>,
    /// There is more to write.
    more: Notify,
    /// Something was written.
    written: Notify,
}

#[derive(Default)]
struct Waiting {
    /// With the instant from which each may be written.
    marks: BTreeMap<TurnId, (TurnMark, Instant)>,
    /// Under way.
    writing: BTreeSet<TurnId>,
}

impl Ledger {
    /// Starts the writing tasks; they end when every handle is dropped.
    pub fn start(
        me: Incarnation,
        store: Arc<dyn Store>,
        metrics: Metrics,
        tracker: &TaskTracker,
    ) -> Self {
        let (begin, wishes) = mpsc::channel(QUEUE);
        let (alive, gone) = mpsc::channel(1);
        let marks = Arc::new(Marks::default());
        tracker.spawn(begin_all(
            me,
            Arc::clone(&store),
            metrics.clone(),
            wishes,
            Arc::clone(&marks),
        ));
        tracker.spawn(mark_all(store, metrics, gone, Arc::clone(&marks)));
        Self { begin, marks, _alive: alive }
    }

    /// Writes that a turn is about to be sent. Answers within [`WAIT`].
    ///
    /// Cancel-safe: a turn whose caller went away before the answer is marked `Failed`.
    pub fn begin(
        &self,
        turn: NewTurn,
    ) -> impl Future<Output = Result<Began, Unwritten>> + Send + Sync + use<> {
        let (reply, answer) = oneshot::channel();
        let sent = self.begin.try_send(Wish { turn, reply, until: Instant::now() + WAIT });
        async move {
            if sent.is_err() {
                return Err(Unwritten);
            }
            timeout(WAIT, answer).await.ok().and_then(Result::ok).unwrap_or(Err(Unwritten))
        }
    }

    /// Leaves what became of a turn, to be written soon. Never waits.
    pub(super) fn mark(&self, mark: TurnMark) {
        self.marks.put(mark);
    }

    /// Waits until nothing of this session is left to write. Cancel-safe; without a limit of
    /// its own.
    pub(super) async fn flush(&self, session: SessionId) {
        loop {
            let written = self.marks.written.notified();
            {
                let mut state = self.marks.state.lock();
                let now = Instant::now();
                let waiting = state.marks.iter_mut().filter(|(id, _)| id.0 == session);
                // No end of a turn will come that the news could go with.
                let waiting = waiting.map(|(_, (_, from))| *from = now).count();
                if waiting == 0 && !state.writing.iter().any(|id| id.0 == session) {
                    return;
                }
            }
            self.marks.more.notify_one();
            written.await;
        }
    }
}

impl Marks {
    fn put(&self, mark: TurnMark) {
        let from = match mark.state {
            TurnState::Visible => Instant::now() + LINGER,
            _ => Instant::now(),
        };
        {
            let mut state = self.state.lock();
            if let Some((waiting, until)) = state.marks.get_mut(&mark.id()) {
                waiting.absorb(mark);
                *until = (*until).min(from);
            } else if state.marks.len() < MAX_MARKS {
                state.marks.insert(mark.id(), (mark, from));
            } else {
                tracing::warn!(session = %mark.session, "too much waits for the ledger; what became of a turn is not written");
            }
        }
        self.more.notify_one();
    }

    /// What may be written now, and when the next one may.
    fn take(&self) -> (Vec<TurnMark>, Option<Instant>) {
        let mut state = self.state.lock();
        let now = Instant::now();
        let due: Vec<TurnId> = state
            .marks
            .iter()
            .filter(|(_, (_, from))| *from <= now)
            .map(|(id, _)| *id)
            .take(BATCH)
            .collect();
        let marks: Vec<_> =
            due.iter().filter_map(|id| state.marks.remove(id)).map(|(mark, _)| mark).collect();
        state.writing.extend(due);
        (marks, state.marks.values().map(|(_, from)| *from).min())
    }

    /// Ends a write; what failed waits again, under what was said since.
    fn settle(&self, failed: Vec<TurnMark>) {
        {
            let mut state = self.state.lock();
            state.writing.clear();
            let now = Instant::now();
            for mut mark in failed {
                if let Some((later, _)) = state.marks.remove(&mark.id()) {
                    mark.absorb(later);
                }
                state.marks.insert(mark.id(), (mark, now));
            }
        }
        self.written.notify_waiters();
    }
}

async fn mark_all(
    store: Arc<dyn Store>,
    metrics: Metrics,
    mut alive: mpsc::Receiver<()>,
    marks: Arc<Marks>,
) {
    let mut failing = false;
    loop {
        let (batch, next) = marks.take();
        if batch.is_empty() {
            let next = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = marks.more.notified() => {}
                () = next => {}
                // Nothing more will come, and everything that may be written is.
                _ = alive.recv() => return,
            }
            continue;
        }
        metrics.ledger_batch(LedgerWrite::Mark, batch.len());
        match store.mark_turns(&batch).await {
            Ok(_) => {
                failing = false;
                marks.settle(Vec::new());
            }
            Err(error) => {
                // Said once: it is tried ten times a second for as long as an outage lasts.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, count = batch.len(), "marking turns fails");
                }
                marks.settle(batch);
                tokio::select! {
                    () = sleep(spread(PAUSE)) => {}
                    _ = alive.recv() => return,
                }
            }
        }
    }
}

async fn begin_all(
    me: Incarnation,
    store: Arc<dyn Store>,
    metrics: Metrics,
    mut wishes: mpsc::Receiver<Wish>,
    marks: Arc<Marks>,
) {
    let mut batch = Vec::new();
    let mut failing = false;
    loop {
        if batch.is_empty() && wishes.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        // After a failure, what came meanwhile goes along.
        while batch.len() < BATCH
            && let Ok(wish) = wishes.try_recv()
        {
            batch.push(wish);
        }
        let now = Instant::now();
        batch.retain(|wish| wish.until > now && !wish.reply.is_closed());
        let Some(until) = batch.iter().map(|wish| wish.until).max() else { continue };
        metrics.ledger_batch(LedgerWrite::Begin, batch.len());
        let turns: Vec<_> = batch.iter().map(|wish| wish.turn.clone()).collect();
        let began = timeout(until - now, store.begin_turns(me, &turns)).await;
        match began {
            Ok(Ok(began)) => {
                failing = false;
                for (wish, began) in batch.drain(..).zip(began) {
                    answer(wish, began, &marks);
                }
            }
            failed => {
                if let Ok(Err(error)) = failed
                    && !std::mem::replace(&mut failing, true)
                {
                    tracing::warn!(%error, count = batch.len(), "beginning turns fails");
                }
                // Perhaps it was written all the same; then the next attempt finds it.
                sleep(spread(PAUSE)).await;
            }
        }
    }
}

fn answer(wish: Wish, began: Began, marks: &Marks) {
    let Wish { turn, reply, .. } = wish;
    if let Err(Ok(Began::Begun)) = reply.send(Ok(began)) {
        // Nobody heard it, so nobody sends it.
        let NewTurn { session, epoch, no, .. } = turn;
        marks.put(TurnMark { session, epoch, no, state: TurnState::Failed, response: None });
    }
}
