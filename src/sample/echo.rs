//! `/echo` and `/stream`: sockets without a protocol of their own.

use std::{
    ops::ControlFlow::{self, Break, Continue},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{Query, Request, State},
    response::Response,
};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use serde::Deserialize;
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::tungstenite::{self, Message};

use super::{Sample, history::Record, socket, socket::Socket};

/// Frames of a fast stream between two looks at what the client sent.
const FRAMES_PER_LOOK: u64 = 256;
/// Largest frame that `/stream` makes, bytes.
const MAX_FRAME_BYTES: usize = 64 << 20;

/// Parameters of `/echo`.
#[derive(Deserialize)]
pub(super) struct EchoQuery {
    /// Text messages that the server sends first.
    #[serde(default)]
    greet: u64,
}

/// Parameters of `/stream`.
#[derive(Deserialize)]
pub(super) struct StreamQuery {
    #[serde(default)]
    frames: u64,
    /// Bytes of each frame; its decimal sequence number is never cut off.
    #[serde(default)]
    bytes: usize,
    /// Milliseconds between frames; 0 is as fast as it goes.
    #[serde(default)]
    delay_ms: u64,
}

/// Greets, then echoes.
pub(super) async fn echo(
    State(sample): State<Arc<Sample>>,
    Query(query): Query<EchoQuery>,
    request: Request,
) -> Response {
    let record = sample.history.websocket(&request);
    socket::upgrade(&sample, request, async move |mut socket| {
        run_echo(&mut socket, query.greet).await.ok();
        record.close();
    })
}

/// Streams, then echoes.
pub(super) async fn stream(
    State(sample): State<Arc<Sample>>,
    Query(query): Query<StreamQuery>,
    request: Request,
) -> Response {
    let record: Arc<Record> = sample.history.websocket(&request);
    socket::upgrade(&sample, request, async move |mut socket| {
        run_stream(&mut socket, query).await.ok();
        record.close();
    })
}

async fn run_echo(socket: &mut Socket, greet: u64) -> tungstenite::Result<()> {
    for n in 0..greet {
        socket.feed(Message::text(format!("greeting {n}"))).await?;
    }
    socket.flush().await?;
    echo_until_closed(socket).await
}

/// Echoes what is ready as one batch, then flushes it.
async fn echo_until_closed(socket: &mut Socket) -> tungstenite::Result<()> {
    while let Some(message) = socket.next().await {
        let mut next = Some(message?);
        while let Some(message) = next {
            if echo_one(socket, message).await?.is_break() {
                return finish_close(socket).await;
            }
            next = socket.next().now_or_never().flatten().transpose()?;
        }
        socket.flush().await?;
    }
    Ok(())
}

/// Feeds the echo of a data message. Pings are answered by the library.
async fn echo_one(socket: &mut Socket, message: Message) -> tungstenite::Result<ControlFlow<()>> {
    match message {
        Message::Text(_) | Message::Binary(_) => {
            socket.feed(message).await?;
            Ok(Continue(()))
        }
        Message::Close(_) => Ok(Break(())),
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(Continue(())),
    }
}

/// The library answers a close with its own code; reading on until the end sends that.
async fn finish_close(socket: &mut Socket) -> tungstenite::Result<()> {
    while let Some(message) = socket.next().await {
        message?;
    }
    Ok(())
}

async fn run_stream(socket: &mut Socket, query: StreamQuery) -> tungstenite::Result<()> {
    let streamed = if query.delay_ms == 0 {
        fast_stream(socket, &query).await?
    } else {
        paced_stream(socket, &query).await?
    };
    match streamed {
        Continue(()) => echo_until_closed(socket).await,
        Break(()) => finish_close(socket).await,
    }
}

/// Feeds without a flush of each frame: the write buffer decides when to write.
async fn fast_stream(
    socket: &mut Socket,
    query: &StreamQuery,
) -> tungstenite::Result<ControlFlow<()>> {
    for n in 0..query.frames {
        socket.feed(frame(n, query.bytes)).await?;
        if n % FRAMES_PER_LOOK == FRAMES_PER_LOOK - 1
            && let Some(Some(message)) = socket.next().now_or_never()
            && echo_one(socket, message?).await?.is_break()
        {
            return Ok(Break(()));
        }
    }
    socket.flush().await?;
    Ok(Continue(()))
}

async fn paced_stream(
    socket: &mut Socket,
    query: &StreamQuery,
) -> tungstenite::Result<ControlFlow<()>> {
    let mut ticks = tokio::time::interval(Duration::from_millis(query.delay_ms));
    // A late frame does not slow the stream down: the rate is what is asked for.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut n = 0;
    while n < query.frames {
        tokio::select! {
            _ = ticks.tick() => {
                socket.send(frame(n, query.bytes)).await?;
                n += 1;
            }
            message = socket.next() => {
                let Some(message) = message else { return Ok(Break(())) };
                if echo_one(socket, message?).await?.is_break() {
                    return Ok(Break(()));
                }
                socket.flush().await?;
            }
        }
    }
    Ok(Continue(()))
}

/// The sequence number, then padding.
fn frame(n: u64, bytes: usize) -> Message {
    let bytes = bytes.min(MAX_FRAME_BYTES);
    Message::text(format!("{n:.<bytes$}"))
}
