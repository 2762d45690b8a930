//! What operators see of a session, without asking its actor.

use std::{
    sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::ClientLabel;
use crate::ids::Incarnation;

/// State of the upstream connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamState {
    None,
    Dialing,
    Connected,
}

impl UpstreamState {
    /// The word used by the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Dialing => "dialing",
            Self::Connected => "connected",
        }
    }
}

/// One attached client.
#[derive(Clone, Debug)]
pub struct ClientStat {
    pub id: u32,
    pub label: ClientLabel,
    pub since: Instant,
}

/// Figures that the actor keeps up to date.
#[derive(Debug, Default)]
pub struct Stats {
    pub head_seq: AtomicU64,
    pub floor_seq: AtomicU64,
    pub replay_bytes: AtomicU64,
    pub turns_running: AtomicU64,
    pub turns_queued: AtomicU64,
    pub turns_done: AtomicU64,
    /// Conversation remembered, in bytes.
    pub(super) history_bytes: AtomicU64,
    /// Messages that the furthest-behind client has not got.
    pub lag: AtomicU64,
    upstream: AtomicU8,
    /// The incarnation that keeps the newest copy of the conversation, negative if it had no room
    /// for it; 0 if nobody does.
    heir: AtomicI64,
    pub clients: Mutex<Vec<ClientStat>>,
    active: Mutex<Active>,
}

/// When something last happened.
#[derive(Debug)]
struct Active(Instant);

impl Default for Active {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Stats {
    pub(super) fn set_upstream(&self, state: UpstreamState) {
        self.upstream.store(state as u8, Relaxed);
    }

    #[must_use]
    pub fn upstream(&self) -> UpstreamState {
        match self.upstream.load(Relaxed) {
            0 => UpstreamState::None,
            1 => UpstreamState::Dialing,
            _ => UpstreamState::Connected,
        }
    }

    /// Who keeps the newest copy of the conversation from now on.
    pub(super) fn set_heir(&self, heir: Option<Incarnation>) {
        self.heir.store(heir.map_or(0, |heir| heir.0), Relaxed);
    }

    /// Who keeps the newest copy of the conversation.
    pub(super) fn heir(&self) -> Option<Incarnation> {
        Some(Incarnation(self.heir.load(Relaxed))).filter(|heir| heir.0 > 0)
    }

    /// Nobody keeps the newest copy: `heir` had no room for it.
    pub(super) fn set_refused(&self, heir: Incarnation) {
        self.heir.store(-heir.0, Relaxed);
    }

    /// Who had no room for the newest copy of the conversation.
    pub(super) fn refused_by(&self) -> Option<Incarnation> {
        Some(Incarnation(-self.heir.load(Relaxed))).filter(|heir| heir.0 > 0)
    }

    /// A turn runs or waits, or a client came.
    pub(super) fn touch(&self) {
        self.active.lock().0 = Instant::now();
    }

    /// Since when no turn ran or waited and no client came.
    #[must_use]
    pub fn idle_for(&self) -> Duration {
        self.active.lock().0.elapsed()
    }

    /// Conversation remembered, in bytes.
    #[must_use]
    pub fn history_bytes(&self) -> u64 {
        self.history_bytes.load(Relaxed)
    }

    /// No turn runs or waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.turns_running.load(Relaxed) == 0 && self.turns_queued.load(Relaxed) == 0
    }
}
