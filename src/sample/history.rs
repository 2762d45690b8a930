//! What happened, for checkers: every connection and the creates on it.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    extract::Request,
    http::{HeaderMap, header},
};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// Connections of each transport that are remembered.
const MAX_CONNECTIONS: usize = 100_000;
/// Creates of one connection that are remembered.
const MAX_CREATES: usize = 1_000;

/// Outcome of a create that has none yet.
const RUNNING: &str = "running";

/// All connections, bounded; the oldest are forgotten first.
pub(super) struct History {
    started: Instant,
    /// Connections so far, of both transports.
    opened: AtomicU64,
    websockets: Mutex<Ring>,
    http: Mutex<Ring>,
}

#[derive(Default)]
struct Ring {
    opened: u64,
    records: VecDeque<Arc<Record>>,
}

/// One connection. Times are milliseconds since the server started.
pub(super) struct Record {
    started: Instant,
    id: u64,
    transport: &'static str,
    path: String,
    opened_ms: u64,
    /// First 16 hex digits of the SHA-256 of the `Authorization` header.
    credential: Option<String>,
    thread_id: Option<String>,
    session_id: Option<String>,
    state: Mutex<RecordState>,
}

#[derive(Default)]
struct RecordState {
    closed_ms: Option<u64>,
    /// Creates so far, also those forgotten.
    created: u64,
    creates: VecDeque<Create>,
}

/// One `response.create` or `POST`.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Create {
    pub(super) response_id: Option<String>,
    pub(super) previous_response_id: Option<String>,
    pub(super) stream_id: Option<String>,
    pub(super) prompt_cache_key: Option<String>,
    /// The turn state that the client echoed.
    pub(super) turn_state: Option<String>,
    pub(super) generate: bool,
    pub(super) input_items: usize,
    /// Digest, user messages, answers and tool outputs of the whole conversation.
    pub(super) conversation: String,
    pub(super) users: u64,
    pub(super) answers: u64,
    pub(super) outputs: u64,
    pub(super) started_ms: u64,
    pub(super) ended_ms: Option<u64>,
    /// `running`, `completed`, `incomplete:REASON`, `failed:CODE`, `refused:CODE`; `closed` by a
    /// directive, `aged` with its connection, `hung` until the client left, or `cancelled` when
    /// that left in any other turn.
    pub(super) outcome: String,
}

impl Create {
    /// Notes its end, unless that was noted before.
    fn end(&mut self, now_ms: u64, outcome: &str) {
        if self.outcome == RUNNING {
            self.ended_ms = Some(now_ms);
            outcome.clone_into(&mut self.outcome);
        }
    }
}

impl History {
    pub(super) fn new(started: Instant) -> Self {
        Self {
            started,
            opened: AtomicU64::new(0),
            websockets: Mutex::default(),
            http: Mutex::default(),
        }
    }

    /// Notes a WebSocket.
    pub(super) fn websocket(&self, request: &Request) -> Arc<Record> {
        self.note(&self.websockets, "websocket", request.uri().path(), request.headers())
    }

    /// Notes a request by HTTP, which is a connection of its own.
    pub(super) fn http(&self, path: &str, headers: &HeaderMap) -> Arc<Record> {
        self.note(&self.http, "http", path, headers)
    }

    fn note(
        &self,
        ring: &Mutex<Ring>,
        transport: &'static str,
        path: &str,
        headers: &HeaderMap,
    ) -> Arc<Record> {
        let text = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        let credential = headers.get(header::AUTHORIZATION).map(|value| {
            let hash = format!("{:x}", Sha256::digest(value.as_bytes()));
            hash[..16].to_owned()
        });
        let mut ring = ring.lock();
        ring.opened += 1;
        let record = Arc::new(Record {
            started: self.started,
            id: self.opened.fetch_add(1, Ordering::Relaxed) + 1,
            transport,
            path: path.to_owned(),
            opened_ms: elapsed_ms(self.started),
            credential,
            thread_id: text("thread-id"),
            session_id: text("session-id"),
            state: Mutex::default(),
        });
        if ring.records.len() == MAX_CONNECTIONS {
            ring.records.pop_front();
        }
        ring.records.push_back(Arc::clone(&record));
        record
    }

    /// `{"connections":[…],"forgotten":N,"now_ms":N}`, the `WebSocket` ones first, each oldest first.
    pub(super) fn to_json(&self, open: Option<bool>) -> Value {
        let mut connections = Vec::new();
        let mut forgotten = 0;
        for ring in [&self.websockets, &self.http] {
            let ring = ring.lock();
            forgotten += ring.opened - ring.records.len() as u64;
            connections.extend(ring.records.iter().filter_map(|record| record.to_json(open)));
        }
        json!({
            "connections": connections, "forgotten": forgotten, "now_ms": elapsed_ms(self.started),
        })
    }
}

impl Record {
    /// Notes the end of the connection.
    pub(super) fn close(&self) {
        self.state.lock().closed_ms.get_or_insert(elapsed_ms(self.started));
    }

    /// Notes that all running creates end now, with the connection.
    pub(super) fn cut_short(&self, outcome: &str) {
        let now = elapsed_ms(self.started);
        for create in &mut self.state.lock().creates {
            create.end(now, outcome);
        }
    }

    /// Notes a create; the guard notes how it ended.
    pub(super) fn begin(self: &Arc<Self>, create: Create) -> CreateGuard {
        let mut state = self.state.lock();
        let number = state.created;
        state.created += 1;
        if state.creates.len() == MAX_CREATES {
            state.creates.pop_front();
        }
        let started_ms = elapsed_ms(self.started);
        state.creates.push_back(Create { started_ms, outcome: RUNNING.to_owned(), ..create });
        CreateGuard { record: Arc::clone(self), number, dropped: "cancelled" }
    }

    fn to_json(&self, open: Option<bool>) -> Option<Value> {
        let state = self.state.lock();
        let is_open = state.closed_ms.is_none();
        open.is_none_or(|wanted| wanted == is_open).then(|| {
            json!({
                "id": self.id, "transport": self.transport, "path": self.path,
                "open": is_open, "opened_ms": self.opened_ms, "closed_ms": state.closed_ms,
                "credential": self.credential, "thread_id": self.thread_id,
                "session_id": self.session_id, "creates_total": state.created,
                "creates": state.creates,
            })
        })
    }
}

/// Notes the end of a create, as `cancelled` if it is dropped before it ended.
pub(super) struct CreateGuard {
    record: Arc<Record>,
    number: u64,
    /// What it comes to if it is dropped.
    dropped: &'static str,
}

impl CreateGuard {
    /// From now on it is noted as `outcome` if it is dropped.
    pub(super) fn if_dropped(&mut self, outcome: &'static str) {
        self.dropped = outcome;
    }

    /// Notes the outcome; the first one counts.
    pub(super) fn end(&mut self, outcome: &str) {
        let mut state = self.record.state.lock();
        let first = state.created - state.creates.len() as u64;
        let index = self.number.checked_sub(first).and_then(|index| usize::try_from(index).ok());
        if let Some(create) = index.and_then(|index| state.creates.get_mut(index)) {
            create.end(elapsed_ms(self.record.started), outcome);
        }
    }
}

impl Drop for CreateGuard {
    fn drop(&mut self) {
        self.end(self.dropped);
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
