//! What ringspan reads of Responses events: names and ids, never content. Pure.

mod create;

use std::borrow::Cow;

use bytes::Bytes;
pub use create::{Create, items_act_nowhere, may_bring_tools};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::fields::Fields;
use crate::{
    config::blames_endpoint,
    error::{Code, Error},
    store::TurnKey,
    wire::{Batch, Kind, Message},
};

/// A client's event, as far as routing needs it.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientEvent {
    Create(Create),
    /// `response.interrupt`, `response.steer`: meant for a response that is running.
    Control {
        lane: Option<String>,
        response_id: Option<String>,
        /// It brings input of its own.
        steers: bool,
    },
    /// Ours, from an edge whose client asks for the events of a response again.
    Resume {
        response_id: String,
    },
    /// A type this build does not know.
    Other {
        lane: Option<String>,
    },
}

/// Type of the event that asks for a response's events once more, from their start.
const RESUME: &str = "ringspan.resume";

/// The event that asks a session for a response's events once more.
#[must_use]
pub fn resume_event(response_id: &str) -> Message {
    let event = serde_json::json!({ "type": RESUME, "response_id": response_id });
    Message::text(Bytes::from(event.to_string()))
}

/// Longest lane name, and its letters, as the API documents them.
const MAX_LANE: usize = 256;

impl ClientEvent {
    /// Reads the head of a client's message.
    ///
    /// # Errors
    /// `invalid_request` for what is not a JSON object, `invalid_stream_id`.
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        let bad = || {
            let text = "the message is not a JSON object with a string \"type\"";
            Error::new(Code::InvalidRequest, text)
        };
        let fields = Fields::parse(payload).ok_or_else(bad)?;
        let kind: String = fields.get("type").ok_or_else(bad)?;
        let lane = match fields.raw("stream_id") {
            None | Some("null") => None,
            Some(_) => {
                let lane = fields.get::<String>("stream_id").filter(|lane| is_lane(lane));
                let text = "stream_id must be 1 to 256 of A-Z a-z 0-9 _ . -";
                let bad = || Error::new(Code::InvalidStreamId, text).param("stream_id");
                Some(lane.ok_or_else(bad)?)
            }
        };
        Ok(match kind.as_str() {
            "response.create" => Self::Create(Create::read(lane, &fields)?),
            "response.interrupt" | "response.steer" => {
                let response_id =
                    fields.get("response_id").or_else(|| fields.get("previous_response_id"));
                Self::Control { lane, response_id, steers: kind == "response.steer" }
            }
            RESUME => {
                let text = "response_id is needed";
                let missing = || Error::new(Code::InvalidRequest, text).param("response_id");
                Self::Resume { response_id: fields.get("response_id").ok_or_else(missing)? }
            }
            _ => Self::Other { lane },
        })
    }
}

/// Longest idempotency key, in bytes.
const MAX_KEY: usize = 512;

/// What is kept of an idempotency key.
///
/// # Errors
/// `invalid_request` for an empty or overlong one.
pub fn turn_key(text: &str) -> Result<TurnKey, Error> {
    if text.is_empty() || text.len() > MAX_KEY {
        let text = "an idempotency key is 1 to 512 bytes long";
        return Err(Error::new(Code::InvalidRequest, text).param("idempotency_key"));
    }
    Ok(TurnKey::of(text))
}

fn is_lane(text: &str) -> bool {
    (1..=MAX_LANE).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// How an upstream event bears on its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `response.created`.
    Created,
    /// Anything in between.
    Running,
    /// Of the connection and no response: `codex.rate_limits` and the like.
    Connection,
    /// `response.completed`.
    Completed,
    /// `response.failed`.
    Failed,
    /// `response.incomplete`.
    Incomplete,
    /// `response.incomplete` because it was steered: the upstream goes on by itself, with a
    /// new response for the same create.
    Steered,
    /// `response.output_item.done`.
    ItemDone,
    /// An `error` event: the request ended without a response.
    Error,
}

impl Stage {
    /// Whether it speaks of a response.
    #[must_use]
    pub const fn is_of_response(self) -> bool {
        !matches!(self, Self::Error | Self::Connection)
    }

    /// Whether nothing of the turn follows.
    #[must_use]
    pub const fn is_last(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Incomplete | Self::Error)
    }
}

fn is_steered(response: Option<&ResponseHead<'_>>) -> bool {
    let details = response.and_then(|response| response.incomplete_details.as_ref());
    details.and_then(|details| details.reason.as_deref()) == Some("steered")
}

