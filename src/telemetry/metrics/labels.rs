//! Label sets and the closed lists of their values.

use std::fmt::Debug;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::store::{Claimed, StoreError};

/// A label set that knows its labels, for the catalogue.
pub trait LabelNames: EncodeLabelSet {
    /// Each label with its values; none where they are no closed list.
    const LABELS: &'static [(&'static str, &'static [&'static str])];
}

/// What a label can be.
trait LabelValues {
    /// All of it; empty: anything.
    const VALUES: &'static [&'static str] = &[];
}

impl LabelValues for String {}
impl LabelValues for &'static str {}

/// An enum whose variants are all the values that a label can take.
macro_rules! label_value {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident => $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The label's value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl LabelValues for $name {
            const VALUES: &'static [&'static str] = &[$($text),+];
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
                EncodeLabelValue::encode(&self.as_str(), encoder)
            }
        }
    };
}

/// A struct of labels, with their names and values as a constant.
macro_rules! label_set {
    ($name:ident { $($label:ident: $value:ty),+ $(,)? }) => {
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub(super) struct $name { $(pub(super) $label: $value),+ }

        impl LabelNames for $name {
            const LABELS: &'static [(&'static str, &'static [&'static str])] =
                &[$((stringify!($label), <$value as LabelValues>::VALUES)),+];
        }
    };
}

label_value!(
    /// Way of a frame, as seen from the client.
    Direction {
        /// Client to upstream.
        Up => "up",
        /// Upstream to client.
        Down => "down",
    }
);

label_value!(
    /// Where the owner of a client's session is, as seen from the edge.
    Place {
        /// On the node that holds the client's socket.
        Local => "local",
        /// On another node.
        Remote => "remote",
    }
);

label_value!(
    /// How an operation ended.
    Outcome {
        Ok => "ok",
        /// It was answered with a refusal. Of a dial: one that the endpoint is not to blame for.
        Refused => "refused",
        /// It failed on the way.
        Failed => "failed",
        /// No answer in time.
        Timeout => "timeout",
    }
);

label_value!(
    /// How a planned transfer ended.
    HandoffOutcome {
        Ok => "ok",
        /// Nobody took the session.
        Failed => "failed",
    }
);

label_value!(
    /// What became of a copy for the next owner.
    CopyOutcome {
        Ok => "ok",
        /// The heir had no room, or lacked what came before.
        Refused => "refused",
        /// The heir did not answer, or not in time.
        Failed => "failed",
    }
);

label_value!(
    /// How an attempt to own a session ended.
    ClaimOutcome {
        /// This node owns it now.
        Claimed => "claimed",
        /// Another node has it (compare-and-swap lost).
        Lost => "lost",
        /// The principal has as many sessions as it may.
        Full => "full",
        /// This node may own none now: it drains, or its lease is over.
        Unfit => "unfit",
        /// The store did not answer.
        Failed => "failed",
    }
);

label_value!(
    /// Why the earlier owner could be replaced.
    TakeoverReason {
        /// It was marked DEAD: its lease lapsed or its death was proven.
        Dead => "dead",
        /// It left by itself and still stood in the row.
        Gone => "gone",
    }
);

label_value!(
    /// What went wrong with a conversation in the database.
    ArchiveFailure {
        /// It was not written; the next turn writes all.
        Write => "write",
        /// Too many wait to be written.
        Queue => "queue",
        /// It was not read in time.
        Read => "read",
        /// A part of it could not be decrypted.
        Open => "open",
    }
);

label_value!(
    /// How a turn ended.
    TurnOutcome {
        Completed => "completed",
        /// The upstream ended it before its end (token limit, filter).
        Incomplete => "incomplete",
        /// The upstream said that it failed, or could not be had.
        Failed => "failed",
        /// Never dispatched: the limits of its principal, or the ledger.
        Refused => "refused",
        /// Dispatched, and nobody can tell what became of it.
        Unknown => "unknown",
    }
);

