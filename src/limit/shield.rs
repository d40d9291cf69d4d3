//! The shield: how much the gateway as a whole takes, whoever asks.
//!
//! It protects this machine and what is behind it, and nobody has been promised its number, so an estimate is good enough:
//! `pingora-limits` counts by atomics, without a lock that all requests of all routes would meet at. It counts in intervals
//! of the rate's time that begin where they happen to; across the border of two of them up to twice the number can pass
//! within one time. Refused requests count too, but only until the interval ends. What a contract names is a
//! `rate_limit` filter.

use crate::telemetry::metrics::Counter;
use crate::value::Rate;
use pingora_limits::rate::Rate as Estimate;
use std::time::Duration;

pub struct Shield {
    estimate: Estimate,
    number: isize,
    per: Duration,
    pub refused: Counter,
}

impl std::fmt::Debug for Shield {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shield").field("number", &self.number).field("per", &self.per).finish_non_exhaustive()
    }
}

impl Shield {
    pub fn new(rate: Rate) -> Self {
        let per = rate.per.get();
        Shield {
            // There is one key, so one slot counts it without a collision.
            estimate: Estimate::new_with_estimator_config(per, 1, 1),
            number: isize::try_from(rate.number).unwrap_or(isize::MAX),
            per,
            refused: Counter::default(),
        }
    }

    /// Counts a request; the error is how long to wait.
    pub fn admit(&self) -> Result<(), Duration> {
        if self.estimate.observe(&(), 1) > self.number {
            self.refused.increment();
            return Err(self.per);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_its_number_passes_in_an_interval() {
        let shield = Shield::new("100/365d".parse().unwrap());
        let passed = (0..1_000).filter(|_| shield.admit().is_ok()).count();
        assert_eq!((passed, shield.refused.get()), (100, 900));
    }
}
