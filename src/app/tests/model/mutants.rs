//! Rules that are broken on purpose: each must be caught by a property.

use std::fmt;

/// One broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// Turns are sent without asking the ledger.
    NoLedger,
    /// The ledger does not ask whose the session is.
    UnfencedLedger,
    /// A turn is sent beside the ledger's write, not after it.
    SendBeforeTheLedger,
    /// The edge sends a lost owner's turns to the next one, whatever they are.
    EdgeRedispatches,
    /// A stored turn is run again when its connection is lost.
    StoredTurnsRunAgain,
    /// A key whose turn is unknown runs again, whatever it stores.
    UnknownKeysRunAgain,
    /// A turn that was sent and cut short counts as failed, not as unknown.
    SentCountsAsFailed,
    /// A claim leaves the turns of the epoch before open.
    OpenTurnsStay,
    /// A claim does not ask whether the owner is dead.
    ClaimFromTheLiving,
    /// The lease has no margin for the drift of clocks.
    NoMargin,
    /// The lease counts from the answer to its renewal.
    LeaseFromTheAnswer,
    /// The task does not look at the lease.
    NoLookAtTheLease,
    /// A node that was declared dead takes its next renewal for granted.
    TheDeadGoOn,
    /// A release is not fenced by its epoch.
    UnfencedRelease,
    /// A transfer keeps the epoch.
    EpochStays,
    /// A transfer without an answer is taken to have failed.
    UnansweredIsFailed,
    /// A session is handed over while its turn runs.
    TransferInMidTurn,
    /// The end of a turn does not wait for its copy.
    EndBeforeTheCopy,
    /// Nothing of the conversation is left with the heir of a transfer.
    NothingPrepared,
    /// The client is not told of turns that were lost.
    LossIsSilent,
}

impl Mutant {
    pub(super) const ALL: [Self; 20] = [
        Self::NoLedger,
        Self::UnfencedLedger,
        Self::SendBeforeTheLedger,
        Self::EdgeRedispatches,
        Self::StoredTurnsRunAgain,
        Self::UnknownKeysRunAgain,
        Self::SentCountsAsFailed,
        Self::OpenTurnsStay,
        Self::ClaimFromTheLiving,
        Self::NoMargin,
        Self::LeaseFromTheAnswer,
        Self::NoLookAtTheLease,
        Self::TheDeadGoOn,
        Self::UnfencedRelease,
        Self::EpochStays,
        Self::UnansweredIsFailed,
        Self::TransferInMidTurn,
        Self::EndBeforeTheCopy,
        Self::NothingPrepared,
        Self::LossIsSilent,
    ];
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoLedger => "Turns are sent without asking the ledger",
            Self::UnfencedLedger => "The ledger does not ask whose the session is",
            Self::SendBeforeTheLedger => "A turn is sent beside the ledger's write, not after it",
            Self::EdgeRedispatches => {
                "The edge sends a lost owner's turns to the next one, whatever they are"
            }
            Self::StoredTurnsRunAgain => "A stored turn runs again when its connection is lost",
            Self::UnknownKeysRunAgain => {
                "A key whose turn is unknown runs again, whatever it stores"
            }
            Self::SentCountsAsFailed => "A turn that was sent and cut short counts as failed",
            Self::OpenTurnsStay => "A claim leaves the turns of the epoch before open",
            Self::ClaimFromTheLiving => "A claim does not ask whether the owner is dead",
            Self::NoMargin => "The lease has no margin for the drift of clocks",
            Self::LeaseFromTheAnswer => "The lease counts from the answer to its renewal",
            Self::NoLookAtTheLease => "The task does not look at the lease",
            Self::TheDeadGoOn => "A node that was declared dead takes its next renewal for granted",
            Self::UnfencedRelease => "A release is not fenced by its epoch",
            Self::EpochStays => "A transfer keeps the epoch",
            Self::UnansweredIsFailed => "A transfer without an answer is taken to have failed",
            Self::TransferInMidTurn => "A session is handed over while its turn runs",
            Self::EndBeforeTheCopy => "The end of a turn does not wait for its copy",
            Self::NothingPrepared => {
                "Nothing of the conversation is left with the heir of a transfer"
            }
            Self::LossIsSilent => "The client is not told of turns that were lost",
        })
    }
}
