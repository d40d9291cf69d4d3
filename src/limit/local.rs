//! The store in this process: exact, sharded, and bounded in bytes whatever the keys are.
//!
//! A key is held as 128 bits of keyed hash (two SipHash-1-3 with seeds of this process), so that every entry has the same
//! size, a request never allocates, and no client can make keys that meet. An entry can be in sixteen places, eight in each of two sets of its shard;
//! with a choice of two sets, all places fill evenly. When they are taken, idle keys go first, then the key that will be idle
//! soonest; a key that is being limited stays. Where even all sixteen are being limited, keys without a place share one
//! bucket of their limit: they are counted, if together, and never exempt.
//!
//! The table belongs to the process, not to a snapshot, and an entry to what its limit means, so that a reload keeps all counts.
//! So does the shared bucket, for as long as a snapshot has its limit.

mod table;

use super::{Decision, Limit, Moment, Shape, Standings, State};
use crate::clock::SharedClock;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime};
use table::{Place, Table};

/// The least memory of a store, in bytes.
pub const MEMORY_MIN: u64 = 1 << 20;
/// The most, in bytes.
pub const MEMORY_MAX: u64 = 1 << 40;

const SHARDS: usize = 64;

/// Limits that hold together for each key of one scope, compiled for the local store.
#[derive(Debug)]
pub struct LocalSet {
    limits: Box<[(Limit, u128)]>,
    scope: u128,
    /// One of them is counted by the calendar.
    calendar: bool,
    /// For each limit the state of what has no place of its own in the table.
    overflow: Box<[Arc<Mutex<State>>]>,
}

impl LocalSet {
    pub fn limits(&self) -> impl ExactSizeIterator<Item = &Limit> {
        self.limits.iter().map(|(limit, _)| limit)
    }
}

/// What the store has had to do, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LocalStats {
    /// Keys that were forgotten before they were idle, which admits their next uses early.
    pub evicted: u64,
    /// Decisions for keys that found no place and shared a bucket.
    pub shared: u64,
    /// Bytes of the table.
    pub bytes: u64,
}

pub struct LocalStore {
    clock: SharedClock,
    epoch: Instant,
    seeds: [RandomState; 2],
    shards: Box<[Mutex<Table>]>,
    /// The shared buckets that sets use, by scope and meaning: a set that is compiled anew goes on with those of the one before.
    overflow: Mutex<HashMap<u128, Weak<Mutex<State>>>>,
    bytes: u64,
    evicted: AtomicU64,
    shared: AtomicU64,
}

