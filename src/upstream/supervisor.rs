//! The background work of all upstreams: one task for each endpoint that is checked, one for each name that is looked up.
//!
//! Tasks belong to state, not to a snapshot. After a reload [`Supervisor::reconcile`] compares what runs with what the new
//! upstreams need, and touches only the difference, so that a reload neither restarts the checks of what stayed nor loses
//! where they stand.

use super::health::{HealthState, Tuning};
use super::resolve::{NameState, Refresh, Resolve};
use super::{Endpoint, Upstream, probe};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

/// The most health checks on the wire at once. Further ones wait for their turn, which their timeout does not count; it
/// keeps a start with thousands of endpoints from taking all file descriptors.
pub const CONCURRENT_CHECKS: usize = 256;

/// Runs checks and look-ups. Dropping it ends them.
pub struct Supervisor {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Handle,
    resolver: Arc<dyn Resolve>,
    checks_at_once: Arc<Semaphore>,
    tasks: Mutex<Tasks>,
    answered: Notify,
}

#[derive(Default)]
struct Tasks {
    upstreams: Vec<Weak<Upstream>>,
    /// By the address of the state. The task's `Weak` keeps that address from being used again.
    checks: HashMap<usize, Task<HealthState, Tuning>>,
    names: HashMap<usize, Task<NameState, Refresh>>,
}

/// A running loop over one state.
struct Task<S, T> {
    _state: Weak<S>,
    settings: T,
    handle: AbortHandle,
}

impl<S, T> Drop for Task<S, T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Supervisor {
    /// Tasks run on `runtime`; the methods may be called from anywhere.
    pub fn new(runtime: Handle, resolver: Arc<dyn Resolve>) -> Self {
        Supervisor {
            inner: Arc::new(Inner {
                runtime,
                resolver,
                checks_at_once: Arc::new(Semaphore::new(CONCURRENT_CHECKS)),
                tasks: Mutex::default(),
                answered: Notify::new(),
            }),
        }
    }

    /// Makes the running tasks those that `upstreams` need: begins new ones, each with a check or look-up at once; ends those
    /// that nothing needs any more; restarts those whose intervals, timeouts or thresholds changed; leaves the rest alone.
    pub fn reconcile<'a>(&self, upstreams: impl IntoIterator<Item = &'a Arc<Upstream>>) {
        self.inner.tasks.lock().upstreams = upstreams.into_iter().map(Arc::downgrade).collect();
        self.inner.refresh();
    }

    /// Waits until every name has been looked up once, whatever came of it, but no longer than `limit`. A reload that adds names
    /// calls it between `reconcile` and the swap, so that requests do not meet an upstream that is still empty.
    pub async fn settle(&self, limit: Duration) {
        let all_answered = async {
            loop {
                let answered = self.inner.answered.notified();
                tokio::pin!(answered);
                answered.as_mut().enable();
                let upstreams = self.inner.upstreams();
                if upstreams.iter().flat_map(|upstream| upstream.names()).all(|name| name.was_tried()) {
                    return;
                }
                drop(upstreams);
                answered.await;
            }
        };
        let _ = timeout(limit, all_answered).await;
    }
}

impl Inner {
    fn upstreams(&self) -> Vec<Arc<Upstream>> {
        self.tasks.lock().upstreams.iter().filter_map(Weak::upgrade).collect()
    }

