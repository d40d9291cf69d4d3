//! One endpoint: what an upstream knows about it, and what is counted about it.
//!
//! An [`Endpoint`] belongs to one build of an upstream and is immutable: address, weight, prepared peer. What changes
//! while requests run lives behind it in states that outlive reloads: [`EndpointState`] (traffic) and
//! [`HealthState`] (checks). They are two, because their meanings end at different points: a new health check makes what the old
//! one found void, but not the requests that were counted.

use super::Upstream;
use super::balance::sticky::EndpointCookie;
use super::balance::{Load, PeakEwma};
use super::dependents::Dependents;
use super::guards::EndpointGuards;
use super::health::HealthState;
use super::outlier::OutlierState;
use super::peer::Peers;
use arrayvec::ArrayVec;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The traffic of one address of one upstream since it first appeared in the configuration. The counters are statistics
/// and order nothing, hence relaxed.
#[derive(Debug)]
pub struct EndpointState {
    id: EndpointId,
    in_flight: AtomicU32,
    /// Requests under way whose connection may be kept afterwards, see [`InFlight::may_pool`].
    poolable: AtomicU32,
    requests: AtomicU64,
    connect_failures: AtomicU64,
    errors: AtomicU64,
    pub(super) latency: PeakEwma,
    /// Taken out by an operator. Part of what a reload keeps.
    drained: AtomicBool,
    /// When it last began to take traffic that it did not have before, for slow start. Not read by requests.
    warm_since: Mutex<Option<Instant>>,
    dependents: Dependents,
    /// The last attempt to open a connection failed.
    refusing: AtomicBool,
    /// Until when it is not asked again whether it speaks HTTP/2.
    http1_until: Mutex<Option<Instant>>,
}

/// How long an endpoint that had the choice and took HTTP/1 is kept to it.
const HTTP1_FOR: Duration = Duration::from_secs(60);

/// Tells endpoints apart within one process, cheaper than by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndpointId(u64);

impl EndpointState {
    /// `warm_since` is now if it joins an upstream that is in use already.
    pub(super) fn new(warm_since: Option<Instant>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        EndpointState {
            id: EndpointId(NEXT.fetch_add(1, Relaxed)),
            in_flight: AtomicU32::new(0),
            poolable: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            connect_failures: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            latency: PeakEwma::default(),
            drained: AtomicBool::new(false),
            warm_since: Mutex::new(warm_since),
            dependents: Dependents::default(),
            refusing: AtomicBool::new(false),
            http1_until: Mutex::default(),
        }
    }

    /// How long it has lately taken to answer.
    pub fn latency(&self) -> &PeakEwma {
        &self.latency
    }

    /// Whether an operator has taken it out.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Relaxed)
    }

    /// Takes it out, or back in; then the upstreams that have it choose accordingly. Requests under way are left alone.
    pub(super) fn set_drained(&self, drained: bool, now: Instant) {
        if self.drained.swap(drained, Relaxed) != drained {
            if !drained {
                self.begin_warming(now);
            }
            self.dependents.tell(|upstream| upstream.rebuild_ring());
        }
    }

    /// Slow start begins anew, as for an endpoint that comes back. Whoever says so rebuilds the rings that it is in.
    pub(super) fn begin_warming(&self, now: Instant) {
        *self.warm_since.lock() = Some(now);
    }

    pub(super) fn depend(&self, upstream: &Arc<Upstream>) {
        self.dependents.add(upstream);
    }

    /// Attempts under way now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Attempts begun, those that did not get a connection included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Attempts for which no connection could be opened.
    pub fn connect_failures(&self) -> u64 {
        self.connect_failures.load(Relaxed)
    }

    /// Attempts that failed after the connection stood: resets, timeouts, invalid responses.
    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    /// Counts an attempt whose connection was refused or timed out.
    pub fn count_connect_failure(&self) {
        self.connect_failures.fetch_add(1, Relaxed);
        self.refusing.store(true, Relaxed);
    }

    /// A connection stands.
    pub fn connected(&self) {
        if self.refusing.load(Relaxed) {
            self.refusing.store(false, Relaxed);
        }
    }

    /// Whether the last attempt to open a connection failed.
    pub fn is_refusing(&self) -> bool {
        self.refusing.load(Relaxed)
    }

    /// It had the choice between HTTP/2 and HTTP/1, and has taken this one.
    pub fn chose_http1(&self, now: Instant) {
        *self.http1_until.lock() = now.checked_add(HTTP1_FOR);
    }

    /// Whether it is to be spoken to by HTTP/1 without asking.
    pub(super) fn speaks_http1(&self, now: Instant) -> bool {
        self.http1_until.lock().is_some_and(|until| now < until)
    }

    /// Counts an attempt that failed after the connection stood.
    pub fn count_error(&self) {
        self.errors.fetch_add(1, Relaxed);
    }
}