impl std::fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalStore").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl LocalStore {
    /// A store of at most `bytes`, which are within [`MEMORY_MIN`] and [`MEMORY_MAX`]. The tags, a sixteenth of it, are there from
    /// the beginning; the rest is taken as keys come, and not given back.
    pub fn new(bytes: u64, clock: SharedClock) -> Self {
        let bytes = bytes.clamp(MEMORY_MIN, MEMORY_MAX);
        let each = usize::try_from(bytes).unwrap_or(usize::MAX).checked_div(SHARDS).unwrap_or(0);
        let shards: Box<[_]> = (0..SHARDS).map(|_| Mutex::new(Table::new(each))).collect();
        let epoch = clock.now();
        let seeds = [RandomState::new(), RandomState::new()];
        let (evicted, shared) = (AtomicU64::new(0), AtomicU64::new(0));
        LocalStore { clock, epoch, seeds, shards, overflow: Mutex::default(), bytes, evicted, shared }
    }

    /// What was asked for, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn stats(&self) -> LocalStats {
        LocalStats {
            evicted: self.evicted.load(Ordering::Relaxed),
            shared: self.shared.load(Ordering::Relaxed),
            bytes: self.bytes,
        }
    }

    /// Compiles limits for this store. Sets of the same scope share the counts of limits that mean the same.
    pub fn set(&self, scope: &str, limits: &[Limit]) -> LocalSet {
        let hashed = limits.iter().map(|limit| (limit.clone(), self.hash(limit.meaning().as_bytes())));
        let (limits, scope): (Box<[_]>, _) = (hashed.collect(), self.hash(scope.as_bytes()));
        LocalSet {
            overflow: limits.iter().map(|(_, meaning)| self.overflow(scope ^ meaning)).collect(),
            calendar: limits.iter().any(|(limit, _)| matches!(limit.shape, Shape::FixedWindow { .. })),
            limits,
            scope,
        }
    }

    /// The shared bucket of a limit that means this in its scope.
    fn overflow(&self, meaning: u128) -> Arc<Mutex<State>> {
        let mut known = self.overflow.lock();
        known.retain(|_, state| state.strong_count() > 0);
        if let Some(state) = known.get(&meaning).and_then(Weak::upgrade) {
            return state;
        }
        let state = Arc::default();
        known.insert(meaning, Arc::downgrade(&state));
        state
    }

    fn hash(&self, bytes: &[u8]) -> u128 {
        hash128(&self.seeds, bytes)
    }

    fn now(&self, set: &LocalSet) -> Moment {
        let nanos = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let mono = nanos(self.clock.now().saturating_duration_since(self.epoch));
        let wall = || nanos(self.clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        // Reading a clock is a good part of what a decision costs.
        Moment { mono, wall: if set.calendar { wall() } else { 0 } }
    }

    /// Decides about a request of `cost` by the limits of `set` for `key`: all admit it, or none is touched.
    pub fn take(&self, set: &LocalSet, key: &[u8], cost: u64) -> Decision {
        self.take_of(&set.limits, set, 0, key, cost)
    }

    /// The same by some limits of the set, the first of which is its `first`.
    fn take_of(&self, limits: &[(Limit, u128)], set: &LocalSet, first: usize, key: &[u8], cost: u64) -> Decision {
        let now = self.now(set);
        let base = self.hash(key) ^ set.scope;
        // The upper half chooses the shard, the lower half the place in it.
        let shard = usize::try_from(base >> 64).unwrap_or_default() % SHARDS;
        let Some(shard) = self.shards.get(shard) else {
            return Decision::Admitted(Standings::new());
        };
        let mut table = shard.lock();
        let overflow = Overflow { states: &set.overflow, first };
        let mut work = Work {
            limits,
            overflow,
            base,
            now,
            cost,
            places: Default::default(),
            states: Default::default(),
            next: Default::default(),
        };
        match work.judge(&mut table) {
            Ok(()) => {
                let mut standings = Standings::new();
                let (evicted, shared) = work.commit(&mut table, &mut standings);
                drop(table);
                if evicted > 0 || shared > 0 {
                    self.evicted.fetch_add(evicted, Ordering::Relaxed);
                    self.shared.fetch_add(shared, Ordering::Relaxed);
                }
                Decision::Admitted(standings)
            }
            Err((limit, wait)) => {
                drop(table);
                Decision::Refused { standings: work.standings(), limit, wait }
            }
        }
    }

    /// Takes what is left of each limit, up to `cost`, and refuses nothing: for costs that are known too late.
    pub fn charge(&self, set: &LocalSet, key: &[u8], cost: u64) {
        for (number, standing) in self.look(set, key).iter().enumerate() {
            let part = cost.min(standing.remaining);
            if part > 0
                && let Some(one) = set.limits.get(number)
            {
                self.take_of(std::slice::from_ref(one), set, number, key, part);
            }
        }
    }

    /// When it is, for [`LocalStore::give`].
    pub fn moment(&self) -> Instant {
        self.clock.now()
    }

    /// Gives back `cost` uses that were taken at `taken` or a little later.
    pub fn give(&self, set: &LocalSet, key: &[u8], taken: Instant, cost: u64) {
        let now = self.now(set);
        let since = u64::try_from(taken.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX);
        let taken = Moment { mono: since, wall: now.wall.saturating_sub(now.mono.saturating_sub(since)) };
        let base = self.hash(key) ^ set.scope;
        let shard = usize::try_from(base >> 64).unwrap_or_default() % SHARDS;
        let Some(shard) = self.shards.get(shard) else { return };
        let mut table = shard.lock();
        for (limit, meaning) in &set.limits {
            let hash = base ^ meaning;
            // What was counted in a shared bucket stays: whose it is cannot be told.
            if let Place::Known(at) = table.find(hash, now.mono, &arrayvec::ArrayVec::<Place, 1>::new()) {
                let state = limit.give(&table.state(at), taken, now, cost);
                let idle = now.mono.saturating_add(limit.standing(&state, now).idle_in);
                table.write(at, hash, state, idle, 0);
            }
        }
    }

    /// Forgets a key.
    pub fn reset(&self, set: &LocalSet, key: &[u8]) {
        let now = self.now(set);
        let base = self.hash(key) ^ set.scope;
        let shard = usize::try_from(base >> 64).unwrap_or_default() % SHARDS;
        let Some(shard) = self.shards.get(shard) else { return };
        let mut table = shard.lock();
        for (_, meaning) in &set.limits {
            if let Place::Known(at) = table.find(base ^ meaning, now.mono, &arrayvec::ArrayVec::<Place, 1>::new()) {
                table.write(at, base ^ meaning, State::default(), 0, 0);
            }
        }
    }

    /// What is left for a key, without taking anything.
    pub fn look(&self, set: &LocalSet, key: &[u8]) -> Standings {
        self.take(set, key, 0).standings().clone()
    }
}

