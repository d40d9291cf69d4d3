//! A named group of endpoints, ready to be chosen from.
//!
//! An [`Upstream`] is built by each snapshot that uses it. What it learns belongs to states that outlive the snapshot:
//! traffic and health of each endpoint, the answers of name look-ups, and the place in the round-robin. The path of a
//! request through this module takes no lock and allocates only the peer that Pingora wants boxed: which endpoint takes
//! the next turn is worked out whenever health or membership changes, by whoever changed it (`balance`).
//!
//! ```text
//! config -> Upstream::build -> Upstream::select -> Endpoint::begin -> Endpoint::http_peer
//!                ^    Supervisor: checks (probe -> health), look-ups (resolve)
//! ```

pub mod address;
pub mod answer;
pub mod balance;
pub mod breaker;
pub mod budget;
pub mod config;
mod dependents;
mod dial;
pub mod endpoint;
pub mod exchange;
pub mod exchanger;
mod guards;
pub mod health;
pub mod hedge;
pub mod outlier;
pub mod overload;
mod peer;
mod place;
mod pool;
mod probe;
mod report;
pub mod resolve;
pub mod retry;
mod supervisor;
mod window;

pub use balance::{Affinity, Facts};
pub use config::{Protocol, UpstreamConfig, WhenAllDown};
pub use dial::{Opened, take_opened};
pub use endpoint::{Endpoint, EndpointId, EndpointState, InFlight, PASSED_MAX, Tried};
pub use guards::{EndpointGuards, FixedAnswer, Guards, fixed, guard};
pub use health::{CheckError, HealthState, Report};
pub use place::{apart, at_home};
pub use pool::Keeper;
pub use resolve::{Resolve, SystemResolver};
pub use supervisor::Supervisor;

use crate::clock::SharedClock;
use crate::discovery::{Feed, Plan, Watch};
use crate::state::StatePool;
use crate::telemetry::metrics::UpstreamMetrics;
use crate::tls::ClientTls;
use crate::value::Duration as Written;
use address::Address;
use arc_swap::ArcSwap;
use balance::{Balance, Kind, Load, Pick, Policy, Sticky};
use config::{ENDPOINTS_MAX, HealthConfig};
use health::{Definition, Tuning};
use parking_lot::Mutex;
use resolve::{NameState, Refresh};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// One upstream as one snapshot sees it.
pub struct Upstream {
    name: Arc<str>,
    entries: Box<[Entry]>,
    group: u64,
    link: peer::Link,
    timeouts: peer::Timeouts,
    request_timeout: Option<Duration>,
    guards: Guards,
    pool_limit: u32,
    when_all_down: WhenAllDown,
    policy: Policy,
    zone: Option<Arc<str>>,
    found: Option<(Arc<Feed>, Arc<Plan>)>,
    health: Option<HealthConfig>,
    refresh: Refresh,
    turn: Arc<Turn>,
    state: Arc<StatePool>,
    clock: SharedClock,
    set: ArcSwap<Set>,
    /// Held while `set` is renewed: two changes at once must not lose one.
    renewing: Mutex<()>,
}

/// What is counted for the upstream of this name.
pub fn metrics_of(state: &StatePool, upstream: &str) -> Arc<UpstreamMetrics> {
    static REASONS: LazyLock<Box<[&str]>> = LazyLock::new(|| answer::Malformed::ALL.iter().map(|reason| reason.name()).collect());
    state.get_or_create(upstream, || UpstreamMetrics::new(&REASONS))
}

/// One line of `endpoints`.
struct Entry {
    settings: Settings,
    target: Target,
}

/// What an endpoint is besides its address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Settings {
    written: Arc<str>,
    weight: u16,
    priority: u8,
    zone: Option<Arc<str>>,
}

/// What belongs to an upstream and is not in its section itself, because it had to be read or made first.
#[derive(Default)]
pub struct Beside {
    /// What became of `tls`.
    pub tls: Option<Arc<ClientTls>>,
    /// What became of `balance = { sticky = ... }`.
    pub sticky: Option<Arc<Sticky>>,
    /// What became of `discover`.
    pub discover: Option<Arc<Plan>>,
}

enum Target {
    Socket(SocketAddr),
    Name(Arc<NameState>, u16),
}

