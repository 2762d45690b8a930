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
use serde_json::value::RawValue;

use super::events::{Events, Step, moving};
use crate::{
    session::{
        event::{LAST_SEQUENCE, error_event},
        fields::Fields,
    },
    wire::{Batch, Message},
};

/// Events that the API sends over WebSocket only; over HTTP they are headers, and the SDKs'
/// stream helpers fail on them.
const WEBSOCKET_ONLY: [&str; 3] =
    ["response.metadata", "codex.rate_limits", "responsesapi.websocket_timing"];

/// The events as they come, those after `starting_after` if it is given.
pub(super) fn stream(first: Step, events: Events, starting_after: Option<u64>) -> Response {
    let writer = Writer { left_out: 0, starting_after };
    let mut response = Response::new(Body::from_stream(Sse { first: Some(first), events, writer }));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

struct Sse {
    first: Option<Step>,
    events: Events,
    writer: Writer,
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
                Step::Events(batch) => self.writer.text(&batch),
                Step::Failed(error) => self.writer.text(&Batch::one(&error_event(&error, None))),
                Step::Lost => {
                    let unknown = Batch::one(&self.events.unknown());
                    self.writer.text(&unknown)
                }
                Step::Moved => self.writer.text(&Batch::one(&error_event(&moving(), None))),
                Step::End => return Poll::Ready(None),
            };
            // An empty piece would end the body's chunks.
            if !text.is_empty() {
                return Poll::Ready(Some(Ok(text)));
            }
        }
    }
}

/// Writes events, numbered without a gap although some are left out.
struct Writer {
    /// Numbered events left out so far.
    left_out: u64,
    starting_after: Option<u64>,
}

#[derive(serde::Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    r#type: Cow<'a, str>,
    sequence_number: Option<u64>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

impl Writer {
    fn text(&mut self, batch: &Batch) -> Bytes {
        let mut out = Vec::with_capacity(batch.weight() + 64 * batch.len() as usize);
        for message in batch.messages() {
            self.event(&message, &mut out);
        }
        out.into()
    }

    fn event(&mut self, message: &Message, out: &mut Vec<u8>) {
        let mut data = message.payload.clone();
        if let Ok(Head { r#type: name, sequence_number, error }) =
            serde_json::from_slice(&message.payload)
        {
            if WEBSOCKET_ONLY.contains(&&*name) {
                self.left_out += u64::from(sequence_number.is_some());
                return;
            }
            let number = sequence_number.map(|number| number.saturating_sub(self.left_out));
            if let (Some(number), Some(after)) = (number, self.starting_after)
                && number <= after
            {
                return;
            }
            if let Some(number) = number.filter(|_| self.left_out > 0)
                && let Some(fields) = Fields::parse(&message.payload)
            {
                let number = number.to_string();
                data = fields.with(&[("sequence_number", Some(number.as_bytes()))]);
            }
            if let Some(error) = error.filter(|_| self.left_out > 0)
                && let Some(fields) = Fields::parse(error.get().as_bytes())
                && let Some(last) = fields.get::<u64>(LAST_SEQUENCE)
            {
                let last = last.saturating_sub(self.left_out).to_string();
                let error = fields.with(&[(LAST_SEQUENCE, Some(last.as_bytes()))]);
                data = with_error(&data, &error);
            }
            out.extend_from_slice(b"event: ");
            out.extend_from_slice(name.as_bytes());
            out.push(b'\n');
        }
        // JSON text may be spread over lines; each of them is a data line.
        for line in data.split(|byte| *byte == b'\n') {
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        out.push(b'\n');
    }
}

/// The event with another error body.
fn with_error(event: &Bytes, error: &[u8]) -> Bytes {
    let fields = Fields::parse(event);
    fields.map_or_else(|| event.clone(), |fields| fields.with(&[("error", Some(error))]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{BatchBuilder, Kind};

    fn text(starting_after: Option<u64>) -> String {
        let mut batch = BatchBuilder::default();
        for event in [
            r#"{"type":"response.created","sequence_number":0}"#,
            r#"{"type":"response.metadata","sequence_number":1}"#,
            r#"{"type":"response.output_text.delta","sequence_number":2,"delta":"x"}"#,
        ] {
            batch.push(Kind::Text, event.as_bytes());
        }
        let bytes = Writer { left_out: 0, starting_after }.text(&batch.finish());
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn events_that_are_left_out_leave_no_gap_in_the_numbers() {
        assert_eq!(
            text(None),
            "event: response.created\n\
             data: {\"type\":\"response.created\",\"sequence_number\":0}\n\n\
             event: response.output_text.delta\n\
             data: {\"sequence_number\":1,\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n"
        );
    }

    #[test]
    fn a_resumed_stream_has_the_same_numbers_and_only_the_rest() {
        let whole = text(None);
        let rest = whole.split_once("\n\n").unwrap().1;
        assert_eq!(text(Some(0)), rest);
        assert_eq!(text(Some(1)), "");
    }
}
