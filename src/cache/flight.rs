//! Fetches under way, so that any number of misses for the same thing make one of them.

use super::fill::Fill;
use super::key::{Key, KeyHasher, part};
use super::vary::{self, Selecting};
use http::{HeaderMap, header};
use parking_lot::Mutex;
use pingora::http::RequestHeader;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SHARDS: u64 = 16;
/// Answers that cannot be stored are remembered for so long, in milliseconds, so that those who ask do not wait for each other.
const REMEMBER_MS: u64 = 5_000;
/// And so many of them in a shard.
const REMEMBERED: usize = 4_096;

type Hashed<K, V> = HashMap<K, V, foldhash::quality::RandomState>;

#[derive(Debug, Default)]
struct Shard {
    flights: Hashed<Box<[u8]>, Arc<Fill>>,
    /// Keys by hash, until when. Wrong by chance for one key in many, and then only not collapsed.
    unshared: Hashed<u64, u64>,
}

#[derive(Debug)]
pub struct Flights {
    shards: Box<[Mutex<Shard>]>,
    pub under_way: AtomicU64,
}

impl Default for Flights {
    fn default() -> Self {
        Flights { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), under_way: AtomicU64::new(0) }
    }
}

/// Sets apart those who send credentials. What they are answered is for themselves alone unless it says otherwise (RFC 9111 §3.5),
/// which tells nothing of what others are.
const AUTHORIZED: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash by which it is remembered whether what a key stands for can be shared.
pub fn crowd(key: &Key, request: &HeaderMap) -> u64 {
    if request.contains_key(header::AUTHORIZATION) { key.hash ^ AUTHORIZED } else { key.hash }
}

/// What requests must have in common to share a fetch.
#[derive(Debug, Clone)]
pub struct Name {
    bytes: Box<[u8]>,
    pub hash: u64,
}

impl Name {
    /// For a fetch of the whole: the key, the fields that select among its answers as far as they are known, and whether it comes with
    /// credentials.
    pub fn whole(key: &Key, selecting: Option<&Selecting>, request: &HeaderMap, hasher: &KeyHasher) -> Self {
        let mut bytes = key.bytes.to_vec();
        for (name, _) in selecting.iter().flat_map(|selecting| selecting.fields.iter()) {
            part(&mut bytes, name.as_str().as_bytes());
            part(&mut bytes, vary::normalised(name, request).as_bytes());
        }
        if request.contains_key(header::AUTHORIZATION) {
            part(&mut bytes, header::AUTHORIZATION.as_str().as_bytes());
        }
        let hash = if bytes.len() == key.bytes.len() { key.hash } else { hasher.hash(&bytes) };
        Name { bytes: bytes.into(), hash }
    }

    /// For a fetch that goes with the client's own method, conditions and range.
    pub fn as_asked(&self, head: &RequestHeader, hasher: &KeyHasher) -> Self {
        let mut bytes = self.bytes.to_vec();
        part(&mut bytes, head.method.as_str().as_bytes());
        for name in [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_RANGE, header::RANGE] {
            for value in head.headers.get_all(&name) {
                part(&mut bytes, name.as_str().as_bytes());
                part(&mut bytes, value.as_bytes());
            }
        }
        let hash = hasher.hash(&bytes);
        Name { bytes: bytes.into(), hash }
    }
}

/// Whose fetch it is.
pub enum Joined {
    /// The caller's: it must be started, and left when it is over.
    Leader(Arc<Fill>),
    Follower(Arc<Fill>),
}

impl Flights {
    fn shard(&self, hash: u64) -> Option<&Mutex<Shard>> {
        self.shards.get(usize::try_from(hash % SHARDS).unwrap_or(0))
    }

    /// The fetch of this name that can still be joined.
    pub fn open(&self, name: &Name) -> Option<Arc<Fill>> {
        self.shard(name.hash)?.lock().flights.get(&name.bytes).filter(|fill| fill.is_open()).map(Arc::clone)
    }

    /// Joins the fetch of this name, or begins one made by `make`.
    pub fn join(&self, name: &Name, make: impl FnOnce() -> Arc<Fill>) -> Joined {
        let Some(shard) = self.shard(name.hash) else { return Joined::Leader(make()) };
        let mut shard = shard.lock();
        if let Some(fill) = shard.flights.get(&name.bytes).filter(|fill| fill.is_open()) {
            return Joined::Follower(Arc::clone(fill));
        }
        let fill = make();
        if shard.flights.insert(name.bytes.clone(), Arc::clone(&fill)).is_none() {
            self.under_way.fetch_add(1, Ordering::Relaxed);
        }
        Joined::Leader(fill)
    }

    /// The fetch is over, or others cannot use it.
    pub fn leave(&self, name: &Name, fill: &Arc<Fill>) {
        let Some(shard) = self.shard(name.hash) else { return };
        let mut shard = shard.lock();
        if shard.flights.get(&name.bytes).is_some_and(|known| Arc::ptr_eq(known, fill)) {
            shard.flights.remove(&name.bytes);
            self.under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Remembers that what this key stands for cannot be shared.
    pub fn note_unshared(&self, hash: u64, now_ms: u64) {
        let Some(shard) = self.shard(hash) else { return };
        let mut shard = shard.lock();
        if shard.unshared.len() >= REMEMBERED {
            shard.unshared.retain(|_, until| *until > now_ms);
            if shard.unshared.len() >= REMEMBERED {
                shard.unshared.clear();
            }
        }
        shard.unshared.insert(hash, now_ms.saturating_add(REMEMBER_MS));
    }

    pub fn note_shared(&self, hash: u64) {
        if let Some(shard) = self.shard(hash) {
            shard.lock().unshared.remove(&hash);
        }
    }

    pub fn is_unshared(&self, hash: u64, now_ms: u64) -> bool {
        self.shard(hash).is_some_and(|shard| shard.lock().unshared.get(&hash).is_some_and(|until| *until > now_ms))
    }
}
