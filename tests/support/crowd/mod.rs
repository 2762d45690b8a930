//! Clients of several kinds that talk until they are told to stop, and write down what they
//! do and see.

mod notes;
mod post;
mod room;
mod socket;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

pub use notes::Recorder;
use post::Post;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use room::Room;
use socket::Socket;
use tokio::{task::JoinHandle, time::sleep};

use super::{checker::Seen, eventually};

/// Pauses before the tries of one turn after the first: those of Codex.
const LADDER: [Duration; 6] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
    Duration::from_millis(3200),
    Duration::from_millis(6400),
];

/// How a client speaks, in the proportions of [`Kind::of`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// WebSocket with the manners of Codex: on a new socket the whole history.
    FullHistory,
    /// WebSocket, `store: false`, never more than the new text and `previous_response_id`.
    Chained,
    /// `POST` with the whole history, answered as a stream.
    PostStream,
    /// `POST` with `store: true` and `previous_response_id`, answered in one piece.
    PostStored,
    /// An opaque session: one message and its echo.
    Room,
}

impl Kind {
    fn of(n: usize) -> Self {
        use Kind::{Chained, FullHistory, PostStored, PostStream, Room};
        let kinds = [FullHistory, Chained, FullHistory, PostStream, Chained, PostStored, Room];
        kinds[n % kinds.len()]
    }
}

/// Why a user did not get an answer.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The ring said that it cannot know the outcome.
    Unknown,
    /// The conversation is nowhere any more; the client begins another.
    Forgotten,
    /// Anything else.
    Other(String),
}

/// What a user does not see, but an operator may want to count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hidden {
    pub reconnects: usize,
    /// Requests sent again, nothing of whose answer had been seen.
    pub resent: usize,
    /// Requests sent again after a part of the answer: the user sees it begin anew.
    pub restarted: usize,
    /// Refusals with the advice to come again.
    pub told_to_wait: usize,
}

/// How a crowd talks.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Pieces of an answer.
    pub deltas: u32,
    /// Pause before each piece, in milliseconds.
    pub delay: u64,
    /// Longest pause between two turns, in milliseconds.
    pub think: u64,
    /// Turns after which a client begins another conversation, in a session of its own.
    pub anew_after: Option<usize>,
}

/// One client of any kind.
pub enum Client {
    Socket(Socket),
    Post(Post),
    Room(Room),
}

impl Client {
    /// A client of the ring at `url`, in a session of its own.
    pub fn new(kind: Kind, url: &str, session: &str, recorder: &Recorder) -> Self {
        match kind {
            Kind::FullHistory => Self::Socket(Socket::new(url, session, true, recorder)),
            Kind::Chained => Self::Socket(Socket::new(url, session, false, recorder)),
            Kind::PostStream => Self::Post(Post::new(url, session, true, recorder)),
            Kind::PostStored => Self::Post(Post::new(url, session, false, recorder)),
            Kind::Room => Self::Room(Room::new(url, session, recorder)),
        }
    }

    /// One request and its answer, with the retries of its kind.
    pub async fn turn(&mut self, text: &str) -> Result<(), Failure> {
        match self {
            Self::Socket(socket) => socket.turn(text).await,
            Self::Post(post) => post.turn(text).await,
            Self::Room(room) => room.turn().await,
        }
    }

    #[allow(dead_code, reason = "for the simulation")]
    /// Drops the connection, as one does whose network changes; it comes back with its next
    /// turn.
    pub fn hang_up(&mut self) {
        match self {
            Self::Socket(socket) => socket.lost(),
            // Each of its turns is a connection.
            Self::Post(_) => {}
            Self::Room(room) => room.hang_up(),
        }
    }

    fn begin_anew(&mut self) {
        match self {
            Self::Socket(socket) => socket.begin_anew(),
            Self::Post(post) => post.begin_anew(),
            // An echo has no past.
            Self::Room(_) => {}
        }
    }

    fn hidden(&self) -> Hidden {
        match self {
            Self::Socket(socket) => socket.hidden,
            Self::Post(post) => post.hidden,
            Self::Room(room) => room.hidden,
        }
    }
}

/// Clients at work.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    /// Of each client.
    turns: Arc<[AtomicUsize]>,
    failed: Arc<AtomicUsize>,
    recorder: Recorder,
    clients: Vec<JoinHandle<(Kind, Hidden, Vec<Failure>)>>,
}

/// What came of a crowd.
#[derive(Debug, Default)]
pub struct Outcome {
    pub turns: usize,
    pub hidden: Hidden,
    pub unknown: usize,
    pub forgotten: usize,
    /// Failures of any other kind, in words.
    pub failures: Vec<String>,
    pub seen: Vec<Seen>,
}

