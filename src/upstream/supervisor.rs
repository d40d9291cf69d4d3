//! The background work of all upstreams: one task for each endpoint that is checked, one for each name that is looked up, one
//! for each upstream with slow start, one for each source that endpoints are found in.
//!
//! Tasks belong to state, not to a snapshot. After a reload [`Supervisor::reconcile`] compares what runs with what the new
//! upstreams need, and touches only the difference, so that a reload neither restarts the checks of what stayed nor loses
//! where they stand.

use super::health::{HealthState, Tuning};
use super::resolve::{NameState, Refresh, Resolve};
use super::{Endpoint, Upstream, outlier, probe};
use crate::discovery::{self, Feed, Plan};
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
    warmers: HashMap<usize, Task<Upstream, Duration>>,
    feeds: HashMap<usize, Task<Feed, String>>,
    outliers: HashMap<usize, Task<outlier::Group, ()>>,
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

    /// Waits until every name has been looked up and every source asked once, whatever came of it, but no longer than `limit`. A reload that adds names
    /// calls it between `reconcile` and the swap, so that requests do not meet an upstream that is still empty.
    pub async fn settle(&self, limit: Duration) {
        let all_answered = async {
            loop {
                let answered = self.inner.answered.notified();
                tokio::pin!(answered);
                answered.as_mut().enable();
                let upstreams = self.inner.upstreams();
                let names = upstreams.iter().flat_map(|upstream| upstream.names()).all(|name| name.was_tried());
                if names && upstreams.iter().filter_map(|upstream| upstream.found()).all(|(feed, _)| feed.was_tried()) {
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

        let mut checks: HashMap<usize, (&Arc<Upstream>, Arc<Endpoint>, Tuning)> = HashMap::new();
        for upstream in &upstreams {
            let Some(tuning) = upstream.tuning() else { continue };
            for endpoint in upstream.endpoints().iter() {
                // A drained endpoint is checked as well: whoever gives it weight again wants to know first.
                if let Some(health) = endpoint.health() {
                    checks.insert(key(health), (upstream, endpoint.clone(), tuning));
                }
            }
        }
        tasks.checks.retain(|at, task| checks.get(at).is_some_and(|(.., tuning)| *tuning == task.settings));
        for (at, (upstream, endpoint, tuning)) in checks {
            let Some(health) = endpoint.health() else { continue };
            tasks.checks.entry(at).or_insert_with(|| {
                let who = format!("upstream {}: endpoint {}", upstream.name(), Who(&endpoint));
                let job =
                    check(Arc::downgrade(health), health.target(endpoint.address()), tuning, who, self.checks_at_once.clone());
                let handle = self.runtime.spawn(job).abort_handle();
                Task { _state: Arc::downgrade(health), settings: tuning, handle }
            });
        }
        let groups: Vec<_> = upstreams.iter().filter_map(|upstream| upstream.guards().group()).collect();
        tasks.outliers.retain(|at, _| groups.iter().any(|group| key(group) == *at));
        for group in groups {
            tasks.outliers.entry(key(group)).or_insert_with(|| {
                let handle = self.runtime.spawn(outlier::watch(Arc::downgrade(group))).abort_handle();
                Task { _state: Arc::downgrade(group), settings: (), handle }
            });
        }

        let feeds: HashMap<usize, (&Arc<Feed>, &Arc<Plan>)> =
            upstreams.iter().filter_map(|upstream| upstream.found()).map(|found| (key(found.0), found)).collect();
        tasks.feeds.retain(|at, task| feeds.get(at).is_some_and(|(_, plan)| plan.identity == task.settings));
        for (at, (feed, plan)) in feeds {
            tasks.feeds.entry(at).or_insert_with(|| {
                // The endpoints that it brings are checked as well.
                let inner = Arc::downgrade(self);
                let asked = move || {
                    if let Some(inner) = inner.upgrade() {
                        inner.refresh();
                        inner.answered.notify_waiters();
                    }
                };
                let job = discovery::drive(Arc::downgrade(feed), Arc::clone(plan), asked);
                let handle = self.runtime.spawn(job).abort_handle();
                Task { _state: Arc::downgrade(feed), settings: plan.identity.clone(), handle }
            });
        }

        let slow: HashMap<usize, (&Arc<Upstream>, Duration)> =
            upstreams.iter().filter_map(|upstream| Some((key(upstream), (upstream, upstream.slow_start()?)))).collect();
        tasks.warmers.retain(|at, _| slow.contains_key(at));
        for (at, (upstream, slow_start)) in slow {
            tasks.warmers.entry(at).or_insert_with(|| {
                let handle = self.runtime.spawn(warm(Arc::downgrade(upstream), slow_start)).abort_handle();
                Task { _state: Arc::downgrade(upstream), settings: slow_start, handle }
            });
        }
        // The addresses of names may come and go for months without a reload that would do this.
        if let Some(upstream) = upstreams.first() {
            upstream.forget_unused_state();
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
async fn check(state: Weak<HealthState>, address: std::net::SocketAddr, tuning: Tuning, who: String, at_once: Arc<Semaphore>) {
    loop {
        let started = Instant::now();
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
        // Nothing is kept alive while waiting.
        drop(state);
        sleep(wait).await;
    }
}

/// Gives endpoints that warm up their share of the moment, in steps of 2 % of the whole time.
async fn warm(upstream: Weak<Upstream>, slow_start: Duration) {
    let step = (slow_start / 50).clamp(Duration::from_millis(20), Duration::from_secs(5));
    loop {
        sleep(step).await;
        let Some(upstream) = upstream.upgrade() else { return };
        if upstream.is_warming() {
            upstream.rebuild_ring();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StatePool;
    use crate::upstream::Tried;
    use crate::upstream::tests::build;
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::Id;

    /// Polls until `condition` holds. Fails the test after a time that no working machine needs.
    async fn until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "{what} did not happen");
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// An origin whose answer to every request is a status that the test sets.
    struct Origin {
        address: SocketAddr,
        status: Arc<AtomicU16>,
        served: Arc<AtomicUsize>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Origin {
        async fn start(at: &str) -> Origin {
            let listener = TcpListener::bind(at).await.unwrap();
            let address = listener.local_addr().unwrap();
            let (status, served) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
            let (says, counts) = (status.clone(), served.clone());
            let task = tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let _ = stream.read(&mut [0; 1024]).await;
                    let head = format!("HTTP/1.1 {} x\r\ncontent-length: 0\r\n\r\n", says.load(Ordering::SeqCst));
                    let _ = stream.write_all(head.as_bytes()).await;
                    counts.fetch_add(1, Ordering::SeqCst);
                }
            });
            Origin { address, status, served, task }
        }

        fn served(&self) -> usize {
            self.served.load(Ordering::SeqCst)
        }
    }

    /// Answers as the test says: addresses, a failure (empty), or never (`None`).
    #[derive(Default)]
    struct Answers(Mutex<HashMap<String, Option<Vec<SocketAddr>>>>, AtomicUsize);

    impl Answers {
        fn set(&self, host: &str, answer: Option<&[SocketAddr]>) {
            self.0.lock().insert(host.to_owned(), answer.map(<[_]>::to_vec));
        }
        fn asked(&self) -> usize {
            self.1.load(Ordering::SeqCst)
        }
    }

    #[async_trait::async_trait]
    impl Resolve for Answers {
        async fn resolve(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            let answer = self.0.lock().get(host).cloned();
            match answer {
                Some(Some(addresses)) => Ok(addresses),
                Some(None) => std::future::pending().await,
                None => Err(io::ErrorKind::NotFound.into()),
            }
        }
    }

    fn supervisor() -> (Supervisor, Arc<Answers>) {
        let answers = Arc::new(Answers::default());
        (Supervisor::new(Handle::current(), answers.clone()), answers)
    }

    fn ids(supervisor: &Supervisor) -> Vec<Id> {
        let mut ids: Vec<Id> = supervisor.inner.tasks.lock().checks.values().map(|task| task.handle.id()).collect();
        ids.sort_unstable_by_key(ToString::to_string);
        ids
    }

    fn checked(list: &[SocketAddr], health: &str) -> String {
        let list: Vec<String> = list.iter().map(|address| format!("'{address}'")).collect();
        format!("endpoints = [{}]\nhealth = {{ interval = '20ms', timeout = '9s', {health} }}", list.join(", "))
    }

    #[tokio::test]
    async fn a_failing_endpoint_leaves_and_returns() {
        let (good, bad) = (Origin::start("127.0.0.1:0").await, Origin::start("127.0.0.1:0").await);
        let upstream = build(&checked(&[good.address, bad.address], "path = '/'"), &StatePool::new());
        let (supervisor, _) = supervisor();
        supervisor.reconcile([&upstream]);
        let health = upstream.endpoints()[1].health().unwrap().clone();
        until("a passed check", || health.report().checks_ok > 0).await;
        bad.status.store(503, Ordering::SeqCst);
        until("leaving", || upstream.available() == 1).await;
        assert_eq!(upstream.select(&Tried::new()).unwrap().address(), good.address);
        assert!(health.report().last_error.is_some() && health.report().last_response_time.is_some());
        bad.status.store(200, Ordering::SeqCst);
        until("returning", || upstream.available() == 2).await;
    }

    #[tokio::test]
    async fn an_endpoint_that_stops_and_starts_is_followed_over_tcp() {
        let origin = Origin::start("127.0.0.1:0").await;
        let upstream = build(&checked(&[origin.address], "tcp = true"), &StatePool::new());
        let (supervisor, _) = supervisor();
        supervisor.reconcile([&upstream]);
        until("a check", || origin.served() > 0).await;
        origin.task.abort();
        until("leaving", || upstream.select(&Tried::new()).is_none()).await;
        let _again = Origin::start(&origin.address.to_string()).await;
        until("returning", || upstream.select(&Tried::new()).is_some()).await;
    }

    #[tokio::test]
    async fn an_unrelated_reload_restarts_no_check() {
        let (a, b) = (Origin::start("127.0.0.1:0").await, Origin::start("127.0.0.1:0").await);
        let pool = StatePool::new();
        let (supervisor, _) = supervisor();
        let first = build(&checked(&[a.address], "path = '/'"), &pool);
        supervisor.reconcile([&first]);
        let before = ids(&supervisor);

        let second = build(&checked(&[a.address, b.address], "path = '/'"), &pool);
        supervisor.reconcile([&second]);
        let after = ids(&supervisor);
        assert!(before.len() == 1 && after.len() == 2 && after.contains(&before[0]), "{before:?} {after:?}");

        let third = build(&checked(&[a.address], "path = '/', rise = 9"), &pool);
        supervisor.reconcile([&third]);
        assert!(!ids(&supervisor).contains(&before[0]), "new settings take effect at once");
    }

    #[tokio::test]
    async fn checks_of_removed_endpoints_end_and_free_their_state() {
        let origin = Origin::start("127.0.0.1:0").await;
        let pool = StatePool::new();
        let (supervisor, _) = supervisor();
        let upstream = build(&checked(&[origin.address], "path = '/'"), &pool);
        supervisor.reconcile([&upstream]);
        until("a check", || origin.served() > 0).await;
        let handle = supervisor.inner.tasks.lock().checks.values().next().unwrap().handle.clone();
        supervisor.reconcile([]);
        drop(upstream);
        until("the end of the task", || handle.is_finished()).await;
        assert!(pool.live::<HealthState>().is_empty());
    }

    #[tokio::test]
    async fn names_bring_endpoints_that_are_checked_too() {
        let origin = Origin::start("127.0.0.1:0").await;
        let (supervisor, answers) = supervisor();
        answers.set("a.test", Some(&[origin.address]));
        let port = origin.address.port();
        let upstream = build(
            &format!("endpoints = ['a.test:{port}']\nhealth = {{ path = '/' }}\nresolve = {{ interval = '20ms' }}"),
            &StatePool::new(),
        );
        supervisor.reconcile([&upstream]);
        supervisor.settle(Duration::from_secs(20)).await;
        assert_eq!(upstream.select(&Tried::new()).unwrap().address(), origin.address);
        until("a check", || upstream.endpoints()[0].health().unwrap().report().checks_ok > 0).await;

        let moved: SocketAddr = "127.0.0.2:0".parse().unwrap();
        answers.set("a.test", Some(&[moved]));
        until("moving", || upstream.endpoints().iter().all(|endpoint| endpoint.address().ip() == moved.ip())).await;
        answers.set("a.test", Some(&[]));
        until("a failure", || upstream.names().all(|name| name.is_failing())).await;
        assert_eq!(upstream.endpoints()[0].address().ip(), moved.ip(), "the last good answer stays");
    }

    #[tokio::test]
    async fn a_resolver_that_hangs_is_asked_once_and_fails_in_time() {
        let (supervisor, answers) = supervisor();
        answers.set("a.test", None);
        let text = "endpoints = ['a.test:80']\nresolve = { interval = '5ms', timeout = '5ms' }";
        let upstream = build(text, &StatePool::new());
        supervisor.reconcile([&upstream]);
        supervisor.settle(Duration::from_secs(20)).await;
        let name = upstream.names().next().unwrap().clone();
        assert!(name.is_failing());
        // Several rounds later there is still one look-up under way.
        let since = Instant::now();
        until("more rounds", || since.elapsed() > Duration::from_millis(50)).await;
        assert_eq!(answers.asked(), 1);
    }

    #[test]
    fn jitter_stays_within_ten_per_cent() {
        let waits: Vec<Duration> = (0..1000).map(|_| jittered(Duration::from_secs(10))).collect();
        assert!(waits.iter().all(|wait| (9_000..=11_000).contains(&wait.as_millis())));
        assert!(waits.iter().min() != waits.iter().max(), "it varies");
    }
}
