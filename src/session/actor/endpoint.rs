//! What a session's turns say of the endpoint that it is connected to, and when it leaves one.

use serde::Deserialize;

use super::{Actor, Upstream};
use crate::{
    config::blames_endpoint,
    session::{
        event::{ServerEvent, Stage},
        turns::{Action, Turns},
    },
    wire::Batch,
};

/// Turns that fail in a row by the endpoint's fault before a session leaves it by itself. The
/// breaker leaves for all, but one session alone cannot open it.
const STRIKES: u32 = 2;

/// Codes of a `response.failed` that are the endpoint's fault. The last is a matter of the
/// credential.
const SERVER_FAULTS: [&str; 2] = ["server_error", "server_is_overloaded"];
const RATE_LIMIT: &str = "rate_limit_exceeded";

/// What the end of a turn says of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Sound,
    AtFault,
    /// The request was at fault, or it cannot be told.
    Open,
}

impl Actor {
    /// Learns from turns that the upstream has just ended.
    pub(super) fn judge_endpoint(&mut self, actions: &[Action]) {
        let Upstream::Connected(connection, _) = &self.upstream else { return };
        for action in actions {
            let Action::Append { batch, done: true, .. } = action else { continue };
            match verdict(batch, connection.member.is_operators()) {
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

fn verdict(batch: &Batch, operators: bool) -> Verdict {
    #[derive(Deserialize)]
    struct Failure<'a> {
        status: Option<u16>,
        #[serde(borrow)]
        response: Option<Failed<'a>>,
    }
    #[derive(Deserialize)]
    struct Failed<'a> {
        #[serde(borrow)]
        error: Option<Fault<'a>>,
    }
    #[derive(Deserialize)]
    struct Fault<'a> {
        #[serde(borrow)]
        code: Option<std::borrow::Cow<'a, str>>,
    }

    let Some(message) = batch.messages().last() else { return Verdict::Open };
    match ServerEvent::parse(&message).map(|event| event.stage) {
        Some(Stage::Completed | Stage::Incomplete) => Verdict::Sound,
        Some(Stage::Error | Stage::Failed) => {
            let Ok(failure) = serde_json::from_slice::<Failure<'_>>(&message.payload) else {
                return Verdict::Open;
            };
            let code = failure.response.and_then(|response| response.error?.code);
            let by_code = code.is_some_and(|code| {
                SERVER_FAULTS.contains(&&*code) || operators && code == RATE_LIMIT
            });
            let by_status = failure.status.is_some_and(|status| blames_endpoint(status, operators));
            if by_code || by_status { Verdict::AtFault } else { Verdict::Open }
        }
        _ => Verdict::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Message;

    #[test]
    fn an_endpoint_is_blamed_for_its_own_failures_and_for_the_operators_credential_only() {
        use Verdict::{AtFault, Open, Sound};
        let cases = [
            (r#"{"type":"response.completed","response":{"id":"r"}}"#, Sound, Sound),
            (r#"{"type":"response.incomplete","response":{"id":"r"}}"#, Sound, Sound),
            (r#"{"type":"error","status":500,"error":{"code":"x"}}"#, AtFault, AtFault),
            (r#"{"type":"error","status":429,"error":{"code":"x"}}"#, Open, AtFault),
            (r#"{"type":"error","status":401,"error":{"code":"x"}}"#, Open, AtFault),
            (r#"{"type":"error","status":400,"error":{"code":"x"}}"#, Open, Open),
            (r#"{"type":"error","error":{"code":"server_error"}}"#, Open, Open),
            (
                r#"{"type":"response.failed","response":{"id":"r","error":{"code":"server_error"}}}"#,
                AtFault,
                AtFault,
            ),
            (
                r#"{"type":"response.failed","response":{"id":"r","error":{"code":"rate_limit_exceeded"}}}"#,
                Open,
                AtFault,
            ),
            (
                r#"{"type":"response.failed","response":{"id":"r","error":{"code":"invalid_prompt"}}}"#,
                Open,
                Open,
            ),
        ];
        for (text, clients, operators) in cases {
            let batch = Batch::one(&Message::text(text));
            assert_eq!(verdict(&batch, false), clients, "{text}");
            assert_eq!(verdict(&batch, true), operators, "{text}");
        }
    }
}
