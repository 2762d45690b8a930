//! How a session comes to leave this node for another one.

use std::{
    task::{Context as Cx, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use super::{Actor, Command, Departure, Exit};
use crate::{
    error::{Code, Error},
    jitter::spread,
    session::{
        ORDERS_PER_SECOND,
        recopy::pace,
        turns::{Severed, TurnNo, Turns},
        warm::Cut,
    },
    wire::{Batch, BatchBuilder},
};

/// Longest log of a severed turn that goes to the heir; of a longer one only its end does.
const MAX_CUT: usize = 256 * 1024;

/// Pause before a drain tries once more to hand a session over.
const AGAIN: Duration = Duration::from_secs(2);

/// The same where each of so many `sessions` has `offered` so many bytes in vain, if there was
/// somebody to ask: all together they offer no more than is copied to heirs at most. Where nothing
/// was offered yet, they come at the rate of first orders.
fn again(sessions: usize, offered: Option<u64>) -> Duration {
    let each = offered.map_or_else(|| Duration::from_secs(1) / ORDERS_PER_SECOND, pace);
    AGAIN.max(each.saturating_mul(u32::try_from(sessions).unwrap_or(u32::MAX)))
}

/// What is told to who wants to be attached to a session that leaves.
pub(super) fn is_moving() -> Error {
    Error::new(Code::OwnerMoving, "the session moves to another node; retry")
}

impl Actor {
    /// Leaves as soon as no turn runs. What waits is left to the next owner.
    pub(super) fn leave(&mut self, departure: Departure) {
        if let Some(turns) = &mut self.turns {
            turns.hold();
        }
        self.departure.get_or_insert(departure);
    }

    /// Leaves for a drain that has time until then.
    pub(super) fn drain(&mut self, until: Instant) {
        self.drains_until = Some(until);
        self.leave(Departure::Drain);
    }

    /// Leaves for a drain after a while, as the store did not answer; spread, since it did not
    /// answer others either. Until then nothing is dispatched that could wait.
    pub(in crate::session) fn leave_later(&mut self) {
        self.leave(Departure::Drain);
        let pause = spread(AGAIN);
        self.leaves_at = Some(Instant::now() + pause);
        self.retime = true;
    }

    /// The same where a transfer was not answered either: nobody knows whose the session is, so
    /// until the store says so nothing moves at all.
    pub(in crate::session) fn stay_unsure(&mut self) {
        self.unsure = true;
        self.leave_later();
    }

    /// No frame moves and nobody is attached. Ends with the next try, at the latest at the drain's
    /// deadline.
    pub(super) fn poll_unsure(&mut self, cx: &mut Cx<'_>) -> Poll<Exit> {
        while let Poll::Ready(Some(command)) = self.poll_inbox(cx) {
            match *command {
                Command::Attach(_, reply) => drop(reply.send(Err(is_moving().into()))),
                Command::Sever(until) => self.sever(until),
                Command::Stop(error) => return Poll::Ready(Exit::Stopped(error)),
                Command::Drain(_) | Command::Offer(_) | Command::WarmUp | Command::Replicate => {}
            }
        }
        if let Some(at) = self.leaves_at {
            self.timer.as_mut().reset(at);
            ready!(self.timer.as_mut().poll(cx));
        }
        (self.leaves_at, self.retime) = (None, true);
        Poll::Ready(Exit::HandOff(self.departure.take().unwrap_or(Departure::Drain)))
    }

    /// Goes on for a while, as none of the heirs that were `asked` took it; then it leaves as soon
    /// as no turn runs. Near the drain's end nothing is sent any more: it would be severed, and
    /// can be left to the next owner as it is.
    pub(in crate::session) fn stay_for_now(&mut self, asked: usize) {
        let bytes = self.turns.as_ref().map_or(0, |turns| turns.history().bytes()) * asked;
        let offered = (asked > 0).then_some(bytes as u64);
        // One task for each session, and few others.
        let pause = spread(again(self.ctx.tracker.len(), offered));
        self.leaves_at = Some(Instant::now() + pause);
        (self.unsure, self.retime) = (false, true);
        if self.drains_until.is_none_or(|until| Instant::now() + AGAIN < until) {
            let actions = self.turns.as_mut().map(Turns::go_on).unwrap_or_default();
            self.perform(actions);
        }
    }

    /// The time for another try to leave may have come.
    pub(super) fn poll_leaving(&mut self, now: Instant) {
        if self.leaves_at.take_if(|at| *at <= now).is_some() {
            self.leave(Departure::Drain);
        }
    }

    /// Leaves now.
    pub(super) fn sever(&mut self, until: Instant) {
        (self.departure, self.leaves_at) = (None, None);
        self.leave(Departure::Deadline(until));
        for (_, reply) in std::mem::take(&mut self.waiting) {
            drop(reply.send(Err(is_moving().into())));
        }
        let Some(turns) = &mut self.turns else { return };
        let (actions, severed) = turns.sever();
        self.severed.extend(severed);
        // What it was being told of was not sent; the next epoch fences what it writes yet.
        self.journal.clear();
        self.perform(actions);
    }

    /// Nothing would be left behind: no turn that the upstream has, nobody being attached,
    /// no answer that waits for its copy, nothing that the ledger is being told.
    pub(super) fn may_leave(&self) -> bool {
        self.leaves_at.is_none_or(|at| self.polled_at >= at)
            && self.waiting.is_empty()
            && self.held.is_empty()
            && self.journal.is_empty()
            && self.turns.as_ref().is_none_or(Turns::may_leave)
    }

    /// Nobody would notice a move: nothing happens, and the conversation can be told to
    /// another upstream connection. An opaque session's connection cannot move at all.
    pub(super) fn may_be_offered(&self) -> bool {
        self.departure.is_none()
            && self.is_idle()
            && self.turns.as_ref().is_some_and(|turns| turns.is_empty() && turns.can_be_told())
    }

    /// What the heir is told of severed turns, so that their clients find them there.
    pub(in crate::session) fn cuts(&self) -> Vec<Cut> {
        let cut = |severed: &Severed| {
            let events = self.events_of(severed.turn)?;
            Some(Cut { response_id: severed.response_id.clone()?, events })
        };
        self.severed.iter().filter_map(cut).collect()
    }

    fn events_of(&self, turn: TurnNo) -> Option<Batch> {
        let log = &self.streams.get(turn)?.log;
        if log.bytes() > MAX_CUT {
            return log.read(log.head());
        }
        let mut events = BatchBuilder::default();
        let mut next = log.floor();
        while let Some(batch) = log.read(next) {
            next += u64::from(batch.len());
            for message in batch.messages() {
                events.push(message.kind, &message.payload);
            }
        }
        Some(events.finish())
    }

    /// Takes over what an earlier owner had to sever.
    pub(in crate::session) fn adopt(&mut self, cuts: Vec<Cut>) {
        let now = Instant::now();
        let Some(turns) = &mut self.turns else { return };
        self.ctx.metrics.severed(cuts.len());
        for cut in cuts {
            let turn = turns.adopt(cut.response_id);
            self.streams.open(turn, None, None);
            if let Some(stream) = self.streams.get_mut(turn) {
                stream.log.push(cut.events, now);
                stream.done = Some(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_sessions_are_offered_again_soon_and_many_no_faster_than_copies_are_made() {
        assert_eq!(again(100, Some(1_000)), AGAIN);
        assert_eq!(again(1_000, None), AGAIN);
        assert_eq!(again(10_000, None), Duration::from_secs(20));
        for (sessions, bytes) in [(2_500, 0), (2_500, 400_000), (200, 16 << 20), (0, 1 << 30)] {
            let pause = again(sessions, Some(bytes)).as_secs_f64();
            let a_second = f64::from(u32::try_from(sessions).unwrap()) / pause;
            assert!(a_second <= 200.0, "{sessions} sessions: {a_second} offers a second");
            let bytes = f64::from(u32::try_from(bytes).unwrap()) * a_second;
            assert!(bytes <= 32.0 * 1024.0 * 1024.0 + 1.0, "{sessions} sessions: {bytes} bytes");
        }
    }
}
