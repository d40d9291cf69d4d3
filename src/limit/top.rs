//! The keys that were refused most often, in bounded memory.
//!
//! Space-Saving (Metwally, Agrawal, El Abbadi: "Efficient computation of frequent and top-k elements in data streams", 2005):
//! a fixed number of counters; a key that has none takes over the smallest, count and all. A count is never too low, too
//! high by at most what it took over, which is told beside it; and whoever has more than one [`PLACES`]th of all refusals is in the list.
//! Only refusals pay for it, and none allocates: a flood of them is when memory is short.

use arrayvec::ArrayVec;
use parking_lot::Mutex;
use std::hash::BuildHasher;
use std::sync::Arc;

/// Keys that are counted.
pub const PLACES: usize = 256;
/// Of a key, in bytes; what is longer is cut.
const KEY_MAX: usize = 128;

/// One key that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusals {
    pub route: Arc<str>,
    pub limit: Arc<str>,
    /// As it is counted by, such as `a:192.0.2.7`.
    pub key: String,
    pub count: u64,
    /// So much of the count may be of others.
    pub error: u64,
}

#[derive(Default)]
pub struct Top {
    hasher: foldhash::quality::RandomState,
    places: Mutex<Places>,
}

struct Places {
    /// Apart from the rest, so that a search reads few lines of memory.
    hashes: Vec<u64>,
    entries: Vec<Entry>,
}

struct Entry {
    route: Arc<str>,
    limit: Arc<str>,
    key: ArrayVec<u8, KEY_MAX>,
    count: u64,
    error: u64,
}

impl Default for Places {
    fn default() -> Self {
        Places { hashes: Vec::with_capacity(PLACES), entries: Vec::with_capacity(PLACES) }
    }
}

impl Top {
    pub fn count(&self, route: &Arc<str>, limit: &Arc<str>, key: &[u8]) {
        let hash = self.hasher.hash_one((&**route, &**limit, key));
        let mut guard = self.places.lock();
        let places = &mut *guard;
        if let Some(at) = places.hashes.iter().position(|known| *known == hash) {
            if let Some(entry) = places.entries.get_mut(at) {
                entry.count = entry.count.saturating_add(1);
            }
            return;
        }
        let key = key.iter().copied().take(KEY_MAX).collect();
        let mut entry = Entry { route: Arc::clone(route), limit: Arc::clone(limit), key, count: 1, error: 0 };
        if places.entries.len() < PLACES {
            places.hashes.push(hash);
            places.entries.push(entry);
            return;
        }
        let least = places.entries.iter().enumerate().min_by_key(|(_, entry)| entry.count);
        let Some((at, count)) = least.map(|(at, entry)| (at, entry.count)) else { return };
        entry.count = count.saturating_add(1);
        entry.error = count;
        if let (Some(known), Some(place)) = (places.hashes.get_mut(at), places.entries.get_mut(at)) {
            *known = hash;
            *place = entry;
        }
    }

    /// The `most` keys with the highest counts, the highest first.
    pub fn list(&self, most: usize) -> Vec<Refusals> {
        let places = self.places.lock();
        let told = |entry: &Entry| Refusals {
            route: Arc::clone(&entry.route),
            limit: Arc::clone(&entry.limit),
            key: String::from_utf8_lossy(&entry.key).into_owned(),
            count: entry.count,
            error: entry.error,
        };
        let mut list: Vec<_> = places.entries.iter().map(told).collect();
        drop(places);
        list.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.key.cmp(&b.key)));
        list.truncate(most);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_refused_much_is_found_among_many_who_are_not() {
        let (top, route, limit): (Top, Arc<str>, Arc<str>) = (Top::default(), "r".into(), "l".into());
        for round in 0..20_000_u32 {
            top.count(&route, &limit, &round.to_be_bytes());
            if round % 10 == 0 {
                top.count(&route, &limit, b"heavy");
            }
        }
        let list = top.list(3);
        let heavy = list.iter().find(|entry| entry.key == "heavy").expect("it had a tenth of all");
        assert!(heavy.count >= 2_000 && heavy.count - heavy.error <= 2_000, "{heavy:?}");
        assert_eq!(list.len(), 3);
        assert!(top.list(usize::MAX).len() == PLACES);
    }
}
