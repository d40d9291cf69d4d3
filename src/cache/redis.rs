//! The second tier: answers that gateways share through Redis, and purges that reach all of them.
//!
//! A request never waits for Redis longer than `redis.timeout`, and only where it would have to go upstream anyway; what is stored is
//! handed to a thread of its own through a bounded queue. Whatever goes wrong (away, slow, flushed, bytes that are not what they
//! were) is a miss.
//!
//! What stands in Redis, below the prefix of `[redis]`:
//!
//! - `cache:u:HASH`: a hash for each URL, with one field for each answer, in pieces of 256 KiB ([`codec`]);
//! - `cache:i:HASH`: when the URL was last invalidated; what is older does not count;
//! - `cache:generation`: raised by each purge that names more than one URL; what was fetched in an earlier one does not count;
//! - `cache:sequence`: raised by every purge, so that a gateway that was away knows that it has missed one, and forgets all.

mod codec;
mod worker;

use super::entry::Entry;
use super::key::Key;
use super::memory::MemoryStore;
use super::purge::Purge;
use crate::clock::SharedClock;
use crate::telemetry::metrics::Counter;
use http::HeaderMap;
use redis::IntoConnectionInfo;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Look-ups and answers that wait for the worker; more are dropped.
const QUEUE: usize = 1_024;
/// How long a purge waits for the other gateways.
const ACKNOWLEDGE: Duration = Duration::from_secs(2);

pub struct TierOptions {
    pub info: redis::ConnectionInfo,
    pub timeout: Duration,
    pub prefix: String,
}

impl TierOptions {
    /// `None` for what is no URL of a Redis, which is reported where it is read.
    pub fn new(url: &str, timeout: Duration, prefix: &str) -> Option<Self> {
        Some(TierOptions { info: url.into_connection_info().ok()?, timeout, prefix: prefix.to_owned() })
    }
}

/// What a scrape shows.
#[derive(Debug, Default)]
pub struct TierMetrics {
    pub hits: Counter,
    pub misses: Counter,
    /// Look-ups that got no answer in time, or none because Redis is away.
    pub failures: Counter,
    pub stored: Counter,
    /// Answers that were not handed over because the queue was full.
    pub dropped: Counter,
    /// Entries that were not what they said they were.
    pub corrupt: Counter,
    /// Microseconds that look-ups took, of hits and misses together.
    pub micros: Counter,
}

enum Job {
    Get {
        key: Arc<Key>,
        request: Box<HeaderMap>,
        most: u64,
        answer: oneshot::Sender<Option<Entry>>,
    },
    Put {
        key: Arc<Key>,
        entry: Arc<Entry>,
        generation: u64,
    },
    /// The second part: gateways that have heard of it and gateways that have done it.
    Purge {
        purge: Purge,
        answer: Option<oneshot::Sender<(u64, u64)>>,
    },
}

#[derive(Debug)]
struct Shared {
    up: AtomicBool,
    generation: AtomicU64,
    metrics: TierMetrics,
}

#[derive(Debug)]
pub struct RedisTier {
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
    timeout: Duration,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl RedisTier {
    /// `connect`: begin to; else it is only made to see whether a configuration is right.
    pub fn new(options: TierOptions, memory: Arc<MemoryStore>, clock: SharedClock, connect: bool) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let shared =
            Arc::new(Shared { up: AtomicBool::new(false), generation: AtomicU64::new(0), metrics: TierMetrics::default() });
        let timeout = options.timeout;
        if connect {
            worker::start(options, memory, clock, queue, Arc::clone(&shared));
        }
        RedisTier { jobs, shared, timeout }
    }

    pub fn metrics(&self) -> &TierMetrics {
        &self.shared.metrics
    }

    pub fn is_up(&self) -> bool {
        self.shared.up.load(Ordering::Relaxed)
    }

    /// What is fetched from now on belongs to this generation.
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Relaxed)
    }

    /// The shared answer to a request with these fields; waits no longer than the budget.
    pub async fn get(&self, key: &Arc<Key>, request: &HeaderMap, most: u64) -> Option<Entry> {
        let metrics = &self.shared.metrics;
        if !self.is_up() {
            metrics.failures.increment();
            return None;
        }
        let begun = std::time::Instant::now();
        let (answer, answered) = oneshot::channel();
        let job = Job::Get { key: Arc::clone(key), request: Box::new(request.clone()), most, answer };
        let found = match self.jobs.try_send(job) {
            Ok(()) => tokio::time::timeout(self.timeout, answered).await,
            Err(_) => {
                metrics.failures.increment();
                return None;
            }
        };
        let Ok(Ok(found)) = found else {
            metrics.failures.increment();
            return None;
        };
        metrics.micros.add(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
        if found.is_some() {
            metrics.hits.increment()
        } else {
            metrics.misses.increment()
        }
        found
    }

    /// Hands an answer over, if there is room for it in the queue.
    pub fn put(&self, key: &Arc<Key>, entry: &Arc<Entry>, generation: u64) {
        let job = Job::Put { key: Arc::clone(key), entry: Arc::clone(entry), generation };
        if !self.is_up() || self.jobs.try_send(job).is_err() {
            self.shared.metrics.dropped.increment();
        }
    }

    /// Tells the other gateways. Returns how many have heard of it, and how many have done it.
    pub async fn purge(&self, purge: &Purge) -> Option<(u64, u64)> {
        let (answer, answered) = oneshot::channel();
        self.jobs.try_send(Job::Purge { purge: purge.clone(), answer: Some(answer) }).ok()?;
        tokio::time::timeout(ACKNOWLEDGE.saturating_mul(2), answered).await.ok()?.ok()
    }

    /// The same without waiting, for what unsafe requests invalidate.
    pub fn tell(&self, purge: Purge) {
        if self.jobs.try_send(Job::Purge { purge, answer: None }).is_err() {
            self.shared.metrics.dropped.increment();
        }
    }
}
