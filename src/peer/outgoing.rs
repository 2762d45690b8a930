//! The edge's side: streams to owners, opened when first needed and closed when idle.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{OnceCell, watch},
    time::{Instant, timeout},
};
use tokio_stream::StreamExt;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Streaming,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use super::{
    PROTOCOL, auth, convert,
    mux::{Counted, Mux, Outgoing},
    proto::{self, frame::Body, peer_client::PeerClient},
    tls, transport,
};
use crate::{
    config::PeerSecurity,
    error::{Code, Error},
    ids::{Epoch, Incarnation},
    link::Link,
    ring::Ring,
    session::{Attach, AttachError, Attached},
    telemetry::metrics::{Direction, GaugeGuard, Metrics, Outcome, Side},
};

/// Longest wait for a connection and its Welcome.
const CONNECT: Duration = Duration::from_secs(2);

/// Keepalive of an idle connection, and the wait for its answer: a silent partition is
/// noticed within their sum.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// HTTP/2 windows. Credits bound what is in flight, so the transport must never be what
/// stops: one window for a stream that carries all sessions.
pub(super) const WINDOW: u32 = 64 * 1024 * 1024;

/// Largest HTTP/2 frame, both ways: a chunk of messages goes in one, not in four.
pub(super) const FRAME: u32 = 128 * 1024;

/// How long a stream without channels stays open.
const IDLE: Duration = Duration::from_mins(1);

/// After a failed connect, how long others are told so without another try.
const HOLD_OFF: Duration = Duration::from_millis(250);

/// Who we are to our peers.
#[derive(Clone)]
pub struct Identity {
    pub cluster_id: String,
    pub incarnation: Incarnation,
    pub node_id: String,
    pub build: String,
    pub max_message_bytes: usize,
    pub link_window_bytes: usize,
}

impl Identity {
    /// Credit that we grant on a new channel.
    pub(super) fn credit(&self) -> u32 {
        u32::try_from(self.link_window_bytes).unwrap_or(u32::MAX)
    }
}

/// Why an attach at a peer came to nothing.
#[derive(Debug)]
pub enum PeerError {
    /// No connection, or it ended before the answer. Whether the attach arrived is unknown;
    /// an attach has no effect that a second one could double.
    Unreachable(String),
    /// The peer answered.
    Answer(AttachError),
}

type Client = PeerClient<InterceptedService<Channel, auth::Show>>;

/// Streams to all peers.
pub struct Peers {
    identity: Identity,
    ring: watch::Receiver<Arc<Ring>>,
    metrics: Metrics,
    show: auth::Show,
    tls: Option<tls::Client>,
    known: Mutex<HashMap<Incarnation, Arc<Peer>>>,
    attach_timeout: Duration,
    tracker: TaskTracker,
    shutdown: CancellationToken,
}

#[derive(Default)]
struct Peer {
    stream: OnceCell<Open>,
    failed: Mutex<Option<(Instant, String)>>,
}

struct Open {
    client: Client,
    mux: Arc<Mux>,
    /// Credit that the peer grants on a new channel.
    credit: u32,
}

