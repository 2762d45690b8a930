//! The events of one response, numbered, and the response object in them.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    Sample, conversation::Conversation, directives::Cut, history::CreateGuard,
    request::CreateRequest,
};

/// One server event.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// Its `type`, which SSE names beside the data.
    pub(super) kind: &'static str,
    pub(super) json: String,
}

/// What a turn hands to its connection.
pub(super) enum Out {
    Event(Event),
    /// The turn is over; nothing of it follows.
    Terminal(Box<Terminal>),
    /// End the connection in mid-turn.
    Cut(Cut),
}

/// The end of a turn.
pub(super) struct Terminal {
    /// The `stream_id` of the turn.
    pub(super) lane: Option<String>,
    /// The terminal event, and whatever a `[lie]` adds.
    pub(super) events: Vec<Event>,
    /// The final response object.
    pub(super) response: Value,
    /// What the connection remembers under the response's id; None after a failure.
    pub(super) remembered: Option<Conversation>,
    /// The create that answers steering text.
    pub(super) successor: Option<CreateRequest>,
    pub(super) guard: CreateGuard,
    /// What the history is to say of the turn.
    pub(super) outcome: String,
}

impl Terminal {
    /// Notes the outcome. Before it is sent, so that who has seen the terminal event finds it in the
    /// history; and only then, as the connection may end first.
    pub(super) fn note(&mut self) {
        self.guard.end(&self.outcome);
    }
}

/// The client is gone, or its connection was told to close.
pub(super) struct Gone;

/// Numbers events and sends them.
pub(super) struct Emitter {
    out: mpsc::Sender<Out>,
    sequence: u64,
    stream_id: Option<String>,
    /// `,"stream_id":"…"}`, or the closing brace alone.
    tail: String,
}

impl Emitter {
    pub(super) fn new(out: mpsc::Sender<Out>, stream_id: Option<String>) -> Self {
        let tail = match &stream_id {
            Some(id) => format!(",\"stream_id\":{}}}", Value::from(id.as_str())),
            None => "}".to_owned(),
        };
        Self { out, sequence: 0, stream_id, tail }
    }

    /// Resolves when nobody listens any more.
    pub(super) async fn closed(&self) {
        self.out.closed().await;
    }

    /// Numbers `fields` and makes them an event.
    pub(super) fn event(&mut self, kind: &'static str, mut fields: Value) -> Event {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.next_sequence().into();
        if let Some(stream_id) = &self.stream_id {
            fields["stream_id"] = stream_id.as_str().into();
        }
        Event { kind, json: fields.to_string() }
    }

    /// Sends an event.
    pub(super) async fn emit(&mut self, kind: &'static str, fields: Value) -> Result<(), Gone> {
        let event = self.event(kind, fields);
        self.send(Out::Event(event)).await
    }

    /// Sends a text delta: the event that there are many of, so written without a tree.
    pub(super) async fn delta(&mut self, item_id: &str, delta: &str) -> Result<(), Gone> {
        const KIND: &str = "response.output_text.delta";
        let sequence = self.next_sequence();
        let json = format!(
            "{{\"type\":\"{KIND}\",\"sequence_number\":{sequence},\"item_id\":\"{item_id}\",\
             \"output_index\":0,\"content_index\":0,\"delta\":{},\"logprobs\":[]{}",
            Value::from(delta),
            self.tail
        );
        self.send(Out::Event(Event { kind: KIND, json })).await
    }

    pub(super) async fn send(&self, out: Out) -> Result<(), Gone> {
        self.out.send(out).await.map_err(|_| Gone)
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence - 1
    }
}

/// An id in the form of the real ones: a prefix and 32 random hex digits.
pub(super) fn new_id(prefix: &str) -> String {
    format!("{prefix}_{:032x}", rand::random::<u128>())
}

/// A response that has just begun. `tools` and `instructions` are not echoed: with them each
/// event of a Codex turn would weigh 30 kB more.
pub(super) fn new_response(sample: &Sample, request: &CreateRequest, id: &str) -> Value {
    json!({
        "id": id,
        "object": "response",
        "created_at": sample.created_at(),
        "status": "in_progress",
        "background": false,
        "error": null,
        "incomplete_details": null,
        "instructions": null,
        "max_output_tokens": null,
        "max_tool_calls": null,
        "metadata": request.metadata.clone().unwrap_or_else(|| json!({})),
        "model": request.model.as_deref().unwrap_or(&sample.options.model),
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": { "effort": null, "summary": null },
        "service_tier": "default",
        "store": request.stores(),
        "temperature": request.temperature.unwrap_or(1.0),
        "text": { "format": { "type": "text" } },
        "tool_choice": request.tool_choice.clone().unwrap_or_else(|| json!("auto")),
        "tools": [],
        "top_logprobs": 0,
        "top_p": request.top_p.unwrap_or(1.0),
        "truncation": "disabled",
        "usage": null,
        "user": null,
    })
}

/// Token counts, at four bytes a token; what was known before the request counts as cached.
pub(super) fn usage(cached_bytes: u64, input_bytes: u64, output_bytes: u64) -> Value {
    let tokens = |bytes: u64| bytes.div_ceil(4);
    let (input, output) = (tokens(input_bytes), tokens(output_bytes));
    json!({
        "input_tokens": input,
        "input_tokens_details": { "cached_tokens": tokens(cached_bytes) },
        "output_tokens": output,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": input + output,
    })
}

/// A message item with the text it has so far.
pub(super) fn message(id: &str, status: &str, text: Option<&str>) -> Value {
    let content = text.map(text_part);
    json!({
        "id": id, "type": "message", "role": "assistant", "status": status,
        "content": content.as_slice(),
    })
}

/// The only content part of a message.
pub(super) fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}
