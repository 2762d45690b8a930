//! `docs/configuration.md`, from the same tables that read the configuration.

use std::fmt::{Arguments, Write};

use super::{
    fields::{AUTH, AUTH_KEY, ENDPOINT, Field, ROUTE, UPSTREAM},
    settings::{Otherwise, SETTINGS, Section, Setting},
};

const HEAD: &str = "\
# Configuration

<!-- Made by `ringspan config reference`; a test fails when it is out of date. -->

Every scalar setting has one name in three spellings: `--lease-ttl` on the command line,
`RINGSPAN_LEASE_TTL` in the environment and `lease_ttl` at the top of the TOML file that `--config` names
(which holds all but `--config` itself and `--upstream`).
A flag wins over the environment, the environment over the file, the file over the default; an empty
variable counts as not set. Every given value has to be right, also one that another covers.

Durations carry units (`500ms`, `15s`, `1h30m`), sizes may (`64MiB`, `64MB`, or plain bytes). Switches are
`true` or `false`; flags and variables may say `1` or `0`, and a flag alone says `true`.

`ringspan config check FILE` judges a file in the present environment, `ringspan config dump` shows what
holds (also without an upstream, of which `check` says that it is missing), and `ringspan config schema` prints a JSON Schema for editors and pipelines. A bad configuration
is refused before any port is bound, with exit status 64 and one line for each fault.
[`ringspan.example.toml`](ringspan.example.toml) is an example.
";

const FILE_HEAD: &str = "
## Upstreams and routes

These are tables of the file only. A responses route at `/v1/responses` is also served at
`/backend-api/codex/responses`, unless the file has a route there. Paths directly under a responses
route belong to its stored responses (`GET /v1/responses/{id}`).
";

const TAIL: &str = "
## Other variables

| Variable | Meaning |
|---|---|
| `POD_NAME` | Default of `node-id`, and part of the advertised name |
| `POD_NAMESPACE` | Part of the advertised name |
| `POD_UID` | Its presence says that the platform runs at most one process for each node id, so a restarted pod takes over from its former self at once |
| `NODE_NAME` | Kubernetes node, an attribute of what is sent to a collector |
| `OTEL_…` | [As OpenTelemetry has them](observability.md) |
| `RINGSPAN_ADMIN_URL` | Admin listener that `ring`, `sessions`, `top` and `drain` ask |
| `PGPASSWORD`, `PGPASSFILE` | Password of the database, or a `.pgpass` file with it, where neither its URL nor `database-password-file` gives one |
| `PGSSLMODE` | `sslmode` (disable, allow, prefer, require, verify-ca, verify-full) of a URL that gives none; default prefer |
| `PGSSLROOTCERT`, `PGSSLCERT`, `PGSSLKEY` | Files of `sslrootcert`, `sslcert` and `sslkey`, likewise: the authority of the server's certificate, and the client's own |
| `PGHOST`, `PGHOSTADDR`, `PGPORT`, `PGUSER`, `PGDATABASE`, `PGOPTIONS` | What else a postgres URL leaves out |
| `XDG_STATE_HOME`, `HOME` | Where the default database lies |
";

/// The whole document.
#[must_use]
pub fn markdown() -> String {
    let mut out = HEAD.to_owned();
    for section in Section::ALL {
        push(&mut out, format_args!("\n## {}\n\n", section.title()));
        out.push_str("| Flag | Variable | File | Default | Meaning |\n|---|---|---|---|---|\n");
        for setting in SETTINGS.iter().filter(|setting| setting.section == section) {
            row(&mut out, setting);
        }
    }
    out.push_str(FILE_HEAD);
    for (title, fields) in [
        ("[[upstream]]", UPSTREAM),
        ("[[upstream.endpoint]]", ENDPOINT),
        ("[[route]]", ROUTE),
        ("[auth]", AUTH),
        ("[[auth.key]]", AUTH_KEY),
    ] {
        table(&mut out, title, fields);
    }
    out.push_str(TAIL);
    out
}

fn push(out: &mut String, text: Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

fn row(out: &mut String, setting: &Setting) {
    let variables: Vec<String> = std::iter::once(setting.env())
        .chain(setting.standard_env().map(str::to_owned))
        .map(|name| format!("`{name}`"))
        .collect();
    let file = setting.file_key().map_or_else(|| "–".into(), |key| format!("`{key}`"));
    let default = match setting.otherwise {
        Otherwise::Text(text) => format!("`{text}`"),
        Otherwise::Computed(words) => words.to_owned(),
        Otherwise::Unset => "–".into(),
    };
    let (name, help) = (setting.name, setting.help);
    let variables = variables.join(", ");
    push(out, format_args!("| `--{name}` | {variables} | {file} | {default} | {help} |\n"));
}

fn table(out: &mut String, title: &str, fields: &[Field]) {
    push(out, format_args!("\n### `{title}`\n\n"));
    out.push_str("| Key | Default | Meaning |\n|---|---|---|\n");
    for field in fields {
        let default = match (field.required, field.default) {
            (true, _) => "required".to_owned(),
            (false, Some(text)) => format!("`{text}`"),
            (false, None) => "–".to_owned(),
        };
        push(out, format_args!("| `{}` | {default} | {} |\n", field.name, field.help));
    }
}
