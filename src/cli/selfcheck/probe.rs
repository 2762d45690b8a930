//! One client of a ring, as a check needs it: attach, say, hear.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    config::{
        BreakerRules, Endpoint, Secret, Upstream, UpstreamAuth,
        url::{self, redact},
    },
    telemetry::metrics::Metrics,
    upstream::{DialError, Dialer, Stream, Upgrade},
    wire::{Batch, Incoming, Message, Socket},
};

/// Limit of connecting and upgrading.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit of saying goodbye: the check is done by then.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest answer, bytes. What is asked for is far shorter.
const MAX_MESSAGE: usize = 1 << 20;
/// Header by which a Responses client names its session.
const SESSION_ID: HeaderName = HeaderName::from_static("session-id");

/// Where to attach.
pub(in crate::cli) struct Target {
    base: String,
    route: String,
    bearer: Option<Secret>,
    /// Name of the session, fresh for each check.
    key: String,
}

impl Target {
    /// `route` as the configuration has it: a `{name}` in it becomes a fresh key.
    pub(in crate::cli) fn new(base: &Uri, route: &str, bearer: Option<Secret>) -> Self {
        let base = base.to_string().trim_end_matches('/').to_owned();
        Self { base, route: route.to_owned(), bearer, key: fresh_key() }
    }

    /// The next attach opens another session.
    pub(in crate::cli) fn refresh(&mut self) {
        self.key = fresh_key();
    }

    /// The same session by way of another node.
    pub(in crate::cli) fn via(&self, base: &Uri) -> Self {
        let key = self.key.clone();
        Self { key, ..Self::new(base, &self.route, self.bearer.clone()) }
    }

    /// Attaches to the session.
    pub(in crate::cli) async fn attach(&self) -> anyhow::Result<Attached> {
        let begun = Instant::now();
        let text = format!("{}{}", self.base, with_key(&self.route, &self.key));
        let url = url::upstream(&text).map_err(|expected| {
            anyhow::anyhow!("{} cannot be asked: expected {expected}", redact(&text))
        })?;
        let auth = match &self.bearer {
            Some(token) => UpstreamAuth::Bearer(token.clone()),
            None => UpstreamAuth::Passthrough,
        };
        let ring = Arc::new(Upstream {
            name: "ring".to_owned(),
            endpoints: vec![Endpoint { auth, ..Endpoint::sole(url) }],
            max_connection_age: Duration::MAX,
            compression: false,
            ca_file: None,
        });
        let mut upgrade = Upgrade { path_and_query: "/".to_owned(), ..Upgrade::default() };
        upgrade.headers.insert(SESSION_ID, HeaderValue::from_str(&self.key)?);
        let rules = BreakerRules { failures: 1, open: Duration::ZERO, max_open: Duration::ZERO };
        let dialer = Dialer::new([&ring], DIAL_TIMEOUT, MAX_MESSAGE, rules, Metrics::new())?;
        let connection =
            dialer.dial(&ring, &[], None, &upgrade).await.map_err(|error| refused(&error))?;
        let headers = &connection.headers;
        Ok(Attached {
            session: header(headers, "ringspan-session")?,
            epoch: header(headers, "ringspan-epoch")?,
            took: begun.elapsed(),
            responses: self.route.ends_with("/responses"),
            socket: connection.socket,
        })
    }
}

/// A client that is attached to a session.
pub(in crate::cli) struct Attached {
    pub(in crate::cli) session: String,
    pub(in crate::cli) epoch: String,
    /// How long the attach took, dial and upgrade included.
    pub(in crate::cli) took: Duration,
    responses: bool,
    socket: Socket<Stream>,
}

