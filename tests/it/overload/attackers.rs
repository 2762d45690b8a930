//! Clients that do harm, each kind for some seconds.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::support::{
    BOB, Node, Received, Refused, Ring, Ws, http,
    responses::{body, user},
};

/// How long most of them go on.
const LASTS: Duration = Duration::from_secs(6);
/// Patience with one write that nobody reads.
const STUCK: Duration = Duration::from_secs(1);
/// Of a message that stays within the limit of 16 MiB and is never finished.
const LARGE: usize = 15 << 20;

/// Places of a node in the storm. Beside the regular clients there are so many others at the node
/// that stays, and a crowd at the one that goes: more than both together have no room at one.
pub const PLACES: usize = 400;
const RESIDENTS: usize = 200;
const CROWD: usize = 300;
/// How long it may take until each of the crowd is served.
const SERVED: Duration = Duration::from_mins(1);

/// What attackers heard.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refusals {
    /// Answers that say no.
    pub refused: usize,
    /// Those that say when to come again.
    pub advised: usize,
    /// Connections that the node ended, or a close frame in time.
    pub closed: usize,
}

impl std::iter::Sum for Refusals {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            refused: sum.refused + one.refused,
            advised: sum.advised + one.advised,
            closed: sum.closed + one.closed,
        })
    }
}

impl Refusals {
    fn closed(yes: bool) -> Self {
        Self { closed: usize::from(yes), ..Self::default() }
    }

    fn answered(answer: &[u8]) -> Self {
        let answer = String::from_utf8_lossy(answer).to_lowercase();
        let refused = answer.starts_with("http/1.1 4") || answer.starts_with("http/1.1 5");
        let advised = refused && answer.contains("retry-after");
        Self { refused: refused.into(), advised: advised.into(), closed: 0 }
    }
}

/// A kind of harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    Nobody,
    SlowReaders,
    Connections,
    SlowUpgrades,
    EndlessHeads,
    Pings,
    TooLarge,
    NeverFinished,
    HalfBodies,
    Turns,
    Storm,
}

impl Attack {
    /// Each kind of harm, beside which no regular client fails.
    pub const ALL: [Self; 10] = [
        Self::Nobody,
        Self::SlowReaders,
        Self::Connections,
        Self::SlowUpgrades,
        Self::EndlessHeads,
        Self::Pings,
        Self::TooLarge,
        Self::NeverFinished,
        Self::HalfBodies,
        Self::Turns,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::SlowReaders => "50 clients that never read an endless stream",
            Self::Connections => "3,000 connections without a request",
            Self::SlowUpgrades => "1,000 upgrades of a byte a second",
            Self::EndlessHeads => "200 heads of 16 MB",
            Self::Pings => "8 floods of pings, never read",
            Self::TooLarge => "50 clients with messages of 17 MiB, again and again",
            Self::NeverFinished => "100 messages of 15 MiB, never finished",
            Self::HalfBodies => "100 bodies of 15 MiB, never finished",
            Self::Turns => "200 turns at once of a principal that may run 16",
            Self::Storm => {
                "300 clients of a node that is restarted, with room for fewer at the other"
            }
        }
    }

    /// Descriptors that may stay open for longer: upstream connections of sessions without
    /// clients.
    pub fn leaves(self) -> u64 {
        match self {
            Self::Turns | Self::Storm => 1300,
            _ => 400,
        }
    }

    pub async fn run(self, ring: &Ring) -> Refusals {
        let node = ring.node(0);
        match self {
            Self::Nobody => {
                sleep(super::ALONE).await;
                Refusals::default()
            }
            Self::SlowReaders => slow_readers(node).await,
            Self::Connections => connections(node).await,
            Self::SlowUpgrades => slow_upgrades(node).await,
            Self::EndlessHeads => endless_heads(node).await,
            Self::Pings => pings(node).await,
            Self::TooLarge => too_large(node).await,
            Self::NeverFinished => never_finished(node).await,
            Self::HalfBodies => half_bodies(node).await,
            Self::Turns => turns(node).await,
            Self::Storm => storm(ring).await,
        }
    }
}

async fn connect(node: &Node) -> TcpStream {
    TcpStream::connect(node.client_url.trim_start_matches("http://")).await.unwrap()
}

/// What the node says within a time, and whether it ended the connection.
async fn heard(stream: &mut TcpStream, limit: Duration) -> Refusals {
    let mut got = Vec::new();
    let ended = timeout(limit, stream.read_to_end(&mut got)).await.is_ok();
    Refusals { closed: ended.into(), ..Refusals::answered(&got) }
}

