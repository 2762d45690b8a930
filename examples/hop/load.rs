//! The load. Says `begin` and `end …` on stdout, so that who measures the proxy reads its
//! CPU at the same moments.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io::{BufRead, Write},
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use ringspan::wire::{Batch, Incoming, Message};
use tokio::{
    sync::{Notify, Semaphore},
    task::{JoinSet, spawn_blocking, spawn_local},
    time::{Instant, interval_at, sleep, timeout},
};

use super::client::{self, Http};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A message and its echo, one at a time on each connection.
    Pingpong,
    /// Frames with the time they were sent at, at a rate.
    Tokens,
    /// Frames as fast as they come.
    Flood,
    /// Nothing, until a line comes on stdin.
    Idle,
    /// Connect, one echo, hang up.
    Setup,
    /// Responses turns over WebSocket, one after another on each connection.
    Turns,
    /// The same over HTTP.
    HttpTurns,
    /// One turn on each connection, a line on stdin, one more turn on each.
    Moves,
    /// A ping now and then until a line comes; then some come back on another socket.
    Vigil,
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    pub to: SocketAddr,
    #[arg(long, value_enum)]
    pub kind: Kind,
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// Payload of a frame.
    #[arg(long, default_value_t = 200)]
    pub bytes: usize,
    /// Time between two frames of a stream, or of two set-ups of one worker; 0 is none.
    #[arg(long, default_value_t = 0)]
    pub every_us: u64,
    /// Of Responses turns.
    #[arg(long, default_value = "/v1/responses")]
    pub path: String,
    /// A file of names of sessions, one a line, that set-ups and turns take one after another.
    #[arg(long)]
    pub keys: Option<PathBuf>,
    /// Connections besides that ask for a flood and never read it.
    #[arg(long, default_value_t = 0)]
    pub stalled: usize,
    #[arg(long, default_value_t = 0.5)]
    pub warm_seconds: f64,
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
}

/// What all connections add to.
#[derive(Default)]
struct Tally {
    counting: Cell<bool>,
    units: Cell<u64>,
    failed: Cell<u64>,
    /// Nanoseconds.
    latencies: RefCell<Vec<u64>>,
    why: RefCell<Option<String>>,
    /// For `Moves`: go on.
    again: Notify,
    /// Names of sessions, the next one first.
    keys: RefCell<VecDeque<String>>,
}

impl Tally {
    fn add(&self, units: u64, latency: Option<Duration>) {
        if self.counting.get() {
            self.units.set(self.units.get() + units);
            if let Some(latency) = latency {
                let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
                self.latencies.borrow_mut().push(ns);
            }
        }
    }

    /// The next name of a session, if any are given; when all were taken, the first again.
    fn key(&self) -> Option<String> {
        let mut keys = self.keys.borrow_mut();
        let key = keys.pop_front()?;
        keys.push_back(key.clone());
        Some(key)
    }

    fn end(&self, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.failed.set(self.failed.get() + 1);
            self.why.borrow_mut().get_or_insert_with(|| format!("{error:#}"));
        }
    }
}

/// Connections that are opened at the same time.
const OPENING: usize = 64;

