//! Circuit breakers: an upstream that fails is left alone for a while, and then asked carefully.
//!
//! Closed, every call passes and its result is counted over a sliding window. When too many fail, or are slow, the breaker
//! opens: calls are refused at once, which spares the callers the wait and the upstream the load. After `open_for` it is half
//! open: so many calls pass as probes; when all of them are well it closes, with the first that is not it opens again.
//! (M. Nygard, "Release It!", chapter "Stability Patterns".)
//!
//! Everything is atomics. One word holds the state and the number of the change that led to it; a change is one
//! compare-and-swap of that word, so that of threads that see the same reason for it exactly one makes it, and tells it. The
//! number is in each [`Permit`]: the result of a call that began before the last change says nothing about the present.

mod config;

pub(in crate::upstream) use config::number;
pub use config::{Answer, BreakerConfig, Scope};

use super::window::Window;
use crate::telemetry::metrics::Counter;
use http::{HeaderMap, HeaderName};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Whether an answer counts as a failure of the upstream. `grpc`: UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE and
/// DATA_LOSS are what HTTP has 5xx for.
pub fn is_failure(status: u16, grpc: Option<u8>) -> bool {
    status >= 500 || grpc.is_some_and(|code| matches!(code, 2 | 4 | 13 | 14 | 15))
}

/// The status of a gRPC answer that consists of nothing else.
pub fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// When a breaker opens and closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Parts per million of failed calls that open it.
    pub error_rate: u32,
    pub window: Duration,
    /// Fewer calls than this within the window prove nothing.
    pub min_requests: u64,
    /// Failed calls in a row that open it.
    pub consecutive: Option<u32>,
    /// From which time on a call is slow, and how many parts per million of slow calls open it.
    pub slow: Option<(Duration, u32)>,
    pub open_for: Duration,
    pub probes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Closed,
    Open,
    HalfOpen,
}

impl State {
    pub const ALL: [State; 3] = [State::Closed, State::Open, State::HalfOpen];

    pub const fn as_str(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half_open",
        }
    }
}

/// What outlives a reload: where a breaker stands and what it has counted.
#[derive(Debug)]
pub struct BreakerState {
    /// What it guards: `upstream`, `endpoint` or `route`, and its name.
    kind: &'static str,
    name: Box<str>,
    origin: Instant,
    /// The number of the last change, times four, plus the state.
    word: AtomicU64,
    /// When an open one becomes half open, and when a half open one that has no probes left may have another, in nanoseconds since
    /// `origin`.
    until: AtomicU64,
    probes_left: AtomicU32,
    probes_passed: AtomicU32,
    in_a_row: AtomicU32,
    calls: Window,
    failed: Window,
    slow: Window,
    /// How often each state was entered, by [`State::ALL`].
    entered: [Counter; 3],
    /// Calls refused.
    pub refused: Counter,
}

/// A breaker as one snapshot uses it.
#[derive(Debug, Clone)]
pub struct Breaker {
    tuning: Arc<Tuning>,
    state: Arc<BreakerState>,
}

/// A call may be made. Dropped without a result, as when the client goes away, it says nothing about the upstream.
#[derive(Debug)]
#[must_use = "a permit that is dropped counts for nothing"]
pub struct Permit {
    breaker: Breaker,
    change: u64,
    probe: bool,
}

impl BreakerState {
    pub fn new(kind: &'static str, name: &str, window: Duration, now: Instant) -> Self {
        BreakerState {
            kind,
            name: name.into(),
            origin: now,
            word: AtomicU64::new(0),
            until: AtomicU64::new(0),
            probes_left: AtomicU32::new(0),
            probes_passed: AtomicU32::new(0),
            in_a_row: AtomicU32::new(0),
            calls: Window::new(window, now),
            failed: Window::new(window, now),
            slow: Window::new(window, now),
            entered: Default::default(),
            refused: Counter::default(),
        }
    }

    pub fn state(&self) -> State {
        unpack(self.word.load(Ordering::Acquire)).1
    }

