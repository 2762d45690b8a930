//! What clients write down.

use std::{sync::Arc, time::Instant};

use parking_lot::Mutex;
use serde_json::Value;

use super::Failure;
use crate::support::{
    checker::{COMPLETED, Proof, Seen, What},
    responses::output_text,
};

/// The one book of a crowd.
#[derive(Clone)]
pub struct Recorder {
    began: Instant,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { began: Instant::now(), seen: Arc::default() }
    }
}

impl Recorder {
    /// All that was written so far.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock())
    }
}

/// One client's pen.
pub struct Notes {
    recorder: Recorder,
    pub session: String,
    pub turn: usize,
    pub attempt: usize,
    /// The response of this attempt, once it is known, and its deltas.
    response: String,
    streamed: String,
}

/// What an event means to its client.
pub enum Step {
    /// More will come.
    More,
    /// The final response.
    Completed(Value),
    /// A response that did not complete, or an error: its status, 0 where there is none.
    Failed { status: u64, code: String, what: String },
}

impl Notes {
    pub fn new(recorder: &Recorder, session: &str) -> Self {
        Self {
            recorder: recorder.clone(),
            session: session.to_owned(),
            turn: 0,
            attempt: 0,
            response: String::new(),
            streamed: String::new(),
        }
    }

    pub fn write(&mut self, what: What) {
        let at = u64::try_from(self.recorder.began.elapsed().as_micros()).unwrap();
        let Self { session, turn, attempt, .. } = self;
        let seen = Seen { at, session: session.clone(), turn: *turn, attempt: *attempt, what };
        self.recorder.seen.lock().push(seen);
    }

    /// Begins an attempt of the turn: its request goes out.
    pub fn sent(&mut self, text: &str, stored: bool) {
        self.response.clear();
        self.streamed.clear();
        self.write(What::Sent { text: text.to_owned(), stored });
    }

    /// The connection told its epoch.
    pub fn attached(&mut self, epoch: Option<&str>, gap: bool) {
        if let Some(epoch) = epoch.and_then(|epoch| epoch.parse().ok()) {
            self.write(What::Attached { epoch, gap });
        }
    }

    /// Writes down an event of a stream.
    pub fn event(&mut self, event: &Value) -> Step {
        let kind = event["type"].as_str().unwrap_or_default();
        match kind {
            "keepalive" => Step::More,
            "error" => self.error(event["status"].as_u64().unwrap_or(0), event),
            "response.completed" | "response.failed" | "response.incomplete" => {
                let sequence = event["sequence_number"].as_u64();
                self.ended(&event["response"], sequence)
            }
            _ => {
                if let Some(delta) = event["delta"].as_str() {
                    self.streamed.push_str(delta);
                }
                // Only the first events of a response name it.
                if let Some(id) = event["response"]["id"].as_str() {
                    id.clone_into(&mut self.response);
                }
                let response = self.response.clone();
                if let Some(sequence) = event["sequence_number"].as_u64() {
                    self.write(What::Event { response, sequence });
                }
                Step::More
            }
        }
    }

    /// Writes down a final response; `sequence` is None if it was the whole answer.
    pub fn ended(&mut self, response: &Value, sequence: Option<u64>) -> Step {
        let text = output_text(response);
        let whole = sequence.is_none() || self.streamed == text;
        let digest = text.split("of conversation ").nth(1).and_then(|rest| rest.split(':').next());
        let proof = digest.map(|digest| Proof { digest: digest.to_owned(), whole });
        let id = response["id"].as_str().unwrap_or_default().to_owned();
        let outcome = outcome(response);
        self.write(What::Ended { response: id, sequence, outcome: outcome.clone(), proof });
        if outcome == COMPLETED {
            return Step::Completed(response.clone());
        }
        Step::Failed { status: 0, code: String::new(), what: outcome }
    }

    /// Writes down an error.
    pub fn error(&mut self, status: u64, error: &Value) -> Step {
        let field = |name: &str| error["error"][name].as_str().unwrap_or_default().to_owned();
        let (code, message) = (field("code"), field("message"));
        self.write(What::Error { code: code.clone(), message });
        Step::Failed { status, code, what: error.to_string() }
    }

    /// Writes down that the connection ended in mid-turn.
    pub fn cut(&mut self, how: impl Into<String>) {
        self.write(What::Cut { how: how.into() });
    }
}

/// How a response ended, in the words of the upstream's history.
fn outcome(response: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let status = text(&response["status"]);
    match status.as_str() {
        "failed" => format!("failed:{}", text(&response["error"]["code"])),
        "incomplete" => format!("incomplete:{}", text(&response["incomplete_details"]["reason"])),
        _ => status,
    }
}

/// The failure that an error stands for.
pub fn failure(code: &str, what: String) -> Failure {
    match code {
        "outcome_unknown" => Failure::Unknown,
        "previous_response_not_found" => Failure::Forgotten,
        _ => Failure::Other(what),
    }
}
