//! The Responses API by HTTP: a connection of its own for each request.

use std::{
    io::{self, Read as _},
    sync::Arc,
};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, Uri, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt as _;
use ruzstd::decoding::StreamingDecoder;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    MAX_MESSAGE_BYTES, Sample,
    events::{Event, Out},
    history::Record,
    request::{CreateRequest, Refusal},
    turn::Turn,
};

/// Events that wait for a slow client.
const OUT_EVENTS: usize = 32;
const TURN_STATE: &str = "x-codex-turn-state";

/// Closes the record when the response is done with, however it ends.
struct Closing(Arc<Record>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Runs one turn and answers with its events, or with the finished response.
pub(super) async fn create(
    State(sample): State<Arc<Sample>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let record = sample.history.http(uri.path(), &headers);
    let closing = Closing(Arc::clone(&record));
    let request = parse(&headers, &body)?;
    let streamed = request.stream.unwrap_or(false);
    let previous =
        request.previous_response_id.as_deref().and_then(|id| sample.stored.lock().get(id));
    let echoed = headers.get(TURN_STATE).and_then(|value| value.to_str().ok());
    let turn = Turn::admit(&sample, &record, request, previous, echoed)?;
    let turn_state =
        turn.fresh_state.as_deref().and_then(|state| HeaderValue::from_str(state).ok());
    let (out, events) = mpsc::channel(OUT_EVENTS);
    sample.tasks.spawn(turn.run(out, None));
    let mut response = if streamed { sse(events, closing) } else { finished(events).await? };
    if let Some(turn_state) = turn_state {
        response.headers_mut().insert(HeaderName::from_static(TURN_STATE), turn_state);
    }
    Ok(response)
}

fn parse(headers: &HeaderMap, body: &Bytes) -> Result<CreateRequest, Refusal> {
    let inflated;
    let json = match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => body.as_ref(),
        Some(b"zstd") => {
            inflated = inflate(body).ok_or_else(|| {
                Refusal::new(400, "invalid_request", "the body is not zstd, or too large")
            })?;
            &inflated
        }
        Some(_) => {
            return Err(Refusal::new(415, "invalid_request", "unsupported content encoding"));
        }
    };
    let value = serde_json::from_slice(json)
        .map_err(|_| Refusal::new(400, "invalid_json", "the body is not JSON"))?;
    let request = CreateRequest::from_value(value)?;
    if request.stream_id.is_some() {
        return Err(Refusal::invalid("stream_id", "stream_id is for WebSockets"));
    }
    Ok(request)
}

/// Inflates zstd up to the largest message; Codex compresses so with a `ChatGPT` account.
fn inflate(body: &[u8]) -> Option<Vec<u8>> {
    let limit = MAX_MESSAGE_BYTES as u64;
    let mut json = Vec::new();
    // All of a window may have to be held before there is a byte to read.
    let decoder = StreamingDecoder::new_with_max_window_size(body, limit).ok()?;
    decoder.take(limit + 1).read_to_end(&mut json).ok()?;
    (json.len() <= MAX_MESSAGE_BYTES).then_some(json)
}

/// Every event as it comes. A turn that closes in the middle breaks the body off.
fn sse(events: mpsc::Receiver<Out>, closing: Closing) -> Response {
    let chunks = ReceiverStream::new(events).map(move |out| {
        // Owned by the body, and so dropped with it.
        let _ = &closing;
        match out {
            Out::Event(event) => Ok(chunk(&[event])),
            Out::Terminal(mut terminal) => {
                terminal.note();
                Ok(chunk(&terminal.events))
            }
            Out::Cut(_) => Err(io::Error::from(io::ErrorKind::ConnectionAborted)),
        }
    });
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(chunks)).into_response()
}

fn chunk(events: &[Event]) -> Bytes {
    let text = |event: &Event| format!("event: {}\ndata: {}\n\n", event.kind, event.json);
    events.iter().map(text).collect::<String>().into()
}

/// The final response object alone.
async fn finished(mut events: mpsc::Receiver<Out>) -> Result<Response, Refusal> {
    while let Some(out) = events.recv().await {
        match out {
            Out::Event(_) => {}
            Out::Terminal(mut terminal) => {
                terminal.note();
                return Ok(Json(terminal.response).into_response());
            }
            Out::Cut(_) => break,
        }
    }
    Err(Refusal::new(502, "server_error", "the turn was closed by a directive"))
}
