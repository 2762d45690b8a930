//! `ringspan dev`: a ring on one machine, to try and to develop against.
//!
//! The nodes are processes of this same program, over one SQLite file, so that one of them
//! can be killed like any other node. This process is their supervisor and runs the sample
//! upstream. *Invariant:* no node outlives it, however it ends.

mod node;
mod plan;
mod screen;
mod show;

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use self::{
    node::Nodes,
    plan::{Plan, Scratch},
    screen::Screen,
};
use super::{Exit, args::DevArgs, selfcheck, signals::Signals};
use crate::{
    admin::client::Client,
    app::Addresses,
    net::TcpListener,
    sample::{self, SampleOptions},
    store::{StoreOptions, schema},
};

/// Port of the sample upstream, if it is free.
const SAMPLE_PORT: u16 = 9000;
/// How long the nodes get to answer, and then to see each other.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two looks at a ring that is not complete yet.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Limit of the demonstration.
const SHOW_LIMIT: Duration = Duration::from_secs(10);

/// Runs a ring until it is told to end. Must be awaited on the process's main thread: the
/// kernel kills the nodes when the thread that started them ends.
pub(super) async fn run(args: DevArgs) -> anyhow::Result<Exit> {
    let begun = Instant::now();
    let mut signals = Signals::new()?;
    let screen = Screen::new();
    let scratch = Scratch::new().context("no temporary directory")?;
    let stop = CancellationToken::new();
    let sample = start_sample(&stop).await?;
    let upstream = args.upstream.clone();
    let mut plan = Plan::new(&scratch, args.nodes, sample, upstream)?;
    let mut nodes = Nodes::new(screen.clone());
    let started = tokio::select! {
        biased;
        () = signals.recv() => None,
        started = start(&mut plan, &mut nodes, &screen) => Some(started),
    };
    let exit = match started {
        None => Ok(stop_all(&mut nodes, &mut signals, &screen).await),
        Some(Err(error)) => {
            screen.release(|_| true);
            stop_all(&mut nodes, &mut signals, &screen).await;
            Err(error)
        }
        Some(Ok(members)) => {
            screen.print(&show::summary(&plan, &members, begun.elapsed()));
            attend(&members, &mut nodes, &mut signals, &screen).await
        }
    };
    stop.cancel();
    exit
}

/// A node that serves.
struct Member {
    name: String,
    pid: u32,
    at: Addresses,
}

/// Serves the sample upstream in this process until `stop`.
async fn start_sample(stop: &CancellationToken) -> anyhow::Result<SocketAddr> {
    let listener = match TcpListener::bind(("127.0.0.1", SAMPLE_PORT)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("127.0.0.1", 0)).await.context("no port for the sample")?,
    };
    let at = listener.local_addr()?;
    let stopped = stop.clone().cancelled_owned();
    tokio::spawn(sample::serve(listener, SampleOptions::default(), stopped));
    Ok(at)
}

/// Brings up the database and the nodes, and waits until each of them sees all.
async fn start(plan: &mut Plan, nodes: &mut Nodes, screen: &Screen) -> anyhow::Result<Vec<Member>> {
    screen.progress("preparing the database");
    let options = StoreOptions {
        url: plan.database_url.clone(),
        direct_url: None,
        max_connections: 2,
        timeout: START_LIMIT,
    };
    schema::migrate(&options, |_| {}).await?;
    let limit = Instant::now() + START_LIMIT;
    let mut started = Vec::new();
    for index in 0..plan.nodes.len() {
        started.push(nodes.start(plan.command(index)?, &plan.nodes[index].name)?);
    }
    let mut members = Vec::new();
    for (index, mut starting) in started.into_iter().enumerate() {
        let name = plan.nodes[index].name.clone();
        screen.progress(&format!("starting nodes: {index} of {} ready", plan.nodes.len()));
        let mut ready = timeout_at(limit, &mut starting.ready).await;
        if let Ok(Err(_)) = ready
            && plan.move_elsewhere(index)
        {
            // Its ports were free when they were chosen; somebody may have been faster.
            starting = nodes.start(plan.command(index)?, &name)?;
            ready = timeout_at(limit, &mut starting.ready).await;
        }
        let ready = ready.with_context(|| format!("{name} is not ready in time"))?;
        let at = ready.with_context(|| format!("{name} ended at its start"))?;
        members.push(Member { name, pid: starting.pid, at });
    }
    screen.progress("waiting for the nodes to see each other");
    let complete = timeout_at(limit, complete(&members)).await;
    complete.context("the nodes did not see each other in time")??;
    screen.progress_done();
    Ok(members)
}

/// Waits until every node sees all others as active.
async fn complete(members: &[Member]) -> anyhow::Result<()> {
    for member in members {
        let admin = Client::new(&member.at.admin.to_string())?;
        while selfcheck::active(&admin.ring().await?) < members.len() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    Ok(())
}

/// Demonstrates once, then lets the ring run until it is told to end or nothing is left.
async fn attend(
    members: &[Member],
    nodes: &mut Nodes,
    signals: &mut Signals,
    screen: &Screen,
) -> anyhow::Result<Exit> {
    let shown = tokio::select! {
        biased;
        () = signals.recv() => return Ok(stop_all(nodes, signals, screen).await),
        shown = tokio::time::timeout(SHOW_LIMIT, show::forwarding(members)) => shown,
    };
    match shown.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {SHOW_LIMIT:?}"))) {
        Ok(text) => screen.print(&text),
        // The ring may be of use all the same, and its logs say more.
        Err(error) => screen.print(&format!("forwarding could not be shown: {error:#}\n")),
    }
    screen.print("Ctrl-C stops everything. From here on: what the nodes log.\n");
    screen.release(|line| line.contains("WARN") || line.contains("ERROR"));
    loop {
        tokio::select! {
            biased;
            () = signals.recv() => return Ok(stop_all(nodes, signals, screen).await),
            ended = nodes.next_end() => match ended {
                // One that never served was replaced at once.
                Some(ended) if !ended.served => {}
                Some(ended) => screen.print(&format!("{} ended: {}\n", ended.name, ended.how())),
                None => anyhow::bail!("no node is left"),
            },
        }
    }
}

/// Has all nodes drain, or killed if the user cannot wait. Success if they ended as asked.
async fn stop_all(nodes: &mut Nodes, signals: &mut Signals, screen: &Screen) -> Exit {
    screen.progress_done();
    if nodes.terminate() {
        screen.print("\nstopping: nodes drain, Ctrl-C again kills them\n");
    }
    let mut exit = Exit::Success;
    loop {
        tokio::select! {
            biased;
            () = signals.recv() => nodes.kill(),
            ended = nodes.next_end() => match ended {
                Some(ended) if ended.as_asked() => {}
                Some(ended) => {
                    screen.print(&format!("{} ended: {}\n", ended.name, ended.how()));
                    exit = Exit::Failure;
                }
                None => return exit,
            },
        }
    }
}
