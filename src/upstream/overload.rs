//! How many requests an upstream is given at once: as many as it answers without queueing, found out from its latency.
//!
//! A service that is given more than it can work on does not do more, it answers later, until every answer is too late.
//! Queueing shows as latency above that of the unloaded service. The limit follows the gradient between the two (Netflix's
//! "Performance Under Load", 2018; Envoy's adaptive concurrency filter), ten times a second:
//!
//! ```text
//! gradient = clamp(unloaded * (1 + slack) / latency, 0.5, 1)
//! limit    = limit * gradient + sqrt(limit)
//! ```
//!
//! so that it grows while answers are about as fast as they can be, and settles where they are `slack` slower and a little
//! more. An attempt that times out cuts the limit by a tenth. Where fewer than half of the places are taken latency says
//! nothing about the limit, and it does not grow.
//!
//! The latency of the unloaded service is the lowest that was seen, and is measured anew at times, because what is asked of a
//! service changes: for a moment the limit is a quarter, and what is then seen holds. That happens every 30 s, or every 5 s
//! while latency is above what is tolerated, which may have either cause.
//!
//! What exceeds the limit is refused at once, tiers of low `priority` first.

mod config;

pub use config::OverloadConfig;

use crate::telemetry::metrics::Counter;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The time over which latency is averaged before the limit is changed.
const STEP: Duration = Duration::from_millis(100);
/// Fewer answers than this are no average; a step without enough is as long as ten.
const SAMPLES_MIN: u32 = 10;
const MEASURE_EVERY: Duration = Duration::from_secs(30);
const MEASURE_EVERY_SLOW: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    pub min: u32,
    pub max: u32,
    pub initial: u32,
    /// How much slower than unloaded answers may be, as a share of the unloaded latency.
    pub slack: f64,
}

/// What outlives a reload: where the limit stands, and what is under way.
#[derive(Debug)]
pub struct OverloadState {
    origin: Instant,
    in_flight: AtomicU32,
    limit: AtomicU32,
    /// Since the last change of the limit.
    latency_sum: AtomicU64,
    latency_count: AtomicU32,
    timeouts: AtomicU32,
    peak: AtomicU32,
    /// When the limit is looked at next, in nanoseconds since `origin`.
    next: AtomicU64,
    controller: Mutex<Controller>,
    /// Requests refused.
    pub shed: Counter,
}

/// The limit of an upstream as one snapshot uses it.
#[derive(Debug, Clone)]
pub struct Overload {
    tuning: Tuning,
    state: Arc<OverloadState>,
}

