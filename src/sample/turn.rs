//! One turn: from an admitted create to its terminal event.

use std::{future, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    Sample,
    conversation::Conversation,
    directives::{Cut, Directives, Misbehaviour},
    events::{Emitter, Gone, Out, Terminal, message, new_id, new_response, text_part, usage},
    history::{Create, CreateGuard, Record},
    reply::{cut, reply},
    request::{CreateRequest, Refusal},
    tools::{self, Call},
};

/// What a client asks of a running turn.
#[derive(Debug)]
pub(super) enum Signal {
    /// End now; `discard` forgets what was said so far.
    Interrupt { discard: bool },
    /// End now and answer this input instead.
    Steer(Value),
}

/// An admitted create. Running it consumes it; dropping it notes it as cancelled.
pub(super) struct Turn {
    sample: Arc<Sample>,
    request: CreateRequest,
    conversation: Conversation,
    cached_bytes: u64,
    directives: Directives,
    call: Option<Call>,
    pub(super) response_id: String,
    /// A turn state for a request that had none: an event on a WebSocket, a header by HTTP.
    pub(super) fresh_state: Option<String>,
    guard: CreateGuard,
}

/// How the output of a turn ended.
enum Ending {
    Completed,
    Incomplete(&'static str),
    Failed(String),
    Steered(Value),
}

impl Turn {
    /// Checks a create against what came before it. `previous` is the conversation under its
    /// `previous_response_id`, if that is known; `turn_state` what the client echoed.
    pub(super) fn admit(
        sample: &Arc<Sample>,
        record: &Arc<Record>,
        request: CreateRequest,
        previous: Option<Conversation>,
        turn_state: Option<&str>,
    ) -> Result<Self, Refusal> {
        let response_id = new_id("resp");
        let mut create = Create {
            previous_response_id: request.previous_response_id.clone(),
            stream_id: request.stream_id.clone(),
            prompt_cache_key: request.prompt_cache_key.clone(),
            turn_state: turn_state.map(str::to_owned),
            generate: request.generates(),
            input_items: request.input_items(),
            ..Create::default()
        };
        let checked = check(sample, &request, previous);
        let (conversation, cached_bytes, directives) = match checked {
            Ok(checked) => checked,
            Err(refusal) => {
                record.begin(create).end(&format!("refused:{}", refusal.code));
                return Err(refusal);
            }
        };
        create.conversation = conversation.digest();
        create.users = conversation.users;
        create.answers = conversation.answers;
        create.outputs = conversation.outputs;
        if let Some(Misbehaviour::Fail(status)) = directives.misbehaviour {
            let refusal = Refusal::scripted(status);
            record.begin(create).end(&format!("refused:{}", refusal.code));
            return Err(refusal);
        }
        create.response_id = Some(response_id.clone());
        let call = directives.tool.as_ref().and_then(|wanted| {
            tools::choose(wanted, &request.tools, conversation.script_tool.as_ref())
        });
        Ok(Self {
            sample: Arc::clone(sample),
            conversation,
            cached_bytes,
            directives,
            call,
            response_id,
            fresh_state: turn_state.is_none().then(|| new_id("ts")),
            guard: record.begin(create),
            request,
        })
    }

    /// Sends all events of the turn. `signals` is how a WebSocket interrupts and steers.
    pub(super) async fn run(self, out: mpsc::Sender<Out>, signals: Option<mpsc::Receiver<Signal>>) {
        let emit = Emitter::new(out, self.request.stream_id.clone());
        let response = new_response(&self.sample, &self.request, &self.response_id);
        // The error is a client that left, which the guard has noted by being dropped.
        Running { turn: self, emit, signals, response, text: String::new() }.run().await.ok();
    }
}

/// The conversation with the new input, its bytes before that, and what the input asks for.
fn check(
    sample: &Sample,
    request: &CreateRequest,
    previous: Option<Conversation>,
) -> Result<(Conversation, u64, Directives), Refusal> {
    let mut conversation = match (&request.previous_response_id, previous) {
        (Some(id), None) => return Err(Refusal::previous_response_not_found(id)),
        (_, previous) => previous.unwrap_or_default(),
    };
    let cached_bytes = conversation.bytes;
    conversation.absorb(&request.input)?;
    if !request.generates() {
        return Ok((conversation, cached_bytes, Directives::default()));
    }
    conversation.check_calls_answered()?;
    let mut directives = Directives::parse(&conversation.last_user);
    if conversation.tool_line.is_some() {
        let pace = directives.pace;
        directives = Directives { pace, ..Directives::default() };
    }
    if directives.once
        && directives.misbehaviour.is_some()
        && !sample.seen.lock().first_time(conversation.digest())
    {
        directives.misbehaviour = None;
    }
    Ok((conversation, cached_bytes, directives))
}

/// A turn that sends.
struct Running {
    turn: Turn,
    emit: Emitter,
    signals: Option<mpsc::Receiver<Signal>>,
    /// The response object as it stands.
    response: Value,
    /// What was said so far.
    text: String,
}

impl Running {
    async fn run(mut self) -> Result<(), Gone> {
        if let Some(Misbehaviour::Cut { how, after: None }) = self.turn.directives.misbehaviour {
            return self.cut(how).await;
        }
        if self.lies().0 {
            self.foreign("response.output_text.delta").await?;
        }
        let response = json!({ "response": self.response });
        self.emit.emit("response.created", response.clone()).await?;
        if !self.turn.request.generates() {
            return self.finish(Ending::Completed).await;
        }
        self.emit.emit("response.in_progress", response).await?;
        // By HTTP it is a header.
        if self.signals.is_some()
            && let Some(state) = &self.turn.fresh_state
        {
            let metadata = json!({ "headers": { "x-codex-turn-state": state } });
            self.emit.emit("response.metadata", metadata).await?;
        }
        if self.lies().0 {
            self.foreign("response.completed").await?;
        }
        let ending = match self.turn.directives.misbehaviour.clone() {
            Some(Misbehaviour::Error(code)) => Ending::Failed(code),
            Some(Misbehaviour::Hang) => self.hang().await?,
            _ => match self.turn.call.clone() {
                Some(call) => self.call(call).await?,
                None => self.answer().await?,
            },
        };
        self.finish(ending).await
    }

