//! Upstreams and routes: names resolved, paths and session keys judged.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    Continuity, Endpoint, KeySource, Profile, Route, Secret, SocketsAtDrain, Upstream,
    UpstreamAuth, continuity,
    fault::{Faults, Got},
    file::{Credential, File, RouteEntry, UpstreamEntry},
    path::{self, Pattern},
    resolve::{Env, Resolved},
    settings::Key,
    url::with_default_path,
};

/// The path of the Responses API.
pub const RESPONSES: &str = "/v1/responses";
/// Where clients that sign in with a subscription look for the same.
pub const RESPONSES_ALIAS: &str = "/backend-api/codex/responses";

/// Renewal age of the upstream that the shortcut makes; as the file's default.
const MAX_CONNECTION_AGE: Duration = Duration::from_mins(55);
/// Detach time of the route that the shortcut makes; as the file's default.
const DETACH_TTL: Duration = Duration::from_mins(2);

/// Headers that carry credentials: a session's key is shown to operators.
const CREDENTIALS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "x-api-key"];

/// Routes, and the upstreams that they lead to.
#[derive(Default)]
pub struct Found {
    pub routes: Vec<Arc<Route>>,
    pub upstreams: Vec<Arc<Upstream>>,
}

/// Says of a configuration that gives nothing to serve that it does.
pub fn judge_idle(settings: &Resolved, file: &File, found: &Found, faults: &mut Faults) {
    if file.routes.is_empty() && settings.sound(&[Key::Upstream]) && found.routes.is_empty() {
        settings.fault(Key::Upstream, "a URL here, or a [[route]] in the file (--config)", faults);
    }
}

/// Builds every route whose parts are sound; the rest are faults.
pub fn build(
    settings: &Resolved,
    file: &File,
    env: Env<'_>,
    faults: &mut Faults,
    warnings: &mut Vec<String>,
) -> Found {
    let mut found = Found::default();
    for entry in &file.upstreams {
        let duplicate = entry.name.is_some()
            && file.upstreams.iter().filter(|other| other.name == entry.name).count() > 1;
        if duplicate {
            let got = Got::Text(entry.name.clone().unwrap_or_default());
            faults.push(file.place(&entry.place, "name"), got, "a name that stands only once");
        }
        found.upstreams.extend(upstream(entry, settings, file, env, faults));
    }
    let mut taken: Vec<(Pattern, Profile)> = Vec::new();
    for entry in &file.routes {
        let route = route(entry, settings, &found.upstreams, file, &mut taken, faults);
        found.routes.extend(route.map(Arc::new));
    }
    warn_of_unused(file, warnings);
    shortcut(settings, &taken, &mut found, faults);
    add_alias(&mut found, &taken);
    found
}

fn upstream(
    entry: &UpstreamEntry,
    settings: &Resolved,
    file: &File,
    env: Env<'_>,
    faults: &mut Faults,
) -> Option<Arc<Upstream>> {
    let auth = credential(&entry.auth, &entry.place, env, faults);
    let ca_file = entry.ca_file.as_ref().map(PathBuf::from);
    if ca_file.as_deref().is_some_and(|path| !path.is_file()) {
        let got = Got::Text(entry.ca_file.clone().unwrap_or_default());
        faults.push(file.place(&entry.place, "ca_file"), got, "a PEM file");
    }
    let default = settings.switch(Key::UpstreamCompression);
    let endpoints = endpoints(entry, &auth, file, env, faults);
    let sole = Endpoint { auth, ..Endpoint::sole(entry.url.clone()?) };
    Some(Arc::new(Upstream {
        name: entry.name.clone()?,
        endpoints: if entry.endpoints.is_empty() { vec![sole] } else { endpoints? },
        max_connection_age: entry.max_connection_age,
        compression: entry.compression.unwrap_or(default),
        ca_file,
    }))
}

