//! Any WebSocket protocol: frames pass as they are.

use std::sync::Arc;

use axum::{
    extract::{RawPathParams, Request},
    response::Response,
};

use super::{
    CLOSE_POLICY, Edge, UNAUTHORIZED, key,
    pump::{Event, Pump},
    reply,
    upgrade::Pending,
};
use crate::{
    config::Route,
    error::Result,
    ids::{Epoch, Principal, SessionId},
    link::{Frame, Link},
    route::UPGRADE_PATIENCE,
    session::{Attach, ClientKind, Row},
    telemetry::{
        metrics::{Direction, Metrics},
        propagation,
    },
    upstream::Upgrade,
    wire::Incoming,
};

/// Serves one client of an opaque route.
pub(super) async fn handle(
    edge: Arc<Edge>,
    route: Arc<Route>,
    params: RawPathParams,
    mut request: Request,
) -> Response {
    let pending = match Pending::check(&mut request) {
        Ok(pending) => pending,
        Err(response) => return *response,
    };
    let identity = match edge.auth.identify(request.headers()).await {
        Ok(identity) => identity,
        Err(error) => return reply::error(&error),
    };
    let principal = identity.principal;
    let mut attach = match wish(&edge, &route, principal, &params, &request, &pending) {
        Ok(attach) => attach,
        Err(error) => return reply::error(&error),
    };
    let session = attach.session;
    let span = propagation::request("GET", &route.path);
    propagation::enter(&span, &mut attach.upgrade.headers);
    let attached = match edge.router.attach(attach, UPGRADE_PATIENCE).await {
        Ok(attached) => attached,
        Err(error) => return reply::traced(&span, &error),
    };
    let limit = edge.limits.max_message_bytes;
    let (response, socket) = pending.accept(
        Some(&attached),
        Some(session.to_string()),
        route.compression,
        limit,
        edge.unfinished.share(),
    );
    propagation::answered(&span, response.status());
    // The span ends here: what follows is not the request, and logs nothing for a frame.
    drop(span);
    let link = attached.link;
    edge.tracker.clone().spawn(async move {
        let Some((socket, seat)) = socket.await else { return };
        let up = edge.metrics.frames(&route.path, Direction::Up);
        let down = edge.metrics.frames(&route.path, Direction::Down);
        let pump = Pump::new(socket, seat, &identity, &edge.limits, &edge.drain, up, down);
        serve(pump, link, &edge.metrics).await;
    });
    response
}

fn wish(
    edge: &Edge,
    route: &Arc<Route>,
    principal: Principal,
    params: &RawPathParams,
    request: &Request,
    pending: &Pending,
) -> Result<Attach> {
    let (headers, uri) = (request.headers(), request.uri());
    let part =
        |name: &str| params.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
    let key = key::opaque(&route.session_key, part, uri, headers)?;
    let (session, row, key_label) = match key {
        Some(key) => {
            (SessionId::derive(&principal, &route.path, &key.text), Row::Unknown, key.label)
        }
        None => (SessionId::random(), Row::Missing, String::new()),
    };
    Ok(Attach {
        session,
        row,
        principal,
        route: Arc::clone(route),
        key_label,
        upgrade: Upgrade {
            path_and_query: key::forwarded_path(uri),
            headers: edge.forwarded_headers(headers),
            subprotocols: pending.handshake.protocols().to_vec(),
        },
        reads: false,
        last_seq: key::last_seq(uri, headers)?,
        last_epoch: key::last_epoch(uri, headers)?,
        turn_key: None,
        min_epoch: Epoch::default(),
        client: edge.label(ClientKind::WebSocket),
    })
}

/// Moves frames until one side ends.
async fn serve(mut pump: Box<Pump>, link: Link, metrics: &Metrics) {
    let mut link = Some(link);
    loop {
        match pump.next(&mut link).await {
            Event::FromClient(incoming) => {
                let (frame, close) = match incoming {
                    Incoming::Messages(batch) => {
                        (Frame::Messages { batch, first_seq: 0, ended: 0, create: 0 }, None)
                    }
                    Incoming::Ping(payload) => (Frame::Ping(payload), None),
                    Incoming::Pong(payload) => (Frame::Pong(payload), None),
                    Incoming::Close(close) => (Frame::Close(close.clone()), Some(close)),
                };
                if let Some(link) = &mut link {
                    link.tx.send(frame);
                }
                if let Some(close) = close {
                    return pump.close_as(close).await;
                }
            }
            Event::FromSession(frame) => match frame {
                Frame::Messages { batch, .. } => pump.send(&batch),
                Frame::Ping(payload) => pump.ping(&payload),
                Frame::Pong(payload) => pump.pong(&payload),
                Frame::Close(close) => return pump.close_as(close).await,
                // The upstream connection does not move with the session: the client is
                // told to come back, and says what it had.
                Frame::Moved => return pump.close_restart().await,
                Frame::Failed(error) => {
                    metrics.error(error.code, error.blame);
                    return pump.close(error.code.close(), error.code.as_str()).await;
                }
            },
            Event::ClientBroke { close, what } => {
                // The others of the session have no part in it.
                drop(link);
                return pump.close(close, what).await;
            }
            Event::ClientGone => return,
            // What was under way to the owner may or may not have arrived; only the client
            // can tell whether it matters.
            Event::Unauthorized => {
                drop(link);
                return pump.close(CLOSE_POLICY, UNAUTHORIZED).await;
            }
            Event::SessionGone | Event::Closing | Event::Cut => {
                drop(link);
                return pump.close_restart().await;
            }
        }
    }
}
