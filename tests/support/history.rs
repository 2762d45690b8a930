//! What the sample upstream saw, and what must hold of it whatever happened.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::{
    checker::{Connection, Create},
    http,
};

/// How much later than the next connection's beginning the sample may notice an end: the
/// two are noted by different tasks of a busy process.
const NOTICE_MS: u64 = 250;

/// Connections of the sample upstream, oldest first.
#[derive(Clone, Debug)]
pub struct History {
    connections: Vec<Value>,
    /// When it was read, in milliseconds since the sample started.
    read: u64,
}

impl History {
    /// Asks the sample at `url`.
    pub async fn read(url: &str) -> Self {
        let answer = http::get(&format!("{url}/_sample/connections"), &[]).await.json();
        assert_eq!(answer["forgotten"], 0, "the history is too long to be judged");
        let mut connections = answer["connections"].as_array().unwrap().clone();
        connections.sort_by_key(|connection| connection["opened_ms"].as_u64());
        Self { connections, read: answer["now_ms"].as_u64().unwrap() }
    }

    /// The same as facts for the checker.
    pub fn facts(&self) -> (Vec<Connection>, Vec<Create>) {
        let (mut connections, mut creates) = (Vec::new(), Vec::new());
        for noted in &self.connections {
            let session = noted["session_id"].as_str().unwrap_or_default().to_owned();
            let id = noted["id"].as_u64().unwrap();
            if noted["transport"] == "websocket" {
                let opened = noted["opened_ms"].as_u64().unwrap();
                let closed = noted["closed_ms"].as_u64().or(Some(self.read));
                connections.push(Connection { id, session: session.clone(), opened, closed });
            }
            for create in noted["creates"].as_array().unwrap() {
                let text = |name: &str| create[name].as_str().map(str::to_owned);
                creates.push(Create {
                    at: create["started_ms"].as_u64().unwrap(),
                    ended: create["ended_ms"].as_u64(),
                    connection: id,
                    session: session.clone(),
                    response: text("response_id"),
                    conversation: text("conversation").unwrap_or_default(),
                    generate: create["generate"] != false,
                    outcome: text("outcome").unwrap_or_default(),
                });
            }
        }
        (connections, creates)
    }

    /// Sockets whose `session-id` header is `id`.
    pub fn of_session(&self, id: &str) -> Vec<&Value> {
        let websockets = self.connections.iter().filter(|it| it["transport"] == "websocket");
        websockets.filter(|it| it["session_id"] == id).collect()
    }

    /// Sockets of any session.
    pub fn websockets(&self) -> Vec<&Value> {
        self.connections.iter().filter(|it| it["transport"] == "websocket").collect()
    }

    /// Every create, in no order.
    pub fn creates(&self) -> Vec<&Value> {
        self.connections.iter().flat_map(|it| it["creates"].as_array().unwrap()).collect()
    }

    /// Asserts that no session ever had two upstream connections at a time. A session is
    /// known by path, credential and `session-id` (or `thread-id`); connections without any
    /// id are not judged.
    pub fn assert_one_connection_each(&self) {
        let mut sessions: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
        for connection in self.websockets() {
            let id = connection["session_id"].as_str().or(connection["thread_id"].as_str());
            if let Some(id) = id {
                let name = format!("{} {} {id}", connection["path"], connection["credential"]);
                sessions.entry(name).or_default().push(connection);
            }
        }
        for (name, connections) in sessions {
            for pair in connections.windows(2) {
                let closed = pair[0]["closed_ms"].as_u64().unwrap_or(u64::MAX);
                let opened = pair[1]["opened_ms"].as_u64().unwrap();
                assert!(
                    closed <= opened + NOTICE_MS,
                    "{name}: connection {} ({}..{}) overlaps {} (from {opened})",
                    pair[0]["id"],
                    pair[0]["opened_ms"],
                    pair[0]["closed_ms"],
                    pair[1]["id"],
                );
            }
        }
    }

    /// Asserts that no turn reached the upstream twice. Every user text of the test must be
    /// unique within its conversation, so that the digest names the turn.
    pub fn assert_no_double_dispatch(&self) {
        let mut seen = HashSet::new();
        for create in self.creates() {
            let outcome = create["outcome"].as_str().unwrap();
            if outcome.starts_with("refused") || create["generate"] == false {
                continue;
            }
            let turn = (create["conversation"].as_str().unwrap(), &create["outputs"]);
            assert!(seen.insert(turn), "dispatched twice: {create}");
        }
    }
}