pub async fn run(options: Options) -> anyhow::Result<()> {
    let tally = Rc::new(Tally::default());
    if let Some(path) = &options.keys {
        let text = std::fs::read_to_string(path)?;
        tally.keys.replace(text.lines().map(str::to_owned).collect());
    }
    let opening = Rc::new(Semaphore::new(OPENING));
    let open = Rc::new(Semaphore::new(0));
    let mut tasks = JoinSet::new();
    for n in 0..options.connections + options.stalled {
        let (tally, options) = (Rc::clone(&tally), options.clone());
        let (opening, open) = (Rc::clone(&opening), Rc::clone(&open));
        tasks.spawn_local(async move {
            let result = async {
                let permit = opening.acquire().await?;
                let worker = Worker { n, options: &options, tally: &tally };
                worker
                    .run(move || {
                        drop(permit);
                        open.add_permits(1);
                    })
                    .await
            };
            let result = result.await;
            tally.end(result);
        });
    }
    let all = u32::try_from(options.connections + options.stalled)?;
    tokio::select! {
        permits = open.acquire_many(all) => permits?.forget(),
        () = sleep(Duration::from_mins(2)) => {}
    }
    let why = tally.why.borrow().clone();
    ensure!(tally.failed.get() == 0, "connecting failed: {}", why.unwrap_or_default());

    sleep(Duration::from_secs_f64(options.warm_seconds)).await;
    tally.counting.set(true);
    say("begin");
    let mut started = Instant::now();
    match options.kind {
        Kind::Idle => line().await?,
        Kind::Moves | Kind::Vigil => {
            line().await?;
            started = Instant::now();
            tally.again.notify_waiters();
            while tasks.join_next().await.is_some() {}
        }
        _ => sleep(Duration::from_secs_f64(options.seconds)).await,
    }
    tally.counting.set(false);
    let seconds = started.elapsed().as_secs_f64();
    let mut latencies = tally.latencies.take();
    latencies.sort_unstable();
    let at = |per_mille: usize| {
        let last = latencies.len().saturating_sub(1);
        latencies.get(last.min(latencies.len() * per_mille / 1000)).copied().unwrap_or(0)
    };
    let (units, failed) = (tally.units.get(), tally.failed.get());
    let (p50, p99, p999) = (at(500), at(990), at(999));
    say(&format!("end {units} {seconds} {p50} {p99} {p999} {failed}"));
    if let Some(why) = tally.why.borrow().as_ref() {
        eprintln!("load: {failed} connections failed, the first: {why}");
    }
    // Whoever started this ends it, when everything is read.
    line().await
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    // A reader that is gone wants no more.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Waits for a line on stdin, or its end.
async fn line() -> anyhow::Result<()> {
    let read = spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new()));
    read.await??;
    Ok(())
}

struct Worker<'a> {
    n: usize,
    options: &'a Options,
    tally: &'a Tally,
}

