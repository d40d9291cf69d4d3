//! Requests that were seen already: a signature counts once.
//!
//! Each is remembered by the SHA-256 of what was signed, until it would be too old to count anyway. The table is bounded; when
//! all of its entries are still in their time, a further request cannot be decided and is refused: forgetting one would let
//! it be sent again.

use parking_lot::Mutex;
use std::collections::HashMap;

const SHARDS: usize = 16;
/// How many signatures are remembered, some 60 bytes each.
pub const ROOM: usize = 1_000_000;

/// One table for the process.
#[derive(Debug, Default)]
pub struct Replays {
    shards: [Mutex<HashMap<[u8; 32], u64, foldhash::fast::RandomState>>; SHARDS],
}

/// What is known about a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    First,
    Again,
    /// There is no room to remember it.
    Full,
}

impl Replays {
    /// Remembers a signature until a time in seconds since 1970.
    pub fn note(&self, fingerprint: [u8; 32], until: u64, now: u64) -> Seen {
        self.note_in(fingerprint, until, now, ROOM / SHARDS)
    }

    fn note_in(&self, fingerprint: [u8; 32], until: u64, now: u64, room: usize) -> Seen {
        let index = usize::from(fingerprint.first().copied().unwrap_or(0)) % SHARDS;
        let Some(shard) = self.shards.get(index) else { return Seen::Full };
        let mut shard = shard.lock();
        if shard.get(&fingerprint).is_some_and(|until| now < *until) {
            return Seen::Again;
        }
        if shard.len() >= room {
            shard.retain(|_, until| now < *until);
            if shard.len() >= room {
                return Seen::Full;
            }
        }
        shard.insert(fingerprint, until);
        Seen::First
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_counts_once_in_its_time() {
        let replays = Replays::default();
        assert_eq!(replays.note([1; 32], 100, 50), Seen::First);
        assert_eq!(replays.note([1; 32], 100, 99), Seen::Again);
        assert_eq!(replays.note([2; 32], 100, 99), Seen::First);
        assert_eq!(replays.note([1; 32], 200, 100), Seen::First, "its time is over, so it would be refused for that");
    }

    #[test]
    fn a_full_table_refuses_and_forgets_nothing_that_counts() {
        let replays = Replays::default();
        let mark = |n: u8| {
            let mut mark = [0; 32];
            mark[31] = n;
            mark
        };
        for n in 0..4 {
            assert_eq!(replays.note_in(mark(n), 100, 0, 4), Seen::First);
        }
        assert_eq!(replays.note_in(mark(9), 100, 99, 4), Seen::Full);
        assert_eq!(replays.note_in(mark(0), 100, 99, 4), Seen::Again);
        assert_eq!(replays.note_in(mark(9), 300, 100, 4), Seen::First);
    }
}
