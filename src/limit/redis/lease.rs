//! Leases: uses that a gateway has taken from Redis in advance, so that most requests are decided without a round trip.
//!
//! What keeps this exact is on the side of Redis (`limits.lua`): a lease counts as used from the moment it is handed out, what
//! was spent of it counts from the moment that is reported, and a lease that nobody reports counts in full when it expires.
//! So Redis never believes that less was used than was, and the limit holds without overshoot. This side keeps its part of the
//! bargain by never spending from a lease that may have expired: its life is counted from before the question was sent, and
//! cut by a fiftieth, so that it ends here before it ends there as long as the two clocks run at the same pace within 2 %. What time they show
//! does not matter.
//!
//! What a gateway holds and does not use is missing to the others. It is at most the lease, in two batches of half of it, so that the
//! second can be fetched while the first is spent; batches come back when a key falls idle.
//!
//! Nothing here talks to Redis or reads a clock: the worker carries [`Errand`]s, and tests can lose and delay them.

use super::{Decision, SharedSet, Standings};
use crate::limit::local::hash128;
use arrayvec::ArrayVec;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The longest life of a lease, in nanoseconds: what a gateway that dies held is counted as used after that.
pub const LIFE: u64 = 5_000_000_000;
/// A key that was not asked for so long gives its lease back, in nanoseconds.
pub const IDLE: u64 = 1_000_000_000;
/// How long a refusal is believed without asking again, in nanoseconds. So much later than it could be may a client be
/// admitted, if another gateway gave something back meanwhile.
pub const REFUSAL: u64 = 100_000_000;
/// The keys that can have leases at the same time, some 500 bytes each. Others are asked for one by one.
const KEYS_MAX: usize = 100_000;
const SHARDS: usize = 64;

/// Batches of one key at the same time.
const BATCHES: usize = 2;
/// Batches that are finished and not reported yet. More are not reported: they count in full when they expire.
const BACK: usize = 8;

/// Batches that come back, by id, and what was spent of each.
pub type Back = ArrayVec<(u64, u64), BACK>;

/// One message to Redis about one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errand {
    /// The id that the new batch will have; unique in this gateway.
    pub id: u64,
    /// The uses that the new batch should have; 0: none is wanted.
    pub want: u64,
    pub back: Back,
    /// When it was made, in nanoseconds of this gateway's clock.
    pub at: u64,
}

/// What became of a use.
#[derive(Debug)]
pub enum Spent {
    /// Decided here. `batch` is what all of it was spent of, if it was one; the errand, if there is one, is not waited for.
    Here { decision: Decision, batch: Option<u64>, errand: Option<Box<Errand>> },
    /// Redis must be asked.
    Ask(Errand),
}

struct Batch {
    id: u64,
    left: u64,
    spent: u64,
    expires: u64,
    life: u64,
}

struct Holding {
    set: Arc<SharedSet>,
    key: Box<[u8]>,
    batches: ArrayVec<Batch, BATCHES>,
    finished: Back,
    /// An errand that wants a batch is under way.
    asking: bool,
    /// After an answer was lost: the batch that it may have carried must have expired before there is another.
    frozen_until: u64,
    refused: Option<Refusal>,
    seen: Standings,
    seen_at: u64,
    used_at: u64,
}

struct Refusal {
    believed_until: u64,
    limit: usize,
    /// When the request would have been admitted.
    over: u64,
    /// What it asked for.
    cost: u64,
}

/// The leases of one gateway.
pub struct Book {
    shards: Box<[Mutex<HashMap<u128, Holding, foldhash::fast::RandomState>>]>,
    seeds: [RandomState; 2],
    next: AtomicU64,
    /// Decisions that were made here.
    pub spent: AtomicU64,
}

impl Default for Book {
    fn default() -> Self {
        Book {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            seeds: [RandomState::new(), RandomState::new()],
            next: AtomicU64::new(1),
            spent: AtomicU64::new(0),
        }
    }
}

impl Book {
    fn shard(&self, id: u128) -> Option<&Mutex<HashMap<u128, Holding, foldhash::fast::RandomState>>> {
        self.shards.get(usize::try_from(id >> 64).unwrap_or_default() % SHARDS)
    }

    fn id(&self, set: &SharedSet, key: &[u8]) -> u128 {
        hash128(&self.seeds, key) ^ set.fingerprint
    }

    fn errand(&self, now: u64, want: u64, back: Back) -> Errand {
        Errand { id: self.next.fetch_add(1, Ordering::Relaxed), want, back, at: now }
    }

