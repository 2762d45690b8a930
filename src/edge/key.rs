//! Which session a request names, and what of it the upstream is told.

use http::{HeaderMap, HeaderName, Uri, header::COOKIE};
use sha2::{Digest, Sha256};

use crate::{
    config::KeySource,
    error::{Code, Error, Result},
    ids::Epoch,
    session::event::turn_key,
    store::TurnKey,
};

/// Longest key in bytes; a longer one is refused, not cut. Also the longest label.
const MAX_KEY: usize = 512;

/// Our own parameters, as query and as header.
const LAST_SEQ: Own = Own { query: "last_seq", header: "ringspan-last-seq" };
const LAST_EPOCH: Own = Own { query: "last_epoch", header: "ringspan-last-epoch" };

/// The API's own word for the last event that a client has.
const STARTING_AFTER: &str = "starting_after";

/// Header of a client that may send the same request again.
pub(super) const IDEMPOTENCY: &str = "idempotency-key";

/// A parameter of ours.
struct Own {
    query: &'static str,
    header: &'static str,
}

/// Headers that name a Responses session, first wins (see docs/clients.md).
const RESPONSES_KEYS: [HeaderName; 5] = [
    HeaderName::from_static("thread-id"),
    HeaderName::from_static("session-id"),
    HeaderName::from_static("session_id"),
    HeaderName::from_static("x-codex-session-id"),
    HeaderName::from_static("conversation_id"),
];

/// Whether these are headers of Codex, which sends its whole history after a reconnect.
pub(super) fn is_codex(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name == "originator" || name.as_str().starts_with("x-codex-"))
        || headers
            .get(http::header::USER_AGENT)
            .is_some_and(|agent| agent.as_bytes().starts_with(b"codex"))
}

/// A session's key and what an operator may see of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) label: String,
}

impl Key {
    /// A key that is no credential.
    pub(super) fn plain(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        // Control characters would be lost or refused where a label goes: in databases, terminals.
        if text.is_empty() || text.len() > MAX_KEY || text.contains(char::is_control) {
            let text = "a session key is 1 to 512 bytes long, without control characters";
            return Err(Error::new(Code::InvalidRequest, text));
        }
        Ok(Self { label: text.clone(), text })
    }

    /// A key that is a credential: operators see a hash of it.
    fn secret(text: String) -> Result<Self> {
        use std::fmt::Write;

        let digest = Sha256::digest(text.as_bytes());
        let mut label = String::from("sha256:");
        for byte in &digest[..8] {
            // Writing to a String cannot fail.
            let _ = write!(label, "{byte:02x}");
        }
        Ok(Self { label, ..Self::plain(text)? })
    }
}

/// What an operator sees of a key that is no name of a session in the first place
/// (`prompt_cache_key`). The upstream takes every text, so none is refused here: the session's id
/// is of all of it, its label of the beginning, without control characters.
pub(super) fn label(text: &str) -> String {
    let ends = text.char_indices().map(|(at, char)| at + char.len_utf8());
    let end = ends.take_while(|end| *end <= MAX_KEY).last().unwrap_or(0);
    text[..end].replace(char::is_control, "?")
}

/// The key of an opaque request: the first source that is present. `part` is what stands
/// for a name of the route's path.
///
/// # Errors
/// `invalid_request` for a key that is empty, overlong or has control characters.
pub(super) fn opaque(
    sources: &[KeySource],
    part: impl Fn(&str) -> Option<String>,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Option<Key>> {
    for source in sources {
        let key = match source {
            KeySource::Path(name) => part(name).map(Key::plain),
            KeySource::Header(name) => {
                headers.get(name).and_then(|value| value.to_str().ok()).map(Key::plain)
            }
            KeySource::Query(name) => {
                query_pairs(uri).find(|(key, _)| key == name).map(|(_, value)| Key::plain(value))
            }
            KeySource::Cookie(name) => cookie(headers, name).map(Key::secret),
        };
        if let Some(key) = key {
            return key.map(Some);
        }
    }
    Ok(None)
}

/// The key of a Responses request that its headers name.
///
/// # Errors
/// `invalid_request` for a key that is empty, overlong or has control characters.
pub(super) fn responses(headers: &HeaderMap) -> Result<Option<Key>> {
    let named = RESPONSES_KEYS.iter().find_map(|name| headers.get(name));
    named.and_then(|value| value.to_str().ok()).map(Key::plain).transpose()
}

/// A request that may be a repeat of an earlier one.
pub(super) struct Repeat {
    /// What names the turn within its session.
    pub(super) key: TurnKey,
    /// The session of a request that names no other.
    pub(super) session: Key,
}

/// What a request's idempotency key names.
///
/// # Errors
/// `invalid_request` for an empty or overlong key.
pub(super) fn idempotency(headers: &HeaderMap) -> Result<Option<Repeat>> {
    let Some(value) = headers.get(IDEMPOTENCY) else { return Ok(None) };
    // Not text, then as what stands there for it: refused as empty.
    let text = value.to_str().unwrap_or_default();
    let key = turn_key(text)?;
    // Apart from the keys that clients choose for sessions; operators see only a hash.
    let digest = u128::from_be_bytes(key.0);
    let session = Key::secret(format!("{IDEMPOTENCY}:{digest:032x}"))?;
    Ok(Some(Repeat { key, session }))
}

/// After which message the client wants to go on.
///
/// # Errors
/// `invalid_request` for what is not a number.
pub(super) fn last_seq(uri: &Uri, headers: &HeaderMap) -> Result<Option<u64>> {
    LAST_SEQ.read(uri, headers)
}

/// Of which epoch that message was: numbers begin anew with an owner.
///
/// # Errors
/// `invalid_request` for what is not a number.
pub(super) fn last_epoch(uri: &Uri, headers: &HeaderMap) -> Result<Option<Epoch>> {
    Ok(LAST_EPOCH.read(uri, headers)?.map(Epoch))
}

/// A wish for the events of a response once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Again {
    /// Sequence number of the last event that the client has.
    pub(super) after: Option<u64>,
}

