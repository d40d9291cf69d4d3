//! The second tier: answers that gateways share through Redis, and purges that reach all of them.
//!
//! A request never waits for Redis longer than `redis.timeout`, and only where it would have to go upstream anyway; what is stored is
//! handed to a thread of its own through a bounded queue. Whatever goes wrong (away, slow, flushed, bytes that are not what they
//! were) is a miss.
//!
//! What stands in Redis, below the prefix of `[redis]`; the braces keep together in a cluster what is asked for together:
//!
//! - `cache:u:{HASH}`: a hash for each URL, with one field for each answer, in pieces of 256 KiB ([`codec`]);
//! - `cache:i:{HASH}`: when the URL was last invalidated; what is older does not count;
//! - `cache:{PREFIX}:generation`: raised by each purge that names more than one URL; what was fetched in an earlier one does not
//!   count;
//! - `cache:{PREFIX}:sequence`: raised by every purge, so that a gateway that was away knows that it has missed one, and forgets all.
//!
//! Each server has its own worker ([`worker`]), and one of them the counters: over a connection to that one the gateways tell
//! each other what is purged ([`hub`]).

mod codec;
mod hub;
mod worker;

use super::entry::Entry;
use super::key::Key;
use super::memory::MemoryStore;
use super::purge::Purge;
use super::url::base;
use crate::clock::SharedClock;
use crate::redis_link::{Access, Alive, Servers, slot_of, start};
use crate::telemetry::histogram::Histogram;
use crate::telemetry::metrics::Counter;
use http::HeaderMap;
use hub::{Announcement, Hub};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Look-ups and answers that wait for a server, and purges that wait to be told; more are dropped.
const QUEUE: usize = 1_024;
/// The longest that whatever no request waits for may take to be answered.
const PATIENCE: Duration = Duration::from_secs(1);
/// What look-ups and answers to keep may hold at a time of what stands in Redis, packed and unpacked, in pieces: 32 MiB. A larger
/// answer has all of it for itself.
const ROOM: u32 = 128;
/// How long a purge waits for the other gateways.
const ACKNOWLEDGE: Duration = Duration::from_secs(2);

/// What a scrape shows.
#[derive(Debug, Default)]
pub struct TierMetrics {
    pub hits: Counter,
    pub misses: Counter,
    /// Look-ups that got no answer in time, or none because Redis is away.
    pub failures: Counter,
    pub stored: Counter,
    /// Answers that were not handed over, and invalidations that were not told one by one, because there was no room for them.
    pub dropped: Counter,
    /// Entries that were not what they said they were.
    pub corrupt: Counter,
    /// How long look-ups took, of hits and misses together.
    pub lookups: Histogram,
}

enum Job {
    Get {
        url: UrlHash,
        key: Arc<Key>,
        request: Box<HeaderMap>,
        most: u64,
        answer: oneshot::Sender<Option<Entry>>,
    },
    Put {
        url: UrlHash,
        key: Arc<Key>,
        entry: Arc<Entry>,
        generation: u64,
    },
    /// What the current generation is.
    Generation(oneshot::Sender<u64>),
    /// Forgets a URL.
    Forget(UrlHash, oneshot::Sender<()>),
}

/// Stands for a URL without its query: the hash tag of what is stored of it.
struct UrlHash(String);

impl UrlHash {
    fn of(url: &str) -> Self {
        let mut sum = codec::sum(base(url).as_bytes());
        sum.truncate(32);
        UrlHash(sum)
    }

    fn slot(&self) -> u16 {
        slot_of(&[self.0.as_bytes()])
    }
}

struct Shared {
    servers: Servers<Shared>,
    prefix: Arc<str>,
    timeout: Duration,
    memory: Arc<MemoryStore>,
    clock: SharedClock,
    hub: Hub,
    /// Whether all of it can be asked, and purges are heard.
    whole: AtomicBool,
    generation: AtomicU64,
    room: Arc<Semaphore>,
    metrics: TierMetrics,
}

impl Shared {
    fn name_of(&self, what: &str) -> String {
        format!("{}:cache:{{{}}}:{what}", self.prefix, self.prefix)
    }

    /// The slot of the counters.
    fn hub_slot(&self) -> u16 {
        slot_of(&[self.prefix.as_bytes()])
    }
}

