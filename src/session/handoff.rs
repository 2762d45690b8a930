//! How a session's stay on this node ends.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument, Span};

use super::{
    actor::{Actor, Departure, Exit},
    transfer::{Step, Went, after_answer, after_reread},
    turns::Turns,
    warm::Prepared,
};
use crate::{
    error::{Code, Error},
    ids::Incarnation,
    link::Frame,
    store::SessionRow,
    telemetry::{
        metrics::{HandoffReason, Outcome},
        propagation,
    },
};

/// How long clients may take to collect their last messages.
const SETTLE: Duration = Duration::from_secs(5);

/// How long clients may take for what had been said when the session was told to stop.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long an heir may take to keep a conversation.
const PREPARE: Duration = Duration::from_secs(2);

/// How long the ledger may take for what became of a session's turns.
const FLUSH: Duration = Duration::from_secs(2);

/// Heirs that are asked before the session is left to whoever wants it.
const MAX_HEIRS: usize = 4;

/// Tries of one transfer whose answer was lost, and of reading what came of it.
const TRIES: u32 = 3;

/// Pause between such tries.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves a session and ends it as the reason asks.
pub(super) async fn run(mut actor: Box<Actor>) {
    loop {
        match actor.serve().await {
            Exit::Abandoned => {
                actor.close_upstream();
                close(&actor).await;
                actor.let_go_of_copies(None);
            }
            // What was said under earlier owners may still be asked for.
            Exit::Unreachable => release(&actor).await,
            Exit::UpstreamClosed(frame) => {
                actor.settle(SETTLE).await;
                actor.dismiss(&Frame::Close(frame));
                release(&actor).await;
            }
            Exit::HandOff(departure) => {
                let headers = actor.upgrade.headers.clone();
                let span = begin(&mut actor);
                if hand_off(&mut actor, &departure).instrument(span).await == Stay::GoesOn {
                    // A later dial goes on with the client's trace, not with this attempt.
                    actor.upgrade.headers = headers;
                    continue;
                }
            }
            Exit::Fenced => {
                actor.settle(SETTLE).await;
                actor.dismiss(&Frame::Moved);
                actor.close_upstream();
            }
            Exit::Stopped(error) => stop(&mut actor, error).await,
        }
        return;
    }
}

/// The span of a transfer. It goes on with the trace of the newest client, and what the heir
/// is left names it, so the heir's spans can point back at it.
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
    let quiesced = actor.ctx.store.quiesce(id, actor.ctx.me, epoch).await;
    // From here on the ledger begins no turn of this epoch, so what it is told now is all.
    if !matches!(departure, Departure::Balance(_)) {
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
    let went =
        if quiesced == Ok(true) { transfer(actor, heirs, departure).await } else { Went::Nowhere };
    let (reason, outcome) =
        (reason(departure), if went == Went::Nowhere { Outcome::Failed } else { Outcome::Ok });
    actor.ctx.metrics.handoff(reason, outcome, started.elapsed());
    if let Went::To(heir, epoch) = went {
        tracing::info!(session = %id, %heir, %epoch, "session handed over");
        let text = format!("handed over to incarnation {heir}, epoch {epoch}");
        actor.ctx.events.emit("handoff", Some(&id), &text);
        actor.let_go_of_copies(Some(heir));
    } else {
        // Nothing forced it to leave, so it stays, unless it is not ours any more.
        if matches!(departure, Departure::Balance(_)) && stays(actor, quiesced.is_err()).await {
            return Stay::GoesOn;
        }
        // Nobody to take it: whoever is asked for it next may claim it.
        release(actor).await;
    }
    actor.dismiss(&Frame::Moved);
    if let Went::To(heir, _) = went
        && actor.turns.is_some()
    {
        activate(actor, heir).await;
    }
    actor.close_upstream();
    Stay::Over
}

/// Whether a session that could as well stay is still ours. `untried`: no transfer was tried,
/// so while the store does not answer nobody else can have it.
async fn stays(actor: &Actor, untried: bool) -> bool {
    for _ in 0..TRIES {
        match actor.ctx.store.resume(actor.id, actor.ctx.me, actor.epoch).await {
            Ok(ours) => return ours,
            Err(_) => sleep(PAUSE).await,
        }
    }
    untried
}

const fn reason(departure: &Departure) -> HandoffReason {
    match departure {
        Departure::Drain => HandoffReason::Drain,
        Departure::Deadline(_) => HandoffReason::Deadline,
        Departure::Balance(_) => HandoffReason::Balance,
    }
}

/// Prepares one heir after another until one owns the session.
async fn transfer(actor: &Actor, heirs: Vec<Incarnation>, departure: &Departure) -> Went {
    let (id, me, epoch) = (actor.id, actor.ctx.me, actor.epoch);
    let must_leave = !matches!(departure, Departure::Balance(_));
    let mut forced = matches!(departure, Departure::Deadline(_));
    for heir in heirs.into_iter().take(MAX_HEIRS) {
        if !prepare(actor, heir).await {
            continue;
        }
        for _ in 0..TRIES {
            let answer = actor.ctx.store.transfer(id, me, epoch, heir, forced).await;
            match after_answer(&answer, forced, must_leave) {
                Step::Moved(epoch) => return Went::To(heir, epoch),
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
            let row = reread(actor).await;
            if let Some(went) = after_reread(row.as_ref(), me, epoch) {
                return went;
            }
        }
    }
    Went::Nowhere
}

/// The session's row; None if it is gone or the store does not answer.
async fn reread(actor: &Actor) -> Option<SessionRow> {
    for _ in 0..TRIES {
        match actor.ctx.store.session(actor.id).await {
            Ok(row) => return row,
            Err(_) => sleep(PAUSE).await,
        }
    }
    None
}

/// Leaves the conversation with the heir before it owns the session: once it does, a client
/// may ask at any moment. False if the heir does not answer or has no room, so another one is asked.
async fn prepare(actor: &Actor, heir: Incarnation) -> bool {
    let Some(prepared) = actor.prepared() else { return true };
    let prepared = Prepared { from: None, ..prepared };
    let Some(addr) = addr_of(actor, heir) else { return false };
    match timeout(PREPARE, actor.ctx.heirs.prepare(heir, &addr, &[prepared])).await {
        Ok(Ok(kept)) => kept == [true],
        Ok(Err(error)) => {
            tracing::warn!(session = %actor.id, %heir, error, "preparing the heir failed");
            false
        }
        Err(_) => false,
    }
}

/// Only a nudge: the heir learns of the session at the latest when a client asks.
async fn activate(actor: &Actor, heir: Incarnation) {
    if let Some(addr) = addr_of(actor, heir) {
        drop(timeout(PREPARE, actor.ctx.heirs.activate(heir, &addr, actor.id)).await);
    }
}

fn addr_of(actor: &Actor, heir: Incarnation) -> Option<String> {
    actor.ctx.ring.borrow().member(heir).map(|member| member.peer_addr.clone())
}

async fn stop(actor: &mut Actor, error: Error) {
    // What waits for its copy is said now, but not without a lease (I4).
    if actor.ctx.lease.is_live_now() {
        actor.release_held();
    }
    actor.settle(LAST_WORDS).await;
    let busy = actor.turns.as_ref().is_some_and(|turns| turns.running() > 0);
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
