//! A histogram of durations with fixed buckets: two atomic additions for each observation, no lock, no allocation.
//!
//! The bounds are the same for every duration the gateway measures, so that they can be compared and summed. They reach
//! from a connect on the same rack (100 µs) to the longest that a client waits (60 s), with about three to a decade:
//! a quantile is then off by a factor of two or so at worst, which is what an alert can be built on.
//!
//! Counters are not split by thread. Two cores that observe at the same time pay for passing a cache line; measured by
//! `benches/telemetry.rs` that is tens of nanoseconds, against the microseconds of a request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of the buckets, inclusive: nanoseconds, and seconds as Prometheus shows them. The last bucket,
/// `+Inf`, has no entry.
pub const BOUNDS: [(u64, &str); 18] = [
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (250_000_000, "0.25"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1"),
    (2_500_000_000, "2.5"),
    (5_000_000_000, "5"),
    (10_000_000_000, "10"),
    (30_000_000_000, "30"),
    (60_000_000_000, "60"),
];

const BUCKETS: usize = BOUNDS.len() + 1;

/// The sum comes first, near to what else whoever holds it counts.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Histogram {
    /// Wraps around after 584 years of observed time, which Prometheus takes for a restart.
    sum_nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// What a histogram held at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistogramSample {
    /// How many observations each bucket holds, not cumulative.
    pub buckets: [u64; BUCKETS],
    pub sum: Duration,
}

impl Histogram {
    pub fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // Comparing with all bounds and counting has no branch to mispredict and compiles to a few vector instructions.
        let bucket: usize = BOUNDS.iter().map(|(bound, _)| usize::from(nanos > *bound)).sum();
        if let Some(counter) = self.buckets.get(bucket) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// The upper bound of the bucket below which this share of the observations lies, in parts per million. `None` with
    /// fewer than `least` observations, and where it lies beyond the last bound.
    pub fn quantile(&self, share: u32, least: u64) -> Option<Duration> {
        let sample = self.sample();
        let count = sample.count();
        if count < least.max(1) {
            return None;
        }
        let mut below = 0_u64;
        let reached = |observed: &u64| {
            below = below.saturating_add(*observed);
            u128::from(below) * 1_000_000 >= u128::from(count) * u128::from(share)
        };
        let bucket = sample.buckets.iter().position(reached)?;
        BOUNDS.get(bucket).map(|(bound, _)| Duration::from_nanos(*bound))
    }

    /// The buckets are read one after the other: the count, which is their sum, always agrees with them; `sum` may be
    /// ahead or behind by the observations of the moment.
    pub fn sample(&self) -> HistogramSample {
        let mut buckets = [0; BUCKETS];
        for (sampled, counter) in buckets.iter_mut().zip(&self.buckets) {
            *sampled = counter.load(Ordering::Relaxed);
        }
        HistogramSample { buckets, sum: Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed)) }
    }
}

impl HistogramSample {
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_rise_and_are_written_as_what_they_are() {
        assert!(BOUNDS.is_sorted_by(|a, b| a.0 < b.0));
        for (nanos, seconds) in BOUNDS {
            assert_eq!(seconds.parse::<f64>().unwrap(), Duration::from_nanos(nanos).as_secs_f64());
        }
    }

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        for (index, (bound, _)) in BOUNDS.iter().enumerate() {
            let histogram = Histogram::default();
            histogram.observe(Duration::from_nanos(*bound));
            histogram.observe(Duration::from_nanos(*bound + 1));
            let sample = histogram.sample();
            assert_eq!((sample.buckets[index], sample.buckets[index + 1]), (1, 1), "bucket {index}");
        }
    }

    #[test]
    fn a_quantile_is_the_bound_of_its_bucket() {
        let histogram = Histogram::default();
        (0..90).for_each(|_| histogram.observe(Duration::from_millis(2)));
        assert_eq!(histogram.quantile(950_000, 100), None, "too few");
        (0..10).for_each(|_| histogram.observe(Duration::from_millis(300)));
        assert_eq!(histogram.quantile(900_000, 100), Some(Duration::from_micros(2_500)));
        assert_eq!(histogram.quantile(950_000, 100), Some(Duration::from_millis(500)));
        (0..1_000).for_each(|_| histogram.observe(Duration::from_secs(100)));
        assert_eq!(histogram.quantile(950_000, 100), None, "beyond the last bound");
    }

    #[test]
    fn extremes_are_counted() {
        let histogram = Histogram::default();
        histogram.observe(Duration::ZERO);
        histogram.observe(Duration::MAX);
        let sample = histogram.sample();
        assert_eq!((sample.buckets[0], sample.buckets[BUCKETS - 1], sample.count()), (1, 1, 2));
    }

    proptest! {
        #[test]
        fn nothing_is_lost(nanos in proptest::collection::vec(0_u64..100_000_000_000, 0..200)) {
            let histogram = Histogram::default();
            nanos.iter().for_each(|n| histogram.observe(Duration::from_nanos(*n)));
            let sample = histogram.sample();
            prop_assert_eq!(sample.count(), nanos.len() as u64);
            prop_assert_eq!(sample.sum, Duration::from_nanos(nanos.iter().sum()));
        }
    }
}
