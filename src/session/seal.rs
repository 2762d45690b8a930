//! Encryption of conversations for the database. Pure, but for the random nonces.
//!
//! A sealed part is `version (1) | key id (4) | nonce (12) | ciphertext and tag`, AES-256-GCM.
//! Its session, epoch and number are authenticated with it, so that a part opens only in the
//! place it was written for. Nothing is compressed before: the length of what is compressed
//! tells of its content, and here clients put their own text next to that of others (tools,
//! documents) in one part.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha256};

use super::history::Past;
use crate::{
    config::{HISTORY_KEY_BYTES, HistoryKeys},
    ids::{Epoch, SessionId},
};

/// Form of what is sealed. Another form is another number.
const VERSION: u8 = 1;

const HEAD: usize = 1 + KeyId::LEN + NONCE_LEN;

/// Why a part cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SealError {
    #[error("not of a form that this build knows")]
    Form,
    /// The key was taken out of service too early, or this node lacks it.
    #[error("sealed with key {0}, which this node does not have")]
    UnknownKey(KeyId),
    /// Not written by a node of this ring, for another place, or damaged.
    #[error("refused by key {0}: altered, or of another place")]
    Refused(KeyId),
    /// No node has a key: the route keeps nothing in the database.
    #[error("no key to seal with")]
    NoKey,
}

/// Names a key without telling anything of it: a part of its hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; Self::LEN]);

impl KeyId {
    const LEN: usize = 4;

    fn of(key: &[u8; HISTORY_KEY_BYTES]) -> Self {
        let hash = Sha256::new().chain_update(b"ringspan/history-key/1").chain_update(key);
        let mut id = [0; Self::LEN];
        id.copy_from_slice(&hash.finalize()[..Self::LEN]);
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The place of a part, which is authenticated with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub session: SessionId,
    pub epoch: Epoch,
    pub no: u32,
}

impl Place {
    fn aad(&self) -> Aad<Vec<u8>> {
        let mut aad = b"ringspan/conversation".to_vec();
        aad.put_u8(VERSION);
        aad.put_slice(&self.session.0);
        aad.put_i64(self.epoch.0);
        aad.put_u32(self.no);
        Aad::from(aad)
    }
}

/// The keys of a node.
pub struct Seal(Vec<(KeyId, RandomizedNonceKey)>);

impl Seal {
    /// The first key seals, all open.
    #[must_use]
    pub fn new(keys: &HistoryKeys) -> Self {
        let key = |bytes: &[u8; HISTORY_KEY_BYTES]| {
            // Fails only for a wrong length, which the type excludes.
            let key = RandomizedNonceKey::new(&AES_256_GCM, bytes).ok()?;
            Some((KeyId::of(bytes), key))
        };
        Self(keys.expose().iter().filter_map(key).collect())
    }

    /// Seals what was said for one place.
    ///
    /// # Errors
    /// [`SealError::NoKey`].
    pub fn seal(&self, place: Place, past: &[Past]) -> Result<Vec<u8>, SealError> {
        let (id, key) = self.0.first().ok_or(SealError::NoKey)?;
        let mut text = encode(past);
        let sealed = key.seal_in_place_append_tag(place.aad(), &mut text);
        let nonce = sealed.map_err(|_| SealError::Refused(*id))?;
        let mut whole = Vec::with_capacity(HEAD + text.len());
        whole.push(VERSION);
        whole.extend_from_slice(&id.0);
        whole.extend_from_slice(nonce.as_ref());
        whole.append(&mut text);
        Ok(whole)
    }

    /// Whether it was sealed with a key that seals no more.
    #[must_use]
    pub fn is_outdated(&self, sealed: &[u8]) -> bool {
        let current = self.0.first().map(|(id, _)| &id.0[..]);
        sealed.get(1..=KeyId::LEN) != current
    }

    /// Opens what was sealed for this place.
    ///
    /// # Errors
    /// None of them says anything of the content.
    pub fn open(&self, place: Place, mut sealed: Vec<u8>) -> Result<Vec<Past>, SealError> {
        if sealed.len() < HEAD || sealed[0] != VERSION {
            return Err(SealError::Form);
        }
        let mut text = sealed.split_off(HEAD);
        let (id, nonce) = sealed[1..].split_at(KeyId::LEN);
        let id = KeyId(id.try_into().map_err(|_| SealError::Form)?);
        let known = self.0.iter().find(|(known, _)| *known == id);
        let (_, key) = known.ok_or(SealError::UnknownKey(id))?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Form)?;
        let opened = key.open_in_place(nonce, place.aad(), &mut text);
        let length = opened.map_err(|_| SealError::Refused(id))?.len();
        text.truncate(length);
        decode(Bytes::from(text)).ok_or(SealError::Form)
    }
}

/// Texts with their lengths before them; one that is not there has the length of none.
const NONE: u32 = u32::MAX;

fn encode(past: &[Past]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for Past { id, previous, lane, items } in past {
        let texts = [
            Some(id.as_bytes()),
            previous.as_deref().map(str::as_bytes),
            lane.as_deref().map(str::as_bytes),
            Some(items),
        ];
        for text in texts {
            match text {
                // Messages are bounded far below 4 GiB.
                Some(text) => {
                    out.put_u32(u32::try_from(text.len()).unwrap_or(NONE));
                    out.put_slice(text);
                }
                None => out.put_u32(NONE),
            }
        }
    }
    out.into()
}

