//! Clients that do nothing wrong, at a fixed rate, and how long they wait.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use super::attackers::wait_as_told;
use crate::support::{
    ALICE, Received, Ring, Ws, eventually,
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
    /// Who got no answer, each time.
    failed: Mutex<Vec<String>>,
    /// Who got one since these names were taken.
    answered: Mutex<BTreeSet<String>>,
    stop: AtomicBool,
}

impl Book {
    fn answered(&self, who: &str, waits: &Mutex<Vec<Duration>>, wait: Duration) {
        waits.lock().push(wait);
        self.answered.lock().insert(who.to_owned());
    }

    fn failed(&self, who: &str) {
        self.failed.lock().push(who.to_owned());
    }

    /// A connection; None after a refusal and the pause that it asks for.
    async fn connect(&self, who: &str, url: &str, header: (&str, &str)) -> Option<Ws> {
        match Ws::connect(url, &[header]).await {
            Ok(socket) => Some(socket),
            Err(refused) => {
                self.failed(who);
                wait_as_told(&refused).await;
                None
            }
        }
    }
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
                    clients.spawn(echo(url.clone(), room(n), Arc::clone(&noted)));
                }
                for n in 0..TALKERS {
                    clients.spawn(talk(url.clone(), n, Arc::clone(&noted)));
                }
                clients.join_all().await;
            });
        });
        Self { book, thread }
    }

    /// Echoes, first events of turns, and who failed how often, since the last time.
    pub fn take(&self) -> (Latencies, Latencies, Vec<String>) {
        let echoes = std::mem::take(&mut *self.book.echoes.lock());
        let turns = std::mem::take(&mut *self.book.turns.lock());
        let failed = std::mem::take(&mut *self.book.failed.lock());
        (Latencies::of(echoes), Latencies::of(turns), failed)
    }

    /// Every one of them gets an answer from now on.
    pub async fn are_served(&self, within: Duration) {
        self.book.answered.lock().clear();
        eventually("every regular client is answered", within, async || {
            (self.book.answered.lock().len() == ECHOES + TALKERS).then_some(())
        })
        .await;
    }

    pub fn stop(self) {
        self.book.stop.store(true, Relaxed);
        self.thread.join().unwrap();
    }
}

/// The room of an echoing client, which has it alone.
fn room(n: usize) -> String {
    format!("regular-{n:02}")
}

/// Those whose sessions this node owns, and which it closes when it goes: they are opaque.
pub async fn owned_by(ring: &Ring, node: &str) -> BTreeSet<String> {
    let mut owned = BTreeSet::new();
    for name in (0..ECHOES).map(room) {
        if ring.owner_of(&name).await.id == node {
            owned.insert(name);
        }
    }
    owned
}

/// Ticks from which answers are counted; one that comes while another answer is late is left
/// out, or a moment of trouble would be counted again and again.
fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

async fn echo(url: String, room: String, book: Arc<Book>) {
    let url = format!("{url}/rooms/{room}");
    let mut ticks = ticks(ECHO_EVERY);
    let mut socket = None;
    for number in 0.. {
        let due: Instant = ticks.tick().await;
        if book.stop.load(Relaxed) {
            return;
        }
        let Some(open) = &mut socket else {
            socket = book.connect(&room, &url, ALICE).await;
            continue;
        };
        let text = number.to_string();
        if open.text_or_gone(text.clone()).await && open.data().await == Received::Text(text) {
            book.answered(&room, &book.echoes, due.elapsed());
        } else {
            book.failed(&room);
            socket = None;
        }
    }
}

async fn talk(url: String, n: usize, book: Arc<Book>) {
    let (url, name) = (format!("{url}/v1/responses"), format!("talker-{n}"));
    let principal = format!("Bearer {name}");
    let mut ticks = ticks(TURN_EVERY);
    let mut socket: Option<Ws> = None;
    for number in 0.. {
        let due = ticks.tick().await;
        if book.stop.load(Relaxed) {
            return;
        }
        let Some(open) = &mut socket else {
            socket = book.connect(&name, &url, ("authorization", &principal)).await;
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
            book.answered(&name, &book.turns, waited);
        } else {
            book.failed(&name);
            socket = None;
        }
    }
}
