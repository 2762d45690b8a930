//! What happened on this node, for the status page. Lossy by design: nobody waits for it.

use serde::{Deserialize, Serialize};
use tokio::{sync::broadcast, time::Instant};

/// Events that a slow watcher may be behind before it loses the oldest.
const CAPACITY: usize = 256;

/// Something that happened on this node and that an operator may want to see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeEvent {
    /// A word such as `claimed`, `takeover`, `handoff`, `drain`, `member`.
    pub kind: String,
    pub session: Option<String>,
    /// One sentence; no payload, no secret.
    pub text: String,
    /// Monotonic: seconds after the node's start.
    pub at_seconds: f64,
}

/// Where events are told and heard.
#[derive(Clone, Debug)]
pub struct Events {
    tx: broadcast::Sender<NodeEvent>,
    start: Instant,
}

impl Default for Events {
    fn default() -> Self {
        Self { tx: broadcast::channel(CAPACITY).0, start: Instant::now() }
    }
}

impl Events {
    /// Tells one. Costs nothing while nobody listens.
    pub fn emit(&self, kind: &str, session: Option<&dyn std::fmt::Display>, text: &str) {
        if self.tx.receiver_count() == 0 {
            return;
        }
        // Nobody listening any more is no failure.
        drop(self.tx.send(NodeEvent {
            kind: kind.to_owned(),
            session: session.map(ToString::to_string),
            text: text.to_owned(),
            at_seconds: self.uptime(),
        }));
    }

    /// What happens from now on.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<NodeEvent> {
        self.tx.subscribe()
    }

    /// Seconds since the node's start: the base of `at_seconds`.
    #[must_use]
    pub fn uptime(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}
