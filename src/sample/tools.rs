//! Which offered tool a `[tool=…]` calls, and arguments that fit its schema.

use serde_json::{Map, Value, json};

use super::directives::ToolCall;

/// A call of one tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) form: Form,
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    /// JSON arguments of a function, text of a custom tool.
    pub(super) payload: String,
}

/// What a kind of tool call is named on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) item: &'static str,
    pub(super) id_prefix: &'static str,
    /// The field that carries the payload.
    pub(super) field: &'static str,
    pub(super) delta: &'static str,
    pub(super) done: &'static str,
}

/// A function with JSON arguments.
const FUNCTION: Form = Form {
    item: "function_call",
    id_prefix: "fc",
    field: "arguments",
    delta: "response.function_call_arguments.delta",
    done: "response.function_call_arguments.done",
};
/// A custom tool with text.
const CUSTOM: Form = Form {
    item: "custom_tool_call",
    id_prefix: "ctc",
    field: "input",
    delta: "response.custom_tool_call_input.delta",
    done: "response.custom_tool_call_input.done",
};

/// The tool that runs scripts, which Responses-Lite models get instead of functions: Codex
/// offers a custom tool `exec`, in a namespace, by an input item of the conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ScriptTool {
    namespace: Option<String>,
}

impl ScriptTool {
    /// Looks for it among `tools` and one level of namespaces below.
    pub(super) fn find(tools: &Value) -> Option<Self> {
        let is_exec = |tool: &Value| tool["type"] == "custom" && tool["name"] == "exec";
        tools.as_array()?.iter().find_map(|tool| {
            let below = tool["tools"].as_array();
            if is_exec(tool) {
                Some(Self { namespace: None })
            } else if below.is_some_and(|tools| tools.iter().any(is_exec)) {
                Some(Self { namespace: tool["name"].as_str().map(str::to_owned) })
            } else {
                None
            }
        })
    }

    /// A script that runs a command and shows its output.
    fn call(&self, command: &str) -> Call {
        let command = json!({ "cmd": command });
        Call {
            form: CUSTOM,
            name: "exec".to_owned(),
            namespace: self.namespace.clone(),
            payload: format!("text((await tools.exec_command({command})).output)"),
        }
    }
}

/// The function tool of the wanted name, else the first that runs commands, else the first,
/// else the script tool. None if there is nothing to call.
pub(super) fn choose(
    wanted: &ToolCall,
    offered: &Value,
    script: Option<&ScriptTool>,
) -> Option<Call> {
    function(wanted, offered).or_else(|| Some(script?.call(&wanted.argument)))
}

fn function(wanted: &ToolCall, offered: &Value) -> Option<Call> {
    let functions = || {
        let tools = offered.as_array().into_iter().flatten();
        tools.filter(|tool| tool["type"] == "function" && tool["name"].is_string())
    };
    let tool = functions()
        .find(|tool| tool["name"] == wanted.name.as_str())
        .or_else(|| functions().find(|tool| command_field(tool).is_some()))
        .or_else(|| functions().next())?;
    Some(Call {
        form: FUNCTION,
        name: tool["name"].as_str()?.to_owned(),
        namespace: None,
        payload: arguments(tool, &wanted.argument).to_string(),
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
