//! A key set behind a URL: the last good keys, how old they are, and when they are fetched again.
//!
//! It outlives reloads: snapshots that name the same URL share it. The request path only reads; fetching is the work of a task
//! of the [`KeySupervisor`](super::KeySupervisor), which a token with an unknown `kid` may wake, but not more often than the
//! issuer's cooldown, and however many such tokens there are, for one attempt that all of them wait for.

use super::fetch::{self, Fetched};
use super::keys::KeySet;
use crate::clock::SharedClock;
use crate::fetch::Endpoint;
use crate::telemetry::metrics::{Counter, Gauge, GaugeGuard};
use arc_swap::{ArcSwapOption, Guard};
use bytes::Bytes;
use http::HeaderValue;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsConnector;

/// The longest that a request waits for keys.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// The most requests that wait for one key set; further ones are refused at once.
const WAITING_MAX: u64 = 512;
/// The wait after the first failure, and the longest after many.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The shortest time between two attempts, whatever `Cache-Control` says.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The keys of one URL.
pub struct RemoteKeys {
    pub(super) at: Endpoint,
    tls: Option<TlsConnector>,
    clock: SharedClock,
    started: Instant,
    keys: ArcSwapOption<Generation>,
    /// Milliseconds from `started` to the last attempt that worked, whether it brought new keys or not.
    confirmed: AtomicU64,
    schedule: Mutex<Schedule>,
    pub(super) wanted: Arc<Notify>,
    /// Counts attempts that have ended.
    ended: watch::Sender<u64>,
    waiting: Gauge,
    pub fetched: Counter,
    pub failed: Counter,
}

/// Keys, and which ones in a row they are.
pub(super) struct Generation {
    pub set: KeySet,
    pub number: u64,
    source: Bytes,
}

#[derive(Default)]
struct Schedule {
    /// An attempt has been asked for or is under way.
    pending: bool,
    last_attempt: Option<Instant>,
    /// `None`: now.
    due: Option<Instant>,
    failures: u32,
    etag: Option<HeaderValue>,
}

/// What can be done about keys that are not there.
pub(super) enum Asked {
    /// They may be there when this attempt ends.
    Wait(Ticket),
    /// There was an attempt just now, and it worked: what it did not bring does not exist.
    Known,
    /// There was an attempt just now, and it failed; or too many wait already.
    Unavailable,
}

/// A place among those who wait for an attempt to end.
pub struct Ticket {
    ended: watch::Receiver<u64>,
    _place: GaugeGuard,
}

impl Ticket {
    /// Returns when the attempt has ended, or after two seconds.
    pub async fn wait(mut self) {
        let _ = tokio::time::timeout(WAIT_MAX, self.ended.changed()).await;
    }
}

impl RemoteKeys {
    pub(super) fn new(at: Endpoint, tls: Option<TlsConnector>, clock: SharedClock) -> Self {
        RemoteKeys {
            at,
            tls,
            started: clock.now(),
            clock,
            keys: ArcSwapOption::empty(),
            confirmed: AtomicU64::new(0),
            schedule: Mutex::default(),
            wanted: Arc::default(),
            ended: watch::Sender::new(0),
            waiting: Gauge::default(),
            fetched: Counter::default(),
            failed: Counter::default(),
        }
    }

    /// Where they come from.
    pub fn url(&self) -> String {
        self.at.to_string()
    }

    /// The last good keys, unless they are older than `max_stale`.
    pub(super) fn current(&self, max_stale: Duration) -> Guard<Option<Arc<Generation>>> {
        let keys = self.keys.load();
        if keys.is_some() && self.age().is_none_or(|age| age > max_stale) {
            return Guard::from_inner(None);
        }
        keys
    }

    /// How long ago the keys were last known to be right; `None` before the first time.
    pub fn age(&self) -> Option<Duration> {
        self.keys.load().as_ref()?;
        let confirmed = Duration::from_millis(self.confirmed.load(Ordering::Acquire));
        Some(self.clock.now().saturating_duration_since(self.started).saturating_sub(confirmed))
    }

