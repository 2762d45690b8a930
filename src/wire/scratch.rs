//! One buffer per thread for reads and masked writes, so that an idle socket needs none.

use std::cell::Cell;

/// Size of the buffer: what one read or one masked write moves at most.
pub(super) const SCRATCH_BYTES: usize = 64 * 1024;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends the thread's buffer. A socket within a socket gets another that is dropped.
pub(super) fn with_scratch<R>(then: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut scratch = SCRATCH.take();
    scratch.resize(SCRATCH_BYTES, 0);
    let result = then(&mut scratch);
    SCRATCH.set(scratch);
    result
}
