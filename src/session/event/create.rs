//! The head of a `response.create`, and whether a second run of it could double anything. Pure.

use std::borrow::Cow;

use serde::Deserialize;
use xxhash_rust::xxh3::Xxh3;

use super::{Fields, turn_key};
use crate::{error::Error, store::TurnKey};

/// The head of a `response.create`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Create {
    pub lane: Option<String>,
    pub previous_response_id: Option<String>,
    pub prompt_cache_key: Option<String>,
    /// False only where the client said so.
    pub store: bool,
    /// A second run of it could double nothing: the upstream keeps nothing of it, and the tools
    /// that it brings act at the client or only read. What it goes on from may bring others.
    pub repeatable: bool,
    /// `client_metadata.idempotency_key`.
    pub key: Option<TurnKey>,
    /// Hash of what makes two creates the same request; not a security boundary.
    pub fingerprint: u128,
}

/// Fields that differ between two sendings of the same request.
const UNRELATED: [&str; 2] = ["client_metadata", "stream"];

/// What the upstream keeps beside the request: a conversation, which each run prolongs, and a
/// prompt, which may bring tools that are not seen here.
const KEPT: [&str; 2] = ["conversation", "prompt"];

/// Kinds of tools that act at the client, which is told of one run only, or that only read. Not
/// `mcp`, `shell` and `code_interpreter`: they act where the upstream runs them.
const HARMLESS: [&str; 10] = [
    "apply_patch",
    "computer",
    "computer_use_preview",
    "custom",
    "file_search",
    "function",
    "image_generation",
    "local_shell",
    "namespace",
    "tool_search",
];

impl Create {
    /// # Errors
    /// `invalid_request` for an idempotency key that is none.
    pub(super) fn read(lane: Option<String>, fields: &Fields<'_>) -> Result<Self, Error> {
        let store = fields.get("store") != Some(false);
        Ok(Self {
            lane,
            previous_response_id: fields.get("previous_response_id"),
            prompt_cache_key: fields.get("prompt_cache_key"),
            store,
            repeatable: !store && acts_nowhere(fields),
            key: metadata_key(fields)?,
            fingerprint: fingerprint(fields),
        })
    }
}

/// The idempotency key in a create's metadata; what is no object, or no text, holds none.
fn metadata_key(fields: &Fields<'_>) -> Result<Option<TurnKey>, Error> {
    let metadata = fields.raw("client_metadata").and_then(|raw| Fields::parse(raw.as_bytes()));
    let key: Option<String> = metadata.and_then(|metadata| metadata.get("idempotency_key"));
    key.map(|key| turn_key(&key)).transpose()
}

fn fingerprint(fields: &Fields<'_>) -> u128 {
    let mut hash = Xxh3::new();
    for (key, value) in fields.iter().filter(|(key, _)| !UNRELATED.contains(key)) {
        for part in [key, value] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
    }
    hash.digest128()
}

/// Whether nothing that the request names is known to act outside of its response. What is not
/// understood may act.
fn acts_nowhere(fields: &Fields<'_>) -> bool {
    let given = |name: &str| fields.raw(name).filter(|value| *value != "null");
    let tools = || fields.get::<Vec<Tool<'_>>>("tools");
    !KEPT.iter().any(|name| given(name).is_some())
        && (given("tools").is_none() || tools().is_some_and(|tools| are_harmless(&tools)))
        && given("input").is_none_or(|input| input.starts_with('"') || items_act_nowhere(input))
}

/// The same of a list of input and output items, as a JSON text: some bring tools of their own,
/// as `additional_tools` and `tool_search_output` do.
#[must_use]
pub fn items_act_nowhere(items: &str) -> bool {
    !may_bring_tools(items)
        || serde_json::from_str::<Vec<Item<'_>>>(items).is_ok_and(|items| {
            items.iter().all(|item| item.tools.iter().all(|tools| are_harmless(tools)))
        })
}

/// Whether items have to be read for their tools. Most bring none, and are long: a name is looked
/// for, which may also be spelt with escapes.
#[must_use]
pub fn may_bring_tools(items: &str) -> bool {
    items.contains("\"tools\"") || items.contains("\\u00")
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    tools: Option<Vec<Tool<'a>>>,
}

#[derive(Deserialize)]
struct Tool<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    /// Those of a namespace.
    #[serde(borrow, default)]
    tools: Vec<Tool<'a>>,
}

