//! The TOML file, walked by hand so that every fault in it is found in one go.

use std::{collections::BTreeMap, io::Read, path::Path, time::Duration};

use http::Uri;
use toml::{Table, Value as Toml};

use super::{
    SocketsAtDrain,
    fault::{Faults, Got, unknown},
    fields::{AUTH, AUTH_KEY, ENDPOINT, Field, ROUTE, Shape, UPSTREAM},
    settings::{InFile, Key, SETTINGS},
    value::{Kind, Value},
};

/// Largest configuration file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Keys of the top that hold tables.
const TABLES: [&str; 3] = ["upstream", "route", "auth"];

/// A file whose values are sound one by one. What they mean together is checked in
/// [`load`](super::load).
#[derive(Default)]
pub struct File {
    /// Path as it was given; empty without a file.
    pub path: String,
    /// Scalar settings as text.
    pub scalars: BTreeMap<Key, String>,
    pub upstreams: Vec<UpstreamEntry>,
    pub routes: Vec<RouteEntry>,
    pub keys: Vec<KeyEntry>,
}

/// `[[upstream]]`. What was missing or wrong is None, and already a fault.
pub struct UpstreamEntry {
    /// `upstream[0]`, for faults.
    pub place: String,
    pub name: Option<String>,
    pub url: Option<Uri>,
    pub auth: Credential,
    pub max_connection_age: Duration,
    /// None: as the setting `upstream-compression` says.
    pub compression: Option<bool>,
    pub ca_file: Option<String>,
    pub endpoints: Vec<EndpointEntry>,
}

/// `[[upstream.endpoint]]`. What was missing or wrong is None, and already a fault.
pub struct EndpointEntry {
    /// `upstream[0].endpoint[0]`, for faults.
    pub place: String,
    pub name: Option<String>,
    /// None: the upstream's.
    pub url: Option<Uri>,
    /// None: as the upstream's.
    pub auth: Option<Credential>,
    pub weight: u32,
}

/// Whose credential an upstream sees.
pub enum Credential {
    Clients,
    /// The operator's, in this variable.
    Variable(String),
}

impl Credential {
    /// The variable, if there is one.
    #[must_use]
    pub fn variable(&self) -> Option<&str> {
        match self {
            Self::Clients => None,
            Self::Variable(name) => Some(name),
        }
    }
}

/// `[[route]]`. What was missing or wrong is None, and already a fault.
pub struct RouteEntry {
    /// `route[0]`, for faults.
    pub place: String,
    pub path: Option<String>,
    pub profile: Option<String>,
    pub upstream: Option<String>,
    pub session_key: Vec<String>,
    pub detach_ttl: Duration,
    /// None: not given.
    pub continuity: Option<String>,
    pub ledger: Option<bool>,
    pub compression: bool,
    pub sockets_at_drain: SocketsAtDrain,
}

/// `[[auth.key]]`. What was missing or wrong is None, and already a fault.
pub struct KeyEntry {
    pub place: String,
    pub name: Option<String>,
    pub sha256: Option<String>,
}

impl File {
    /// Reads `path`; all faults go to `faults`.
    pub fn read(path: &str, place: &str, faults: &mut Faults) -> Self {
        match read_bounded(Path::new(path), MAX_BYTES) {
            Ok(text) => Self::parse(path, &text, faults),
            Err(reason) => {
                faults.push(
                    place,
                    Got::Text(path.to_owned()),
                    format!("a readable TOML file of at most 1MiB ({reason})"),
                );
                Self { path: path.to_owned(), ..Self::default() }
            }
        }
    }

    /// Reads the text of a file that is called `path` in faults.
    pub fn parse(path: &str, text: &str, faults: &mut Faults) -> Self {
        let mut file = Self { path: path.to_owned(), ..Self::default() };
        let table = match text.parse::<Table>() {
            Ok(table) => table,
            Err(error) => {
                // The error's own Display quotes the line, which may hold a secret.
                let at = error.span().map_or(0, |span| span.start).min(text.len());
                let line = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
                faults.push(
                    format!("{path} line {line}"),
                    Got::Text("a syntax error".into()),
                    format!("TOML ({})", plain(error.message())),
                );
                return file;
            }
        };
        let mut walk = Walk { file: path, faults };
        file.scalars = walk.scalars(&table);
        file.upstreams = walk.entries(&table, "upstream", UPSTREAM, upstream);
        file.routes = walk.entries(&table, "route", ROUTE, route);
        file.keys = walk.auth(&table, &mut file.scalars);
        file
    }

    /// `route[0].path in FILE`.
    #[must_use]
    pub fn place(&self, entry: &str, field: &str) -> String {
        format!("{entry}.{field} in {}", self.path)
    }
}

/// The text of a file of at most `max` bytes, or why there is none.
pub fn read_bounded(path: &Path, max: u64) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.kind().to_string())?;
    let mut text = String::new();
    let read = file.take(max + 1).read_to_string(&mut text).map_err(|e| e.kind().to_string())?;
    if read as u64 > max { Err("too large".into()) } else { Ok(text) }
}

