//! Passive health: an endpoint that fails where others do not is taken out for a while.
//!
//! Requests only count, in atomics. What follows from the counts is decided beside the path, by one task for each upstream
//! that has `outlier`: every tenth of a second, and at once when an endpoint has failed so many times in a row. It ejects,
//! brings back, and has the order of turns worked out anew; no request waits for that.
//!
//! The bounds matter more than the rules. When everything fails, the fault is hardly that of each endpoint, and sending all
//! traffic to the few that are left brings down those too: so only a share may be out at once, never the last one, and below
//! the panic threshold ejections are void (Envoy's `max_ejection_percent` and `healthy_panic_threshold`). Where the share is full,
//! evidence of today counts for more than that of some time ago: the endpoint that has been out longest, and not less than a
//! first ejection lasts, makes room.

mod config;

pub use config::OutlierConfig;

use super::Upstream;
use super::endpoint::Endpoint;
use super::window::Window;
use crate::telemetry::metrics::Counter;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often rates and latencies are looked at.
const TICK: Duration = Duration::from_millis(100);
/// The weight of one observation in the average latency of an endpoint is 1/8: about 20 requests forget the past.
const LATENCY_SHIFT: u32 = 3;

/// When an endpoint is ejected, for how long, and how many may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Errors in a row; 0: they do not matter.
    pub consecutive: u32,
    /// Parts per million of failed requests.
    pub error_rate: Option<u32>,
    pub min_requests: u64,
    pub window: Duration,
    /// By how many times its latency may exceed the median, and below which latency that does not matter.
    pub slow: Option<(u32, Duration)>,
    pub eject_for: Duration,
    pub eject_for_max: Duration,
    /// Parts per million of the endpoints that may be out at once.
    pub max_ejected: u32,
    /// Parts per million of the endpoints below which ejections are void.
    pub panic: u32,
}

/// Why an endpoint was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    ConsecutiveErrors,
    ErrorRate,
    Latency,
}

impl Reason {
    pub const ALL: [Reason; 3] = [Reason::ConsecutiveErrors, Reason::ErrorRate, Reason::Latency];

    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::ConsecutiveErrors => "consecutive_errors",
            Reason::ErrorRate => "error_rate",
            Reason::Latency => "latency",
        }
    }
}

/// What was seen of one endpoint. Outlives reloads.
#[derive(Debug)]
pub struct OutlierState {
    origin: Instant,
    in_a_row: AtomicU32,
    calls: Window,
    failed: Window,
    /// A moving average, in nanoseconds; 0 before the first.
    latency: AtomicU64,
    ejected: AtomicBool,
    /// In nanoseconds since `origin`; 0: never.
    since: AtomicU64,
    until: AtomicU64,
    back: AtomicU64,
    /// Ejections without a longer time of good conduct between them.
    streak: AtomicU32,
    ejections: [Counter; 3],
}

