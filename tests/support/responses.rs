//! The Responses API as its clients speak it.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Received, Ws};

/// A user message.
pub fn user(text: &str) -> Value {
    json!({
        "type": "message", "role": "user",
        "content": [{ "type": "input_text", "text": text }],
    })
}

/// A `response.create` as Codex sends it.
pub fn create(input: &[Value], previous: Option<&str>) -> Value {
    let mut event = json!({
        "type": "response.create", "model": "gpt-5.5", "store": false, "stream": true,
        "input": input,
    });
    if let Some(previous) = previous {
        event["previous_response_id"] = previous.into();
    }
    event
}

/// The body of a `POST` for the same.
pub fn body(input: &[Value], previous: Option<&str>, stream: bool) -> Value {
    let mut body = create(input, previous);
    body.as_object_mut().unwrap().remove("type");
    body["stream"] = stream.into();
    body
}

/// What the sample says of a conversation of these user texts.
pub fn digest(texts: &[String]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(format!("u\u{1f}{text}\u{1e}"));
    }
    format!("{:x}", hash.finalize())[..16].to_owned()
}

/// Whether `answer` proves that exactly these user texts were seen.
pub fn proves(answer: &str, texts: &[String]) -> bool {
    answer.contains(&format!("turn {} of conversation {}:", texts.len(), digest(texts)))
}

/// The text of a response object.
pub fn output_text(response: &Value) -> String {
    let parts = response["output"].as_array().into_iter().flatten();
    let parts = parts.flat_map(|item| item["content"].as_array().cloned().unwrap_or_default());
    parts.filter_map(|part| part["text"].as_str().map(str::to_owned)).collect()
}

/// Whether nothing of the turn follows this event.
pub fn is_terminal(event: &Value) -> bool {
    let kind = event["type"].as_str().unwrap_or_default();
    matches!(kind, "response.completed" | "response.failed" | "response.incomplete" | "error")
}

/// The events of one turn.
#[derive(Debug, Default)]
pub struct Turn {
    pub events: Vec<Value>,
    /// How the connection ended in the middle of the turn.
    pub cut: Option<Received>,
}

impl Turn {
    /// Reads one turn from a socket on which no other runs. Keep-alives are not events of it.
    pub async fn read(socket: &mut Ws) -> Self {
        let mut turn = Self::default();
        loop {
            match socket.data().await {
                Received::Text(text) => turn.events.push(serde_json::from_str(&text).unwrap()),
                end => {
                    turn.cut = Some(end);
                    return turn;
                }
            }
            if turn.events.last().is_some_and(|event| event["type"] == "keepalive") {
                turn.events.pop();
            } else if turn.events.last().is_some_and(is_terminal) {
                return turn;
            }
        }
    }

    /// Sends `create` and reads its turn.
    pub async fn run(socket: &mut Ws, create: &Value) -> Self {
        socket.json(create).await;
        Self::read(socket).await
    }

    pub fn of(events: Vec<Value>) -> Self {
        Self { events, cut: None }
    }

    /// The last event.
    pub fn last(&self) -> &Value {
        self.events.last().unwrap_or(&Value::Null)
    }

    /// The id of the response that completed.
    pub fn id(&self) -> String {
        let last = self.last();
        assert_eq!(last["type"], "response.completed", "{:?} after {last}", self.cut);
        last["response"]["id"].as_str().unwrap().to_owned()
    }

    /// The streamed deltas, joined.
    pub fn streamed(&self) -> String {
        let deltas = self.events.iter().filter(|it| it["type"] == "response.output_text.delta");
        deltas.filter_map(|event| event["delta"].as_str()).collect()
    }

    /// Asserts that the turn is whole, in order, said once, and answers these user texts.
    pub fn assert_answers(&self, texts: &[String]) {
        self.id();
        let numbers: Vec<_> =
            self.events.iter().filter_map(|event| event["sequence_number"].as_u64()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "sequence numbers of the events: {numbers:?}");
        assert_eq!(self.events[0]["type"], "response.created");
        let text = output_text(&self.last()["response"]);
        assert_eq!(self.streamed(), text, "deltas and final text");
        assert!(proves(&text, texts), "{text:?} does not answer {texts:?}");
    }
}