/// A parser's message without the values that it may quote.
fn plain(message: &str) -> &str {
    message.split(['`', '"', '\n']).next().unwrap_or_default().trim()
}

struct Walk<'a> {
    file: &'a str,
    faults: &'a mut Faults,
}

impl Walk<'_> {
    fn fault(&mut self, key: &str, got: Got, expected: impl Into<String>) {
        self.faults.push(format!("{key} in {}", self.file), got, expected);
    }

    fn scalars(&mut self, table: &Table) -> BTreeMap<Key, String> {
        let mut scalars = BTreeMap::new();
        let top = || SETTINGS.iter().filter(|setting| setting.in_file() == InFile::Top);
        let names: Vec<String> = top().filter_map(super::settings::Setting::file_key).collect();
        for (name, value) in table {
            if TABLES.contains(&name.as_str()) {
                continue;
            }
            let Some((setting, _)) = top().zip(&names).find(|(_, known)| *known == name) else {
                let known = names.iter().map(String::as_str).chain(TABLES);
                self.fault(name, Got::Text(name.clone()), unknown(name, known));
                continue;
            };
            if let Some(text) = self.scalar(name, setting.kind, value) {
                scalars.insert(setting.key, text);
            }
        }
        scalars
    }

    /// The text of a value whose TOML type suits its kind and which the kind accepts.
    fn scalar(&mut self, key: &str, kind: Kind, value: &Toml) -> Option<String> {
        let text = match (kind, value) {
            (Kind::Count { .. } | Kind::Size { .. }, Toml::Integer(number)) => number.to_string(),
            (Kind::Switch, Toml::Boolean(switch)) => switch.to_string(),
            (Kind::Members | Kind::Words(_) | Kind::Origins, Toml::Array(items))
                if items.iter().all(Toml::is_str) =>
            {
                items.iter().filter_map(Toml::as_str).collect::<Vec<_>>().join(",")
            }
            (Kind::Count { .. } | Kind::Switch, _) | (_, Toml::Table(_) | Toml::Array(_)) => {
                let got = Got::Text(format!("a {}", value.type_str()));
                self.fault(key, got, kind.expected());
                return None;
            }
            (_, Toml::String(text)) => text.clone(),
            (_, other) => {
                let expected = format!("{}, as a string", kind.expected());
                let got = kind.shown(&other.to_string());
                self.fault(key, got, expected);
                return None;
            }
        };
        if let Err(expected) = kind.read(&text) {
            self.fault(key, kind.shown(&text), expected);
            return None;
        }
        Some(text)
    }

    fn entries<T>(
        &mut self,
        table: &Table,
        path: &str,
        known: &'static [Field],
        build: impl Fn(&mut Entry<'_>) -> T,
    ) -> Vec<T> {
        let tables: Option<Vec<&Table>> = match table.get(path.rsplit('.').next().unwrap_or(path)) {
            None => return Vec::new(),
            Some(Toml::Array(items)) => items.iter().map(Toml::as_table).collect(),
            Some(_) => None,
        };
        let Some(tables) = tables else {
            self.fault(path, Got::Text("another type".into()), format!("[[{path}]] tables"));
            return Vec::new();
        };
        let mut entries = Vec::with_capacity(tables.len());
        for (index, table) in tables.into_iter().enumerate() {
            let place = format!("{path}[{index}]");
            entries.push(build(&mut Entry::new(self, place, table, known)));
        }
        entries
    }

    fn auth(&mut self, table: &Table, scalars: &mut BTreeMap<Key, String>) -> Vec<KeyEntry> {
        let auth = match table.get("auth") {
            None => return Vec::new(),
            Some(Toml::Table(auth)) => auth,
            Some(_) => {
                self.fault("auth", Got::Text("another type".into()), "an [auth] table");
                return Vec::new();
            }
        };
        self.unknown_keys("auth", auth, AUTH);
        if let Some(value) = auth.get("mode")
            && let Some(mode) = self.scalar("auth.mode", Kind::AuthMode, value)
        {
            scalars.insert(Key::AuthMode, mode);
        }
        self.entries(auth, "auth.key", AUTH_KEY, key)
    }

    fn unknown_keys(&mut self, place: &str, table: &Table, known: &[Field]) {
        for name in table.keys() {
            if !known.iter().any(|field| field.name == name) {
                let hint = unknown(name, known.iter().map(|field| field.name));
                self.fault(&format!("{place}.{name}"), Got::Text(name.clone()), hint);
            }
        }
    }
}

/// One table of an array of tables.
struct Entry<'a> {
    file: &'a str,
    faults: &'a mut Faults,
    place: String,
    table: &'a Table,
    known: &'static [Field],
}

