//! A turn's events as server-sent events.

use std::{
    borrow::Cow,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use futures_util::Stream;
use http::{
    HeaderValue,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};

use super::{
    events::{Events, Step, lost, moving},
    told,
};
use crate::{
    error::Error,
    session::numbering::is_websocket_only,
    telemetry::metrics::Metrics,
    wire::{Batch, Message},
};

/// The events as they come, those after `starting_after` if it is given.
pub(super) fn stream(
    first: Step,
    events: Events,
    starting_after: Option<u64>,
    metrics: Metrics,
) -> Response {
    let writer = Writer { starting_after };
    let sse = Sse { first: Some(first), events, writer, metrics };
    let mut response = Response::new(Body::from_stream(sse));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

struct Sse {
    first: Option<Step>,
    events: Events,
    writer: Writer,
    metrics: Metrics,
}

impl Sse {
    fn broken_off(&self, error: &Error) -> Bytes {
        let event = self.events.unknown(error);
        told::own(&self.metrics, error, &event);
        self.writer.text(&Batch::one(&event))
    }

    fn events(&self, batch: &Batch) -> Bytes {
        if self.events.is_over() {
            told::last(&self.metrics, batch);
        }
        self.writer.text(batch)
    }
}

impl Stream for Sse {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let step = match self.first.take() {
                Some(step) => step,
                None => match self.events.poll(cx) {
                    Poll::Ready(step) => step,
                    Poll::Pending => return Poll::Pending,
                },
            };
            let text = match step {
                Step::Events(batch) => self.events(&batch),
                Step::Failed(error) | Step::Cut(error) => self.broken_off(&error),
                Step::Lost => self.broken_off(&lost()),
                Step::Moved => self.broken_off(&moving()),
                Step::End => return Poll::Ready(None),
            };
            // An empty piece would end the body's chunks.
            if !text.is_empty() {
                return Poll::Ready(Some(Ok(text)));
            }
        }
    }
}

/// Writes events. Their numbers are those of the turn's log, so a resume counts as the client
/// that asked for the turn does.
struct Writer {
    starting_after: Option<u64>,
}

#[derive(serde::Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    r#type: Cow<'a, str>,
    sequence_number: Option<u64>,
}

impl Writer {
    fn text(&self, batch: &Batch) -> Bytes {
        let mut out = Vec::with_capacity(batch.weight() + 64 * batch.len() as usize);
        for message in batch.messages() {
            self.event(&message, &mut out);
        }
        out.into()
    }

    fn event(&self, message: &Message, out: &mut Vec<u8>) {
        if let Ok(Head { r#type: name, sequence_number }) = serde_json::from_slice(&message.payload)
        {
            let had = sequence_number.zip(self.starting_after).is_some_and(|(n, after)| n <= after);
            // What was asked for over WebSocket has these in its log.
            if had || is_websocket_only(&name) {
                return;
            }
            // A name with a line break in it would be two lines of the stream.
            if !name.contains(char::is_control) {
                out.extend_from_slice(b"event: ");
                out.extend_from_slice(name.as_bytes());
                out.push(b'\n');
            }
        }
        // JSON text may be spread over lines; each of them is a data line.
        for line in message.payload.split(|byte| matches!(byte, b'\n' | b'\r')) {
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{BatchBuilder, Kind};

    fn text(starting_after: Option<u64>, events: &[&str]) -> String {
        let mut batch = BatchBuilder::default();
        for event in events {
            batch.push(Kind::Text, event.as_bytes());
        }
        let bytes = Writer { starting_after }.text(&batch.finish());
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    const CREATED: &str = r#"{"type":"response.created","sequence_number":0}"#;
    const METADATA: &str = r#"{"type":"response.metadata","sequence_number":1}"#;
    const DELTA: &str = r#"{"type":"response.output_text.delta","sequence_number":2,"delta":"x"}"#;

    #[test]
    fn events_of_the_websocket_only_are_left_out_and_the_others_keep_their_numbers() {
        assert_eq!(
            text(None, &[CREATED, METADATA, DELTA]),
            format!(
                "event: response.created\ndata: {CREATED}\n\n\
                 event: response.output_text.delta\ndata: {DELTA}\n\n"
            )
        );
    }

    #[test]
    fn a_resumed_stream_has_the_events_after_the_last_one_that_its_client_had() {
        let after = |number| text(Some(number), &[CREATED, METADATA, DELTA]);
        let delta = text(None, &[DELTA]);
        assert_eq!((after(0), after(1)), (delta.clone(), delta));
        assert_eq!(after(2), "");
    }

    #[test]
    fn an_upstream_writes_no_lines_of_its_own_into_the_stream() {
        let event = r#"{"type":"x\ndata: {}\n\nevent: response.completed","a":1}"#;
        assert_eq!(text(None, &[event]), format!("data: {event}\n\n"));
        assert_eq!(
            text(None, &["{\"type\":\r\"x\"}"]),
            "event: x\ndata: {\"type\":\ndata: \"x\"}\n\n"
        );
    }
}
