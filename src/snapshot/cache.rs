//! The cache of a snapshot: what is stored outlives it, what the routes make of it does not.

use super::CompileParts;
use crate::cache::Cache;
use crate::cache::config::Store;
use crate::cache::flight::Flights;
use crate::cache::key::KeyRules;
use crate::cache::memory::MemoryStore;
use crate::cache::policy::Policy;
use crate::cache::redis::RedisTier;
use crate::config::{Config, Entry, RouteConfig};
use crate::diagnostic::Diagnostics;
use crate::filter::Filter;
use crate::redis_link::Access;
use crate::telemetry::metrics::CacheMetrics;
use std::sync::Arc;

/// The key of the cache in the state pool.
const CACHE: &str = "cache";

/// The cache, if any route has one. `redis` is where the shared one is, if there is one.
pub fn store(config: &Config, redis: Option<&Access>, parts: &CompileParts<'_>, d: &mut Diagnostics) -> Option<Arc<Cache>> {
    if !config.routes.values().any(|route| route.cache.is_some()) {
        return None;
    }
    let capacity = &config.cache.memory;
    let memory = parts.state.get_or_create(CACHE, || MemoryStore::new(capacity.value.0));
    if memory.capacity() != capacity.value.0 {
        d.warning(capacity.span.clone(), "`cache.memory` has changed, which takes effect when the process starts again")
            .help("restart the service; everything else of this configuration is applied now");
    }
    let flights = parts.state.get_or_create(CACHE, Flights::default);
    let redis = tier(config, redis, parts, &memory, d);
    let rules = config.routes.values().filter_map(|route| Some(route.cache.as_ref()?.key.rules()));
    let mut shortening: Vec<KeyRules> = Vec::new();
    for rules in rules.filter(|rules| !rules.ignore.is_empty() || !rules.only.is_empty()) {
        if !shortening.iter().any(|known| known.ignore == rules.ignore && known.only == rules.only) {
            shortening.push(rules);
        }
    }
    Some(Arc::new(Cache { memory, flights, redis, rules: shortening.into() }))
}

/// The second tier, if a route asks for it.
fn tier(
    config: &Config,
    redis: Option<&Access>,
    parts: &CompileParts<'_>,
    memory: &Arc<MemoryStore>,
    d: &mut Diagnostics,
) -> Option<Arc<RedisTier>> {
    let shared =
        |route: &&Entry<RouteConfig>| route.cache.as_ref().is_some_and(|cache| cache.store.value == Store::MemoryAndRedis);
    let first = config.routes.values().find(shared)?;
    if !config.redis.is_somewhere() {
        let span = first.cache.as_ref().and_then(|cache| cache.store.span.clone());
        d.error(span, "a cache cannot be shared without a Redis").help("add [redis] with url = \"redis://127.0.0.1:6379\"");
    }
    let redis = redis?;
    let make = || RedisTier::new(redis.clone(), Arc::clone(memory), Arc::clone(parts.clock));
    Some(parts.state.get_or_create(&redis.identity(), make))
}

/// How one route uses it.
pub fn policy(
    config: &Config,
    entry: &Entry<RouteConfig>,
    filters: &[Arc<dyn Filter>],
    parts: &CompileParts<'_>,
    d: &mut Diagnostics,
) -> Option<Arc<Policy>> {
    let cache = entry.value.cache.as_ref()?;
    let name = entry.name.value.as_str();
    let certificate = filters.iter().any(|filter| filter.tells_certificate());
    let authenticated = certificate || filters.iter().any(|filter| filter.tells_callers_apart());
    cache.announce(name, authenticated, d);
    let metrics = parts.state.get_or_create(name, CacheMetrics::default);
    let mut policy = cache.policy(name, config.redis.is_somewhere(), metrics);
    policy.key.certificate = certificate;
    policy.own = filters.iter().filter_map(|filter| filter.charges_by().cloned()).collect();
    policy.codes = entry.value.compress.is_some();
    Some(Arc::new(policy))
}