/// 128 bits that nobody can foresee who does not know the seeds.
pub(super) fn hash128(seeds: &[RandomState; 2], bytes: &[u8]) -> u128 {
    let half = |seed: &RandomState| {
        let mut hasher = seed.build_hasher();
        hasher.write(bytes);
        hasher.finish()
    };
    let [high, low] = seeds;
    u128::from(half(high)) << 64 | u128::from(half(low))
}

/// One decision under way, with the shard's lock held.
struct Work<'a> {
    limits: &'a [(Limit, u128)],
    overflow: Overflow<'a>,
    base: u128,
    now: Moment,
    cost: u64,
    places: arrayvec::ArrayVec<Place, { super::LIMITS_MAX }>,
    /// As they are.
    states: arrayvec::ArrayVec<State, { super::LIMITS_MAX }>,
    /// As they will be, if all admit it.
    next: arrayvec::ArrayVec<State, { super::LIMITS_MAX }>,
}

/// The shared bucket of each limit.
struct Overflow<'a> {
    states: &'a [Arc<Mutex<State>>],
    first: usize,
}

impl Overflow<'_> {
    fn get(&self, number: usize) -> State {
        self.states.get(self.first.saturating_add(number)).map(|state| *state.lock()).unwrap_or_default()
    }

    fn set(&self, number: usize, state: State) {
        if let Some(slot) = self.states.get(self.first.saturating_add(number)) {
            *slot.lock() = state;
        }
    }
}

impl Work<'_> {
    /// Finds the states and asks every limit. Remembers which keys are being limited.
    fn judge(&mut self, table: &mut Table) -> Result<(), (usize, u64)> {
        let mut longest: Option<(usize, u64)> = None;
        for (number, (limit, meaning)) in self.limits.iter().enumerate() {
            let place = table.find(self.base ^ meaning, self.now.mono, &self.places);
            let state = match place {
                Place::Known(at) => table.state(at),
                Place::Free { .. } => State::default(),
                Place::None => self.overflow.get(number),
            };
            let _ = self.places.try_push(place);
            let _ = self.states.try_push(state);
            match limit.take(&state, self.now, self.cost) {
                Ok(after) => {
                    let _ = self.next.try_push(after);
                }
                Err(wait) => {
                    // What is never admitted is no reason to keep a key for ever.
                    if let Place::Known(at) = place
                        && wait < u64::MAX
                    {
                        table.limited(at, self.now.mono.saturating_add(wait));
                    }
                    if longest.is_none_or(|(_, known)| wait > known) {
                        longest = Some((number, wait));
                    }
                }
            }
        }
        match longest {
            Some(refused) => Err(refused),
            None => Ok(()),
        }
    }

    /// Writes the new states, and tells what is left. Returns how many keys were forgotten for them, and how many share a
    /// bucket.
    fn commit(&self, table: &mut Table, standings: &mut Standings) -> (u64, u64) {
        let (mut evicted, mut shared) = (0_u64, 0_u64);
        for (number, (((limit, meaning), place), state)) in self.limits.iter().zip(&self.places).zip(&self.next).enumerate() {
            let standing = limit.standing(state, self.now);
            let _ = standings.try_push(standing);
            if self.cost == 0 {
                continue;
            }
            let Standing { remaining, more_in, idle_in } = standing;
            let limited = if remaining == 0 { self.now.mono.saturating_add(more_in) } else { 0 };
            let idle = self.now.mono.saturating_add(idle_in);
            match *place {
                Place::Known(at) => table.write(at, self.base ^ meaning, *state, idle, limited),
                Place::Free { at, forgets } => {
                    evicted = evicted.saturating_add(u64::from(forgets));
                    table.write(at, self.base ^ meaning, *state, idle, limited);
                }
                Place::None => {
                    shared = shared.saturating_add(1);
                    self.overflow.set(number, *state);
                }
            }
        }
        (evicted, shared)
    }

    fn standings(&self) -> Standings {
        self.limits.iter().zip(&self.states).map(|((limit, _), state)| limit.standing(state, self.now)).collect()
    }
}

use super::Standing;

#[cfg(test)]
mod tests;
