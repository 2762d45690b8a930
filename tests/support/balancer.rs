//! A round-robin TCP balancer over the nodes whose readiness probe says yes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::http::Method;
use parking_lot::RwLock;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{Node, http};

/// How often nodes are probed.
const PROBE: Duration = Duration::from_millis(100);

/// One node behind the balancer.
#[derive(Clone, Debug)]
struct Target {
    /// `host:port` of the client listener.
    client: String,
    /// URL of the admin listener.
    admin: String,
}

/// A running balancer; it ends, with its connections, when it is dropped.
pub struct Balancer {
    pub url: String,
    tasks: [AbortHandle; 2],
}

impl Balancer {
    /// One over these places, whether their nodes run yet or not.
    pub async fn over(nodes: impl Iterator<Item = &Node>) -> Self {
        let target = |node: &Node| {
            let client = node.client_url.trim_start_matches("http://").to_owned();
            Target { client, admin: node.admin_url.clone() }
        };
        Self::start(nodes.map(target).collect()).await
    }

    async fn start(targets: Vec<Target>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let ready = Arc::new(RwLock::new(Vec::new()));
        probe_all(&targets, &ready).await;
        let probing = tokio::spawn(probe(targets, Arc::clone(&ready))).abort_handle();
        let relaying = tokio::spawn(relay(listener, ready)).abort_handle();
        Self { url, tasks: [probing, relaying] }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

type Ready = Arc<RwLock<Vec<String>>>;

async fn probe(targets: Vec<Target>, ready: Ready) {
    let mut ticks = interval(PROBE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        probe_all(&targets, &ready).await;
    }
}

async fn probe_all(targets: &[Target], ready: &Ready) {
    let mut found = Vec::new();
    for target in targets {
        let url = format!("{}/health/ready", target.admin);
        let answer = timeout(PROBE * 10, http::request(Method::GET, &url, &[], "")).await;
        if matches!(answer, Ok(Ok(answer)) if answer.status == 200) {
            found.push(target.client.clone());
        }
    }
    *ready.write() = found;
}

async fn relay(listener: TcpListener, ready: Ready) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    loop {
        let Ok((mut near, _)) = listener.accept().await else { continue };
        let (ready, next) = (Arc::clone(&ready), Arc::clone(&next));
        connections.spawn(async move {
            let targets = ready.read().clone();
            let first = next.fetch_add(1, Ordering::Relaxed);
            for n in 0..targets.len() {
                let target = &targets[(first + n) % targets.len()];
                // One that refuses is passed over, as balancers do.
                let Ok(mut far) = TcpStream::connect(target).await else { continue };
                near.set_nodelay(true).ok();
                far.set_nodelay(true).ok();
                copy_bidirectional(&mut near, &mut far).await.ok();
                return;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