impl<'a> Entry<'a> {
    fn new(
        walk: &'a mut Walk<'_>,
        place: String,
        table: &'a Table,
        known: &'static [Field],
    ) -> Self {
        walk.unknown_keys(&place, table, known);
        Self { file: walk.file, faults: walk.faults, place, table, known }
    }

    fn walk(&mut self) -> Walk<'_> {
        Walk { file: self.file, faults: self.faults }
    }

    /// Reads a field, or its default; a missing required field is a fault.
    fn value(&mut self, name: &str) -> Option<Value> {
        let field = self.known.iter().find(|field| field.name == name)?;
        let Shape::Scalar(kind) = field.shape else { return None };
        let key = format!("{}.{name}", self.place);
        match self.table.get(name) {
            Some(value) => {
                let text = self.walk().scalar(&key, kind, value);
                text.or_else(|| field.default.map(str::to_owned))
                    .and_then(|text| kind.read(&text).ok())
            }
            None if field.required => {
                self.walk().fault(&key, Got::Missing, kind.expected());
                None
            }
            None => kind.read(field.default?).ok(),
        }
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match self.value(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn duration(&mut self, name: &str) -> Duration {
        match self.value(name) {
            Some(Value::Duration(duration)) => duration,
            _ => Duration::ZERO,
        }
    }

    fn switch(&mut self, name: &str) -> Option<bool> {
        match self.value(name) {
            Some(Value::Switch(switch)) => Some(switch),
            _ => None,
        }
    }

    /// `auth = "passthrough"` or `auth = { bearer_env = "NAME" }`.
    fn auth(&mut self) -> Credential {
        let key = format!("{}.auth", self.place);
        let expected = match self.table.get("auth") {
            None => return Credential::Clients,
            Some(Toml::String(text)) if text == "passthrough" => return Credential::Clients,
            Some(Toml::Table(auth)) if auth.len() == 1 => {
                let name = auth.get("bearer_env").and_then(Toml::as_str);
                // Whoever puts the credential itself here must not find it in a log.
                match name.filter(|name| Kind::Name.read(name).is_ok()) {
                    Some(name) => return Credential::Variable(name.to_owned()),
                    None => "{ bearer_env = \"NAME\" }, the name of an environment variable",
                }
            }
            Some(_) => "\"passthrough\" or { bearer_env = \"NAME\" }",
        };
        self.walk().fault(&key, Got::Secret(super::Secret::new("")), expected);
        Credential::Clients
    }

    fn endpoints(&mut self) -> Vec<EndpointEntry> {
        let (table, path) = (self.table, format!("{}.endpoint", self.place));
        self.walk().entries(table, &path, ENDPOINT, endpoint)
    }

    fn session_key(&mut self) -> Vec<String> {
        let Some(value) = self.table.get("session_key") else { return Vec::new() };
        let sources: Option<Vec<String>> = value
            .as_array()
            .and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect());
        sources.unwrap_or_else(|| {
            let key = format!("{}.session_key", self.place);
            let got = Got::Text(format!("a {}", value.type_str()));
            self.walk().fault(
                &key,
                got,
                "an array such as [\"path:room\", \"header:x-session-id\"]",
            );
            Vec::new()
        })
    }
}

fn upstream(entry: &mut Entry<'_>) -> UpstreamEntry {
    UpstreamEntry {
        place: entry.place.clone(),
        name: entry.text("name"),
        url: match entry.value("url") {
            Some(Value::Uri(url)) => Some(url),
            _ => None,
        },
        auth: entry.auth(),
        max_connection_age: entry.duration("max_connection_age"),
        compression: entry.switch("compression"),
        ca_file: entry.text("ca_file"),
        endpoints: entry.endpoints(),
    }
}

fn endpoint(entry: &mut Entry<'_>) -> EndpointEntry {
    EndpointEntry {
        place: entry.place.clone(),
        name: entry.text("name"),
        url: match entry.value("url") {
            Some(Value::Uri(url)) => Some(url),
            _ => None,
        },
        auth: entry.table.contains_key("auth").then(|| entry.auth()),
        weight: match entry.value("weight") {
            Some(Value::Number(weight)) => u32::try_from(weight).unwrap_or(u32::MAX),
            _ => 1,
        },
    }
}

fn route(entry: &mut Entry<'_>) -> RouteEntry {
    RouteEntry {
        place: entry.place.clone(),
        path: entry.text("path"),
        profile: entry.text("profile"),
        upstream: entry.text("upstream"),
        session_key: entry.session_key(),
        detach_ttl: entry.duration("detach_ttl"),
        continuity: entry.text("continuity"),
        ledger: entry.switch("ledger"),
        compression: entry.switch("compression").unwrap_or_default(),
        sockets_at_drain: SocketsAtDrain::parse(
            &entry.text("sockets_at_drain").unwrap_or_default(),
        ),
    }
}

fn key(entry: &mut Entry<'_>) -> KeyEntry {
    KeyEntry { place: entry.place.clone(), name: entry.text("name"), sha256: entry.text("sha256") }
}
