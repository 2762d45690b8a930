//! What a client's request says of sessions and of how to go on, and what its body becomes.

use ::http::{HeaderName, Uri};
use bytes::Bytes;

pub use super::auth::fuzz::{credential, jwks, token};
use super::{body::inflate, events::error_response, key};
use crate::{
    config::KeySource,
    ids::{Principal, SessionId},
    session,
    wire::{Budget, Message, fuzz::request_head, handshake::forwardable_request_headers},
};

/// Largest message of a node, in bytes.
const MAX_MESSAGE: usize = 256 * 1024;
/// What it may hold of all that have not ended.
const UNFINISHED: usize = 4 * MAX_MESSAGE;

/// A compressed body: what it becomes is bounded, counted, and the same wherever its frames stand.
pub fn body(data: &[u8]) {
    let budget = Budget::new(UNFINISHED);
    let inflated = inflate(data, MAX_MESSAGE, &mut budget.share());
    assert!(budget.share().holds(UNFINISHED), "what was counted is given back");
    let Ok(plain) = inflated else { return };
    assert!(plain.len() <= MAX_MESSAGE);
    if let Ok(twice) = inflate(&data.repeat(2), MAX_MESSAGE, &mut budget.share()) {
        assert!(twice[..] == plain.repeat(2), "a frame depends on the one before it");
    }
}

/// Responses events, as a session has them, and as the answers of HTTP requests.
pub fn events(data: &[u8]) {
    session::fuzz::events(data);
    for line in data.split(|byte| *byte == b'\n') {
        let Some((_, text)) = line.split_first() else { continue };
        if str::from_utf8(text).is_ok() {
            drop(error_response(&Message::text(Bytes::copy_from_slice(text))));
        }
    }
}

/// Resume parameters: what is ours is read, and never passed on, however it is spelled.
pub fn resume(data: &[u8]) {
    let Some((_, path, headers)) = request_head(data) else { return };
    let Ok(uri) = path.parse::<Uri>() else { return };
    drop((key::last_seq(&uri, &headers), key::last_epoch(&uri, &headers), key::again(&uri)));
    let forwarded = key::forwarded_path(&uri);
    assert!(forwarded.bytes().all(|byte| byte > b' ' && byte != 0x7F), "{forwarded:?}");
    if let Ok(forwarded) = forwarded.parse::<Uri>() {
        let mut kept = forwardable_request_headers(&headers);
        key::remove_own(&mut kept);
        assert_eq!(key::last_seq(&forwarded, &kept), Ok(None));
        assert_eq!(key::last_epoch(&forwarded, &kept), Ok(None));
        assert_eq!(forwarded.path(), uri.path());
    }
}

/// Session keys of every source, and ids.
pub fn keys(data: &[u8]) {
    if let Some((_, path, headers)) = request_head(data)
        && let Ok(uri) = path.parse::<Uri>()
    {
        let name = || "session".to_owned();
        let sources = [
            KeySource::Path(name()),
            KeySource::Header(HeaderName::from_static("x-session-id")),
            KeySource::Query(name()),
            KeySource::Cookie(name()),
        ];
        for source in sources {
            let named = |name: &str| (name == "session").then(|| uri.path().to_owned());
            if let Ok(Some(key)) = key::opaque(&[source], named, &uri, &headers) {
                assert!((1..=512).contains(&key.text.len()));
                drop(SessionId::derive(&Principal([1; 16]), "/r", &key.text).to_string());
            }
        }
        drop((key::responses(&headers), key::idempotency(&headers).map(drop)));
        key::is_codex(&headers);
    }
    if let Ok(text) = str::from_utf8(data)
        && let Ok(id) = text.parse::<SessionId>()
    {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
}
