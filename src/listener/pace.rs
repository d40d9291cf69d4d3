//! How fast the client of one HTTP/2 stream takes its answer.
//!
//! [`super::patience`] watches sockets, and with them a connection as a whole. A single stream is held back by its flow control
//! window, which the client opens as it likes. Pingora bounds the wait for each piece of a body by itself, so that a client
//! could hold a stream for ever with one small piece inside each bound. Here the same budget is kept for the stream: the time
//! in which pieces are on their way comes out of it, and each byte gives back what it may take at the slowest rate.
//!
//! A piece is on its way until the protocol lets go of its memory, which is when the last of it is written for the socket. The
//! last piece of a body is not watched, since nothing comes after it: an answer of one piece costs nothing here.

use super::patience::Tolerance;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Pace {
    tolerance: Tolerance,
    budget: Mutex<Budget>,
}

#[derive(Debug)]
struct Budget {
    left: Duration,
    /// Bytes on their way.
    under_way: usize,
    /// Up to when the wait for them has been taken out of the budget.
    settled: Instant,
}

impl Pace {
    /// `None` if nothing is asked of the client.
    pub fn new(tolerance: Tolerance, now: Instant) -> Option<Arc<Self>> {
        let budget = Mutex::new(Budget { left: tolerance.pause, under_way: 0, settled: now });
        (!tolerance.pause.is_zero() && tolerance.rate > 0).then(|| Arc::new(Pace { tolerance, budget }))
    }

    /// A piece is about to be written: how long that may take. `None` if the client has been too slow so far.
    pub fn hand_over(self: &Arc<Self>, piece: &mut Bytes, last: bool, now: Instant) -> Option<Duration> {
        let length = piece.len();
        let mut budget = self.budget.lock();
        budget.settle(now);
        if budget.left.is_zero() {
            return None;
        }
        budget.left = budget.left.saturating_add(self.time_for(length));
        let allowed = budget.left.min(self.tolerance.pause);
        if !last {
            budget.under_way = budget.under_way.saturating_add(length);
            let data = std::mem::take(piece);
            *piece = Bytes::from_owner(Piece { data, pace: Arc::clone(self) });
        }
        Some(allowed)
    }

    fn arrived(&self, bytes: usize, now: Instant) {
        let mut budget = self.budget.lock();
        budget.settle(now);
        budget.under_way = budget.under_way.saturating_sub(bytes);
        // What was saved up by being fast is not there to be slow with later.
        budget.left = budget.left.min(self.tolerance.pause.saturating_add(self.time_for(budget.under_way)));
    }

    /// What so many bytes may take.
    fn time_for(&self, bytes: usize) -> Duration {
        let millis = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(1_000).checked_div(self.tolerance.rate);
        Duration::from_millis(millis.unwrap_or_default())
    }
}

impl Budget {
    fn settle(&mut self, now: Instant) {
        if self.under_way > 0 {
            self.left = self.left.saturating_sub(now.saturating_duration_since(self.settled));
        }
        self.settled = now;
    }
}

/// Memory that says when it is given up.
struct Piece {
    data: Bytes,
    pace: Arc<Pace>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.pace.arrived(self.data.len(), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Tolerance = Tolerance { pause: Duration::from_secs(10), rate: 100 };

    fn pace(now: Instant) -> Arc<Pace> {
        Pace::new(TOLERANCE, now).unwrap()
    }

    /// A client that takes pieces of this size, each in this time, and waits as long in between: how many it gets of 100.
    fn pieces(size: usize, each: Duration) -> usize {
        let mut now = Instant::now();
        let pace = pace(now);
        for count in 0..100 {
            let mut piece = Bytes::from(vec![0; size]);
            let Some(allowed) = pace.hand_over(&mut piece, false, now) else { return count };
            if allowed < each {
                return count;
            }
            now += each;
            pace.arrived(size, now);
            // Its own end comes later than any of those, and changes nothing that is looked at here.
            std::mem::forget(piece);
            now += each;
        }
        100
    }

    #[test]
    fn small_pieces_inside_each_bound_run_out_of_budget_and_a_steady_rate_does_not() {
        // 10 bytes, worth 0.1 s, in 5 s each: two of them.
        assert_eq!(pieces(10, Duration::from_secs(5)), 2);
        assert_eq!(pieces(500, Duration::from_secs(5)), 100);
        // No single piece may take longer than the longest wait.
        assert_eq!(pieces(5_000, Duration::from_secs(11)), 0);
    }

    #[test]
    fn waiting_for_the_upstream_and_having_been_fast_change_nothing() {
        let start = Instant::now();
        let pace = pace(start);
        let mut large = Bytes::from(vec![0; 1_000_000]);
        assert_eq!(pace.hand_over(&mut large, false, start), Some(TOLERANCE.pause));
        pace.arrived(1_000_000, start);
        // An hour without a piece on its way.
        let later = start + Duration::from_secs(3_600);
        let mut piece = Bytes::from_static(b"x");
        assert_eq!(pace.hand_over(&mut piece, false, later), Some(TOLERANCE.pause));
        pace.arrived(1, later + Duration::from_secs(11));
        assert_eq!(pace.hand_over(&mut piece, true, later + Duration::from_secs(12)), None);
        std::mem::forget((large, piece));
    }

    #[test]
    fn a_piece_is_under_way_until_its_last_part_is_dropped_and_the_last_is_not_watched() {
        let pace = pace(Instant::now());
        let mut piece = Bytes::from_static(b"hello");
        pace.hand_over(&mut piece, false, Instant::now()).unwrap();
        let part = piece.split_to(2);
        assert_eq!((&*part, &*piece), (&b"he"[..], &b"llo"[..]));
        drop(piece);
        assert_eq!(pace.budget.lock().under_way, 5);
        drop(part);
        assert_eq!(pace.budget.lock().under_way, 0);
        let mut last = Bytes::from_static(b"end");
        pace.hand_over(&mut last, true, Instant::now()).unwrap();
        assert_eq!(pace.budget.lock().under_way, 0);
        assert!(Pace::new(Tolerance { rate: 0, ..TOLERANCE }, Instant::now()).is_none());
    }
}