impl OutlierState {
    pub(super) fn new(window: Duration, now: Instant) -> Self {
        OutlierState {
            // Zero means never, so that even the first instant is not zero.
            origin: now.checked_sub(Duration::from_nanos(1)).unwrap_or(now),
            in_a_row: AtomicU32::new(0),
            calls: Window::new(window, now),
            failed: Window::new(window, now),
            latency: AtomicU64::new(0),
            ejected: AtomicBool::new(false),
            since: AtomicU64::new(0),
            until: AtomicU64::new(0),
            back: AtomicU64::new(0),
            streak: AtomicU32::new(0),
            ejections: Default::default(),
        }
    }

    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Relaxed)
    }

    /// How long it stays out.
    pub fn ejected_for(&self, now: Instant) -> Option<Duration> {
        let left = self.until.load(Relaxed).saturating_sub(self.nanos(now));
        self.is_ejected().then(|| Duration::from_nanos(left))
    }

    /// How long it has been out.
    fn out_for(&self, now: Instant) -> Option<Duration> {
        let nanos = self.nanos(now).saturating_sub(self.since.load(Relaxed));
        self.is_ejected().then(|| Duration::from_nanos(nanos))
    }

    /// Since when it has been back from its last ejection; `None` if it was never ejected or is out. A slow start begins here.
    pub fn back_since(&self) -> Option<Instant> {
        let back = self.back.load(Relaxed);
        (back != 0 && !self.is_ejected()).then(|| self.origin.checked_add(Duration::from_nanos(back))).flatten()
    }

    /// How often it was ejected, by reason.
    pub fn ejections(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().zip(&self.ejections).map(|(reason, counter)| (reason, counter.get()))
    }

    /// The average time to the head of a response, where one was seen.
    pub fn latency(&self) -> Option<Duration> {
        Some(self.latency.load(Relaxed)).filter(|nanos| *nanos != 0).map(Duration::from_nanos)
    }

    /// Takes the result of one request. `true` when its errors in a row have just reached `consecutive`.
    fn record(&self, failed: bool, took: Option<Duration>, consecutive: u32, now: Instant) -> bool {
        self.calls.count(now);
        if let Some(took) = took {
            // Of two threads at once one may be lost, which an average can bear.
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
            let next = match self.latency.load(Relaxed) {
                0 => nanos,
                average => average - (average >> LATENCY_SHIFT) + (nanos >> LATENCY_SHIFT),
            };
            self.latency.store(next.max(1), Relaxed);
        }
        if failed {
            self.failed.count(now);
            self.in_a_row.fetch_add(1, Relaxed).saturating_add(1) == consecutive
        } else {
            if self.in_a_row.load(Relaxed) != 0 {
                self.in_a_row.store(0, Relaxed);
            }
            false
        }
    }

    fn reason(&self, tuning: &Tuning, median: Option<u64>, now: Instant) -> Option<Reason> {
        if tuning.consecutive > 0 && self.in_a_row.load(Relaxed) >= tuning.consecutive {
            return Some(Reason::ConsecutiveErrors);
        }
        let calls = self.calls.sum(now);
        if calls < tuning.min_requests {
            return None;
        }
        let failed = || self.failed.sum(now).saturating_mul(1_000_000);
        if tuning.error_rate.is_some_and(|rate| failed() >= calls.saturating_mul(rate.into())) {
            return Some(Reason::ErrorRate);
        }
        let (factor, least) = tuning.slow?;
        let latency = self.latency.load(Relaxed);
        let slow = latency > median?.saturating_mul(factor.into()) && Duration::from_nanos(latency) >= least;
        slow.then_some(Reason::Latency)
    }

    fn eject(&self, reason: Reason, tuning: &Tuning, now: Instant) -> Duration {
        let nanos = self.nanos(now);
        // As well behaved for as long as the longest ejection lasts: it begins anew.
        let behaved = nanos.saturating_sub(self.back.load(Relaxed));
        let longest = u64::try_from(tuning.eject_for_max.as_nanos()).unwrap_or(u64::MAX);
        let streak = if behaved >= longest { 0 } else { self.streak.load(Relaxed) };
        let wait = tuning.eject_for.saturating_mul(1_u32.checked_shl(streak).unwrap_or(u32::MAX)).min(tuning.eject_for_max);
        self.streak.store(streak.saturating_add(1), Relaxed);
        self.since.store(nanos, Relaxed);
        self.until.store(nanos.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)), Relaxed);
        self.ejected.store(true, Relaxed);
        if let Some((_, counter)) = Reason::ALL.iter().zip(&self.ejections).find(|(known, _)| **known == reason) {
            counter.increment();
        }
        wait
    }

    /// Back, and known for nothing.
    fn pardon(&self, now: Instant) {
        self.in_a_row.store(0, Relaxed);
        self.latency.store(0, Relaxed);
        self.calls.clear();
        self.failed.clear();
        self.back.store(self.nanos(now).max(1), Relaxed);
        self.ejected.store(false, Relaxed);
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What the endpoints of one upstream share, by its name.
#[derive(Debug, Default)]
pub struct Group {
    wake: Arc<Notify>,
    dependents: Mutex<Vec<Weak<Upstream>>>,
}

impl Group {
    pub(super) fn depend(&self, upstream: &Arc<Upstream>) {
        let upstream = Arc::downgrade(upstream);
        let mut dependents = self.dependents.lock();
        dependents.retain(|known| known.strong_count() > 0 && !known.ptr_eq(&upstream));
        dependents.push(upstream);
    }

    /// Looks at all endpoints once, ejects and brings back. Gives the time to the next look; `None` when nothing is left to
    /// look at.
    pub(super) fn evaluate(&self) -> Option<Duration> {
        let dependents: Vec<Arc<Upstream>> = self.dependents.lock().iter().filter_map(Weak::upgrade).collect();
        // The newest one is in force. Older ones belong to requests that are still under way, and follow.
        let upstream = dependents.last()?;
        let tuning = upstream.guards().outlier.as_ref()?;
        let now = upstream.clock().now();
        if judge(upstream.name(), &upstream.endpoints(), tuning, now) {
            dependents.iter().for_each(|upstream| upstream.rebuild_ring());
        }
        Some(TICK)
    }
}

/// `true` if an endpoint came or went.
fn judge(upstream: &str, endpoints: &[Arc<Endpoint>], tuning: &Tuning, now: Instant) -> bool {
    let members = || endpoints.iter().filter(|endpoint| endpoint.weight() > 0);
    let watched = || members().filter_map(|endpoint| Some((endpoint, endpoint.outlier()?)));
    let bring_back = |endpoint: &Endpoint, state: &OutlierState, why: &str| {
        state.pardon(now);
        endpoint.state().begin_warming(now);
        log::info!("upstream {upstream}: endpoint {} is back from its ejection{why}", endpoint.address());
    };
    let mut changed = false;
    for (endpoint, state) in watched().filter(|(_, state)| state.ejected_for(now).is_some_and(|left| left.is_zero())) {
        bring_back(endpoint, state, "");
        changed = true;
    }
    let median = tuning.slow.and_then(|_| {
        let known = watched().filter(|(_, state)| !state.is_ejected() && state.calls.sum(now) >= tuning.min_requests);
        let mut latencies: Vec<u64> = known.map(|(_, state)| state.latency.load(Relaxed)).filter(|nanos| *nanos != 0).collect();
        latencies.sort_unstable();
        // The lower of two in the middle, so that of two endpoints the slow one is measured by the fast one.
        latencies.get(latencies.len().checked_sub(1)? / 2).copied()
    });
    let count = members().count();
    let share = u64::try_from(count).unwrap_or(0).saturating_mul(tuning.max_ejected.into()) / 1_000_000;
    let most = usize::try_from(share).unwrap_or(usize::MAX).max(1);
    let mut out = watched().filter(|(_, state)| state.is_ejected()).count();
    let mut available = members().filter(|endpoint| endpoint.is_healthy()).count();
    for (endpoint, state) in watched().filter(|(_, state)| !state.is_ejected()) {
        let Some(reason) = state.reason(tuning, median, now) else { continue };
        if tuning.max_ejected == 0 {
            continue;
        }
        let last = |available: usize| endpoint.is_healthy() && available <= 1;
        if out >= most || last(available) {
            let long = watched().filter_map(|(endpoint, state)| Some((endpoint, state, state.out_for(now)?)));
            let longest = long.filter(|(.., time)| *time >= tuning.eject_for).max_by_key(|(.., time)| *time);
            let Some((longest, of_longest, _)) = longest else { continue };
            bring_back(longest, of_longest, ", for another one fails now");
            out = out.saturating_sub(1);
            available = available.saturating_add(usize::from(longest.is_healthy()));
            changed = true;
            if last(available) {
                continue;
            }
        }
        available = available.saturating_sub(usize::from(endpoint.is_healthy()));
        out = out.saturating_add(1);
        let wait = state.eject(reason, tuning, now);
        let (address, why) = (endpoint.address(), reason.as_str());
        log::warn!("upstream {upstream}: endpoint {address} is ejected for {wait:?}: {why}");
        changed = true;
    }
    changed
}

/// Looks after one upstream for as long as anything else holds its state.
pub(super) async fn watch(group: Weak<Group>) {
    loop {
        let Some(wake) = group.upgrade().map(|group| Arc::clone(&group.wake)) else { return };
        let Some(wait) = group.upgrade().and_then(|group| group.evaluate()) else { return };
        // Nothing is kept alive while waiting. A wake-up that comes in between is kept for the next wait.
        let _ = tokio::time::timeout(wait, wake.notified()).await;
    }
}

/// The outlier detection of one endpoint, as one snapshot sees it.
#[derive(Debug, Clone)]
pub struct Watched {
    pub(super) state: Arc<OutlierState>,
    pub(super) group: Arc<Group>,
    pub(super) consecutive: u32,
}

impl Watched {
    pub fn record(&self, failed: bool, took: Option<Duration>, now: Instant) {
        if self.state.record(failed, took, self.consecutive, now) {
            self.group.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
