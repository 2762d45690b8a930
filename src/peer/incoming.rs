//! The owner's side: serves the streams of other nodes' edges.

use std::{collections::HashMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle, time::timeout};
use tokio_stream::{Stream, StreamExt};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Response, Status, Streaming, service::interceptor::InterceptedService,
    transport::Server,
};
use tracing::Instrument;

use super::{
    MAX_HOPS, PROTOCOL, auth, convert,
    describe::{self, SessionReport},
    door::{self, OPEN_MESSAGE, Prompt},
    mux::{Mux, Outgoing},
    outgoing::{FRAME, Identity, WINDOW},
    proto::{
        self,
        frame::Body,
        peer_server::{Peer, PeerServer},
    },
    tls,
};
use crate::{
    config::{PeerSecurity, Route},
    error::{Code, Error},
    ids::{Incarnation, SessionId},
    net::TcpListener,
    ownership::witness::Witness,
    ring::Ring,
    session::{AttachError, Registry},
    store::Member,
    telemetry::{
        events::Events,
        metrics::{GaugeGuard, Metrics, Side},
        propagation,
    },
};

/// How long a caller may take for its Hello.
const HELLO: Duration = Duration::from_secs(5);

/// HTTP/2 streams of one connection: one carries sessions, few carry health checks.
const MAX_STREAMS: u32 = 128;

/// Largest message of a call: conversations are what is large, and they are bounded.
const MAX_CALL: usize = 256 * 1024 * 1024;

/// Attaches of one stream that may be under way.
const MAX_OPENING: usize = 8192;

/// Sessions described in one answer.
pub(super) const MAX_DESCRIBED: usize = 1024;

/// What the peer listener serves.
#[derive(Clone)]
pub struct Incoming {
    pub identity: Identity,
    pub registry: Arc<Registry>,
    pub routes: Arc<[Arc<Route>]>,
    pub ring: watch::Receiver<Arc<Ring>>,
    pub witness: Witness,
    pub metrics: Metrics,
    pub events: Events,
    pub tracker: TaskTracker,
    pub shutdown: CancellationToken,
}