    /// Spends `cost` of what is held for `key`, or says what to ask. `now` is in nanoseconds of any monotonic clock, always the
    /// same.
    pub fn spend(&self, set: &Arc<SharedSet>, key: &[u8], cost: u64, now: u64) -> Spent {
        let id = self.id(set, key);
        let plain = || Spent::Ask(self.errand(now, 0, Back::new()));
        let Some(shard) = self.shard(id) else { return plain() };
        let mut shard = shard.lock();
        if !shard.contains_key(&id) {
            if shard.len() >= KEYS_MAX / SHARDS {
                return plain();
            }
            shard.insert(id, Holding::new(set, key, now));
        }
        let Some(holding) = shard.get_mut(&id) else { return plain() };
        holding.used_at = now;
        holding.batches.retain(|batch| batch.expires > now);
        if let Some(batch) = holding.pay(cost) {
            self.spent.fetch_add(1, Ordering::Relaxed);
            let decision = Decision::Admitted(holding.standings(now));
            let low = holding.left() <= set.batch / 2 && holding.batches.len() < BATCHES && set.lease >= 2;
            let refill = low && holding.may_ask(now);
            holding.asking |= refill;
            let errand = refill.then(|| Box::new(self.errand(now, set.batch, std::mem::take(&mut holding.finished))));
            return Spent::Here { decision, batch, errand };
        }
        if let Some(refusal) = holding.refused.as_ref().filter(|refusal| refusal.believed_until > now && cost >= refusal.cost) {
            self.spent.fetch_add(1, Ordering::Relaxed);
            let (limit, wait) = (refusal.limit, refusal.over.saturating_sub(now).max(1));
            let decision = Decision::Refused { standings: holding.standings(now), limit, wait };
            return Spent::Here { decision, batch: None, errand: None };
        }
        let want = if holding.may_ask(now) { set.batch } else { 0 };
        if want > 0 {
            holding.asking = true;
            // All goes back, so that the limit sees what is left as a whole.
            holding.finish_all();
        }
        Spent::Ask(self.errand(now, want, std::mem::take(&mut holding.finished)))
    }

    /// Takes the answer to an errand: what was decided about its cost, how many uses the new batch has, and its life.
    pub fn answered(&self, set: &SharedSet, key: &[u8], errand: &Errand, decision: &Decision, lease: (u64, u64), now: u64) {
        let (uses, life) = lease;
        let id = self.id(set, key);
        let Some(shard) = self.shard(id) else { return };
        let mut shard = shard.lock();
        let Some(holding) = shard.get_mut(&id) else { return };
        if errand.want > 0 {
            holding.asking = false;
        }
        holding.seen = decision.standings().clone();
        holding.seen_at = now;
        if uses > 0 {
            let life = life.saturating_sub(life / 50);
            let batch = Batch { id: errand.id, left: uses, spent: 0, expires: errand.at.saturating_add(life), life };
            if let Err(full) = holding.batches.try_push(batch) {
                let _ = holding.finished.try_push((full.element().id, 0));
            }
        }
        holding.refused = None;
    }

    /// Spends `cost`, which Redis has refused, of a batch that arrived while it was asked: what was handed out in advance is
    /// used to Redis, so the last uses of a limit may be missing there only because they are here.
    pub fn spend_instead(&self, set: &SharedSet, key: &[u8], cost: u64, now: u64) -> Option<(Decision, Option<u64>)> {
        let id = self.id(set, key);
        let mut shard = self.shard(id)?.lock();
        let holding = shard.get_mut(&id)?;
        holding.batches.retain(|batch| batch.expires > now);
        let batch = holding.pay(cost)?;
        self.spent.fetch_add(1, Ordering::Relaxed);
        Some((Decision::Admitted(holding.standings(now)), batch))
    }

    /// Takes back what was spent of a batch, as long as Redis has not been told that it was.
    pub fn unspend(&self, set: &SharedSet, key: &[u8], batch: u64, cost: u64) {
        let id = self.id(set, key);
        let Some(shard) = self.shard(id) else { return };
        let mut shard = shard.lock();
        let Some(holding) = shard.get_mut(&id) else { return };
        if let Some(batch) = holding.batches.iter_mut().find(|known| known.id == batch) {
            let part = cost.min(batch.spent);
            batch.spent = batch.spent.saturating_sub(part);
            batch.left = batch.left.saturating_add(part);
        } else if let Some((_, spent)) = holding.finished.iter_mut().find(|(id, _)| *id == batch) {
            *spent = spent.saturating_sub(cost);
        }
    }

    /// Remembers that `cost` was refused, so that the next one need not ask.
    pub fn refused(&self, set: &SharedSet, key: &[u8], cost: u64, decision: &Decision, now: u64) {
        let Decision::Refused { limit, wait, .. } = decision else { return };
        let id = self.id(set, key);
        let Some(shard) = self.shard(id) else { return };
        if let Some(holding) = shard.lock().get_mut(&id) {
            let believed_until = now.saturating_add((*wait).min(REFUSAL));
            holding.refused = Some(Refusal { believed_until, limit: *limit, over: now.saturating_add(*wait), cost });
        }
    }

