//! The lanes of one connection: FIFO within each, concurrent across them, all bounded.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    Sample,
    conversation::Conversation,
    events::{Out, Terminal, new_id},
    history::Record,
    request::{CreateRequest, Refusal},
    turn::{Signal, Turn},
};

/// Responses that run at once; more wait.
const MAX_ACTIVE: usize = 16;
/// Distinct `stream_id`s, beside the default lane.
const MAX_LANES: usize = 32;
/// Creates that wait in one lane.
const MAX_QUEUED: usize = 256;
/// Longest `stream_id`, bytes.
const MAX_STREAM_ID_BYTES: usize = 256;
/// Signals that wait for a running turn.
const SIGNALS: usize = 8;

/// All lanes of a connection. The default lane is the one without a name.
pub(super) struct Lanes {
    sample: Arc<Sample>,
    record: Arc<Record>,
    by_id: HashMap<Option<String>, Lane>,
    /// Idle lanes with a create that waits, in the order of arrival.
    ready: VecDeque<Option<String>>,
    active: usize,
    /// Where the turns send.
    out: mpsc::Sender<Out>,
}

#[derive(Default)]
struct Lane {
    queue: VecDeque<CreateRequest>,
    running: Option<Running>,
    /// The only response of this lane that the connection still knows.
    latest: Option<(String, Conversation)>,
}

struct Running {
    response_id: String,
    previous: Option<String>,
    signals: mpsc::Sender<Signal>,
}

impl Lanes {
    pub(super) fn new(sample: Arc<Sample>, record: Arc<Record>, out: mpsc::Sender<Out>) -> Self {
        Self { sample, record, by_id: HashMap::new(), ready: VecDeque::new(), active: 0, out }
    }

