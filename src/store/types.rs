//! What the calls of a store take and give: rows, wishes and answers.

use std::{fmt, time::Duration};

use sha2::{Digest, Sha256};

use crate::ids::{Epoch, Incarnation, Principal, SessionId};

/// Life of a member row. `Dead` and `Gone` are one-way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberState {
    /// Registered, not yet taking sessions.
    Joining,
    /// In placement.
    Active,
    /// Out of placement, still owning and forwarding.
    Draining,
    /// Its lease lapsed, or its death is proven. Its sessions may be taken over.
    Dead,
    /// It left by itself and owns nothing.
    Gone,
}

impl MemberState {
    /// The word used in the database, the API and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "JOINING",
            Self::Active => "ACTIVE",
            Self::Draining => "DRAINING",
            Self::Dead => "DEAD",
            Self::Gone => "GONE",
        }
    }

    /// The inverse of [`MemberState::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Joining, Self::Active, Self::Draining, Self::Dead, Self::Gone]
            .into_iter()
            .find(|state| state.as_str() == text)
    }

    /// Whether the member may still own sessions.
    #[must_use]
    pub const fn is_alive(self) -> bool {
        matches!(self, Self::Joining | Self::Active | Self::Draining)
    }
}

/// What a node says of itself when it registers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NewMember {
    /// Stable name of the pod or process (`POD_NAME`).
    pub node_id: String,
    /// `host:port` of its peer listener, as others reach it.
    pub peer_addr: String,
    /// Build, compared by placement as `major.minor.patch` (newest is the best heir).
    pub build: String,
    pub zone: Option<String>,
    /// Relative share of the ring; 100 is ordinary.
    pub weight: u32,
    /// Sessions it is willing to own.
    pub capacity: u32,
    /// Identity of the process on its machine (boot, pid namespace, pid, start time), by
    /// which a process in the same namespace can prove its death. Empty where unknown.
    pub process: String,
    /// The platform guarantees that the earlier holder of `node_id` is dead (a `StatefulSet`
    /// pod): it is marked so without waiting for its lease.
    pub supersede: bool,
}

#[cfg(test)]
impl NewMember {
    /// One of ordinary weight, which nobody has to reach.
    pub(crate) fn ordinary(node_id: &str) -> Self {
        Self {
            node_id: node_id.into(),
            peer_addr: "127.0.0.1:1".into(),
            build: "1.0.0".into(),
            zone: None,
            weight: 100,
            capacity: 1000,
            process: String::new(),
            supersede: false,
        }
    }
}

/// A row of `member`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub incarnation: Incarnation,
    pub node_id: String,
    pub peer_addr: String,
    pub build: String,
    pub zone: Option<String>,
    pub weight: u32,
    pub capacity: u32,
    pub process: String,
    pub state: MemberState,
    /// Sessions owned, as it said at its last heartbeat.
    pub load: u32,
    /// What was left of its lease when the row was read (store's clock); zero if expired.
    pub lease_remaining: Duration,
    /// Which lease it was when the row was read.
    pub lease: LeaseEnd,
}

/// When a lease ends, in the store's own unit: each renewal makes another one of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LeaseEnd(pub(super) i64);

/// Why a member may be declared dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// This lease has expired. Not, if the member has renewed it since, however long ago that
    /// is: who judged the one may have stood still while the other came and went.
    Lapsed(LeaseEnd),
    /// Its process is known not to exist.
    Proven,
}

/// All live members, and dead or gone ones that some session still names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingView {
    /// Grows with every membership change; heartbeats do not move it.
    pub version: i64,
    /// The store's clock when it was read, since some start: what leases are judged by.
    pub clock: Duration,
    pub members: Vec<Member>,
}

impl RingView {
    /// Members that may own sessions.
    pub fn alive(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.state.is_alive())
    }
}

/// What all nodes of one ring share.
#[derive(Clone)]
pub struct Cluster {
    /// Random, made once at migration. Peers of another cluster are refused by it.
    pub id: String,
    /// Key of the principals' hash.
    pub secret: [u8; 32],
}

/// Answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    pub ring_version: i64,
    pub state: MemberState,
}

/// State of a session row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionState {
    Live,
    /// The owner stopped its turns and is about to transfer it.
    Quiescing,
    /// Ended; the row remains as a fence until it is swept.
    Closed,
}

impl SessionState {
    /// The word used in the database and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Quiescing => "QUIESCING",
            Self::Closed => "CLOSED",
        }
    }

    /// The inverse of [`SessionState::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Live, Self::Quiescing, Self::Closed].into_iter().find(|s| s.as_str() == text)
    }
}

/// A row of `session`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionRow {
    pub id: SessionId,
    pub principal: Principal,
    /// Name of the route that opened it.
    pub route: String,
    /// The key as an operator may see it: the text itself, or its hash for keys that are
    /// credentials (cookies).
    pub key_label: String,
    /// None once released.
    pub owner: Option<Incarnation>,
    pub owner_state: Option<MemberState>,
    /// Peer address of the owner, so that a look-up of a row is enough to forward.
    pub owner_addr: Option<String>,
    pub epoch: Epoch,
    pub state: SessionState,
    /// Seconds since the row was first made (store's clock).
    pub age: Duration,
}

impl SessionRow {
    /// The owner, if it may still be serving the session.
    #[must_use]
    pub fn live_owner(&self) -> Option<Incarnation> {
        self.owner_state.filter(|state| state.is_alive()).and(self.owner)
    }
}

