//! The stores of one snapshot, made when the first filter asks for them.

use super::Limit;
use super::local::LocalStore;
use super::redis::{Debts, RedisStore};
use crate::clock::SharedClock;
use crate::redis_link::Access;
use crate::state::StatePool;
use crate::telemetry::metrics::RedisLost;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// What filters count with.
#[derive(Default)]
pub struct Stores {
    /// Bytes of the local store; the one of a running process keeps the size that it began with.
    pub local_memory: u64,
    /// Where the shared store would be, and how many gateways share it at least.
    place: Option<(Access, u64)>,
    redis: OnceLock<Arc<RedisStore>>,
    tiers: Vec<(Arc<str>, Vec<Limit>)>,
    /// What `check` tells of the bounds that leases keep.
    promises: Mutex<Vec<String>>,
    /// How often each scope was asked for while this snapshot is compiled.
    scopes: Mutex<HashMap<String, u32>>,
}

/// The key of the local store in the state pool.
const LOCAL: &str = "limits";
/// The key of what is counted as lost.
const LOST: &str = "limits";

impl Stores {
    /// `redis`: where the shared store would be, and how many gateways share it at least.
    pub fn new(local_memory: u64, redis: Option<(Access, u64)>) -> Self {
        Stores { local_memory, place: redis, ..Stores::default() }
    }

    /// The shared store; `None` if there is no place for it. No connection is made for filters that do without.
    pub fn redis(&self, state: &StatePool) -> Option<&Arc<RedisStore>> {
        let (access, gateways) = self.place.as_ref()?;
        let identity = format!("{} {gateways}", access.identity());
        // What is owed stays so, however else the same Redis is used; what was lost goes on being counted, whatever Redis it is.
        let creditor = format!("{} {}", access.topology.identity(), access.prefix);
        let make = || {
            let lost = state.get_or_create(LOST, RedisLost::default);
            let debts = state.get_or_create(&creditor, || Debts::new(lost));
            state.get_or_create(&identity, || RedisStore::new(access.clone(), *gateways, debts))
        };
        Some(self.redis.get_or_init(make))
    }

    /// The shared store, if anything has asked for it.
    pub fn live_redis(&self) -> Option<&Arc<RedisStore>> {
        self.redis.get()
    }

    pub fn local(&self, state: &StatePool, clock: &SharedClock) -> Arc<LocalStore> {
        state.get_or_create(LOCAL, || LocalStore::new(self.local_memory, Arc::clone(clock)))
    }

    /// Adds what holds for consumers of a tier.
    pub fn tier(&mut self, name: Arc<str>, limits: Vec<Limit>) {
        self.tiers.push((name, limits));
    }

    /// The tiers that have limits.
    pub fn tiers(&self) -> impl Iterator<Item = (&Arc<str>, &[Limit])> {
        self.tiers.iter().map(|(name, limits)| (name, &**limits))
    }

    /// The local store, if anything has asked for it.
    pub fn live(&self, state: &StatePool) -> Option<Arc<LocalStore>> {
        state.live::<LocalStore>().pop().map(|(_, store)| store)
    }

    /// Adds a sentence for `gatewright check`. A chain that many routes use says it once for each.
    pub fn promise(&self, text: String) {
        self.promises.lock().push(text);
    }

    pub fn promises(&self) -> Vec<String> {
        self.promises.lock().clone()
    }

    /// `base` itself for whoever asks first, then `base#2` and so on: two filters that are written alike on one route
    /// count apart, and do so in the same order after a reload.
    pub fn scope(&self, base: &str) -> String {
        let mut scopes = self.scopes.lock();
        let count = scopes.entry(base.to_owned()).or_default();
        *count = count.saturating_add(1);
        if *count == 1 { base.to_owned() } else { format!("{base}#{count}") }
    }
}
