//! Whose turn it is to change what runs: one reload or upgrade at a time, and how long it may take before something is wrong.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

/// A reload that takes longer than this is not a reload any more.
pub const RELOAD_PATIENCE: Duration = Duration::from_secs(60);

/// Held over awaits, which is why it is an async lock; the request path never takes it.
#[derive(Default)]
pub struct Turns {
    lock: Mutex<()>,
    /// Of the turn under way, or of the last one.
    number: AtomicU64,
    millis: AtomicU64,
}

impl Turns {
    /// Waits for a turn, which takes no longer than `most` unless it is stuck.
    pub async fn take(&self, most: Duration) -> MutexGuard<'_, ()> {
        let turn = self.lock.lock().await;
        self.millis.store(u64::try_from(most.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.number.fetch_add(1, Ordering::Relaxed);
        turn
    }

    /// The number of the turn that is under way, and how long it may take.
    pub fn under_way(&self) -> Option<(u64, Duration)> {
        self.lock
            .try_lock()
            .is_err()
            .then(|| (self.number.load(Ordering::Relaxed), Duration::from_millis(self.millis.load(Ordering::Relaxed))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_is_seen_while_it_is_held_and_told_from_the_next() {
        let turns = Turns::default();
        assert_eq!(turns.under_way(), None);
        for (number, most) in [(1, Duration::from_secs(60)), (2, Duration::from_secs(90))] {
            let turn = turns.take(most).await;
            assert_eq!(turns.under_way(), Some((number, most)));
            drop(turn);
            assert_eq!(turns.under_way(), None);
        }
    }
}
