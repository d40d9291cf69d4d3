//! The second source of consumers, as the configuration says. What was learnt from it outlives the snapshot.

use super::CompileParts;
use crate::config::Config;
use crate::consumer::Issued;
use crate::redis_link::Topology;
use crate::tracked::{Tracked, TrackedOptions};
use std::sync::Arc;

/// `None` without a source, or when it is wrong, which was reported.
pub fn issued(config: &Config, redis: Option<&Topology>, parts: &CompileParts<'_>) -> Option<Issued> {
    let source = &config.consumer_source;
    source.source.as_ref()?;
    let redis = redis?;
    let options = TrackedOptions {
        topology: redis.clone(),
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
