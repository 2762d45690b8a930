//! What has been said in a conversation that no upstream keeps (`store: false`), so that it
//! can be told to an upstream connection that has not heard it. Pure.
//!
//! An upstream knows a response id only on the connection that made it. When the session
//! gets another connection (its owner moved, died, or the connection reached its age), a
//! request that names an earlier response is sent with the whole conversation in its place.

use std::collections::HashSet;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    event::{items_act_nowhere, may_bring_tools},
    fields::Fields,
};

/// One response that can be referred to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Past {
    /// The upstream's id of the response.
    pub id: String,
    /// The response that this one followed.
    pub previous: Option<String>,
    pub lane: Option<String>,
    /// Its own input items and output items, as JSON texts joined by commas.
    pub items: Bytes,
}

/// The conversations of a session.
///
/// *Invariant:* of each response that is here, all that it builds on is here too.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub struct History {
    past: Vec<Past>,
    bytes: usize,
    max_bytes: usize,
}

/// Kinds of output items that an upstream takes back only without the id and status that it
/// gave them: it would look for a stored item.
const OWN_IDS: [&str; 4] = ["message", "reasoning", "function_call", "custom_tool_call"];

impl History {
    /// A history that keeps at most `max_bytes` of items.
    #[must_use]
    pub fn new(max_bytes: usize, past: Vec<Past>) -> Self {
        let bytes = past.iter().map(|past| past.items.len()).sum();
        let mut history = Self { past, bytes, max_bytes };
        history.compact();
        history
    }

    /// What an heir keeps: `past` after what it has, if it is a part to append; else `past` is
    /// all there is. None if what the part builds on is not here.
    #[must_use]
    pub fn kept(
        had: Option<Self>,
        append: bool,
        past: Vec<Past>,
        max_bytes: usize,
    ) -> Option<Self> {
        let mut history = match had {
            Some(had) if append => had,
            None if append => return None,
            _ => Self::new(max_bytes, Vec::new()),
        };
        let first = past.first().filter(|_| append);
        let before = first.and_then(|past| past.previous.as_deref());
        if before.is_some_and(|id| !history.has(id)) {
            // Something in between never came here.
            return None;
        }
        for past in past {
            history.push(past);
        }
        Some(history)
    }

