//! A ring in one process: real registries over one store in memory, and the sample upstream
//! on loopback behind a gate.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::{
        BreakerRules, Continuity, Endpoint, HistoryKeys, KeySource, Limits, Profile, Route,
        SocketsAtDrain, Upstream,
    },
    ids::{Epoch, Incarnation, Principal, SessionId},
    link::{Frame, Link},
    ownership::lease::LeaseHandle,
    ring::{Membership, Ring},
    sample::{self, SampleAuth, SampleOptions},
    session::{
        Attach, AttachError, Attached, ClientKind, ClientLabel, Context, KEEP_CLOSED, Registry,
        Row,
        aliases::AliasWriter,
        archive::Archive,
        ledger::Ledger,
        replica::{Heirs, Replicator},
        warm::Prepared,
    },
    store::{NewMember, SessionRow, Store, memory::Memory},
    telemetry::{events::Events, metrics::Metrics},
    upstream::{Dialer, Upgrade},
    wire::{Batch, Kind, Message},
};

/// Longest wait for anything that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A lease that outlives every test.
pub(crate) const LEASE: Duration = Duration::from_mins(10);

/// Looks until it is so.
pub(crate) async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let looking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// The sample upstream behind a gate that counts who dials.
pub(crate) struct Gate {
    pub(crate) addr: SocketAddr,
    /// A permit lets one connection through.
    pub(crate) permits: Arc<Semaphore>,
    dials: Arc<Mutex<usize>>,
}

impl Gate {
    /// Open to all.
    pub(crate) async fn open(auth: SampleAuth) -> Self {
        Self::with_permits(auth, 1000).await
    }

    pub(crate) async fn with_permits(auth: SampleAuth, permits: usize) -> Self {
        let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = behind.local_addr().unwrap();
        let options = SampleOptions { auth, ..SampleOptions::default() };
        tokio::spawn(sample::serve(behind, options, std::future::pending()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let permits = Arc::new(Semaphore::new(permits));
        let dials = Arc::new(Mutex::new(0));
        let (gate, counter) = (Arc::clone(&permits), Arc::clone(&dials));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                *counter.lock() += 1;
                let gate = Arc::clone(&gate);
                tokio::spawn(async move {
                    gate.acquire().await.unwrap().forget();
                    let mut upstream = TcpStream::connect(target).await.unwrap();
                    drop(copy_bidirectional(&mut client, &mut upstream).await);
                });
            }
        });
        Self { addr, permits, dials }
    }

    pub(crate) fn dials(&self) -> usize {
        *self.dials.lock()
    }
}

/// The way between the nodes of a ring in one process, which can be broken.
#[derive(Default)]
pub(crate) struct Neighbours {
    nodes: Mutex<HashMap<Incarnation, Arc<Registry>>>,
    /// Nodes that do not answer.
    pub(crate) silent: Mutex<HashSet<Incarnation>>,
    /// Nodes that have no room for conversations.
    pub(crate) full: Mutex<HashSet<Incarnation>>,
    /// Who was asked to keep a conversation, in order.
    pub(crate) asked: Mutex<Vec<Incarnation>>,
    /// Nudges get lost.
    pub(crate) loses_activations: AtomicBool,
    /// Whoever asks an heir to keep something panics.
    pub(crate) panics: AtomicBool,
}

impl Neighbours {
    /// All of `nodes` can reach each other.
    pub(crate) fn join(&self, nodes: &[&Node]) {
        self.nodes.lock().extend(nodes.iter().map(|node| (node.me, Arc::clone(&node.registry))));
    }

    /// Nobody can reach that node any more.
    pub(crate) fn lose(&self, node: Incarnation) {
        self.nodes.lock().remove(&node);
    }

    async fn reach(&self, heir: Incarnation) -> Result<Arc<Registry>, String> {
        if self.silent.lock().contains(&heir) {
            std::future::pending::<()>().await;
        }
        self.nodes.lock().get(&heir).cloned().ok_or_else(|| "nobody is there".into())
    }
}

#[async_trait::async_trait]
impl Heirs for Neighbours {
    async fn prepare(
        &self,
        heir: Incarnation,
        _: &str,
        prepared: &[Prepared],
    ) -> Result<Vec<bool>, String> {
        assert!(!self.panics.load(Relaxed), "as the test wishes");
        self.asked.lock().push(heir);
        let registry = self.reach(heir).await?;
        if self.full.lock().contains(&heir) {
            return Ok(vec![false; prepared.len()]);
        }
        Ok(prepared.iter().map(|prepared| registry.keep(prepared.clone())).collect())
    }

    async fn let_go(
        &self,
        from: Incarnation,
        heir: Incarnation,
        _: &str,
        sessions: &[SessionId],
    ) -> Result<(), String> {
        self.reach(heir).await?.let_go(from, sessions);
        Ok(())
    }

    async fn activate(&self, heir: Incarnation, _: &str, id: SessionId) -> Result<(), String> {
        if self.loses_activations.load(Relaxed) {
            return Err("lost".into());
        }
        self.reach(heir).await?.activate(id).await.map_err(|error| format!("{error:?}"))
    }
}

