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
mod balance;
pub mod breaker;
pub mod budget;
pub mod config;
pub mod endpoint;
mod guards;
pub mod health;
pub mod hedge;
pub mod outlier;
pub mod overload;
mod peer;
mod probe;
mod report;
pub mod resolve;
pub mod retry;
mod supervisor;
mod window;

pub use config::{Protocol, UpstreamConfig, WhenAllDown};
pub use endpoint::{Endpoint, EndpointId, EndpointState, InFlight, Tried};
pub use guards::{EndpointGuards, FixedAnswer, Guards, fixed, guard};
pub use health::{CheckError, HealthState, Report};
pub use resolve::{Resolve, SystemResolver};
pub use supervisor::Supervisor;

use crate::clock::SharedClock;
use crate::state::StatePool;
use crate::tls::ClientTls;
use crate::value::Duration as Written;
use address::Address;
use arc_swap::ArcSwap;
use config::{ENDPOINTS_MAX, HealthConfig};
use health::{Definition, Tuning};
use parking_lot::Mutex;
use resolve::{NameState, Refresh};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
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
    health: Option<HealthConfig>,
    refresh: Refresh,
    turn: Arc<Turn>,
    state: Arc<StatePool>,
    clock: SharedClock,
    set: ArcSwap<Set>,
    /// Held while `set` is renewed: two changes at once must not lose one.
    renewing: Mutex<()>,
}

/// One line of `endpoints`.
struct Entry {
    written: Arc<str>,
    weight: u16,
    target: Target,
}

enum Target {
    Socket(SocketAddr),
    Name(Arc<NameState>, u16),
}

/// The endpoints and their order, swapped as one so that the indexes of the ring always fit.
#[derive(Default)]
struct Set {
    endpoints: Arc<[Arc<Endpoint>]>,
    ring: Box<[u16]>,
    /// How many endpoints take traffic because they are healthy and have weight.
    available: usize,
}

/// Whose turn it is, by upstream name: a reload goes on where the snapshot before it was, and does not send the first
/// requests of every reload to the first endpoint. On a cache line of its own, because every request writes it.
#[derive(Default)]
#[repr(align(128))]
struct Turn(AtomicUsize);

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Upstream {
    /// Compiles a config that passed [`UpstreamConfig::check`]. Names that were never looked up yet bring no endpoints until
    /// a [`Supervisor`] has done so.
    ///
    /// `tls` is what became of its `tls`.
    pub fn build(
        name: &str,
        config: &UpstreamConfig,
        tls: Option<Arc<ClientTls>>,
        state: &Arc<StatePool>,
        clock: &SharedClock,
    ) -> Arc<Upstream> {
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
            Some(Entry { written: endpoint.address.value.as_str().into(), weight: *endpoint.weight, target })
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
            health: config.health.as_ref().map(|health| health.value.clone()),
            refresh: Refresh { interval: config.resolve.interval.value.get(), timeout: config.resolve.timeout.value.get() },
            turn: state.get_or_create(name, Turn::default),
            state: state.clone(),
            clock: clock.clone(),
            set: ArcSwap::default(),
            renewing: Mutex::default(),
        });
        upstream.names().for_each(|known| known.depend(&upstream));
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
        let set = self.set.load();
        if set.ring.is_empty() {
            return None;
        }
        let turn = self.turn.0.fetch_add(1, Relaxed) % set.ring.len();
        let (before, from) = set.ring.split_at_checked(turn)?;
        let mut in_turn = from.iter().chain(before).filter_map(|at| set.endpoints.get(usize::from(*at)));
        in_turn.find(|endpoint| !tried.contains(endpoint.id())).cloned()
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

    /// How many endpoints are healthy and have a weight above 0.
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
        for entry in &self.entries {
            let addresses = match &entry.target {
                Target::Socket(address) => vec![*address],
                Target::Name(name, port) => {
                    let known = name.addresses().unwrap_or_default();
                    known.iter().map(|address| with_port(*address, *port)).collect()
                }
            };
            for address in addresses {
                // Two names may share an address. It is one endpoint then, with the weight that is written first.
                if endpoints.len() < ENDPOINTS_MAX && seen.insert(address) {
                    let same = before.get(&address).filter(|known| Arc::ptr_eq(&known.written, &entry.written));
                    endpoints.push(same.map_or_else(|| self.endpoint(entry, address), |known| Arc::clone(known)));
                }
            }
        }
        self.set.store(Arc::new(self.order(endpoints.into())));
    }

    /// Works out the order of turns, after an endpoint's health has changed.
    fn rebuild_ring(&self) {
        let _renewing = self.renewing.lock();
        self.set.store(Arc::new(self.order(self.endpoints())));
    }

    fn forget_unused_state(&self) {
        self.state.sweep();
    }

    fn order(&self, endpoints: Arc<[Arc<Endpoint>]>) -> Set {
        let members = |wanted: fn(&Endpoint) -> bool| {
            let numbered = endpoints.iter().enumerate().filter(move |(_, endpoint)| endpoint.weight > 0 && wanted(endpoint));
            numbered.filter_map(|(at, endpoint)| Some((u16::try_from(at).ok()?, endpoint.weight)))
        };
        let available = members(Endpoint::is_healthy).count();
        // With too few left, ejections are void: an endpoint that fails at times is better than one that is overrun.
        let panic = self.guards.outlier.as_ref().is_some_and(|outlier| {
            let least = u64::try_from(members(|_| true).count()).unwrap_or(0).saturating_mul(outlier.panic.into());
            available == 0 || u64::try_from(available).unwrap_or(0).saturating_mul(1_000_000) < least
        });
        let takes: fn(&Endpoint) -> bool = if panic { Endpoint::passes_checks } else { Endpoint::is_healthy };
        let ring = match self.when_all_down {
            WhenAllDown::TryAll if available == 0 => balance::ring(members(|_| true)),
            _ => balance::ring(members(takes)),
        };
        Set { endpoints, ring, available }
    }

    fn endpoint(self: &Arc<Self>, entry: &Entry, address: SocketAddr) -> Arc<Endpoint> {
        let key = format!("{:?} {address}", self.name);
        let health = self.health.as_ref().map(|config| {
            let definition = Definition::new(config, &entry.written, &self.link);
            let key = format!("{key} {definition:?}");
            self.state.get_or_create(&key, || HealthState::new(definition, self.clock.clone()))
        });
        // Before its health is read: a change after this is told to us.
        if let Some(health) = &health {
            health.depend(self);
        }
        Arc::new(Endpoint {
            address,
            written: entry.written.clone(),
            weight: entry.weight,
            pool_limit: self.pool_limit,
            state: self.state.get_or_create(&key, EndpointState::new),
            health,
            guards: self.guards.of_endpoint(&self.name, address, &self.state, &self.clock),
            peer: peer::prepare(address, self.group, &self.timeouts, &self.link),
        })
    }
}

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

#[cfg(test)]
mod tests;