/// An upstream event, as far as routing needs it.
#[derive(Debug, PartialEq, Eq)]
pub struct ServerEvent {
    pub stage: Stage,
    pub lane: Option<String>,
    /// The response it speaks of, if it says so.
    pub response_id: Option<String>,
    /// `sequence_number`.
    pub sequence: Option<u64>,
    /// `error.code`.
    pub error_code: Option<String>,
    /// `status`, of an error or a failure.
    pub status: Option<u16>,
    /// `response.error.code`.
    pub failure: Option<String>,
}

/// What the end of a turn says of the endpoint that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Sound,
    AtFault,
    /// The request was at fault, or it cannot be told.
    Open,
}

/// Codes of a `response.failed` that are the endpoint's fault. The last is a matter of the
/// credential.
const SERVER_FAULTS: [&str; 2] = ["server_error", "server_is_overloaded"];
const RATE_LIMIT: &str = "rate_limit_exceeded";

#[derive(Deserialize)]
struct ServerHead<'a> {
    #[serde(borrow, default)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    stream_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    response_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    response: Option<ResponseHead<'a>>,
    sequence_number: Option<u64>,
    #[serde(borrow)]
    error: Option<ErrorHead<'a>>,
    /// Unread: only of an error does it matter what it is.
    #[serde(borrow)]
    status: Option<&'a RawValue>,
}

impl<'a> ServerHead<'a> {
    /// Without the fields that are of another type than they should be: what the event says
    /// besides still counts, and a turn whose end is not understood would hang.
    fn read_leniently(fields: &Fields<'a>) -> Self {
        let object = |name| fields.raw(name).and_then(|raw| Fields::parse(raw.as_bytes()));
        let response = object("response").map(|response| ResponseHead {
            id: response.get("id"),
            incomplete_details: response.get("incomplete_details"),
            error: response.get("error"),
        });
        let code = |error: Fields<'a>| -> Option<Value> { error.get("code") };
        let code = object("error").and_then(code).and_then(|code| match code {
            Value::String(text) => Some(text.into()),
            Value::Number(number) => Some(number.to_string().into()),
            _ => None,
        });
        Self {
            r#type: fields.get("type").unwrap_or_default(),
            stream_id: fields.get("stream_id"),
            response_id: fields.get("response_id"),
            response,
            sequence_number: fields.get("sequence_number"),
            error: Some(ErrorHead { code }),
            status: fields.get("status"),
        }
    }
}

#[derive(Deserialize)]
struct ResponseHead<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    incomplete_details: Option<IncompleteHead<'a>>,
    /// Unread: only of a failed one does it matter what it is.
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct IncompleteHead<'a> {
    #[serde(borrow)]
    reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct ErrorHead<'a> {
    #[serde(borrow)]
    code: Option<Cow<'a, str>>,
}

impl ServerEvent {
    /// Reads the head of an upstream message. None for what is not an event: an upstream
    /// that sends such a thing is not believed.
    #[must_use]
    pub fn parse(message: &Message) -> Option<Self> {
        // A list would be read like an object whose fields stand in our order.
        let first = message.payload.iter().find(|byte| !byte.is_ascii_whitespace());
        if message.kind != Kind::Text || first != Some(&b'{') {
            return None;
        }
        let head = match serde_json::from_slice(&message.payload) {
            Ok(head) => head,
            Err(_) => ServerHead::read_leniently(&Fields::parse(&message.payload)?),
        };
        let stage = match &*head.r#type {
            "" => return None,
            "response.created" => Stage::Created,
            "response.incomplete" if is_steered(head.response.as_ref()) => Stage::Steered,
            "response.completed" => Stage::Completed,
            "response.failed" => Stage::Failed,
            "response.incomplete" => Stage::Incomplete,
            "response.output_item.done" => Stage::ItemDone,
            "error" => Stage::Error,
            "response.metadata" => Stage::Connection,
            kind if !kind.starts_with("response.") => Stage::Connection,
            _ => Stage::Running,
        };
        let bad = matches!(stage, Stage::Error | Stage::Failed);
        let failure = head.response.as_ref().and_then(|response| response.error);
        let failure = failure.filter(|_| bad);
        let failure: Option<ErrorHead<'_>> =
            failure.and_then(|error| serde_json::from_str(error.get()).ok());
        let status = head.status.filter(|_| bad);
        let response_id = head.response.and_then(|response| response.id).or(head.response_id);
        Some(Self {
            stage,
            lane: head.stream_id.map(Cow::into_owned),
            response_id: response_id.map(Cow::into_owned),
            sequence: head.sequence_number,
            error_code: head.error.and_then(|error| error.code).map(Cow::into_owned),
            status: status.and_then(|status| status.get().parse().ok()),
            failure: failure.and_then(|error| error.code).map(Cow::into_owned),
        })
    }

    /// An error that may answer anything a client sent: it is at fault, no response is named, and
    /// it is none of those that only a create gets, or a connection.
    #[must_use]
    pub fn blames_a_request(&self) -> bool {
        const OTHERS: [&str; 2] =
            ["previous_response_not_found", "websocket_connection_limit_reached"];
        self.stage == Stage::Error
            && self.response_id.is_none()
            && self.status.is_some_and(|status| matches!(status, 400 | 404 | 405 | 422))
            && !self.error_code.as_deref().is_some_and(|code| OTHERS.contains(&code))
    }

    /// What it says of the endpoint that gave it; `operators`: with the operator's credential.
    #[must_use]
    pub fn verdict(&self, operators: bool) -> Verdict {
        let is_fault =
            |code: &str| SERVER_FAULTS.contains(&code) || operators && code == RATE_LIMIT;
        match self.stage {
            Stage::Completed | Stage::Incomplete => Verdict::Sound,
            Stage::Error | Stage::Failed => {
                let by_code = self.failure.as_deref().is_some_and(is_fault);
                let by_status = self.status.is_some_and(|s| blames_endpoint(s, operators));
                if by_code || by_status { Verdict::AtFault } else { Verdict::Open }
            }
            _ => Verdict::Open,
        }
    }
}