    /// Whether no turn runs or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.active == 0 && self.ready.is_empty()
    }

    /// Acts on a client event; returns the events that answer it at once.
    pub(super) fn receive(&mut self, text: &str) -> Vec<String> {
        let Ok(mut event) = serde_json::from_str::<Value>(text) else {
            let refusal = Refusal::new(400, "invalid_json", "the message is not JSON");
            return vec![refusal.to_event(None)];
        };
        match event["type"].as_str() {
            Some("response.create") => {
                // Some clients nest the body, as the realtime API does.
                let body = event["response"].take();
                self.enqueue(if body.is_object() { body } else { event })
            }
            Some("response.interrupt") => {
                self.interrupt(&event);
                Vec::new()
            }
            Some("response.steer") => vec![self.steer(&mut event)],
            _ => {
                let refusal = Refusal::new(400, "unknown_event_type", "unknown event type");
                vec![Refusal { param: Some("type"), ..refusal }.to_event(None)]
            }
        }
    }

    /// Ends a turn; returns its terminal events and what follows from it at once.
    pub(super) fn settle(&mut self, mut terminal: Terminal) -> Vec<String> {
        terminal.note();
        let mut events: Vec<_> = terminal.events.into_iter().map(|event| event.json).collect();
        let lane = self.by_id.entry(terminal.lane.clone()).or_default();
        if let Some(ended) = lane.running.take() {
            self.active -= 1;
            match (terminal.remembered, ended.previous) {
                (Some(conversation), _) => {
                    lane.latest = Some((ended.response_id, conversation));
                }
                (None, Some(previous)) => Self::evict(lane, &previous),
                (None, None) => {}
            }
        }
        if let Some(successor) = terminal.successor {
            lane.queue.push_front(successor);
        }
        if !lane.queue.is_empty() {
            self.ready.push_back(terminal.lane);
        }
        self.start_ready(&mut events);
        events
    }

    fn enqueue(&mut self, body: Value) -> Vec<String> {
        let request = match CreateRequest::from_value(body) {
            Ok(request) => request,
            Err(refusal) => return vec![refusal.to_event(None)],
        };
        let id = request.stream_id.clone();
        if let Err(refusal) = self.check_lane(id.as_deref()) {
            return vec![refusal.to_event(id.as_deref())];
        }
        let lane = self.by_id.entry(id.clone()).or_default();
        if lane.queue.len() == MAX_QUEUED {
            let refusal = Refusal::new(429, "rate_limit_exceeded", "too many creates wait");
            return vec![refusal.to_event(id.as_deref())];
        }
        lane.queue.push_back(request);
        if lane.running.is_none() && lane.queue.len() == 1 {
            self.ready.push_back(id);
        }
        let mut events = Vec::new();
        self.start_ready(&mut events);
        events
    }

    fn check_lane(&self, id: Option<&str>) -> Result<(), Refusal> {
        let Some(id) = id else { return Ok(()) };
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if !(1..=MAX_STREAM_ID_BYTES).contains(&id.len()) || !id.bytes().all(allowed) {
            let message = "stream_id must match [A-Za-z0-9_.-]{1,256}";
            let refusal = Refusal::new(400, "invalid_stream_id", message);
            return Err(Refusal { param: Some("stream_id"), ..refusal });
        }
        let named = self.by_id.keys().flatten();
        if named.clone().all(|known| known != id) && named.count() == MAX_LANES {
            let message = "at most 32 distinct stream_ids on a connection";
            let refusal = Refusal::new(400, "websocket_stream_limit_reached", message);
            return Err(Refusal { param: Some("stream_id"), ..refusal });
        }
        Ok(())
    }

    /// Starts what may run. A create that is refused leaves its lane to the next one.
    fn start_ready(&mut self, events: &mut Vec<String>) {
        while self.active < MAX_ACTIVE
            && let Some(id) = self.ready.pop_front()
        {
            while let Some(request) =
                self.by_id.get_mut(&id).and_then(|lane| lane.queue.pop_front())
            {
                match self.start(id.as_deref(), request) {
                    Ok(()) => break,
                    Err(refusal) => events.push(refusal.to_event(id.as_deref())),
                }
            }
        }
    }

    fn start(&mut self, id: Option<&str>, request: CreateRequest) -> Result<(), Refusal> {
        let previous = request.previous_response_id.clone();
        let known = previous.as_deref().and_then(|previous| self.find(previous));
        let turn_state = request.client_metadata["x-codex-turn-state"].as_str().map(str::to_owned);
        let admitted =
            Turn::admit(&self.sample, &self.record, request, known, turn_state.as_deref());
        let lane = self.by_id.entry(id.map(str::to_owned)).or_default();
        match admitted {
            Ok(turn) => {
                let (signals, receiver) = mpsc::channel(SIGNALS);
                let response_id = turn.response_id.clone();
                lane.running = Some(Running { response_id, previous, signals });
                self.active += 1;
                self.sample.tasks.spawn(turn.run(self.out.clone(), Some(receiver)));
                Ok(())
            }
            Err(refusal) => {
                if let Some(previous) = previous {
                    Self::evict(lane, &previous);
                }
                Err(refusal)
            }
        }
    }

    /// What this connection, or the store, knows under a response id.
    fn find(&self, id: &str) -> Option<Conversation> {
        let mut latest = self.by_id.values().filter_map(|lane| lane.latest.as_ref());
        match latest.find(|(known, _)| known == id) {
            Some((_, conversation)) => Some(conversation.clone()),
            None => self.sample.stored.lock().get(id),
        }
    }

    /// A failed turn takes the response that it referred to with it.
    fn evict(lane: &mut Lane, id: &str) {
        lane.latest.take_if(|(known, _)| known == id);
    }

    fn running(&self, response_id: &str) -> Option<(&Option<String>, &Running)> {
        let running = self.by_id.iter().filter_map(|(id, lane)| Some((id, lane.running.as_ref()?)));
        running.into_iter().find(|(_, running)| running.response_id == response_id)
    }

    fn interrupt(&self, event: &Value) {
        let discard = event["mode"] == "discard_partial_items";
        let id = event["response_id"].as_str().unwrap_or_default();
        if let Some((_, running)) = self.running(id) {
            // A full queue holds a signal that ends the response just the same.
            running.signals.try_send(Signal::Interrupt { discard }).ok();
        }
    }

    fn steer(&self, event: &mut Value) -> String {
        let input = event["input"].take();
        let target = event["previous_response_id"].as_str().unwrap_or_default();
        let usable = input.is_string() || input.as_array().is_some_and(|items| !items.is_empty());
        let running = self.running(target);
        let lane = running.and_then(|(lane, _)| lane.clone());
        let error = match running {
            None => Some("response_not_found"),
            Some(_) if !usable => Some("invalid_input"),
            Some((_, running)) => {
                let sent = running.signals.try_send(Signal::Steer(input.clone()));
                sent.is_err().then_some("response_not_active")
            }
        };
        let mut answer = match error {
            None => json!({
                "type": "response.steer.accepted", "sequence_number": 0,
                "steer": { "id": new_id("steer"), "previous_response_id": target },
            }),
            Some(code) => json!({
                "type": "response.steer.failed", "sequence_number": 0,
                "steer": { "input": input, "previous_response_id": target },
                "error": {
                    "type": "invalid_request_error", "code": code,
                    "message": "the response cannot be steered",
                },
            }),
        };
        if let Some(lane) = lane {
            answer["stream_id"] = lane.into();
        }
        answer.to_string()
    }
}
