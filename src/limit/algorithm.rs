//! The three algorithms as pure functions of a state, a moment and a cost.
//!
//! Everything is whole nanoseconds and exact: a bucket's level is held in units of `1 / per` of a use, so that it drains by
//! `number` units in each nanosecond whatever the rate is, from one a year to a thousand millions a millisecond. The unit does not
//! depend on `number`, so that a reload that changes it goes on with the same level. Sums saturate; with the bounds of
//! [`crate::value::Rate`] none comes near.

use super::{Limit, Shape, period};
use crate::value::Period;

/// What is remembered of one key for one limit. All zeros is a key that was never seen.
pub type State = [u64; 5];

/// The slots of a sliding window: fifteen make up its length, and one more is the one that time is in.
const SLOTS: usize = 16;
/// The largest number of a sliding window: a slot counts in 16 bits.
pub const SLIDING_MAX: u64 = u16::MAX as u64;

/// Now, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Since some fixed point in the life of the process.
    pub mono: u64,
    /// Since the Unix epoch. Used by calendar windows only, and may jump.
    pub wall: u64,
}

/// What is left of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Uses that would be admitted now.
    pub remaining: u64,
    /// Nanoseconds until there is more; 0 if there is nothing to wait for.
    pub more_in: u64,
    /// Nanoseconds until the key is as if it had never been seen; 0 if it is.
    pub idle_in: u64,
}

impl Limit {
    /// The state after `cost` uses at `now`, or how many nanoseconds to wait until they would be admitted (`u64::MAX` if they
    /// never would).
    pub fn take(&self, state: &State, now: Moment, cost: u64) -> Result<State, u64> {
        match self.shape {
            Shape::TokenBucket { per, capacity } => bucket_take(self.number, per, capacity, state, now.mono, cost),
            Shape::SlidingWindow { per } => Slots::at(per, state, now.mono).take(self.number, now.mono, cost),
            Shape::FixedWindow { period } => fixed_take(self.number, period, state, now.wall, cost),
        }
    }

    /// The state without `cost` uses that were taken at `taken` or later, because the request was refused after all. Never less
    /// than if they had not been taken: of a bucket goes back what has not drained since, of the others what still counts.
    pub fn give(&self, state: &State, taken: Moment, now: Moment, cost: u64) -> State {
        match self.shape {
            Shape::TokenBucket { per, .. } => {
                let passed = u128::from(now.mono.saturating_sub(taken.mono)).saturating_mul(self.number.into());
                let lasting = u128::from(cost).saturating_mul(per.into()).saturating_sub(passed);
                let [at, ..] = *state;
                let level = level(self.number, state, now.mono).saturating_sub(lasting);
                [at.max(now.mono), small(level & u128::from(u64::MAX)), small(level >> 64), 0, 0]
            }
            Shape::SlidingWindow { per } => Slots::at(per, state, now.mono).give(taken.mono, cost),
            Shape::FixedWindow { period } => {
                let [window, count, ..] = *state;
                // What was counted before the period began, or by another clock, is not of this count.
                let same = period::at(period, taken.wall).0 == window;
                [window, if same { count.saturating_sub(cost) } else { count }, 0, 0, 0]
            }
        }
    }

    pub fn standing(&self, state: &State, now: Moment) -> Standing {
        match self.shape {
            Shape::TokenBucket { per, capacity } => bucket_standing(self.number, per, capacity, state, now.mono),
            Shape::SlidingWindow { per } => Slots::at(per, state, now.mono).standing(self.number, now.mono),
            Shape::FixedWindow { period } => {
                let (_, count, left) = fixed(period, state, now.wall);
                let wait = if count == 0 { 0 } else { left };
                Standing { remaining: self.number.saturating_sub(count), more_in: wait, idle_in: wait }
            }
        }
    }
}

