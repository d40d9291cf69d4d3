//! What was admitted while Redis was away, so that it can be charged when it is back.
//!
//! For each key the uses are counted by the limits themselves, so that what has been given back by time is not charged.
//! Bounded: keys beyond the bound are not noted, which lets each of them have this gateway's share once more.
//!
//! It belongs to the Redis that it is owed to, not to a snapshot: a reload that changes how that Redis is used forgets nothing. What
//! is still owed when no snapshot has that Redis any more is lost, and counted so.

use super::SharedSet;
use crate::limit::{LIMITS_MAX, Moment, State};
use crate::telemetry::metrics::RedisLost;
use arrayvec::ArrayVec;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

/// The most keys that are noted, some 200 bytes each.
pub const KEYS_MAX: usize = 100_000;

pub struct Debts {
    epoch: Instant,
    noted: Mutex<Noted>,
    /// Taken out to be charged, and not known to have been.
    in_hand: AtomicUsize,
    lost: Arc<RedisLost>,
}

type Noted = HashMap<(usize, Box<[u8]>), Debt, foldhash::quality::RandomState>;

struct Debt {
    set: Arc<SharedSet>,
    states: ArrayVec<State, LIMITS_MAX>,
}

/// One key's debt: what each limit is to be charged with.
pub struct Charge {
    pub set: Arc<SharedSet>,
    pub key: Box<[u8]>,
    pub costs: ArrayVec<u64, LIMITS_MAX>,
}

/// What has been taken out. As long as this is there, [`Debts::left`] counts all of it, so it is dropped after what became of the
/// charges is known.
pub struct InHand<'a> {
    debts: &'a Debts,
    count: usize,
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.debts.in_hand.fetch_sub(self.count, Ordering::AcqRel);
    }
}

impl Debts {
    /// `lost` counts what is never told.
    pub fn new(lost: Arc<RedisLost>) -> Self {
        Debts { epoch: Instant::now(), noted: Mutex::default(), in_hand: AtomicUsize::new(0), lost }
    }

    pub fn lost(&self) -> &Arc<RedisLost> {
        &self.lost
    }

    fn now(&self) -> Moment {
        let nanos = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Moment { mono: nanos(self.epoch.elapsed()), wall: nanos(wall) }
    }

    /// Whether there was room for it.
    pub fn note(&self, set: &Arc<SharedSet>, key: &[u8], cost: u64) -> bool {
        self.note_each(set, key, std::iter::repeat(cost))
    }

    /// What was collected and never sent is owed as before; whether there was room for it.
    pub fn put_back(&self, charge: &Charge) -> bool {
        self.note_each(&charge.set, &charge.key, charge.costs.iter().copied())
    }

    fn note_each(&self, set: &Arc<SharedSet>, key: &[u8], costs: impl Iterator<Item = u64>) -> bool {
        let now = self.now();
        let mut noted = self.noted.lock();
        let full = noted.len() >= KEYS_MAX;
        // Sets are told apart by where they are: a key of two filters is two debts.
        let id = (Arc::as_ptr(set).addr(), Box::from(key));
        if full && !noted.contains_key(&id) {
            return false;
        }
        let debt = noted
            .entry(id)
            .or_insert_with(|| Debt { set: Arc::clone(set), states: set.limits.iter().map(|_| State::default()).collect() });
        for ((limit, state), cost) in set.limits.iter().zip(&mut debt.states).zip(costs) {
            // What is known too late to be refused may be more than there is.
            let cost = cost.min(limit.standing(state, now).remaining);
            if let Ok(next) = limit.take(state, now, cost) {
                *state = next;
            }
        }
        true
    }

    /// Takes back what was noted at `taken` or a little later.
    pub fn forgive(&self, set: &Arc<SharedSet>, key: &[u8], taken: Instant, cost: u64) {
        let now = self.now();
        let nanos = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let mono = nanos(taken.saturating_duration_since(self.epoch));
        let taken = Moment { mono, wall: now.wall.saturating_sub(now.mono.saturating_sub(mono)) };
        if let Some(debt) = self.noted.lock().get_mut(&(Arc::as_ptr(set).addr(), Box::from(key))) {
            for (limit, state) in set.limits.iter().zip(&mut debt.states) {
                *state = limit.give(state, taken, now, cost);
            }
        }
    }

