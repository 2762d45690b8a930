//! The time of one machine, the same for all its processes and deaf to the wall clock.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine booted, time asleep included.
pub(in crate::store) fn now_ms() -> i64 {
    let time = clock_gettime(CLOCK);
    time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000)
}

#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

/// Which boot [`now_ms`] counts from. Where it cannot be told (not Linux), a reboot is not
/// noticed, and leases of before it last until a boot clock has passed them.
pub(in crate::store) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}