    /// An errand came to nothing. If it was `sent`, Redis may have done it all the same: then its batch is out until it
    /// expires, and there is no other until then.
    pub fn lost(&self, set: &SharedSet, key: &[u8], errand: &Errand, sent: bool, now: u64) {
        let id = self.id(set, key);
        let Some(shard) = self.shard(id) else { return };
        let mut shard = shard.lock();
        let Some(holding) = shard.get_mut(&id) else { return };
        if errand.want > 0 {
            holding.asking = false;
            if sent {
                holding.frozen_until = holding.frozen_until.max(now.saturating_add(LIFE));
            }
        }
        if !sent {
            for back in &errand.back {
                let _ = holding.finished.try_push(*back);
            }
        }
    }

    /// What is to be given back now: of keys that are idle, and batches that will expire before the next time. To be called
    /// at least every half of [`IDLE`].
    pub fn idle(&self, now: u64, mut each: impl FnMut(&Arc<SharedSet>, &[u8], Errand)) {
        for shard in &self.shards {
            let mut errands = Vec::new();
            shard.lock().retain(|_, holding| {
                holding.batches.retain(|batch| batch.expires > now);
                let idle = now.saturating_sub(holding.used_at) >= IDLE;
                if holding.asking {
                    return true;
                }
                if idle {
                    holding.finish_all();
                } else {
                    holding.finish_where(|batch| batch.expires.saturating_sub(now) < batch.life / 4);
                }
                if !holding.finished.is_empty() {
                    let back = std::mem::take(&mut holding.finished);
                    errands.push((Arc::clone(&holding.set), holding.key.clone(), self.errand(now, 0, back)));
                }
                !(idle && now >= holding.frozen_until)
            });
            for (set, key, errand) in errands {
                each(&set, &key, errand);
            }
        }
    }

    /// Gives back everything, because this gateway ends.
    pub fn surrender(&self, now: u64, mut each: impl FnMut(&Arc<SharedSet>, &[u8], Errand)) {
        for shard in &self.shards {
            for (_, mut holding) in shard.lock().drain() {
                holding.batches.retain(|batch| batch.expires > now);
                holding.finish_all();
                if !holding.finished.is_empty() {
                    let back = std::mem::take(&mut holding.finished);
                    each(&holding.set, &holding.key, self.errand(now, 0, back));
                }
            }
        }
    }

    /// The keys that have leases, and the uses that they hold. For metrics and tests.
    pub fn held(&self, now: u64) -> (u64, u64) {
        let mut sum = (0_u64, 0_u64);
        for shard in &self.shards {
            for holding in shard.lock().values() {
                let left: u64 = holding.batches.iter().filter(|batch| batch.expires > now).map(|batch| batch.left).sum();
                sum = (sum.0.saturating_add(u64::from(left > 0)), sum.1.saturating_add(left));
            }
        }
        sum
    }
}

impl Holding {
    fn new(set: &Arc<SharedSet>, key: &[u8], now: u64) -> Self {
        Holding {
            set: Arc::clone(set),
            key: key.into(),
            batches: ArrayVec::new(),
            finished: Back::new(),
            asking: false,
            frozen_until: 0,
            refused: None,
            seen: Standings::new(),
            seen_at: now,
            used_at: now,
        }
    }

    fn left(&self) -> u64 {
        self.batches.iter().fold(0, |sum, batch| sum.saturating_add(batch.left))
    }

    fn may_ask(&self, now: u64) -> bool {
        !self.asking && now >= self.frozen_until
    }

    /// Takes `cost` from the batches, the oldest first, or nothing. Which batch it was, unless it was two.
    fn pay(&mut self, cost: u64) -> Option<Option<u64>> {
        // Those that are spent are reported only now: until the next use, the last one can be given back.
        self.finish_where(|batch| batch.left == 0);
        if self.left() < cost {
            return None;
        }
        let (mut open, mut from) = (cost, None);
        for batch in &mut self.batches {
            let part = open.min(batch.left);
            batch.left = batch.left.saturating_sub(part);
            batch.spent = batch.spent.saturating_add(part);
            open = open.saturating_sub(part);
            if part == cost {
                from = Some(batch.id);
            }
        }
        Some(from)
    }

    fn finish_all(&mut self) {
        self.finish_where(|_| true);
    }

    fn finish_where(&mut self, which: impl Fn(&Batch) -> bool) {
        let finished = &mut self.finished;
        self.batches.retain(|batch| {
            let done = which(batch);
            if done {
                let _ = finished.try_push((batch.id, batch.spent));
            }
            !done
        });
    }

    /// What the limits looked like to Redis, and what is held here.
    fn standings(&self, now: u64) -> Standings {
        let left = self.left();
        let passed = now.saturating_sub(self.seen_at);
        let mut standings = self.seen.clone();
        for standing in &mut standings {
            standing.remaining = standing.remaining.saturating_add(left);
            standing.more_in = standing.more_in.saturating_sub(passed).max(1);
        }
        standings
    }
}

#[cfg(test)]
mod tests;
