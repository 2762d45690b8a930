//! The server side of a WebSocket handshake, and the socket it yields.

use std::{future::Future, sync::Arc};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::server::create_response_with_body,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{MAX_MESSAGE_BYTES, Sample, request::Refusal};
use crate::net::TcpStream;

/// A socket right on top of TCP, without hyper's buffers in between.
pub(super) type Socket = WebSocketStream<TcpStream>;

/// Small, as it is allocated and zeroed per socket: 10k idle sockets are an ordinary test.
const READ_BUFFER_BYTES: usize = 4096;
/// Frames gather up to here before they are written without a flush.
const WRITE_BUFFER_BYTES: usize = 32 << 10;

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
}

/// Answers the upgrade and runs `serve` on the socket in a task of its own, which ends with
/// the server. The first subprotocol that was offered is taken.
pub(super) fn upgrade<F, Fut>(sample: &Arc<Sample>, mut request: Request, serve: F) -> Response
where
    F: FnOnce(Socket) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let mut response = match create_response_with_body(&request, Body::empty) {
        Ok(response) => response,
        Err(error) => {
            return Refusal::new(400, "invalid_upgrade", error.to_string()).into_response();
        }
    };
    let offered = request.headers().get(header::SEC_WEBSOCKET_PROTOCOL);
    if let Some(first) = offered
        .and_then(|value| value.to_str().ok())
        .and_then(|list| list.split(',').next())
        .and_then(|name| HeaderValue::from_str(name.trim()).ok())
    {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, first);
    }
    let upgrading = hyper::upgrade::on(&mut request);
    let stop = sample.stop.clone();
    sample.tasks.spawn(async move {
        let Ok(upgraded) = upgrading.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else { return };
        let socket = WebSocketStream::from_partially_read(
            parts.io.into_inner(),
            parts.read_buf.into(),
            Role::Server,
            Some(config()),
        )
        .await;
        stop.run_until_cancelled(serve(socket)).await;
    });
    response
}
