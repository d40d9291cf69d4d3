//! How many requests of a key are under way, exactly, and a short queue for those that come when it is full.
//!
//! A place is given back when its request ends, however it ends: a [`Permit`] in the request's context does it when it is
//! dropped. A place that is given back goes to the request that has waited longest, never past it to a newcomer. Memory is
//! bounded by the requests that are under way or wait, because a key without any is not kept. A key is held as 128 bits of keyed
//! hash, as the local store holds it, so that a request that need not wait allocates nothing.

use super::local::hash128;
use parking_lot::Mutex;
use pingora_limits::inflight::{Guard, Inflight};
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;
use std::sync::Arc;
use tokio::sync::oneshot;

const SHARDS: usize = 32;

/// The requests of one scope under way, by key.
pub struct Running {
    shards: Box<[Mutex<Shard>]>,
    seeds: [RandomState; 2],
}

type Shard = HashMap<u128, Key, foldhash::fast::RandomState>;

#[derive(Default)]
struct Key {
    running: u32,
    waiting: VecDeque<Waiter>,
}

/// A request that waits until no more than `most` run, itself included: two filters that share a name may allow different numbers,
/// and so may the configuration before a reload and the one after it.
struct Waiter {
    most: u32,
    place: oneshot::Sender<Permit>,
}

impl Key {
    /// Gives places to those whose turn it is. They are told by the caller, without the lock: a permit that nobody takes comes
    /// back by being dropped.
    fn serve(&mut self) -> SmallVec<[oneshot::Sender<Permit>; 1]> {
        let mut served = SmallVec::new();
        while let Some(next) = self.waiting.front() {
            let closed = next.place.is_closed();
            if !closed && self.running >= next.most {
                break;
            }
            if let Some(next) = self.waiting.pop_front().filter(|_| !closed) {
                self.running = self.running.saturating_add(1);
                served.push(next.place);
            }
        }
        served
    }
}

/// A place among the requests under way.
pub struct Permit {
    running: Arc<Running>,
    key: u128,
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

/// The places that a request holds.
#[derive(Debug, Default)]
pub struct Held(SmallVec<[Place; 2]>);

/// One of them; given back when it is dropped.
#[derive(Debug)]
#[allow(dead_code)] // Held for what dropping them does.
enum Place {
    Exact(Permit),
    Estimated(Guard),
}

impl Held {
    pub fn hold(&mut self, permit: Permit) {
        self.0.push(Place::Exact(permit));
    }

    pub fn hold_estimate(&mut self, guard: Guard) {
        self.0.push(Place::Estimated(guard));
    }
}

/// The same by an estimate (`pingora-limits`): no lock, and the same memory whatever the keys are, about 256 KiB. A key is never counted too low; with
/// very many keys under way at once it can be counted too high, and be refused for others.
pub struct Estimate(Inflight);

impl Default for Estimate {
    fn default() -> Self {
        Estimate(Inflight::new())
    }
}

impl Estimate {
    /// How many of `key` are under way.
    pub fn count(&self, key: &[u8]) -> u32 {
        let (_guard, count) = self.0.incr(key, 0);
        u32::try_from(count).unwrap_or(0)
    }

    /// One of `most` places of `key`, if there is one.
    pub fn ask(&self, key: &[u8], most: u32) -> Option<Guard> {
        let (guard, count) = self.0.incr(key, 1);
        isize::try_from(most).is_ok_and(|most| count <= most).then_some(guard)
    }
}

/// What a request for a place gets.
pub enum Answer {
    Go(Permit),
    /// Comes as soon as there is a place. Dropping it leaves the queue.
    Wait(oneshot::Receiver<Permit>),
    Full,
}

impl Default for Running {
    fn default() -> Self {
        let seeds = [RandomState::new(), RandomState::new()];
        Running { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), seeds }
    }
}

impl Running {
    fn shard(&self, key: u128) -> Option<&Mutex<Shard>> {
        self.shards.get(usize::try_from(key >> 64).unwrap_or_default() % SHARDS)
    }

    /// Asks for one of `most` places of `key`; where they are taken, for one of `queue` places in its queue.
    pub fn ask(self: &Arc<Self>, key: &[u8], most: u32, queue: usize) -> Answer {
        let key = hash128(&self.seeds, key);
        let Some(shard) = self.shard(key) else { return Answer::Full };
        let mut shard = shard.lock();
        let Some(known) = shard.get_mut(&key) else {
            shard.insert(key, Key { running: 1, waiting: VecDeque::new() });
            return Answer::Go(Permit { running: Arc::clone(self), key });
        };
        // Where more may run than before, those who wait come first.
        let served = known.serve();
        let answer = if known.running < most && known.waiting.is_empty() {
            known.running = known.running.saturating_add(1);
            Answer::Go(Permit { running: Arc::clone(self), key })
        } else {
            // Those that have given up waiting make room.
            known.waiting.retain(|waiter| !waiter.place.is_closed());
            if known.waiting.len() >= queue {
                Answer::Full
            } else {
                let (place, receiver) = oneshot::channel();
                known.waiting.push_back(Waiter { most, place });
                Answer::Wait(receiver)
            }
        };
        drop(shard);
        self.tell(key, served);
        answer
    }

