//! The store in memory: sharded, bounded in bytes, with what is being filled inside the bound, O(1) for everything that a request
//! does.
//!
//! A new answer enters a small window in order of use, which it shares with what is coming in; what leaves the window, and what
//! does not fit into it, has to be asked for more often lately than what it would push out of the main part (W-TinyLFU,
//! [`super::sketch`]). So a scan over everything once does not flush what is asked for all the time.
//!
//! What is pushed out while clients are being answered with it stays in memory until the last of them has it, and is in the bound
//! until then. Where slow clients hold so much that nothing else has room, answers pass through unstored.
//!
//! All keys of one URL stand in one shard, linked to each other: that is what an unsafe request invalidates. Purges by
//! anything else walk over all shards, one lock at a time, and are for operators.

mod shard;

use super::entry::{Entry, Expired};
use super::key::{Key, KeyHasher};
use super::purge::{Purge, Recent};
use crate::telemetry::histogram::Histogram;
use http::HeaderMap;
use parking_lot::Mutex;
use shard::Shard;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Shards are not smaller than this, so that what is large for a cache is not too large for its part of it.
const SHARD_MIN: u64 = 8 << 20;
const SHARDS_MAX: u64 = 64;
pub const CAPACITY_MIN: u64 = 1 << 20;
pub const CAPACITY_MAX: u64 = 1 << 40;

/// One look-up of so many is timed: two looks at the clock and two atomic additions would be a tenth of what the others cost.
pub const TIMED: u32 = 16;

/// Whether a look-up tells how much a key is asked for. Each request counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    Once,
    /// The request has looked before.
    Not,
    /// If there is nothing, the request will look again.
    IfFound,
}

#[derive(Debug)]
pub struct MemoryStore {
    shards: Box<[Mutex<Shard>]>,
    pub hasher: KeyHasher,
    capacity: u64,
    recent: Recent,
    evicted: AtomicU64,
    rejected: AtomicU64,
    /// How long look-ups took, the wait for a shard among it: one of [`TIMED`].
    lookups: Arc<Histogram>,
}

/// What a scrape shows.
#[derive(Debug, Clone, Default)]
pub struct MemoryStats {
    pub capacity: u64,
    pub stored: u64,
    pub filling: u64,
    /// No longer stored, and still being sent.
    pub leaving: u64,
    pub entries: u64,
    pub evicted: u64,
    /// Answers that were not worth what they would have pushed out.
    pub rejected: u64,
    pub lookups: Arc<Histogram>,
}

impl MemoryStore {
    /// `capacity` in bytes, with all overhead as it is estimated.
    pub fn new(capacity: u64) -> Self {
        let count = (capacity / SHARD_MIN).clamp(1, SHARDS_MAX);
        let budget = capacity / count;
        let shards = (0..count).map(|_| Mutex::new(Shard::new(budget))).collect();
        MemoryStore {
            shards,
            hasher: KeyHasher::default(),
            capacity,
            recent: Recent::default(),
            evicted: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            lookups: Arc::default(),
        }
    }

    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    fn shard(&self, base_hash: u64) -> Option<&Mutex<Shard>> {
        let count = u64::try_from(self.shards.len()).unwrap_or(1).max(1);
        // The high bits: the maps within a shard use the low ones.
        self.shards.get(usize::try_from((base_hash >> 32) % count).unwrap_or(0))
    }

    /// The newest stored response under this key that may be selected for a request with these fields.
    pub fn get(&self, bytes: &[u8], hash: u64, base_hash: u64, request: &HeaderMap, counts: Counts) -> Option<Arc<Entry>> {
        let begun = (fastrand::u32(..TIMED) == 0).then(Instant::now);
        let found = self.shard(base_hash)?.lock().get(bytes, hash, counts, |entry| entry.selecting.matches(request));
        if let Some(begun) = begun {
            self.lookups.observe(begun.elapsed());
        }
        found
    }

    /// All stored responses under this key, newest first.
    pub fn variants(&self, key: &Key) -> Vec<Arc<Entry>> {
        self.shard(key.base_hash).map(|shard| shard.lock().variants(&key.bytes, key.hash)).unwrap_or_default()
    }

    /// What the store was told to forget so far; see [`MemoryStore::insert`].
    pub fn epoch(&self) -> u64 {
        self.recent.epoch()
    }

    /// Whether what was asked for when the epoch was `since` may be of the past: a purge, or an unsafe request, has come between.
    pub fn may_be_purged(&self, since: u64, key: &Key) -> bool {
        self.recent.may_hit(since, key)
    }

