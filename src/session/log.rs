//! The ordered log of server messages: what resumes read from, bounded by bytes and time.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::wire::Batch;

/// Server messages, numbered from 1. What was trimmed is below [`Log::floor`].
#[derive(Debug)]
pub struct Log {
    entries: VecDeque<Entry>,
    /// Number of the next message.
    next: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    first: u64,
    at: Instant,
    batch: Batch,
}

impl Default for Log {
    fn default() -> Self {
        Self { entries: VecDeque::new(), next: 1, bytes: 0 }
    }
}

impl Log {
    /// Appends and numbers a batch; the number of its first message.
    pub fn push(&mut self, batch: Batch, now: Instant) -> u64 {
        let first = self.next;
        self.next += u64::from(batch.len());
        self.bytes += batch.weight();
        self.entries.push_back(Entry { first, at: now, batch });
        first
    }

    /// Number of the last message so far; 0 before the first.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.next - 1
    }

    /// Number of the oldest message that can still be read; head + 1 when there is none.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.entries.front().map_or(self.next, |entry| entry.first)
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The messages from number `from` on, as far as they stand in one batch. None at the
    /// head, and below the floor.
    #[must_use]
    pub fn read(&self, from: u64) -> Option<Batch> {
        let last = self.entries.back()?;
        let entry = if from >= last.first {
            last
        } else {
            let at = self.entries.partition_point(|entry| entry.first <= from);
            self.entries.get(at.checked_sub(1)?)?
        };
        let skip = u32::try_from(from.checked_sub(entry.first)?).ok()?;
        match skip {
            0 => Some(entry.batch.clone()),
            skip if skip < entry.batch.len() => Some(entry.batch.skip(skip)),
            _ => None,
        }
    }

    /// Drops the oldest batches until at most `max_bytes` remain and none is older than
    /// `ttl`. The newest batch stays while it is young, however large it is.
    pub fn trim(&mut self, max_bytes: usize, ttl: Duration, now: Instant) {
        while let Some(front) = self.entries.front() {
            let old = now.duration_since(front.at) >= ttl;
            let surplus = self.bytes > max_bytes && self.entries.len() > 1;
            if !old && !surplus {
                break;
            }
            self.bytes -= front.batch.weight();
            self.entries.pop_front();
        }
        if self.entries.is_empty() {
            // An idle session keeps no buffer.
            self.entries = VecDeque::new();
        }
    }

    /// When the oldest batch will be too old.
    #[must_use]
    pub fn expires(&self, ttl: Duration) -> Option<Instant> {
        self.entries.front().map(|entry| entry.at + ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{BatchBuilder, Kind};

    fn batch(texts: &[&str]) -> Batch {
        let mut builder = BatchBuilder::default();
        for text in texts {
            builder.push(Kind::Text, text.as_bytes());
        }
        builder.finish()
    }

    fn texts(batch: &Batch) -> Vec<String> {
        batch.messages().map(|m| String::from_utf8(m.payload.to_vec()).unwrap()).collect()
    }

    #[test]
    fn reading_from_any_number_gives_the_rest_of_its_batch() {
        let mut log = Log::default();
        let now = Instant::now();
        assert_eq!(log.push(batch(&["1", "2", "3"]), now), 1);
        assert_eq!(log.push(batch(&["4"]), now), 4);
        assert_eq!(texts(&log.read(2).unwrap()), ["2", "3"]);
        assert_eq!(texts(&log.read(4).unwrap()), ["4"]);
        assert_eq!(log.read(5), None);
        assert_eq!((log.floor(), log.head()), (1, 4));
    }

    #[test]
    fn what_is_trimmed_is_below_the_floor_and_never_read() {
        let mut log = Log::default();
        let now = Instant::now();
        for _ in 0..10 {
            log.push(batch(&["abcdefgh"]), now);
        }
        log.trim(30, Duration::from_mins(1), now);
        assert_eq!((log.floor(), log.head(), log.bytes()), (8, 10, 30));
        assert_eq!(log.read(7), None);
        log.trim(30, Duration::from_mins(1), now + Duration::from_secs(61));
        assert_eq!((log.floor(), log.head(), log.bytes()), (11, 10, 0));
    }
}
