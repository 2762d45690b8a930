//! Rules that are broken on purpose: each must be caught by a property.

use std::fmt;

/// One table of them: the text is what documents call a rule.
macro_rules! mutants {
    ($($name:ident: $text:literal,)*) => {
        /// One broken rule.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Mutant {
            $(#[doc = $text] $name,)*
        }

        impl Mutant {
            pub(super) const ALL: &[Self] = &[$(Self::$name,)*];
        }

        impl fmt::Display for Mutant {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $text,)*
                })
            }
        }
    };
}

mutants! {
    NoLedger: "Turns are sent without asking the ledger",
    UnfencedLedger: "The ledger does not ask whose the session is",
    SendBeforeTheLedger: "A turn is sent beside the ledger's write, not after it",
    EdgeRedispatches: "The edge sends a lost owner's turns to the next one, whatever they are",
    StoredTurnsRunAgain: "A stored turn runs again when its connection is lost",
    UnknownKeysRunAgain: "A key whose turn is unknown runs again, whatever it stores",
    SentCountsAsFailed: "A turn that was sent and cut short counts as failed",
    OpenTurnsStay: "A claim leaves the turns of the epoch before open",
    ClaimFromTheLiving: "A claim does not ask whether the owner is dead",
    NoMargin: "The lease has no margin for the drift of clocks",
    LeaseFromTheAnswer: "The lease counts from the answer to its renewal",
    NoLookAtTheLease: "The task does not look at the lease",
    TheDeadGoOn: "A node that was declared dead takes its next renewal for granted",
    UnfencedRelease: "A release is not fenced by its epoch",
    EpochStays: "A transfer keeps the epoch",
    UnansweredIsFailed: "A transfer without an answer is taken to have failed",
    TransferInMidTurn: "A session is handed over while its turn runs",
    EndBeforeTheCopy: "The end of a turn does not wait for its copy",
    NothingPrepared: "Nothing of the conversation is left with the heir of a transfer",
    LossIsSilent: "The client is not told of turns that were lost",
}