/// One address of an upstream, as one snapshot sees it.
#[derive(Debug)]
pub struct Endpoint {
    pub(super) address: SocketAddr,
    pub(super) written: Arc<str>,
    pub(super) weight: u16,
    pub(super) priority: u8,
    pub(super) zone: Option<Arc<str>>,
    /// Smaller ones are used first: the priority, and within it the zone.
    pub(super) rank: u16,
    /// Whether anybody asks how long it takes to answer.
    pub(super) measured: bool,
    /// Where the upstream's requests under way are counted, if anybody asks.
    pub(super) load: Option<Arc<Load>>,
    pub(super) cookie: Option<EndpointCookie>,
    pub(super) pool_limit: u32,
    pub(super) state: Arc<EndpointState>,
    pub(super) health: Option<Arc<HealthState>>,
    pub(super) guards: EndpointGuards,
    pub(super) peers: Peers,
}

impl Endpoint {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as the configuration has it: the same, or the name that resolved to it, with its port.
    pub fn written(&self) -> &Arc<str> {
        &self.written
    }

    /// 0: takes no traffic.
    pub fn weight(&self) -> u16 {
        self.weight
    }

    /// Endpoints of a higher number take traffic while none of a lower one does.
    pub fn priority(&self) -> u8 {
        self.priority
    }

    pub fn zone(&self) -> Option<&Arc<str>> {
        self.zone.as_ref()
    }

    /// What names it to clients, if anything does.
    pub fn cookie(&self) -> Option<&EndpointCookie> {
        self.cookie.as_ref()
    }

    /// Whether it may be chosen: it has weight, is healthy, and nobody has taken it out.
    pub fn takes_traffic(&self) -> bool {
        self.weight > 0 && !self.state.is_drained() && self.is_healthy()
    }

    /// Since when it warms up: the last time that it appeared, recovered or was brought back.
    pub(super) fn warm_since(&self) -> Option<Instant> {
        let recovered = self.health.as_ref().and_then(|health| health.report().recovered);
        (*self.state.warm_since.lock()).max(recovered)
    }

    /// Tells how long an attempt took to answer, for balancing by latency.
    pub fn answered(&self, took: Duration, now: Instant) {
        if self.measured {
            self.state.latency.observe(took, now);
        }
    }

    /// Tells that an attempt failed: at least as bad as a slow answer, however fast it was.
    pub fn failed(&self, took: Duration, now: Instant) {
        self.answered(took.max(super::balance::FAILURE), now);
    }

    pub fn id(&self) -> EndpointId {
        self.state.id
    }

    /// What was counted about its requests.
    pub fn state(&self) -> &Arc<EndpointState> {
        &self.state
    }

    /// What its checks found; `None` if the upstream has no health check.
    pub fn health(&self) -> Option<&Arc<HealthState>> {
        self.health.as_ref()
    }

    /// Its checks pass, and it is not ejected. An endpoint without health check counts as healthy.
    pub fn is_healthy(&self) -> bool {
        self.passes_checks() && !self.outlier().is_some_and(|state| state.is_ejected())
    }

