//! Whom one attach does not ask again for now.

use std::time::Duration;

use tokio::time::Instant;

use crate::ids::Incarnation;

/// How long one who may keep the only copy of a conversation is tried before another claims the
/// session: a connect that fails once proves little, and a crash may cost seconds only.
const TRIED: Duration = Duration::from_secs(2);

/// Members that did not take an attach.
#[derive(Default)]
pub(super) struct Avoid {
    refused: Vec<Incarnation>,
    /// And since when they were tried.
    unreached: Vec<(Incarnation, Instant)>,
}

impl Avoid {
    /// It answered that another one should take the session.
    pub(super) fn refused(&mut self, member: Incarnation) {
        self.refused.push(member);
    }

    /// It was `asked` then and not reached.
    pub(super) fn unreached(&mut self, member: Incarnation, asked: Instant) {
        if self.since(member).is_none() {
            self.unreached.push((member, asked));
        }
    }

    pub(super) fn has(&self, member: Incarnation) -> bool {
        self.refused.contains(&member) || self.since(member).is_some()
    }

    /// Whether another one is to claim the session; not yet one who was not reached a moment ago
    /// and may keep a copy of it (`copied`).
    pub(super) fn passes(&self, member: Incarnation, copied: bool) -> bool {
        let tried = |since: Instant| !copied || since.elapsed() >= TRIED;
        self.refused.contains(&member) || self.since(member).is_some_and(tried)
    }

    /// All may be asked again.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn since(&self, member: Incarnation) -> Option<Instant> {
        self.unreached.iter().find(|(unreached, _)| *unreached == member).map(|(_, since)| *since)
    }
}
