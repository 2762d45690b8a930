//! Performs what the rules of turns decide.

use std::{future::Future, pin::Pin, task::Context, time::Duration};

use serde_json::Value;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tracing::field::Empty;

use super::{
    actor::{Actor, Unused},
    clients::TurnWatch,
    event::{ServerEvent, Stage, error_event},
    numbering::Numbering,
    turns::{Action, TurnNo},
};
use crate::{
    error::{Code, Error},
    store::{Alias, AliasKind},
    telemetry::{metrics::TurnOutcome, propagation},
    upstream::{DialError, Told},
    wire::Batch,
};

impl Actor {
    pub(super) fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Upstream(batch) => self.send_upstream(&batch),
                Action::Dispatch { turn, batch } => {
                    self.unused = Unused::default();
                    self.heard_of(turn, false);
                    self.send_upstream(&batch);
                }
                Action::Open { turn, lane } => self.open_turn(turn, lane),
                Action::Subscribe { client, turn } => {
                    // A log that was trimmed begins later; who reads it sees that by the
                    // events' own numbers.
                    let floor = self.streams.get(turn).map(|stream| stream.log.floor());
                    if let Some(client) = self.clients.iter_mut().find(|c| c.id == client) {
                        let Some(floor) = floor else {
                            client.answer(gone(), 1);
                            continue;
                        };
                        client.subscribe(turn, floor);
                        let Some(stream) = self.streams.get_mut(turn) else { continue };
                        let kind = client.label.kind;
                        stream.numbering.get_or_insert_with(|| Numbering::of(kind));
                        if let Some(watch) = &stream.turn {
                            propagation::adopt(&watch.span, &client.trace);
                        }
                    }
                }
                Action::Join { client, from, turn } => {
                    let floor = self.streams.get(turn).map_or(1, |stream| stream.log.floor());
                    if let Some(client) = self.clients.iter_mut().find(|c| c.id == client) {
                        client.join(from, turn, floor);
                    }
                }
                Action::Rejoin { client, turn, otherwise } => self.rejoin(client, turn, otherwise),
                Action::Journal { turn, key, request, repeatable } => {
                    self.journal(turn, key, request, repeatable);
                }
                Action::Mark { turn, state, response } => self.mark(turn, state, response),
                Action::Append { turn, batch, done } => {
                    self.heard_of(turn, done);
                    // Nobody hears of the end of a turn that a crash could still undo (I6):
                    // the conversation is kept first. What comes after it waits too.
                    let copied = if done { self.copying.take() } else { None };
                    if copied.is_some() || !self.held.is_empty() {
                        self.held.push_back(Held::new(turn, batch, done, copied));
                    } else {
                        self.append(turn, batch, done);
                    }
                }
                Action::Reply { client, batch, ended } => {
                    if let Some(client) = self.clients.iter_mut().find(|c| c.id == client) {
                        client.answer(batch, ended);
                    }
                }
                Action::Forget(turn) => {
                    self.slots.remove(&turn);
                    self.streams.forget(turn);
                }
                Action::HangUp => self.hang_up(),
                Action::Remembered(past) => self.remembered(past),
                Action::Recall => self.read_archive(),
                Action::Alias(response_id) => self.ctx.aliases.put(Alias {
                    principal: self.principal,
                    kind: AliasKind::Response,
                    digest: Alias::digest(&self.route.path, &response_id),
                    session: self.id,
                }),
            }
        }
    }
}

/// Events that wait until what the conversation grew by is kept: by the heir, or in the
/// database.
pub(super) struct Held {
    turn: TurnNo,
    batch: Batch,
    done: bool,
    copied: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

/// How long the heir or the database may hold up the end of a turn. Past it the end is told all the same: a
/// crash in that moment would show as a `previous_response_not_found`.
const HOLD: Duration = Duration::from_millis(250);

impl Held {
    /// `copied` is None for what only waits its turn.
    fn new(turn: TurnNo, batch: Batch, done: bool, copied: Option<oneshot::Receiver<()>>) -> Self {
        // It counts from now, also for one that waits behind others.
        let until = Instant::now() + HOLD;
        let copied = async move {
            if let Some(copied) = copied {
                drop(timeout_at(until, copied).await);
            }
        };
        Self { turn, batch, done, copied: Box::pin(copied) }
    }
}

impl Actor {
    /// What waits for its copy is said now: nobody will look after it any more.
    pub(super) fn release_held(&mut self) {
        for Held { turn, batch, done, .. } in std::mem::take(&mut self.held) {
            self.append(turn, batch, done);
        }
    }

    /// Ends turns whose conversation is kept by now.
    pub(super) fn poll_held(&mut self, cx: &mut Context<'_>, progress: &mut bool) {
        while let Some(held) = self.held.front_mut() {
            if held.copied.as_mut().poll(cx).is_pending() {
                return;
            }
            if let Some(Held { turn, batch, done, .. }) = self.held.pop_front() {
                self.append(turn, batch, done);
                *progress = true;
            }
        }
    }

