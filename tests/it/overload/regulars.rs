//! Clients that do nothing wrong, at a fixed rate, and how long they wait.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::support::{
    ALICE, Received, Ws,
    responses::{Turn, create, user},
};

/// Clients of echoes, and the pause of each between two.
const ECHOES: usize = 20;
const ECHO_EVERY: Duration = Duration::from_millis(100);
/// Clients that take turns, and the pause of each between two.
const TALKERS: usize = 6;
const TURN_EVERY: Duration = Duration::from_millis(500);

/// Waits, in ascending order.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    fn of(mut waits: Vec<Duration>) -> Self {
        waits.sort_unstable();
        Self(waits)
    }

    fn at(&self, percent: usize) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0.get(last * percent / 100).copied().unwrap_or_default()
    }

    /// The longest.
    pub fn worst(&self) -> Duration {
        self.at(100)
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [half, most] = [50, 99].map(|percent| self.at(percent).as_secs_f64() * 1e3);
        write!(f, "{half:.1}, {most:.1} ms")
    }
}

#[derive(Default)]
struct Book {
    echoes: Mutex<Vec<Duration>>,
    turns: Mutex<Vec<Duration>>,
    failed: AtomicUsize,
    stop: AtomicBool,
}

/// The clients, in a thread of their own: attackers are not to take their time.
pub struct Regulars {
    book: Arc<Book>,
    thread: JoinHandle<()>,
}

impl Regulars {
    /// All of one node.
    pub fn start(url: &str) -> Self {
        let book = Arc::<Book>::default();
        let (url, noted) = (url.to_owned(), Arc::clone(&book));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let mut clients = JoinSet::new();
                for n in 0..ECHOES {
                    clients.spawn(echo(url.clone(), n, Arc::clone(&noted)));
                }
                for n in 0..TALKERS {
                    clients.spawn(talk(url.clone(), n, Arc::clone(&noted)));
                }
                clients.join_all().await;
            });
        });
        Self { book, thread }
    }

    /// Echoes, first events of turns, and failures since the last time.
    pub fn take(&self) -> (Latencies, Latencies, usize) {
        let echoes = std::mem::take(&mut *self.book.echoes.lock());
        let turns = std::mem::take(&mut *self.book.turns.lock());
        let failed = self.book.failed.swap(0, Relaxed);
        (Latencies::of(echoes), Latencies::of(turns), failed)
    }

    pub fn stop(self) {
        self.book.stop.store(true, Relaxed);
        self.thread.join().unwrap();
    }
}

/// Ticks from which answers are counted; one that comes while another answer is late is left
/// out, or a moment of trouble would be counted again and again.
fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

async fn echo(url: String, n: usize, book: Arc<Book>) {
    let url = format!("{url}/rooms/regular-{n}");
    let mut ticks = ticks(ECHO_EVERY);
    let mut socket = None;
    for number in 0.. {
        let due: Instant = ticks.tick().await;
        if book.stop.load(Relaxed) {
            return;
        }
        let Some(open) = &mut socket else {
            socket = Ws::connect(&url, &[ALICE]).await.ok();
            book.failed.fetch_add(usize::from(socket.is_none()), Relaxed);
            continue;
        };
        let text = number.to_string();
        if open.text_or_gone(text.clone()).await && open.data().await == Received::Text(text) {
            book.echoes.lock().push(due.elapsed());
        } else {
            book.failed.fetch_add(1, Relaxed);
            socket = None;
        }
    }
}

async fn talk(url: String, n: usize, book: Arc<Book>) {
    let (url, principal) = (format!("{url}/v1/responses"), format!("Bearer regular-{n}"));
    let mut ticks = ticks(TURN_EVERY);
    let mut socket: Option<Ws> = None;
    for number in 0.. {
        let due = ticks.tick().await;
        if book.stop.load(Relaxed) {
            return;
        }
        let Some(open) = &mut socket else {
            socket = Ws::connect(&url, &[("authorization", &principal)]).await.ok();
            book.failed.fetch_add(usize::from(socket.is_none()), Relaxed);
            continue;
        };
        let text = format!("regular {n} turn {number} [deltas=4] [delay=5ms]");
        let asked = create(&[user(&text)], None).to_string();
        let sent = open.text_or_gone(asked).await;
        let created = if sent { open.data().await } else { Received::Silence };
        let waited = due.elapsed();
        let turn = match created {
            Received::Text(_) => Turn::read(open).await,
            _ => Turn::default(),
        };
        if turn.last()["type"] == "response.completed" {
            book.turns.lock().push(waited);
        } else {
            book.failed.fetch_add(1, Relaxed);
            socket = None;
        }
    }
}
