//! What a session's turns say of the endpoint that it is connected to, and when it leaves one.

use super::{Actor, Upstream};
use crate::session::{
    event::{ServerEvent, Verdict},
    turns::{Action, Turns},
};

/// Turns that fail in a row by the endpoint's fault before a session leaves it by itself. The
/// breaker leaves for all, but one session alone cannot open it.
const STRIKES: u32 = 2;

impl Actor {
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
                    (self.strikes, self.shunned) = (0, None);
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
            self.shunned = Some(connection.member.at());
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
