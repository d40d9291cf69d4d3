//! The second source of consumers, as the configuration says. What was learnt from it outlives the snapshot.

use super::CompileParts;
use crate::config::Config;
use crate::consumer::Issued;
use crate::diagnostic::Diagnostics;
use crate::limit::redis::{RedisOptions, Topology};
use crate::tls::Files;
use crate::tracked::{Tracked, TrackedOptions};
use std::sync::Arc;

/// Where the shared Redis is, for commands that write to it; `None` if there is none, or it is wrong, which is reported.
pub fn redis_topology(config: &Config, d: &mut Diagnostics) -> Option<Topology> {
    let options = super::limits::redis(&config.redis, &mut Files { d, read: &mut Vec::new() });
    options.map(|options| options.topology().clone())
}

/// `None` without a source, or when it is wrong, which was reported.
pub fn issued(config: &Config, redis: Option<&RedisOptions>, parts: &CompileParts<'_>) -> Option<Issued> {
    let source = &config.consumer_source;
    source.source.as_ref()?;
    let redis = redis?;
    let options = TrackedOptions {
        topology: redis.topology().clone(),
        prefix: source.prefix(&config.redis.prefix).to_owned(),
        timeout: source.timeout.get(),
        fresh: source.fresh.get(),
        stale: source.stale.get(),
        room: usize::try_from(source.entries.value).unwrap_or(usize::MAX),
    };
    let shape = (options.timeout, options.fresh, options.stale, options.room);
    let key = format!("{} {} {shape:?}", redis.identity(), options.prefix);
    let tracked = parts.state.get_or_create(&key, || Tracked::new(options, Arc::clone(parts.clock), !parts.dry));
    Some(Issued::new(tracked))
}
