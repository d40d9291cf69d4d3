//! Which failed attempts are made again, and after which pause.
//!
//! Whether a request *may* be repeated depends on the request (`proxy::attempt`); whether it *should* is decided here and by
//! the budget (`budget`).

mod config;

pub use config::{BackoffConfig, On, RetryConfig, RetryMethods};

use super::budget::Allowance;
use super::config::StatusRange;
use std::time::Duration;

/// A compiled [`RetryConfig`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in total, the first included.
    pub attempts: u32,
    pub connect: bool,
    pub reset: bool,
    pub timeout: bool,
    statuses: Box<[StatusRange]>,
    /// A bit for each gRPC status code.
    grpc: u32,
    base: Duration,
    max: Duration,
    pub allowance: Allowance,
    /// Requests whose method is not idempotent as well.
    pub all_methods: bool,
}

impl RetryPolicy {
    /// Whether an answer with this status is one of those that are worth another attempt. `grpc`: the `grpc-status` of an
    /// answer that consists of nothing else.
    pub fn wants(&self, status: u16, grpc: Option<u8>) -> bool {
        self.statuses.iter().any(|range| range.contains(status))
            || grpc.is_some_and(|code| code < 32 && self.grpc & (1 << code) != 0)
    }

    /// Whether [`RetryPolicy::wants`] can be true at all.
    pub fn wants_answers(&self) -> bool {
        self.grpc != 0 || !self.statuses.is_empty()
    }

    /// The pause before retry number `retry`, from 1: exponential, with full jitter (M. Brooker, "Exponential Backoff And
    /// Jitter", 2015), so that requests that failed together do not come back together. Never longer than the maximum.
    pub fn backoff(&self, retry: u32, random: f64) -> Duration {
        let doubled = 1_u32.checked_shl(retry.saturating_sub(1)).unwrap_or(u32::MAX);
        let most = self.base.saturating_mul(doubled).min(self.max);
        most.mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::tests::config;

    fn policy(retry: &str) -> RetryPolicy {
        config(&format!("endpoints = ['a:1']\nretry = {{ {retry} }}")).retry.policy()
    }

    #[test]
    fn without_a_table_connects_and_resets_are_tried_twice() {
        let policy = config("endpoints = ['a:1']").retry.policy();
        assert_eq!((policy.attempts, policy.connect, policy.reset, policy.timeout), (2, true, true, false));
        assert_eq!(policy.allowance, Allowance { share: 100_000, floor: 20 });
        assert!(!policy.wants_answers() && !policy.wants(503, Some(14)));
    }

    #[test]
    fn statuses_and_grpc_codes_are_those_that_are_written() {
        let policy = policy("on = ['503', '520-529', 'UNAVAILABLE', 'ABORTED']");
        assert!(policy.wants(503, None) && policy.wants(525, None) && !policy.wants(502, None) && !policy.wants(200, None));
        assert!(policy.wants(200, Some(14)) && policy.wants(200, Some(10)) && !policy.wants(200, Some(0)));
        assert!(!policy.wants(200, Some(255)) && !policy.connect);
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum_and_is_fully_jittered() {
        let policy = policy("backoff = { base = '10ms', max = '55ms' }");
        let most: Vec<u128> = (1..=5).map(|retry| policy.backoff(retry, 1.0).as_millis()).collect();
        assert_eq!(most, [10, 20, 40, 55, 55]);
        assert_eq!(policy.backoff(3, 0.0), Duration::ZERO);
        assert_eq!(policy.backoff(3, 0.5), Duration::from_millis(20));
        assert_eq!(policy.backoff(u32::MAX, 1.0), Duration::from_millis(55));
    }
}