/// Whether a stream of a response is asked for once more, and after which of its events.
///
/// # Errors
/// `invalid_request` for a `starting_after` that is no number.
pub(super) fn again(uri: &Uri) -> Result<Option<Again>> {
    if !query_pairs(uri).any(|(key, value)| key == "stream" && value == "true") {
        return Ok(None);
    }
    let after = query_pairs(uri).find(|(key, _)| key == STARTING_AFTER);
    let after = after.map(|(_, value)| value.parse()).transpose();
    let text = "starting_after must be a whole number";
    let bad = |_| Error::new(Code::InvalidRequest, text).param(STARTING_AFTER);
    after.map_err(bad).map(|after| Some(Again { after }))
}

/// Headers of ours, which no upstream sees.
pub(super) fn remove_own(headers: &mut HeaderMap) {
    for own in [LAST_SEQ, LAST_EPOCH] {
        headers.remove(own.header);
    }
}

impl Own {
    fn read<T: std::str::FromStr>(&self, uri: &Uri, headers: &HeaderMap) -> Result<Option<T>> {
        let text = match headers.get(self.header) {
            Some(value) => Some(value.to_str().unwrap_or_default().to_owned()),
            None => query_pairs(uri).find(|(key, _)| key == self.query).map(|(_, value)| value),
        };
        text.map(|text| {
            text.parse().map_err(|_| {
                let message = format!("{} must be a whole number", self.query);
                Error::new(Code::InvalidRequest, message).param(self.query)
            })
        })
        .transpose()
    }
}

/// The path and query without our own parameters.
pub(super) fn forwarded_path(uri: &Uri) -> String {
    let Some(query) = uri.query() else { return uri.path().to_owned() };
    let theirs = |pair: &&str| {
        // As it is read: `last%5Fseq` is ours too.
        let name = decode(pair.split('=').next().unwrap_or_default());
        name != LAST_SEQ.query && name != LAST_EPOCH.query
    };
    let kept: Vec<&str> = query.split('&').filter(theirs).collect();
    if kept.is_empty() {
        uri.path().to_owned()
    } else {
        format!("{}?{}", uri.path(), kept.join("&"))
    }
}

fn query_pairs(uri: &Uri) -> impl Iterator<Item = (String, String)> + '_ {
    uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    })
}

/// Percent-decodes; what is not valid stays as it is.
pub(super) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                at += 3;
            }
            (b'+', ..) => {
                out.push(b' ');
                at += 1;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).find_map(|cookies| {
        cookies.split(';').find_map(|pair| {
            let (key, value) = pair.trim().split_once('=')?;
            (key == name).then(|| value.to_owned())
        })
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn our_own_parameter_is_read_and_not_passed_on() {
        let uri: Uri = "/rooms/a?x=1&last_seq=7&y=%20".parse().unwrap();
        assert_eq!(last_seq(&uri, &HeaderMap::new()), Ok(Some(7)));
        assert_eq!(forwarded_path(&uri), "/rooms/a?x=1&y=%20");
        let spelled: Uri = "/rooms/a?last%5Fseq=7&x=1".parse().unwrap();
        assert_eq!(last_seq(&spelled, &HeaderMap::new()), Ok(Some(7)));
        assert_eq!(forwarded_path(&spelled), "/rooms/a?x=1");
        let alone: Uri = "/rooms/a?last_seq=7".parse().unwrap();
        assert_eq!(forwarded_path(&alone), "/rooms/a");
        let bad: Uri = "/rooms/a?last_seq=-1".parse().unwrap();
        assert_eq!(last_seq(&bad, &HeaderMap::new()).unwrap_err().code, Code::InvalidRequest);
    }

    #[test]
    fn a_cookies_value_is_a_key_that_no_operator_sees() {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, HeaderValue::from_static("a=1; sid=topsecret"));
        let key = Key::secret(cookie(&headers, "sid").unwrap()).unwrap();
        assert_eq!(key.text, "topsecret");
        assert!(!key.label.contains("topsecret"));
    }

    #[test]
    fn a_key_of_the_path_or_query_has_no_control_characters() {
        let key = |uri: &'static str| {
            let sources = [KeySource::Query("k".into())];
            opaque(&sources, |_| None, &Uri::from_static(uri), &HeaderMap::new())
        };
        assert_eq!(key("/r?k=a%20b").unwrap().unwrap().text, "a b");
        for bad in ["/r?k=a%00b", "/r?k=%0a", "/r?k=%c2%85", "/r?k="] {
            assert_eq!(key(bad).unwrap_err().code, Code::InvalidRequest, "{bad}");
        }
    }

    #[test]
    fn the_label_of_any_text_is_short_and_printable() {
        assert_eq!(label("thread-1"), "thread-1");
        assert_eq!(label("a\0b\nc"), "a?b?c");
        let long = format!("a{}", "é".repeat(1 << 20));
        let short = label(&long);
        assert_eq!(short.len(), 511, "whole characters");
        assert!(long.starts_with(&short));
        assert_eq!(label(""), "");
    }

    #[test]
    fn the_thread_names_a_session_before_everything_else() {
        let mut headers = HeaderMap::new();
        headers.insert("session-id", HeaderValue::from_static("s"));
        headers.insert("thread-id", HeaderValue::from_static("t"));
        assert_eq!(responses(&headers).unwrap().unwrap().text, "t");
        assert_eq!(responses(&HeaderMap::new()), Ok(None));
    }
}
