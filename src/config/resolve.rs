//! Which value of each setting holds: flag over variable over file over default.

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};

use http::Uri;

use super::{
    Secret,
    fault::{Faults, Got},
    file::File,
    settings::{Key, Otherwise, SETTINGS},
    value::Value,
};

/// How the environment is read; injected, so that tests need no process variables.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Flags of the command line, as text: they are judged together with everything else.
#[derive(Clone, Default)]
pub struct ServeArgs(BTreeMap<Key, String>);

impl ServeArgs {
    /// The same flags with one more.
    #[must_use]
    pub fn with(mut self, key: Key, value: impl Into<String>) -> Self {
        self.0.insert(key, value.into());
        self
    }

    /// What a flag was given.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&str> {
        self.0.get(&key).map(String::as_str)
    }
}

impl fmt::Debug for ServeArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(key, text): (&Key, &String)| (*key, key.setting().kind.shown(text));
        f.debug_map().entries(self.0.iter().map(shown)).finish()
    }
}

/// Where the value that holds was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Flag,
    Env(String),
    /// The path of the file.
    File(String),
    Default,
}

/// A non-empty variable, by our name or the standard one. Kubernetes and OpenTelemetry
/// alike mean "not set" by an empty one.
fn from_env(key: Key, env: Env<'_>) -> Option<(String, String)> {
    let setting = key.setting();
    [Some(setting.env()), setting.standard_env().map(str::to_owned)]
        .into_iter()
        .flatten()
        .find_map(|name| env(&name).filter(|text| !text.is_empty()).map(|text| (name, text)))
}

/// Name of a setting in a fault: as it was spelled where it was given.
fn place(key: Key, source: &Source) -> String {
    let setting = key.setting();
    match source {
        Source::Flag => format!("--{}", setting.name),
        Source::Env(name) => name.clone(),
        Source::File(path) => format!("{} in {path}", setting.file_key().unwrap_or_default()),
        Source::Default => setting.name.to_owned(),
    }
}

/// One setting as it holds. Not `Debug`: `text` may be a secret.
pub struct Given {
    pub text: Option<String>,
    pub source: Source,
    value: Option<Value>,
    sound: bool,
}

/// All settings as they hold, indexed by [`Key`]. A setting that was wrong counts as unset
/// and not [`sound`](Resolved::sound), so that one mistake is reported once.
pub struct Resolved(Vec<Given>);

impl Resolved {
    /// The path of the configuration file and the name of where it was given.
    pub fn config_path(args: &ServeArgs, env: Env<'_>) -> Option<(String, String)> {
        let flag = args.get(Key::Config).map(|path| (path.to_owned(), Source::Flag));
        flag.or_else(|| from_env(Key::Config, env).map(|(name, path)| (path, Source::Env(name))))
            // An empty path is a fault of the setting itself.
            .filter(|(path, _)| !path.trim().is_empty())
            .map(|(path, source)| (path, place(Key::Config, &source)))
    }

    /// Judges every value of every layer, also one that another layer covers.
    pub fn new(
        wanted: impl Fn(Key) -> bool,
        args: &ServeArgs,
        env: Env<'_>,
        file: &File,
        faults: &mut Faults,
    ) -> Self {
        let mut resolve = |key: Key, otherwise: Otherwise| {
            let flag = args.get(key).map(|text| (Source::Flag, text.to_owned()));
            let variable = from_env(key, env).map(|(name, text)| (Source::Env(name), text));
            // The file has been judged while it was read.
            let in_file = file.scalars.get(&key);
            let in_file = in_file.map(|text| (Source::File(file.path.clone()), text.clone()));
            let mut given = Given { text: None, source: Source::Default, value: None, sound: true };
            if !wanted(key) {
                return given;
            }
            for (source, text) in [flag, variable, in_file].into_iter().flatten() {
                match key.setting().kind.read(&text) {
                    Ok(value) if given.text.is_none() => {
                        given = Given {
                            text: Some(text),
                            source,
                            value: Some(value),
                            sound: given.sound,
                        }
                    }
                    Ok(_) => {}
                    Err(expected) => {
                        let shown = key.setting().kind.shown(&text);
                        faults.push(place(key, &source), shown, expected);
                        given.sound = false;
                    }
                }
            }
            if let (None, Otherwise::Text(text)) = (&given.text, otherwise) {
                given.value = key.setting().kind.read(text).ok();
                given.text = Some(text.to_owned());
            }
            given
        };
        Self(SETTINGS.iter().map(|setting| resolve(setting.key, setting.otherwise)).collect())
    }

