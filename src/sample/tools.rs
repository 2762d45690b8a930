//! Which offered tool a `[tool=…]` calls, and arguments that fit its schema.

use serde_json::{Map, Value, json};

use super::directives::ToolCall;

/// A call of one function tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FunctionCall {
    pub(super) name: String,
    /// JSON text.
    pub(super) arguments: String,
}

/// The function tool of the wanted name, else the first that runs commands, else the first.
/// None if no function tool is offered.
pub(super) fn choose(wanted: &ToolCall, offered: &Value) -> Option<FunctionCall> {
    let functions = || {
        let tools = offered.as_array().into_iter().flatten();
        tools.filter(|tool| tool["type"] == "function" && tool["name"].is_string())
    };
    let tool = functions()
        .find(|tool| tool["name"] == wanted.name.as_str())
        .or_else(|| functions().find(|tool| command_field(tool).is_some()))
        .or_else(|| functions().next())?;
    Some(FunctionCall {
        name: tool["name"].as_str()?.to_owned(),
        arguments: arguments(tool, &wanted.argument).to_string(),
    })
}

/// The property that carries a command, of a tool that runs one.
fn command_field(tool: &Value) -> Option<&'static str> {
    let name = tool["name"].as_str()?;
    let runs_commands = name.contains("shell") || name.contains("exec");
    let properties = &tool["parameters"]["properties"];
    ["command", "cmd"].into_iter().find(|field| runs_commands && properties[*field].is_object())
}

/// The argument in the command, first required or first property; the least that fits in
/// the other required ones.
fn arguments(tool: &Value, argument: &str) -> Value {
    let schema = &tool["parameters"];
    let required = || schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let main = command_field(tool)
        .or_else(|| required().next())
        .or_else(|| schema["properties"].as_object()?.keys().next().map(String::as_str));
    let mut arguments = Map::new();
    for field in required().chain(main) {
        let kind = schema["properties"][field]["type"].as_str();
        let value = match (kind, Some(field) == main) {
            (Some("array"), true) => json!(["bash", "-lc", argument]),
            (_, true) => json!(argument),
            (Some("array"), false) => json!([]),
            (Some("object"), false) => json!({}),
            (Some("number" | "integer"), false) => json!(1),
            (Some("boolean"), false) => json!(false),
            (_, false) => json!("sample"),
        };
        arguments.insert(field.to_owned(), value);
    }
    Value::Object(arguments)
}
