//! Hints that the ring changed, by LISTEN on a connection of its own.

use std::time::Duration;

use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::{
    runtime::Handle,
    sync::Mutex,
    time::{Instant, sleep_until, timeout},
};

const CHANNEL: &str = "ringspan_ring";

/// First wait after a failure; it doubles up to [`LONGEST_BACKOFF`].
const SHORTEST_BACKOFF: Duration = Duration::from_millis(200);
/// Callers poll every few seconds anyway, so a longer silence costs little.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// A lazily opened listener. Notifications can be lost with the connection, so every new
/// connection is a hint as well.
pub(super) struct Hint {
    /// One connection, direct: a transaction pooler would swallow LISTEN.
    pool: PgPool,
    limit: Duration,
    /// One waiter at a time; a hint wakes one of them.
    state: Mutex<State>,
}

struct State {
    listener: Option<PgListener>,
    /// No connection is tried before this instant; kept here so that a caller who gives up
    /// and comes back does not shorten it.
    not_before: Instant,
    backoff: Duration,
}

impl Hint {
    pub(super) fn new(direct: PgConnectOptions, limit: Duration) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(limit)
            .connect_lazy_with(direct);
        let state = State { listener: None, not_before: Instant::now(), backoff: SHORTEST_BACKOFF };
        Self { pool, limit, state: Mutex::new(state) }
    }

    /// Waits for a notification or a new connection. Cancel-safe.
    pub(super) async fn wait(&self) {
        let mut state = self.state.lock().await;
        loop {
            if let Some(listener) = &mut state.listener {
                if let Ok(Some(_)) = listener.try_recv().await {
                    state.backoff = SHORTEST_BACKOFF;
                    return;
                }
                state.listener = None;
                state.retreat();
            }
            sleep_until(state.not_before).await;
            // Set before the attempt, so that one which is cancelled counts as well.
            state.retreat();
            if let Ok(Ok(listener)) = timeout(self.limit, self.listen()).await {
                state.listener = Some(listener);
                return;
            }
        }
    }

    async fn listen(&self) -> Result<PgListener, sqlx::Error> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(listener)
    }
}

impl State {
    /// Puts the next attempt off, with jitter so that a ring does not return as one.
    fn retreat(&mut self) {
        self.not_before = Instant::now() + self.backoff.mul_f64(rand::random_range(0.5..1.0));
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
    }
}

impl Drop for Hint {
    fn drop(&mut self) {
        // The listener says goodbye from a task, which needs a runtime. Without one the
        // process is ending, and the socket with it.
        if Handle::try_current().is_err() {
            std::mem::forget(self.state.get_mut().listener.take());
        }
    }
}
