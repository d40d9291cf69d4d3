//! How many of something there were lately, without a lock: a ring of time slots in atomics.
//!
//! Each slot is one word: the number of its time slot in the upper half, the count in the lower. Whoever counts first in a
//! new time slot replaces the word as one, so that no count is lost or lands in the wrong slot, however threads interleave.
//! A count older than the window is not removed; it is only no longer read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The parts of a window: what leaves it leaves in steps of a tenth.
const SLOTS: usize = 10;

/// Counts events of a sliding window.
#[derive(Debug)]
pub struct Window {
    origin: Instant,
    slot_nanos: u64,
    slots: [AtomicU64; SLOTS],
}

impl Window {
    /// `length` is that of the window; at least 10 ns.
    pub fn new(length: Duration, origin: Instant) -> Self {
        let slot_nanos = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX) / SLOTS as u64;
        Window { origin, slot_nanos: slot_nanos.max(1), slots: Default::default() }
    }

    /// Counts one more.
    pub fn count(&self, now: Instant) {
        let time = self.time(now);
        let Some(slot) = self.slots.get(usize::try_from(time).unwrap_or(0) % SLOTS) else { return };
        let mut seen = slot.load(Relaxed);
        loop {
            // A thread that was held up for a whole window counts into the past, which nobody reads: drop it.
            let next = match seen >> 32 {
                same if same == time => seen.saturating_add(u64::from(seen & 0xffff_ffff < 0xffff_ffff)),
                older if older < time => (time << 32) | 1,
                _ => return,
            };
            match slot.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// How many were counted within the window that ends now. The oldest slot counts as a whole, so that the window is
    /// between nine and ten tenths of its length.
    pub fn sum(&self, now: Instant) -> u64 {
        let newest = self.time(now);
        let oldest = newest.saturating_sub(SLOTS as u64 - 1);
        let slots = self.slots.iter().map(|slot| slot.load(Relaxed));
        slots.filter(|word| (oldest..=newest).contains(&(word >> 32))).map(|word| word & 0xffff_ffff).sum()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.slots.iter().for_each(|slot| slot.store(0, Relaxed));
    }

    /// The number of the time slot, from 1, so that the word of a fresh slot (0) is in the past. It fits 32 bits for 136
    /// years of slots of a second.
    fn time(&self, now: Instant) -> u64 {
        let nanos = u64::try_from(now.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX);
        (nanos / self.slot_nanos).saturating_add(1) & 0xffff_ffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn counts_leave_when_the_window_has_passed() {
        let origin = Instant::now();
        let window = Window::new(10 * SECOND, origin);
        (0..7).for_each(|_| window.count(origin));
        window.count(origin + 5 * SECOND);
        assert_eq!(window.sum(origin + 9 * SECOND), 8);
        assert_eq!(window.sum(origin + 10 * SECOND), 1);
        assert_eq!(window.sum(origin + 15 * SECOND), 0);
        window.count(origin + 20 * SECOND);
        assert_eq!(window.sum(origin + 20 * SECOND), 1, "an old slot begins anew");
        window.clear();
        assert_eq!(window.sum(origin + 20 * SECOND), 0);
    }

    #[test]
    fn threads_lose_no_count() {
        let origin = Instant::now();
        let window = Window::new(SECOND, origin);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..1000_u32).for_each(|n| window.count(origin + Duration::from_millis(400) + SECOND * (n % 2) / 10))
                });
            }
        });
        assert_eq!(window.sum(origin + SECOND / 2), 4000);
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_last_ten_slots(mut at in proptest::collection::vec(0_u64..40, 0..100), now in 0_u64..40) {
            at.sort_unstable();
            let origin = Instant::now();
            let window = Window::new(10 * SECOND, origin);
            at.iter().filter(|at| **at <= now).for_each(|at| window.count(origin + SECOND * u32::try_from(*at).unwrap()));
            let expected = at.iter().filter(|at| **at <= now && **at + 10 > now).count();
            prop_assert_eq!(window.sum(origin + SECOND * u32::try_from(now).unwrap()), expected as u64);
        }
    }
}
