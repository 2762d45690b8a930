//! Kinds of values: how each is read from text, and what is said when it cannot be.

use std::{net::SocketAddr, time::Duration};

use http::Uri;

use super::{HistoryKeys, Secret, fault::Got, url};

/// What a setting holds. The same kinds serve flags, variables, the file and its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text that is not empty.
    Text,
    /// Letters, digits, `.`, `_` and `-`, as in a host name; 253 characters at most.
    Name,
    /// IP address and port to bind.
    Address,
    /// Host name or IP address, and port, to connect to.
    HostPort,
    /// Whole milliseconds, between two bounds.
    Duration { min_ms: u64, max_ms: u64 },
    /// Bytes, between two bounds.
    Size { min: u64, max: u64 },
    /// A whole number between two bounds.
    Count { min: u64, max: u64 },
    /// `true` or `false`; outside of a file also `1` or `0`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `auth.mode`.
    AuthMode,
    /// Some of these words, separated by commas.
    Words(&'static [&'static str]),
    /// Web origins, separated by commas.
    Origins,
    /// A file.
    Path,
    /// `id=host:port` pairs, separated by commas.
    Members,
    /// `ws`, `wss`, `http` or `https`; kept in its WebSocket form.
    UpstreamUrl,
    /// `http` or `https`.
    HttpUrl,
    /// `sqlite` or `postgres`.
    DatabaseUrl,
    /// `postgres` only.
    PostgresUrl,
    /// A directive of `tracing_subscriber::EnvFilter`.
    Filter,
    /// A shared secret of at least [`SECRET_MIN`] characters.
    Secret,
    /// Keys of 32 bytes in base64, separated by commas; see [`HistoryKeys`].
    HistoryKeys,
    /// 64 hexadecimal digits; never shown, since the key itself may stand there by mistake.
    Sha256,
}

/// Shortest shared secret that is accepted, in characters.
pub const SECRET_MIN: usize = 16;

const AUTH_MODES: &[&str] = &["none", "api_key", "jwt", "passthrough"];

/// A value that its kind accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Address(SocketAddr),
    Duration(Duration),
    Number(u64),
    Switch(bool),
    Members(Vec<(String, String)>),
    Texts(Vec<String>),
    Uri(Uri),
    Secret(Secret),
}

impl Kind {
    /// Reads `text`.
    ///
    /// # Errors
    /// A phrase that says what would be right and holds nothing of `text`.
    pub fn read(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Self::Text | Self::Path => {
                (!text.trim().is_empty()).then(|| Value::Text(text.to_owned()))
            }
            Self::Name => is_name(text).then(|| Value::Text(text.to_owned())),
            Self::Address => text.parse().ok().map(Value::Address),
            Self::HostPort => split_host_port(text).map(|_| Value::Text(text.to_owned())),
            Self::Duration { min_ms, max_ms } => duration(text)
                .filter(|d| (u128::from(min_ms)..=u128::from(max_ms)).contains(&d.as_millis()))
                .map(Value::Duration),
            Self::Size { min, max } => {
                size(text).filter(|n| (min..=max).contains(n)).map(Value::Number)
            }
            Self::Count { min, max } => {
                text.parse().ok().filter(|n| (min..=max).contains(n)).map(Value::Number)
            }
            Self::Switch => switch(text).map(Value::Switch),
            Self::Choice(words) => words.contains(&text).then(|| Value::Text(text.to_owned())),
            Self::AuthMode => AUTH_MODES.contains(&text).then(|| Value::Text(text.to_owned())),
            Self::Members => members(text).map(Value::Members),
            Self::Words(words) => items(text, |item| words.contains(&item)).map(Value::Texts),
            Self::Origins => items(text, url::is_origin).map(Value::Texts),
            Self::UpstreamUrl => return url::upstream(text).map(Value::Uri),
            Self::HttpUrl => return url::http(text).map(Value::Uri),
            Self::DatabaseUrl | Self::PostgresUrl => {
                url::is_database(text, self == Self::DatabaseUrl)
                    .then(|| Value::Text(text.to_owned()))
            }
            Self::Filter => {
                let filter = tracing_subscriber::EnvFilter::builder().parse(text).ok();
                filter.filter(|_| !text.is_empty()).map(|_| Value::Text(text.to_owned()))
            }
            Self::Secret => {
                (text.chars().count() >= SECRET_MIN).then(|| Value::Secret(Secret::new(text)))
            }
            Self::HistoryKeys => HistoryKeys::parse(text).map(|_| Value::Secret(Secret::new(text))),
            Self::Sha256 => sha256(text).map(|_| Value::Text(text.to_owned())),
        };
        value.ok_or_else(|| self.expected())
    }

    /// What would be right, with bounds and an example.
    #[must_use]
    pub fn expected(self) -> String {
        match self {
            Self::Text => "some text".into(),
            Self::Name => {
                "letters, digits, '.', '_' and '-' (253 at most), such as \"node-0\"".into()
            }
            Self::Address => "an IP address and port to bind, such as \"127.0.0.1:8080\"".into(),
            Self::HostPort => "a host and port that others reach, such as \"node-0:50051\"".into(),
            Self::Duration { min_ms, max_ms } => format!(
                "a duration from {} to {}, such as \"15s\", \"500ms\" or \"2m\"",
                duration_text(Duration::from_millis(min_ms)),
                duration_text(Duration::from_millis(max_ms)),
            ),
            Self::Size { min, max } => format!(
                "a size from {} to {}, such as \"64MiB\" or 65536 (bytes)",
                size_text(min),
                size_text(max),
            ),
            Self::Count { min, max } => format!("a whole number from {min} to {max}"),
            Self::Switch => "true or false, also 1 or 0 but for a file".into(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::AuthMode => format!("one of {}", AUTH_MODES.join(", ")),
            Self::Words(words) => format!("some of {}, separated by commas", words.join(", ")),
            Self::Origins => {
                "scheme and host of web pages, separated by commas, such as \"https://app.example\"".into()
            }
            Self::Path => "the path of a file".into(),
            Self::Members => {
                "distinct id=host:port pairs separated by commas, such as \"a=10.0.0.1:50051,b=10.0.0.2:50051\"".into()
            }
            Self::UpstreamUrl => "a ws, wss, http or https URL".into(),
            Self::HttpUrl => "an http or https URL".into(),
            Self::DatabaseUrl => "sqlite://PATH or postgres://USER@HOST/DATABASE".into(),
            Self::PostgresUrl => "postgres://USER@HOST/DATABASE".into(),
            Self::Filter => {
                "a filter such as \"info\" or \"ringspan=debug,warn\"".into()
            }
            Self::Secret => format!("at least {SECRET_MIN} characters"),
            Self::HistoryKeys => {
                "1 to 8 distinct keys of 32 bytes in base64 separated by commas, each as `openssl rand -base64 32` prints it".into()
            }
            Self::Sha256 => {
                "64 hexadecimal digits, as `printf %s KEY | sha256sum` prints them".into()
            }
        }
    }

    /// How `text` may be shown in faults, dumps and `Debug`.
    #[must_use]
    pub fn shown(self, text: &str) -> Got {
        match self {
            Self::Secret | Self::HistoryKeys | Self::Sha256 => Got::Secret(Secret::new(text)),
            Self::UpstreamUrl | Self::HttpUrl | Self::DatabaseUrl | Self::PostgresUrl => {
                Got::Text(url::redact(text))
            }
            _ => Got::Text(text.to_owned()),
        }
    }

    /// Words of a choice, if this is one.
    #[must_use]
    pub const fn words(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Choice(words) => Some(words),
            Self::AuthMode => Some(AUTH_MODES),
            _ => None,
        }
    }
}

