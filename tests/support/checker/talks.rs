//! The clients' history, put together by session and turn.

use std::collections::{BTreeMap, HashMap};

use super::facts::{Create, History, Seen, What};
use crate::support::responses::digest;

/// One user's request and all that came of it.
#[derive(Clone, Debug, Default)]
pub struct TurnFacts {
    pub text: String,
    pub stored: bool,
    /// Requests that the client sent for it.
    pub sent: usize,
    /// Digest of the conversation that the model has to see.
    pub expected: String,
    pub seen: Vec<Seen>,
    /// Whether the client was told that it completed.
    pub acknowledged: bool,
    /// What the upstream was asked for it, in order.
    pub creates: Vec<Create>,
}

impl TurnFacts {
    /// Whether the upstream was never asked for it, although it may have been sent: one that is
    /// stored goes to no second connection where the first was just ending.
    pub fn never_arrived(&self) -> bool {
        self.stored && self.creates.is_empty()
    }

    /// Whether the client saw anything of a response.
    pub fn saw(&self, response: &str) -> bool {
        self.seen.iter().any(|seen| match &seen.what {
            What::Event { response: it, .. } | What::Ended { response: it, .. } => it == response,
            _ => false,
        })
    }
}

/// Turns by session, in order. A turn that was not acknowledged is no part of the
/// conversation: that is how the clients of these tests go on after one.
pub type Talks = BTreeMap<String, Vec<TurnFacts>>;

pub fn read(history: &History) -> Talks {
    let mut turns: BTreeMap<&str, BTreeMap<usize, TurnFacts>> = BTreeMap::new();
    for seen in &history.clients {
        let turn = turns.entry(&seen.session).or_default().entry(seen.turn).or_default();
        match &seen.what {
            What::Sent { text, stored } => {
                turn.text.clone_from(text);
                turn.stored = *stored;
                turn.sent += 1;
            }
            what => turn.acknowledged |= what.is_answer(),
        }
        turn.seen.push(seen.clone());
    }
    let mut asked: HashMap<(String, String), Vec<Create>> = HashMap::new();
    for create in history.creates.iter().filter(|create| create.generate) {
        let turn = (create.session.clone(), create.conversation.clone());
        asked.entry(turn).or_default().push(create.clone());
    }
    let mut talks = Talks::new();
    for (session, turns) in turns {
        let mut texts = Vec::new();
        let talk = talks.entry(session.to_owned()).or_default();
        for (_, mut turn) in turns {
            // Nothing was asked: an opaque session, or one that was not reached.
            if turn.sent == 0 {
                continue;
            }
            texts.push(turn.text.clone());
            turn.expected = digest(&texts);
            let this = (session.to_owned(), turn.expected.clone());
            turn.creates = asked.remove(&this).unwrap_or_default();
            turn.creates.sort_by_key(|create| create.at);
            if !turn.acknowledged {
                texts.pop();
            }
            talk.push(turn);
        }
    }
    talks
}