fn are_harmless(tools: &[Tool<'_>]) -> bool {
    tools.iter().all(|tool| is_harmless(&tool.r#type) && are_harmless(&tool.tools))
}

fn is_harmless(kind: &str) -> bool {
    HARMLESS.contains(&kind) || is_web_search(kind)
}

/// `web_search` and `web_search_preview`, also with a date.
fn is_web_search(kind: &str) -> bool {
    let Some(rest) = kind.strip_prefix("web_search") else { return false };
    let date = rest.strip_prefix("_preview").unwrap_or(rest);
    date.is_empty() || date.strip_prefix('_').is_some_and(|date| date.bytes().all(is_of_date))
}

const fn is_of_date(byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn repeatable(more: &Value) -> bool {
        let mut create = json!({ "type": "response.create", "store": false, "input": "hello" });
        create.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let text = create.to_string();
        Create::read(None, &Fields::parse(text.as_bytes()).unwrap()).unwrap().repeatable
    }

    #[test]
    fn a_create_that_keeps_nothing_and_acts_nowhere_may_run_again() {
        let function =
            json!({ "type": "function", "name": "f", "parameters": { "type": "object" } });
        for more in [
            json!({}),
            json!({ "conversation": null, "prompt": null, "tools": null }),
            json!({ "tools": [] }),
            json!({ "tools": [function, { "type": "custom", "name": "c" }] }),
            json!({ "tools": [{ "type": "local_shell" }, { "type": "apply_patch" }] }),
            json!({ "tools": [{ "type": "namespace", "name": "n", "tools": [function] }] }),
            json!({ "tools": [{ "type": "tool_search" }, { "type": "image_generation" }] }),
            json!({ "tools": [{ "type": "web_search" }, { "type": "web_search_2025_08_26" }] }),
            json!({ "tools": [{ "type": "web_search_preview" }] }),
            json!({ "tools": [{ "type": "web_search_preview_2025_03_11" }] }),
            json!({ "tools": [{ "type": "file_search", "vector_store_ids": ["v"] }] }),
            json!({ "tools": [{ "type": "computer" }, { "type": "computer_use_preview" }] }),
            json!({ "input": null }),
            json!({ "input": "a text of \"tools\": [{\"type\":\"mcp\"}]" }),
            json!({ "input": [{ "role": "user", "content": "of \"tools\" and mcp \u{1}" }] }),
            json!({ "input": [{ "type": "additional_tools", "tools": [function] }] }),
            json!({ "input": [{ "type": "tool_search_output", "tools": null }] }),
        ] {
            assert!(repeatable(&more), "{more}");
        }
    }

    #[test]
    fn a_create_that_may_act_outside_does_not_run_again() {
        let mcp = json!({ "type": "mcp", "server_label": "s", "server_url": "https://s" });
        for more in [
            json!({ "store": true }),
            json!({ "store": null }),
            json!({ "conversation": "conv_1" }),
            json!({ "conversation": { "id": "conv_1" } }),
            json!({ "prompt": { "id": "pmpt_1" } }),
            json!({ "tools": [{ "type": "function", "name": "f" }, mcp] }),
            json!({ "tools": [{ "type": "namespace", "name": "n", "tools": [mcp] }] }),
            json!({ "tools": [{ "type": "namespace", "name": "n", "tools": "?" }] }),
            json!({ "tools": [{ "type": "shell", "environment": { "type": "container_auto" } }] }),
            json!({ "tools": [{ "type": "code_interpreter" }] }),
            json!({ "tools": [{ "type": "of_tomorrow" }] }),
            json!({ "tools": [{ "type": "web_search_and_buy" }] }),
            json!({ "tools": [{ "name": "without a type" }] }),
            json!({ "tools": { "type": "function" } }),
            json!({ "tools": "function" }),
            json!({ "input": [{ "type": "additional_tools", "tools": [mcp] }] }),
            json!({ "tools": [{ "type": "tool_search" }],
                    "input": [{ "role": "user", "content": "x" },
                              { "type": "tool_search_output", "tools": [mcp] }] }),
            json!({ "input": [{ "type": "of_tomorrow", "tools": [{ "type": "shell" }] }] }),
            json!({ "input": [{ "type": "additional_tools", "tools": "?" }] }),
        ] {
            assert!(!repeatable(&more), "{more}");
        }
    }

    #[test]
    fn tools_that_an_item_brings_are_found_however_their_name_is_spelt() {
        let text = r#"{"store":false,"input":[{"t\u006fols":[{"type":"code_interpreter"}]}]}"#;
        assert!(!Create::read(None, &Fields::parse(text.as_bytes()).unwrap()).unwrap().repeatable);
    }

    #[test]
    fn of_a_field_that_stands_twice_the_last_one_counts() {
        let text = r#"{"store":false,"tools":[],"tools":[{"type":"mcp"}]}"#;
        assert!(!Create::read(None, &Fields::parse(text.as_bytes()).unwrap()).unwrap().repeatable);
    }
}