    /// Whether to lie with (foreign ids, duplicate terminals).
    fn lies(&self) -> (bool, bool) {
        match self.turn.directives.misbehaviour {
            Some(Misbehaviour::Lie { foreign, duplicate }) => (foreign, duplicate),
            _ => (false, false),
        }
    }

    /// An event of a response that nobody asked for.
    async fn foreign(&mut self, kind: &'static str) -> Result<(), Gone> {
        let mut response = self.response.clone();
        response["id"] = new_id("resp").into();
        response["status"] = "completed".into();
        response["usage"] = usage(0, 0, 0);
        let fields = json!({
            "response": response, "item_id": new_id("msg"),
            "output_index": 0, "content_index": 0, "delta": "(foreign)", "logprobs": [],
        });
        self.emit.emit(kind, fields).await
    }

    async fn hang(&mut self) -> Result<Ending, Gone> {
        self.turn.guard.if_dropped("hung");
        loop {
            if let Some(signal) = self.signal(Duration::MAX).await? {
                return Ok(self.heed(signal));
            }
        }
    }

    /// A signal that comes within `wait`.
    async fn signal(&mut self, wait: Duration) -> Result<Option<Signal>, Gone> {
        if wait.is_zero() {
            return Ok(self.signals.as_mut().and_then(|signals| signals.try_recv().ok()));
        }
        let Self { signals, emit, .. } = self;
        let signal = async {
            match signals {
                Some(signals) => match signals.recv().await {
                    Some(signal) => signal,
                    None => future::pending().await,
                },
                None => future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = emit.closed() => Err(Gone),
            signal = signal => Ok(Some(signal)),
            () = tokio::time::sleep(wait) => Ok(None),
        }
    }

    fn heed(&mut self, signal: Signal) -> Ending {
        match signal {
            Signal::Interrupt { discard } => {
                if discard {
                    self.text.clear();
                }
                Ending::Incomplete("interrupted")
            }
            Signal::Steer(input) => Ending::Steered(input),
        }
    }

    async fn call(&mut self, call: Call) -> Result<Ending, Gone> {
        let form = call.form;
        let (item_id, call_id) = (new_id(form.id_prefix), new_id("call"));
        let item = |status: &str, payload: &str| {
            let mut item = json!({
                "id": item_id, "type": form.item, "status": status,
                "name": call.name, "call_id": call_id,
            });
            item[form.field] = payload.into();
            if let Some(namespace) = &call.namespace {
                item["namespace"] = namespace.as_str().into();
            }
            item
        };
        let added = json!({ "output_index": 0, "item": item("in_progress", "") });
        self.emit.emit("response.output_item.added", added).await?;
        let part = |field: &str| {
            let mut part = json!({ "item_id": item_id, "output_index": 0, "name": call.name });
            part[field] = call.payload.as_str().into();
            part
        };
        self.emit.emit(form.delta, part("delta")).await?;
        self.emit.emit(form.done, part(form.field)).await?;
        let item = item("completed", &call.payload);
        let done = json!({ "output_index": 0, "item": item });
        self.emit.emit("response.output_item.done", done).await?;
        self.response["output"] = json!([item]);
        self.turn.conversation.called(call_id);
        Ok(Ending::Completed)
    }

    async fn answer(&mut self) -> Result<Ending, Gone> {
        let item_id = new_id("msg");
        let added = json!({ "output_index": 0, "item": message(&item_id, "in_progress", None) });
        self.emit.emit("response.output_item.added", added).await?;
        let part = |field: &str, value: Value| {
            let mut part = json!({ "item_id": item_id, "output_index": 0, "content_index": 0 });
            part[field] = value;
            part
        };
        let part_added = part("part", text_part(""));
        self.emit.emit("response.content_part.added", part_added).await?;
        let ending = self.deltas(&item_id).await?;
        let discarded = self.text.is_empty();
        if !discarded {
            let mut text_done = part("text", self.text.as_str().into());
            text_done["logprobs"] = json!([]);
            self.emit.emit("response.output_text.done", text_done).await?;
            let part_done = part("part", text_part(&self.text));
            self.emit.emit("response.content_part.done", part_done).await?;
            let status =
                if matches!(ending, Ending::Completed) { "completed" } else { "incomplete" };
            let item = message(&item_id, status, Some(&self.text));
            let done = json!({ "output_index": 0, "item": item });
            self.emit.emit("response.output_item.done", done).await?;
            self.response["output"] = json!([item]);
            self.turn.conversation.answered(&self.text);
        }
        Ok(ending)
    }

    /// The text, in pieces, until something ends it.
    async fn deltas(&mut self, item_id: &str) -> Result<Ending, Gone> {
        let pace = self.turn.directives.pace;
        let end = match self.turn.directives.misbehaviour {
            Some(Misbehaviour::Cut { how, after }) => Some((how, after.unwrap_or(0))),
            _ => None,
        };
        let pieces = cut(&reply(&self.turn.conversation), pace.deltas, pace.bytes);
        for (n, piece) in pieces.iter().enumerate() {
            if let Some((how, after)) = end
                && n >= after
            {
                return self.cut(how).await;
            }
            if let Some(signal) = self.signal(pace.delay).await? {
                return Ok(self.heed(signal));
            }
            self.emit.delta(item_id, piece).await?;
            self.text.push_str(piece);
        }
        match (end, &self.turn.directives.misbehaviour) {
            (Some((how, _)), _) => self.cut(how).await,
            (None, Some(Misbehaviour::Incomplete)) => Ok(Ending::Incomplete("max_output_tokens")),
            _ => Ok(Ending::Completed),
        }
    }

    async fn cut<T>(&mut self, how: Cut) -> Result<T, Gone> {
        self.turn.guard.end("closed");
        self.emit.send(Out::Cut(how)).await?;
        Err(Gone)
    }

    /// Sends the terminal event together with what the connection is to remember, so that a
    /// follow-up finds it however fast it comes.
    async fn finish(mut self, ending: Ending) -> Result<(), Gone> {
        let known = self.turn.conversation.bytes - self.text.len() as u64;
        let spent = self.turn.call.as_ref().map_or(self.text.len(), |call| call.payload.len());
        self.response["usage"] = usage(self.turn.cached_bytes, known, spent as u64);
        let mut successor = None;
        let (kind, outcome) = match ending {
            Ending::Completed => {
                self.response["status"] = "completed".into();
                ("response.completed", "completed".to_owned())
            }
            Ending::Incomplete(reason) => self.incomplete(reason),
            Ending::Steered(input) => {
                successor = Some(CreateRequest {
                    input,
                    previous_response_id: Some(self.turn.response_id.clone()),
                    ..self.turn.request.clone()
                });
                self.incomplete("steered")
            }
            Ending::Failed(code) => {
                self.response["status"] = "failed".into();
                let outcome = format!("failed:{code}");
                self.response["error"] =
                    json!({ "code": code, "message": "asked for by a directive" });
                ("response.failed", outcome)
            }
        };
        let event = self.emit.event(kind, json!({ "response": self.response }));
        let events = if self.lies().1 { vec![event.clone(), event] } else { vec![event] };
        let Self { turn, emit, response, .. } = self;
        let Turn { sample, request, conversation, response_id, guard, .. } = turn;
        let remembered = (kind != "response.failed").then_some(conversation);
        if request.stores()
            && let Some(conversation) = &remembered
        {
            sample.stored.lock().insert(response_id, conversation.clone());
        }
        let lane = request.stream_id;
        let terminal = Terminal { lane, events, response, remembered, successor, guard, outcome };
        emit.send(Out::Terminal(Box::new(terminal))).await
    }

    fn incomplete(&mut self, reason: &'static str) -> (&'static str, String) {
        self.response["status"] = "incomplete".into();
        self.response["incomplete_details"] = json!({ "reason": reason });
        ("response.incomplete", format!("incomplete:{reason}"))
    }
}
