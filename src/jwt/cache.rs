//! Tokens that were verified already, so that the second request with one costs a hash.
//!
//! A table of fixed size with four places for each hash: a look-up loads at most four pointers, takes no lock and makes no
//! allocation. Entries are found by the whole SHA-256 of the token, so that no other token is ever taken for one, and count
//! only within their time and while the keys are those that verified them. Refusals are not remembered: they would let
//! anybody fill the table. It belongs to a snapshot, so that a reload begins with an empty one.

use super::rules::Window;
use crate::identity::Identity;
use arc_swap::ArcSwapOption;
use aws_lc_rs::digest;
use std::sync::Arc;

const WAYS: usize = 4;

/// SHA-256 of a token as sent.
pub(super) type Fingerprint = [u8; 32];

pub(super) fn fingerprint(token: &[u8]) -> Fingerprint {
    let digest = digest::digest(&digest::SHA256, token);
    let mut out = [0; 32];
    // Both have 32 bytes.
    out.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    out
}

pub(super) struct Cache {
    places: Box<[ArcSwapOption<Entry>]>,
}

pub(super) struct Entry {
    pub fingerprint: Fingerprint,
    /// Which keys verified it.
    pub generation: u64,
    pub window: Window,
    pub identity: Arc<Identity>,
}

impl Cache {
    /// Room for at least so many tokens, rounded up to a power of two.
    pub fn new(tokens: usize) -> Self {
        let places = tokens.max(WAYS).checked_next_power_of_two().unwrap_or(WAYS);
        Cache { places: (0..places).map(|_| ArcSwapOption::empty()).collect() }
    }

    pub fn get(&self, fingerprint: &Fingerprint, generation: u64, now: u64) -> Option<Arc<Identity>> {
        self.bucket(fingerprint).iter().find_map(|place| {
            let entry = place.load();
            let entry = entry.as_ref().filter(|entry| entry.fingerprint == *fingerprint)?;
            (entry.generation == generation && entry.window.contains(now)).then(|| Arc::clone(&entry.identity))
        })
    }

    /// Takes the place of the same token, an empty one, or that of an entry that counts no more; else of any.
    pub fn insert(&self, entry: Entry, now: u64) {
        let bucket = self.bucket(&entry.fingerprint);
        let same = |known: &Entry| known.fingerprint == entry.fingerprint;
        let dead = |known: &Entry| known.generation != entry.generation || known.window.until <= now;
        let holds =
            |place: &&ArcSwapOption<Entry>, which: &dyn Fn(&Entry) -> bool| place.load().as_ref().is_some_and(|e| which(e));
        let place = bucket
            .iter()
            .find(|place| holds(place, &same))
            .or_else(|| bucket.iter().find(|place| place.load().is_none() || holds(place, &dead)))
            .or_else(|| bucket.get(usize::from(entry.fingerprint[31]) % WAYS));
        if let Some(place) = place {
            place.store(Some(Arc::new(entry)));
        }
    }

    fn bucket(&self, fingerprint: &Fingerprint) -> &[ArcSwapOption<Entry>] {
        let [a, b, c, d, e, f, g, h, ..] = *fingerprint;
        let hash = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let buckets = (self.places.len() / WAYS).max(1);
        // The number of buckets is a power of two.
        let index = usize::try_from(hash).unwrap_or(0) & buckets.saturating_sub(1);
        let start = index.saturating_mul(WAYS);
        self.places.get(start..start.saturating_add(WAYS)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS: Window = Window { from: 0, until: u64::MAX };

    fn entry(token: &str, generation: u64, window: Window) -> Entry {
        Entry { fingerprint: fingerprint(token.as_bytes()), generation, window, identity: Identity::for_test(token) }
    }

    fn name(cache: &Cache, token: &str, generation: u64, now: u64) -> Option<String> {
        cache.get(&fingerprint(token.as_bytes()), generation, now).map(|identity| identity.name.to_string())
    }

    #[test]
    fn an_entry_counts_within_its_time_and_its_keys() {
        let cache = Cache::new(64);
        cache.insert(entry("a", 1, Window { from: 10, until: 20 }), 10);
        assert_eq!(name(&cache, "a", 1, 10).as_deref(), Some("a"));
        assert_eq!(name(&cache, "a", 1, 19).as_deref(), Some("a"));
        for (generation, now) in [(1, 9), (1, 20), (2, 15), (0, 15)] {
            assert_eq!(name(&cache, "a", generation, now), None);
        }
        assert_eq!(name(&cache, "b", 1, 15), None);
    }

    #[test]
    fn no_number_of_tokens_grows_it_and_none_is_taken_for_another() {
        let cache = Cache::new(256);
        for n in 0..10_000 {
            cache.insert(entry(&n.to_string(), 1, ALWAYS), 0);
            assert_eq!(name(&cache, &n.to_string(), 1, 0), Some(n.to_string()), "the newest is always there");
        }
        let kept =
            (0..10_000).filter_map(|n: u32| name(&cache, &n.to_string(), 1, 0).map(|found| assert_eq!(found, n.to_string())));
        let kept = kept.count();
        assert!((200..=256).contains(&kept), "{kept}");
    }

    #[test]
    fn dead_entries_make_room_before_living_ones_go() {
        let cache = Cache::new(4);
        for token in ["a", "b", "c"] {
            cache.insert(entry(token, 1, ALWAYS), 0);
        }
        cache.insert(entry("short", 1, Window { from: 0, until: 5 }), 0);
        cache.insert(entry("new", 1, ALWAYS), 5);
        for token in ["a", "b", "c", "new"] {
            assert!(name(&cache, token, 1, 5).is_some(), "{token}");
        }
        cache.insert(entry("next", 2, ALWAYS), 5);
        cache.insert(entry("next", 2, ALWAYS), 5);
        assert_eq!(["a", "b", "c", "new"].iter().filter(|token| name(&cache, token, 1, 5).is_some()).count(), 3);
    }
}
