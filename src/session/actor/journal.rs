//! The session's side of the ledger of turns.

use std::{
    pin::Pin,
    task::{Context as Cx, Poll},
    time::Duration,
};

use super::{Actor, Exit};
use crate::{
    error::{Code, Error},
    session::{
        event::error_event,
        ledger::Unwritten,
        quota::Slot,
        turns::{Answer, ClientId, Journaled, TurnNo, Turns},
    },
    store::{Began, NewTurn, TurnKey, TurnMark, TurnState},
    telemetry::metrics::LedgerRefusal,
    wire::Batch,
};

type Asked = Pin<Box<dyn Future<Output = Result<(Began, Option<Slot>), Unsent>> + Send + Sync>>;

/// Why a turn may not be sent, beside what the ledger knows of it.
enum Unsent {
    /// The ledger could not be written in time.
    Unwritten,
    /// Its principal has no room for it.
    Refused(Error),
}

/// A turn that is being admitted and that the ledger is being told of. At most as many as lanes may run.
pub(super) struct Entry {
    turn: TurnNo,
    answer: Asked,
}

impl Actor {
    pub(in crate::session) fn journal(
        &mut self,
        turn: TurnNo,
        key: Option<TurnKey>,
        request: u128,
        repeatable: bool,
    ) {
        // The same row as an earlier wish of this turn, which was not sent: its answer will do.
        if self.journal.iter().any(|entry| entry.turn == turn) {
            return;
        }
        let new = NewTurn {
            session: self.id,
            epoch: self.epoch,
            no: turn,
            key,
            request: request.to_be_bytes(),
            repeatable,
        };
        // One that is sent once more is counted already.
        let counted = self.slots.contains_key(&turn);
        let quotas = self.ctx.quotas.as_ref().filter(|_| !counted);
        let admitted = quotas.map(|quotas| quotas.admit(self.principal));
        let ledger = self.route.ledger.then(|| self.ctx.ledger.clone());
        let answer = async move {
            let slot = match admitted {
                Some(admitted) => Some(admitted.await.map_err(Unsent::Refused)?),
                None => None,
            };
            let began = match ledger {
                Some(ledger) => ledger.begin(new).await.map_err(|Unwritten| Unsent::Unwritten)?,
                None => Began::Begun,
            };
            Ok((began, slot))
        };
        self.journal.push(Entry { turn, answer: Box::pin(answer) });
    }

    pub(in crate::session) fn mark(
        &mut self,
        no: TurnNo,
        state: TurnState,
        response: Option<String>,
    ) {
        let (session, epoch) = (self.id, self.epoch);
        let response = response.map(|id| TurnMark::response(&id));
        self.ctx.ledger.mark(TurnMark { session, epoch, no, state, response });
    }

    /// The ledger's answers: turns that may be sent now, or must not.
    pub(super) fn poll_journal(&mut self, cx: &mut Cx<'_>, progress: &mut bool) -> Option<Exit> {
        let mut at = 0;
        while at < self.journal.len() {
            let Poll::Ready(answer) = self.journal[at].answer.as_mut().poll(cx) else {
                at += 1;
                continue;
            };
            *progress = true;
            let turn = self.journal.swap_remove(at).turn;
            let (answer, slot) = match answer {
                Ok((began, slot)) => (Answer::of(Some(began), self.epoch), slot),
                Err(Unsent::Unwritten) => (Answer::of(None, self.epoch), None),
                Err(Unsent::Refused(error)) => (Answer::Told(Journaled::Refused(error)), None),
            };
            let journaled = match answer {
                Answer::Told(journaled) => journaled,
                Answer::GivenUp(no) => {
                    self.mark(no, TurnState::Failed, None);
                    Journaled::Unwritten
                }
                Answer::Fenced => {
                    self.ctx.metrics.ledger_refusal(LedgerRefusal::Fenced);
                    tracing::warn!(session = %self.id, epoch = %self.epoch, "the ledger says that the session has a new owner");
                    let actions = self.turns.as_mut().map(Turns::on_fenced);
                    self.release_held();
                    self.perform(actions.unwrap_or_default());
                    return Some(Exit::Fenced);
                }
            };
            let watch = self.streams.get_mut(turn).and_then(|stream| stream.turn.as_mut());
            if let Some(watch) = watch {
                watch.refused = journaled != Journaled::Begun;
            }
            match &journaled {
                Journaled::Begun => {
                    // Not for a turn that has ended meanwhile: nobody would give it back.
                    let lasts = self.streams.get(turn).is_some_and(|s| s.done.is_none());
                    self.slots.extend(slot.filter(|_| lasts).map(|slot| (turn, slot)));
                }
                Journaled::Refused(_) => {}
                Journaled::Duplicate(_) => {
                    self.ctx.metrics.ledger_refusal(LedgerRefusal::Duplicate);
                }
                Journaled::Unwritten => self.ctx.metrics.ledger_refusal(LedgerRefusal::Unwritten),
            }
            let turns = self.turns.as_mut();
            let actions = turns.map(|turns| turns.on_journaled(turn, &journaled));
            self.perform(actions.unwrap_or_default());
        }
        None
    }

    /// Waits until the ledger knows what became of this session's turns, or `limit` is over.
    pub(in crate::session) async fn flush_ledger(&self, limit: Duration) {
        if self.route.ledger
            && tokio::time::timeout(limit, self.ctx.ledger.flush(self.id)).await.is_err()
        {
            tracing::warn!(session = %self.id, "the ledger was not written in time");
        }
    }

    /// Lets a client read a turn that another one asked for, if the log has all of it.
    pub(in crate::session) fn rejoin(&mut self, client: ClientId, turn: TurnNo, otherwise: Batch) {
        let whole = self.streams.get(turn).is_some_and(|stream| stream.log.floor() <= 1);
        let Some(client) = self.clients.iter_mut().find(|c| c.id == client) else { return };
        if !client.may_rejoin() {
            let error = Error::new(Code::QueueFull, "too much is to be told; retry later");
            client.answer(Batch::one(&error_event(&error, None)), 1);
        } else if whole {
            client.subscribe(turn, 1);
        } else {
            client.answer(otherwise, 1);
        }
    }
}
