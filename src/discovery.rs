//! Endpoints that are found and not written down.
//!
//! A source ([`Discovery`]) is asked in the background and never by a request. What it says passes through one place
//! ([`driver`]), whatever the source: addresses outside of the allowed networks are dropped, their number is bounded, changes
//! are debounced, and a failure or an empty answer leaves the last good answer in use. That answer is a state
//! ([`Feed`]) that outlives reloads, so that a reload while a source is down takes nothing away.

pub mod config;
mod consul;
mod dns;
mod driver;
mod file;
mod http;
mod plan;
mod redis;

pub use config::DiscoverConfig;
pub use consul::ConsulSource;
pub use dns::DnsSource;
pub use driver::drive;
pub use file::FileSource;
pub use plan::{Bounds, Plan};
pub use redis::RedisSource;

use crate::clock::SharedClock;
use crate::telemetry::metrics::Counter;
use async_trait::async_trait;
use parking_lot::Mutex;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The largest weight of an endpoint.
pub const WEIGHT_MAX: u16 = 1000;
/// The largest priority of an endpoint.
pub const PRIORITY_MAX: u8 = 9;

/// Somewhere that knows which endpoints there are.
#[async_trait]
pub trait Discovery: Send {
    /// Asks once. A source that can wait for a change may do so, up to [`Discovery::patience`]; the first time it answers
    /// at once.
    async fn ask(&mut self) -> Result<Answer, Failure>;

    /// The longest that one [`Discovery::ask`] may take. Then it is dropped, and counts as a failure.
    fn patience(&self) -> Duration;
}

/// What a source has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub found: Vec<Found>,
    /// When to ask again.
    pub again: Duration,
}

/// One endpoint that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    pub address: SocketAddr,
    /// 0 to 1000.
    pub weight: u16,
    /// 0 to 9; smaller ones are used first.
    pub priority: u8,
    pub zone: Option<Arc<str>>,
    /// The name that it came from with its port, such as the one that was looked up in DNS: what it is called where its address
    /// would mean nothing to a server.
    pub name: Option<Arc<str>>,
}

impl Found {
    /// An endpoint of which only the address is known.
    pub fn at(address: SocketAddr) -> Self {
        Found { address, weight: 1, priority: 0, zone: None, name: None }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub reason: Reason,
    /// For the log, without secrets.
    pub why: String,
}

impl Failure {
    pub fn new(reason: Reason, why: impl fmt::Display) -> Self {
        Failure { reason, why: why.to_string() }
    }
}

/// The kinds of failure that are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No answer in time.
    Timeout,
    /// The source could not be reached, or broke off.
    Unreachable,
    /// It refuses to say, such as for want of a right.
    Denied,
    /// What it said makes no sense.
    Invalid,
    /// It knows no endpoint, and `allow_empty` is not set.
    Empty,
}

impl Reason {
    pub const ALL: [Reason; 5] = [Reason::Timeout, Reason::Unreachable, Reason::Denied, Reason::Invalid, Reason::Empty];

    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Timeout => "timeout",
            Reason::Unreachable => "unreachable",
            Reason::Denied => "denied",
            Reason::Invalid => "invalid",
            Reason::Empty => "empty",
        }
    }
}

/// Is told when a feed has changed.
pub trait Watch: Send + Sync {
    fn changed(self: Arc<Self>);
}

/// What is known from one source. Keyed by the upstream and what is asked for, so that neither another timeout nor another
/// token loses the answer.
pub struct Feed {
    /// Such as `upstream orders: dns orders.internal`.
    who: String,
    clock: SharedClock,
    known: Mutex<Known>,
    watchers: Mutex<Vec<Weak<dyn Watch>>>,
    failures: [Counter; Reason::ALL.len()],
}

#[derive(Default)]
struct Known {
    /// Sorted by address, each once.
    found: Arc<[Found]>,
    /// When the source last confirmed it.
    good: Option<Instant>,
    /// Since when it fails, if it does.
    failing: Option<Instant>,
    tried: bool,
    /// Addresses of the last answer that were not used: not allowed, or too many.
    unused: usize,
}

/// A feed at one moment, for expositions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// How many endpoints are in use.
    pub endpoints: usize,
    pub unused: usize,
    /// Since the last good answer; `None` before the first.
    pub age: Option<Duration>,
    pub failing: bool,
    /// By [`Reason::ALL`].
    pub failures: [(&'static str, u64); Reason::ALL.len()],
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("who", &self.who).finish_non_exhaustive()
    }
}

impl Feed {
    pub fn new(who: String, clock: SharedClock) -> Self {
        Feed { who, clock, known: Mutex::default(), watchers: Mutex::default(), failures: Default::default() }
    }

    /// The endpoints in use, sorted by address.
    pub fn found(&self) -> Arc<[Found]> {
        Arc::clone(&self.known.lock().found)
    }

    /// Whether it was asked at least once, with whatever result.
    pub fn was_tried(&self) -> bool {
        self.known.lock().tried
    }

    pub fn standing(&self) -> Standing {
        let known = self.known.lock();
        let age = known.good.map(|good| self.clock.now().saturating_duration_since(good));
        let failures = Reason::ALL.map(|reason| (reason.as_str(), self.counter(reason).map_or(0, Counter::get)));
        Standing { endpoints: known.found.len(), unused: known.unused, age, failing: known.failing.is_some(), failures }
    }

    /// Tells `watcher` of changes for as long as it lives.
    pub fn watch(&self, watcher: Weak<dyn Watch>) {
        let mut watchers = self.watchers.lock();
        watchers.retain(|known| known.strong_count() > 0);
        watchers.push(watcher);
    }

    fn counter(&self, reason: Reason) -> Option<&Counter> {
        self.failures.get(reason as usize)
    }

    /// The source has confirmed what is known, or is about to change it.
    fn confirm(&self, unused: usize) {
        let mut known = self.known.lock();
        known.good = Some(self.clock.now());
        known.tried = true;
        if unused > 0 && known.unused == 0 {
            log::warn!("{}: {unused} addresses are not used: outside of `allow`, not possible, or too many", self.who);
        }
        known.unused = unused;
        if known.failing.take().is_some() {
            log::info!("{}: answers again", self.who);
        }
    }

    /// Puts other endpoints in use. They are in place for every watcher when this returns.
    fn set(&self, found: Vec<Found>) {
        {
            let mut known = self.known.lock();
            let (before, now) = (known.found.len(), found.len());
            log::info!("{}: {now} endpoints, {before} before", self.who);
            known.found = found.into();
        }
        let watchers = self.watchers.lock().clone();
        watchers.iter().filter_map(Weak::upgrade).for_each(Watch::changed);
    }

    /// What is known stays in use. Logged when it begins.
    fn fail(&self, failure: &Failure) {
        if let Some(counter) = self.counter(failure.reason) {
            counter.increment();
        }
        let mut known = self.known.lock();
        known.tried = true;
        if known.failing.is_none() {
            known.failing = Some(self.clock.now());
            log::warn!("{}: {}; {} known endpoints stay in use", self.who, failure.why, known.found.len());
        }
    }

    fn failing_since(&self) -> Option<Instant> {
        self.known.lock().failing
    }
}

#[cfg(test)]
mod tests;