/// A wish to own a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    pub id: SessionId,
    pub principal: Principal,
    pub route: String,
    pub key_label: String,
    pub me: Incarnation,
    /// Epoch of the row as it was last read; None claims only a session without a row.
    pub seen: Option<Epoch>,
    /// Sessions that the principal may have.
    pub limit: Option<u32>,
}

impl Claim {
    /// Whether nothing about the row as it is stands in the way.
    #[must_use]
    pub(super) fn would_win(&self, row: &SessionRow) -> bool {
        self.seen == Some(row.epoch) && row.live_owner().is_none_or(|owner| owner == self.me)
    }
}

/// What became of a [`Claim`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Claimed {
    /// It is ours under this epoch.
    Won {
        epoch: Epoch,
        /// The incarnation it was taken from, if it had another owner before.
        from: Option<Incarnation>,
    },
    /// It is someone's; the row as it is now.
    Lost(SessionRow),
    /// We are not allowed to own anything (dead, draining, or never registered).
    Fenced,
    /// The principal has as many sessions as it may.
    Full,
}

/// What became of a planned transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transferred {
    /// The commit point was passed; the heir owns it under this epoch.
    Moved(Epoch),
    /// The heir is not active or its lease has expired. Ownership did not change.
    HeirUnfit,
    /// The row is ours but was not quiesced first. Nothing changed.
    NotQuiescing,
    /// A turn is dispatched and has not ended, and the transfer was not forced. Nothing
    /// changed.
    TurnsRunning,
    /// The row is not ours in that epoch. Nothing changed.
    NotOwner,
}

/// What an alias is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AliasKind {
    /// An id that the upstream gave to a response.
    Response,
    /// `x-codex-turn-state`.
    TurnState,
}

impl AliasKind {
    /// The word used in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Response => "response",
            Self::TurnState => "turn_state",
        }
    }
}

/// Another name of a session, valid within one principal and route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    pub principal: Principal,
    pub kind: AliasKind,
    /// SHA-256 (first 16 bytes) of route and text: response ids and turn states are not kept.
    pub digest: [u8; 16],
    pub session: SessionId,
}

impl Alias {
    /// What is kept of an alias's text. The route's path is part of it: what one upstream has
    /// named is nothing to the upstream of another route.
    #[must_use]
    pub fn digest(route: &str, text: &str) -> [u8; 16] {
        let mut hash = Sha256::new();
        hash.update((route.len() as u64).to_be_bytes());
        hash.update(route);
        hash.update(text);
        let full = hash.finalize();
        let mut digest = [0; 16];
        digest.copy_from_slice(&full[..16]);
        digest
    }
}

/// Which sessions to list. Ordered by id, so a listing can be continued.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    pub owner: Option<Incarnation>,
    pub key_label: Option<String>,
    pub after: Option<SessionId>,
    /// Bounded by the caller; a store refuses nothing.
    pub limit: u32,
}

/// A part of a conversation, sealed by the node that wrote it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Part {
    /// Epoch of the owner that wrote it. Parts are ordered by epoch and number.
    pub epoch: Epoch,
    /// Counts the parts of one owner.
    pub no: u32,
    pub sealed: Vec<u8>,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Part({}/{}, {} bytes)", self.epoch, self.no, self.sealed.len())
    }
}

/// A part to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPart {
    pub session: SessionId,
    pub part: Part,
    /// It takes the place of all that is ordered before it.
    pub whole: bool,
}

/// What a sweep deletes or closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sweep {
    /// Closed sessions, with their turns.
    Sessions,
    /// Aliases whose session has no owner and no turn that a key names: a repeat has to find it.
    Aliases,
    /// Dead or gone members that no session names.
    Members,
    /// Parts of conversations whose session has no living owner.
    Conversations,
    /// What is counted for nodes that are no more, whatever its age.
    Shares,
    /// What is counted of principals that rest.
    Paces,
    /// Sessions whose owner is dead: they are closed, and go by a later sweep.
    Orphans,
    /// Turns, by when they were begun and whatever became of them.
    Turns,
}

impl Sweep {
    /// All kinds, in the order in which one leads to another.
    pub const ALL: [Self; 8] = [
        Self::Sessions,
        Self::Aliases,
        Self::Members,
        Self::Conversations,
        Self::Shares,
        Self::Paces,
        Self::Orphans,
        Self::Turns,
    ];

    /// The word for operators.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Aliases => "aliases",
            Self::Members => "members",
            Self::Conversations => "conversations",
            Self::Shares => "shares",
            Self::Paces => "paces",
            Self::Orphans => "orphans",
            Self::Turns => "turns",
        }
    }
}

/// How far a sweep has come: the last row that it looked at, by its time and part of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub(super) since: i64,
    pub(super) key: [u8; 16],
}

impl Cursor {
    /// Before every row.
    pub const START: Self = Self { since: -1, key: [0; 16] };
}

/// What a step of a sweep did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Rows that went or were closed.
    pub rows: u64,
    /// Where the next step goes on; None at the end.
    pub next: Option<Cursor>,
}

impl Swept {
    /// A step that looks only at what it takes: the next one begins where this one did.
    pub(super) fn of(rows: u64, limit: u32) -> Self {
        Self { rows, next: (rows >= u64::from(limit)).then_some(Cursor::START) }
    }
}