    /// Takes in a response that was asked for when the epoch was `since`, in place of `reserved` bytes that were set aside for it.
    /// `false` if it, or what it is, was purged meanwhile; it is in the bound all the same for as long as it exists.
    pub fn insert(&self, key: &Arc<Key>, entry: Arc<Entry>, max_variants: usize, since: u64, reserved: u64) -> bool {
        let Some(shard) = self.shard(key.base_hash) else { return false };
        let mut shard = shard.lock();
        shard.release(reserved);
        shard.hold(&entry);
        // Under the lock: a purge notes itself before it takes the locks, so one of the two sees the other.
        if self.recent.hit(since, key, &entry) {
            return false;
        }
        let place = shard.insert(key, entry, max_variants);
        let (evicted, rejected) = shard.settle(place);
        self.evicted.fetch_add(evicted, Ordering::Relaxed);
        self.rejected.fetch_add(rejected, Ordering::Relaxed);
        true
    }

    /// Takes one entry out, if it is still the one that is there.
    pub fn remove(&self, key: &Key, entry: &Arc<Entry>) {
        if let Some(shard) = self.shard(key.base_hash) {
            shard.lock().remove_entry(&key.bytes, key.hash, entry);
        }
    }

    /// Sets bytes aside for a response that is coming in. `false`: what is there is worth more, or nothing of it can go.
    pub fn reserve(&self, key: &Key, bytes: u64) -> bool {
        let Some(shard) = self.shard(key.base_hash) else { return false };
        let mut shard = shard.lock();
        let (fits, (evicted, rejected)) = shard.reserve(key.hash, bytes);
        self.evicted.fetch_add(evicted, Ordering::Relaxed);
        self.rejected.fetch_add(rejected, Ordering::Relaxed);
        fits
    }

    pub fn release(&self, key: &Key, bytes: u64) {
        if let Some(shard) = self.shard(key.base_hash) {
            shard.lock().release(bytes);
        }
    }

    /// Forgets, or marks stale, what the purge names, and everything of it that is coming in now. Returns how much it was.
    pub fn purge(&self, purge: &Purge) -> u64 {
        self.recent.note(purge);
        if let Some(url) = purge.url() {
            let hash = self.hasher.hash(url.as_bytes());
            let base = self.hasher.hash(super::url::base(url).as_bytes());
            return self.shard(base).map_or(0, |shard| shard.lock().purge_url(hash, url, purge.how()));
        }
        self.shards.iter().map(|shard| shard.lock().purge(purge)).fold(0, u64::saturating_add)
    }

    /// An unsafe request has changed what this URL stands for (RFC 9111 §4.4).
    pub fn invalidate(&self, url: &str) -> u64 {
        self.purge(&Purge::invalidation(url))
    }

    pub fn stats(&self) -> MemoryStats {
        let mut stats = MemoryStats {
            capacity: self.capacity,
            evicted: self.evicted.load(Ordering::Relaxed),
            rejected: self.rejected.load(Ordering::Relaxed),
            lookups: Arc::clone(&self.lookups),
            ..MemoryStats::default()
        };
        for shard in &self.shards {
            let shard = shard.lock();
            stats.stored = stats.stored.saturating_add(shard.stored());
            stats.filling = stats.filling.saturating_add(shard.filling());
            stats.leaving = stats.leaving.saturating_add(shard.leaving());
            stats.entries = stats.entries.saturating_add(shard.entries());
        }
        stats
    }
}

