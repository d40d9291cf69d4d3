//! The cache of a snapshot: what is stored outlives it, what the routes make of it does not.

use super::CompileParts;
use crate::cache::Cache;
use crate::cache::policy::Policy;
use crate::config::{Config, Entry, RouteConfig};
use crate::diagnostic::Diagnostics;
use crate::telemetry::metrics::CacheMetrics;
use std::sync::Arc;

/// The key of the cache in the state pool.
const CACHE: &str = "cache";

/// The cache, if any route has one.
pub fn store(config: &Config, parts: &CompileParts<'_>, d: &mut Diagnostics) -> Option<Arc<Cache>> {
    if !config.routes.values().any(|route| route.cache.is_some()) {
        return None;
    }
    let memory = &config.cache.memory;
    let cache = parts.state.get_or_create(CACHE, || Cache::new(memory.value.0));
    if cache.memory.capacity() != memory.value.0 {
        d.warning(memory.span.clone(), "`cache.memory` has changed, which takes effect when the process starts again")
            .help("restart the service; everything else of this configuration is applied now");
    }
    Some(cache)
}

/// How one route uses it.
pub fn policy(
    config: &Config,
    entry: &Entry<RouteConfig>,
    authenticated: bool,
    parts: &CompileParts<'_>,
    d: &mut Diagnostics,
) -> Option<Arc<Policy>> {
    let cache = entry.value.cache.as_ref()?;
    let name = entry.name.value.as_str();
    cache.announce(name, authenticated, d);
    let metrics = parts.state.get_or_create(name, CacheMetrics::default);
    Some(Arc::new(cache.policy(name, authenticated, config.redis.url.is_some(), metrics)))
}