pub struct RedisTier {
    announcements: mpsc::Sender<Announcement>,
    shared: Arc<Shared>,
    _alive: Alive,
}

impl std::fmt::Debug for RedisTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedisTier")
    }
}

impl RedisTier {
    pub fn new(redis: Access, memory: Arc<MemoryStore>, clock: SharedClock) -> Self {
        let (announcements, waiting) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            servers: Servers::new(redis.topology),
            prefix: redis.prefix,
            timeout: redis.timeout,
            memory,
            clock,
            hub: Hub::new(waiting),
            whole: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            room: Arc::new(Semaphore::new(usize::try_from(ROOM).unwrap_or_default())),
            metrics: TierMetrics::default(),
        });
        let alive = if redis.connect { start(Arc::clone(&shared), "cache-redis") } else { Alive::not() };
        RedisTier { announcements, shared, _alive: alive }
    }

    pub fn metrics(&self) -> &TierMetrics {
        &self.shared.metrics
    }

    /// What is fetched from now on belongs to this generation.
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Relaxed)
    }

    /// The shared answer to a request with these fields; waits no longer than the budget.
    pub async fn get(&self, key: &Arc<Key>, request: &HeaderMap, most: u64) -> Option<Entry> {
        let metrics = &self.shared.metrics;
        let begun = std::time::Instant::now();
        let (answer, answered) = oneshot::channel();
        let url = UrlHash::of(&key.url);
        let node = self.shared.servers.reachable(|| url.slot());
        let job = Job::Get { url, key: Arc::clone(key), request: Box::new(request.clone()), most, answer };
        let found = match node.is_some_and(|node| node.ask(job)) {
            true => tokio::time::timeout(self.shared.timeout, answered).await.ok().and_then(Result::ok),
            false => None,
        };
        let Some(found) = found else {
            metrics.failures.increment();
            return None;
        };
        metrics.lookups.observe(begun.elapsed());
        if found.is_some() {
            metrics.hits.increment()
        } else {
            metrics.misses.increment()
        }
        found
    }

    /// Hands an answer over, if there is room for it in the queue.
    pub fn put(&self, key: &Arc<Key>, entry: &Arc<Entry>, generation: u64) {
        let url = UrlHash::of(&key.url);
        let node = self.shared.servers.reachable(|| url.slot());
        let job = Job::Put { url, key: Arc::clone(key), entry: Arc::clone(entry), generation };
        if !node.is_some_and(|node| node.ask(job)) {
            self.shared.metrics.dropped.increment();
        }
    }

    /// Takes effect in Redis first, then everywhere. Returns how many gateways have heard of it, and how many have done it.
    pub async fn purge(&self, purge: &Purge) -> Option<(u64, u64)> {
        let told = async {
            // A URL whose server is away may be there again with what it had: then all that is stored ceases to count.
            let raise = match purge.url() {
                Some(url) => !self.forget(url).await,
                None => true,
            };
            let (answer, answered) = oneshot::channel();
            let announcement = Announcement { purge: purge.clone(), raise, answer: Some(answer) };
            self.announcements.try_send(announcement).ok()?;
            answered.await.ok()
        };
        tokio::time::timeout(ACKNOWLEDGE.saturating_mul(2), told).await.ok()?
    }

    /// Whether it is forgotten.
    async fn forget(&self, url: &str) -> bool {
        let url = UrlHash::of(url);
        let (answer, answered) = oneshot::channel();
        let node = self.shared.servers.reachable(|| url.slot());
        let sent = node.is_some_and(|node| node.ask(Job::Forget(url, answer)));
        sent && matches!(tokio::time::timeout(PATIENCE, answered).await, Ok(Ok(())))
    }

    /// The same without waiting, for what unsafe requests invalidate.
    pub fn invalidate(self: &Arc<Self>, url: &str) {
        let (tier, url) = (Arc::clone(self), url.to_owned());
        tokio::spawn(async move {
            // As for a purge: what could not be forgotten there must not count when it is back.
            let raise = !tier.forget(&url).await;
            let announcement = Announcement { purge: Purge::invalidation(&url), raise, answer: None };
            if tier.announcements.try_send(announcement).is_err() {
                tier.shared.hub.owe();
                tier.shared.metrics.dropped.increment();
            }
        });
    }
}