    /// Whether the last attempt failed.
    pub fn is_failing(&self) -> bool {
        self.schedule.lock().failures > 0
    }

    /// Has the keys fetched again, unless that was done within `cooldown`.
    pub(super) fn ask(&self, cooldown: Duration) -> Asked {
        let mut schedule = self.schedule.lock();
        if !schedule.pending {
            let now = self.clock.now();
            let recent = schedule.last_attempt.is_some_and(|last| now.saturating_duration_since(last) < cooldown);
            match recent {
                true if schedule.failures > 0 => return Asked::Unavailable,
                true => return Asked::Known,
                false => {}
            }
        }
        if self.waiting.get() >= WAITING_MAX {
            return Asked::Unavailable;
        }
        // Subscribed under the lock that an attempt ends under, so that its end is not missed.
        let ticket = Ticket { ended: self.ended.subscribe(), _place: self.waiting.enter() };
        if !schedule.pending {
            schedule.pending = true;
            self.wanted.notify_one();
        }
        Asked::Wait(ticket)
    }

    /// How long until the next attempt is due.
    pub(super) fn due_in(&self) -> Duration {
        let schedule = self.schedule.lock();
        schedule.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()))
    }

    /// Fetches once, keeps what came of it, and says when the next attempt is due.
    pub(super) async fn attempt(&self, refresh: Duration, timeout: Duration) {
        let etag = {
            let mut schedule = self.schedule.lock();
            schedule.pending = true;
            schedule.etag.clone()
        };
        // Also when this future is dropped half way: nobody waits for an attempt that never ends.
        let under_way = UnderWay(self);
        let fetch = fetch::fetch(&self.at, self.tls.as_ref(), etag.as_ref());
        let fetched = tokio::time::timeout(timeout, fetch).await;
        let result = fetched.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}"))).and_then(|got| self.take(got));
        let mut schedule = self.schedule.lock();
        let wait = match result {
            Ok((etag, max_age)) => {
                self.fetched.increment();
                if schedule.failures > 0 {
                    log::info!("the keys of {} can be fetched again", self.at);
                }
                schedule.failures = 0;
                schedule.etag = etag;
                max_age.map_or(refresh, |fresh| refresh.min(fresh))
            }
            Err(why) => {
                self.failed.increment();
                if schedule.failures == 0 {
                    let kept = if self.keys.load().is_some() { "the last good ones stay" } else { "there are none yet" };
                    log::warn!("cannot fetch the keys of {}: {why}; {kept}", self.at);
                }
                schedule.failures = schedule.failures.saturating_add(1);
                let doubled = BACKOFF.0.saturating_mul(1 << schedule.failures.saturating_sub(1).min(6));
                doubled.min(BACKOFF.1).min(refresh.max(BACKOFF.0))
            }
        };
        schedule.due = Instant::now().checked_add(super::supervisor::jittered(wait.max(PAUSE_MIN)));
        drop(schedule);
        drop(under_way);
    }

    /// Takes an answer over; gives the ETag to ask with next, and how long the answer is fresh.
    fn take(&self, fetched: Fetched) -> Result<(Option<HeaderValue>, Option<Duration>), String> {
        let (etag, max_age) = match fetched {
            Fetched::Unchanged { max_age } => (self.schedule.lock().etag.clone(), max_age),
            Fetched::Body { bytes, etag, max_age } => {
                let known = self.keys.load();
                if known.as_ref().is_none_or(|known| known.source != bytes) {
                    let set = KeySet::jwks(&bytes, true)?;
                    let number = known.as_ref().map_or(0, |known| known.number).wrapping_add(1);
                    log::info!("{}: {} keys", self.at, set.iter().count());
                    set.skipped.iter().for_each(|why| log::info!("{}: left out: {why}", self.at));
                    self.keys.store(Some(Arc::new(Generation { set, number, source: bytes })));
                }
                (etag, max_age)
            }
        };
        let age = self.clock.now().saturating_duration_since(self.started);
        self.confirmed.store(u64::try_from(age.as_millis()).unwrap_or(u64::MAX), Ordering::Release);
        Ok((etag, max_age))
    }
}