impl Worker<'_> {
    async fn run(&self, open: impl FnOnce()) -> anyhow::Result<()> {
        if self.n >= self.options.connections {
            return self.stalled(open).await;
        }
        match self.options.kind {
            Kind::Pingpong => self.pingpong(open).await,
            Kind::Tokens => self.tokens(open).await,
            Kind::Flood => self.flood(open).await,
            Kind::Idle => self.idle(open).await,
            Kind::Setup => {
                open();
                self.setups().await
            }
            Kind::Turns => self.turns(open).await,
            Kind::HttpTurns => self.http_turns(open).await,
            Kind::Moves => self.moves(open).await,
            Kind::Vigil => self.vigil(open).await,
        }
    }

    fn message(&self) -> Batch {
        Batch::one(&Message::text(vec![b'x'; self.options.bytes]))
    }

    async fn pingpong(&self, open: impl FnOnce()) -> anyhow::Result<()> {
        let mut socket = client::connect(self.options.to, "/echo", None).await?;
        open();
        let message = self.message();
        let every = Duration::from_micros(self.options.every_us);
        loop {
            let started = Instant::now();
            socket.queue(&message);
            socket.flush().await?;
            client::messages(&mut socket).await?;
            self.tally.add(2, Some(started.elapsed()));
            if !every.is_zero() {
                sleep(every.mul_f64(0.5 + rand::random::<f64>())).await;
            }
        }
    }

    async fn tokens(&self, open: impl FnOnce()) -> anyhow::Result<()> {
        let path =
            format!("/tokens?bytes={}&every_us={}", self.options.bytes, self.options.every_us);
        let mut socket = client::connect(self.options.to, &path, None).await?;
        open();
        client::say(&mut socket, "go".into()).await?;
        loop {
            let batch = client::messages(&mut socket).await?;
            let now = super::monotonic_ns();
            for message in batch.messages() {
                let sent: u64 = std::str::from_utf8(&message.payload[..20])?.parse()?;
                let late = Duration::from_nanos(now.saturating_sub(sent));
                self.tally.add(1, Some(late));
            }
        }
    }

    async fn flood(&self, open: impl FnOnce()) -> anyhow::Result<()> {
        let path = format!("/flood?bytes={}", self.options.bytes);
        let mut socket = client::connect(self.options.to, &path, None).await?;
        open();
        client::say(&mut socket, "go".into()).await?;
        loop {
            let batch = client::messages(&mut socket).await?;
            self.tally.add(batch.len().into(), None);
        }
    }

    async fn stalled(&self, open: impl FnOnce()) -> anyhow::Result<()> {
        let mut socket = client::connect(self.options.to, "/flood?bytes=1000", None).await?;
        client::say(&mut socket, "go".into()).await?;
        open();
        std::future::pending().await
    }

    async fn idle(&self, open: impl FnOnce()) -> anyhow::Result<()> {
        let mut socket = client::connect(self.options.to, "/echo", None).await?;
        client::say(&mut socket, "x".into()).await?;
        client::messages(&mut socket).await?;
        open();
        std::future::pending().await
    }

    /// A ping each half minute until a line comes; then one in twenty comes back on another
    /// socket, and gets what it has not seen.
    async fn vigil(&self, open: impl FnOnce()) -> anyhow::Result<()> {
        const LIMIT: Duration = Duration::from_secs(10);
        let session = self.session();
        let mut socket = client::connect(self.options.to, "/echo", Some(&session)).await?;
        client::say(&mut socket, "first".into()).await?;
        client::messages(&mut socket).await?;
        let again = self.tally.again.notified();
        tokio::pin!(again);
        open();
        loop {
            let pause = Duration::from_secs(30).mul_f64(0.5 + rand::random::<f64>());
            tokio::select! {
                () = &mut again => break,
                () = sleep(pause) => {}
            }
            let started = Instant::now();
            socket.queue_ping(b"vigil");
            socket.flush().await?;
            let answer = timeout(LIMIT, socket.recv()).await.context("a ping was not answered")?;
            let answer = answer.context("the connection ended")??;
            ensure!(matches!(answer, Incoming::Pong(_)), "a ping was answered by {answer:?}");
            self.tally.add(1, Some(started.elapsed()));
        }
        if self.n.is_multiple_of(20) {
            client::say(&mut socket, "last".into()).await?;
            client::messages(&mut socket).await?;
            drop(socket);
            let to = "/echo?last_seq=1";
            let mut socket = client::connect(self.options.to, to, Some(&session)).await?;
            let batch = timeout(LIMIT, client::messages(&mut socket)).await;
            let batch = batch.context("a session that was resumed said nothing")??;
            let resumed = batch.messages().next().is_some_and(|m| m.payload == "last");
            ensure!(resumed, "the session did not go on where it was");
            self.tally.add(1, None);
        }
        Ok(())
    }

    async fn setups(&self) -> anyhow::Result<()> {
        let every = Duration::from_micros(self.options.every_us);
        // Each worker has a phase of its own, else all of them would connect at one instant.
        let phase = every.mul_f64(self.n as f64 / self.options.connections as f64);
        let mut ticks = (!every.is_zero()).then(|| interval_at(Instant::now() + phase, every));
        loop {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
            }
            let key = self.tally.key();
            let started = Instant::now();
            let mut socket = client::connect(self.options.to, "/echo", key.as_deref()).await?;
            client::say(&mut socket, "x".into()).await?;
            client::messages(&mut socket).await?;
            self.tally.add(1, Some(started.elapsed()));
            socket.queue_close(1000, "");
            socket.flush().await?;
            // The answer is waited for elsewhere: hanging up at once would be a reset.
            spawn_local(async move {
                let answer = async { while let Some(Ok(_)) = socket.recv().await {} };
                tokio::time::timeout(Duration::from_secs(2), answer).await.ok();
            });
        }
    }

    fn session(&self) -> String {
        self.tally.key().unwrap_or_else(|| format!("s-{}-{}", std::process::id(), self.n))
    }

    async fn turns(&self, open: impl FnOnce()) -> anyhow::Result<()> {
        let session = self.session();
        let mut socket =
            client::connect(self.options.to, &self.options.path, Some(&session)).await?;
        let mut previous = client::turn(&mut socket, None).await?.response_id;
        open();
        loop {
            let started = Instant::now();
            let turn = client::turn(&mut socket, Some(&previous)).await?;
            self.tally.add(1, Some(turn.first - started));
            previous = turn.response_id;
        }
    }

    async fn http_turns(&self, open: impl FnOnce()) -> anyhow::Result<()> {
        let mut http = Http::connect(self.options.to, &self.options.path, &self.session()).await?;
        let mut previous = http.turn(None).await?.response_id;
        open();
        loop {
            let started = Instant::now();
            let turn = http.turn(Some(&previous)).await?;
            self.tally.add(1, Some(turn.first - started));
            previous = turn.response_id;
        }
    }

    async fn moves(&self, open: impl FnOnce()) -> anyhow::Result<()> {
        let session = self.session();
        let mut socket = client::connect(self.options.to, "/v1/responses", Some(&session)).await?;
        let previous = client::turn(&mut socket, None).await?.response_id;
        let again = self.tally.again.notified();
        open();
        again.await;
        let started = Instant::now();
        let turn = client::turn(&mut socket, Some(&previous)).await?;
        self.tally.add(1, Some(turn.first - started));
        Ok(())
    }
}
