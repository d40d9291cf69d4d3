//! What is counted for the cache of each route.

use super::{Counter, Gauge};
use crate::cache::memory::MemoryStats;
use crate::cache::policy::Refusal;
use crate::cache::redis::RedisTier;
use std::sync::Arc;

/// How requests to a route with a cache were answered. One request counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheResult {
    Hit,
    /// A stored answer past its lifetime, as directives or the configuration allow.
    Stale,
    /// A stored answer that the upstream has confirmed for this request.
    Revalidated,
    Miss,
    /// A miss that waited for the fetch of another.
    Collapsed,
    /// Nothing was looked up; why is in `gatewright_cache_bypass_total`.
    Bypass,
}

const RESULTS: [&str; 6] = ["hit", "stale", "revalidated", "miss", "collapsed", "bypass"];

/// Why nothing was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bypass {
    Method,
    Body,
    Upgrade,
    /// `no-store` in the request.
    Request,
    /// `If-Match` and `If-Unmodified-Since`, which only the origin can answer.
    Precondition,
    /// What was asked for could not be shared a moment ago.
    Unshared,
    /// The fetch that was waited for took too long, or could not be used.
    Wait,
}

const BYPASSES: [&str; 7] = ["method", "body", "upgrade", "request", "precondition", "unshared", "wait"];

impl CacheResult {
    pub fn as_str(self) -> &'static str {
        RESULTS.get(self as usize).copied().unwrap_or_default()
    }
}

impl Bypass {
    pub fn as_str(self) -> &'static str {
        BYPASSES.get(self as usize).copied().unwrap_or_default()
    }
}

#[derive(Debug, Default)]
pub struct CacheMetrics {
    results: [Counter; RESULTS.len()],
    bypasses: [Counter; BYPASSES.len()],
    refusals: [Counter; Refusal::ALL.len()],
    /// Body bytes that came from the cache.
    pub bytes: Counter,
    /// Hits that no session was made for.
    pub direct_hits: Counter,
    /// Fetches in the background of answers that were stale, or would be soon.
    pub refreshes: Counter,
    /// Requests that wait for the fetch of another now.
    pub waiting: Gauge,
    pub invalidations: Counter,
    pub stored: Counter,
}

impl CacheMetrics {
    pub fn answered(&self, result: CacheResult) {
        if let Some(counter) = self.results.get(result as usize) {
            counter.increment();
        }
    }

    pub fn bypassed(&self, why: Bypass) {
        self.answered(CacheResult::Bypass);
        if let Some(counter) = self.bypasses.get(why as usize) {
            counter.increment();
        }
    }

    pub fn refused(&self, why: Refusal) {
        if let Some(counter) = self.refusals.get(why as usize) {
            counter.increment();
        }
    }

    pub fn results(&self) -> impl Iterator<Item = (&'static str, u64)> {
        RESULTS.iter().zip(&self.results).map(|(name, counter)| (*name, counter.get()))
    }

    pub fn bypasses(&self) -> impl Iterator<Item = (&'static str, u64)> {
        BYPASSES.iter().zip(&self.bypasses).map(|(name, counter)| (*name, counter.get()))
    }

    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Refusal::ALL.iter().zip(&self.refusals).map(|(why, counter)| (why.as_str(), counter.get()))
    }
}

/// What a scrape shows of the cache.
#[derive(Debug, Clone, Default)]
pub struct CacheSample {
    /// Sorted by route.
    pub routes: Vec<(String, Arc<CacheMetrics>)>,
    pub memory: Option<MemoryStats>,
    pub redis: Option<Arc<RedisTier>>,
}
