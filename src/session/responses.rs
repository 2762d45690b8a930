//! Performs what the rules of turns decide.

use serde_json::Value;
use tokio::time::Instant;

use super::{actor::Actor, turns::Action};
use crate::{
    error::{Code, Error},
    link::Frame,
    store::{Alias, AliasKind},
    upstream::DialError,
};

impl Actor {
    pub(super) fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Upstream(batch) => self.send_upstream(&batch),
                Action::Open(turn) => self.streams.open(turn),
                Action::Subscribe { client, turn } => {
                    if let Some(client) = self.clients.iter_mut().find(|c| c.id == client) {
                        client.subscribe(turn, 1);
                    }
                }
                Action::Append { turn, batch, done } => {
                    let now = Instant::now();
                    if let Some(stream) = self.streams.get_mut(turn) {
                        stream.log.push(batch, now);
                        if done {
                            stream.done = Some(now);
                        }
                    }
                    if done {
                        self.turn_ended();
                    }
                }
                Action::Reply { client, batch, ended } => {
                    if let Some(client) = self.clients.iter_mut().find(|c| c.id == client) {
                        client.reply(Frame::Messages { batch, first_seq: 0, ended });
                    }
                }
                Action::HangUp => self.hang_up(),
                Action::Alias(response_id) => self.ctx.aliases.put(Alias {
                    principal: self.principal,
                    kind: AliasKind::Response,
                    digest: Alias::digest(&response_id),
                    session: self.id,
                }),
            }
        }
    }
}

/// How a dial's failure is told to the turns that waited for it: the upstream's own words
/// where it had any.
pub(super) fn dial_error(error: &DialError) -> (u16, Value, Code) {
    let code = match error {
        DialError::Timeout(_) => Code::UpstreamTimeout,
        DialError::Refused(_) | DialError::Unavailable(_) => Code::UpstreamUnavailable,
    };
    if let DialError::Refused(refusal) = error
        && let Ok(mut body) = serde_json::from_slice::<Value>(&refusal.body)
        && body["error"].is_object()
    {
        return (refusal.status, body["error"].take(), code);
    }
    let status = match error {
        DialError::Refused(refusal) => refusal.status,
        _ => code.status(),
    };
    (status, Error::new(code, "no connection to the upstream for this turn").body(), code)
}
