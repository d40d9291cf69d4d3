//! Limits: how often something may happen, and who keeps count.
//!
//! A [`Limit`] is a number over a time, counted by one of three algorithms ([`algorithm`]). A [`LimitSet`] is what holds for
//! one request together: all of its limits admit it, or it consumes nothing of any. When a later filter of the route refuses it,
//! the earlier ones give back what they took ([`Uses`]). The counts are kept by a store:
//! [`local`] in this process, exact and bounded in memory, or [`redis`], exact over all gateways. What a store may get
//! wrong, and by how much, is in `docs/limits.md`.
//!
//! [`shield`] is something else: an estimate for the gateway as a whole, that protects machines and keeps no contract.

pub mod algorithm;
pub mod concurrency;
pub mod config;
pub mod key;
pub mod local;
mod period;
pub mod redis;
pub mod shield;
mod stores;
pub mod top;
mod uses;

pub use algorithm::{Moment, Standing, State};
pub use config::LimitConfig;
pub use key::{By, ByConfig, Keys};
pub use stores::Stores;
pub use uses::{Source, Use, Uses};

use crate::value::Period;
use arrayvec::ArrayVec;
use std::sync::Arc;

/// The most limits that hold for one request of one filter.
pub const LIMITS_MAX: usize = 8;

/// How uses are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// A bucket of `capacity` that fills with `number` in each `per` nanoseconds: GCRA (ITU-T I.371) with exact integers.
    /// In any time `per`, at most `number + capacity - 1` are admitted.
    TokenBucket { per: u64, capacity: u64 },
    /// At most `number` in any time of `per` nanoseconds. A use is given back at most `per / 15` late.
    SlidingWindow { per: u64 },
    /// At most `number` in each period of the calendar (UTC).
    FixedWindow { period: Period },
}

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Told to clients and in metrics: as configured, or what was written, such as `60/1m`.
    pub name: Arc<str>,
    pub shape: Shape,
    /// At least 1, at most [`crate::value::NUMBER_MAX`].
    pub number: u64,
}

impl Limit {
    /// The most that one request may ever cost: more is never admitted.
    pub fn most(&self) -> u64 {
        match self.shape {
            Shape::TokenBucket { capacity, .. } => capacity,
            _ => self.number,
        }
    }

    /// What gives the count its meaning: a limit with another number goes on with the same count, one with another window
    /// or algorithm does not.
    pub fn meaning(&self) -> String {
        match self.shape {
            Shape::TokenBucket { per, .. } => format!("bucket/{per}"),
            Shape::SlidingWindow { per } => format!("sliding/{per}"),
            Shape::FixedWindow { period } => format!("fixed/{}", period.as_str()),
        }
    }

    /// The share of one gateway among `gateways`, for when they cannot count together. At least as much as `dearest`, the cost of
    /// the dearest request: else it would be refused for as long as that lasts.
    pub fn share(&self, gateways: u64, dearest: u64) -> Limit {
        let gateways = gateways.max(1);
        let least = dearest.min(self.most()).max(1);
        let part = |whole: u64| whole.checked_div(gateways).unwrap_or(whole).max(least);
        let (number, shape) = match self.shape {
            // The same number over a longer time is the exact share; dividing the number would round.
            Shape::TokenBucket { per, capacity } => {
                (self.number, Shape::TokenBucket { per: per.saturating_mul(gateways), capacity: part(capacity) })
            }
            other => (part(self.number), other),
        };
        Limit { name: Arc::clone(&self.name), number, shape }
    }

    /// The same limit with its number and burst multiplied, rounded, at least 1 and at most what can be counted.
    pub fn times(&self, factor: f64) -> Limit {
        let part = |whole: u64, most: u64| ((whole as f64 * factor).round() as u64).clamp(1, most);
        let most = match self.shape {
            Shape::SlidingWindow { .. } => algorithm::SLIDING_MAX,
            _ => crate::value::NUMBER_MAX,
        };
        let shape = match self.shape {
            Shape::TokenBucket { per, capacity } => Shape::TokenBucket { per, capacity: part(capacity, most) },
            other => other,
        };
        Limit { name: format!("{}*{factor}", self.name).into(), number: part(self.number, most), shape }
    }

    /// The window in whole seconds, rounded up, so that `5/100ms` has 1: `w` of `RateLimit-Policy`.
    pub fn window_seconds(&self) -> u64 {
        match self.shape {
            Shape::TokenBucket { per, .. } | Shape::SlidingWindow { per } => per.div_ceil(1_000_000_000),
            Shape::FixedWindow { period } => match period {
                Period::Minute => 60,
                Period::Hour => 3_600,
                Period::Day => 86_400,
                // Months differ; `t` of `RateLimit` tells the end of this one.
                Period::Month => 2_592_000,
            },
        }
    }
}

/// What is left of each limit after a decision, in the order of the set.
pub type Standings = ArrayVec<Standing, LIMITS_MAX>;

/// A decision about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Admitted(Standings),
    /// Nothing was consumed. `limit` is the one that takes the longest to admit it, `wait` how long that is, in nanoseconds.
    Refused {
        standings: Standings,
        limit: usize,
        wait: u64,
    },
}

impl Decision {
    pub fn standings(&self) -> &Standings {
        match self {
            Decision::Admitted(standings) | Decision::Refused { standings, .. } => standings,
        }
    }
}

/// What one filter decided about a request, kept for the headers of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The number of the filter; numbers are unique in the process.
    pub filter: u32,
    /// Which of the filter's sets, and which limit of the set.
    pub set: u16,
    pub limit: u16,
    pub standing: Standing,
}

/// What all filters decided about a request. More than there is room for is not told to the client.
pub type Report = ArrayVec<Seen, LIMITS_MAX>;
