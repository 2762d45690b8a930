//! The effective configuration as TOML that loads again, without its secrets.

use std::fmt::Write;

use toml::Value as Toml;

use super::{
    Auth, KeySource, Profile, Route,
    fault::Got,
    file::Credential,
    load::Loaded,
    resolve::Source,
    routes::{RESPONSES, RESPONSES_ALIAS},
    settings::{InFile, SETTINGS, Section, Setting},
    value::{Kind, duration_text},
};

/// Writes the effective configuration. Secrets stand as comments that name the setting, and
/// passwords in URLs as `***`: give both again by variable to load the dump.
#[must_use]
pub fn dump(loaded: &Loaded) -> String {
    let mut out = String::from("# Effective configuration of ringspan. Secrets are left out.\n");
    for section in Section::ALL {
        let settings: Vec<&Setting> = SETTINGS
            .iter()
            .filter(|setting| setting.section == section && setting.in_file() == InFile::Top)
            .collect();
        if !settings.is_empty() {
            push(&mut out, format_args!("\n# {}\n", section.title()));
        }
        for setting in settings {
            scalar(&mut out, loaded, setting);
        }
    }
    upstreams(&mut out, loaded);
    for route in loaded.config.routes.iter().filter(|route| !is_implied(route, loaded)) {
        push_route(&mut out, route);
    }
    auth(&mut out, loaded);
    out
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

fn scalar(out: &mut String, loaded: &Loaded, setting: &Setting) {
    let given = loaded.settings.given(setting.key);
    let Some(name) = setting.file_key() else { return };
    let Some(text) = &given.text else {
        push(out, format_args!("# {name} is not set\n"));
        return;
    };
    let origin = match &given.source {
        Source::Default => String::new(),
        Source::Flag => format!(" # --{}", setting.name),
        Source::Env(variable) => format!(" # {variable}"),
        Source::File(path) => format!(" # {}", path.replace(char::is_control, "?")),
    };
    match setting.kind.shown(text) {
        Got::Secret(_) | Got::Missing => {
            push(out, format_args!("# {name} = \"<redacted>\"{origin}\n"));
        }
        Got::Text(shown) => {
            let value = match setting.kind {
                // Sound by now, so it is a number without need of quotes.
                Kind::Count { .. } => shown,
                Kind::Switch => loaded.settings.switch(setting.key).to_string(),
                _ => quoted(&shown),
            };
            push(out, format_args!("{name} = {value}{origin}\n"));
        }
    }
}

fn quoted(text: &str) -> String {
    Toml::String(text.to_owned()).to_string()
}

fn upstreams(out: &mut String, loaded: &Loaded) {
    // Only upstreams that a route leads to are part of the effective configuration.
    let mut done: Vec<&str> = Vec::new();
    for route in &loaded.config.routes {
        let upstream = &route.upstream;
        if done.contains(&upstream.name.as_str()) {
            continue;
        }
        done.push(&upstream.name);
        let entry = loaded.file.upstreams.iter().find(|e| e.name.as_ref() == Some(&upstream.name));
        push(out, format_args!("\n[[upstream]]\nname = {}\n", quoted(&upstream.name)));
        let sole = upstream.endpoints.first().map(|endpoint| &endpoint.url);
        let url = entry.and_then(|entry| entry.url.as_ref()).or(sole);
        place(out, url, Some(entry.map_or(&Credential::Clients, |entry| &entry.auth)));
        let age = duration_text(upstream.max_connection_age);
        push(out, format_args!("max_connection_age = {}\n", quoted(&age)));
        push(out, format_args!("compression = {}\n", upstream.compression));
        if let Some(path) = &upstream.ca_file {
            push(out, format_args!("ca_file = {}\n", quoted(&path.to_string_lossy())));
        }
        for endpoint in entry.into_iter().flat_map(|entry| &entry.endpoints) {
            let name = quoted(endpoint.name.as_deref().unwrap_or_default());
            push(out, format_args!("\n[[upstream.endpoint]]\nname = {name}\n"));
            place(out, endpoint.url.as_ref(), endpoint.auth.as_ref());
            push(out, format_args!("weight = {}\n", endpoint.weight));
        }
    }
}

/// URL and credential, where they are given.
fn place(out: &mut String, url: Option<&http::Uri>, auth: Option<&Credential>) {
    if let Some(url) = url {
        let url = super::url::redact(&url.to_string());
        push(out, format_args!("url = {}\n", quoted(&url)));
    }
    match auth {
        Some(Credential::Variable(name)) => {
            push(out, format_args!("auth = {{ bearer_env = {} }}\n", quoted(name)));
        }
        Some(Credential::Clients) => out.push_str("auth = \"passthrough\"\n"),
        None => {}
    }
}

/// Whether loading would add this route by itself.
fn is_implied(route: &Route, loaded: &Loaded) -> bool {
    let in_file = |path: &str| loaded.file.routes.iter().any(|e| e.path.as_deref() == Some(path));
    route.path == RESPONSES_ALIAS
        && !in_file(RESPONSES_ALIAS)
        && loaded.config.routes.iter().any(|main| main.path == RESPONSES)
}

fn push_route(out: &mut String, route: &Route) {
    push(out, format_args!("\n[[route]]\npath = {}\n", quoted(&route.path)));
    push(out, format_args!("profile = {}\n", quoted(route.profile.as_str())));
    push(out, format_args!("upstream = {}\n", quoted(&route.upstream.name)));
    let sources: Vec<Toml> =
        route.session_key.iter().map(|source| Toml::String(key_text(source))).collect();
    if !sources.is_empty() {
        push(out, format_args!("session_key = {}\n", Toml::Array(sources)));
    }
    push(out, format_args!("detach_ttl = {}\n", quoted(&duration_text(route.detach_ttl))));
    if route.profile == Profile::Responses {
        push(out, format_args!("continuity = {}\n", quoted(route.continuity.as_str())));
        push(out, format_args!("ledger = {}\n", route.ledger));
    }
    push(out, format_args!("compression = {}\n", route.compression));
    let sockets = quoted(route.sockets_at_drain.as_str());
    push(out, format_args!("sockets_at_drain = {sockets}\n"));
}

fn key_text(source: &KeySource) -> String {
    match source {
        KeySource::Path(name) => format!("path:{name}"),
        KeySource::Header(name) => format!("header:{name}"),
        KeySource::Query(name) => format!("query:{name}"),
        KeySource::Cookie(name) => format!("cookie:{name}"),
    }
}

fn auth(out: &mut String, loaded: &Loaded) {
    let (mode, keys) = match &loaded.config.auth {
        Auth::None => ("none", &[][..]),
        Auth::Passthrough => ("passthrough", &[][..]),
        Auth::ApiKey(keys) => ("api_key", &keys.fixed[..]),
        Auth::Jwt(_) => ("jwt", &[][..]),
    };
    push(out, format_args!("\n[auth]\nmode = {}\n", quoted(mode)));
    for key in keys {
        push(out, format_args!("\n[[auth.key]]\nname = {}\nsha256 = \"", quoted(&key.name)));
        for byte in key.sha256 {
            push(out, format_args!("{byte:02x}"));
        }
        out.push_str("\"\n");
    }
}
