//! What a store is asked about the turns of one principal on all nodes.

use std::time::Duration;

use crate::ids::{Incarnation, Principal};

/// A wish to begin one more turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnWish {
    pub principal: Principal,
    pub me: Incarnation,
    /// Turns of the principal that this node would then be running.
    pub running: u32,
    /// Turns that all nodes together may be running.
    pub at_once: Option<u32>,
    pub pace: Option<Pace>,
}

/// How fast turns may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Time between two turns in the long run.
    pub interval: Duration,
    /// Turns that may begin at once after a rest.
    pub burst: u32,
}

impl Pace {
    /// So many in a minute, of which a sixth may come at once: in no minute more than the
    /// number and that sixth.
    #[must_use]
    pub fn per_minute(turns: u32) -> Self {
        let turns = turns.max(1);
        let interval = 60_000_000_u64.div_ceil(u64::from(turns));
        Self { interval: Duration::from_micros(interval), burst: turns.div_ceil(6) }
    }

    /// How far ahead of the time a turn's due time may lie.
    #[must_use]
    pub fn tolerance(&self) -> Duration {
        self.interval * self.burst.saturating_sub(1)
    }
}

/// The answer to a [`TurnWish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnAdmission {
    /// It is counted.
    Admitted,
    /// As many run as may. Nothing changed.
    TooMany,
    /// It may be asked again after this. Nothing changed.
    TooFast(Duration),
}