    fn open_turn(&mut self, no: TurnNo, lane: Option<String>) {
        let span = tracing::info_span!(
            parent: None,
            "turn",
            otel.status_code = Empty,
            session.id = %self.id,
            ringspan.epoch = self.epoch.0,
            ringspan.upstream = self.route.upstream.name,
            ringspan.turn.number = no,
            ringspan.turn.first_event_seconds = Empty,
            ringspan.turn.outcome = Empty,
        );
        propagation::link(&span, &self.origin);
        let watch = TurnWatch {
            accepted: Instant::now(),
            visible: false,
            refused: false,
            span,
            queued: Some(self.ctx.metrics.queued_turn(&self.route.path)),
        };
        self.streams.open(no, lane, Some(watch));
    }

    fn append(&mut self, turn: TurnNo, batch: Batch, done: bool) {
        let now = Instant::now();
        if done {
            self.slots.remove(&turn);
        }
        let Some(stream) = self.streams.get_mut(turn) else { return };
        let outcome = done.then(|| outcome(&batch));
        let numbered = match &mut stream.numbering {
            Some(numbering) => numbering.apply(batch),
            None => Some(batch),
        };
        if let Some(batch) = numbered {
            stream.log.push(batch, now);
        }
        // A client that reads one turn while another's does not must not make the second
        // one's log grow without bound: it falls behind the floor and is let go.
        // Time alone lets go of nothing: who comes back reads the turn from its start.
        stream.log.trim(self.ctx.limits.replay_bytes, Duration::MAX, now);
        if stream.log.floor() > 1
            && let Some(turns) = &mut self.turns
        {
            turns.on_trimmed(turn);
        }
        if let Some(watch) = stream.turn.as_mut().filter(|watch| !watch.visible) {
            watch.visible = true;
            watch.queued = None;
            let took = now - watch.accepted;
            watch.span.record("ringspan.turn.first_event_seconds", took.as_secs_f64());
            self.ctx.metrics.turn_first_event(&self.route.path, took);
        }
        if let Some(outcome) = outcome {
            stream.done = Some(now);
            if let Some(watch) = stream.turn.take() {
                let outcome = match outcome {
                    TurnOutcome::Failed if watch.refused => TurnOutcome::Refused,
                    outcome => outcome,
                };
                watch.span.record("ringspan.turn.outcome", outcome.as_str());
                if matches!(outcome, TurnOutcome::Failed | TurnOutcome::Unknown) {
                    propagation::failed(&watch.span);
                }
                self.ctx.metrics.turn(&self.route.path, outcome, now - watch.accepted);
                let took = (now - watch.accepted).as_secs_f64();
                let text = format!("turn {turn} {} after {took:.2} s", outcome.as_str());
                self.ctx.events.note("turn", &self.id, text);
            }
            self.turn_ended();
        }
    }
}

/// The log of a turn was let go before its client asked for it.
fn gone() -> Batch {
    let text = "the events of this response are not held any more";
    Batch::one(&error_event(&Error::new(Code::NotFound, text), None))
}

/// How a turn ended, from its last message.
fn outcome(batch: &Batch) -> TurnOutcome {
    let event = batch.messages().last().and_then(|message| ServerEvent::parse(&message));
    let Some(event) = event else { return TurnOutcome::Failed };
    match event.stage {
        Stage::Completed => TurnOutcome::Completed,
        Stage::Incomplete => TurnOutcome::Incomplete,
        Stage::Error if event.error_code.as_deref() == Some(Code::OutcomeUnknown.as_str()) => {
            TurnOutcome::Unknown
        }
        _ => TurnOutcome::Failed,
    }
}

/// How a dial's failure is told to the turns that waited for it: the upstream's own words
/// where it had any.
pub(super) fn dial_error(error: &DialError) -> (u16, Value, Option<Duration>) {
    if let DialError::Refused(refusal) = error {
        let Told { status, error, retry_after } = refusal.told();
        return (status, error, retry_after);
    }
    let told = error.told();
    (told.code.status(), told.body(), told.retry_after())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Message;

    #[tokio::test(start_paused = true)]
    async fn ends_that_are_held_together_wait_together() {
        let batch = Batch::one(&Message::text("{}"));
        let (acknowledge, copied): (Vec<_>, Vec<_>) = (0..8).map(|_| oneshot::channel()).unzip();
        let began = Instant::now();
        let held = (1..).zip(copied);
        let held: Vec<_> =
            held.map(|(turn, copied)| Held::new(turn, batch.clone(), true, Some(copied))).collect();
        for held in held {
            held.copied.await;
        }
        assert!(began.elapsed() < 2 * HOLD, "{:?}", began.elapsed());
        drop(acknowledge);
    }
}