/// The credential that a variable holds, for what stands at `place`.
fn credential(auth: &Credential, place: &str, env: Env<'_>, faults: &mut Faults) -> UpstreamAuth {
    let Some(name) = auth.variable() else { return UpstreamAuth::Passthrough };
    match env(name).filter(|token| !token.is_empty()) {
        // A credential that is no header value could be neither sent nor explained later.
        Some(token) if token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            UpstreamAuth::Bearer(Secret::new(token))
        }
        given => {
            let got = given.map_or(Got::Missing, |token| Got::Secret(Secret::new(token)));
            let expected = format!("the credential of {place} (visible ASCII)");
            faults.push(format!("the variable {name}"), got, expected);
            UpstreamAuth::Passthrough
        }
    }
}

/// The endpoints of an upstream; None if one of them is not sound.
fn endpoints(
    upstream: &UpstreamEntry,
    auth: &UpstreamAuth,
    file: &File,
    env: Env<'_>,
    faults: &mut Faults,
) -> Option<Vec<Endpoint>> {
    let mut endpoints: Vec<Option<Endpoint>> = Vec::with_capacity(upstream.endpoints.len());
    for entry in &upstream.endpoints {
        let named = |other: &Option<Endpoint>| {
            other.as_ref().is_some_and(|other| Some(&other.name) == entry.name.as_ref())
        };
        if endpoints.iter().any(named) {
            let got = Got::Text(entry.name.clone().unwrap_or_default());
            faults.push(file.place(&entry.place, "name"), got, "a name that stands only once");
        }
        let auth = match &entry.auth {
            None => auth.clone(),
            Some(auth) => credential(auth, &entry.place, env, faults),
        };
        let url = entry.url.clone().or_else(|| upstream.url.clone());
        let weight = entry.weight;
        endpoints.push(entry.name.clone().zip(url).map(|(name, url)| Endpoint {
            name,
            url,
            auth,
            weight,
        }));
    }
    endpoints.into_iter().collect()
}

fn route(
    entry: &RouteEntry,
    settings: &Resolved,
    upstreams: &[Arc<Upstream>],
    file: &File,
    taken: &mut Vec<(Pattern, Profile)>,
    faults: &mut Faults,
) -> Option<Route> {
    let profile = match entry.profile.as_deref() {
        Some("responses") => Some(Profile::Responses),
        Some(_) => Some(Profile::Opaque),
        None => None,
    };
    let pattern = entry.path.as_deref().and_then(|path| {
        let place = file.place(&entry.place, "path");
        let judged = Pattern::parse(path).and_then(|pattern| {
            let profile = profile.unwrap_or(Profile::Opaque);
            path::conflict(&pattern, profile, taken).map_or(Ok(pattern), Err)
        });
        judged.map_err(|expected| faults.push(place, Got::Text(path.to_owned()), expected)).ok()
    });
    if let (Some(ledger), Some(Profile::Opaque)) = (entry.ledger, profile) {
        let place = file.place(&entry.place, "ledger");
        let expected = "nothing on an opaque route, whose messages are no turns";
        faults.push(place, Got::Text(ledger.to_string()), expected);
    }
    let session_key = session_key(entry, pattern.as_ref(), file, faults);
    let continuity = continuity::of_route(entry, profile, settings, file, faults);
    let upstream = entry.upstream.as_ref().and_then(|name| {
        let upstream = upstreams.iter().find(|upstream| upstream.name == *name);
        // An upstream that is there but wrong has its own fault.
        if !file.upstreams.iter().any(|entry| entry.name.as_ref() == Some(name)) {
            let mut names: Vec<_> =
                file.upstreams.iter().filter_map(|entry| entry.name.as_deref()).collect();
            names.dedup();
            let expected = match names.as_slice() {
                [] => "the name of an [[upstream]], of which there is none".into(),
                names => format!("the name of an [[upstream]]: {}", names.join(", ")),
            };
            let place = file.place(&entry.place, "upstream");
            faults.push(place, Got::Text(name.clone()), expected);
        }
        upstream
    });
    if let (Some(pattern), Some(profile)) = (pattern, profile) {
        taken.push((pattern, profile));
    }
    Some(Route {
        path: entry.path.clone()?,
        profile: profile?,
        upstream: Arc::clone(upstream?),
        session_key,
        detach_ttl: entry.detach_ttl,
        continuity,
        ledger: profile == Some(Profile::Responses) && entry.ledger.unwrap_or(true),
        compression: entry.compression,
        sockets_at_drain: entry.sockets_at_drain,
    })
}

