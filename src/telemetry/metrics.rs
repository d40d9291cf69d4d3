//! The numbers that Prometheus reads.
//!
//! Whoever counts holds a handle to a struct of atomics, got when the snapshot was compiled; a count is one atomic
//! addition and no label is ever looked up by text on the request path. Labels come from the config and from fixed sets
//! only, so that no client can make a series. Series that have counted nothing are left out where the set is large
//! (methods, classes, codes).
//!
//! [`METRICS`] names every metric, and `encode` writes nothing else.
//!
//! The exposition is Prometheus's text format 0.0.4, written here and not by `prometheus-client`: that library writes
//! OpenMetrics only, where a counter's `TYPE` line lacks the `_total` of its samples, which `promtool check metrics`
//! refuses, and each of its metrics would be an allocation behind a lock in a family of labels.

mod auth;
mod cache;
mod encode;
mod gateway;
mod label;
mod limit;
mod listener;
mod resilience;
mod route;
mod table;
mod upstream;

pub use auth::{AuthMetrics, AuthOutcome, SourceSample};
pub use cache::{Bypass, CacheMetrics, CacheResult, CacheSample};
pub use encode::{AuthSample, CONTENT_TYPE, CertificateSample, KeySample, LogSample, MetricsView, encode};
pub use gateway::{ConfigState, GatewayMetrics};
pub use label::{METHODS, Method, STATUS_CLASSES, StatusClass};
pub use limit::{LimitMetrics, LimitsSample, QueueMetrics, RedisLost, RedisMetrics};
pub use listener::{ListenerMetrics, ReasonNames, Reasons};
pub use resilience::{BreakerSample, EjectionSample, OverloadSample, ResilienceSample};
pub use route::{NO_ROUTE, RouteMetrics, UnderWay};
pub use table::{Kind, METRICS, Metric};
pub use upstream::{DiscoverySample, EndpointSample, MirrorSample, UpstreamMetrics};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn increment(&self) {
        self.add(1);
    }

    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many of something there are now.
#[derive(Debug, Default)]
pub struct Gauge(Arc<AtomicU64>);

/// Stands for one of what a [`Gauge`] counts. A panic or a dropped future ends it like any other end.
#[derive(Debug)]
pub struct GaugeGuard(Arc<AtomicU64>);

impl Gauge {
    /// Counts one more, until the guard is dropped.
    pub fn enter(&self) -> GaugeGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        GaugeGuard(Arc::clone(&self.0))
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        // Each guard takes back the one that it added, so this cannot go below zero.
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_falls_with_its_guards_even_in_a_panic() {
        let gauge = Gauge::default();
        let first = gauge.enter();
        let second = gauge.enter();
        assert_eq!(gauge.get(), 2);
        drop(first);
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = second;
            std::panic::resume_unwind(Box::new("in a hook"));
        }));
        assert!(unwound.is_err());
        assert_eq!(gauge.get(), 0);
    }
}
