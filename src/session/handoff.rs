//! How a session's stay on this node ends.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{Instrument, Span};

use super::{
    actor::{Actor, Departure, Exit},
    passing::{MAX_HEIRS, Passing, TRIES, pause},
    transfer::Went,
    turns::Turns,
};
use crate::{
    error::{Code, Error},
    link::Frame,
    telemetry::{
        metrics::{HandoffOutcome, HandoffReason},
        propagation,
    },
};

/// How long clients may take to collect their last messages.
const SETTLE: Duration = Duration::from_secs(5);

/// How long clients may take for what had been said when the session was told to stop.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long the ledger may take for what became of a session's turns.
const FLUSH: Duration = Duration::from_secs(2);

/// How long closed sessions stay as fences at least, and their aliases can be asked for.
pub const KEEP_CLOSED: Duration = Duration::from_hours(1);

/// How long one that no upstream ever knew stays when it ends: far longer than a call to the
/// store may take.
const KEEP_EMPTY: Duration = Duration::from_mins(1);

/// How long closed sessions stay: the ledger's rows of a session, and with them its keys, go with
/// it.
#[must_use]
pub fn keep_closed(turn_retention: Duration) -> Duration {
    KEEP_CLOSED.max(turn_retention)
}

/// Serves a session and ends it as the reason asks.
pub(super) async fn run(mut actor: Box<Actor>) {
    loop {
        match actor.serve().await {
            Exit::Abandoned | Exit::Unreachable if actor.never_was() => retire(&actor).await,
            Exit::Abandoned => {
                actor.close_upstream();
                // An opaque session has said nothing that the database keeps.
                if actor.turns.is_some() {
                    close(&actor).await;
                } else {
                    release(&actor).await;
                }
                actor.let_go_of_copies(None);
            }
            // What was said under earlier owners may still be asked for.
            Exit::Unreachable => release(&actor).await,
            Exit::UpstreamClosed(frame) => {
                actor.settle(SETTLE).await;
                actor.dismiss(&Frame::Close(frame));
                release(&actor).await;
            }
            Exit::HandOff(departure) if actor.turns.is_none() => free(&mut actor, &departure).await,
            Exit::HandOff(departure) => {
                let headers = actor.upgrade.headers.clone();
                let span = begin(&mut actor);
                if hand_off(&mut actor, &departure).instrument(span).await == Stay::GoesOn {
                    // A later dial goes on with the client's trace, not with this attempt.
                    actor.upgrade.headers = headers;
                    continue;
                }
            }
            // A quiesce that took effect unheard holds up the ledger as well.
            Exit::Fenced(turn) if stays(&actor).await == Some(true) => {
                actor.ask_again(turn);
                continue;
            }
            Exit::Fenced(_) => {
                actor.on_fenced();
                actor.settle(SETTLE).await;
                actor.dismiss(&Frame::Moved);
                actor.close_upstream();
            }
            Exit::Stopped(error) => stop(&mut actor, error).await,
        }
        return;
    }
}

/// The span of a transfer. It goes on with the trace of the newest client that did not only read,
/// and what the heir is left names it, so the heir's spans can point back at it.
fn begin(actor: &mut Actor) -> Span {
    let span = tracing::info_span!(
        parent: None,
        "handoff",
        session.id = %actor.id,
        ringspan.epoch = actor.epoch.0,
    );
    propagation::enter(&span, &mut actor.upgrade.headers);
    span
}

impl Departure {
    /// At most `limit`; at a deadline also no more than one of so many parts of what is left.
    fn within(&self, limit: Duration, parts: u32, now: Instant) -> Duration {
        match self {
            Self::Deadline(until) => limit.min(until.saturating_duration_since(now) / parts),
            Self::Drain | Self::Balance(_) => limit,
        }
    }
}

/// Whether the session's stay here has ended.
#[derive(PartialEq, Eq)]
enum Stay {
    Over,
    GoesOn,
}

