//! From an upgrade request to a WebSocket, with everything that is decided before the 101.

use std::sync::Arc;

use axum::{body::Body, extract::Request, response::Response};
use http::StatusCode;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;

use super::{patience::Patient, reply};
use crate::{
    net::TcpStream,
    session::{Attached, Resume},
    wire::{Role, Share, Socket, SocketOptions, handshake::ServerUpgrade},
};

/// A request that asked properly, before its answer.
pub(super) struct Pending {
    pub(super) handshake: ServerUpgrade,
    on: OnUpgrade,
    seat: Option<Seat>,
}

/// A client's place among those that this node serves; given up when the last clone goes.
#[derive(Clone, Debug)]
pub(super) struct Seat(#[expect(dead_code, reason = "counts by living")] Arc<OwnedSemaphorePermit>);

impl Seat {
    pub(super) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(permit))
    }
}

impl Pending {
    /// Checks the request.
    ///
    /// # Errors
    /// The answer to a request that is no upgrade.
    pub(super) fn check(request: &mut Request) -> Result<Self, Box<Response>> {
        let checked = ServerUpgrade::check(request.headers(), request.method(), request.version());
        let handshake =
            checked.map_err(|(status, what)| Box::new(reply::bad_upgrade(status, what)))?;
        let seat = request.extensions().get::<Seat>().cloned();
        Ok(Self { handshake, on: hyper::upgrade::on(request), seat })
    }

    /// The 101 and, once it was sent, the socket.
    pub(super) fn accept(
        self,
        attached: Option<&Attached>,
        session: Option<String>,
        compression: bool,
        max_message_bytes: usize,
        share: Share,
    ) -> (Response, impl Future<Output = Option<(Socket<TcpStream>, Seat)>> + use<>) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let deflate = compression && self.handshake.offers_deflate();
        let protocol = attached.and_then(|attached| attached.subprotocol.as_deref());
        let headers = response.headers_mut();
        if let Some(attached) = attached {
            headers.extend(attached.headers.clone());
        }
        headers.extend(self.handshake.response_headers(protocol, deflate));
        if let (Some(session), Some(attached)) = (session, attached) {
            reply::put(&mut response, "ringspan-session", &session);
            reply::put(&mut response, "ringspan-epoch", &attached.epoch.to_string());
            let resume = match attached.resume {
                Resume::New => "new".to_owned(),
                Resume::Ok => "ok".to_owned(),
                Resume::Gap { floor } => format!("gap; floor={floor}"),
            };
            reply::put(&mut response, "ringspan-resume", &resume);
            reply::put(&mut response, "ringspan-seq", &attached.seq.to_string());
        }
        let options = SocketOptions { max_message_bytes, deflate };
        let socket = async move {
            let upgraded = self.on.await.ok()?;
            // The listener serves plain TCP only, so that is what is inside.
            let parts = upgraded.downcast::<TokioIo<Patient<TcpStream>>>().ok()?;
            // From here on the pump looks after its writes.
            let io = parts.io.into_inner().into_inner();
            let socket = Socket::new(io, Role::Server, options, parts.read_buf);
            Some((socket.within(share), self.seat?))
        };
        (response, socket)
    }
}