    fn tell(self: &Arc<Self>, key: u128, served: SmallVec<[oneshot::Sender<Permit>; 1]>) {
        for place in served {
            drop(place.send(Permit { running: Arc::clone(self), key }));
        }
    }

    /// How many of `key` wait.
    #[cfg(test)]
    pub fn waiting(&self, key: &[u8]) -> usize {
        let key = hash128(&self.seeds, key);
        self.shard(key).and_then(|shard| shard.lock().get(&key).map(|key| key.waiting.len())).unwrap_or(0)
    }

    /// How many of `key` are under way.
    pub fn count(&self, key: &[u8]) -> u32 {
        let key = hash128(&self.seeds, key);
        self.shard(key).and_then(|shard| shard.lock().get(&key).map(|key| key.running)).unwrap_or(0)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(shard) = self.running.shard(self.key) else { return };
        let served = {
            let mut shard = shard.lock();
            let Some(known) = shard.get_mut(&self.key) else { return };
            known.running = known.running.saturating_sub(1);
            let served = known.serve();
            if known.running == 0 {
                shard.remove(&self.key);
            }
            served
        };
        self.running.tell(self.key, served);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(running: &Arc<Running>, most: u32) -> Option<Permit> {
        match running.ask(b"a", most, 0) {
            Answer::Go(permit) => Some(permit),
            _ => None,
        }
    }

    #[test]
    fn as_many_run_as_may_and_a_panic_gives_its_place_back() {
        let running = Arc::new(Running::default());
        let first = go(&running, 2).unwrap();
        let second = go(&running, 2).unwrap();
        assert!(go(&running, 2).is_none());
        assert!(matches!(running.ask(b"b", 2, 0), Answer::Go(_)));
        drop(first);
        let third = go(&running, 2).unwrap();
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = third;
            std::panic::resume_unwind(Box::new("in a hook"));
        }));
        assert!(unwound.is_err() && running.count(b"a") == 1);
        drop(second);
        assert!(running.shards.iter().all(|shard| shard.lock().is_empty()), "keys without requests are not kept");
    }

    #[test]
    fn an_estimate_admits_no_more_than_may_and_gives_places_back() {
        let estimate = Estimate::default();
        let first = estimate.ask(b"a", 2).unwrap();
        let _second = estimate.ask(b"a", 2).unwrap();
        assert!(estimate.ask(b"a", 2).is_none() && estimate.ask(b"b", 2).is_some());
        drop(first);
        assert!(estimate.ask(b"a", 2).is_some(), "what was refused or is over is not counted");
    }

    #[test]
    fn the_queue_is_served_in_order_and_those_who_left_are_passed_over() {
        let running = Arc::new(Running::default());
        let first = go(&running, 1).unwrap();
        let Answer::Wait(gone) = running.ask(b"a", 1, 2) else { panic!() };
        let Answer::Wait(mut second) = running.ask(b"a", 1, 2) else { panic!() };
        assert!(matches!(running.ask(b"a", 1, 2), Answer::Full));
        drop(gone);
        let Answer::Wait(mut third) = running.ask(b"a", 1, 2) else { panic!() };
        drop(first);
        assert!(go(&running, 1).is_none(), "a newcomer does not overtake");
        let second = second.try_recv().unwrap();
        assert!(third.try_recv().is_err());
        drop(second);
        drop(third);
        assert_eq!(running.count(b"a"), 0, "a place handed to somebody who left comes back");
    }

    #[test]
    fn what_may_run_follows_a_reload_also_for_those_who_wait() {
        let running = Arc::new(Running::default());
        let (first, second) = (go(&running, 2).unwrap(), go(&running, 2).unwrap());
        // Fewer from now on.
        let Answer::Wait(mut waits) = running.ask(b"a", 1, 1) else { panic!() };
        drop(first);
        assert!(waits.try_recv().is_err(), "one runs still");
        drop(second);
        let waited = waits.try_recv().unwrap();
        // More again: who waits comes before who comes now.
        let Answer::Wait(mut waits) = running.ask(b"a", 1, 1) else { panic!() };
        let Answer::Wait(mut late) = running.ask(b"a", 1, 2) else { panic!() };
        assert!(matches!(running.ask(b"a", 3, 3), Answer::Wait(_)), "the first of them may not run yet");
        drop(waited);
        let waited = waits.try_recv().unwrap();
        drop(waited);
        drop(late.try_recv().unwrap());
        assert_eq!(running.count(b"a"), 0);
    }

    #[test]
    fn threads_never_run_more_than_may() {
        let running = Arc::new(Running::default());
        let most = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if let Some(_permit) = go(&running, 3) {
                            most.fetch_max(running.count(b"a"), std::sync::atomic::Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert!(most.into_inner() <= 3 && running.count(b"a") == 0);
    }
}