fn small(wide: u128) -> u64 {
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// The level of a bucket in units of `1 / per` uses, at `now`.
fn level(number: u64, state: &State, now: u64) -> u128 {
    let [at, low, high, ..] = *state;
    let level = u128::from(high) << 64 | u128::from(low);
    // A clock that went back makes no time pass.
    level.saturating_sub(u128::from(now.saturating_sub(at)).saturating_mul(number.into()))
}

fn bucket_take(number: u64, per: u64, capacity: u64, state: &State, now: u64, cost: u64) -> Result<State, u64> {
    let full = u128::from(capacity).saturating_mul(per.into());
    let next = level(number, state, now).saturating_add(u128::from(cost).saturating_mul(per.into()));
    let [at, ..] = *state;
    if next > full {
        let drained = small(next.saturating_sub(full).div_ceil(number.max(1).into()));
        return Err(if cost > capacity { u64::MAX } else { drained.saturating_add(at.saturating_sub(now)) });
    }
    Ok([at.max(now), small(next & u128::from(u64::MAX)), small(next >> 64), 0, 0])
}

fn bucket_standing(number: u64, per: u64, capacity: u64, state: &State, now: u64) -> Standing {
    // After a clock went back, nothing drains until it is where it was.
    let [at, ..] = *state;
    let still = at.saturating_sub(now);
    let number = u128::from(number.max(1));
    let per = u128::from(per.max(1));
    let full = u128::from(capacity).saturating_mul(per);
    let level = level(small(number), state, now);
    let remaining = full.saturating_sub(level).checked_div(per).unwrap_or(0);
    // The level at which there is one more.
    let next = full.saturating_sub(remaining.saturating_add(1).saturating_mul(per));
    let more_in = level.saturating_sub(next).div_ceil(number);
    Standing {
        remaining: small(remaining),
        more_in: if level == 0 { 0 } else { small(more_in).saturating_add(still) },
        idle_in: if level == 0 { 0 } else { small(level.div_ceil(number)).saturating_add(still) },
    }
}

/// The window that counts now, its count, and the nanoseconds that are left of it.
fn fixed(period: Period, state: &State, wall: u64) -> (u64, u64, u64) {
    let [known, count, ..] = *state;
    let (current, left) = period::at(period, wall);
    if known == current {
        return (current, count, left);
    }
    // A clock that was set back across one boundary does not begin a new window. One that was set back further had been
    // wrong before, and a count of the far future must not hold until then.
    if known == current.saturating_add(1) && count > 0 {
        let (_, next) = period::at(period, wall.saturating_add(left));
        return (known, count, left.saturating_add(next));
    }
    (current, 0, left)
}

fn fixed_take(number: u64, period: Period, state: &State, wall: u64, cost: u64) -> Result<State, u64> {
    let (window, count, left) = fixed(period, state, wall);
    let next = count.saturating_add(cost);
    if next > number {
        return Err(if cost > number { u64::MAX } else { left });
    }
    Ok([window, next, 0, 0, 0])
}

/// The counts of a sliding window, newest first, as they are at a moment.
struct Slots {
    /// Nanoseconds.
    length: u64,
    /// The number of the slot that time is in.
    newest: u64,
    counts: [u16; SLOTS],
}

impl Slots {
    fn at(per: u64, state: &State, now: u64) -> Self {
        let [known, packed @ ..] = *state;
        let length = per.div_ceil(15).max(1);
        let newest = now.checked_div(length).unwrap_or(0).max(known);
        let passed = usize::try_from(newest.saturating_sub(known)).unwrap_or(SLOTS);
        let mut counts = [0; SLOTS];
        let old = packed.iter().flat_map(|word| word.to_le_bytes()).collect::<arrayvec::ArrayVec<u8, 32>>();
        let (pairs, _) = old.as_chunks::<2>();
        for (count, pair) in counts.iter_mut().skip(passed).zip(pairs) {
            *count = u16::from_le_bytes(*pair);
        }
        Slots { length, newest, counts }
    }

    fn sum(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// Nanoseconds until at least `uses` have been given back.
    fn freed_in(&self, uses: u64, now: u64) -> u64 {
        let mut freed = 0_u64;
        for (age, count) in (0..SLOTS as u64).rev().zip(self.counts.into_iter().rev()) {
            freed = freed.saturating_add(count.into());
            if freed >= uses {
                let slot = self.newest.saturating_sub(age);
                return slot.saturating_add(16).saturating_mul(self.length).saturating_sub(now).max(1);
            }
        }
        u64::MAX
    }

    fn take(mut self, number: u64, now: u64, cost: u64) -> Result<State, u64> {
        let next = self.sum().saturating_add(cost);
        if next > number {
            let wait = if cost > number { u64::MAX } else { self.freed_in(next.saturating_sub(number), now) };
            return Err(wait);
        }
        let [newest, ..] = &mut self.counts;
        *newest = newest.saturating_add(u16::try_from(cost).unwrap_or(u16::MAX));
        Ok(self.pack())
    }

    /// From the slot of `taken` on: there it was counted, or later, and what stays counted instead stays longer.
    fn give(mut self, taken: u64, cost: u64) -> State {
        let age = self.newest.saturating_sub(taken.checked_div(self.length).unwrap_or(0));
        let newer = usize::try_from(age).unwrap_or(SLOTS).saturating_add(1);
        let mut open = if newer > SLOTS { 0 } else { cost };
        for count in self.counts.iter_mut().take(newer).rev() {
            let part = u16::try_from(open).unwrap_or(u16::MAX).min(*count);
            *count = count.saturating_sub(part);
            open = open.saturating_sub(part.into());
        }
        self.pack()
    }

    fn pack(&self) -> State {
        let mut state = [self.newest, 0, 0, 0, 0];
        let (chunks, _) = self.counts.as_chunks::<4>();
        for (word, chunk) in state.iter_mut().skip(1).zip(chunks) {
            *word = chunk.iter().rev().fold(0, |word, count| word << 16 | u64::from(*count));
        }
        state
    }

    fn standing(&self, number: u64, now: u64) -> Standing {
        let sum = self.sum();
        let wait = |uses: u64| if uses == 0 { 0 } else { self.freed_in(uses, now) };
        // Enough must go for one more to be admitted, which after a reload to a lower number can be several.
        let more = sum.saturating_sub(number).saturating_add(1).min(sum);
        Standing { remaining: number.saturating_sub(sum), more_in: wait(more), idle_in: wait(sum) }
    }
}

#[cfg(test)]
mod tests;
