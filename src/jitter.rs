//! Pauses that do not fall together.

use std::time::Duration;

/// The pause, give or take half: what many wait for at once, as the return of a database or an
/// owner, is not asked for by all at one instant.
#[must_use]
pub fn spread(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.5))
}