impl Peers {
    /// Connects to nobody yet.
    ///
    /// # Errors
    /// A token that no header can carry.
    pub fn new(
        identity: Identity,
        security: &PeerSecurity,
        ring: watch::Receiver<Arc<Ring>>,
        metrics: Metrics,
        attach_timeout: Duration,
        tracker: TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            identity,
            ring,
            metrics,
            show: auth::Show::new(security)?,
            tls: auth::files(security).map(tls::Client::new),
            known: Mutex::default(),
            attach_timeout,
            tracker,
            shutdown,
        })
    }

    /// Attaches a client at the node `target`. Cancel-safe: the peer is told to forget it.
    pub async fn attach(
        &self,
        target: Incarnation,
        addr: &str,
        attach: &Attach,
        hop: u32,
    ) -> Result<Attached, PeerError> {
        let peer = self.peer(target);
        let ended = |outcome, since: Instant| self.metrics.forward(outcome, since.elapsed());
        let asked = Instant::now();
        let open = peer.stream.get_or_try_init(|| self.open(&peer, target, addr)).await;
        let open = open.map_err(|error| {
            ended(Outcome::Failed, asked);
            PeerError::Unreachable(error)
        })?;
        let (ours, theirs) = Link::pair(self.identity.link_window_bytes);
        let started = Instant::now();
        let Some((channel, answer)) =
            open.mux.ask(theirs, convert::attach_out(attach, hop), self.counted(attach))
        else {
            self.forget(target, &peer);
            ended(Outcome::Failed, started);
            return Err(PeerError::Unreachable("the stream has ended".into()));
        };
        let guard = Abandon { mux: &open.mux, channel, armed: true };
        let (outcome, answer) = match timeout(self.attach_timeout, answer).await {
            Ok(Ok(Ok(attached))) => (Outcome::Ok, Ok(attached)),
            Ok(Ok(Err(error))) => (Outcome::Refused, Err(PeerError::Answer(error))),
            Ok(Err(_)) => (Outcome::Failed, Err(PeerError::Unreachable("the stream ended".into()))),
            Err(_) => (Outcome::Timeout, Err(PeerError::Unreachable("no answer in time".into()))),
        };
        ended(outcome, started);
        let attached = answer?;
        guard.disarm();
        let resume = convert::resume_in(attached.resume(), attached.floor_seq);
        let epoch = Epoch(attached.epoch);
        if epoch < attach.min_epoch {
            let error = Error::new(Code::OwnerMoving, "the session's owner is behind; retry");
            return Err(PeerError::Answer(error.into()));
        }
        Ok(Attached {
            link: ours,
            epoch,
            resume,
            seq: attached.seq,
            headers: convert::headers_in(attached.headers),
            subprotocol: attached.subprotocol,
        })
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The connection to a peer, for calls beside the stream.
    pub(super) async fn client(&self, target: Incarnation, addr: &str) -> Result<Client, String> {
        let peer = self.peer(target);
        let open = peer.stream.get_or_try_init(|| self.open(&peer, target, addr)).await?;
        Ok(open.client.clone())
    }

    /// The entry of a peer; one whose stream has ended is replaced.
    fn peer(&self, target: Incarnation) -> Arc<Peer> {
        let mut known = self.known.lock();
        let peer = known.entry(target).or_default();
        if peer.stream.get().is_some_and(|open| open.mux.is_closed()) {
            *peer = Arc::default();
        }
        Arc::clone(peer)
    }

    fn counted(&self, attach: &Attach) -> Counted {
        let count = |direction| self.metrics.forwarded_frames(&attach.route.path, direction);
        Counted { up: count(Direction::Up), down: count(Direction::Down) }
    }

    fn forget(&self, target: Incarnation, peer: &Arc<Peer>) {
        let mut peers = self.known.lock();
        if peers.get(&target).is_some_and(|current| Arc::ptr_eq(current, peer)) {
            peers.remove(&target);
        }
    }

    async fn open(
        &self,
        peer: &Arc<Peer>,
        target: Incarnation,
        addr: &str,
    ) -> Result<Open, String> {
        if let Some((at, error)) = &*peer.failed.lock()
            && at.elapsed() < HOLD_OFF
        {
            return Err(error.clone());
        }
        let opened = timeout(CONNECT, self.connect(target, addr)).await;
        let result = opened.unwrap_or_else(|_| Err("no connection in time".into()));
        match result {
            Ok((open, streaming)) => {
                *peer.failed.lock() = None;
                self.read(target, &open, streaming);
                Ok(open)
            }
            Err(error) => {
                let before = peer.failed.lock().replace((Instant::now(), error.clone()));
                // Said once: witnesses are asked several times a second.
                if before.is_none() {
                    tracing::warn!(%target, addr, %error, "peer cannot be reached");
                } else {
                    tracing::debug!(%target, addr, %error, "peer cannot be reached");
                }
                Err(error)
            }
        }
    }

    async fn connect(
        &self,
        target: Incarnation,
        addr: &str,
    ) -> Result<(Open, Streaming<proto::Frame>), String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{addr}"))
            .map_err(|error| error.to_string())?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(FRAME);
        if let Some(tls) = &self.tls {
            endpoint = tls.secure(endpoint).await.map_err(|error| format!("{error:#}"))?;
        }
        let channel = transport::connect(&endpoint).await.map_err(|error| chain(&error))?;
        let mut client: Client = PeerClient::with_interceptor(channel, self.show.clone());
        let mux = Mux::new(self.identity.max_message_bytes);
        let hello = proto::Hello {
            protocol_min: *PROTOCOL.start(),
            protocol_max: *PROTOCOL.end(),
            cluster_id: self.identity.cluster_id.clone(),
            incarnation: self.identity.incarnation.0,
            node_id: self.identity.node_id.clone(),
            target_incarnation: target.0,
            ring_version: self.ring.borrow().view.version,
            build: self.identity.build.clone(),
            initial_credit: self.identity.credit(),
        };
        let asked = Instant::now();
        mux.control(0, Body::Hello(hello));
        let response = client.link(Outgoing(Arc::clone(&mux))).await.map_err(|s| status(&s))?;
        let mut streaming = response.into_inner();
        let first = streaming.message().await.map_err(|error| status(&error))?;
        let Some(Body::Welcome(welcome)) = first.and_then(|frame| frame.body) else {
            return Err("it did not welcome us".into());
        };
        self.metrics.peer_rtt(asked.elapsed());
        if welcome.incarnation != target.0 {
            return Err("another incarnation answers at that address".into());
        }
        if !PROTOCOL.contains(&welcome.protocol) {
            return Err(format!("it speaks protocol {}", welcome.protocol));
        }
        tracing::debug!(%target, addr, build = %welcome.build, "peer stream open");
        Ok((Open { client, mux, credit: welcome.initial_credit }, streaming))
    }

    /// Reads the stream until it ends, or was idle for long.
    fn read(&self, target: Incarnation, open: &Open, mut streaming: Streaming<proto::Frame>) {
        let (mux, credit) = (Arc::clone(&open.mux), open.credit);
        let gauge: GaugeGuard = self.metrics.peer_connection(Side::Caller);
        let shutdown = self.shutdown.clone();
        self.tracker.spawn(async move {
            let _open = gauge;
            loop {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    frame = streaming.next() => match frame {
                        Some(Ok(frame)) => {
                            if let Err(violation) = mux.on_frame(frame, credit) {
                                tracing::warn!(%target, what = violation.0, "peer broke the protocol");
                                break;
                            }
                        }
                        Some(Err(error)) => {
                            tracing::debug!(%target, error = status(&error), "peer stream failed");
                            break;
                        }
                        None => break,
                    },
                    () = tokio::time::sleep(IDLE) => if mux.channels() == 0 {
                        break;
                    },
                }
            }
            mux.close();
        });
    }

    /// Streams that are open, by peer.
    #[cfg(test)]
    pub(super) fn open_streams(&self) -> usize {
        let open = |peer: &&Arc<Peer>| peer.stream.get().is_some_and(|open| !open.mux.is_closed());
        self.known.lock().values().filter(open).count()
    }

    /// Drops what is remembered of peers that left the ring.
    pub fn retain(&self, live: &[Incarnation]) {
        self.known.lock().retain(|incarnation, peer| {
            live.contains(incarnation)
                || peer.stream.get().is_some_and(|open| !open.mux.is_closed())
        });
    }
}

/// Tells the peer to forget an attach whose answer nobody waits for any more.
struct Abandon<'a> {
    mux: &'a Mux,
    channel: u32,
    armed: bool,
}

impl Abandon<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.mux.abandon(self.channel);
        }
    }
}

fn status(status: &tonic::Status) -> String {
    format!("{}: {}", status.code(), status.message())
}

/// tonic's transport error says only "transport error"; its sources say why.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}
