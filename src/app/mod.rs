//! The only place where parts are put together: a configuration in, a running node out.

mod balance;
mod core_files;
mod deadline;
mod drain;
mod join;
mod leave;
mod metered;
mod outage;
mod strays;
#[cfg(test)]
mod tests;
mod upkeep;
mod view;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use self::deadline::Times;
pub use self::join::Joined;
use crate::{
    admin::{self, access},
    config::Timing,
    edge::{self, Authenticator, Edge},
    error::{Code, Error},
    ids::Incarnation,
    ownership::{lease::LeaseHandle, outage::Bounds, renewer::Renewer, witness::Witness},
    peer::{self, Identity, Incoming, Peers},
    ring::{Membership, Ring},
    route::Router,
    session::{
        self, Registry,
        aliases::AliasWriter,
        archive::Archive,
        ledger::Ledger,
        quota::Quotas,
        replica::{Heirs, Replicator},
    },
    store::Store,
    telemetry::{events::Events, metrics::Metrics},
    upstream::{Dialer, HttpClient},
};

/// Where a node listens, as bound.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub client: SocketAddr,
    pub peer: SocketAddr,
    pub admin: SocketAddr,
}

/// A running node.
pub struct App {
    addresses: Addresses,
    node: Arc<Node>,
    servers: Servers,
}

/// What drain and view need of the node.
struct Node {
    id: Arc<str>,
    me: Incarnation,
    timing: Timing,
    turn_retention: Duration,
    store: Arc<dyn Store>,
    lease: LeaseHandle,
    witness: Witness,
    ring: watch::Receiver<Arc<Ring>>,
    registry: Arc<Registry>,
    peers: Arc<Peers>,
    metrics: Metrics,
    events: Events,
    /// Sockets and turns of clients.
    clients: TaskTracker,
    /// Sessions.
    sessions: TaskTracker,
    edge_drain: edge::Drain,
    /// Set by the first wish that this node drain, of a signal or the admin listener.
    times: watch::Sender<Option<Times>>,
    draining: AtomicBool,
    load: Arc<AtomicU32>,
    /// None once the node has left.
    renewer: Mutex<Option<Renewer>>,
    stop: Stop,
}

/// What ends when.
#[derive(Clone, Debug, Default)]
struct Stop {
    /// No more clients are accepted.
    accept: CancellationToken,
    /// Peers are not answered any more.
    peers: CancellationToken,
    /// Everything in the background.
    background: CancellationToken,
}

struct Servers {
    peer: JoinHandle<anyhow::Result<()>>,
    admin: JoinHandle<std::io::Result<()>>,
    client: JoinHandle<()>,
}