    /// Whether the conversation up to that response can be told. Asked for at each turn, as a
    /// rule of the latest response.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        // Only what can be told is kept.
        self.past.iter().rev().any(|past| past.id == id)
    }

    /// Whether the conversation up to that response can be told, and brings no tools that act
    /// outside. Reads all of it.
    #[must_use]
    pub fn acts_nowhere(&self, id: &str) -> bool {
        let harmless = |at: &usize| {
            let items = std::str::from_utf8(&self.past[*at].items);
            items.is_ok_and(|items| {
                !may_bring_tools(items) || items_act_nowhere(&format!("[{items}]"))
            })
        };
        self.chain(id).is_some_and(|chain| chain.iter().all(harmless))
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Everything, oldest first.
    #[must_use]
    pub fn all(&self) -> &[Past] {
        &self.past
    }

    /// Adds a response. What no lane's latest response builds on is forgotten: no upstream
    /// would know it either.
    pub fn push(&mut self, past: Past) {
        let known = self.past.iter().position(|known| known.id == past.id);
        let before = self.past.iter().rfind(|before| before.lane == past.lane);
        // What follows its lane's latest response builds on all that this one built on.
        let follows = known.is_none()
            && before.is_some_and(|before| past.previous.as_ref() == Some(&before.id));
        if let Some(at) = known {
            self.bytes -= self.past.remove(at).items.len();
        }
        self.bytes += past.items.len();
        self.past.push(past);
        if !follows || self.bytes > self.max_bytes {
            self.compact();
        }
    }

    /// Adds what was said before all that is known; what is known already stays as it is.
    pub fn precede(&mut self, earlier: Vec<Past>) {
        let mut seen: HashSet<String> = self.past.iter().map(|past| past.id.clone()).collect();
        let mut all: Vec<Past> = earlier
            .into_iter()
            .rev()
            // Of one response the latest telling counts.
            .filter(|past| seen.insert(past.id.clone()))
            .collect();
        all.reverse();
        all.append(&mut self.past);
        self.past = all;
        self.compact();
    }

    /// Keeps what lanes' latest responses build on. A conversation with a hole is worth nothing:
    /// over the bound, the oldest lane goes, with what builds on it.
    fn compact(&mut self) {
        loop {
            let mut lanes = HashSet::new();
            let mut keep = HashSet::new();
            for past in self.past.iter().rev() {
                if lanes.insert(&past.lane) {
                    keep.extend(self.chain(&past.id).unwrap_or_default());
                }
            }
            let mut at = 0;
            self.past.retain(|_| {
                at += 1;
                keep.contains(&(at - 1))
            });
            self.bytes = self.past.iter().map(|past| past.items.len()).sum();
            let oldest = self.past.first().filter(|_| self.bytes > self.max_bytes);
            let Some(lane) = oldest.map(|past| past.lane.clone()) else { break };
            self.past.retain(|past| past.lane != lane);
        }
    }

    /// Indices of the conversation up to `id`, newest first. None if a part is missing.
    fn chain(&self, id: &str) -> Option<Vec<usize>> {
        let find = |id: &str, part: &[Past]| part.iter().rposition(|past| past.id == id);
        let mut chain = Vec::new();
        let mut wanted = Some(id);
        let mut at = self.past.len();
        while let Some(id) = wanted {
            // As a rule a response stands right behind the one that it follows.
            at = find(id, &self.past[..at]).or_else(|| find(id, &self.past))?;
            chain.push(at);
            // A response that follows itself is a lie of the upstream.
            if chain.len() > self.past.len() {
                return None;
            }
            wanted = self.past[at].previous.as_deref();
        }
        Some(chain)
    }

    /// The request with the whole conversation in the place of `previous_response_id`. None
    /// if the conversation is not all there, or the request is not understood.
    #[must_use]
    pub fn rebuild(&self, previous: &str, request: &[u8]) -> Option<Bytes> {
        let chain = self.chain(previous)?;
        let new = input_items(request)?;
        let parts = chain.iter().rev().map(|at| &self.past[*at].items).chain([&new]);
        let mut input = BytesMut::from(&b"["[..]);
        for part in parts.filter(|part| !part.is_empty()) {
            if input.len() > 1 {
                input.put_u8(b',');
            }
            input.put_slice(part);
        }
        input.put_u8(b']');
        let changes = [("previous_response_id", None), ("input", Some(&input[..]))];
        Some(Fields::parse(request)?.with(&changes))
    }
}

/// The input items of a request, as JSON texts joined by commas. A text stands for a user's
/// message. None for what is no request.
#[must_use]
pub fn input_items(request: &[u8]) -> Option<Bytes> {
    let fields = Fields::parse(request)?;
    let Some(input) = fields.raw("input").map(str::trim) else { return Some(Bytes::new()) };
    match input.as_bytes().first()? {
        b'[' => Some(Bytes::copy_from_slice(input[1..input.len() - 1].trim().as_bytes())),
        b'"' => {
            let item = format!("{{\"type\":\"message\",\"role\":\"user\",\"content\":{input}}}");
            Some(item.into())
        }
        _ => None,
    }
}

