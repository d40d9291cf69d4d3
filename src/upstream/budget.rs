//! The retry budget: what keeps retries from making an outage worse.
//!
//! A limit on attempts alone multiplies load exactly when an upstream has none to spare: with two attempts each, a dead
//! upstream gets twice the traffic. A budget bounds retries by what was asked for lately (Finagle's `RetryBudget`, gRPC's
//! retry throttling): at most a share of the requests of the last ten seconds, and a few more where there is little traffic,
//! so that the first failure of a quiet service is still retried.

use super::window::Window;
use crate::telemetry::metrics::Counter;
use std::time::{Duration, Instant};

/// Over how long requests and retries are counted.
pub const WINDOW: Duration = Duration::from_secs(10);

/// The counts of one upstream. They survive reloads.
#[derive(Debug)]
pub struct Budget {
    requests: Window,
    retries: Window,
    /// Retries that were not made for want of budget.
    pub refused: Counter,
}

/// How much of it may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Parts per million of the requests.
    pub share: u32,
    /// Retries within the window that are allowed however few requests there are.
    pub floor: u64,
}

impl Budget {
    pub fn new(now: Instant) -> Self {
        Budget { requests: Window::new(WINDOW, now), retries: Window::new(WINDOW, now), refused: Counter::default() }
    }

    /// Counts the first attempt of a request.
    pub fn request(&self, now: Instant) {
        self.requests.count(now);
    }

    /// Takes one retry out of the budget; `false` if there is none. Threads that ask at the same moment may overdraw it by
    /// one each.
    pub fn withdraw(&self, allowance: Allowance, now: Instant) -> bool {
        let share = self.requests.sum(now).saturating_mul(u64::from(allowance.share)) / 1_000_000;
        let within = self.retries.sum(now) < share.max(allowance.floor);
        if within {
            self.retries.count(now);
        } else {
            self.refused.increment();
        }
        within
    }

    /// Requests and retries of the window, for operators.
    pub fn used(&self, now: Instant) -> (u64, u64) {
        (self.requests.sum(now), self.retries.sum(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENTH: Allowance = Allowance { share: 100_000, floor: 5 };

    #[test]
    fn retries_are_a_share_of_requests_and_never_fewer_than_the_floor() {
        let now = Instant::now();
        let budget = Budget::new(now);
        let granted = |budget: &Budget| (0..1000).filter(|_| budget.withdraw(TENTH, now)).count();
        assert_eq!(granted(&budget), 5, "the floor");
        (0..200).for_each(|_| budget.request(now));
        assert_eq!(granted(&budget), 15, "a tenth of 200, less what was taken");
        assert_eq!(budget.used(now), (200, 20));
    }

    #[test]
    fn the_budget_comes_back_with_time_and_traffic() {
        let start = Instant::now();
        let budget = Budget::new(start);
        (0..100).for_each(|_| budget.request(start));
        while budget.withdraw(TENTH, start) {}
        let later = start + WINDOW;
        assert_eq!((0..100).filter(|_| budget.withdraw(TENTH, later)).count(), 5, "old requests earn nothing");
    }

    #[test]
    fn an_upstream_that_only_fails_sees_a_tenth_more() {
        let start = Instant::now();
        let budget = Budget::new(start);
        let mut attempts = 0_u32;
        for n in 0..60_000_u32 {
            let now = start + Duration::from_millis(n.into());
            budget.request(now);
            attempts += 1 + u32::from(budget.withdraw(TENTH, now));
        }
        assert!(attempts <= 66_010, "{attempts} attempts for 60000 requests");
    }
}