/// The endpoints and their order, swapped as one so that the indexes of the ring always fit.
#[derive(Default)]
struct Set {
    endpoints: Arc<[Arc<Endpoint>]>,
    levels: Box<[balance::Level]>,
    /// Where the endpoint of each cookie is.
    cookies: Arc<HashMap<Box<str>, u16>>,
    /// One of them does not have its full share yet.
    warming: bool,
    /// How many endpoints take traffic because they are healthy and have weight.
    available: usize,
}

/// Whose turn it is, by upstream name: a reload goes on where the snapshot before it was, and does not send the first
/// requests of every reload to the first endpoint. On a cache line of its own, because every request writes it.
#[derive(Default)]
#[repr(align(128))]
struct Turn {
    next: AtomicUsize,
    /// It has had endpoints: whatever comes from here on is new to it.
    in_use: AtomicBool,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Upstream {
    /// Compiles a config that passed [`UpstreamConfig::check`]. Names that were never looked up yet bring no endpoints until
    /// a [`Supervisor`] has done so.
    pub fn build(
        name: &str,
        config: &UpstreamConfig,
        beside: Beside,
        state: &Arc<StatePool>,
        clock: &SharedClock,
    ) -> Arc<Upstream> {
        let Beside { tls, sticky, discover } = beside;
        let link = peer::Link { protocol: *config.protocol, max_streams: (*config.max_streams).into(), tls };
        let entries = config.endpoints.iter().filter_map(|endpoint| {
            // `check` has reported the ones that do not parse.
            let target = match endpoint.address.parse().ok()? {
                Address::Socket(address) => Target::Socket(address),
                Address::Name { host, port } => {
                    let known = state.get_or_create(&host, || NameState::new(host.clone(), clock.clone()));
                    Target::Name(known, port)
                }
            };
            let settings = Settings {
                written: endpoint.address.value.as_str().into(),
                weight: *endpoint.weight,
                priority: *endpoint.priority,
                zone: endpoint.zone.as_ref().map(|zone| zone.as_str().into()),
            };
            Some(Entry { settings, target })
        });
        let timeouts = &config.timeouts;
        let upstream = Arc::new(Upstream {
            name: name.into(),
            entries: entries.collect(),
            group: peer::group_of(name, &link),
            link,
            timeouts: peer::Timeouts {
                connect: timeouts.connect.value.get(),
                read: timeouts.attempt.iter().map(|most| most.get()).fold(timeouts.read.get(), Duration::min),
                write: timeouts.write.value.get(),
                idle: timeouts.idle.value.get(),
            },
            request_timeout: timeouts.request.as_ref().map(|limit| limit.value).map(Written::get),
            guards: Guards::build(name, config, state, clock),
            pool_limit: config.keepalive.connections.into(),
            when_all_down: config.when_all_down,
            policy: policy(name, config, sticky, state),
            zone: config.zone.as_ref().map(|zone| zone.as_str().into()),
            found: discover.map(|plan| {
                let key = format!("{name} {}", plan.what);
                let feed = state.get_or_create(&key, || Feed::new(format!("upstream {name}: {}", plan.what), clock.clone()));
                (feed, plan)
            }),
            health: config.health.as_ref().map(|health| health.value.clone()),
            refresh: Refresh { interval: config.resolve.interval.value.get(), timeout: config.resolve.timeout.value.get() },
            turn: state.get_or_create(name, Turn::default),
            state: state.clone(),
            clock: clock.clone(),
            set: ArcSwap::default(),
            renewing: Mutex::default(),
        });
        upstream.names().for_each(|known| known.depend(&upstream));
        if let Some((feed, _)) = &upstream.found {
            // By steps, because a `Weak` of a trait object is made from one of the type.
            let watcher: std::sync::Weak<Upstream> = Arc::downgrade(&upstream);
            feed.watch(watcher);
        }
        upstream.guards.group().into_iter().for_each(|group| group.depend(&upstream));
        upstream.renew_endpoints();
        upstream
    }

    /// Whether HTTP/2 is spoken with the endpoints, and nothing else.
    pub fn speaks_http2(&self) -> bool {
        matches!(self.link.protocol, config::Protocol::H2 | config::Protocol::H2c)
    }

    /// How long an endpoint may take for each step of its answer.
    pub fn read_timeout(&self) -> std::time::Duration {
        self.timeouts.read
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its retries, breaker, outlier detection and overload limit.
    pub fn guards(&self) -> &Guards {
        &self.guards
    }

    fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// The limit of a request in total, if the upstream sets one.
    pub fn request_timeout(&self) -> Option<Duration> {
        self.request_timeout
    }

    pub fn when_all_down(&self) -> WhenAllDown {
        self.when_all_down
    }

    /// Chooses the endpoint for the next attempt of a request, passing over those that it has tried. `None` if there is no
    /// other one: with nothing tried yet, the upstream is unavailable, see [`Upstream::retry_after`].
    pub fn select(&self, tried: &Tried) -> Option<Arc<Endpoint>> {
        self.select_for(tried, None)
    }

    /// The same for a request with these facts, where `balance` asks for any; see [`Upstream::asks`].
    pub fn select_for(&self, tried: &Tried, facts: Option<&Facts<'_>>) -> Option<Arc<Endpoint>> {
        let set = self.set.load();
        let affinity = facts.map_or(Affinity::None, |facts| self.affinity(&set, facts));
        let now = || self.clock.now();
        let pick = Pick { policy: &self.policy, endpoints: &set.endpoints, tried, turn: &self.turn.next, affinity, now: &now };
        set.levels.iter().find_map(|level| pick.from(level)).cloned()
    }

    /// Any that takes traffic and whose breaker lets a call pass, for a request that has found only others.
    pub fn any_admitting(&self, tried: &Tried) -> Option<Arc<Endpoint>> {
        let set = self.set.load();
        let now = self.clock.now();
        let admits = |endpoint: &&Arc<Endpoint>| {
            let breaker = endpoint.guards().breaker.as_ref();
            endpoint.takes_traffic() && !tried.contains(endpoint.id()) && breaker.is_none_or(|breaker| breaker.would_admit(now))
        };
        // From one at random, so that they share what comes.
        let (before, after) = set.endpoints.split_at_checked(fastrand::usize(..set.endpoints.len().max(1)))?;
        after.iter().chain(before).find(admits).cloned()
    }

    /// One that is ejected, for a request that no other endpoint can take: its checks pass, so that it is only suspected.
    pub fn last_resort(&self, tried: &Tried) -> Option<Arc<Endpoint>> {
        let set = self.set.load();
        let suspected = |endpoint: &&Arc<Endpoint>| {
            endpoint.weight > 0 && endpoint.passes_checks() && !endpoint.is_healthy() && !endpoint.state.is_drained()
        };
        set.endpoints.iter().filter(suspected).find(|endpoint| !tried.contains(endpoint.id())).cloned()
    }

    /// Whether the facts of a request decide which endpoint it goes to.
    pub fn asks(&self) -> bool {
        matches!(self.policy.kind, Kind::Hash { .. } | Kind::Sticky)
    }

    fn affinity(&self, set: &Set, facts: &Facts<'_>) -> Affinity {
        match &self.policy.kind {
            Kind::Hash { by, .. } => facts.key(by).map_or(Affinity::None, Affinity::Key),
            Kind::Sticky => {
                let sticky = self.policy.sticky.as_ref();
                let known = sticky.and_then(|sticky| set.cookies.get(sticky.find(facts.headers)?));
                known.map_or(Affinity::None, |at| Affinity::Endpoint(*at))
            }
            _ => Affinity::None,
        }
    }

    /// The `Set-Cookie` that tells a client its endpoint, unless it knows.
    pub fn cookie_for(&self, endpoint: &Endpoint, facts: &Facts<'_>, https: bool) -> Option<http::HeaderValue> {
        let known = self.policy.sticky.as_ref()?.find(facts.headers);
        let cookie = endpoint.cookie().filter(|cookie| known != Some(&*cookie.value))?;
        Some(if https { cookie.secure.clone() } else { cookie.plain.clone() })
    }

    /// Takes endpoints out, or back in: the one with this address, or all that this name of `endpoints` has brought. Returns how
    /// many there are; 0 means that there is no such endpoint.
    pub fn set_drained(&self, which: &str, drained: bool) -> usize {
        let endpoints = self.endpoints();
        let meant = endpoints.iter().filter(|endpoint| *endpoint.written == *which || endpoint.address.to_string() == which);
        meant.inspect(|endpoint| endpoint.state.set_drained(drained, self.clock.now())).count()
    }

    /// Whether an endpoint does not have its full share yet.
    pub(crate) fn is_warming(&self) -> bool {
        self.set.load().warming
    }

    /// Whether nothing can be sent to it: no endpoint takes traffic.
    pub fn is_out(&self) -> bool {
        self.set.load().levels.is_empty()
    }

    /// `slow_start`, if there is one.
    pub(crate) fn slow_start(&self) -> Option<Duration> {
        Some(self.policy.slow_start).filter(|time| !time.is_zero())
    }

    /// When it is worth asking again while no endpoint takes traffic: the time to the next check or look-up that could
    /// change that, at least one second.
    pub fn retry_after(&self) -> Duration {
        // A bound on the cost of a rejection: with many endpoints the first ones are as good an estimate.
        const LOOKED_AT: usize = 64;
        let set = self.set.load();
        let down = set.endpoints.iter().filter(|endpoint| endpoint.weight > 0 && !endpoint.is_healthy());
        let checks = down.take(LOOKED_AT).filter_map(|endpoint| endpoint.health.as_ref()?.time_to_next_check());
        let missing = self.names().take(LOOKED_AT).filter(|name| name.addresses().is_none());
        let lookups = missing.filter_map(|name| name.time_to_next_lookup());
        checks.chain(lookups).min().unwrap_or_default().max(Duration::from_secs(1))
    }

    /// The endpoints as they are now, in the order of the configuration, those of a name in the order of their addresses.
    pub fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        self.set.load().endpoints.clone()
    }

    /// How many endpoints take traffic: healthy, with a weight above 0, not drained.
    pub fn available(&self) -> usize {
        self.set.load().available
    }

    /// The names among its endpoints, and what is known of them.
    pub fn names(&self) -> impl Iterator<Item = &Arc<NameState>> {
        self.entries.iter().filter_map(|entry| match &entry.target {
            Target::Name(name, _) => Some(name),
            Target::Socket(_) => None,
        })
    }

    /// Where endpoints are found besides `endpoints`, and what is known from there.
    pub fn found(&self) -> Option<(&Arc<Feed>, &Arc<Plan>)> {
        self.found.as_ref().map(|(feed, plan)| (feed, plan))
    }

    /// How its endpoints are checked, if they are.
    pub fn tuning(&self) -> Option<Tuning> {
        self.health.as_ref().map(Tuning::from)
    }

    fn refresh(&self) -> Refresh {
        self.refresh
    }

    /// Works out which addresses there are now, after a name's answer has changed. Endpoints that stay are kept as they are.
    fn renew_endpoints(self: &Arc<Self>) {
        let _renewing = self.renewing.lock();
        let before = self.endpoints();
        let before: HashMap<SocketAddr, &Arc<Endpoint>> = before.iter().map(|known| (known.address, known)).collect();
        let mut seen = HashSet::new();
        let mut endpoints = Vec::new();
        let mut add = |settings: &Settings, address: SocketAddr| {
            // Two names may share an address. It is one endpoint then, with the weight that is written first.
            if endpoints.len() < ENDPOINTS_MAX && seen.insert(address) {
                let same = before.get(&address).filter(|known| known.is(settings));
                endpoints.push(same.map_or_else(|| self.endpoint(settings, address), |known| Arc::clone(known)));
            }
        };
        for entry in &self.entries {
            let addresses = match &entry.target {
                Target::Socket(address) => vec![*address],
                Target::Name(name, port) => {
                    let known = name.addresses().unwrap_or_default();
                    known.iter().map(|address| with_port(*address, *port)).collect()
                }
            };
            addresses.into_iter().for_each(|address| add(&entry.settings, address));
        }
        if let Some((feed, _)) = &self.found {
            for found in feed.found().iter() {
                let settings = Settings {
                    written: found.name.clone().unwrap_or_else(|| found.address.to_string().into()),
                    weight: found.weight,
                    priority: found.priority,
                    zone: found.zone.clone(),
                };
                add(&settings, found.address);
            }
        }
        if !endpoints.is_empty() {
            self.turn.in_use.store(true, Relaxed);
        }
        let numbered = endpoints.iter().zip(0..);
        let cookies = numbered.filter_map(|(endpoint, at)| Some((endpoint.cookie()?.value.clone(), at))).collect();
        self.set.store(Arc::new(self.order(endpoints.into(), Arc::new(cookies))));
    }

    /// Works out the order of turns, after an endpoint's health has changed.
    fn rebuild_ring(&self) {
        let _renewing = self.renewing.lock();
        let cookies = Arc::clone(&self.set.load().cookies);
        self.set.store(Arc::new(self.order(self.endpoints(), cookies)));
    }

    fn forget_unused_state(&self) {
        self.state.sweep();
    }

    fn order(&self, endpoints: Arc<[Arc<Endpoint>]>, cookies: Arc<HashMap<Box<str>, u16>>) -> Set {
        let now = self.clock.now();
        let available = endpoints.iter().filter(|endpoint| endpoint.takes_traffic()).count();
        // With too few left, ejections are void: an endpoint that fails at times is better than one that is overrun.
        let panic = self.guards.outlier.as_ref().is_some_and(|outlier| {
            let in_use = |endpoint: &&Arc<Endpoint>| endpoint.weight > 0 && !endpoint.state.is_drained();
            let all = u64::try_from(endpoints.iter().filter(in_use).count()).unwrap_or(0);
            let least = all.saturating_mul(outlier.panic.into());
            available == 0 || u64::try_from(available).unwrap_or(0).saturating_mul(1_000_000) < least
        });
        let (levels, warming) = balance::levels(&endpoints, &self.policy, now, |endpoint| {
            let works = match self.when_all_down {
                WhenAllDown::TryAll if available == 0 => true,
                _ if panic => endpoint.passes_checks(),
                _ => endpoint.is_healthy(),
            };
            works && !endpoint.state.is_drained()
        });
        Set { endpoints, levels, cookies, warming, available }
    }

    fn endpoint(self: &Arc<Self>, settings: &Settings, address: SocketAddr) -> Arc<Endpoint> {
        let key = format!("{:?} {address}", self.name);
        let health = self.health.as_ref().map(|config| {
            let definition = Definition::new(config, &settings.written, &self.link);
            let port = config.port.as_ref().map(|port| port.value);
            let key = format!("{key} {definition:?} {port:?}");
            self.state.get_or_create(&key, || HealthState::new(definition, port, self.clock.clone()))
        });
        // What comes later warms up; what an upstream begins with has nobody to leave the work to.
        let since = self.turn.in_use.load(Relaxed).then(|| self.clock.now());
        let state = self.state.get_or_create(&key, || EndpointState::new(since));
        // Before they are read: a change after this is told to us.
        state.depend(self);
        if let Some(health) = &health {
            health.depend(self);
        }
        let Settings { written, weight, priority, zone } = settings.clone();
        let far = self.zone.is_some() && self.zone != zone;
        let reach = peer::Reach { upstream: &self.name, address, group: self.group, timeouts: &self.timeouts, link: &self.link };
        Arc::new(Endpoint {
            address,
            written,
            weight,
            priority,
            zone,
            rank: u16::from(priority) * 2 + u16::from(far),
            measured: matches!(self.policy.kind, Kind::PeakEwma),
            load: self.policy.load.clone(),
            cookie: self.policy.sticky.as_ref().and_then(|sticky| sticky.cookie_of(&self.name, address)),
            pool_limit: self.pool_limit,
            state,
            health,
            guards: self.guards.of_endpoint(&self.name, address, &self.state, &self.clock),
            peers: peer::Peers::prepare(&reach, &self.state),
        })
    }
}

impl Watch for Upstream {
    fn changed(self: Arc<Self>) {
        self.renew_endpoints();
    }
}

impl Endpoint {
    /// Whether it was made from these.
    fn is(&self, settings: &Settings) -> bool {
        let Settings { written, weight, priority, zone } = settings;
        self.written == *written && self.weight == *weight && self.priority == *priority && self.zone == *zone
    }
}

fn policy(name: &str, config: &UpstreamConfig, sticky: Option<Arc<Sticky>>, state: &Arc<StatePool>) -> Policy {
    let kind = match &config.balance.value {
        Balance::RoundRobin => Kind::RoundRobin,
        Balance::LeastRequests => Kind::LeastRequests,
        Balance::PeakEwma => Kind::PeakEwma,
        Balance::Random => Kind::Random,
        Balance::Hash(hash) => {
            Kind::Hash { by: hash.by.iter().map(|by| by.value.clone()).collect(), max_load: hash.max_load.value.into() }
        }
        Balance::Sticky(_) => Kind::Sticky,
    };
    let load = matches!(kind, Kind::Hash { .. }).then(|| state.get_or_create(name, Load::default));
    let slow_start = config.slow_start.as_ref().map(|time| time.get()).unwrap_or_default();
    Policy { kind, slow_start, sticky, load }
}

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

#[cfg(test)]
mod tests;