fn decode(mut text: Bytes) -> Option<Vec<Past>> {
    let mut past = Vec::new();
    while text.has_remaining() {
        past.push(Past {
            id: string(take(&mut text)??)?,
            previous: optional(take(&mut text)?)?,
            lane: optional(take(&mut text)?)?,
            items: take(&mut text)??,
        });
    }
    Some(past)
}

/// The next text, or that there is none; None where the form is broken.
#[expect(clippy::option_option, reason = "two questions: is the form right, and is there a text")]
fn take(text: &mut Bytes) -> Option<Option<Bytes>> {
    let length = text.try_get_u32().ok()?;
    if length == NONE {
        return Some(None);
    }
    let length = usize::try_from(length).ok()?;
    (length <= text.len()).then(|| Some(text.split_to(length)))
}

fn string(text: Bytes) -> Option<String> {
    String::from_utf8(text.into()).ok()
}

#[expect(clippy::option_option, reason = "as `take`")]
fn optional(text: Option<Bytes>) -> Option<Option<String>> {
    match text {
        Some(text) => string(text).map(Some),
        None => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGg=";
    const B: &str = "aWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWk=";

    fn seal(keys: &[&str]) -> Seal {
        Seal::new(&HistoryKeys::parse(&keys.join(",")).unwrap())
    }

    fn place() -> Place {
        Place { session: SessionId([7; 16]), epoch: Epoch(5), no: 3 }
    }

    fn past() -> Vec<Past> {
        let items = Bytes::from_static(br#"{"text":"the secret of the garden"}"#);
        let one = Past { id: "r1".into(), previous: None, lane: None, items };
        let lane = Some("lane \u{1f}".to_owned());
        let two = Past { id: "r2".into(), previous: Some("r1".into()), lane, items: Bytes::new() };
        vec![one, two]
    }

    #[test]
    fn what_was_sealed_opens_in_its_place_and_shows_nothing_of_itself() {
        let sealed = seal(&[A]).seal(place(), &past()).unwrap();
        let shows = |text: &[u8]| sealed.windows(text.len()).any(|window| window == text);
        assert!(!shows(b"garden") && !shows(b"r1"));
        assert_eq!(seal(&[A]).open(place(), sealed), Ok(past()));
        let nothing = seal(&[A]).seal(place(), &[]).unwrap();
        assert_eq!(seal(&[A]).open(place(), nothing), Ok(Vec::new()));
    }

    #[test]
    fn the_same_text_is_sealed_differently_each_time() {
        let seal = seal(&[A]);
        assert_ne!(seal.seal(place(), &past()), seal.seal(place(), &past()));
    }

    #[test]
    fn the_first_key_seals_and_every_key_opens() {
        let old = seal(&[A]).seal(place(), &past()).unwrap();
        let rotated = seal(&[B, A]);
        assert!(rotated.is_outdated(&old));
        assert_eq!(rotated.open(place(), old), Ok(past()));
        let new = rotated.seal(place(), &past()).unwrap();
        assert!(!rotated.is_outdated(&new));
        let refused = seal(&[A]).open(place(), new.clone());
        assert!(matches!(refused, Err(SealError::UnknownKey(_))), "{refused:?}");
        assert_eq!(seal(&[B]).open(place(), new), Ok(past()));
    }

    #[test]
    fn a_wrong_key_under_the_right_name_is_refused() {
        let mut sealed = seal(&[A]).seal(place(), &past()).unwrap();
        sealed[1..5].copy_from_slice(&KeyId::of(&[b'i'; 32]).0);
        let id = KeyId::of(&[b'i'; 32]);
        assert_eq!(seal(&[B]).open(place(), sealed), Err(SealError::Refused(id)));
    }

    #[test]
    fn a_part_that_was_altered_anywhere_is_refused() {
        let sealed = seal(&[A]).seal(place(), &past()).unwrap();
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(seal(&[A]).open(place(), altered).is_err(), "byte {at}");
        }
        for length in 0..sealed.len() {
            assert!(seal(&[A]).open(place(), sealed[..length].to_vec()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_part_opens_in_no_other_place() {
        let sealed = seal(&[A]).seal(place(), &past()).unwrap();
        for other in [
            Place { session: SessionId([8; 16]), ..place() },
            Place { epoch: Epoch(6), ..place() },
            Place { no: 4, ..place() },
        ] {
            let refused = seal(&[A]).open(other, sealed.clone());
            assert!(matches!(refused, Err(SealError::Refused(_))), "{other:?}");
        }
    }

    #[test]
    fn no_key_seals_nothing_and_an_unknown_form_is_not_guessed_at() {
        let none = Seal::new(&HistoryKeys::default());
        assert_eq!(none.seal(place(), &past()), Err(SealError::NoKey));
        let mut sealed = seal(&[A]).seal(place(), &past()).unwrap();
        sealed[0] = 2;
        assert_eq!(seal(&[A]).open(place(), sealed), Err(SealError::Form));
    }
}
