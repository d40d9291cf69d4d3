//! The second source of consumers, as the configuration says. What was learnt from it outlives the snapshot.

use super::CompileParts;
use crate::config::Config;
use crate::consumer::Issued;
use crate::redis_link::Access;
use crate::tracked::{Tracked, TrackedOptions};
use std::sync::Arc;

/// `None` without a source, or when it is wrong, which was reported.
pub fn issued(config: &Config, redis: Option<&Access>, parts: &CompileParts<'_>) -> Option<Issued> {
    let source = &config.consumer_source;
    source.source.as_ref()?;
    let redis = redis?;
    let options = TrackedOptions {
        redis: Access { prefix: source.prefix(&config.redis.prefix).into(), timeout: source.timeout.get(), ..redis.clone() },
        fresh: source.fresh.get(),
        stale: source.stale.get(),
        room: usize::try_from(source.entries.value).unwrap_or(usize::MAX),
    };
    let shape = (options.fresh, options.stale, options.room);
    let key = format!("{} {shape:?}", options.redis.identity());
    let tracked = parts.state.get_or_create(&key, || Tracked::new(options, Arc::clone(parts.clock)));
    Some(Issued::new(tracked))
}