/// One request that the upstream works on. Dropping it ends that.
#[derive(Debug)]
pub struct Place(Arc<OverloadState>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl OverloadState {
    pub fn new(initial: u32, now: Instant) -> Self {
        OverloadState {
            origin: now,
            in_flight: AtomicU32::new(0),
            limit: AtomicU32::new(initial),
            latency_sum: AtomicU64::new(0),
            latency_count: AtomicU32::new(0),
            timeouts: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            next: AtomicU64::new(0),
            controller: Mutex::new(Controller::new(initial)),
            shed: Counter::default(),
        }
    }

    /// How many requests it may work on at once, as things stand.
    pub fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Overload {
    pub fn new(tuning: Tuning, state: Arc<OverloadState>) -> Self {
        Overload { tuning, state }
    }

    pub fn state(&self) -> &Arc<OverloadState> {
        &self.state
    }

    /// Takes a place; `None` if there is none for requests of this share. `share`: which part of the limit they may fill, in
    /// percent.
    pub fn enter(&self, share: u32) -> Option<Place> {
        let state = &self.state;
        let limit = state.limit().clamp(self.tuning.min, self.tuning.max);
        // At least one place for everybody, or the least would be refused however idle the upstream is.
        let places = (u64::from(limit).saturating_mul(share.into()) / 100).max(1);
        let room = |taken: u32| taken.checked_add(1).filter(|taken| u64::from(*taken) <= places);
        match state.in_flight.try_update(Relaxed, Relaxed, room) {
            Ok(before) => {
                state.peak.fetch_max(before.saturating_add(1), Relaxed);
                Some(Place(Arc::clone(state)))
            }
            Err(_) => {
                state.shed.increment();
                // Refused is as good as taken for the question whether the limit is used.
                state.peak.fetch_max(limit, Relaxed);
                None
            }
        }
    }

    /// An attempt was answered after this long.
    pub fn answered(&self, took: Duration, now: Instant) {
        let state = &self.state;
        state.latency_sum.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        state.latency_count.fetch_add(1, Relaxed);
        self.step(now);
    }

    /// An attempt timed out.
    pub fn timed_out(&self, now: Instant) {
        self.state.timeouts.fetch_add(1, Relaxed);
        self.step(now);
    }

    /// Works out the limit anew, if it is time and nobody else does.
    fn step(&self, now: Instant) {
        let state = &self.state;
        let at = state.nanos(now);
        if at < state.next.load(Relaxed) {
            return;
        }
        let Some(mut controller) = state.controller.try_lock() else { return };
        let timeouts = state.timeouts.load(Relaxed);
        let count = state.latency_count.load(Relaxed);
        let short = Duration::from_nanos(at.saturating_sub(controller.began)) < STEP.saturating_mul(10);
        if at < state.next.load(Relaxed) || (count < SAMPLES_MIN && timeouts == 0 && short) {
            return;
        }
        let count = state.latency_count.swap(0, Relaxed);
        let sum = state.latency_sum.swap(0, Relaxed);
        let seen = Seen {
            latency: (count >= SAMPLES_MIN).then(|| sum / u64::from(count)),
            peak: state.peak.swap(state.in_flight(), Relaxed),
            timed_out: state.timeouts.swap(0, Relaxed) > 0,
        };
        state.limit.store(controller.next(&self.tuning, &seen, at), Relaxed);
        state.next.store(at.saturating_add(nanos(controller.pause())), Relaxed);
    }
}

/// What one step has seen.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// The average in nanoseconds, if there were enough answers for one.
    latency: Option<u64>,
    peak: u32,
    timed_out: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Steady,
    /// The limit is low, and what was under way before is still leaving.
    Draining,
    /// The limit is low, and latency is that of the unloaded service.
    Measuring,
}

/// The arithmetic, one step at a time.
#[derive(Debug)]
struct Controller {
    limit: f64,
    /// In nanoseconds; 0: not known.
    unloaded: u64,
    phase: Phase,
    began: u64,
    measured: u64,
    last: u64,
}

impl Controller {
    fn new(initial: u32) -> Self {
        Controller { limit: initial.into(), unloaded: 0, phase: Phase::Steady, began: 0, measured: 0, last: 0 }
    }

    /// How long the step that begins now is at least.
    fn pause(&self) -> Duration {
        match self.phase {
            // Twice what the last answers took: those that wait in the upstream's queue are gone by then.
            Phase::Draining => STEP.max(Duration::from_nanos(self.last.saturating_mul(2))).min(STEP.saturating_mul(10)),
            _ => STEP,
        }
    }

    /// The limit to use from now on.
    fn next(&mut self, tuning: &Tuning, seen: &Seen, at: u64) -> u32 {
        self.began = at;
        self.limit = self.limit.clamp(tuning.min.into(), tuning.max.into());
        match (self.phase, seen.latency) {
            (Phase::Draining, _) => {
                self.phase = Phase::Measuring;
                return self.low(tuning);
            }
            (Phase::Measuring, latency) => {
                // Without answers there is nothing new; what was known stays.
                self.unloaded = latency.unwrap_or(self.unloaded);
                self.measured = at;
                self.phase = Phase::Steady;
                return whole(self.limit);
            }
            (Phase::Steady, None) => {}
            (Phase::Steady, Some(latency)) => {
                self.last = latency;
                if self.unloaded == 0 || latency < self.unloaded {
                    self.unloaded = latency;
                    self.measured = at;
                }
                let ratio = float(self.unloaded) * (1.0 + tuning.slack) / float(latency.max(1));
                let gradient = ratio.clamp(0.5, 1.0);
                let used = f64::from(seen.peak) * 2.0 >= self.limit;
                let grown = self.limit * gradient + self.limit.sqrt();
                if used || grown < self.limit {
                    self.limit = grown;
                }
                let every = if ratio < 1.0 { MEASURE_EVERY_SLOW } else { MEASURE_EVERY };
                if used && at.saturating_sub(self.measured) >= nanos(every) {
                    self.phase = Phase::Draining;
                }
            }
        }
        if seen.timed_out {
            self.limit *= 0.9;
        }
        self.limit = self.limit.clamp(tuning.min.into(), tuning.max.into());
        if self.phase == Phase::Draining { self.low(tuning) } else { whole(self.limit) }
    }

    fn low(&self, tuning: &Tuning) -> u32 {
        whole(self.limit / 4.0).max(tuning.min)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Limits are at most a million and latencies far below 2^53 ns, so that nothing is lost on the way.
#[allow(clippy::cast_precision_loss)]
fn float(nanos: u64) -> f64 {
    nanos as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(limit: f64) -> u32 {
    limit as u32
}

#[cfg(test)]
mod tests;
