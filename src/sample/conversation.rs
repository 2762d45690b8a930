//! What the sample remembers of a conversation: enough to prove that it saw all of it.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    fmt::Write as _,
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{request::Refusal, tools::ScriptTool};

/// Bytes of the last texts that are kept to be quoted and searched for directives.
const MAX_QUOTED_BYTES: usize = 16 << 10;
/// Responses kept for `store:true`.
const MAX_STORED: usize = 10_000;
/// Conversations remembered for `[once]`.
const MAX_SEEN: usize = 10_000;

/// The running summary of all items so far. Its size does not grow with the conversation.
#[derive(Clone, Debug, Default)]
pub(super) struct Conversation {
    digest: Sha256,
    /// User messages.
    pub(super) users: u64,
    /// Assistant messages.
    pub(super) answers: u64,
    /// Tool outputs.
    pub(super) outputs: u64,
    /// Bytes of all items, as JSON or text.
    pub(super) bytes: u64,
    /// Last user text.
    pub(super) last_user: String,
    /// First line of the tool output, if one came after the last user text.
    pub(super) tool_line: Option<String>,
    /// The tool that an item of the conversation offered.
    pub(super) script_tool: Option<ScriptTool>,
    /// Calls without output yet.
    pending: BTreeSet<String>,
}

impl Conversation {
    /// Takes in `input` of a request: a text or a list of items.
    pub(super) fn absorb(&mut self, input: &Value) -> Result<(), Refusal> {
        match input {
            Value::Null => {}
            Value::String(text) => self.user(text),
            Value::Array(items) => items.iter().try_for_each(|item| self.item(item))?,
            _ => return Err(Refusal::invalid("input", "input must be a string or an array")),
        }
        Ok(())
    }

    /// Refuses a model run while a tool call waits for its output.
    pub(super) fn check_calls_answered(&self) -> Result<(), Refusal> {
        match self.pending.first() {
            None => Ok(()),
            Some(call) => Err(Refusal::invalid(
                "input",
                format!("No tool output found for function call {call}."),
            )),
        }
    }

    /// Takes in an answer of this model.
    pub(super) fn answered(&mut self, text: &str) {
        self.answers += 1;
        self.bytes += text.len() as u64;
    }

    /// Takes in a tool call of this model.
    pub(super) fn called(&mut self, call_id: String) {
        self.pending.insert(call_id);
    }

    /// First 16 hex digits of the digest over user texts and tool outputs.
    pub(super) fn digest(&self) -> String {
        let hash = self.digest.clone().finalize();
        hash.iter().take(8).fold(String::with_capacity(16), |mut hex, byte| {
            // Writing to a String cannot fail.
            write!(hex, "{byte:02x}").ok();
            hex
        })
    }

    fn item(&mut self, item: &Value) -> Result<(), Refusal> {
        let kind = item["type"].as_str().unwrap_or("message");
        match kind {
            "message" => match item["role"].as_str() {
                Some("user") => self.user(&text_of(&item["content"])),
                Some("assistant") => self.answered(&text_of(&item["content"])),
                Some("developer" | "system") => {
                    self.bytes += text_of(&item["content"]).len() as u64;
                }
                _ => return Err(Refusal::invalid("input", "a message needs a known role")),
            },
            "function_call" | "custom_tool_call" | "local_shell_call" => {
                let call_id = item["call_id"].as_str().unwrap_or_default();
                self.pending.insert(call_id.to_owned());
            }
            "function_call_output" | "custom_tool_call_output" | "local_shell_call_output" => {
                let call_id = item["call_id"].as_str().unwrap_or_default();
                if !self.pending.remove(call_id) {
                    return Err(Refusal::invalid(
                        "input",
                        format!(
                            "No tool call found for function call output with call_id {call_id}."
                        ),
                    ));
                }
                self.tool_output(&text_of(&item["output"]));
            }
            "additional_tools" => self.script_tool = ScriptTool::find(&item["tools"]),
            _ => {}
        }
        Ok(())
    }

    fn user(&mut self, text: &str) {
        self.users += 1;
        self.note(b"u", text);
        head(text, MAX_QUOTED_BYTES).clone_into(&mut self.last_user);
        self.tool_line = None;
    }

    fn tool_output(&mut self, text: &str) {
        self.outputs += 1;
        self.note(b"t", text);
        // Codex puts exit code and timing above the output proper.
        let output = text.split_once("Output:\n").map_or(text, |(_, output)| output);
        let line = output.lines().next().unwrap_or_default();
        self.tool_line = Some(head(line, MAX_QUOTED_BYTES).to_owned());
    }

    fn note(&mut self, kind: &[u8], text: &str) {
        self.bytes += text.len() as u64;
        self.digest.update(kind);
        self.digest.update([0x1f]);
        self.digest.update(text);
        self.digest.update([0x1e]);
    }
}

/// Text of a content field: a string, or parts of which those with a text count.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

/// The first `limit` bytes, not cutting a character.
pub(super) fn head(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// Conversations by response id, the oldest forgotten first.
#[derive(Default)]
pub(super) struct Store {
    by_id: HashMap<String, Conversation>,
    order: VecDeque<String>,
}

impl Store {
    pub(super) fn insert(&mut self, id: String, conversation: Conversation) {
        if self.order.len() == MAX_STORED
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
        self.order.push_back(id.clone());
        self.by_id.insert(id, conversation);
    }

    pub(super) fn get(&self, id: &str) -> Option<Conversation> {
        self.by_id.get(id).cloned()
    }
}

/// A bounded set of digests.
#[derive(Default)]
pub(super) struct Seen {
    digests: HashSet<String>,
    order: VecDeque<String>,
}

impl Seen {
    /// True the first time.
    pub(super) fn first_time(&mut self, digest: String) -> bool {
        if !self.digests.insert(digest.clone()) {
            return false;
        }
        if self.order.len() == MAX_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.digests.remove(&oldest);
        }
        self.order.push_back(digest);
        true
    }
}