/// Heirs that take what they are given and never look at it.
struct Alone;

#[async_trait::async_trait]
impl Heirs for Alone {
    async fn prepare(
        &self,
        _: Incarnation,
        _: &str,
        prepared: &[Prepared],
    ) -> Result<Vec<bool>, String> {
        Ok(vec![true; prepared.len()])
    }

    async fn let_go(
        &self,
        _: Incarnation,
        _: Incarnation,
        _: &str,
        _: &[SessionId],
    ) -> Result<(), String> {
        Ok(())
    }

    async fn activate(&self, _: Incarnation, _: &str, _: SessionId) -> Result<(), String> {
        Ok(())
    }
}

pub(crate) fn limits() -> Limits {
    Limits {
        max_message_bytes: 1 << 20,
        link_window_bytes: 64 * 1024,
        max_clients_per_session: 64,
        max_clients: 1000,
        replay_bytes: 1 << 20,
        replay_ttl: Duration::from_mins(1),
        turn_queue: 8,
        history_bytes: 1 << 20,
        upgrade_timeout: PATIENCE,
        dial_timeout: PATIENCE,
        turn_idle_timeout: PATIENCE,
        write_timeout: PATIENCE,
        principal: crate::config::PrincipalLimits::default(),
    }
}

/// A breaker that opens late.
pub(crate) fn breaker() -> BreakerRules {
    let (open, max_open) = (Duration::from_millis(100), Duration::from_secs(1));
    BreakerRules { failures: 100, open, max_open }
}

/// A route to the gate.
pub(crate) fn route(profile: Profile, gate: &Gate) -> Route {
    let (path, target) = match profile {
        Profile::Responses => ("/v1/responses", "/v1/responses"),
        Profile::Opaque => ("/rooms/{room}", "/echo"),
    };
    let upstream = Upstream {
        name: profile.as_str().into(),
        endpoints: vec![Endpoint::sole(format!("ws://{}{target}", gate.addr).parse().unwrap())],
        max_connection_age: Duration::from_mins(50),
        compression: false,
        ca_file: None,
    };
    Route {
        path: path.into(),
        profile,
        upstream: Arc::new(upstream),
        session_key: vec![KeySource::Path("room".into())],
        detach_ttl: Duration::from_mins(1),
        continuity: Continuity::default(),
        ledger: profile == Profile::Responses,
        compression: false,
        sockets_at_drain: SocketsAtDrain::Auto,
    }
}

/// An archive with a key of its own.
fn archive(store: &Arc<dyn Store>, metrics: &Metrics, tracker: &TaskTracker) -> Archive {
    let keys = HistoryKeys::parse("aGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGg=").unwrap();
    Archive::start(Arc::clone(store), &keys, metrics.clone(), tracker)
}

/// One node of a ring, without its listeners.
pub(crate) struct Node {
    pub(crate) me: Incarnation,
    pub(crate) name: Arc<str>,
    pub(crate) store: Arc<Memory>,
    pub(crate) lease: LeaseHandle,
    pub(crate) ring: watch::Receiver<Arc<Ring>>,
    pub(crate) metrics: Metrics,
    pub(crate) dialer: Dialer,
    pub(crate) limits: Limits,
    pub(crate) tracker: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) registry: Arc<Registry>,
}