/// The beginning of a masked binary frame of so many bytes; the mask is zero.
fn frame(bytes: usize) -> Vec<u8> {
    let mut head = vec![0x82, 0xff];
    head.extend((bytes as u64).to_be_bytes());
    head.extend([0; 4]);
    head
}

async fn slow_readers(node: &Node) -> Refusals {
    let open = (0..50).map(async |n| {
        let path = format!("/endless?session=slow-{n}&frames=1000000&bytes=16384");
        Ws::open(&node.url(&path), &[BOB]).await
    });
    // Whether the node has dropped them shows in its descriptors; who looked would read.
    let sockets = join_all(open).await;
    sleep(LASTS).await;
    drop(sockets);
    Refusals::default()
}

async fn connections(node: &Node) -> Refusals {
    let mut open = Vec::new();
    for _ in 0..3000 {
        open.push(connect(node).await);
    }
    let said = open.iter_mut().map(|stream| heard(stream, LASTS));
    join_all(said).await.into_iter().sum()
}

async fn slow_upgrades(node: &Node) -> Refusals {
    let mut slow = JoinSet::new();
    for _ in 0..1000 {
        let mut stream = connect(node).await;
        slow.spawn(async move {
            stream.write_all(b"GET /rooms/slow HTTP/1.1\r\nhost: x\r\nx-slow: ").await.ok();
            let deadline = Instant::now() + LASTS;
            while Instant::now() < deadline && stream.write_all(b"x").await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
            heard(&mut stream, STUCK).await
        });
    }
    slow.join_all().await.into_iter().sum()
}

async fn endless_heads(node: &Node) -> Refusals {
    let mut attackers = JoinSet::new();
    for _ in 0..200 {
        let mut stream = connect(node).await;
        attackers.spawn(async move {
            let line = format!("x-long: {}\r\n", "y".repeat(8000));
            stream.write_all(b"GET /rooms/a HTTP/1.1\r\nhost: x\r\n").await.ok();
            for _ in 0..2000 {
                if stream.write_all(line.as_bytes()).await.is_err() {
                    return Refusals::closed(true);
                }
            }
            Refusals::default()
        });
    }
    attackers.join_all().await.into_iter().sum()
}

async fn pings(node: &Node) -> Refusals {
    let mut attackers = JoinSet::new();
    for n in 0..8 {
        let socket = Ws::open(&node.url(&format!("/rooms/flood-{n}")), &[BOB]).await;
        attackers.spawn(async move {
            let mut closed = false;
            let flood = [&[0x89, 0xfd, 0, 0, 0, 0][..], &[b'p'; 125]].concat().repeat(500);
            let socket = socket
                .raw(async |stream: &mut TcpStream| {
                    let deadline = Instant::now() + LASTS;
                    while Instant::now() < deadline && !closed {
                        let sent = timeout(STUCK, stream.write_all(&flood)).await;
                        closed = matches!(sent, Ok(Err(_)));
                    }
                })
                .await;
            drop(socket);
            Refusals::closed(closed)
        });
    }
    attackers.join_all().await.into_iter().sum()
}

async fn too_large(node: &Node) -> Refusals {
    let deadline = Instant::now() + LASTS;
    let attackers = (0..50).map(async |n| {
        let mut heard = Refusals::default();
        while Instant::now() < deadline {
            let url = node.url(&format!("/rooms/large-{n}"));
            let Ok(socket) = Ws::connect(&url, &[BOB]).await else { continue };
            let mut socket = socket
                .raw(async |stream: &mut TcpStream| {
                    let message = [frame(17 << 20), vec![0; 256 << 10]].concat();
                    timeout(STUCK, stream.write_all(&message)).await.ok();
                })
                .await;
            heard.closed += usize::from(socket.next().await.is_end());
        }
        heard
    });
    join_all(attackers).await.into_iter().sum()
}

async fn never_finished(node: &Node) -> Refusals {
    let attackers = (0..100).map(async |n| {
        let url = node.url(&format!("/rooms/unfinished-{}", n % 10));
        let mut socket = match Ws::connect(&url, &[BOB]).await {
            Ok(socket) => socket,
            Err(refused) => {
                let advised = refused.retry_after().is_some().into();
                return Refusals { refused: 1, advised, closed: 0 };
            }
        };
        socket = socket
            .raw(async |stream: &mut TcpStream| {
                stream.write_all(&frame(LARGE + 1)).await.ok();
                let piece = vec![0; 64 << 10];
                for _ in 0..LARGE / piece.len() {
                    if !matches!(timeout(LASTS, stream.write_all(&piece)).await, Ok(Ok(()))) {
                        break;
                    }
                }
                sleep(LASTS).await;
            })
            .await;
        let end = socket.next_within(Duration::from_millis(100)).await;
        Refusals::closed(matches!(end, Received::Close(..) | Received::Lost(_)))
    });
    join_all(attackers).await.into_iter().sum()
}

