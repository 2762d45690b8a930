//! Identifiers that cross module and process borders.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

/// One life of a node process. Drawn from a database sequence and never reused, so a
/// message addressed to an incarnation can never reach a later process by mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub i64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Fencing number of one period of ownership of one session. Only ever grows
/// (invariant I1); zero is "never claimed".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub i64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Name of a session: 128 bits, either derived from `(principal, route, key)` or random
/// for a client that brings no key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// The id of the session that `key` names for `principal` on `route`. Principals are
    /// part of the hash, so no key of one principal can ever name another's session.
    #[must_use]
    pub fn derive(principal: &Principal, route: &str, key: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"ringspan/session/v1");
        for part in [&principal.0[..], route.as_bytes(), key.as_bytes()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self::truncate(&hash.finalize())
    }

    /// A fresh id for a client that named no session.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    fn truncate(digest: &[u8]) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The text was not 32 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a session id is 32 hexadecimal digits")]
pub struct BadSessionId;

impl FromStr for SessionId {
    type Err = BadSessionId;

    fn from_str(text: &str) -> Result<Self, BadSessionId> {
        // Digits alone: the standard library would take a sign as well.
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(BadSessionId);
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| BadSessionId)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| BadSessionId)?;
        }
        Ok(Self(id))
    }
}

/// Whom a session belongs to: 16 bytes of a keyed hash of the client's credential (or of
/// its verified name). The credential itself never leaves `edge::auth`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(pub [u8; 16]);

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_of_two_principals_names_two_sessions() {
        let one = SessionId::derive(&Principal([1; 16]), "/rooms/{room}", "a");
        let two = SessionId::derive(&Principal([2; 16]), "/rooms/{room}", "a");
        assert_ne!(one, two);
    }

    #[test]
    fn parts_cannot_be_shifted_into_each_other() {
        let principal = Principal([1; 16]);
        assert_ne!(
            SessionId::derive(&principal, "ab", "c"),
            SessionId::derive(&principal, "a", "bc")
        );
    }

    #[test]
    fn an_id_survives_its_text_form() {
        let id = SessionId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["zz".to_owned(), "+1".repeat(16), "é".repeat(16)] {
            assert_eq!(bad.parse::<SessionId>(), Err(BadSessionId), "{bad}");
        }
    }
}