impl Attached {
    /// Has one message answered and says how long that took. `model` is what a turn names.
    pub(in crate::cli) async fn round_trip(&mut self, model: &str) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        if self.responses {
            let create = json!({
                "type": "response.create", "model": model, "input": [],
                "generate": false, "store": false,
            });
            self.say(&create.to_string()).await?;
            self.hear(terminal).await??;
        } else {
            let text = format!("selfcheck {}", fresh_key());
            self.say(&text).await?;
            self.hear_text(&text).await.context("the route's upstream did not echo a text")?;
        }
        Ok(begun.elapsed())
    }

    /// Sends a text message.
    pub(in crate::cli) async fn say(&mut self, text: &str) -> anyhow::Result<()> {
        self.socket.queue(&Batch::one(&Message::text(text.to_owned())));
        self.socket.flush().await.context("the node went away")
    }

    /// Waits for a message of exactly this text.
    pub(in crate::cli) async fn hear_text(&mut self, wanted: &str) -> anyhow::Result<()> {
        self.hear(|text| (text == wanted.as_bytes()).then_some(())).await
    }

    /// Waits for the first message that `pick` picks.
    async fn hear<T>(&mut self, pick: impl Fn(&[u8]) -> Option<T>) -> anyhow::Result<T> {
        loop {
            match self.socket.recv().await {
                Some(Ok(Incoming::Messages(batch))) => {
                    if let Some(found) = batch.messages().find_map(|it| pick(&it.payload)) {
                        return Ok(found);
                    }
                }
                Some(Ok(Incoming::Ping(payload))) => {
                    self.socket.queue_pong(&payload);
                    self.socket.flush().await?;
                }
                Some(Ok(Incoming::Pong(_))) => {}
                Some(Ok(Incoming::Close(None))) => bail!("the node closed the socket"),
                Some(Ok(Incoming::Close(Some(close)))) => {
                    bail!("the node closed the socket: {} {:?}", close.code, close.reason)
                }
                Some(Err(error)) => return Err(error.into()),
                None => bail!("the node dropped the socket"),
            }
        }
    }

    /// Says goodbye; bounded, and nothing depends on its success.
    pub(in crate::cli) async fn close(mut self) {
        self.socket.queue_close(1000, "");
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.socket.shutdown()).await;
    }
}

/// The outcome of a turn, if `event` is the last one of it.
fn terminal(event: &[u8]) -> Option<anyhow::Result<()>> {
    #[derive(Deserialize)]
    struct Event {
        r#type: String,
        error: Option<Fault>,
        response: Option<Response>,
    }
    #[derive(Deserialize)]
    struct Response {
        error: Option<Fault>,
    }
    #[derive(Deserialize)]
    struct Fault {
        code: Option<String>,
        message: Option<String>,
    }
    let event: Event = serde_json::from_slice(event).ok()?;
    match event.r#type.as_str() {
        "response.completed" | "response.incomplete" => return Some(Ok(())),
        "response.failed" | "error" => {}
        _ => return None,
    }
    let fault = event.error.or_else(|| event.response.and_then(|response| response.error));
    let (code, message) = fault.map_or((None, None), |fault| (fault.code, fault.message));
    let (code, message) = (code.unwrap_or_default(), message.unwrap_or_default());
    Some(Err(anyhow::anyhow!("the turn failed: {code}: {message}")))
}

/// Why a node did not let the check in, in its own words where there are any.
fn refused(error: &DialError) -> anyhow::Error {
    let DialError::Refused(refusal) = error else {
        // The dialler calls whom it dials the upstream; here that is the node.
        return anyhow::anyhow!(error.to_string().replace("the upstream", "the node"));
    };
    let body: serde_json::Value = serde_json::from_slice(&refusal.body).unwrap_or_default();
    let word = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
    match word("code") {
        code if code.is_empty() => {
            anyhow::anyhow!("the node refused with status {}", refusal.status)
        }
        code => anyhow::anyhow!("the node refused with {code}: {}", word("message")),
    }
}

fn header(headers: &HeaderMap, name: &str) -> anyhow::Result<String> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    let value =
        value.with_context(|| format!("the answer has no {name}: is this a ringspan node?"))?;
    Ok(value.to_owned())
}

fn fresh_key() -> String {
    format!("selfcheck-{:016x}", rand::random::<u64>())
}

/// The route's path with `key` in the place of every `{name}`.
fn with_key(route: &str, key: &str) -> String {
    let parts = route.split('/').map(|part| if part.starts_with('{') { key } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_part_of_a_route_becomes_the_key() {
        assert_eq!(with_key("/rooms/{room}", "k"), "/rooms/k");
        assert_eq!(with_key("/v1/responses", "k"), "/v1/responses");
    }

    #[test]
    fn only_the_end_of_a_turn_ends_the_check_and_a_failure_is_told_in_its_own_words() {
        assert!(terminal(br#"{"type":"response.created","response":{"error":null}}"#).is_none());
        assert!(terminal(br#"{"type":"response.completed","response":{}}"#).unwrap().is_ok());
        for event in [
            r#"{"type":"error","status":503,"error":{"code":"x","message":"y"}}"#,
            r#"{"type":"response.failed","response":{"error":{"code":"x","message":"y"}}}"#,
        ] {
            let reason = terminal(event.as_bytes()).unwrap().unwrap_err();
            assert_eq!(reason.to_string(), "the turn failed: x: y");
        }
    }
}
