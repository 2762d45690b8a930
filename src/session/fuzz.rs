//! Responses events, of clients and upstreams alike, and what the rules of turns do with them.

use std::collections::HashMap;

use bytes::Bytes;

use super::{
    event::{ClientEvent, ServerEvent, done_item, last_sequence},
    fields::Fields,
    turns::{Action, Bounds, TurnNo, Turns},
};
use crate::wire::{Batch, Message};

const BOUNDS: Bounds = Bounds {
    queue: 4,
    payload_bytes: 1 << 20,
    history_bytes: 1 << 16,
    asked: false,
    ledger: false,
};

/// Clients and an upstream that say the lines of `data`, each told by its first byte: digits
/// are clients, `u` is the upstream, and the others are what happens between messages.
pub fn events(data: &[u8]) {
    let mut session = Session::default();
    for line in data.split(|byte| *byte == b'\n') {
        let Some((&who, text)) = line.split_first() else { continue };
        // The codec lets nothing else pass.
        if str::from_utf8(text).is_err() {
            continue;
        }
        let message = Message::text(Bytes::copy_from_slice(text));
        readers(&message);
        let actions = match who {
            b'0'..=b'3' => session.turns.on_client(u32::from(who), &message, None),
            b'u' => session.turns.on_upstream(&Batch::one(&message)),
            b'c' => session.turns.on_connected(),
            b'd' => session.turns.on_disconnected(),
            b'a' => session.turns.on_aged(),
            b's' => {
                let all: Vec<_> = session.logs.keys().copied().collect();
                session.turns.on_silence(&all)
            }
            b'g' => session.turns.on_client_gone(u32::from(b'0')),
            _ => continue,
        };
        session.perform(actions);
        assert!(session.turns.history().bytes() <= BOUNDS.history_bytes);
    }
}

/// What reads a message without regard to what was said before it.
fn readers(message: &Message) {
    drop((ClientEvent::parse(&message.payload), ServerEvent::parse(message), done_item(message)));
    let _ = last_sequence(&Batch::one(message), None);
    let Some(fields) = Fields::parse(&message.payload) else { return };
    let copy = fields.with(&[]);
    let same = Fields::parse(&copy).is_some_and(|again| fields.iter().eq(again.iter()));
    assert!(same, "an object changed on its way");
}

#[derive(Debug)]
struct Session {
    turns: Turns,
    /// Whether each log has ended.
    logs: HashMap<TurnNo, bool>,
}

impl Default for Session {
    fn default() -> Self {
        Self { turns: Turns::new(BOUNDS, Vec::new()), logs: HashMap::new() }
    }
}

impl Session {
    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Open { turn, .. } => {
                    assert_eq!(self.logs.insert(turn, false), None, "opened twice");
                }
                Action::Append { turn, done, .. } => {
                    let ended = self.logs.insert(turn, done);
                    assert_eq!(ended, Some(false), "appended to a log that is not open");
                }
                Action::Upstream(batch) | Action::Dispatch { batch, .. } => {
                    for message in batch.messages() {
                        let whole = Fields::parse(&message.payload).is_some();
                        assert!(whole, "the upstream was sent what is no object");
                    }
                }
                Action::HangUp => {
                    let actions = self.turns.on_connected();
                    self.perform(actions);
                }
                _ => {}
            }
        }
    }
}
