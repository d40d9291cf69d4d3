//! Fetches under way, so that any number of misses for the same thing make one of them.

use super::fill::Fill;
use parking_lot::Mutex;
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

    /// Joins the fetch for `id`, or begins one made by `make`.
    pub fn join(&self, id: &[u8], hash: u64, make: impl FnOnce() -> Arc<Fill>) -> Joined {
        let Some(shard) = self.shard(hash) else { return Joined::Leader(make()) };
        let mut shard = shard.lock();
        if let Some(fill) = shard.flights.get(id).filter(|fill| fill.is_open()) {
            return Joined::Follower(Arc::clone(fill));
        }
        let fill = make();
        if shard.flights.insert(id.into(), Arc::clone(&fill)).is_none() {
            self.under_way.fetch_add(1, Ordering::Relaxed);
        }
        Joined::Leader(fill)
    }

    /// The fetch is over, or others cannot use it.
    pub fn leave(&self, id: &[u8], hash: u64, fill: &Arc<Fill>) {
        let Some(shard) = self.shard(hash) else { return };
        let mut shard = shard.lock();
        if shard.flights.get(id).is_some_and(|known| Arc::ptr_eq(known, fill)) {
            shard.flights.remove(id);
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