/// An output item as it can be given back to an upstream as input.
#[must_use]
pub fn output_item(item: &str) -> Option<String> {
    let fields = Fields::parse(item.as_bytes())?;
    let kind: String = fields.get("type")?;
    if !OWN_IDS.contains(&kind.as_str()) {
        return Some(item.to_owned());
    }
    let item = fields.with(&[("id", None), ("status", None)]);
    String::from_utf8(item.into()).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn past(id: &str, previous: Option<&str>, items: &str) -> Past {
        let items = Bytes::copy_from_slice(items.as_bytes());
        Past { id: id.into(), previous: previous.map(Into::into), lane: None, items }
    }

    fn history() -> History {
        let mut history = History::new(1 << 20, Vec::new());
        history.push(past("r1", None, r#"{"u":1},{"a":1}"#));
        history.push(past("r2", Some("r1"), r#"{"u":2},{"a":2}"#));
        history
    }

    #[test]
    fn a_request_on_an_earlier_response_is_told_with_everything_before_it_in_order() {
        let request = br#"{"type":"response.create","model":"m","previous_response_id":"r2","input":[{"u":3}],"store":false}"#;
        let rebuilt = history().rebuild("r2", request).unwrap();
        let rebuilt: Value = serde_json::from_slice(&rebuilt).unwrap();
        assert_eq!(rebuilt["input"], json!([{"u":1},{"a":1},{"u":2},{"a":2},{"u":3}]));
        assert_eq!(rebuilt.get("previous_response_id"), None);
        assert_eq!((&rebuilt["model"], &rebuilt["store"]), (&json!("m"), &json!(false)));
    }

    #[test]
    fn an_heir_refuses_a_part_that_follows_one_which_it_never_had() {
        let kept = |had, append, past| History::kept(had, append, vec![past], 1 << 20);
        let next = || past("r3", Some("r2"), "{}");
        let after = || past("r4", Some("r3"), "{}");
        assert!(kept(None, true, next()).is_none());
        assert!(kept(Some(history()), true, after()).is_none(), "r3 is missing");
        assert!(kept(Some(history()), true, next()).unwrap().has("r3"));
        assert!(kept(Some(history()), true, past("s1", None, "{}")).is_some(), "it begins anew");
    }

    #[test]
    fn a_text_is_a_users_message_and_no_input_is_nothing() {
        let text = br#"{"previous_response_id":"r1","input":"hi \"there\""}"#;
        let rebuilt: Value =
            serde_json::from_slice(&history().rebuild("r1", text).unwrap()).unwrap();
        assert_eq!(rebuilt["input"][2]["content"], "hi \"there\"");
        let none: Value = serde_json::from_slice(&history().rebuild("r1", b"{}").unwrap()).unwrap();
        assert_eq!(none, json!({"input": [{"u":1},{"a":1}]}));
    }

    #[test]
    fn responses_that_follow_each_other_in_a_ring_are_not_told() {
        let mut history = history();
        history.push(past("r1", Some("r2"), "{}"));
        assert!(!history.has("r2"));
        assert_eq!(history.rebuild("r1", b"{}"), None);
    }

    #[test]
    fn however_responses_come_only_what_lanes_build_on_is_kept() {
        let ids = ["a", "b", "c", "d"];
        for seed in 0..500_usize {
            // Of some, not all has room.
            let max_bytes = if seed % 2 == 0 { 1 << 20 } else { 6 };
            let mut history = History::new(max_bytes, Vec::new());
            let mut state = seed;
            for _ in 0..12 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (id, previous) = (ids[state >> 33 & 3], ids[state >> 35 & 3]);
                let previous = (state >> 37 & 3 > 0).then_some(previous);
                let lane = (state >> 39 & 1 > 0).then(|| "lane".to_owned());
                history.push(Past { lane, ..past(id, previous, "{}") });
                let again = History::new(history.max_bytes, history.all().to_vec());
                assert_eq!(history, again, "seed {seed}: compacted again nothing goes");
                for id in ids {
                    let told = history.rebuild(id, b"{}").is_some();
                    assert_eq!(history.has(id), told, "seed {seed}: {id}");
                }
            }
        }
    }

    #[test]
    fn a_conversation_with_a_hole_is_not_told() {
        let mut history = history();
        history.push(past("r9", Some("lost"), "{}"));
        assert_eq!(history.rebuild("r9", b"{}"), None);
        assert_eq!(history.rebuild("unknown", b"{}"), None);
    }

    #[test]
    fn what_the_latest_response_does_not_build_on_is_forgotten() {
        let mut history = history();
        history.push(past("s1", None, "{}"));
        assert!(!history.has("r2"));
        assert_eq!((history.all().len(), history.bytes()), (1, 2));
    }

    #[test]
    fn over_its_bound_a_history_forgets_whole_conversations() {
        let mut history = History::new(10, Vec::new());
        history.push(past("r1", None, "{\"a\":1}"));
        history.push(past("r2", Some("r1"), "{\"a\":2}"));
        assert_eq!((history.all().len(), history.bytes()), (0, 0));
    }

    #[test]
    fn output_goes_back_without_the_ids_of_stored_items() {
        let item =
            output_item(r#"{"type":"reasoning","id":"rs_1","encrypted_content":"x"}"#).unwrap();
        assert_eq!(item, r#"{"type":"reasoning","encrypted_content":"x"}"#);
        let call =
            output_item(r#"{"type":"function_call","id":"fc","call_id":"c","status":"completed"}"#)
                .unwrap();
        assert_eq!(call, r#"{"type":"function_call","call_id":"c"}"#);
    }
}