type Frames = Pin<Box<dyn Stream<Item = Result<proto::Frame, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for Incoming {
    type LinkStream = Frames;

    async fn prepare(
        &self,
        request: Request<proto::PrepareRequest>,
    ) -> Result<Response<proto::PrepareResponse>, Status> {
        let request = request.into_inner();
        self.identity.check_target(request.target_incarnation)?;
        let from = Some(Incarnation(request.incarnation)).filter(|from| from.0 != 0);
        let kept = self.keep_all(from, request.conversations);
        Ok(Response::new(proto::PrepareResponse { kept }))
    }

    async fn forget(
        &self,
        request: Request<proto::ForgetRequest>,
    ) -> Result<Response<proto::ForgetResponse>, Status> {
        let request = request.into_inner();
        self.identity.check_target(request.target_incarnation)?;
        let sessions: Option<Vec<_>> = request.sessions.iter().map(convert::session_in).collect();
        let sessions = sessions.ok_or_else(bad_session)?;
        self.registry.let_go(Incarnation(request.incarnation), &sessions);
        Ok(Response::new(proto::ForgetResponse {}))
    }

    async fn activate(
        &self,
        request: Request<proto::ActivateRequest>,
    ) -> Result<Response<proto::ActivateResponse>, Status> {
        let request = request.into_inner();
        self.identity.check_target(request.target_incarnation)?;
        let id = convert::session_in(&request.session).ok_or_else(bad_session)?;
        // The commit is what counts; a session that cannot be opened now is opened when a
        // client asks.
        if let Err(error) = self.registry.activate(id).await {
            tracing::debug!(session = %id, ?error, "opening a session ahead of its client failed");
        }
        Ok(Response::new(proto::ActivateResponse {}))
    }

    async fn describe(
        &self,
        request: Request<proto::DescribeRequest>,
    ) -> Result<Response<proto::DescribeResponse>, Status> {
        self.describe_all(request.get_ref()).map(Response::new)
    }

    async fn testify(
        &self,
        request: Request<proto::TestifyRequest>,
    ) -> Result<Response<proto::TestifyResponse>, Status> {
        self.testify_to(request.get_ref()).map(Response::new)
    }

    async fn link(
        &self,
        request: Request<Streaming<proto::Frame>>,
    ) -> Result<Response<Frames>, Status> {
        let shown = auth::shown(&request).cloned();
        let mut streaming = request.into_inner();
        let first = timeout(HELLO, streaming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello came"))??;
        let Some(Body::Hello(hello)) = first.and_then(|frame| frame.body) else {
            return Err(Status::invalid_argument("the first frame must be Hello"));
        };
        let protocol = self.identity.check(&hello)?;
        let caller = Incarnation(hello.incarnation);
        let is_caller = |member: &Member| member.incarnation == caller;
        if shown.is_some_and(|shown| !auth::names(&shown, &self.ring.borrow(), is_caller)) {
            return Err(Status::unauthenticated("the peer certificate is another member's"));
        }
        let mux = Mux::new(self.identity.max_message_bytes);
        mux.control(
            0,
            Body::Welcome(proto::Welcome {
                protocol,
                incarnation: self.identity.incarnation.0,
                ring_version: self.ring.borrow().view.version,
                build: self.identity.build.clone(),
                initial_credit: self.identity.credit(),
            }),
        );
        tracing::debug!(peer = %hello.node_id, build = %hello.build, "peer stream accepted");
        let stream = Served {
            serving: self.clone(),
            mux: Arc::clone(&mux),
            credit: hello.initial_credit,
            peer: hello.node_id,
            opening: Arc::default(),
            _open: self.metrics.peer_connection(Side::Callee),
        };
        self.tracker.spawn(stream.read(streaming));
        Ok(Response::new(Box::pin(Outgoing(mux).map(Ok))))
    }
}

impl Incoming {
    fn describe_all(
        &self,
        request: &proto::DescribeRequest,
    ) -> Result<proto::DescribeResponse, Status> {
        self.identity.check_target(request.target_incarnation)?;
        let mut answer = proto::DescribeResponse::default();
        for id in asked_for(request) {
            answer.sessions.extend(self.registry.get(id).map(|handle| SessionReport::of(&handle)));
            if request.story && answer.story.is_empty() {
                answer.story = describe::story(&self.events, id);
            }
        }
        Ok(answer)
    }
}

/// The sessions that a caller wants described, as far as one answer goes.
pub(super) fn asked_for(request: &proto::DescribeRequest) -> impl Iterator<Item = SessionId> {
    request.sessions.iter().take(MAX_DESCRIBED).filter_map(convert::session_in)
}

fn bad_session() -> Status {
    Status::invalid_argument("a session id is 16 bytes")
}

impl Identity {
    /// Refuses, before any work, who has no business here.
    pub(super) fn check(&self, hello: &proto::Hello) -> Result<u32, Status> {
        if hello.cluster_id != self.cluster_id {
            return Err(Status::permission_denied("this node belongs to another cluster"));
        }
        let highest = hello.protocol_max.min(*PROTOCOL.end());
        if highest < hello.protocol_min || highest < *PROTOCOL.start() {
            return Err(Status::failed_precondition(format!(
                "no common protocol version: we speak {} to {}",
                PROTOCOL.start(),
                PROTOCOL.end()
            )));
        }
        self.check_target(hello.target_incarnation)?;
        Ok(highest)
    }

    /// Addresses are reused, incarnations are not.
    pub(super) fn check_target(&self, target: i64) -> Result<(), Status> {
        if target == self.incarnation.0 {
            return Ok(());
        }
        Err(Status::not_found("another incarnation lives at this address"))
    }
}

/// One stream of one peer.
struct Served {
    serving: Incoming,
    mux: Arc<Mux>,
    /// Credit that the peer grants on a new channel.
    credit: u32,
    peer: String,
    /// Attaches under way, by channel.
    opening: Arc<Mutex<HashMap<u32, AbortHandle>>>,
    _open: GaugeGuard,
}

impl Served {
    async fn read(self, mut streaming: Streaming<proto::Frame>) {
        loop {
            let frame = tokio::select! {
                biased;
                () = self.serving.shutdown.cancelled() => break,
                frame = streaming.next() => frame,
            };
            let Some(Ok(proto::Frame { channel, body: Some(body) })) = frame else { break };
            let result = match body {
                Body::Attach(attach) => {
                    self.attach(channel, attach);
                    Ok(())
                }
                Body::Detach(detach) => {
                    if let Some(opening) = self.opening.lock().remove(&channel) {
                        opening.abort();
                    }
                    let frame = proto::Frame { channel, body: Some(Body::Detach(detach)) };
                    self.mux.on_frame(frame, self.credit)
                }
                body => {
                    let frame = proto::Frame { channel, body: Some(body) };
                    self.mux.on_frame(frame, self.credit)
                }
            };
            if let Err(violation) = result {
                tracing::warn!(peer = %self.peer, what = violation.0, "peer broke the protocol");
                break;
            }
        }
        for (_, opening) in self.opening.lock().drain() {
            opening.abort();
        }
        self.mux.close();
    }

    fn attach(&self, channel: u32, attach: proto::Attach) {
        let mut opening = self.opening.lock();
        if opening.len() >= MAX_OPENING {
            let error = Error::new(Code::SessionUnavailable, "too many attaches at once; retry");
            self.mux.control(channel, Body::Fault(convert::fault_out(&error)));
            return;
        }
        let (serving, mux, credit) = (self.serving.clone(), Arc::clone(&self.mux), self.credit);
        let done = Arc::clone(&self.opening);
        // The task cannot finish before it is entered below: its last step needs the lock.
        let task = self.serving.tracker.spawn(async move {
            let result = serving.attach(attach).await;
            // Under the lock, so that a Detach comes either before (then the link is dropped
            // here) or after (then it finds the channel).
            let mut opening = done.lock();
            if opening.remove(&channel).is_none() {
                return;
            }
            match result {
                Ok((link, attached)) => mux.accept(channel, link, attached, credit),
                Err(error) => {
                    let version = serving.ring.borrow().view.version;
                    mux.control(channel, convert::error_out(error, version));
                }
            }
        });
        opening.insert(channel, task.abort_handle());
    }
}

impl Incoming {
    async fn attach(
        &self,
        request: proto::Attach,
    ) -> Result<(crate::link::Link, proto::Attached), AttachError> {
        if request.hop > MAX_HOPS {
            return Err(Error::new(Code::OwnerMoving, "passed on too often; retry").into());
        }
        let Some(mut attach) = convert::attach_in(request, &self.routes) else {
            let text = "this node has no such route: the nodes' configurations differ";
            return Err(Error::new(Code::Internal, text).into());
        };
        let span = tracing::info_span!(
            parent: None,
            "serve attach",
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.service = "ringspan.peer.v1.Peer",
            rpc.method = "Link",
            session.id = %attach.session,
            ringspan.edge = %attach.client.edge_node,
        );
        propagation::enter(&span, &mut attach.upgrade.headers);
        let attached =
            self.registry.attach(attach).instrument(span).await.inspect_err(|error| {
                if matches!(error, AttachError::NotOwner(_)) {
                    self.metrics.not_owner(Side::Callee);
                }
            })?;
        let (resume, floor_seq) = convert::resume_out(attached.resume);
        let answer = proto::Attached {
            epoch: attached.epoch.0,
            resume: resume.into(),
            floor_seq,
            headers: convert::headers_out(&attached.headers),
            subprotocol: attached.subprotocol,
            seq: attached.seq,
        };
        Ok((attached.link, answer))
    }
}

/// Serves the peer protocol, and to anybody health and reflection, until `stop` resolves.
///
/// # Errors
/// Certificates that cannot be used, or a transport that failed.
pub async fn serve(
    incoming: Incoming,
    security: &PeerSecurity,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let ask = auth::Ask::new(security, incoming.ring.clone());
    let (tracker, shutdown) = (incoming.tracker.clone(), incoming.shutdown.clone());
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(MAX_STREAMS);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<PeerServer<Incoming>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Most clients know the older of the two only.
    let (v1, v1alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let router = server
        .add_service(InterceptedService::new(
            PeerServer::new(incoming).max_decoding_message_size(MAX_CALL),
            ask,
        ))
        .add_service(Prompt(health.max_decoding_message_size(OPEN_MESSAGE)))
        .add_service(Prompt(v1.max_decoding_message_size(OPEN_MESSAGE)))
        .add_service(Prompt(v1alpha.max_decoding_message_size(OPEN_MESSAGE)));
    if let Some(files) = auth::files(security) {
        let connections = tls::accept(listener, files, &tracker, &shutdown).await?;
        router.serve_with_incoming_shutdown(connections, stop).await?;
    } else {
        router.serve_with_incoming_shutdown(door::incoming(listener), stop).await?;
    }
    Ok(())
}