fn session_key(
    entry: &RouteEntry,
    pattern: Option<&Pattern>,
    file: &File,
    faults: &mut Faults,
) -> Vec<KeySource> {
    let mut sources = Vec::with_capacity(entry.session_key.len());
    for text in &entry.session_key {
        match key_source(text, pattern) {
            Ok(source) => sources.push(source),
            Err(expected) => {
                let place = file.place(&entry.place, "session_key");
                faults.push(place, Got::Text(text.clone()), expected);
            }
        }
    }
    sources
}

fn key_source(text: &str, pattern: Option<&Pattern>) -> Result<KeySource, String> {
    let expected = || "path:NAME, header:NAME, query:NAME or cookie:NAME".to_owned();
    let (kind, name) = text.split_once(':').ok_or_else(expected)?;
    // Cookie names are tokens like header names; a query name that is none can only be a slip.
    let header: http::HeaderName = name.parse().map_err(|_| expected())?;
    match kind {
        "path" => match pattern {
            Some(pattern) if !pattern.has(name) => {
                Err(format!("a part of this route's path: {}", pattern.names()))
            }
            _ => Ok(KeySource::Path(name.to_owned())),
        },
        "header" if CREDENTIALS.contains(&header.as_str()) => {
            Err("a header that carries no credential, since operators see session keys".into())
        }
        "header" => Ok(KeySource::Header(header)),
        "query" => Ok(KeySource::Query(name.to_owned())),
        "cookie" => Ok(KeySource::Cookie(name.to_owned())),
        _ => Err(expected()),
    }
}

/// `--upstream URL`: one Responses route to one upstream.
fn shortcut(
    settings: &Resolved,
    taken: &[(Pattern, Profile)],
    found: &mut Found,
    faults: &mut Faults,
) {
    let Some(url) = settings.uri(Key::Upstream) else { return };
    if let Ok(pattern) = Pattern::parse(RESPONSES)
        && path::conflict(&pattern, Profile::Responses, taken).is_some()
    {
        let expected = "nothing, since the file has a route that covers /v1/responses already";
        settings.fault(Key::Upstream, expected, faults);
        return;
    }
    if found.upstreams.iter().any(|upstream| upstream.name == "upstream") {
        let expected = "nothing, since the file has an upstream named \"upstream\" already";
        settings.fault(Key::Upstream, expected, faults);
        return;
    }
    let upstream = Arc::new(Upstream {
        name: "upstream".into(),
        endpoints: vec![Endpoint::sole(with_default_path(url, RESPONSES))],
        max_connection_age: MAX_CONNECTION_AGE,
        compression: settings.switch(Key::UpstreamCompression),
        ca_file: None,
    });
    found.routes.push(Arc::new(Route {
        path: RESPONSES.into(),
        profile: Profile::Responses,
        upstream: Arc::clone(&upstream),
        session_key: Vec::new(),
        detach_ttl: DETACH_TTL,
        continuity: Continuity::default(),
        ledger: true,
        compression: true,
        sockets_at_drain: SocketsAtDrain::Auto,
    }));
    found.upstreams.push(upstream);
}

/// The Responses route is also served at its alias, unless the file routes that itself.
fn add_alias(found: &mut Found, taken: &[(Pattern, Profile)]) {
    let Ok(alias) = Pattern::parse(RESPONSES_ALIAS) else { return };
    let main = found
        .routes
        .iter()
        .find(|route| route.path == RESPONSES && route.profile == Profile::Responses);
    if let Some(main) = main
        && path::conflict(&alias, Profile::Responses, taken).is_none()
    {
        let alias = Route { path: RESPONSES_ALIAS.into(), ..Route::clone(main) };
        found.routes.push(Arc::new(alias));
    }
}

fn warn_of_unused(file: &File, warnings: &mut Vec<String>) {
    for entry in &file.upstreams {
        let used = file.routes.iter().any(|route| route.upstream == entry.name);
        if let (false, Some(name)) = (used, &entry.name) {
            warnings.push(format!("upstream {name}: no route leads to it"));
        }
    }
}