fn switch(text: &str) -> Option<bool> {
    match text {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// Items between commas, if there is one and all are good.
fn items(text: &str, good: impl Fn(&str) -> bool) -> Option<Vec<String>> {
    let items = text.split(',').map(str::trim);
    items.map(|item| good(item).then(|| item.to_owned())).collect()
}

/// Reads `"55m"`, `"500ms"` or `"1h30m"`; every number carries its unit.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit_ms = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(unit_ms)?))?;
        rest = &rest[letters..];
    }
    (!text.is_empty()).then_some(total)
}

/// The inverse of [`duration`], to the millisecond.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut text = String::new();
    for (unit, ms) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest >= ms {
            text.extend([(rest / ms).to_string().as_str(), unit]);
            rest %= ms;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads `"64MiB"`, `"1 GB"` without the blank, or bare bytes.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" => 1,
        unit => SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// The inverse of [`size`], in the largest binary unit that is exact.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    match SIZES[..3].iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// Host (brackets of an IPv6 address kept off) and port of `host:port`.
#[must_use]
pub fn split_host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        inner.parse::<std::net::Ipv6Addr>().ok()?;
        return Some((inner, port));
    }
    is_name(host).then_some((host, port))
}

/// Longest name in a configuration, in bytes.
pub const MAX_NAME: usize = 253;

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// The bytes of 64 hexadecimal digits.
#[must_use]
pub fn sha256(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn members(text: &str) -> Option<Vec<(String, String)>> {
    let mut members: Vec<(String, String)> = Vec::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (id, address) = pair.split_once('=')?;
        if !is_name(id) || members.iter().any(|(known, _)| known == id) {
            return None;
        }
        split_host_port(address)?;
        members.push((id.to_owned(), address.to_owned()));
    }
    (!members.is_empty()).then_some(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_carry_units_and_survive_their_text_form() {
        for (text, ms) in [("500ms", 500), ("2s", 2_000), ("55m", 3_300_000), ("1h30m", 5_400_000)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
            assert_eq!(duration_text(Duration::from_millis(ms)), text);
        }
        for text in ["", "15", "s", "15 s", "-1s", "1.5s", "15sec", "99999999999999999999s"] {
            assert_eq!(duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_binary_or_decimal_and_survive_their_text_form() {
        for (text, bytes) in [("64MiB", 64 << 20), ("1gib", 1 << 30), ("2KB", 2_000), ("7", 7)] {
            assert_eq!(size(text), Some(bytes), "{text}");
            assert_eq!(size(&size_text(bytes)), Some(bytes));
        }
        for text in ["", "MiB", "1.5MiB", "1TiB", "-1", "99999999999GiB"] {
            assert_eq!(size(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_peer_address_has_a_host_and_a_port() {
        assert_eq!(split_host_port("node-0.ring:50051"), Some(("node-0.ring", 50051)));
        assert_eq!(split_host_port("[::1]:50051"), Some(("::1", 50051)));
        for text in ["node", "node:0", ":1", "node:99999", "::1:50051", "a b:1", "http://a:1"] {
            assert_eq!(split_host_port(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_member_list_refuses_an_id_that_stands_twice() {
        assert!(Kind::Members.read("a=h:1,b=h:2").is_ok());
        assert!(Kind::Members.read("a=h:1,a=h:2").is_err());
        assert!(Kind::Members.read("a").is_err());
    }
}
