//! What conversations survive, and the keys of those that the database keeps.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    Profile,
    fault::{Faults, Got},
    file::{File, RouteEntry},
    mounted,
    resolve::Resolved,
    settings::Key,
    value::Kind,
};

/// What a conversation that no upstream keeps survives, on a responses route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Continuity {
    /// A planned move: it is in its owner's memory alone.
    Memory,
    /// The loss of its owner: the next owner has a copy in its memory.
    #[default]
    Replica,
    /// The loss of every node: the database has it, encrypted.
    Database,
}

impl Continuity {
    /// The words of the file.
    pub const WORDS: &'static [&'static str] = &["memory", "replica", "database"];

    /// The word of the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Replica => "replica",
            Self::Database => "database",
        }
    }
}

/// Length of one key, in bytes: AES-256.
pub const HISTORY_KEY_BYTES: usize = 32;

/// Keys at a time: the one in use and those that a rotation has left behind.
const MAX_KEYS: usize = 8;

/// Keys of the conversations in the database: the first encrypts, all decrypt. `Debug` shows
/// how many there are and nothing of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HistoryKeys(Vec<[u8; HISTORY_KEY_BYTES]>);

impl HistoryKeys {
    /// Reads base64 texts that commas or white space separate. None if one is wrong or stands
    /// twice, or if there are none or too many.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut keys = Vec::new();
        let texts = text.split(|c: char| c == ',' || c.is_whitespace());
        for text in texts.filter(|text| !text.is_empty()) {
            let key = STANDARD.decode(text).ok()?.try_into().ok()?;
            if keys.contains(&key) || keys.len() == MAX_KEYS {
                return None;
            }
            keys.push(key);
        }
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// The keys themselves, the encrypting one first, for the one place that uses them.
    #[must_use]
    pub fn expose(&self) -> &[[u8; HISTORY_KEY_BYTES]] {
        &self.0
    }
}

impl fmt::Debug for HistoryKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} redacted>", self.0.len())
    }
}

/// The keys that were given, by setting or by file.
pub(super) fn keys(settings: &Resolved, faults: &mut Faults) -> HistoryKeys {
    let keys = [Key::HistoryKey, Key::HistoryKeyFile];
    let expected = Kind::HistoryKeys.expected();
    mounted::either(settings, keys, HistoryKeys::parse, &expected, faults).unwrap_or_default()
}

/// What a route asks for, if it may.
pub(super) fn of_route(
    entry: &RouteEntry,
    profile: Option<Profile>,
    settings: &Resolved,
    file: &File,
    faults: &mut Faults,
) -> Continuity {
    let Some(word) = entry.continuity.as_deref() else { return Continuity::default() };
    let refuse = |expected: &str, faults: &mut Faults| {
        faults.push(file.place(&entry.place, "continuity"), Got::Text(word.to_owned()), expected);
        Continuity::default()
    };
    if profile == Some(Profile::Opaque) {
        return refuse("nothing, since an opaque route has no conversations", faults);
    }
    let given = [Key::HistoryKey, Key::HistoryKeyFile];
    // A key that was given and is wrong has its own fault.
    let keyless =
        settings.sound(&given) && given.iter().all(|key| settings.given(*key).text.is_none());
    match word {
        "memory" => Continuity::Memory,
        "database" if keyless => refuse(
            "memory or replica, unless history-key or history-key-file gives the key that \
             encrypts what the database keeps",
            faults,
        ),
        "database" => Continuity::Database,
        _ => Continuity::Replica,
    }
}