/// Planned transfer at a turn boundary: quiesce, deliver, prepare, commit, tell, nudge.
///
/// *Invariant (I5):* nothing is read from a client after the quiesce, so what a client has
/// sent and not seen answered was not dispatched, and its edge may send it to the heir.
async fn hand_off(actor: &mut Actor, departure: &Departure) -> Stay {
    let started = Instant::now();
    let (id, epoch) = (actor.id, actor.epoch);
    let must_leave = !matches!(departure, Departure::Balance(_));
    if *departure == Departure::Drain && waits_for_heir(actor) {
        actor.stay_for_now(0);
        return Stay::GoesOn;
    }
    let quiesced = actor.ctx.store.quiesce(id, actor.ctx.me, epoch).await;
    if quiesced.is_err() && *departure == Departure::Drain {
        // Nobody else may have the conversation yet, and a drain has time. At its deadline it
        // has none.
        tracing::debug!(session = %id, "the store does not answer; leaving later");
        actor.leave_later();
        return Stay::GoesOn;
    }
    // From here on the ledger begins no turn of this epoch, so what it is told now is all.
    if must_leave {
        let left = actor.turns.as_ref().map(Turns::leave_behind);
        actor.perform(left.unwrap_or_default());
    }
    // Of what is left at a deadline: the ledger does not need to know, clients want to.
    actor.flush_ledger(departure.within(FLUSH, 4, Instant::now())).await;
    actor.settle(departure.within(SETTLE, 2, Instant::now())).await;
    let heirs = match departure {
        Departure::Balance(heirs) => heirs.clone(),
        _ => actor.ctx.ring.borrow().heirs(id, actor.ctx.me),
    };
    let until = match departure {
        Departure::Deadline(until) => Some(*until),
        Departure::Drain | Departure::Balance(_) => None,
    };
    let asked = heirs.len().min(MAX_HEIRS);
    let went = match actor.prepared() {
        Some(prepared) if quiesced == Ok(true) => {
            let passing = Passing { ctx: &actor.ctx, id, epoch, prepared, until };
            passing.transfer(heirs, must_leave, until.is_some()).await
        }
        _ => Went::Nowhere,
    };
    let (reason, outcome) = (
        reason(departure),
        if went == Went::Nowhere { HandoffOutcome::Failed } else { HandoffOutcome::Ok },
    );
    actor.ctx.metrics.handoff(reason, outcome, started.elapsed());
    if let Went::To(heir, _) = went {
        actor.let_go_of_copies(Some(heir));
    } else if goes_on(actor, departure, quiesced.is_err(), asked).await {
        return Stay::GoesOn;
    } else {
        // Nobody to take it: whoever is asked for it next may claim it.
        release(actor).await;
    }
    actor.dismiss(&Frame::Moved);
    // Before the heir dials: a session has one upstream connection at a time.
    actor.close_upstream();
    if let Went::To(heir, _) = went {
        // Not waited for: as long as this task lives, who asks here for the session is not told
        // that it is elsewhere.
        actor.ctx.activate(heir, id);
    }
    Stay::Over
}

/// Whether a session that went nowhere goes on here. `untried`: no transfer was tried; `asked`:
/// so many heirs could be.
async fn goes_on(actor: &mut Actor, departure: &Departure, untried: bool, asked: usize) -> bool {
    match departure {
        // Nothing forced it to leave, so it stays, unless it is not ours any more: without a
        // transfer nobody else can have it.
        Departure::Balance(_) => stays(actor).await.unwrap_or(untried),
        // Only at its end a drain gives a conversation up that somebody may take yet.
        Departure::Drain if may_find_heir(actor, asked > 0) => {
            let stays = stays(actor).await;
            match stays {
                Some(true) => actor.stay_for_now(asked),
                None => actor.stay_unsure(),
                Some(false) => {}
            }
            stays != Some(false)
        }
        Departure::Drain | Departure::Deadline(_) => false,
    }
}

/// Whether a drain has nobody to offer the conversation to, and somebody may come. Not where an
/// heir may have it already: the store has to say so.
fn waits_for_heir(actor: &Actor) -> bool {
    let nobody = actor.ctx.ring.borrow().heirs(actor.id, actor.ctx.me).is_empty();
    nobody && !actor.unsure && may_find_heir(actor, false)
}

