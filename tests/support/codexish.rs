//! A client with the manners of Codex: on a close it reconnects at the next turn and sends
//! its whole history again.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    Received, Ws,
    responses::{Turn, create, output_text, user},
};

/// Codex's first pause before a retry.
const RETRY: Duration = Duration::from_millis(200);
/// Tries of one turn; Codex has five.
const TRIES: usize = 5;

/// One conversation.
pub struct Codexish {
    url: String,
    session: String,
    socket: Option<Ws>,
    previous: Option<String>,
    items: Vec<Value>,
    texts: Vec<String>,
    /// What a user does not see, but an operator may want to count.
    pub hidden: Hidden,
    /// How idle sockets were closed.
    pub closes: Vec<Received>,
}

/// Retries that a user does not see.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hidden {
    pub reconnects: u32,
    /// The socket closed on a create that was just sent.
    pub raced: u32,
    pub history_resent: u32,
    /// Upgrades refused with `Retry-After`.
    pub told_to_wait: u32,
}

impl Codexish {
    /// A conversation with the ring at `url` (`http://host:port`).
    pub fn new(url: &str, session: &str) -> Self {
        Self {
            url: format!("{url}/v1/responses"),
            session: session.to_owned(),
            socket: None,
            previous: None,
            items: Vec::new(),
            texts: Vec::new(),
            hidden: Hidden::default(),
            closes: Vec::new(),
        }
    }

    /// Notices what happened to the socket since the last turn.
    fn look(&mut self) {
        let Some(socket) = &mut self.socket else { return };
        while let Some(received) = socket.next_now() {
            if received.is_end() {
                self.closes.push(received);
                self.socket = None;
                self.previous = None;
                return;
            }
            assert!(
                matches!(received, Received::Ping(_) | Received::Pong(_)),
                "between turns came {received:?}, which corrupts clients"
            );
        }
    }

    /// Waits until the idle socket is closed; how.
    pub async fn until_closed(&mut self) -> Received {
        let end = match &mut self.socket {
            Some(socket) => socket.end().await,
            None => return self.closes.last().cloned().unwrap_or(Received::Silence),
        };
        self.closes.push(end.clone());
        self.socket = None;
        self.previous = None;
        end
    }

    async fn connect(&mut self) -> Result<(), String> {
        if self.socket.is_some() {
            return Ok(());
        }
        let session = self.session.clone();
        let headers = [
            ("authorization", "Bearer alice"),
            ("session-id", session.as_str()),
            ("thread-id", session.as_str()),
            ("originator", "codex_exec"),
        ];
        match Ws::connect(&self.url, &headers).await {
            Ok(socket) => {
                self.socket = Some(socket);
                self.hidden.reconnects += u32::from(!self.texts.is_empty());
                Ok(())
            }
            Err(refused) => {
                let wait = refused.retry_after();
                self.hidden.told_to_wait += u32::from(wait.is_some());
                sleep(wait.map_or(RETRY, Duration::from_secs)).await;
                Err(format!("upgrade refused: {} {}", refused.status, refused.body))
            }
        }
    }

    /// One turn: `Ok` when the user has the whole answer, shown once.
    pub async fn turn(&mut self, text: &str) -> Result<Turn, String> {
        let mut fresh = true;
        let mut last = String::new();
        for _ in 0..TRIES {
            self.look();
            if let Err(error) = self.connect().await {
                last = error;
                continue;
            }
            if std::mem::take(&mut fresh) {
                self.items.push(user(text));
                self.texts.push(text.to_owned());
            }
            let input = match self.previous {
                Some(_) => &self.items[self.items.len() - 1..],
                None => &self.items[..],
            };
            let event = create(input, self.previous.as_deref());
            let socket = self.socket.as_mut().unwrap();
            let turn = match socket.send(event.to_string().into()).await {
                Ok(()) => Turn::read(socket).await,
                Err(error) => Turn { cut: Some(Received::Lost(error)), ..Turn::default() },
            };
            if let Some(end) = &turn.cut {
                (self.socket, self.previous) = (None, None);
                if !turn.events.is_empty() {
                    // Codex would restart the message, which its user sees.
                    return Err(format!("cut after {} events: {end:?}", turn.events.len()));
                }
                last = format!("closed on a new create: {end:?}");
                self.hidden.raced += 1;
                sleep(RETRY).await;
                continue;
            }
            let terminal = turn.last();
            if terminal["type"] == "error" {
                last = terminal.to_string();
                let code = terminal["error"]["code"].as_str().unwrap_or_default();
                if code != "previous_response_not_found" && terminal["status"] != 503 {
                    return Err(last);
                }
                (self.socket, self.previous) = (None, None);
                self.hidden.history_resent += 1;
                continue;
            }
            if terminal["type"] != "response.completed" {
                return Err(terminal.to_string());
            }
            turn.assert_answers(&self.texts);
            self.previous = Some(turn.id());
            self.items.push(json!({
                "type": "message", "role": "assistant",
                "content": [{ "type": "output_text", "text": output_text(&terminal["response"]) }],
            }));
            return Ok(turn);
        }
        Err(format!("gave up after {TRIES} tries, the last: {last}"))
    }
}