impl App {
    /// Starts everything. The node is in placement when it returns.
    ///
    /// # Errors
    /// A store that does not answer, a certificate that cannot be read.
    #[expect(clippy::too_many_lines, reason = "wiring reads best as one list")]
    pub async fn start(joined: Joined, metrics: Metrics) -> anyhow::Result<Self> {
        let Joined { config, store, cluster, client, peer, admin, lease, me, registered } = joined;
        let addresses = Addresses {
            client: client.local_addr()?,
            peer: peer.local_addr()?,
            admin: admin.local_addr()?,
        };
        let events = Events::default();
        let stop = Stop::default();
        let witness = Witness::new(me, Bounds::new(config.timing.lease_ttl), registered);
        let store: Arc<dyn Store> =
            Arc::new(metered::Metered::new(store, witness.clone(), metrics.clone()));
        let load = Arc::new(AtomicU32::new(0));
        let renewer = Renewer::start(
            config.store.clone(),
            me,
            config.timing,
            lease.clone(),
            witness.clone(),
            Arc::clone(&load),
            metrics.clone(),
        )
        .context("starting the lease thread")?;

        let background = TaskTracker::new();
        let static_members = config.node.static_members.clone();
        let (membership, ring) = Membership::start(
            Arc::clone(&store),
            static_members,
            config.timing.ring_poll,
            metrics.clone(),
            events.clone(),
        )
        .await
        .context("reading the ring")?;
        background.spawn(membership.run(stop.background.clone()));

        for route in &config.routes {
            metrics.route(&route.path, route.profile);
        }
        let upstreams: Vec<_> = config.routes.iter().map(|r| Arc::clone(&r.upstream)).collect();
        let dialer = Dialer::new(
            &upstreams,
            config.limits.dial_timeout,
            config.limits.max_message_bytes,
            config.breaker,
            metrics.clone(),
        )?;
        let auth = Authenticator::new(
            config.auth,
            config.allowed_origins,
            cluster.secret,
            dialer.fetcher()?,
        );
        auth.follow(&background, &stop.background);
        let http = HttpClient::new(&upstreams, &dialer, config.limits.turn_idle_timeout);
        let node_id: Arc<str> = config.node.id.as_str().into();
        let (sessions, clients) = (TaskTracker::new(), TaskTracker::new());
        let identity = Identity {
            cluster_id: cluster.id,
            incarnation: me,
            node_id: config.node.id.clone(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            max_message_bytes: config.limits.max_message_bytes,
            link_window_bytes: config.limits.link_window_bytes,
        };
        let peers = Arc::new(Peers::new(
            identity.clone(),
            &config.peer,
            ring.clone(),
            metrics.clone(),
            config.limits.dial_timeout + Duration::from_secs(2),
            background.clone(),
            stop.background.clone(),
        )?);
        let replicator = Replicator::start(
            me,
            Arc::clone(&peers) as Arc<dyn Heirs>,
            ring.clone(),
            metrics.clone(),
            &background,
        );
        let archive =
            Archive::start(Arc::clone(&store), &config.history_keys, metrics.clone(), &background);
        let registry = Registry::new(session::Context {
            me,
            node_id: Arc::clone(&node_id),
            capacity: config.node.capacity,
            store: Arc::clone(&store),
            lease: lease.clone(),
            ring: ring.clone(),
            limits: config.limits,
            metrics: metrics.clone(),
            dialer,
            aliases: AliasWriter::start(Arc::clone(&store), &background),
            keep_closed: session::keep_closed(config.turn_retention),
            ledger: Ledger::start(me, Arc::clone(&store), metrics.clone(), &background),
            quotas: Quotas::start(
                me,
                config.limits.principal,
                Arc::clone(&store),
                metrics.clone(),
                &background,
            ),
            heirs: Arc::clone(&peers) as Arc<dyn Heirs>,
            replicator,
            archive,
            tracker: sessions.clone(),
            events: events.clone(),
        });
        background.spawn(Arc::clone(&registry).follow_heirs());
        let served: Arc<[_]> = config.routes.into();
        let router = Router::new(
            me,
            Arc::clone(&store),
            Arc::clone(&registry),
            Arc::clone(&peers),
            ring.clone(),
            metrics.clone(),
        );
        let edge_drain = edge::Drain::default();
        let edge = Arc::new(Edge {
            node_id: Arc::clone(&node_id),
            router: Arc::new(router),
            routes: Arc::clone(&served),
            auth,
            limits: config.limits,
            metrics: metrics.clone(),
            http,
            drain: edge_drain.clone(),
            unfinished: edge::budget(&config.limits),
            tracker: clients.clone(),
        });
        let incoming = Incoming {
            identity,
            registry: Arc::clone(&registry),
            routes: served,
            ring: ring.clone(),
            witness: witness.clone(),
            metrics: metrics.clone(),
            events: events.clone(),
            tracker: background.clone(),
            shutdown: stop.peers.clone(),
        };
        let node = Arc::new(Node {
            id: node_id,
            me,
            timing: config.timing,
            turn_retention: config.turn_retention,
            store,
            lease,
            witness,
            ring,
            registry,
            peers,
            metrics,
            events,
            clients,
            sessions,
            edge_drain,
            times: watch::Sender::new(None),
            draining: AtomicBool::new(false),
            load,
            renewer: Mutex::new(Some(renewer)),
            stop: stop.clone(),
        });
        let security = config.peer;
        let peers_stop = stop.peers.clone().cancelled_owned();
        let servers = Servers {
            peer: tokio::spawn(
                async move { peer::serve(incoming, &security, peer, peers_stop).await },
            ),
            admin: tokio::spawn(admin::serve(
                admin,
                Arc::clone(&node) as Arc<dyn admin::NodeView>,
                node.metrics.clone(),
                config.admin_token,
                stop.background.clone(),
            )),
            client: tokio::spawn(edge::serve(client, edge, stop.accept.clone())),
        };
        background.spawn(upkeep::run(Arc::clone(&node)));
        if let Some(rules) = config.rebalance {
            background.spawn(balance::run(Arc::clone(&node), rules));
        }
        background.spawn(outage::run(Arc::clone(&node)));
        node.store.activate(me).await.context("entering the ring")?;
        tracing::info!(node = %node.id, incarnation = %me, client = %addresses.client, peer = %addresses.peer, admin = %addresses.admin, "serving");
        Ok(Self { addresses, node, servers })
    }

    /// Where the node listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until it has drained: `signalled` is done, or the admin listener asks for it.
    /// A second signal ends the drain. `signalled` has to be cancel-safe.
    ///
    /// # Errors
    /// The lease was lost, a listener failed, or a second signal ended the drain.
    pub async fn run(self, mut signalled: impl AsyncFnMut()) -> anyhow::Result<()> {
        let Self { node, servers, .. } = self;
        let Servers { mut peer, mut admin, client } = servers;
        let mut wanted = node.times.subscribe();
        let result = tokio::select! {
            biased;
            () = node.lease.lost() => Err(anyhow::anyhow!("the ring declared this node dead")),
            () = signalled() => {
                let outcome = admin::view::DrainAnswer::Accepted.as_str();
                access::record("drain", &Ok(access::Actor::Signal), None, outcome);
                Ok(true)
            }
            _ = wanted.wait_for(Option::is_some) => Ok(false),
            ended = &mut peer => Err(failure("peer", ended.map(Result::err))),
            ended = &mut admin => Err(failure("admin", ended.map(|r| r.err().map(Into::into)))),
        };
        let result = match result {
            Ok(by_signal) => {
                let span = tracing::info_span!(
                    parent: None,
                    "drain",
                    ringspan.sessions = node.registry.len(),
                );
                tokio::select! {
                    biased;
                    () = node.lease.lost() => Err(anyhow::anyhow!("the ring declared this node dead during its drain")),
                    () = node.second(&mut signalled, by_signal) => Err(anyhow::anyhow!("a second signal ended the drain")),
                    drained = node.drain().instrument(span) => drained,
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            tracing::error!(%error, "serving ends");
            node.give_up().await;
        }
        node.stop.accept.cancel();
        node.stop.peers.cancel();
        node.stop.background.cancel();
        drop(node.renewer.lock().take());
        drop(tokio::time::timeout(Duration::from_secs(1), client).await);
        result
    }
}

impl Node {
    /// Begins the drain and waits for a second signal. The first one of a drain that the
    /// admin listener began is no second one: platforms send it after a hook of theirs.
    async fn second(&self, signalled: &mut impl AsyncFnMut(), by_signal: bool) {
        self.begin_drain(None);
        if !by_signal {
            signalled().await;
            tracing::info!("a signal in the drain; its deadline stays as it is");
        }
        signalled().await;
    }

    /// Lets go of everything at once: this node is not sure of anything it owns.
    async fn give_up(&self) {
        /// How long clients, and then sessions, may take to end.
        const LIMIT: Duration = Duration::from_secs(1);

        // This node's own clients first: they are told to come back, not that a session failed.
        self.edge_drain.closing.cancel();
        self.edge_drain.cut.cancel();
        self.clients.close();
        drop(tokio::time::timeout(LIMIT, self.clients.wait()).await);
        let error = Error::new(Code::SessionUnavailable, "this node stopped; retry");
        // One that is busy leaving takes no orders for a while.
        let sessions = self.registry.list();
        let stops = sessions.iter().map(|handle| handle.stop(error.clone()));
        drop(tokio::time::timeout(LIMIT, join_all(stops)).await);
        self.sessions.close();
        drop(tokio::time::timeout(LIMIT, self.sessions.wait()).await);
    }
}

fn failure(
    what: &str,
    ended: Result<Option<anyhow::Error>, tokio::task::JoinError>,
) -> anyhow::Error {
    match ended {
        Ok(Some(error)) => error.context(format!("the {what} listener failed")),
        Ok(None) => anyhow::anyhow!("the {what} listener ended"),
        Err(error) => anyhow::anyhow!("the {what} listener died: {error}"),
    }
}
