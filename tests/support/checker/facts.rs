//! The three histories, as plain facts.

use serde_json::Value;

/// What happened to the ring, as far as it matters for what may be expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conduct {
    /// Nodes were told to go, and nothing else.
    #[default]
    Planned,
    /// The same, and the upstream failed turns, was silent, refused, and ended connections.
    Upstream,
    /// Nodes or the database were lost.
    Losses,
    /// The same, and nodes could not reach each other: what an edge sends again may have run
    /// to its end where nobody heard of it.
    Partitions,
    /// Nodes were lost, and some of the lost came back as if nothing had happened.
    Freezes,
}

impl Conduct {
    /// Whether the ring lost nothing: what users see of it then is the upstream's doing.
    pub fn is_planned(self) -> bool {
        matches!(self, Self::Planned | Self::Upstream)
    }
}

/// Outcome of a turn that was answered.
pub const COMPLETED: &str = "completed";

/// One run.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub conduct: Conduct,
    /// In the order of each client's own view.
    pub clients: Vec<Seen>,
    pub connections: Vec<Connection>,
    pub creates: Vec<Create>,
    /// In the order of the audit, which for one row is the order of commits.
    pub changes: Vec<Change>,
}

/// Something that a client did or saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Microseconds since the run began.
    pub at: u64,
    /// The session's key.
    pub session: String,
    /// Counts the user's requests in the session.
    pub turn: usize,
    /// Counts the requests sent for the turn.
    pub attempt: usize,
    pub what: What,
}

/// See [`Seen`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The client got through to its session, which said so of its epoch.
    Attached { epoch: i64, gap: bool },
    /// The request of an attempt. `stored` is its `store`.
    Sent { text: String, stored: bool },
    /// The client asked for what follows this sequence number.
    Resumed { after: u64 },
    /// An event of a response that goes on.
    Event { response: String, sequence: u64 },
    /// Its last event. `sequence` is None where an answer is one piece, `outcome` in the words
    /// of [`Create::outcome`].
    Ended { response: String, sequence: Option<u64>, outcome: String, proof: Option<Proof> },
    /// An error, by event or by status.
    Error { code: String, message: String },
    /// The connection ended before the turn did.
    Cut { how: String },
    /// A message of an opaque session, by the number that its sender gave it.
    Message { number: u64 },
}

impl What {
    /// Whether the client has its answer.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Ended { outcome, .. } if outcome == COMPLETED)
    }
}

/// What the sample's answer says of the conversation that it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Digest over all user texts.
    pub digest: String,
    /// Whether the streamed deltas were the final text.
    pub whole: bool,
}

/// A connection that the upstream had.
#[derive(Clone, Debug)]
pub struct Connection {
    pub id: u64,
    pub session: String,
    /// Milliseconds since the upstream started.
    pub opened: u64,
    /// Of one that was open when the upstream was asked, that moment.
    pub closed: Option<u64>,
}

/// A turn that the upstream was asked to run.
#[derive(Clone, Debug)]
pub struct Create {
    /// Milliseconds since the upstream started.
    pub at: u64,
    /// When the model had said its last.
    pub ended: Option<u64>,
    pub connection: u64,
    pub session: String,
    pub response: Option<String>,
    /// Digest over all user texts that the model saw.
    pub conversation: String,
    /// Whether an answer was wanted; without, it only prepares a turn.
    pub generate: bool,
    /// As the sample names it: `completed`, `cancelled`, `failed:CODE`, `refused:CODE`, …
    pub outcome: String,
}

impl Create {
    /// Whether the model ran.
    pub fn ran(&self) -> bool {
        self.generate && !self.outcome.starts_with("refused")
    }

    /// Whether somebody broke it off.
    pub fn was_cut(&self) -> bool {
        self.outcome == "cancelled" || self.was_cut_upstream()
    }

    /// Whether the upstream broke it off: it ended the connection, or said nothing more.
    pub fn was_cut_upstream(&self) -> bool {
        matches!(self.outcome.as_str(), "closed" | "aged" | "hung")
    }
}

/// A table of the product that is audited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Session,
    Member,
    Turn,
}

/// One change of one row.
#[derive(Clone, Debug)]
pub struct Change {
    /// Grows; for one row in the order of commits.
    pub order: i64,
    pub table: Table,
    /// Null for an insert.
    pub before: Value,
    /// Null for a deletion.
    pub after: Value,
}