/// What is to become of the entries that a purge finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Remove,
    Expire(Expired),
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::entry;
    use super::*;

    fn key(store: &MemoryStore, name: &str, who: &str) -> Arc<Key> {
        let bytes = format!("{name} {who}").into_bytes();
        let url = format!("http://h/{name}");
        let (hash, url_hash) = (store.hasher.hash(&bytes), store.hasher.hash(url.as_bytes()));
        let base_hash = url_hash;
        Arc::new(Key { bytes: bytes.into(), hash, url_hash, base_hash, url: url.into(), route: "r".into() })
    }

    fn get(store: &MemoryStore, key: &Key) -> Option<Arc<Entry>> {
        store.get(&key.bytes, key.hash, key.base_hash, &HeaderMap::new(), Counts::Once)
    }

    #[test]
    fn the_bound_holds_for_any_sizes_with_what_is_coming_in_and_being_sent() {
        let store = MemoryStore::new(1 << 20);
        let mut random = fastrand::Rng::with_seed(1);
        let mut filling = Vec::new();
        let mut sending = std::collections::VecDeque::new();
        for round in 0..5_000 {
            let key = key(&store, &random.u32(0..500).to_string(), "");
            match random.u8(0..5) {
                0 => drop(get(&store, &key)),
                1 => {
                    let bytes = random.u64(1..60_000);
                    if store.reserve(&key, bytes) {
                        filling.push((key, bytes));
                    }
                }
                2 if !filling.is_empty() => {
                    let (key, bytes) = filling.swap_remove(random.usize(..filling.len()));
                    if random.bool() {
                        let entry = Arc::new(entry(bytes as usize, &[]));
                        store.insert(&key, entry, 16, store.epoch(), bytes);
                    } else {
                        store.release(&key, bytes);
                    }
                }
                3 => sending.extend(get(&store, &key)),
                _ => drop(sending.pop_front()),
            }
            if sending.len() > 20 {
                sending.pop_front();
            }
            let stats = store.stats();
            assert!(stats.stored + stats.filling + stats.leaving <= stats.capacity, "round {round}: {stats:?}");
        }
        assert!(store.stats().evicted + store.stats().rejected > 100);
        drop(sending);
        assert_eq!(store.stats().leaving, 0);
    }

    #[test]
    fn what_is_being_sent_is_in_the_bound_when_it_is_stored_no_more() {
        let store = MemoryStore::new(1 << 20);
        let one = key(&store, "x", "");
        store.insert(&one, Arc::new(entry(500_000, &[])), 16, store.epoch(), 0);
        let sent = get(&store, &one).unwrap();
        store.purge(&Purge::new(super::super::purge::What::Everything, false));
        let stats = store.stats();
        assert!(stats.stored == 0 && stats.leaving > 500_000, "{stats:?}");
        assert!(!store.reserve(&key(&store, "y", ""), 600_000), "there is no room for it");
        drop(sent);
        assert!(store.reserve(&key(&store, "y", ""), 600_000));
    }

    #[test]
    fn a_scan_does_not_flush_what_is_asked_for_all_the_time() {
        let store = MemoryStore::new(1 << 20);
        // As a request does: look, set aside, insert.
        let ask = |key: &Arc<Key>| {
            if get(&store, key).is_none() && store.reserve(key, 10_000) {
                store.insert(key, Arc::new(entry(10_000, &[])), 16, store.epoch(), 10_000);
            }
        };
        let hot: Vec<_> = (0..20).map(|n| key(&store, &format!("hot{n}"), "")).collect();
        (0..6).for_each(|_| hot.iter().for_each(ask));
        for n in 0..2_000 {
            ask(&key(&store, &format!("scan{n}"), ""));
        }
        let left = hot.iter().filter(|key| get(&store, key).is_some()).count();
        // The keys are hashed anew each time. Without admission none would be left.
        assert!(left >= 15, "{left} of 20 left");
    }

    #[test]
    fn an_unsafe_request_reaches_every_key_of_its_url() {
        let store = MemoryStore::new(1 << 20);
        let (a, b, c) = (key(&store, "x", "a"), key(&store, "x", "b"), key(&store, "y", "a"));
        for key in [&a, &b, &c] {
            assert!(store.insert(key, Arc::new(entry(10, &[])), 16, store.epoch(), 0));
        }
        assert_eq!(store.invalidate("http://h/x"), 2);
        let expired = |key: &Key| get(&store, key).unwrap().expired();
        assert_eq!((expired(&a), expired(&b), expired(&c)), (Expired::Invalid, Expired::Invalid, Expired::No));
    }

    #[test]
    fn what_was_purged_while_it_came_in_is_not_stored() {
        let store = MemoryStore::new(1 << 20);
        let key = key(&store, "x", "");
        let since = store.epoch();
        store.purge(&Purge::tag("t", false));
        assert!(store.insert(&key, Arc::new(entry(10, &["other"])), 16, since, 0), "not what was purged");
        assert!(!store.insert(&key, Arc::new(entry(10, &["t"])), 16, since, 0));
        assert!(store.insert(&key, Arc::new(entry(10, &["t"])), 16, store.epoch(), 0), "asked for afterwards");
        assert_eq!(store.purge(&Purge::tag("t", false)), 1);
        assert!(get(&store, &key).is_none());
    }

    #[test]
    fn variants_are_bounded_and_the_oldest_goes() {
        let store = MemoryStore::new(1 << 20);
        let key = key(&store, "x", "");
        let with = |n: u32| {
            let request: HeaderMap = [(http::header::ACCEPT, n.to_string().parse().unwrap())].into_iter().collect();
            let response: HeaderMap = [(http::header::VARY, "accept".parse().unwrap())].into_iter().collect();
            let selecting = super::super::vary::Selecting::of(&response, &request).unwrap();
            let mut entry = entry(10, &[]);
            entry.selecting = selecting;
            (request, Arc::new(entry))
        };
        for n in 0..6 {
            store.insert(&key, with(n).1, 4, store.epoch(), 0);
        }
        assert_eq!(store.variants(&key).len(), 4);
        let found = |n| store.get(&key.bytes, key.hash, key.base_hash, &with(n).0, Counts::Once).is_some();
        assert_eq!((found(0), found(1), found(2), found(5)), (false, false, true, true));
    }
}
