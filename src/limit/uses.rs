//! What a request has been counted for so far, as far as it may still matter: because a later limit may refuse it, because the
//! response says what it has cost, or that it was a failed authentication.
//!
//! In the context of the request and without allocations, for as many filters and as long keys as routes usually have.

use smallvec::SmallVec;
use std::ops::Range;
use std::time::Instant;

/// Where it was counted, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Nowhere,
    Local(Instant),
    /// This gateway's share, while Redis is away.
    Share(Instant),
    /// By Redis, in microseconds of its clock.
    Redis(u64),
    /// On a lease: the batch.
    Lease(u64),
}

/// What one filter has counted.
#[derive(Debug)]
pub struct Use {
    /// The number of the filter; numbers are unique in the process.
    pub filter: u32,
    /// Which of the filter's sets.
    pub set: u16,
    pub cost: u64,
    pub source: Source,
    key: Range<usize>,
}

/// What all filters of a request have counted.
#[derive(Debug, Default)]
pub struct Uses {
    list: SmallVec<[Use; 3]>,
    /// The keys, one after the other.
    keys: SmallVec<[u8; 128]>,
}

impl Uses {
    pub fn add(&mut self, filter: u32, set: u16, key: &[u8], cost: u64, source: Source) {
        let start = self.keys.len();
        self.keys.extend_from_slice(key);
        self.list.push(Use { filter, set, cost, source, key: start..self.keys.len() });
    }

    /// What this filter has counted; not known any more afterwards.
    pub fn remove(&mut self, filter: u32) -> Option<Use> {
        let at = self.list.iter().position(|used| used.filter == filter)?;
        Some(self.list.swap_remove(at))
    }

    /// The key that it was counted for.
    pub fn key(&self, used: &Use) -> &[u8] {
        self.keys.get(used.key.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_finds_its_own_key_however_many_and_long_they_are() {
        let mut uses = Uses::default();
        let key = |filter: u32| vec![b'a'.wrapping_add(filter as u8); filter as usize * 20];
        for filter in 0..12 {
            uses.add(filter, 1, &key(filter), filter.into(), Source::Nowhere);
        }
        for filter in [11, 0, 5, 2, 8, 1, 3, 10, 4, 6, 7, 9] {
            let used = uses.remove(filter).unwrap();
            assert_eq!((uses.key(&used), used.cost), (&*key(filter), filter.into()));
            assert!(uses.remove(filter).is_none());
        }
    }
}