/// Ends an attempt when dropped.
struct UnderWay<'a>(&'a RemoteKeys);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut schedule = self.0.schedule.lock();
        schedule.pending = false;
        schedule.last_attempt = Some(self.0.clock.now());
        self.0.ended.send_modify(|count| *count = count.wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const COOLDOWN: Duration = Duration::from_secs(10);

    fn keys() -> (RemoteKeys, Arc<ManualClock>) {
        let clock = ManualClock::new();
        // Nobody listens on port 0.
        (RemoteKeys::new(Endpoint::parse("http://127.0.0.1:0/").unwrap(), None, clock.clone()), clock)
    }

    fn kind(asked: &Asked) -> &'static str {
        match asked {
            Asked::Wait(_) => "wait",
            Asked::Known => "known",
            Asked::Unavailable => "unavailable",
        }
    }

    #[tokio::test]
    async fn however_many_ask_there_is_one_attempt_for_each_cooldown() {
        let (keys, clock) = keys();
        let tickets: Vec<Asked> = (0..100).map(|_| keys.ask(COOLDOWN)).collect();
        assert!(tickets.iter().all(|asked| kind(asked) == "wait"));
        keys.attempt(COOLDOWN, COOLDOWN).await;
        for asked in tickets {
            let Asked::Wait(ticket) = asked else { panic!() };
            ticket.wait().await;
        }
        assert_eq!((keys.failed.get(), keys.is_failing()), (1, true));
        assert_eq!(kind(&keys.ask(COOLDOWN)), "unavailable", "the last attempt failed, so nothing is known");
        clock.advance(COOLDOWN);
        assert_eq!(kind(&keys.ask(COOLDOWN)), "wait");
    }

    #[test]
    fn no_more_wait_than_there_is_room_for() {
        let (keys, _clock) = keys();
        let mut tickets: Vec<Asked> = (0..WAITING_MAX).map(|_| keys.ask(COOLDOWN)).collect();
        assert_eq!(kind(&keys.ask(COOLDOWN)), "unavailable");
        tickets.pop();
        assert_eq!(kind(&keys.ask(COOLDOWN)), "wait");
    }

    #[tokio::test]
    async fn an_attempt_that_is_dropped_lets_nobody_wait() {
        let (keys, clock) = keys();
        let Asked::Wait(ticket) = keys.ask(COOLDOWN) else { panic!() };
        let attempt = Box::pin(keys.attempt(COOLDOWN, COOLDOWN));
        let _ = tokio::time::timeout(Duration::ZERO, attempt).await;
        ticket.wait().await;
        clock.advance(COOLDOWN);
        assert_eq!(kind(&keys.ask(COOLDOWN)), "wait");
    }

    #[test]
    fn keys_age_until_they_are_confirmed_and_only_new_ones_count_as_new() {
        let (keys, clock) = keys();
        let set = br#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        let body = |bytes: &'static [u8]| Fetched::Body { bytes: Bytes::from_static(bytes), etag: None, max_age: None };
        let number = |keys: &RemoteKeys| keys.current(COOLDOWN).as_ref().map(|generation| generation.number);
        assert_eq!((keys.age(), number(&keys)), (None, None));
        keys.take(body(set)).unwrap();
        assert_eq!((keys.age(), number(&keys)), (Some(Duration::ZERO), Some(1)));
        clock.advance(COOLDOWN);
        assert_eq!(number(&keys), Some(1));
        clock.advance(Duration::from_millis(1));
        assert_eq!(number(&keys), None, "older than they may be");
        assert!(keys.take(body(b"garbage")).is_err());
        assert_eq!(number(&keys), None, "garbage confirms nothing");
        keys.take(Fetched::Unchanged { max_age: None }).unwrap();
        assert_eq!(number(&keys), Some(1));
        keys.take(body(set)).unwrap();
        assert_eq!(number(&keys), Some(1), "the same keys again");
    }
}
