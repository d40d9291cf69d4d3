//! One shard's entries: two candidate sets of eight places for each key. How many there are is settled when the table is made;
//! memory is taken in blocks when a place in them is first written, so that a gateway of few keys is small.

use crate::limit::State;
use arrayvec::ArrayVec;

/// The places of a set.
const WAYS: usize = 8;
/// Times are kept in sixteenths of a second, so that two of them fit into one word: over eight years of uptime.
const TICK: u64 = 62_500_000;

/// Hash (two words), times, state: one line of the processor's cache. The word of times holds when the key is as if never seen
/// (lower half) and until when it is being limited (upper half), both in ticks, rounded up.
type Entry = [u64; 8];

/// The places of a block: one page of the system's, and a whole number of sets.
const BLOCK: usize = 64;

fn hash_of([low, high, ..]: &Entry) -> u128 {
    u128::from(*high) << 64 | u128::from(*low)
}

fn words(hash: u128) -> (u64, u64) {
    let word = |wide: u128| u64::try_from(wide & u128::from(u64::MAX)).unwrap_or_default();
    (word(hash), word(hash >> 64))
}

/// Idle and limited.
fn times([_, _, times, ..]: &Entry) -> (u32, u32) {
    let half = |word: u64| u32::try_from(word & 0xffff_ffff).unwrap_or_default();
    (half(*times), half(*times >> 32))
}

/// What a block takes, with the tags of its entries and the pointer to it.
const BLOCK_BYTES: usize = BLOCK * (size_of::<Entry>() + size_of::<u32>()) + size_of::<usize>();

/// Where a key is or can be put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Known(usize),
    /// `forgets`: the key that is there now is not idle.
    Free {
        at: usize,
        forgets: bool,
    },
    /// Everything around is being limited.
    None,
}

impl Place {
    fn taken_at(self) -> Option<usize> {
        match self {
            Place::Known(at) | Place::Free { at, .. } => Some(at),
            Place::None => None,
        }
    }
}

/// The entries of a table; those that were never written are zeros.
struct Blocks(Box<[Option<Box<[Entry; BLOCK]>>]>);

impl Blocks {
    fn get(&self, at: usize) -> Option<&Entry> {
        match self.0.get(at / BLOCK)? {
            Some(block) => block.get(at % BLOCK),
            None => Some(&[0; 8]),
        }
    }

    fn get_mut(&mut self, at: usize) -> Option<&mut Entry> {
        self.0.get_mut(at / BLOCK)?.get_or_insert_with(|| Box::new([[0; 8]; BLOCK])).get_mut(at % BLOCK)
    }
}

pub struct Table {
    /// 32 bits of each entry's hash, so that a look-up touches two cache lines and not sixteen; 0 is empty.
    tags: Box<[u32]>,
    entries: Blocks,
    sets: u64,
}

fn ticks(nanos: u64) -> u32 {
    u32::try_from(nanos.div_ceil(TICK)).unwrap_or(u32::MAX)
}

fn tag(hash: u128) -> u32 {
    u32::try_from(hash >> 32 & 0xffff_ffff).unwrap_or_default() | 1
}

impl Table {
    /// A table that never takes more than `bytes`: as many whole blocks as fit, and at least one.
    pub fn new(bytes: usize) -> Self {
        let blocks = (bytes.saturating_sub(size_of::<Table>()) / BLOCK_BYTES).max(1);
        let places = blocks.saturating_mul(BLOCK);
        Table {
            tags: vec![0; places].into(),
            entries: Blocks((0..blocks).map(|_| None).collect()),
            sets: u64::try_from(places / WAYS).unwrap_or(u64::MAX),
        }
    }

    #[cfg(test)]
    pub fn places(&self) -> usize {
        self.tags.len()
    }

    fn candidates(&self, hash: u128) -> impl Iterator<Item = usize> + use<> {
        let low = u64::try_from(hash & u128::from(u64::MAX)).unwrap_or_default();
        let first = low.checked_rem(self.sets).unwrap_or(0);
        // From other bits, and never the same set.
        let step = (low >> 40).checked_rem(self.sets.saturating_sub(1)).unwrap_or(0).saturating_add(1);
        let second = first.saturating_add(step).checked_rem(self.sets).unwrap_or(0);
        [first, second].into_iter().flat_map(|set| {
            let start = usize::try_from(set).unwrap_or_default().saturating_mul(WAYS);
            start..start.saturating_add(WAYS)
        })
    }

    /// Where `hash` is, or the best place for it that is not one of `taken`.
    pub fn find<const N: usize>(&self, hash: u128, now: u64, taken: &ArrayVec<Place, N>) -> Place {
        let tag = tag(hash);
        for at in self.candidates(hash) {
            if self.tags.get(at) == Some(&tag) && self.entries.get(at).is_some_and(|entry| hash_of(entry) == hash) {
                return Place::Known(at);
            }
        }
        let now = u32::try_from(now / TICK).unwrap_or(u32::MAX);
        let mut best: Option<(u32, usize)> = None;
        // Each set's room, and a place in it.
        let mut room: [(u32, usize); 2] = [(0, 0); 2];
        for (number, at) in self.candidates(hash).enumerate() {
            if taken.iter().any(|place| place.taken_at() == Some(at)) {
                continue;
            }
            let Some(entry) = self.entries.get(at) else { continue };
            let (idle_at, limited) = times(entry);
            if idle_at <= now {
                if let Some((count, place)) = room.get_mut(number / WAYS) {
                    (*count, *place) = (count.saturating_add(1), at);
                }
            } else if limited <= now && best.is_none_or(|(known, _)| idle_at < known) {
                best = Some((idle_at, at));
            }
        }
        // The emptier of the two, so that all sets fill evenly.
        let (first, second) = room.into();
        let (count, at) = if second.0 > first.0 { second } else { first };
        match best {
            _ if count > 0 => Place::Free { at, forgets: false },
            Some((_, at)) => Place::Free { at, forgets: true },
            None => Place::None,
        }
    }

    pub fn state(&self, at: usize) -> State {
        self.entries.get(at).map(|[_, _, _, state @ ..]| *state).unwrap_or_default()
    }

    /// The key was refused and will be until then.
    pub fn limited(&mut self, at: usize, until: u64) {
        if let Some(entry) = self.entries.get_mut(at) {
            let (idle, limited) = times(entry);
            let [_, _, times, ..] = entry;
            *times = u64::from(limited.max(ticks(until))) << 32 | u64::from(idle);
        }
    }

    pub fn write(&mut self, at: usize, hash: u128, state: State, idle: u64, limited: u64) {
        if let (Some(slot), Some(entry)) = (self.tags.get_mut(at), self.entries.get_mut(at)) {
            *slot = tag(hash);
            let (low, high) = words(hash);
            let times = u64::from(ticks(limited)) << 32 | u64::from(ticks(idle));
            let [a, b, c, d, e] = state;
            *entry = [low, high, times, a, b, c, d, e];
        }
    }
}
