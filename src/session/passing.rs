//! Sessions on their way to an heir: prepared, committed, nudged. Also those that were handed
//! to this node and that nobody has opened here: a drain passes them on.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument as _, Span};

use super::{
    Context, Registry,
    transfer::{Step, Went, after_answer, after_reread},
    warm::Prepared,
};
use crate::{
    ids::{Epoch, Incarnation, SessionId},
    jitter::spread,
    store::{SessionFilter, SessionRow},
    telemetry::metrics::{HandoffOutcome, HandoffReason},
};

/// How long an heir may take to keep a conversation.
const PREPARE: Duration = Duration::from_secs(2);

/// Heirs that are asked before the session is left to whoever wants it.
pub(super) const MAX_HEIRS: usize = 4;

/// Tries of one transfer whose answer was lost, and of reading what came of it.
pub(super) const TRIES: u32 = 3;

/// Rows listed in one call.
const PAGE: u32 = 500;

/// Sessions that are passed on at a time.
const AT_ONCE: usize = 64;

/// Pause between tries of one call, spread: what fails for one session fails for many.
pub(super) async fn pause() {
    const PAUSE: Duration = Duration::from_millis(200);
    sleep(spread(PAUSE)).await;
}

/// How long the next heir may take: at most half of what is left, so that another one has time
/// as well. None: nobody is asked any more.
fn time_to_prepare(until: Option<Instant>, now: Instant) -> Option<Duration> {
    let Some(until) = until else { return Some(PREPARE) };
    let left = until.saturating_duration_since(now);
    (!left.is_zero()).then(|| PREPARE.min(left / 2))
}

/// A session of this node that leaves in its epoch, with what its heir needs.
pub(super) struct Passing<'a> {
    pub(super) ctx: &'a Arc<Context>,
    pub(super) id: SessionId,
    pub(super) epoch: Epoch,
    pub(super) prepared: Prepared,
    /// Heirs are asked until then.
    pub(super) until: Option<Instant>,
}

impl Passing<'_> {
    /// Prepares one heir after another until one owns the session, which is quiescing.
    /// `must_leave` and `forced` as in [`after_answer`]. Dropped, it may have taken effect.
    pub(super) async fn transfer(
        &self,
        heirs: Vec<Incarnation>,
        must_leave: bool,
        mut forced: bool,
    ) -> Went {
        let Self { ctx, id, epoch, .. } = *self;
        for heir in heirs.into_iter().take(MAX_HEIRS) {
            if !self.prepare(heir).await {
                continue;
            }
            for _ in 0..TRIES {
                let answer = ctx.store.transfer(id, ctx.me, epoch, heir, forced).await;
                match after_answer(&answer, forced, must_leave) {
                    Step::Moved(epoch) => return self.moved(heir, epoch),
                    Step::NextHeir => break,
                    Step::Force => {
                        forced = true;
                        continue;
                    }
                    Step::GiveUp => return Went::Nowhere,
                    Step::Reread => {}
                }
                let error = answer.err();
                tracing::warn!(session = %id, %heir, ?error, "no answer to a transfer, reading what came of it");
                match after_reread(self.reread().await.as_ref(), ctx.me, epoch) {
                    Some(Went::To(heir, epoch)) => return self.moved(heir, epoch),
                    Some(Went::Nowhere) => return Went::Nowhere,
                    None => {}
                }
            }
        }
        Went::Nowhere
    }

    fn moved(&self, heir: Incarnation, epoch: Epoch) -> Went {
        tracing::info!(session = %self.id, %heir, %epoch, "session handed over");
        let text = format!("handed over to incarnation {heir}, epoch {epoch}");
        self.ctx.events.emit("handoff", Some(&self.id), &text);
        Went::To(heir, epoch)
    }

    /// The session's row; None if it is gone or the store does not answer.
    async fn reread(&self) -> Option<SessionRow> {
        for _ in 0..TRIES {
            match self.ctx.store.session(self.id).await {
                Ok(row) => return row,
                Err(_) => pause().await,
            }
        }
        None
    }

    /// Leaves the conversation with the heir before it owns the session: once it does, a client
    /// may ask at any moment. False if the heir does not answer or has no room, so another one is asked.
    async fn prepare(&self, heir: Incarnation) -> bool {
        let prepared = Prepared { from: None, ..self.prepared.clone() };
        let Some(limit) = time_to_prepare(self.until, Instant::now()) else { return false };
        let Some(addr) = self.ctx.addr_of(heir) else { return false };
        match timeout(limit, self.ctx.heirs.prepare(heir, &addr, &[prepared])).await {
            Ok(Ok(kept)) => kept == [true],
            Ok(Err(error)) => {
                tracing::warn!(session = %self.id, %heir, error, "preparing the heir failed");
                false
            }
            Err(_) => false,
        }
    }
}

