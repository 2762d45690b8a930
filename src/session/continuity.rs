//! What a session does so that its conversation survives: copies for the heir, parts for the
//! database.

use std::{
    sync::{Arc, atomic::AtomicBool, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use super::{
    actor::Actor,
    archive::{Found, Write},
    history::Past,
    replica::{Copy, Ended},
    seal::Place,
    warm::{Prepared, Warm},
};
use crate::{config::Continuity, ids::Incarnation};

/// Parts of a conversation in the database above which the next one replaces them all.
const MAX_PARTS: usize = 64;

/// How far the database has the conversation.
#[derive(Default)]
pub(super) struct Archived {
    /// Number of the next part.
    next: u32,
    /// Parts, and bytes of them, since all were replaced by one.
    parts: usize,
    bytes: usize,
    /// All that the database has is known here, so that one part may replace it.
    complete: bool,
    /// A part was lost on its way, or should be written again: the next one holds all.
    torn: Arc<AtomicBool>,
    reading: Option<oneshot::Receiver<Option<Found>>>,
}

impl Archived {
    /// `complete` if the database has nothing yet.
    pub(super) fn new(complete: bool) -> Self {
        Self { complete, ..Self::default() }
    }
}

impl Actor {
    /// The conversation with what it takes to go on with it.
    pub(super) fn warm(&self, past: Vec<Past>) -> Warm {
        Warm {
            principal: self.principal,
            route: Arc::clone(&self.route),
            key_label: self.key_label.clone(),
            upgrade: self.upgrade.clone(),
            past,
            shunned: self.shunned.clone(),
            cut: Vec::new(),
        }
    }

    /// All of the conversation, for an heir.
    pub(super) fn prepared(&self) -> Option<Prepared> {
        let past = self.turns.as_ref()?.history().all().to_vec();
        let warm = Warm { cut: self.cuts(), ..self.warm(past) };
        Some(Prepared { session: self.id, from: Some(self.ctx.me), append: false, warm })
    }

    /// The conversation grew; the end of its turn waits until that is kept as the route asks.
    pub(super) fn remembered(&mut self, past: Past) {
        self.copying = match self.route.continuity {
            Continuity::Memory => None,
            Continuity::Replica => {
                let append = past.previous.is_some() && self.replicated;
                self.replicate(append.then_some(past))
            }
            Continuity::Database => self.archive(past),
        };
    }

    /// Copies all of the conversation to the heir.
    pub(super) fn replicate_all(&mut self) {
        let nothing = self.turns.as_ref().is_none_or(|turns| turns.history().all().is_empty());
        if self.route.continuity == Continuity::Replica && !nothing {
            drop(self.replicate(None));
        }
    }

    /// Copies this part of the conversation to the heir, which has the rest; or all of it.
    fn replicate(&mut self, part: Option<Past>) -> Option<oneshot::Receiver<()>> {
        if !self.ctx.replicator.has_heir(self.id, &self.stats) {
            // All of it is much to put together at each turn for nobody.
            self.replicated = false;
            return None;
        }
        let prepared = match part {
            Some(part) => {
                let (from, warm) = (Some(self.ctx.me), self.warm(vec![part]));
                Prepared { session: self.id, from, append: true, warm }
            }
            None => self.prepared()?,
        };
        let (acknowledge, acknowledged) = oneshot::channel();
        let (stats, actor) = (Arc::clone(&self.stats), self.itself.clone());
        let copy = Copy { prepared, acknowledge, stats, actor };
        self.replicated = self.ctx.replicator.put(copy);
        self.replicated.then_some(acknowledged)
    }

    /// The session's stay here has ended: whoever has a copy needs it no more, but for `next`, who owns
    /// the session now.
    pub(super) fn let_go_of_copies(&self, next: Option<Incarnation>) {
        let stats = Arc::clone(&self.stats);
        self.ctx.replicator.ended(&Ended { session: self.id, stats, next });
    }

    /// Leaves what the conversation grew by to the database; or all of it, in the place of
    /// what is there, where the turn began anew, where there are many parts, or where one
    /// was lost or is of an old key.
    fn archive(&mut self, past: Past) -> Option<oneshot::Receiver<()>> {
        let turns = self.turns.as_mut()?;
        if !self.archived.complete {
            // So that one of the next parts can replace what is there.
            let actions = turns.recall();
            self.perform(actions);
        }
        let history = self.turns.as_ref()?.history();
        let archived = &mut self.archived;
        let torn = archived.torn.swap(false, Relaxed);
        let whole = archived.complete
            && (torn
                || past.previous.is_none()
                || archived.parts >= MAX_PARTS
                || archived.bytes + past.items.len() > self.ctx.limits.history_bytes
                || !history.has(&past.id));
        let past = if whole || torn { history.all().to_vec() } else { vec![past] };
        if whole {
            (archived.parts, archived.bytes) = (0, 0);
        }
        archived.parts += 1;
        archived.bytes += past.iter().map(|past| past.items.len()).sum::<usize>();
        let place = Place { session: self.id, epoch: self.epoch, no: archived.next };
        archived.next = archived.next.wrapping_add(1);
        let (acknowledge, acknowledged) = oneshot::channel();
        let torn = Arc::clone(&archived.torn);
        let write = Write { place, whole, past, acknowledge, torn };
        if self.ctx.archive.put(write) {
            return Some(acknowledged);
        }
        self.archived.torn.store(true, Relaxed);
        None
    }

    /// Begins to read what the database has.
    pub(super) fn read_archive(&mut self) {
        let (answer, reading) = oneshot::channel();
        let read = self.ctx.archive.clone().read(self.id);
        self.ctx.tracker.spawn(async move {
            // The session may have ended.
            let _ = answer.send(read.await);
        });
        self.archived.reading = Some(reading);
    }

    pub(super) fn poll_archive(&mut self, cx: &mut Context<'_>, progress: &mut bool) {
        let Some(reading) = &mut self.archived.reading else { return };
        let Poll::Ready(found) = reading.poll_unpin(cx) else { return };
        *progress = true;
        self.archived.reading = None;
        let Some(turns) = &mut self.turns else { return };
        let actions = if let Ok(Some(Found { past, parts, outdated })) = found {
            let actions = turns.on_recalled(past);
            self.archived.complete = true;
            self.archived.torn.fetch_or(outdated, Relaxed);
            self.archived.parts = self.archived.parts.max(parts);
            self.archived.bytes = turns.history().bytes();
            actions
        } else {
            turns.on_recall_failed()
        };
        self.perform(actions);
    }
}