/// Whether a later try of a drain may save a conversation that nobody took: there were heirs,
/// who did not answer or had no room, or somebody joins.
fn may_find_heir(actor: &Actor, had_heirs: bool) -> bool {
    let remembers = actor.turns.as_ref().is_some_and(|turns| !turns.history().all().is_empty());
    let me = actor.ctx.me;
    let ring = actor.ctx.ring.borrow();
    remembers && (had_heirs || ring.has_other_active(me) || ring.has_joining(me))
}

/// An opaque session has nothing to leave with an heir, which may have no room for it: whoever
/// has claims it. Its upstream goes first, so that it has one connection at a time.
async fn free(actor: &mut Actor, departure: &Departure) {
    actor.settle(departure.within(SETTLE, 2, Instant::now())).await;
    actor.close_upstream();
    release(actor).await;
    actor.dismiss(&Frame::Moved);
}

/// Whether a session that could as well stay is still ours; None: the store does not answer.
async fn stays(actor: &Actor) -> Option<bool> {
    for _ in 0..TRIES {
        match actor.ctx.store.resume(actor.id, actor.ctx.me, actor.epoch).await {
            Ok(ours) => return Some(ours),
            Err(_) => pause().await,
        }
    }
    None
}

const fn reason(departure: &Departure) -> HandoffReason {
    match departure {
        Departure::Drain => HandoffReason::Drain,
        Departure::Deadline(_) => HandoffReason::Deadline,
        Departure::Balance(_) => HandoffReason::Balance,
    }
}

async fn stop(actor: &mut Actor, error: Error) {
    // What waits for its copy is said now, but not without a lease (I4).
    if actor.ctx.lease.is_live_now() {
        actor.release_held();
    }
    actor.settle(LAST_WORDS).await;
    // One that has ended, and whose end nobody may be told now, has run as well.
    let runs = actor.turns.as_ref().is_some_and(|turns| turns.running() > 0);
    let busy = runs || !actor.held.is_empty();
    let error = if busy {
        let text = "this node stopped during this turn; whether it finished is unknown";
        Error::new(Code::OutcomeUnknown, text)
    } else {
        error
    };
    actor.dismiss(&Frame::Failed(error));
    actor.close_upstream();
    if actor.ctx.lease.is_live_now() {
        release(actor).await;
    }
}

/// Fenced by epoch: if the session is somebody else's by now, nothing happens.
async fn release(actor: &Actor) {
    actor.flush_ledger(FLUSH).await;
    actor.ctx.events.note("released", &actor.id, format!("given up, epoch {}", actor.epoch));
    if let Err(error) = actor.ctx.store.release(actor.id, actor.ctx.me, actor.epoch).await {
        // The row keeps naming this incarnation; whoever asks for the session here claims it
        // anew, and once this node is gone anybody may.
        tracing::warn!(session = %actor.id, %error, "releasing the session failed");
    }
}

/// Its row goes by one of the next sweeps: clients whose credential the upstream does not take
/// would otherwise leave one behind with each request, for as long as closed sessions are kept.
async fn retire(actor: &Actor) {
    actor.ctx.events.note("released", &actor.id, format!("never was, epoch {}", actor.epoch));
    let age = actor.ctx.keep_closed.saturating_sub(KEEP_EMPTY);
    if let Err(error) = actor.ctx.store.retire(actor.id, actor.ctx.me, actor.epoch, age).await {
        tracing::warn!(session = %actor.id, %error, "releasing the session failed");
    }
}

/// As [`release`]; what the session has said is deleted with it.
async fn close(actor: &Actor) {
    if let Err(error) = actor.ctx.store.close(actor.id, actor.ctx.me, actor.epoch).await {
        tracing::warn!(session = %actor.id, %error, "closing the session failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_a_deadline_nothing_takes_more_than_its_part_of_what_is_left() {
        let now = Instant::now();
        let left = |seconds| Departure::Deadline(now + Duration::from_secs(seconds));
        assert_eq!(left(4).within(SETTLE, 2, now), Duration::from_secs(2));
        assert_eq!(left(60).within(SETTLE, 2, now), SETTLE);
        assert_eq!(left(4).within(SETTLE, 2, now + SETTLE), Duration::ZERO, "it is over");
        assert_eq!(Departure::Drain.within(SETTLE, 2, now), SETTLE);
    }
}