/// The output item that a `response.output_item.done` brings.
#[must_use]
pub fn done_item(message: &Message) -> Option<String> {
    Fields::parse(&message.payload)?.raw("item").map(str::to_owned)
}

/// An `error` event as clients of the Responses WebSocket know it. `status` is always
/// there: Codex ignores an error without one until its idle time-out.
#[must_use]
pub fn error_event(error: &Error, lane: Option<&str>) -> Message {
    error_event_with(error.code.status(), &error.body(), error.retry_after(), lane)
}

/// Field of an `outcome_unknown`: the number of the last event that its client was sent.
pub(super) const LAST_SEQUENCE: &str = "last_sequence_number";

/// The end of a turn of which nobody knows whether it finished. It says how far the client
/// was told of it: the response, and the number of the last event that it is sent.
#[must_use]
pub fn unknown_event(
    error: &Error,
    lane: Option<&str>,
    response_id: Option<&str>,
    last_sequence: Option<u64>,
) -> Message {
    let mut body = error.body();
    if let Some(id) = response_id {
        body["response_id"] = id.into();
    }
    if let Some(last) = last_sequence {
        body[LAST_SEQUENCE] = last.into();
    }
    error_event_with(error.code.status(), &body, error.retry_after(), lane)
}

/// Whether a batch may carry such numbers: what is of the connection alone has none.
#[must_use]
pub fn is_numbered(batch: &Batch) -> bool {
    memchr::memmem::find(batch.bytes(), b"\"sequence_number\"").is_some()
}

/// The number of the last event of a lane in a batch that carries one.
#[must_use]
pub fn last_sequence(batch: &Batch, lane: Option<&str>) -> Option<u64> {
    let events = batch.messages().filter_map(|message| ServerEvent::parse(&message));
    events.filter(|event| event.lane.as_deref() == lane).filter_map(|event| event.sequence).last()
}

/// What is told of a `response.steer` whose response has ended: its input was not taken.
#[must_use]
pub fn steer_failed(steer: &[u8], response_id: Option<&str>) -> Message {
    let fields = Fields::parse(steer);
    let input: Option<Value> = fields.and_then(|fields| fields.get("input"));
    let event = serde_json::json!({
        "type": "response.steer.failed",
        "sequence_number": 0,
        "steer": { "input": input, "previous_response_id": response_id },
        "error": {
            "type": "invalid_request_error",
            "code": "response_not_active",
            "message": "the response that this was meant for does not run any more",
        },
    });
    Message::text(Bytes::from(event.to_string()))
}