impl Context {
    /// Only a nudge, and nobody waits for it: the heir learns of the session at the latest when
    /// a client asks.
    pub(super) fn activate(&self, heir: Incarnation, id: SessionId) {
        let Some(addr) = self.addr_of(heir) else { return };
        let heirs = Arc::clone(&self.heirs);
        let nudge = async move {
            drop(timeout(PREPARE, heirs.activate(heir, &addr, id)).await);
        };
        self.tracker.spawn(nudge.instrument(Span::current()));
    }

    fn addr_of(&self, heir: Incarnation) -> Option<String> {
        self.ring.borrow().member(heir).map(|member| member.peer_addr.clone())
    }
}

impl Registry {
    /// Passes on the sessions that were handed to this node, which drains, and that nobody has
    /// opened here since: their rows name us, no task does, and none will. What has no heir
    /// yet stays for the next call, unless this is the `last` one: then whoever is asked for it
    /// may claim it. So does what no heir would take, or the store not hear of. How many went;
    /// the store's failures are logged. Dropped, it leaves the rest as it is.
    pub async fn pass_on_unopened(&self, last: bool) -> usize {
        let me = self.ctx.me;
        let mut filter = SessionFilter { owner: Some(me), limit: PAGE, ..SessionFilter::default() };
        let mut went = 0;
        loop {
            let rows = match self.ctx.store.sessions(&filter).await {
                Ok(rows) => rows,
                Err(error) => {
                    tracing::warn!(%error, "listing our sessions failed");
                    return went;
                }
            };
            filter.after = rows.last().map(|row| row.id);
            if rows.is_empty() {
                return went;
            }
            let unopened = rows.iter().filter(|row| !self.knows(row.id));
            let passed: Vec<bool> = stream::iter(unopened)
                .map(|row| self.pass_on(row, last))
                .buffer_unordered(AT_ONCE)
                .collect()
                .await;
            went += passed.into_iter().filter(|went| *went).count();
        }
    }

    /// Whether the session went, or was released.
    async fn pass_on(&self, row: &SessionRow, last: bool) -> bool {
        let (id, me, epoch) = (row.id, self.ctx.me, row.epoch);
        let heirs = self.ctx.ring.borrow().heirs(id, me);
        if heirs.is_empty() && !last && self.warm.has(id) {
            return false;
        }
        if let Some(warm) = self.warm.copy(id) {
            let started = Instant::now();
            let prepared = Prepared { session: id, from: None, append: false, warm };
            let passing = Passing { ctx: &self.ctx, id, epoch, prepared, until: None };
            let quiesced = self.ctx.store.quiesce(id, me, epoch).await == Ok(true);
            let went =
                if quiesced { passing.transfer(heirs, true, false).await } else { Went::Nowhere };
            let outcome =
                if went == Went::Nowhere { HandoffOutcome::Failed } else { HandoffOutcome::Ok };
            self.ctx.metrics.handoff(HandoffReason::Drain, outcome, started.elapsed());
            if let Went::To(heir, _) = went {
                drop(self.warm.take(id));
                self.ctx.metrics.heir_conversations(self.copies());
                self.ctx.activate(heir, id);
                return true;
            }
            if !last {
                // This is the only copy of it: tried again.
                return false;
            }
        }
        if let Err(error) = self.ctx.store.release(id, me, epoch).await {
            tracing::warn!(session = %id, %error, "releasing a session failed");
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_heirs_do_not_answer_they_are_asked_until_the_deadline_only() {
        let begun = Instant::now();
        let until = begun + Duration::from_secs(5);
        let mut now = begun;
        for _ in 0..MAX_HEIRS {
            let limit = time_to_prepare(Some(until), now).expect("there is time");
            assert!(limit <= PREPARE && !limit.is_zero());
            now += limit;
        }
        assert!(now < until);
        assert_eq!(time_to_prepare(Some(until), until), None);
        assert_eq!(time_to_prepare(None, until), Some(PREPARE));
    }
}
