//! How a session's stay on this node ends.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::actor::{Actor, Exit};
use crate::{
    error::Error,
    ids::Incarnation,
    link::Frame,
    store::Transferred,
    telemetry::metrics::{HandoffReason, Outcome},
};

/// How long clients may take to collect their last messages.
const SETTLE: Duration = Duration::from_secs(5);

/// How long an upstream may take for a close.
const UPSTREAM_CLOSE: Duration = Duration::from_secs(1);

/// How long an heir may take to keep a conversation.
const PREPARE: Duration = Duration::from_secs(2);

/// Heirs that are asked before the session is left to whoever wants it.
const MAX_HEIRS: usize = 4;

/// Serves a session and ends it as the reason asks.
pub(super) async fn run(mut actor: Box<Actor>) {
    match actor.serve().await {
        Exit::Abandoned => {
            actor.close_upstream(UPSTREAM_CLOSE).await;
            close(&actor).await;
        }
        // What was said under earlier owners may still be asked for.
        Exit::Unreachable => release(&actor).await,
        Exit::UpstreamClosed(frame) => {
            actor.settle(SETTLE).await;
            actor.dismiss(&Frame::Close(frame));
            release(&actor).await;
        }
        Exit::HandOff => hand_off(actor).await,
        Exit::Stopped(error) => stop(actor, error).await,
    }
}

/// Planned transfer at a turn boundary: quiesce, deliver, commit, tell.
///
/// *Invariant (I5):* nothing is read from a client after the quiesce, so what a client has
/// sent and not seen answered was not dispatched, and its edge may send it to the heir.
async fn hand_off(mut actor: Box<Actor>) {
    let started = Instant::now();
    let (store, me) = (actor.ctx.store.clone(), actor.ctx.me);
    let (id, epoch) = (actor.id, actor.epoch);
    let quiesced = store.quiesce(id, me, epoch).await;
    actor.settle(SETTLE).await;
    let mut outcome = Outcome::Failed;
    let mut moved = None;
    if quiesced == Ok(true) {
        let heirs = actor.ctx.ring.borrow().placement.heirs(id, &[me]);
        for heir in heirs.into_iter().take(MAX_HEIRS) {
            if !prepare(&actor, heir).await {
                continue;
            }
            match store.transfer(id, me, epoch, heir, false).await {
                Ok(Transferred::Moved(epoch)) => {
                    tracing::info!(session = %id, %heir, %epoch, "session handed over");
                    let text = format!("handed over to incarnation {heir}, epoch {epoch}");
                    actor.ctx.events.emit("handoff", Some(&id), &text);
                    outcome = Outcome::Ok;
                    moved = Some(heir);
                    break;
                }
                Ok(Transferred::HeirUnfit) => {}
                Ok(
                    Transferred::NotOwner | Transferred::NotQuiescing | Transferred::TurnsRunning,
                ) => break,
                // The reply may be what was lost, not the commit.
                Err(error) => {
                    if moved_to(&actor, heir).await {
                        outcome = Outcome::Ok;
                        moved = Some(heir);
                    } else {
                        tracing::warn!(session = %id, %error, "handing the session over failed");
                    }
                    break;
                }
            }
        }
    }
    if outcome != Outcome::Ok {
        // Nobody to take it: whoever is asked for it next may claim it.
        release(&actor).await;
    }
    actor.ctx.metrics.handoff(HandoffReason::Drain, outcome, started.elapsed());
    actor.dismiss(&Frame::Moved);
    if let Some(heir) = moved.filter(|_| actor.turns.is_some()) {
        activate(&actor, heir).await;
    }
    actor.close_upstream(UPSTREAM_CLOSE).await;
}

/// Leaves the conversation with the heir before it owns the session: once it does, a client
/// may ask at any moment. False if the heir does not answer or has no room, so another one is asked.
async fn prepare(actor: &Actor, heir: Incarnation) -> bool {
    let Some(prepared) = actor.prepared() else { return true };
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

async fn moved_to(actor: &Actor, heir: Incarnation) -> bool {
    let row = actor.ctx.store.session(actor.id).await;
    row.ok().flatten().is_some_and(|row| row.owner == Some(heir))
}

async fn stop(mut actor: Box<Actor>, error: Error) {
    actor.dismiss(&Frame::Failed(error));
    actor.close_upstream(UPSTREAM_CLOSE).await;
    if actor.ctx.lease.is_live(Instant::now().into_std()) {
        release(&actor).await;
    }
}

/// Fenced by epoch: if the session is somebody else's by now, nothing happens.
async fn release(actor: &Actor) {
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
