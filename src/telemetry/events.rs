//! What happened on this node, for the status page. Lossy by design: nobody waits for it,
//! and only the latest is kept.

use std::{collections::VecDeque, fmt::Display, sync::Arc};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::broadcast, time::Instant};

/// Events that a slow watcher may be behind before it loses the oldest.
const CAPACITY: usize = 256;

/// Events that are kept to tell a session's story: about 2 MiB.
const KEPT: usize = 8_192;

/// Something that happened on this node and that an operator may want to see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeEvent {
    /// A word such as `claimed`, `takeover`, `handoff`, `drain`, `member`, `turn`.
    pub kind: String,
    pub session: Option<String>,
    /// One sentence; no payload, no secret.
    pub text: String,
    /// Monotonic: seconds after the node's start.
    pub at_seconds: f64,
}

/// Where events are told, heard and kept.
#[derive(Clone, Debug)]
pub struct Events {
    tx: broadcast::Sender<NodeEvent>,
    kept: Arc<Mutex<VecDeque<NodeEvent>>>,
    start: Instant,
}

impl Default for Events {
    fn default() -> Self {
        Self { tx: broadcast::channel(CAPACITY).0, kept: Arc::default(), start: Instant::now() }
    }
}

impl Events {
    /// Tells one to whoever watches this node, and keeps it.
    pub fn emit(&self, kind: &str, session: Option<&dyn Display>, text: &str) {
        let event = self.event(kind, session, text.to_owned());
        if self.tx.receiver_count() > 0 {
            // Nobody listening any more is no failure.
            drop(self.tx.send(event.clone()));
        }
        self.keep(event);
    }

    /// Keeps one for its session's story. What happens at every turn or client would drown
    /// the rest for those who watch.
    pub fn note(&self, kind: &str, session: &dyn Display, text: String) {
        self.keep(self.event(kind, Some(session), text));
    }

    /// What is kept of one session, oldest first, at most the newest `limit`.
    #[must_use]
    pub fn story(&self, session: &str, limit: usize) -> Vec<NodeEvent> {
        let kept = self.kept.lock();
        let its = kept.iter().rev().filter(|event| event.session.as_deref() == Some(session));
        let mut story: Vec<_> = its.take(limit).cloned().collect();
        story.reverse();
        story
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

    fn event(&self, kind: &str, session: Option<&dyn Display>, text: String) -> NodeEvent {
        NodeEvent {
            kind: kind.to_owned(),
            session: session.map(ToString::to_string),
            text,
            at_seconds: self.uptime(),
        }
    }

    fn keep(&self, event: NodeEvent) {
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_story_is_one_sessions_and_bounded() {
        let events = Events::default();
        for n in 0..KEPT {
            events.note("turn", &(n % 2), format!("turn {n}"));
        }
        events.emit("claimed", Some(&0), "claimed");
        let story = events.story("0", 2);
        let texts: Vec<_> = story.iter().map(|event| event.text.as_str()).collect();
        assert_eq!(texts, [format!("turn {}", KEPT - 2), "claimed".to_owned()]);
        assert_eq!(events.story("0", KEPT).len() + events.story("1", KEPT).len(), KEPT);
        assert!(events.story("2", KEPT).is_empty());
    }

    #[test]
    fn those_who_watch_are_not_told_of_every_turn() {
        let events = Events::default();
        let mut watching = events.listen();
        events.note("turn", &1, "turn 1 completed".into());
        events.emit("handoff", Some(&1), "handed over");
        assert_eq!(watching.try_recv().unwrap().kind, "handoff");
        assert!(watching.try_recv().is_err());
    }
}