    /// Gives a computed default to a setting that has no value, and judges it.
    pub fn fill(&mut self, key: Key, text: String, faults: &mut Faults) {
        let given = &mut self.0[key as usize];
        if given.text.is_some() || !given.sound {
            return;
        }
        match key.setting().kind.read(&text) {
            Ok(value) => (given.text, given.value) = (Some(text), Some(value)),
            Err(expected) => {
                given.sound = false;
                faults.push(key.setting().name, key.setting().kind.shown(&text), expected);
            }
        }
    }

    /// Adds a fault of a setting, named as it was given.
    pub fn fault(&self, key: Key, expected: impl Into<String>, faults: &mut Faults) {
        let given = self.given(key);
        let got = given.text.as_deref().map_or(Got::Missing, |text| key.setting().kind.shown(text));
        faults.push(place(key, &given.source), got, expected);
    }

    /// Whether none of these was wrong by itself, so that their relation may be judged.
    #[must_use]
    pub fn sound(&self, keys: &[Key]) -> bool {
        keys.iter().all(|key| self.given(*key).sound)
    }

    /// One setting.
    #[must_use]
    pub fn given(&self, key: Key) -> &Given {
        &self.0[key as usize]
    }

    fn value(&self, key: Key) -> Option<&Value> {
        self.given(key).value.as_ref()
    }

    /// Text of a setting that has one.
    #[must_use]
    pub fn text(&self, key: Key) -> Option<String> {
        self.given(key).text.clone()
    }

    /// A duration; zero where there is none.
    #[must_use]
    pub fn duration(&self, key: Key) -> Duration {
        match self.value(key) {
            Some(Value::Duration(duration)) => *duration,
            _ => Duration::ZERO,
        }
    }

    /// A count or a size; zero where there is none.
    #[must_use]
    pub fn number(&self, key: Key) -> u64 {
        match self.value(key) {
            Some(Value::Number(number)) => *number,
            _ => 0,
        }
    }

    /// A count or a size as the type that its bounds fit.
    #[must_use]
    pub fn count<T: TryFrom<u64> + Default>(&self, key: Key) -> T {
        T::try_from(self.number(key)).unwrap_or_default()
    }

    /// A switch; off where there is none.
    #[must_use]
    pub fn switch(&self, key: Key) -> bool {
        matches!(self.value(key), Some(Value::Switch(true)))
    }

    /// An address to bind; any port of any address where there is none.
    #[must_use]
    pub fn address(&self, key: Key) -> SocketAddr {
        match self.value(key) {
            Some(Value::Address(address)) => *address,
            _ => SocketAddr::from(([0, 0, 0, 0], 0)),
        }
    }

    /// A URL.
    #[must_use]
    pub fn uri(&self, key: Key) -> Option<Uri> {
        match self.value(key) {
            Some(Value::Uri(uri)) => Some(uri.clone()),
            _ => None,
        }
    }

    /// A shared secret.
    #[must_use]
    pub fn secret(&self, key: Key) -> Option<Secret> {
        match self.value(key) {
            Some(Value::Secret(secret)) => Some(secret.clone()),
            _ => None,
        }
    }

    /// Items of a list; none where there is none.
    #[must_use]
    pub fn texts(&self, key: Key) -> Vec<String> {
        match self.value(key) {
            Some(Value::Texts(texts)) => texts.clone(),
            _ => Vec::new(),
        }
    }

    /// Pairs of a member list.
    #[must_use]
    pub fn members(&self, key: Key) -> Vec<(String, String)> {
        match self.value(key) {
            Some(Value::Members(members)) => members.clone(),
            _ => Vec::new(),
        }
    }
}