    /// What it guards: `upstream`, `endpoint` or `route`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The name of what it guards; that of an endpoint is `UPSTREAM/ADDRESS`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How often each state was entered.
    pub fn entered(&self) -> impl Iterator<Item = (State, u64)> {
        State::ALL.into_iter().zip(&self.entered).map(|(state, counter)| (state, counter.get()))
    }

    /// Calls, failed calls and slow calls of the window.
    pub fn counts(&self, now: Instant) -> [u64; 3] {
        [&self.calls, &self.failed, &self.slow].map(|window| window.sum(now))
    }

    /// Changes from one state, as it was seen, to another. Of several threads only one does; that one tells it.
    fn change(&self, from: u64, to: State, why: &str) -> bool {
        let (number, before) = unpack(from);
        let next = (number.wrapping_add(1) << 2) | to as u64;
        let changed = self.word.compare_exchange(from, next, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if changed {
            let [closed, open, half_open] = &self.entered;
            match to {
                State::Closed => closed,
                State::Open => open,
                State::HalfOpen => half_open,
            }
            .increment();
            let level = if to == State::Open { log::Level::Warn } else { log::Level::Info };
            let (kind, name, before, to) = (self.kind, &self.name, before.as_str(), to.as_str());
            log::log!(level, "the breaker of {kind} {name} is {to}, was {before}: {why}");
        }
        changed
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    fn forget(&self) {
        [&self.calls, &self.failed, &self.slow].into_iter().for_each(Window::clear);
        self.in_a_row.store(0, Ordering::Relaxed);
    }
}

fn unpack(word: u64) -> (u64, State) {
    let state = match word & 3 {
        0 => State::Closed,
        1 => State::Open,
        _ => State::HalfOpen,
    };
    (word >> 2, state)
}

impl Breaker {
    pub fn new(tuning: Arc<Tuning>, state: Arc<BreakerState>) -> Self {
        Breaker { tuning, state }
    }

    pub fn state(&self) -> &Arc<BreakerState> {
        &self.state
    }

    /// Lets a call pass, or says how long it is until that is worth trying again.
    pub fn admit(&self, now: Instant) -> Result<Permit, Duration> {
        let state = &self.state;
        // A second round if another thread has just changed the state; after that it is as good as any answer.
        for _ in 0..3 {
            let word = state.word.load(Ordering::Acquire);
            let (change, phase) = unpack(word);
            match phase {
                State::Closed => return Ok(Permit { breaker: self.clone(), change, probe: false }),
                State::Open => {
                    let left = state.until.load(Ordering::Acquire).saturating_sub(state.nanos(now));
                    if left > 0 {
                        state.refused.increment();
                        return Err(Duration::from_nanos(left));
                    }
                    state.until.store(self.later(now), Ordering::Release);
                    if state.change(word, State::HalfOpen, "it was open for long enough, probes may pass") {
                        // Until this is written there is no probe to take: `open` has left none.
                        state.probes_passed.store(0, Ordering::Release);
                        state.probes_left.store(self.tuning.probes, Ordering::Release);
                    }
                }
                State::HalfOpen => {
                    let take = |left: u32| left.checked_sub(1);
                    if state.probes_left.try_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok() || self.one_more(now) {
                        return Ok(Permit { breaker: self.clone(), change, probe: true });
                    }
                    break;
                }
            }
        }
        state.refused.increment();
        // The probes are under way: what they find shows soon.
        Err(Duration::from_secs(1))
    }

    /// Whether a call would pass now, without making one.
    pub fn would_admit(&self, now: Instant) -> bool {
        let state = &self.state;
        match state.state() {
            State::Closed => true,
            State::Open => state.until.load(Ordering::Acquire) <= state.nanos(now),
            State::HalfOpen => {
                state.probes_left.load(Ordering::Acquire) > 0 || state.until.load(Ordering::Acquire) <= state.nanos(now)
            }
        }
    }

    /// Whether a probe may pass though none is left. Once in each `open_for`, by whoever comes first: what a reload has made of the
    /// number of probes, or a probe whose result was lost, must not leave a breaker half open for ever.
    fn one_more(&self, now: Instant) -> bool {
        let state = &self.state;
        let until = state.until.load(Ordering::Acquire);
        let over = until <= state.nanos(now);
        over && state.until.compare_exchange(until, self.later(now), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// `open_for` from now.
    fn later(&self, now: Instant) -> u64 {
        let open_for = u64::try_from(self.tuning.open_for.as_nanos()).unwrap_or(u64::MAX);
        self.state.nanos(now).saturating_add(open_for)
    }

    /// A call that had begun to be answered broke off: one more that failed.
    pub fn broke_off(&self, now: Instant) {
        let word = self.state.word.load(Ordering::Acquire);
        if unpack(word).1 == State::Closed {
            self.count(word, true, None, now);
        }
    }

    fn open(&self, from: u64, now: Instant, why: &str) {
        self.state.until.store(self.later(now), Ordering::Release);
        self.state.probes_left.store(0, Ordering::Release);
        self.state.change(from, State::Open, why);
    }

    /// Counts a call of the closed state, and opens where that proves enough.
    fn count(&self, word: u64, failed: bool, took: Option<Duration>, now: Instant) {
        let (state, tuning) = (&self.state, &self.tuning);
        let slow = tuning.slow.is_some_and(|(bound, _)| took.is_some_and(|took| took >= bound));
        state.calls.count(now);
        if !failed && state.in_a_row.load(Ordering::Relaxed) != 0 {
            state.in_a_row.store(0, Ordering::Relaxed);
        }
        if !failed && !slow {
            return;
        }
        let calls = || state.calls.sum(now).max(1);
        let reaches = |part: u64, whole: u64, rate: u32| {
            whole >= tuning.min_requests && part.saturating_mul(1_000_000) >= whole.saturating_mul(rate.into())
        };
        if failed {
            state.failed.count(now);
            let in_a_row = state.in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            if tuning.consecutive.is_some_and(|bound| in_a_row >= bound) {
                return self.open(word, now, &format!("{in_a_row} calls in a row failed"));
            }
            let (failures, calls) = (state.failed.sum(now), calls());
            if reaches(failures, calls, tuning.error_rate) {
                return self.open(word, now, &format!("{failures} of {calls} calls failed"));
            }
        }
        if let Some((bound, rate)) = tuning.slow.filter(|_| slow) {
            state.slow.count(now);
            let (slow, calls) = (state.slow.sum(now), calls());
            if reaches(slow, calls, rate) {
                self.open(word, now, &format!("{slow} of {calls} calls took {bound:?} or longer"));
            }
        }
    }
}

impl Permit {
    /// The call came to an end that the upstream has to answer for. `took`: until the head of the response, where that can
    /// be told.
    pub fn record(mut self, failed: bool, took: Option<Duration>, now: Instant) {
        let probe = std::mem::take(&mut self.probe);
        let state = &self.breaker.state;
        let word = state.word.load(Ordering::Acquire);
        let (change, phase) = unpack(word);
        if change != self.change {
            return;
        }
        match phase {
            State::Closed => self.breaker.count(word, failed, took, now),
            State::HalfOpen if probe && failed => self.breaker.open(word, now, "a probe failed"),
            State::HalfOpen if probe => {
                let passed = state.probes_passed.fetch_add(1, Ordering::AcqRel).saturating_add(1);
                if passed >= self.breaker.tuning.probes {
                    // Before the change: calls of the new state are not to be forgotten.
                    state.forget();
                    state.change(word, State::Closed, "all probes passed");
                }
            }
            State::HalfOpen | State::Open => {}
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // A probe without a result makes room for another, or the breaker would stay half open for ever.
        let state = &self.breaker.state;
        if self.probe && unpack(state.word.load(Ordering::Acquire)) == (self.change, State::HalfOpen) {
            let back = |left: u32| left.checked_add(1).filter(|left| *left <= self.breaker.tuning.probes);
            let _ = state.probes_left.try_update(Ordering::AcqRel, Ordering::Acquire, back);
        }
    }
}

#[cfg(test)]
mod tests;
