//! What the ledger of turns takes and gives.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::ids::{Epoch, SessionId};

/// Longest response id that is kept as it is, in bytes.
const MAX_RESPONSE: usize = 256;

/// Life of a turn once it may have left this ring. One that only waits is not written down:
/// it was certainly not dispatched, so losing it loses nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TurnState {
    /// The upstream may have it.
    Dispatched,
    /// The upstream named a response for it.
    Visible,
    /// It ended with a response that is complete, or as complete as it gets.
    Done,
    /// It ended with an error; if it named no response, nothing ran.
    Failed,
    /// Nobody will know how it ended.
    Unknown,
}

impl TurnState {
    /// The word used in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dispatched => "DISPATCHED",
            Self::Visible => "VISIBLE",
            Self::Done => "DONE",
            Self::Failed => "FAILED",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// The inverse of [`TurnState::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Dispatched, Self::Visible, Self::Done, Self::Failed, Self::Unknown]
            .into_iter()
            .find(|state| state.as_str() == text)
    }

    /// Whether the turn may still end.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Dispatched | Self::Visible)
    }
}

/// What is kept of a client's idempotency key; it counts within one session, and so within
/// one principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TurnKey(pub [u8; 16]);

impl TurnKey {
    /// First 16 bytes of the SHA-256 of the key's text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let full = Sha256::digest(text.as_bytes());
        let mut digest = [0; 16];
        digest.copy_from_slice(&full[..16]);
        Self(digest)
    }
}

/// A turn that is about to be sent to its upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NewTurn {
    pub session: SessionId,
    pub epoch: Epoch,
    /// Counts within session and epoch.
    pub no: u64,
    pub key: Option<TurnKey>,
    /// Fingerprint of the request.
    pub request: [u8; 16],
    /// It asks for nothing to be stored, so a second run would double nothing.
    pub repeatable: bool,
}

/// What became of the wish to begin a turn.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Began {
    /// It is written; it may be sent.
    Begun,
    /// A turn of this key (or number) is there and must not be sent again.
    Duplicate(TurnRow),
    /// The session is not ours in that epoch, or not live. Nothing was written.
    Fenced,
}

/// A row of `turn`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TurnRow {
    pub session: SessionId,
    pub epoch: Epoch,
    pub no: u64,
    pub state: TurnState,
    pub request: [u8; 16],
    /// The upstream's id of the response, once it named one.
    pub response: Option<String>,
}

/// What became of a turn.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TurnMark {
    pub session: SessionId,
    pub epoch: Epoch,
    pub no: u64,
    /// Any but `Dispatched`.
    pub state: TurnState,
    /// None leaves what is known.
    pub response: Option<String>,
}

/// Session, epoch and number of a turn.
pub(crate) type TurnId = (SessionId, Epoch, u64);

impl TurnMark {
    pub(crate) fn id(&self) -> TurnId {
        (self.session, self.epoch, self.no)
    }

    /// A response id as it is kept: one that is too long, by its hash.
    #[must_use]
    pub fn response(id: &str) -> String {
        use std::fmt::Write as _;

        if id.len() <= MAX_RESPONSE && !id.contains('\0') {
            return id.to_owned();
        }
        let mut text = String::from("sha256:");
        for byte in Sha256::digest(id.as_bytes()) {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// Takes up a later mark of the same turn, as if both were written one after the other.
    pub(crate) fn absorb(&mut self, later: Self) {
        if self.state.is_open() {
            self.state = later.state;
            self.response = later.response.or(self.response.take());
        }
    }

    /// One mark for each turn, in the order of their rows.
    pub(crate) fn coalesce(marks: &[Self]) -> BTreeMap<TurnId, Self> {
        let mut map: BTreeMap<TurnId, Self> = BTreeMap::new();
        for mark in marks {
            map.entry(mark.id())
                .and_modify(|earlier| earlier.absorb(mark.clone()))
                .or_insert_with(|| mark.clone());
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(state: TurnState, response: Option<&str>) -> TurnMark {
        let (session, epoch) = (SessionId([1; 16]), Epoch(1));
        TurnMark { session, epoch, no: 1, state, response: response.map(Into::into) }
    }

    #[test]
    fn marks_of_one_turn_become_one_that_keeps_the_response_and_the_first_end() {
        let marks = [
            mark(TurnState::Visible, Some("r")),
            mark(TurnState::Done, None),
            mark(TurnState::Failed, Some("other")),
        ];
        let one: Vec<_> = TurnMark::coalesce(&marks).into_values().collect();
        assert_eq!(one, [mark(TurnState::Done, Some("r"))]);
    }

    #[test]
    fn a_response_id_that_is_too_long_is_kept_as_its_hash() {
        assert_eq!(TurnMark::response("resp_1"), "resp_1");
        assert_eq!(TurnMark::response(&"x".repeat(257)).len(), "sha256:".len() + 64);
    }
}