async fn half_bodies(node: &Node) -> Refusals {
    let mut attackers = JoinSet::new();
    for _ in 0..100 {
        let mut stream = connect(node).await;
        attackers.spawn(async move {
            let head = format!(
                "POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\
                 content-type: application/json\r\nauthorization: {}\r\n\r\n",
                LARGE + 1,
                BOB.1
            );
            stream.write_all(head.as_bytes()).await.ok();
            let piece = vec![b' '; 64 << 10];
            for _ in 0..LARGE / piece.len() {
                if !matches!(timeout(LASTS, stream.write_all(&piece)).await, Ok(Ok(()))) {
                    break;
                }
            }
            heard(&mut stream, LASTS).await
        });
    }
    attackers.join_all().await.into_iter().sum()
}

async fn turns(node: &Node) -> Refusals {
    let deadline = Instant::now() + LASTS;
    let attackers = (0..200).map(async |n| {
        let mut heard = Refusals::default();
        while Instant::now() < deadline {
            let text = format!("flood {n} [deltas=20] [delay=20ms]");
            let asked = body(&[user(&text)], None, false).to_string();
            let session = format!("flood-{n}");
            let headers =
                [BOB, ("content-type", "application/json"), ("session-id", session.as_str())];
            let url = node.url("/v1/responses");
            let answer = http::request(::http::Method::POST, &url, &headers, asked).await;
            match answer {
                Ok(answer) if answer.status == 200 => {}
                Ok(answer) => {
                    heard.refused += 1;
                    heard.advised += usize::from(answer.retry_after().is_some());
                }
                Err(_) => heard.closed += 1,
            }
        }
        heard
    });
    join_all(attackers).await.into_iter().sum()
}

/// A pause as clients make them that were refused: as long as they were told, and up to as much
/// again, so that they do not come back together.
pub async fn wait_as_told(refused: &Refused) {
    let told = Duration::from_secs(refused.retry_after().unwrap_or(1));
    sleep(told.mul_f64(rand::random_range(1.0..2.0))).await;
}

/// Clients of the other node, whose sockets it closes when it goes, come back to this one, where
/// others keep so many places that it has to refuse some. All of them are served in the end.
async fn storm(ring: &Ring) -> Refusals {
    let (stays, goes) = (ring.node(0), ring.node(1));
    let mut residents = Vec::new();
    for _ in 0..RESIDENTS {
        residents.push(Ws::open(&stays.url("/v1/responses"), &[BOB]).await);
    }
    let mut open = Vec::new();
    for n in 0..CROWD {
        open.push(Ws::open(&goes.url(&format!("/rooms/storm-{n}")), &[BOB]).await);
    }
    goes.sigterm();
    let back = open.into_iter().enumerate().map(async |(n, mut socket)| {
        let closed = Refusals::closed(socket.end().await.is_end());
        comes_back([stays, goes], &format!("/rooms/storm-{n}"), closed).await
    });
    let restart = async {
        assert_eq!(goes.wait_exit(Duration::from_secs(30)).await, 0, "{}", goes.log());
        goes.restart().await;
    };
    let all = async { tokio::join!(join_all(back), restart) };
    let (back, ()) = timeout(SERVED, all).await.expect("all of the crowd are served");
    for resident in &mut residents {
        let heard = resident.next_now();
        assert!(!heard.as_ref().is_some_and(Received::is_end), "a place was taken away: {heard:?}");
    }
    let heard: Refusals = back.iter().map(|(heard, _)| *heard).sum();
    assert!(heard.refused > 0, "there was room for all");
    assert_eq!(heard.advised, heard.refused, "whoever is refused is told when to come again");
    heard
}

/// Tries one node after the other until one of them answers; keeps its place there.
async fn comes_back(nodes: [&Node; 2], path: &str, mut heard: Refusals) -> (Refusals, Ws) {
    for node in nodes.into_iter().cycle() {
        match Ws::connect(&node.url(path), &[BOB]).await {
            Ok(mut socket) => {
                socket.text_or_gone("back".to_owned()).await;
                if matches!(socket.data().await, Received::Text(_)) {
                    return (heard, socket);
                }
                // It came while its session was still at the node that goes.
                heard.closed += 1;
            }
            Err(refused) => {
                // Without an answer the node was not there.
                heard.refused += usize::from(refused.status > 0);
                heard.advised += usize::from(refused.retry_after().is_some());
                wait_as_told(&refused).await;
            }
        }
    }
    unreachable!("it tries for ever")
}
