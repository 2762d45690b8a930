//! Clients that ask by `POST`, with the retries of the SDKs.

use std::time::Duration;

use ::http::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    Failure, Hidden, LADDER, Recorder,
    notes::{Notes, Step, failure},
};
use crate::support::{
    ALICE, http,
    responses::{body, output_text, user},
};

/// One conversation.
pub struct Post {
    url: String,
    base: String,
    notes: Notes,
    /// The whole history each time and an answer as a stream; else the upstream keeps it.
    stream: bool,
    previous: Option<String>,
    items: Vec<Value>,
    pub hidden: Hidden,
}

/// How one attempt ended that did not succeed.
enum Fault {
    Again(String, Option<Duration>),
    Final(Failure),
}

impl Post {
    pub fn new(url: &str, session: &str, stream: bool, recorder: &Recorder) -> Self {
        Self {
            url: format!("{url}/v1/responses"),
            base: session.to_owned(),
            notes: Notes::new(recorder, session),
            stream,
            previous: None,
            items: Vec::new(),
            hidden: Hidden::default(),
        }
    }

    pub async fn turn(&mut self, text: &str) -> Result<(), Failure> {
        self.notes.attempt = 0;
        self.items.push(user(text));
        let result = self.tries(text).await;
        match &result {
            Ok(response) if self.stream => self.items.push(json!({
                "type": "message", "role": "assistant",
                "content": [{ "type": "output_text", "text": output_text(response) }],
            })),
            Ok(response) => {
                self.previous = response["id"].as_str().map(str::to_owned);
                self.items.clear();
            }
            Err(_) => drop(self.items.pop()),
        }
        self.notes.turn += 1;
        result.map(drop)
    }

    /// Leaves the conversation for another one.
    pub fn begin_anew(&mut self) {
        self.notes.session = format!("{}-from-turn-{}", self.base, self.notes.turn + 1);
        self.previous = None;
        self.items.clear();
    }

    async fn tries(&mut self, text: &str) -> Result<Value, Failure> {
        let mut why = String::new();
        for pause in LADDER {
            self.notes.sent(text, !self.stream);
            let result = self.attempt().await;
            self.notes.attempt += 1;
            match result {
                Ok(response) => return Ok(response),
                Err(Fault::Final(failure)) => return Err(failure),
                Err(Fault::Again(what, advised)) => {
                    why = what;
                    sleep(advised.unwrap_or(pause)).await;
                }
            }
        }
        Err(Failure::Other(format!("gave up: {why}")))
    }

    async fn attempt(&mut self) -> Result<Value, Fault> {
        let mut body = body(&self.items, self.previous.as_deref(), self.stream);
        body["store"] = (!self.stream).into();
        let session = self.notes.session.clone();
        let headers =
            [ALICE, ("session-id", session.as_str()), ("content-type", "application/json")];
        let answer = http::open(Method::POST, &self.url, &headers, body.to_string()).await;
        let mut answer = match answer {
            Ok(answer) => answer,
            // Connections that end without an answer are tried again by the SDKs.
            Err(error) => return Err(self.cut(error, 0)),
        };
        let epoch = answer.headers.get("ringspan-epoch").and_then(|epoch| epoch.to_str().ok());
        self.notes.attached(epoch, false);
        if answer.status != 200 || !self.stream {
            let status = answer.status.as_u16();
            let wait = http::retry_after(&answer.headers).map(Duration::from_secs);
            let answer = match answer.body().await {
                Ok(body) => body,
                Err(error) => return Err(self.cut(error, 0)),
            };
            let value: Value = serde_json::from_slice(&answer).unwrap_or_default();
            let step = if status == 200 {
                self.notes.ended(&value, None)
            } else {
                self.notes.error(status.into(), &value)
            };
            return self.judge(step, wait);
        }
        let mut seen = 0;
        loop {
            let event = match answer.event().await {
                Ok(Some(event)) => event,
                Ok(None) => return Err(self.cut("the end of the stream".to_owned(), seen)),
                Err(error) => return Err(self.cut(error, seen)),
            };
            seen += usize::from(event["type"] != "keepalive");
            match self.notes.event(&event) {
                Step::More => {}
                end => return self.judge(end, None),
            }
        }
    }

    fn judge(&mut self, step: Step, wait: Option<Duration>) -> Result<Value, Fault> {
        match step {
            Step::Completed(response) => Ok(response),
            Step::Failed { status: 429 | 503 | 504, what, .. } => {
                self.hidden.told_to_wait += 1;
                Err(Fault::Again(what, wait))
            }
            Step::Failed { code, what, .. } => Err(Fault::Final(failure(&code, what))),
            Step::More => unreachable!("an answer has an end"),
        }
    }

    fn cut(&mut self, how: String, seen: usize) -> Fault {
        self.notes.cut(format!("{how} after {seen} events"));
        self.hidden.resent += usize::from(seen == 0);
        self.hidden.restarted += usize::from(seen > 0);
        Fault::Again(how, None)
    }
}