/// The same around an upstream's own error body.
#[must_use]
pub fn error_event_with(
    status: u16,
    body: &serde_json::Value,
    retry_after: Option<std::time::Duration>,
    lane: Option<&str>,
) -> Message {
    let mut event = serde_json::json!({ "type": "error", "status": status, "error": body });
    if let Some(lane) = lane {
        event["stream_id"] = lane.into();
    }
    if let Some(after) = retry_after {
        event["headers"] = serde_json::json!({ "retry-after": after.as_secs().to_string() });
    }
    Message::text(Bytes::from(event.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(json: &str) -> Create {
        match ClientEvent::parse(json.as_bytes()) {
            Ok(ClientEvent::Create(create)) => create,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_resend_has_the_same_fingerprint_and_another_input_has_not() {
        let a = create(r#"{"type":"response.create","input":[{"a":1}],"client_metadata":{"t":1}}"#);
        let b = create(r#"{"type":"response.create","client_metadata":{"t":2},"input":[{"a":1}]}"#);
        let c = create(r#"{"type":"response.create","input":[{"a":2}]}"#);
        assert_eq!(a.fingerprint, b.fingerprint);
        assert_ne!(a.fingerprint, c.fingerprint);
    }

    #[test]
    fn lanes_are_checked_and_everything_else_is_an_object() {
        for (text, code) in [
            ("nonsense", Code::InvalidRequest),
            ("[]", Code::InvalidRequest),
            (r#"{"type":1}"#, Code::InvalidRequest),
            (r#"{"type":"response.create","stream_id":""}"#, Code::InvalidStreamId),
            (r#"{"type":"response.create","stream_id":"a b"}"#, Code::InvalidStreamId),
        ] {
            assert_eq!(ClientEvent::parse(text.as_bytes()).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn an_error_event_always_carries_its_status() {
        let error = Error::new(Code::OwnerMoving, "later");
        let event: serde_json::Value =
            serde_json::from_slice(&error_event(&error, Some("l")).payload).unwrap();
        assert_eq!(event["status"], 503);
        assert_eq!(event["stream_id"], "l");
        assert_eq!(event["error"]["code"], "owner_moving");
        assert_eq!(event["headers"]["retry-after"], "1");
    }

    #[test]
    fn upstream_events_tell_their_stage_and_response() {
        let event = |json: &'static str| ServerEvent::parse(&Message::text(json));
        let created =
            event(r#"{"type":"response.created","response":{"id":"r1","x":[1]}}"#).unwrap();
        assert_eq!((created.stage, created.response_id.as_deref()), (Stage::Created, Some("r1")));
        assert_eq!(event("42"), None);
        assert_eq!(event(r#"["error",null,null,null,null,{"code":"x"},400]"#), None);
        assert_eq!(event(r#"{"a":1}"#), None);
    }

    #[test]
    fn an_event_with_a_field_of_another_type_still_says_the_rest() {
        let event = |json: &'static str| ServerEvent::parse(&Message::text(json)).unwrap();
        for (json, code) in [
            (r#"{"type":"error","status":400,"stream_id":"x","error":{"code":400}}"#, Some("400")),
            (r#"{"type":"error","status":400,"stream_id":"x","error":"text"}"#, None),
            (r#"{"type":"error","status":400,"stream_id":"x","error":{"code":[]}}"#, None),
            (r#"{"type":"error","status":400,"stream_id":"x","sequence_number":"1"}"#, None),
        ] {
            let event = event(json);
            assert_eq!((event.stage, event.lane.as_deref()), (Stage::Error, Some("x")), "{json}");
            assert_eq!((event.status, event.error_code.as_deref()), (Some(400), code), "{json}");
        }
        let json = r#"{"type":"response.failed","response":{"id":"r","error":{"code":500},"incomplete_details":"x"}}"#;
        assert_eq!(event(json).response_id.as_deref(), Some("r"));
        assert_eq!(event(r#"{"type":"response.completed","response":"r"}"#).response_id, None);
        assert_eq!(ServerEvent::parse(&Message::text(r#"{"type":1,"error":"x"}"#)), None);
    }

    #[test]
    fn an_endpoint_is_blamed_for_its_own_failures_and_for_the_operators_credential_only() {
        use Verdict::{AtFault, Open, Sound};
        let cases = [
            (r#"{"type":"response.completed","response":{"id":"r"}}"#, Sound, Sound),
            (r#"{"type":"response.incomplete","response":{"id":"r"}}"#, Sound, Sound),
            (r#"{"type":"error","status":500,"error":{"code":"x"}}"#, AtFault, AtFault),
            (r#"{"type":"error","status":429,"error":{"code":"x"}}"#, Open, AtFault),
            (r#"{"type":"error","status":401,"error":{"code":"x"}}"#, Open, AtFault),
            (r#"{"type":"error","status":400,"error":{"code":"x"}}"#, Open, Open),
            (r#"{"type":"error","error":{"code":"server_error"}}"#, Open, Open),
            (r#"{"type":"error","status":"500","error":{"code":"x"}}"#, Open, Open),
            (r#"{"type":"response.failed","response":{"id":"r","error":"x"}}"#, Open, Open),
            (
                r#"{"type":"response.failed","response":{"id":"r","error":{"code":"server_error"}}}"#,
                AtFault,
                AtFault,
            ),
            (
                r#"{"type":"response.failed","response":{"id":"r","error":{"code":"rate_limit_exceeded"}}}"#,
                Open,
                AtFault,
            ),
            (
                r#"{"type":"response.failed","response":{"id":"r","error":{"code":"invalid_prompt"}}}"#,
                Open,
                Open,
            ),
        ];
        for (text, clients, operators) in cases {
            let event = ServerEvent::parse(&Message::text(text)).unwrap();
            assert_eq!(event.verdict(false), clients, "{text}");
            assert_eq!(event.verdict(true), operators, "{text}");
        }
    }
}