impl Crowd {
    /// `count` clients of the ring at `url`; what is random about them follows `seed`.
    pub fn start(url: &str, count: usize, pace: Pace, seed: u64) -> Self {
        Self::that_asks(url, count, pace, seed, &[])
    }

    /// The same; one turn in three, by chance, carries one of these directives for the upstream.
    pub fn that_asks(
        url: &str,
        count: usize,
        pace: Pace,
        seed: u64,
        directives: &'static [&'static str],
    ) -> Self {
        println!("{count} clients, {pace:?}, seed {seed}");
        let stop = Arc::new(AtomicBool::new(false));
        let turns: Arc<[AtomicUsize]> = (0..count).map(|_| AtomicUsize::new(0)).collect();
        let failed = Arc::new(AtomicUsize::new(0));
        let recorder = Recorder::default();
        let clients = (0..count)
            .map(|n| {
                let random = StdRng::seed_from_u64(seed.wrapping_add(n as u64));
                let kind = Kind::of(n);
                let client = Client::new(kind, url, &format!("{kind:?}-{n}"), &recorder);
                let (stop, turns, failed) = (stop.clone(), turns.clone(), failed.clone());
                let talk = Talk { n, pace, random, directives, stop, turns, failed };
                tokio::spawn(talk.run(kind, client))
            })
            .collect();
        Self { stop, turns, failed, recorder, clients }
    }

    /// Turns so far.
    pub fn turns(&self) -> usize {
        self.turns.iter().map(|turns| turns.load(Ordering::Relaxed)).sum()
    }

    /// Turns so far that failed, in whatever way.
    pub fn failed(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits until the clients did `count` more turns on average.
    pub async fn until_more(&self, count: usize) {
        let target = self.turns() + count * self.clients.len();
        eventually("the clients do turns", Duration::from_mins(2), async || {
            (self.turns() >= target).then_some(())
        })
        .await;
    }

    /// Waits until every client did `count` more turns.
    pub async fn until_each(&self, count: usize) {
        let so_far = || self.turns.iter().map(|turns| turns.load(Ordering::Relaxed));
        let targets: Vec<_> = so_far().map(|turns| turns + count).collect();
        eventually("every client does turns", Duration::from_mins(2), async || {
            so_far().zip(&targets).all(|(turns, target)| turns >= *target).then_some(())
        })
        .await;
    }

    /// Lets every client end its turn.
    pub async fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut outcome = Outcome::default();
        let all = Arc::clone(&self.turns);
        for client in self.clients {
            let (kind, hidden, failures) = client.await.unwrap();
            outcome.hidden.reconnects += hidden.reconnects;
            outcome.hidden.resent += hidden.resent;
            outcome.hidden.restarted += hidden.restarted;
            outcome.hidden.told_to_wait += hidden.told_to_wait;
            for failure in failures {
                match failure {
                    Failure::Unknown => outcome.unknown += 1,
                    Failure::Forgotten => outcome.forgotten += 1,
                    Failure::Other(why) => outcome.failures.push(format!("{kind:?}: {why}")),
                }
            }
        }
        outcome.turns = all.iter().map(|turns| turns.load(Ordering::Relaxed)).sum();
        outcome.seen = self.recorder.take();
        outcome
    }
}

/// One client's loop.
struct Talk {
    n: usize,
    pace: Pace,
    random: StdRng,
    directives: &'static [&'static str],
    stop: Arc<AtomicBool>,
    turns: Arc<[AtomicUsize]>,
    failed: Arc<AtomicUsize>,
}

impl Talk {
    async fn run(mut self, kind: Kind, mut client: Client) -> (Kind, Hidden, Vec<Failure>) {
        let Pace { deltas, delay, think, anew_after } = self.pace;
        let mut failures = Vec::new();
        for turn in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            sleep(Duration::from_millis(self.random.random_range(0..=think))).await;
            // Each at a time of its own.
            if anew_after.is_some_and(|every| (turn + self.n).is_multiple_of(every)) {
                client.begin_anew();
            }
            let directive = self.directive();
            let text = format!(
                "client {} turn {turn} [deltas={deltas}] [delay={delay}ms]{directive}",
                self.n
            );
            if let Err(failure) = client.turn(&text).await {
                failures.push(failure);
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
            self.turns[self.n].fetch_add(1, Ordering::Relaxed);
        }
        (kind, client.hidden(), failures)
    }

    /// What the next turn asks of the upstream besides.
    fn directive(&mut self) -> &'static str {
        if self.directives.is_empty() || self.random.random_bool(2.0 / 3.0) {
            return "";
        }
        self.directives[self.random.random_range(0..self.directives.len())]
    }
}
