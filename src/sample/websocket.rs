//! The Responses API on a WebSocket.

use std::{
    ops::ControlFlow::{self, Break, Continue},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode},
    response::Response,
};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{sync::mpsc, time::Instant};
use tokio_tungstenite::tungstenite::{
    self, Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{
    Sample, directives::Cut, events::Out, history::Record, lanes::Lanes, request::Refusal, socket,
    socket::Socket,
};
use crate::net::reset_at_end;

/// Events of all turns that wait to be written.
const OUT_EVENTS: usize = 32;
/// Events written before the client is listened to again.
const BATCH_EVENTS: usize = 128;
/// How long a client gets to answer a close.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// Answers the upgrade with the headers that Codex looks at.
pub(super) async fn upgrade(State(sample): State<Arc<Sample>>, request: Request) -> Response {
    let record = sample.history.websocket(&request);
    let task_record = Arc::clone(&record);
    let task_sample = Arc::clone(&sample);
    let mut response = socket::upgrade(&sample, request, async move |mut socket| {
        // An error is a client that left without a word: as ordinary an end as a close.
        run(&mut socket, &task_sample, &task_record).await.ok();
        task_record.close();
    });
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        record.close();
        return response;
    }
    let headers = response.headers_mut();
    if let Ok(model) = HeaderValue::from_str(&sample.options.model) {
        headers.insert(HeaderName::from_static("openai-model"), model);
    }
    let constants = [("x-models-etag", "sample-1"), ("x-reasoning-included", "true")];
    for (name, value) in constants {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// One connection until it ends. Turns that still run then notice that nobody listens.
async fn run(
    socket: &mut Socket,
    sample: &Arc<Sample>,
    record: &Arc<Record>,
) -> tungstenite::Result<()> {
    let (out, mut events) = mpsc::channel(OUT_EVENTS);
    let mut lanes = Lanes::new(Arc::clone(sample), Arc::clone(record), out);
    let too_old = sample.options.max_connection_age.map(|age| Instant::now() + age);
    loop {
        let flow = tokio::select! {
            Some(event) = events.recv() => write(socket, &mut lanes, &mut events, event).await?,
            message = socket.next() => {
                let Some(message) = message else { return Ok(()) };
                read(socket, &mut lanes, message?).await?
            }
            () = wait_until(too_old), if lanes.is_idle() || sample.options.cut_at_age => {
                record.cut_short("aged");
                let message = "Responses websocket connection limit reached. \
                               Create a new websocket connection to continue.";
                let refusal = Refusal::new(400, "websocket_connection_limit_reached", message);
                socket.send(Message::text(refusal.to_event(None))).await?;
                close(socket, CloseCode::Away.into()).await?
            }
        };
        if flow.is_break() {
            return Ok(());
        }
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Writes what the turns have ready as one batch.
async fn write(
    socket: &mut Socket,
    lanes: &mut Lanes,
    events: &mut mpsc::Receiver<Out>,
    first: Out,
) -> tungstenite::Result<ControlFlow<()>> {
    let mut next = Some(first);
    let mut left = BATCH_EVENTS;
    while let Some(out) = next {
        match out {
            Out::Event(event) => socket.feed(Message::text(event.json)).await?,
            Out::Terminal(terminal) => {
                for event in lanes.settle(*terminal) {
                    socket.feed(Message::text(event)).await?;
                }
            }
            Out::Cut(Cut::Close(code)) => return close(socket, code).await,
            Out::Cut(how) => {
                // What was said before is not taken back.
                socket.flush().await?;
                if how == Cut::Reset {
                    reset_at_end(socket.get_ref());
                }
                return Ok(Break(()));
            }
        }
        left -= 1;
        next = if left == 0 { None } else { events.try_recv().ok() };
    }
    socket.flush().await?;
    Ok(Continue(()))
}

async fn read(
    socket: &mut Socket,
    lanes: &mut Lanes,
    message: Message,
) -> tungstenite::Result<ControlFlow<()>> {
    let answers = match message {
        Message::Text(text) => lanes.receive(&text),
        Message::Binary(_) => {
            let refusal = Refusal::new(400, "invalid_request", "binary messages are not supported");
            vec![refusal.to_event(None)]
        }
        // Pings and closes are answered by the library as we read on.
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => Vec::new(),
    };
    if !answers.is_empty() {
        for event in answers {
            socket.feed(Message::text(event)).await?;
        }
        socket.flush().await?;
    }
    Ok(Continue(()))
}

/// Closes with `code` and waits a little for the answer, so that no reset overtakes it.
async fn close(socket: &mut Socket, code: u16) -> tungstenite::Result<ControlFlow<()>> {
    let frame = CloseFrame { code: code.into(), reason: "sample".into() };
    socket.close(Some(frame)).await?;
    let answered = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(CLOSE_GRACE, answered).await.ok();
    Ok(Break(()))
}
