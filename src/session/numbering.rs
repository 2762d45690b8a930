//! The numbers of a turn's events. They are fixed where it was asked for and stand in its log:
//! over WebSocket they are the upstream's own; over HTTP, where some events are left out, those
//! that remain are numbered without a gap. Whoever resumes the turn, by whatever way, then
//! counts as its client did. Pure.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{ClientKind, event::LAST_SEQUENCE, fields::Fields};
use crate::wire::{Batch, BatchBuilder, Message};

/// Events that the API sends over WebSocket only; over HTTP they are headers, and the SDKs'
/// stream helpers fail on them.
const WEBSOCKET_ONLY: [&str; 3] =
    ["response.metadata", "codex.rate_limits", "responsesapi.websocket_timing"];

/// Whether events of this type are sent over WebSocket only.
#[must_use]
pub fn is_websocket_only(kind: &str) -> bool {
    WEBSOCKET_ONLY.contains(&kind)
}

/// How the events of one turn are numbered.
#[derive(Debug)]
pub(super) enum Numbering {
    Upstreams,
    WithoutGaps {
        /// Numbered events left out so far.
        left_out: u64,
    },
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    r#type: Cow<'a, str>,
    sequence_number: Option<u64>,
    /// Unread: only the end of a lost turn names a number there.
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

impl Numbering {
    /// Of a turn that such a client asked for.
    pub(super) fn of(kind: ClientKind) -> Self {
        match kind {
            ClientKind::WebSocket => Self::Upstreams,
            ClientKind::Http => Self::WithoutGaps { left_out: 0 },
        }
    }

    /// What of these events goes into the turn's log, as it is numbered there; None if nothing
    /// of them does.
    pub(super) fn apply(&mut self, batch: Batch) -> Option<Batch> {
        let Self::WithoutGaps { left_out } = self else { return Some(batch) };
        let named = |name: &&str| memchr::memmem::find(batch.bytes(), name.as_bytes()).is_some();
        // The ordinary case: looking for the words is cheaper than reading JSON.
        if *left_out == 0 && !WEBSOCKET_ONLY.iter().any(named) {
            return Some(batch);
        }
        let mut kept = BatchBuilder::default();
        for message in batch.messages() {
            let Ok(head) = serde_json::from_slice::<Head<'_>>(&message.payload) else {
                kept.push(message.kind, &message.payload);
                continue;
            };
            if is_websocket_only(&head.r#type) {
                *left_out += u64::from(head.sequence_number.is_some());
                continue;
            }
            if head.r#type == "response.created" {
                // A steered response's successor, or a second run, counts from its own beginning.
                *left_out = head.sequence_number.map_or(*left_out, |first| first.min(*left_out));
            }
            let lessened = match (head.sequence_number, head.error) {
                _ if *left_out == 0 => None,
                (Some(number), _) => renumbered(&message, number.saturating_sub(*left_out)),
                (None, Some(error)) => lost(&message, error, *left_out),
                (None, None) => None,
            };
            kept.push(message.kind, lessened.as_deref().unwrap_or(&message.payload));
        }
        Some(kept.finish()).filter(|kept| !kept.is_empty())
    }
}

fn renumbered(message: &Message, number: u64) -> Option<bytes::Bytes> {
    let number = number.to_string();
    let fields = Fields::parse(&message.payload)?;
    Some(fields.with(&[("sequence_number", Some(number.as_bytes()))]))
}

/// The end of a lost turn, which names the upstream's number of its last event.
fn lost(message: &Message, error: &RawValue, left_out: u64) -> Option<bytes::Bytes> {
    let error = Fields::parse(error.get().as_bytes())?;
    let last: u64 = error.get(LAST_SEQUENCE)?;
    let last = last.saturating_sub(left_out).to_string();
    let error = error.with(&[(LAST_SEQUENCE, Some(last.as_bytes()))]);
    Some(Fields::parse(&message.payload)?.with(&[("error", Some(&error[..]))]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Kind;

    fn batch(events: &[&str]) -> Batch {
        let mut batch = BatchBuilder::default();
        for event in events {
            batch.push(Kind::Text, event.as_bytes());
        }
        batch.finish()
    }

    fn texts(batch: &Batch) -> Vec<String> {
        batch.messages().map(|m| String::from_utf8(m.payload.to_vec()).unwrap()).collect()
    }

    const CREATED: &str = r#"{"type":"response.created","sequence_number":0}"#;
    const METADATA: &str = r#"{"type":"response.metadata","sequence_number":1}"#;
    const DELTA: &str = r#"{"type":"response.output_text.delta","sequence_number":2,"delta":"x"}"#;

    #[test]
    fn over_http_events_that_are_left_out_leave_no_gap_in_the_numbers() {
        let mut numbering = Numbering::of(ClientKind::Http);
        assert_eq!(texts(&numbering.apply(batch(&[CREATED])).unwrap()), [CREATED]);
        assert_eq!(numbering.apply(batch(&[METADATA])), None, "nothing to tell");
        let delta = r#"{"sequence_number":1,"type":"response.output_text.delta","delta":"x"}"#;
        assert_eq!(texts(&numbering.apply(batch(&[DELTA])).unwrap()), [delta]);

        let mut numbering = Numbering::of(ClientKind::Http);
        let told = numbering.apply(batch(&[CREATED, METADATA, DELTA])).unwrap();
        assert_eq!(texts(&told), [CREATED, delta], "the same in one batch");
    }

    #[test]
    fn the_end_of_a_lost_turn_names_the_number_under_which_its_last_event_was_told() {
        let mut numbering = Numbering::of(ClientKind::Http);
        assert!(numbering.apply(batch(&[CREATED, METADATA, DELTA])).is_some());
        let end = r#"{"type":"error","error":{"code":"x","last_sequence_number":2}}"#;
        let told = numbering.apply(batch(&[end])).unwrap();
        let told: serde_json::Value = serde_json::from_str(&texts(&told)[0]).unwrap();
        assert_eq!(told["error"]["last_sequence_number"], 1);
        let other = r#"{"type":"error","error":"text"}"#;
        assert_eq!(texts(&numbering.apply(batch(&[other])).unwrap()), [other]);
    }

    #[test]
    fn a_second_response_of_a_turn_counts_from_its_own_beginning() {
        let mut numbering = Numbering::of(ClientKind::Http);
        let told = numbering.apply(batch(&[CREATED, METADATA, CREATED])).unwrap();
        assert_eq!(texts(&told), [CREATED, CREATED]);
        let next = r#"{"type":"response.in_progress","sequence_number":1}"#;
        assert_eq!(texts(&numbering.apply(batch(&[next])).unwrap()), [next]);
    }

    #[test]
    fn an_event_without_a_number_that_is_left_out_moves_no_number() {
        let mut numbering = Numbering::of(ClientKind::Http);
        let limits = r#"{"type":"codex.rate_limits","plan":"x"}"#;
        let text = r#"{"type":"response.output_text.delta","delta":"codex.rate_limits"}"#;
        let told = numbering.apply(batch(&[limits, text, DELTA])).unwrap();
        assert_eq!(texts(&told), [text, DELTA]);
    }

    #[test]
    fn over_websocket_nothing_is_left_out_and_the_numbers_are_the_upstreams() {
        let all = batch(&[CREATED, METADATA, DELTA]);
        assert_eq!(Numbering::of(ClientKind::WebSocket).apply(all.clone()), Some(all));
    }
}
