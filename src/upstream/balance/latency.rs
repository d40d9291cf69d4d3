//! Peak EWMA: how long an endpoint has lately taken to answer.
//!
//! The estimate rises at once to a slower answer and falls slowly with faster ones, as Finagle and linkerd have it
//! (<https://linkerd.io/2016/03/16/beyond-round-robin-load-balancing-for-latency/>): being late to notice that an endpoint
//! has become slow costs more than being late to forgive. It also falls with time alone, so that an endpoint that nobody
//! asks any more is asked again. Both parts fit one atomic, so that neither a lock nor a torn pair is possible.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How fast the estimate falls: to 37 % in this time.
const DECAY: Duration = Duration::from_secs(10);
/// What a failure counts as, if it took less. An endpoint that fails fast must not look like a fast one.
pub const FAILURE: Duration = Duration::from_secs(1);
/// Assumed of an endpoint that has not answered yet, in microseconds: new ones are tried, but not by everybody at once.
const UNKNOWN: f64 = 1_000.0;

/// Microseconds as the bits of an `f32` above, milliseconds since the process began below. Zero: nothing is known.
#[derive(Debug, Default)]
pub struct PeakEwma(AtomicU64);

fn stamp(now: Instant) -> u32 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(|| now);
    // Wraps after 49 days; differences are taken modulo that.
    (now.saturating_duration_since(start).as_millis() & u128::from(u32::MAX)) as u32
}

impl PeakEwma {
    /// Takes an answer into account, or the failure to give one.
    pub fn observe(&self, took: Duration, now: Instant) {
        let (now, took) = (stamp(now), took.as_secs_f64() * 1e6);
        let next = |packed: u64| {
            let estimate = match packed {
                0 => took,
                known => {
                    let (value, weight) = decayed(known, now);
                    if took > value { took } else { took + (value_of(known) - took).max(0.0) * weight }
                }
            };
            // Never zero, which stands for nothing.
            Some(u64::from((estimate.max(1.0) as f32).to_bits()) << 32 | u64::from(now))
        };
        let _ = self.0.try_update(Relaxed, Relaxed, next);
    }

    /// The estimate now; `None` before the first answer.
    pub fn estimate(&self, now: Instant) -> Option<Duration> {
        let packed = self.0.load(Relaxed);
        (packed != 0).then(|| Duration::from_secs_f64(decayed(packed, stamp(now)).0.max(0.0) / 1e6))
    }

    /// What one more request would cost: the time that it would wait behind those under way.
    pub(super) fn cost(&self, in_flight: u32, now: Instant) -> f64 {
        let packed = self.0.load(Relaxed);
        let estimate = if packed == 0 { UNKNOWN } else { decayed(packed, stamp(now)).0 };
        estimate.max(1.0) * (f64::from(in_flight) + 1.0)
    }
}

fn value_of(packed: u64) -> f64 {
    f32::from_bits((packed >> 32) as u32).into()
}

/// The value that is left, and the part of it that is.
fn decayed(packed: u64, now: u32) -> (f64, f64) {
    let age = now.wrapping_sub(packed as u32);
    // Another thread may have read the clock a moment later and written first.
    let age = if age > u32::MAX / 2 { 0 } else { age };
    let weight = (-f64::from(age) / DECAY.as_millis() as f64).exp();
    (value_of(packed) * weight, weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn near(found: Option<Duration>, expected: Duration) {
        let ratio = found.unwrap().as_secs_f64() / expected.as_secs_f64();
        assert!((0.99..1.01).contains(&ratio), "{found:?} is not {expected:?}");
    }

    #[test]
    fn a_slow_answer_counts_at_once_and_is_forgiven_slowly() {
        let (clock, latency) = (ManualClock::new(), PeakEwma::default());
        assert_eq!(latency.estimate(clock.now()), None);
        latency.observe(ms(10), clock.now());
        near(latency.estimate(clock.now()), ms(10));
        latency.observe(ms(500), clock.now());
        near(latency.estimate(clock.now()), ms(500));
        clock.advance(ms(100));
        latency.observe(ms(10), clock.now());
        // 10 + 490 e^-0.01
        near(latency.estimate(clock.now()), Duration::from_micros(495_124));
    }

    #[test]
    fn time_alone_makes_an_endpoint_worth_asking_again() {
        let (clock, latency) = (ManualClock::new(), PeakEwma::default());
        latency.observe(ms(1000), clock.now());
        let before = latency.cost(0, clock.now());
        clock.advance(DECAY);
        let after = latency.cost(0, clock.now());
        assert!((0.36..0.38).contains(&(after / before)), "{before} {after}");
    }

    #[test]
    fn requests_under_way_multiply_the_cost() {
        let (clock, latency) = (ManualClock::new(), PeakEwma::default());
        latency.observe(ms(20), clock.now());
        let ratio = latency.cost(4, clock.now()) / latency.cost(0, clock.now());
        assert!((4.99..5.01).contains(&ratio));
    }
}