    /// Its checks pass, or it has none.
    pub fn passes_checks(&self) -> bool {
        self.health.as_ref().is_none_or(|health| health.is_healthy())
    }

    /// Its breaker and its outlier detection.
    pub fn guards(&self) -> &EndpointGuards {
        &self.guards
    }

    /// How its requests ended of late; `None` if the upstream has no `outlier`.
    pub fn outlier(&self) -> Option<&Arc<OutlierState>> {
        self.guards.outlier.as_ref().map(|watched| &watched.state)
    }

    /// Counts an attempt in; it counts out when the guard is dropped.
    ///
    /// The guard must live until Pingora has taken the connection back: keep it in the request's context, which outlives
    /// that, and replace it by the next attempt's.
    pub fn begin(self: Arc<Self>) -> InFlight {
        self.state.in_flight.fetch_add(1, Relaxed);
        self.state.requests.fetch_add(1, Relaxed);
        if let Some(load) = &self.load {
            load.enter();
        }
        let room = |poolable: u32| poolable.checked_add(1).filter(|next| *next <= self.pool_limit);
        let may_pool = self.state.poolable.try_update(Relaxed, Relaxed, room).is_ok();
        InFlight { endpoint: self, may_pool, counted: true }
    }
}

/// One attempt under way.
#[derive(Debug)]
#[must_use = "dropping it counts the attempt as done"]
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    may_pool: bool,
    counted: bool,
}

impl InFlight {
    /// One that somebody else counts.
    pub fn uncounted(endpoint: Arc<Endpoint>) -> Self {
        InFlight { endpoint, may_pool: false, counted: false }
    }

    /// Whether the connection may be kept for another request afterwards. If not, the caller sends `Connection: close`,
    /// which Pingora obeys as well (`is_connection_keepalive` in its HTTP/1 client).
    ///
    /// Pingora's pool is bounded for the whole process only. This bounds it at N = `keepalive.connections` for each
    /// endpoint, without asking the pool: an attempt may pool only if it began while fewer than N such attempts were under
    /// way. Count the connections that are idle, or held by such attempts. Their number grows only when such an attempt
    /// opens a connection. It does so only after it has found none idle, so that at this moment all counted connections
    /// are held by different attempts under way, of which there are at most N with this one. So the number never exceeds
    /// N, and neither does that of the idle ones. An attempt counts until after its connection has gone back to the
    /// pool, because [`InFlight`] lives that long.
    ///
    /// The limit is read at the beginning of an attempt: after a reload that lowers it, surplus connections leave as they
    /// are used or reach their idle timeout.
    pub fn may_pool(&self) -> bool {
        self.may_pool
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Deref for InFlight {
    type Target = Endpoint;
    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        self.endpoint.state.in_flight.fetch_sub(1, Relaxed);
        if let Some(load) = &self.endpoint.load {
            load.leave();
        }
        if self.may_pool {
            self.endpoint.state.poolable.fetch_sub(1, Relaxed);
        }
    }
}

/// The most endpoints that a request passes over because their breakers refuse, before it looks at all of them.
pub const PASSED_MAX: usize = 16;

/// The endpoints that one request has tried already; [`Upstream::select`](super::Upstream::select) passes them over.
#[derive(Debug, Clone, Default)]
pub struct Tried(ArrayVec<EndpointId, { super::config::ATTEMPTS_MAX + PASSED_MAX }>);

impl Tried {
    pub const fn new() -> Self {
        Tried(ArrayVec::new_const())
    }

    /// Beyond the largest number of attempts that can be configured, and those passed over, nothing is added.
    pub fn add(&mut self, endpoint: &Endpoint) {
        let _ = self.0.try_push(endpoint.id());
    }

    pub fn contains(&self, id: EndpointId) -> bool {
        self.0.contains(&id)
    }

    /// How many attempts were made.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All may be tried again.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
