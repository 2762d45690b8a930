//! Fields of the file's tables, once for the reader, the schema and the reference.

use super::value::Kind;

/// Form of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A single value.
    Scalar(Kind),
    /// `"passthrough"` or `{ bearer_env = "NAME" }`.
    UpstreamAuth,
    /// Array of `path:`, `header:`, `query:` and `cookie:` sources.
    KeySources,
    /// Array of [`AUTH_KEY`] tables.
    Keys,
    /// Array of [`ENDPOINT`] tables.
    Endpoints,
}

/// One field of a table.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    pub shape: Shape,
    pub required: bool,
    pub default: Option<&'static str>,
    /// One sentence.
    pub help: &'static str,
}

const fn required(name: &'static str, kind: Kind, help: &'static str) -> Field {
    Field { name, shape: Shape::Scalar(kind), required: true, default: None, help }
}

const fn optional(
    name: &'static str,
    shape: Shape,
    default: Option<&'static str>,
    help: &'static str,
) -> Field {
    Field { name, shape, required: false, default, help }
}

const DAY_MS: u64 = 86_400_000;

/// `[[upstream]]`
pub const UPSTREAM: &[Field] = &[
    required("name", Kind::Name, "Name by which routes refer to it."),
    required("url", Kind::UpstreamUrl, "WebSocket URL; `https://` for HTTP is derived from it."),
    optional(
        "auth",
        Shape::UpstreamAuth,
        Some("passthrough"),
        "Whose credential the upstream sees: the client's (`\"passthrough\"`), or the operator's from a variable (`{ bearer_env = \"NAME\" }`).",
    ),
    optional(
        "max_connection_age",
        Shape::Scalar(Kind::Duration { min_ms: 100, max_ms: 30 * DAY_MS }),
        Some("55m"),
        "The connection is renewed at a turn boundary before this age.",
    ),
    optional(
        "compression",
        Shape::Scalar(Kind::Switch),
        None,
        "Offer permessage-deflate; otherwise as `upstream_compression` says.",
    ),
    optional(
        "ca_file",
        Shape::Scalar(Kind::Path),
        None,
        "PEM file of trust anchors besides the system's.",
    ),
    optional(
        "endpoint",
        Shape::Endpoints,
        None,
        "Several places or credentials of this upstream, as `[[upstream.endpoint]]` tables; sessions are spread over them by weight and leave one that fails.",
    ),
];

/// `[[upstream.endpoint]]`
pub const ENDPOINT: &[Field] = &[
    required(
        "name",
        Kind::Name,
        "Name in metrics and logs; sessions are spread by it, so it should stay.",
    ),
    optional("url", Shape::Scalar(Kind::UpstreamUrl), None, "Its URL; otherwise the upstream's."),
    optional(
        "auth",
        Shape::UpstreamAuth,
        None,
        "Whose credential it sees; otherwise as the upstream's `auth` says.",
    ),
    optional(
        "weight",
        Shape::Scalar(Kind::Count { min: 1, max: 10_000 }),
        Some("100"),
        "Its share of the sessions relative to the others.",
    ),
];

/// `[[route]]`
pub const ROUTE: &[Field] = &[
    required(
        "path",
        Kind::Text,
        "Path of the client listener; `{name}` takes one segment, a last `{*name}` the rest.",
    ),
    required(
        "profile",
        Kind::Choice(&["responses", "opaque"]),
        "`responses` understands turns and response ids; `opaque` passes any WebSocket protocol untouched.",
    ),
    required("upstream", Kind::Name, "Name of an upstream."),
    optional(
        "session_key",
        Shape::KeySources,
        None,
        "Where a session's key is found, first match wins: `path:NAME`, `header:NAME`, `query:NAME`, `cookie:NAME`. Without a key every client has a session of its own.",
    ),
    optional(
        "detach_ttl",
        Shape::Scalar(Kind::Duration { min_ms: 0, max_ms: DAY_MS }),
        Some("2m"),
        "How long a session outlives its last client.",
    ),
    optional(
        "continuity",
        Shape::Scalar(Kind::Choice(super::Continuity::WORDS)),
        None,
        "What a conversation with `store: false` survives, on a responses route: `memory` a planned move; `replica` (the default) also the loss of its node, by a copy on the next owner; `database` the loss of all nodes, encrypted with `history-key`.",
    ),
    optional(
        "ledger",
        Shape::Scalar(Kind::Switch),
        None,
        "Write each turn to the database before it is sent, so that a crash is answered honestly and idempotency keys hold across owners. On unless switched off; a responses route only.",
    ),
    optional(
        "compression",
        Shape::Scalar(Kind::Switch),
        Some("true"),
        "permessage-deflate with clients that offer it.",
    ),
    optional(
        "sockets_at_drain",
        Shape::Scalar(Kind::Choice(&["auto", "boundary", "deadline"])),
        Some("auto"),
        "When a drain closes the Responses sockets of its own node: after the turn that runs (`boundary`), or after the last one before the deadline, for clients that do not reconnect (`deadline`); `auto` does the former with Codex and the latter with all others.",
    ),
];

/// `[auth]`
pub const AUTH: &[Field] = &[
    optional(
        "mode",
        Shape::Scalar(Kind::AuthMode),
        Some("passthrough"),
        "The setting `auth-mode`.",
    ),
    optional(
        "key",
        Shape::Keys,
        None,
        "Accepted keys of mode `api_key`, as `[[auth.key]]` tables.",
    ),
];

/// `[[auth.key]]`
pub const AUTH_KEY: &[Field] = &[
    required("name", Kind::Name, "Name of the principal, in logs and metrics."),
    required("sha256", Kind::Sha256, "SHA-256 of the key, as 64 hexadecimal digits."),
];