impl Node {
    /// It can dial the upstreams of these routes.
    pub(crate) async fn start<'a>(
        store: &Arc<Memory>,
        name: &str,
        limits: Limits,
        routes: impl IntoIterator<Item = &'a Arc<Route>>,
    ) -> Self {
        Self::leased(store, name, limits, LEASE, routes).await
    }

    /// Without a renewal its lease ends after `lease`.
    pub(crate) async fn leased<'a>(
        store: &Arc<Memory>,
        name: &str,
        limits: Limits,
        lease: Duration,
        routes: impl IntoIterator<Item = &'a Arc<Route>>,
    ) -> Self {
        Self::at(store, name, "127.0.0.1:1", limits, lease, routes).await
    }

    /// A member whose peer listener is at `addr`.
    pub(crate) async fn at<'a>(
        store: &Arc<Memory>,
        name: &str,
        addr: &str,
        limits: Limits,
        ttl: Duration,
        routes: impl IntoIterator<Item = &'a Arc<Route>>,
    ) -> Self {
        Self::beside(store, name, addr, limits, ttl, Arc::new(Alone), routes).await
    }

    /// A member that reaches its heirs by `heirs`.
    pub(crate) async fn beside<'a>(
        store: &Arc<Memory>,
        name: &str,
        addr: &str,
        limits: Limits,
        ttl: Duration,
        heirs: Arc<dyn Heirs>,
        routes: impl IntoIterator<Item = &'a Arc<Route>>,
    ) -> Self {
        let member = NewMember { peer_addr: addr.into(), ..NewMember::ordinary(name) };
        let me = store.register(&member, LEASE).await.unwrap();
        store.activate(me).await.unwrap();
        let lease = LeaseHandle::default();
        lease.renewed(std::time::Instant::now(), ttl, Duration::ZERO);
        let (metrics, stop, tracker) =
            (Metrics::new(), CancellationToken::new(), TaskTracker::new());
        let shared: Arc<dyn Store> = Arc::clone(store) as _;
        let (membership, ring) = Membership::start(
            Arc::clone(&shared),
            Vec::new(),
            Duration::from_millis(20),
            metrics.clone(),
            Events::default(),
        )
        .await
        .unwrap();
        tracker.spawn(membership.run(stop.clone()));
        let dialer = Dialer::new(
            routes.into_iter().map(|route| &route.upstream),
            limits.dial_timeout,
            limits.max_message_bytes,
            breaker(),
            metrics.clone(),
        )
        .unwrap();
        let name: Arc<str> = name.into();
        let context = Context {
            me,
            node_id: Arc::clone(&name),
            capacity: 1000,
            store: Arc::clone(&shared),
            lease: lease.clone(),
            ring: ring.clone(),
            limits,
            metrics: metrics.clone(),
            dialer: dialer.clone(),
            archive: archive(&shared, &metrics, &tracker),
            aliases: AliasWriter::start(Arc::clone(&shared), &tracker),
            keep_closed: KEEP_CLOSED,
            quotas: None,
            ledger: Ledger::start(me, shared, metrics.clone(), &tracker),
            heirs: Arc::clone(&heirs),
            replicator: Replicator::start(me, heirs, ring.clone(), metrics.clone(), &tracker),
            tracker: tracker.clone(),
            events: Events::default(),
        };
        let registry = Registry::new(context);
        let store = Arc::clone(store);
        Self { me, name, store, lease, ring, metrics, dialer, limits, tracker, stop, registry }
    }

    /// What another registry of this node would be made of.
    pub(crate) fn context(&self) -> Context {
        Context::clone(&self.registry.ctx)
    }

    pub(crate) async fn attach(&self, attach: &Attach) -> Result<Attached, AttachError> {
        soon("an answer to the attach", self.registry.attach(attach.clone())).await
    }

    /// What this node counts under the name and labels of a metric.
    pub(crate) fn counted(&self, series: &str) -> Option<u64> {
        let text = self.metrics.encode();
        let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value)
    }

    /// Tells a session of it to leave, as a drain with so much time does.
    pub(crate) async fn drain(&self, id: SessionId, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        self.registry.get(id).unwrap().drain(until).await;
    }

    pub(crate) async fn row(&self, id: SessionId) -> SessionRow {
        self.store.session(id).await.unwrap().expect("the session has a row")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A wish for the session `key` of the only principal.
pub(crate) fn wish(route: &Arc<Route>, key: &str) -> Attach {
    let principal = Principal([1; 16]);
    Attach {
        session: SessionId::derive(&principal, &route.path, key),
        row: Row::Unknown,
        principal,
        route: Arc::clone(route),
        key_label: key.into(),
        upgrade: Upgrade { path_and_query: "/".into(), ..Upgrade::default() },
        reads: false,
        last_seq: None,
        last_epoch: None,
        turn_key: None,
        min_epoch: Epoch::default(),
        client: ClientLabel { edge_node: "edge".into(), kind: ClientKind::WebSocket },
    }
}

pub(crate) fn send(link: &mut Link, text: &str) {
    let batch = Batch::one(&Message::text(text.to_owned()));
    assert!(
        link.tx.send(Frame::Messages { batch, first_seq: 0, ended: 0, create: 0 }),
        "the session is gone"
    );
}

/// A client that reads message by message.
pub(crate) struct Reader {
    pub(crate) link: Link,
    ready: std::collections::VecDeque<(u64, String)>,
}

impl Reader {
    pub(crate) fn new(link: Link) -> Self {
        Self { link, ready: std::collections::VecDeque::new() }
    }

    pub(crate) fn send(&mut self, text: &str) {
        send(&mut self.link, text);
    }

    /// The next message and its number, or the last frame.
    pub(crate) async fn next(&mut self) -> Result<(u64, String), Option<Frame>> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(message);
            }
            match soon("a frame", self.link.rx.recv()).await {
                Some(Frame::Messages { batch, first_seq, .. }) => {
                    for (at, message) in batch.messages().enumerate() {
                        assert_eq!(message.kind, Kind::Text);
                        let text = String::from_utf8(message.payload.to_vec()).unwrap();
                        self.ready.push_back((first_seq + at as u64, text));
                    }
                }
                Some(Frame::Ping(_) | Frame::Pong(_)) => {}
                last => return Err(last),
            }
        }
    }

    pub(crate) async fn text(&mut self) -> String {
        self.next().await.expect("a message").1
    }

    /// The next Responses event of this type.
    pub(crate) async fn until(&mut self, kind: &str) -> serde_json::Value {
        loop {
            let event: serde_json::Value = serde_json::from_str(&self.text().await).unwrap();
            if event["type"] == kind {
                return event;
            }
        }
    }
}