    /// Forgets what is owed for a key, by whatever set of that scope.
    pub fn forget(&self, set: &SharedSet, key: &[u8]) {
        // Not by the place of the set: what a reload has replaced is owed by the old one.
        self.noted.lock().retain(|(_, noted), debt| debt.set.scope != set.scope || **noted != *key);
    }

    /// Everything of those keys that `mine` names that is still owed now; it is not noted any more afterwards.
    pub fn collect(&self, mine: impl Fn(&SharedSet, &[u8]) -> bool) -> (Vec<Charge>, InHand<'_>) {
        let now = self.now();
        let mut noted = self.noted.lock();
        let taken: Vec<_> = noted.extract_if(|(_, key), debt| mine(&debt.set, key)).collect();
        // Before the lock is given up: nobody sees a moment in which these are nowhere.
        self.in_hand.fetch_add(taken.len(), Ordering::AcqRel);
        drop(noted);
        let in_hand = InHand { debts: self, count: taken.len() };
        let charges = taken.into_iter().map(|((_, key), Debt { set, states })| {
            let left = set.limits.iter().zip(&states);
            let costs = left.map(|(limit, state)| limit.most().saturating_sub(limit.standing(state, now).remaining)).collect();
            Charge { set, key, costs }
        });
        (charges.filter(|charge| charge.costs.iter().any(|cost| *cost > 0)).collect(), in_hand)
    }

    /// The keys that are owed, and those whose charges are on their way.
    pub fn left(&self) -> usize {
        let noted = self.noted.lock();
        noted.len().saturating_add(self.in_hand.load(Ordering::Acquire))
    }

    /// Nobody will be told what is still owed: it is counted as lost. `why` is for the log.
    pub fn give_up(&self, why: &str) {
        let (charges, _) = self.collect(|_, _| true);
        if !charges.is_empty() {
            let left = charges.len();
            self.lost.charges.add(u64::try_from(left).unwrap_or(u64::MAX));
            log::warn!("{left} keys are not charged in Redis for what was admitted without it: {why}");
        }
    }
}

impl Drop for Debts {
    fn drop(&mut self) {
        self.give_up("it is not used any more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{Limit, Shape};

    #[test]
    fn a_key_that_is_forgotten_owes_nothing_whatever_was_reloaded_meanwhile() {
        let limit = Limit { name: "t".into(), shape: Shape::TokenBucket { per: 3_600_000_000_000, capacity: 10 }, number: 10 };
        let set = |scope| Arc::new(SharedSet::new(scope, std::slice::from_ref(&limit), 0));
        let (before, after, other) = (set("route:a"), set("route:a"), set("route:b"));
        let debts = Debts::new(Arc::default());
        assert!([&before, &after, &other].iter().all(|set| debts.note(set, b"k", 1)) && debts.note(&after, b"other", 1));
        debts.forget(&after, b"k");
        let mut left: Vec<_> =
            debts.collect(|_, _| true).0.into_iter().map(|charge| (charge.set.scope.clone(), charge.key)).collect();
        left.sort();
        assert_eq!(left, [("route:a".into(), b"other".as_slice().into()), ("route:b".into(), b"k".as_slice().into())]);
    }

    #[test]
    fn only_what_time_has_not_given_back_is_charged() {
        let limit = |per, number| Limit { name: "t".into(), shape: Shape::TokenBucket { per, capacity: number }, number };
        let set = Arc::new(SharedSet::new("route:a", &[limit(1_000_000, 10), limit(3_600_000_000_000, 10)], 0));
        let debts = Debts::new(Arc::default());
        assert!((0..4).all(|_| debts.note(&set, b"k", 1)));
        assert!(debts.note(&set, b"other", 3));
        let end = Instant::now() + std::time::Duration::from_millis(2);
        while Instant::now() < end {
            std::thread::yield_now();
        }
        let (mut charges, in_hand) = debts.collect(|_, _| true);
        charges.sort_by(|a, b| a.key.cmp(&b.key));
        let found: Vec<_> = charges.iter().map(|charge| (&*charge.key, charge.costs.as_slice())).collect();
        assert_eq!(found, [(&b"k"[..], &[0, 4][..]), (&b"other"[..], &[0, 3][..])]);
        assert_eq!(debts.left(), 2, "nobody knows yet that they were charged");
        drop(in_hand);
        assert!(debts.left() == 0 && debts.collect(|_, _| true).0.is_empty());
    }
}
