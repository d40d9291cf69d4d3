//! What is counted for limits.

use super::{Counter, Gauge};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The decisions of one limit on one route.
#[derive(Debug, Default)]
pub struct LimitMetrics {
    pub allowed: Counter,
    pub refused: Counter,
    /// What would have been refused, had the filter not been in shadow mode.
    pub shadowed: Counter,
}

/// The queues of the `concurrency` filters of one route.
#[derive(Debug, Default)]
pub struct QueueMetrics {
    /// Requests that wait for a place now.
    pub waiting: Gauge,
}

/// The shared store, as this gateway sees it.
#[derive(Debug, Default)]
pub struct RedisMetrics {
    up: AtomicBool,
    /// Times that it came to be reachable, and times that it ceased to be.
    pub recoveries: Counter,
    pub outages: Counter,
    /// Decisions that it made.
    pub decisions: Counter,
    /// Pipelines that carried them: decisions divided by pipelines is the pipelining factor.
    pub pipelines: Counter,
    /// Decisions that were made without it because it is away, or was too slow.
    pub fallbacks: Counter,
    /// Answers that were errors, or that made no sense.
    pub errors: Counter,
    pub lost: Arc<RedisLost>,
}

/// What Redis was to be told and does not know for certain; goes on when a reload names another Redis.
#[derive(Debug, Default)]
pub struct RedisLost {
    /// Charges that it was not told of, or has not confirmed.
    pub charges: Counter,
    /// Uses of refused requests that it was not told to give back, or has not confirmed.
    pub returns: Counter,
}

impl RedisMetrics {
    pub fn new(lost: Arc<RedisLost>) -> Self {
        RedisMetrics { lost, ..RedisMetrics::default() }
    }

    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Returns whether this is a change.
    pub fn set_up(&self, up: bool) -> bool {
        let changed = self.up.swap(up, Ordering::Relaxed) != up;
        if changed {
            if up { self.recoveries.increment() } else { self.outages.increment() }
        }
        changed
    }
}

/// What a scrape shows of all limits.
#[derive(Debug, Clone, Default)]
pub struct LimitsSample {
    /// Route, limit, counts; sorted.
    pub limits: Vec<(String, String, Arc<LimitMetrics>)>,
    /// Route, those of its requests that wait in a queue; sorted.
    pub queues: Vec<(String, u64)>,
    /// Keys forgotten early, decisions in a shared bucket, bytes of the table.
    pub local: Option<(u64, u64, u64)>,
    pub redis: Option<Arc<RedisMetrics>>,
    /// Gateways that share it, as last known.
    pub redis_gateways: u64,
    /// Uses held on leases.
    pub redis_held: u64,
    /// Decisions by leases.
    pub redis_leased: u64,
    pub shield_refused: Option<u64>,
    /// By listener.
    pub listener_shields: Vec<(String, u64)>,
}