label_value!(
    /// What a client that came back was told.
    ResumeOutcome {
        /// There was nothing to resume.
        New => "new",
        /// Everything after its cursor was replayed.
        Ok => "ok",
        /// Something was no longer held, and it was told so.
        Gap => "gap",
    }
);

label_value!(
    /// What the ledger of turns is told.
    LedgerWrite {
        /// Turns are about to be sent.
        Begin => "begin",
        /// What became of turns.
        Mark => "mark",
    }
);

label_value!(
    /// Why the ledger did not let a turn be sent.
    LedgerRefusal {
        /// Its idempotency key names another turn.
        Duplicate => "duplicate",
        /// The session has a new owner.
        Fenced => "fenced",
        /// It could not be written in time.
        Unwritten => "unwritten",
    }
);

label_value!(
    /// Which limit of a principal was reached.
    QuotaLimit {
        Sessions => "sessions",
        TurnsAtOnce => "turns_at_once",
        TurnRate => "turn_rate",
    }
);

label_value!(
    /// Why a session was moved on purpose.
    HandoffReason {
        /// Its owner drains.
        Drain => "drain",
        /// Its owner's time was over in the middle of a turn.
        Deadline => "deadline",
        /// Its owner has more than its share, and a node that joined has less.
        Balance => "balance",
    }
);

label_value!(
    /// Which end of a peer connection or answer this node is.
    Side {
        /// This node called.
        Caller => "caller",
        /// This node was called.
        Callee => "callee",
    }
);

label_value!(
    /// What the store answered instead of a result.
    StoreFailure {
        /// It could not be reached.
        Unreachable => "unreachable",
        Timeout => "timeout",
        /// Anything else: a bug or a foreign schema.
        Other => "other",
    }
);

label_value!(
    /// What is exported.
    Signal {
        Traces => "traces",
        Metrics => "metrics",
        Logs => "logs",
    }
);

label_value!(
    /// Why something was not exported.
    Loss {
        /// Too much was waiting already.
        NoRoom => "no_room",
        /// The collector could not be reached, refused, or did not answer in time.
        Failed => "failed",
    }
);

label_set!(ByArchiveFailure { reason: ArchiveFailure });
label_set!(ByRoute { route: String });
label_set!(ByProfile { route: String, profile: &'static str });
label_set!(ByPlace { route: String, place: Place });
label_set!(ByDirection { route: String, direction: Direction });
label_set!(ByTurn { route: String, outcome: TurnOutcome });
label_set!(ByLedgerWrite { write: LedgerWrite });
label_set!(ByLedgerRefusal { reason: LedgerRefusal });
label_set!(ByQuota { limit: QuotaLimit });
label_set!(ByResume { route: String, outcome: ResumeOutcome });
label_set!(ByState { state: &'static str });
label_set!(ByOutcome { outcome: Outcome });
label_set!(ByClaim { outcome: ClaimOutcome });
label_set!(ByTakeover { reason: TakeoverReason });
label_set!(ByHandoff { reason: HandoffReason, outcome: HandoffOutcome });
label_set!(ByCopy { outcome: CopyOutcome });
label_set!(ByUpstream { upstream: String });
label_set!(ByEndpoint { upstream: String, endpoint: String });
label_set!(ByDial { upstream: String, outcome: Outcome });
label_set!(BySide { side: Side });
label_set!(ByOperation { operation: &'static str });
label_set!(ByStoreFailure { operation: &'static str, reason: StoreFailure });
label_set!(ByError { code: &'static str, blame: &'static str });
label_set!(BySignal { signal: Signal });
label_set!(ByLoss { signal: Signal, reason: Loss });
label_set!(Build { version: &'static str, revision: &'static str });

impl From<&Claimed> for ClaimOutcome {
    fn from(claimed: &Claimed) -> Self {
        match claimed {
            Claimed::Won { .. } => Self::Claimed,
            Claimed::Lost(_) => Self::Lost,
            Claimed::Full => Self::Full,
            Claimed::Fenced => Self::Unfit,
        }
    }
}

impl From<&StoreError> for StoreFailure {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Unreachable,
            StoreError::Timeout(_) => Self::Timeout,
            _ => Self::Other,
        }
    }
}
