//! What a session's turns say of the endpoint that it is connected to, and when it leaves one.

use super::{Actor, Upstream};
use crate::{
    error::{Code, Error},
    session::{
        event::{ServerEvent, Stage, Verdict},
        turns::{Action, Turns},
    },
    upstream::{Member, Told, error_object, told_status},
    wire::Batch,
};

/// Turns that fail in a row by the endpoint's fault before a session leaves it by itself. The
/// breaker leaves for all, but one session alone cannot open it.
const STRIKES: u32 = 2;

/// Connections in a row that end before a turn was sent on them, after which the turns that wait
/// are told: each is followed by another at once.
const UNUSED: u32 = 2;

/// Longest last word of an upstream that is kept, in bytes.
const MAX_SAID: usize = 16 * 1024;

/// Connections on which no turn was sent.
#[derive(Default)]
pub(in crate::session) struct Unused {
    /// Where the present one leads; None once a turn was sent on it.
    member: Option<Member>,
    /// Earlier ones in a row that their upstream ended although a turn waited.
    ended: u32,
    /// The last error that the upstream named on the present one.
    said: Option<Box<Told>>,
}

impl Unused {
    /// There is a new connection.
    pub(super) fn connected(&mut self, member: Member) {
        (self.member, self.said) = (Some(member), None);
    }

    /// Before a turn is sent an error can be of the connection only.
    pub(super) fn listen(&mut self, batch: &Batch) {
        if self.member.is_none() {
            return;
        }
        for message in batch.messages() {
            let event = ServerEvent::parse(&message).filter(|event| event.stage == Stage::Error);
            let Some(event) = event.filter(|_| message.payload.len() <= MAX_SAID) else { continue };
            let status = told_status(event.status);
            self.said = error_object(&message.payload)
                .map(|error| Box::new(Told { status, error, retry_after: None }));
        }
    }

    /// What the turns that wait are told of a connection that their upstream ended, if enough of
    /// them ended so.
    fn end(&mut self) -> Option<Told> {
        self.ended += 1;
        if self.ended < UNUSED {
            return None;
        }
        let said = std::mem::take(self).said.map(|said| *said);
        Some(said.unwrap_or_else(|| {
            let text = "the upstream ends each connection before a turn can be sent on it";
            Told::from(&Error::new(Code::UpstreamUnavailable, text))
        }))
    }
}

impl Actor {
    /// The upstream ended its connection. If turns wait and none was sent on it, the next one is
    /// made elsewhere; after some of them the turns are told.
    pub(super) fn unused_gone(&mut self) {
        let Some(member) = self.unused.member.take() else { return };
        let Some(turns) = self.turns.as_mut().filter(|turns| turns.queued() > 0) else { return };
        member.turn_failed(&self.id.0);
        self.shunned = Some(member.name().to_owned());
        let Some(told) = self.unused.end() else { return };
        tracing::warn!(
            session = %self.id,
            endpoint = member.name(),
            "the upstream ends connections before a turn can be sent on them"
        );
        let actions = turns.on_unreachable(told.status, &told.error, told.retry_after);
        self.perform(actions);
    }

    /// We ended the connection. If the upstream had said that it takes no turn on it, that counts as
    /// if it had ended it, or the next one would be dialled without a pause or an end.
    pub(super) fn unused_refused(&mut self) {
        if self.unused.said.is_some() {
            self.unused_gone();
        }
    }

    /// Learns from turns that the upstream has just ended.
    pub(super) fn judge_endpoint(&mut self, actions: &[Action]) {
        let Upstream::Connected(connection, _) = &self.upstream else { return };
        for action in actions {
            let Action::Append { batch, done: true, .. } = action else { continue };
            let last = batch.messages().last().and_then(|message| ServerEvent::parse(&message));
            let Some(last) = last else { continue };
            match last.verdict(connection.member.is_operators()) {
                Verdict::Sound => {
                    connection.member.turn_ended();
                    self.strikes = 0;
                    // What is sound here says nothing of another one that failed.
                    self.shunned.take_if(|name| name == connection.member.name());
                }
                Verdict::AtFault => {
                    connection.member.turn_failed(&self.id.0);
                    self.strikes += 1;
                }
                Verdict::Open => {}
            }
        }
    }

    /// The upstream has been silent for too long in a turn.
    pub(super) fn upstream_silent(&mut self) {
        if let Upstream::Connected(connection, _) = &self.upstream {
            connection.member.turn_failed(&self.id.0);
        }
        self.shun();
    }

    /// The connection ends: if that was in a turn, the next one is made elsewhere.
    pub(super) fn lost_in_turn(&mut self) {
        if self.turns.as_ref().is_some_and(|turns| turns.running() > 0) {
            self.shun();
        }
    }

    /// The next dial goes elsewhere, if there is an elsewhere. Of this session alone: without
    /// it a session whose key leads to an endpoint that hangs would stay there for ever.
    pub(super) fn shun(&mut self) {
        if let Upstream::Connected(connection, _) = &self.upstream {
            self.shunned = Some(connection.member.name().to_owned());
        }
    }

    /// Between turns, a session leaves an endpoint that others have given up, or that has
    /// failed it repeatedly, if there is one that can be dialled.
    pub(super) fn leave_endpoint(&mut self) {
        let Upstream::Connected(connection, _) = &mut self.upstream else { return };
        if !self.turns.as_ref().is_some_and(Turns::is_idle) {
            return;
        }
        let member = &connection.member;
        if member.is_given_up() || (self.strikes >= STRIKES && member.has_other()) {
            tracing::info!(session = %self.id, endpoint = member.name(), "leaving a failing endpoint");
            self.shun();
            self.let_go();
        }
    }
}
