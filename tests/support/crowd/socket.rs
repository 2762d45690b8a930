//! Clients with a WebSocket.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    Failure, Hidden, LADDER, Recorder,
    notes::{Notes, Step, failure},
};
use crate::support::{
    ALICE, Received, Ws,
    responses::{create, output_text, user},
};

/// What makes Codex tell all on a new socket.
const ANEW: [&str; 2] = ["previous_response_not_found", "websocket_connection_limit_reached"];

/// One conversation.
pub struct Socket {
    url: String,
    base: String,
    notes: Notes,
    /// Whether it tells its history to a new socket, or trusts the ring to know it.
    full: bool,
    ws: Option<Ws>,
    previous: Option<String>,
    items: Vec<Value>,
    pub hidden: Hidden,
}

/// How one attempt ended that did not succeed.
enum Fault {
    /// Worth another attempt, after this pause if not the ladder's.
    Again(String, Option<Duration>),
    Final(Failure),
}

impl Socket {
    pub fn new(url: &str, session: &str, full: bool, recorder: &Recorder) -> Self {
        Self {
            url: format!("{url}/v1/responses"),
            base: session.to_owned(),
            notes: Notes::new(recorder, session),
            full,
            ws: None,
            previous: None,
            items: Vec::new(),
            hidden: Hidden::default(),
        }
    }

    pub async fn turn(&mut self, text: &str) -> Result<(), Failure> {
        self.notes.attempt = 0;
        self.items.push(user(text));
        let result = self.tries(text).await;
        if let Err(failure) = &result {
            self.items.pop();
            if matches!(failure, Failure::Forgotten) {
                self.begin_anew();
            }
        }
        self.notes.turn += 1;
        result
    }

    async fn tries(&mut self, text: &str) -> Result<(), Failure> {
        let mut why = String::new();
        for pause in LADDER {
            match self.attempt(text).await {
                Ok(()) => return Ok(()),
                Err(Fault::Final(failure)) => return Err(failure),
                Err(Fault::Again(what, advised)) => {
                    why = what;
                    sleep(advised.unwrap_or(pause)).await;
                }
            }
        }
        Err(Failure::Other(format!("gave up: {why}")))
    }

    /// Leaves the conversation for another one.
    pub fn begin_anew(&mut self) {
        let turn = self.notes.turn + 1;
        self.notes.session = format!("{}-from-turn-{turn}", self.base);
        (self.ws, self.previous) = (None, None);
        self.items.clear();
    }

    /// Notices what happened to the idle socket.
    fn look(&mut self) {
        let Some(socket) = &mut self.ws else { return };
        while let Some(received) = socket.next_now() {
            match received {
                Received::Ping(_) | Received::Pong(_) => {}
                Received::Text(text) => {
                    // Between turns an event corrupts clients: the checker is to see it.
                    self.notes.event(&serde_json::from_str(&text).unwrap());
                }
                _ => {
                    self.lost();
                    return;
                }
            }
        }
    }

    /// Forgets the socket.
    pub fn lost(&mut self) {
        self.ws = None;
        if self.full {
            self.previous = None;
        }
    }

    async fn connect(&mut self) -> Result<(), Fault> {
        self.look();
        if self.ws.is_some() {
            return Ok(());
        }
        let session = self.notes.session.clone();
        let headers = [ALICE, ("session-id", session.as_str()), ("thread-id", session.as_str())];
        match Ws::connect(&self.url, &headers).await {
            Ok(socket) => {
                self.notes.attached(Some(socket.header("ringspan-epoch")), false);
                self.ws = Some(socket);
                self.hidden.reconnects += usize::from(self.notes.turn > 0);
                Ok(())
            }
            Err(refused) => {
                let wait = refused.retry_after();
                self.hidden.told_to_wait += usize::from(wait.is_some());
                let what = format!("upgrade refused: {} {}", refused.status, refused.body);
                Err(Fault::Again(what, wait.map(Duration::from_secs)))
            }
        }
    }

    async fn attempt(&mut self, text: &str) -> Result<(), Fault> {
        self.connect().await?;
        let input = match self.previous {
            Some(_) => &self.items[self.items.len() - 1..],
            None => &self.items[..],
        };
        let event = create(input, self.previous.as_deref());
        self.notes.sent(text, false);
        let result = self.run(&event).await;
        self.notes.attempt += 1;
        result
    }

    async fn run(&mut self, event: &Value) -> Result<(), Fault> {
        let Some(socket) = &mut self.ws else { unreachable!("it was just connected") };
        let mut seen = 0;
        let mut next = match socket.send(event.to_string().into()).await {
            Ok(()) => socket.data().await,
            Err(error) => Received::Lost(error),
        };
        loop {
            let Received::Text(text) = next else {
                self.notes.cut(format!("{next:?} after {seen} events"));
                self.lost();
                self.hidden.resent += usize::from(seen == 0);
                self.hidden.restarted += usize::from(seen > 0);
                return Err(Fault::Again(format!("cut after {seen} events: {next:?}"), None));
            };
            let event: Value = serde_json::from_str(&text).unwrap();
            seen += usize::from(event["type"] != "keepalive");
            match self.notes.event(&event) {
                Step::More => {}
                Step::Completed(response) => {
                    self.previous = response["id"].as_str().map(str::to_owned);
                    self.items.push(json!({
                        "type": "message", "role": "assistant",
                        "content": [{ "type": "output_text", "text": output_text(&response) }],
                    }));
                    return Ok(());
                }
                Step::Failed { code, what, .. } if self.full && ANEW.contains(&code.as_str()) => {
                    self.lost();
                    self.hidden.resent += usize::from(seen == 1);
                    self.hidden.restarted += usize::from(seen > 1);
                    return Err(Fault::Again(what, Some(Duration::ZERO)));
                }
                Step::Failed { status: 503 | 504 | 429, what, .. } => {
                    self.hidden.told_to_wait += 1;
                    return Err(Fault::Again(what, Some(Duration::from_secs(1))));
                }
                Step::Failed { code, what, .. } => {
                    return Err(Fault::Final(failure(&code, what)));
                }
            }
            next = socket.data().await;
        }
    }
}
