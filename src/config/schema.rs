//! JSON Schema (2020-12) of the configuration file, from the same tables that read it.

use serde_json::{Map, Value, json};

use super::{
    fields::{AUTH, AUTH_KEY, ENDPOINT, Field, ROUTE, Shape, UPSTREAM},
    settings::{InFile, Otherwise, SETTINGS},
    value::Kind,
};

/// The schema of the whole file.
#[must_use]
pub fn schema() -> Value {
    let mut properties = Map::new();
    for setting in SETTINGS.iter().filter(|setting| setting.in_file() == InFile::Top) {
        let Some(name) = setting.file_key() else { continue };
        let mut property = kind(setting.kind);
        let mut help =
            format!("{} Variable {}, flag --{}.", setting.help, setting.env(), setting.name);
        match setting.otherwise {
            Otherwise::Text(text) => property["default"] = default(setting.kind, text),
            Otherwise::Computed(words) => help.extend([" Default: ", words, "."]),
            Otherwise::Unset => {}
        }
        property["description"] = help.into();
        properties.insert(name, property);
    }
    let tables = |help: &str, fields| json!({ "type": "array", "description": help, "items": table(fields) });
    properties.insert("upstream".into(), tables("What sessions are connected to.", UPSTREAM));
    properties.insert("route".into(), tables("Paths of the client listener.", ROUTE));
    let mut auth = table(AUTH);
    auth["description"] = "Who may use the client listener.".into();
    properties.insert("auth".into(), auth);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ringspan configuration file",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
}

fn table(fields: &[Field]) -> Value {
    let mut properties = Map::new();
    for field in fields {
        let mut property = match field.shape {
            Shape::Scalar(scalar) => kind(scalar),
            Shape::UpstreamAuth => json!({ "anyOf": [
                { "const": "passthrough" },
                {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": { "bearer_env": kind(Kind::Name) },
                    "required": ["bearer_env"],
                },
            ] }),
            Shape::KeySources => json!({
                "type": "array",
                "items": { "type": "string", "pattern": "^(path|header|query|cookie):.+$" },
            }),
            Shape::Keys => json!({ "type": "array", "items": table(AUTH_KEY) }),
            Shape::Endpoints => {
                json!({ "type": "array", "minItems": 1, "items": table(ENDPOINT) })
            }
        };
        if let Some(text) = field.default {
            property["default"] = match field.shape {
                Shape::Scalar(scalar) => default(scalar, text),
                _ => text.into(),
            };
        }
        property["description"] = field.help.into();
        properties.insert(field.name.into(), property);
    }
    let required: Vec<&str> = fields.iter().filter(|f| f.required).map(|f| f.name).collect();
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "required": required,
    })
}

/// The default in the type that the schema asks for.
fn default(kind: Kind, text: &str) -> Value {
    match kind {
        Kind::Count { .. } => text.parse::<u64>().map_or(Value::Null, Value::from),
        Kind::Switch => Value::Bool(text == "true"),
        _ => text.into(),
    }
}

fn kind(kind: Kind) -> Value {
    if let Some(words) = kind.words() {
        return json!({ "enum": words });
    }
    match kind {
        Kind::Switch => json!({ "type": "boolean" }),
        Kind::Count { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Size { min, max } => json!({ "anyOf": [
            { "type": "integer", "minimum": min, "maximum": max },
            { "type": "string", "pattern": "^[0-9]+(([KkMmGg][Ii]?)?[Bb])?$" },
        ] }),
        Kind::Duration { .. } => {
            json!({ "type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$" })
        }
        Kind::Members => json!({ "anyOf": [
            { "type": "string" },
            { "type": "array", "items": { "type": "string", "pattern": "^[^=]+=.+:[0-9]+$" } },
        ] }),
        Kind::Words(words) => json!({ "anyOf": [
            { "type": "string", "minLength": 1 },
            { "type": "array", "minItems": 1, "items": { "enum": words } },
        ] }),
        Kind::Origins => json!({ "anyOf": [
            { "type": "string", "minLength": 1 },
            { "type": "array", "minItems": 1, "items": { "type": "string", "pattern": "^https?://[^/?#@]+$" } },
        ] }),
        Kind::Name => json!({ "type": "string", "pattern": "^[A-Za-z0-9._-]{1,253}$" }),
        Kind::HostPort | Kind::Address => json!({ "type": "string", "pattern": "^.+:[0-9]+$" }),
        Kind::UpstreamUrl => json!({ "type": "string", "pattern": "^(ws|http)s?://[^@#]+$" }),
        Kind::HttpUrl => json!({ "type": "string", "pattern": "^https?://[^@#]+$" }),
        Kind::DatabaseUrl => {
            json!({ "type": "string", "pattern": "^(sqlite:|postgres(ql)?://).+$" })
        }
        Kind::PostgresUrl => json!({ "type": "string", "pattern": "^postgres(ql)?://.+$" }),
        Kind::Secret => json!({ "type": "string", "minLength": super::value::SECRET_MIN }),
        Kind::HistoryKeys => {
            json!({ "type": "string", "pattern": "^[A-Za-z0-9+/]{43}=(,[A-Za-z0-9+/]{43}=){0,7}$" })
        }
        Kind::Sha256 => json!({ "type": "string", "pattern": "^[0-9A-Fa-f]{64}$" }),
        Kind::Text | Kind::Path | Kind::Filter | Kind::Choice(_) | Kind::AuthMode => {
            json!({ "type": "string", "minLength": 1 })
        }
    }
}