    fn refresh(self: &Arc<Self>) {
        let mut tasks = self.tasks.lock();
        let upstreams: Vec<Arc<Upstream>> = tasks.upstreams.iter().filter_map(Weak::upgrade).collect();

        let mut names: HashMap<usize, (&Arc<NameState>, Refresh)> = HashMap::new();
        for upstream in &upstreams {
            let wanted = upstream.refresh();
            for name in upstream.names() {
                let (_, refresh) = names.entry(key(name)).or_insert((name, wanted));
                refresh.interval = refresh.interval.min(wanted.interval);
                refresh.timeout = refresh.timeout.min(wanted.timeout);
            }
        }
        tasks.names.retain(|at, task| names.get(at).is_some_and(|(_, refresh)| *refresh == task.settings));
        for (at, (name, refresh)) in names {
            tasks.names.entry(at).or_insert_with(|| {
                let job = look_up(Arc::downgrade(name), self.resolver.clone(), refresh, Arc::downgrade(self));
                let handle = self.runtime.spawn(job).abort_handle();
                Task { _state: Arc::downgrade(name), settings: refresh, handle }
            });
        }

        let mut checks: HashMap<usize, (Arc<str>, Arc<Endpoint>, Arc<HealthState>, Tuning)> = HashMap::new();
        for upstream in &upstreams {
            let Some(tuning) = upstream.tuning() else { continue };
            for endpoint in upstream.endpoints().iter() {
                // A drained endpoint is checked as well: whoever gives it weight again wants to know first.
                if let Some(health) = endpoint.health() {
                    checks.insert(key(health), (upstream.name().clone(), endpoint.clone(), health.clone(), tuning));
                }
            }
        }
        tasks.checks.retain(|at, task| checks.get(at).is_some_and(|(.., tuning)| *tuning == task.settings));
        for (at, (upstream, endpoint, health, tuning)) in checks {
            tasks.checks.entry(at).or_insert_with(|| {
                let who = format!("upstream {upstream}: endpoint {}", Who(&endpoint));
                let job = check(Arc::downgrade(&health), endpoint.address(), tuning, who, self.checks_at_once.clone());
                let handle = self.runtime.spawn(job).abort_handle();
                Task { _state: Arc::downgrade(&health), settings: tuning, handle }
            });
        }
    }
}

fn key<S>(state: &Arc<S>) -> usize {
    Arc::as_ptr(state).addr()
}

/// An endpoint in a log line: its address, and the name that it came from.
struct Who<'a>(&'a Endpoint);

impl std::fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = self.0.address().to_string();
        f.write_str(&address)?;
        if *address != **self.0.written() { write!(f, " ({})", self.0.written()) } else { Ok(()) }
    }
}

/// Checks one endpoint for as long as anything else holds its state.
async fn check(
    state: Weak<HealthState>,
    address: std::net::SocketAddr,
    tuning: Tuning,
    who: String,
    at_once: Arc<Semaphore>,
) {
    loop {
        let started = Instant::now();
        {
            let Some(state) = state.upgrade() else { return };
            let Ok(permit) = at_once.acquire().await else { return };
            let result = probe::check(address, state.definition(), tuning.timeout).await;
            drop(permit);
            match (state.record(result, &tuning), result) {
                (Some(false), Err(why)) => log::warn!("{who} is unhealthy: {why}"),
                (Some(_), _) => log::info!("{who} is healthy"),
                (None, _) => {}
            }
            let wait = jittered(tuning.interval).saturating_sub(started.elapsed());
            state.expect_next(wait);
            drop(state);
            sleep(wait).await;
        }
    }
}

/// Looks one name up for as long as anything else holds its state.
async fn look_up(name: Weak<NameState>, resolver: Arc<dyn Resolve>, refresh: Refresh, supervisor: Weak<Inner>) {
    let Some(host) = name.upgrade().map(|name| name.host().clone()) else { return };
    // The system's resolver cannot be stopped. A look-up that is late is kept and asked again in the next round, so that a
    // dead name server holds one thread for each name and not one more with each round.
    let mut late = None;
    loop {
        let mut lookup = late.take().unwrap_or_else(|| resolver.resolve(&host));
        let result = match timeout(refresh.timeout, &mut lookup).await {
            Ok(result) => result,
            Err(_) => {
                late = Some(lookup);
                Err(io::Error::new(io::ErrorKind::TimedOut, "the resolver did not answer in time"))
            }
        };
        let wait = jittered(refresh.interval);
        {
            let (Some(name), Some(supervisor)) = (name.upgrade(), supervisor.upgrade()) else { return };
            name.expect_next(wait);
            if name.record(result) {
                supervisor.refresh();
            }
            supervisor.answered.notify_waiters();
        }
        sleep(wait).await;
    }
}

/// `interval`, longer or shorter by up to 10 %.
fn jittered(interval: Duration) -> Duration {
    // A fresh `RandomState` is a random number without a dependency; nothing here needs a good one.
    let random = RandomState::new().build_hasher().finish();
    let permille = 900 + u32::try_from(random % 201).unwrap_or(100);
    interval.saturating_mul(permille) / 1000
}
