//! The second source of consumers, as the configuration says. What was learnt from it outlives the snapshot.

use super::CompileParts;
use crate::config::Config;
use crate::consumer::Issued;
use crate::diagnostic::Diagnostics;
use crate::tracked::{Tracked, TrackedOptions};
use crate::value::Secret;
use std::path::Path;
use std::sync::Arc;

/// Where the Redis of `[redis]` is.
pub struct RedisAddress {
    pub url: Secret,
    pub info: redis::ConnectionInfo,
}

/// Reads it; `None` if there is none. The error never holds the URL, which may have a password.
pub fn redis_address(config: &Config, d: &Diagnostics) -> Option<Result<RedisAddress, String>> {
    let url = config.redis.url.as_ref()?;
    let file = url.span.as_ref().and_then(|span| d.source(span.file));
    let directory = file.and_then(|file| file.path.parent()).unwrap_or(Path::new("")).to_owned();
    Some(url.value.resolve(&directory).and_then(|url| {
        let info = redis::IntoConnectionInfo::into_connection_info(url.expose());
        let info = info.map_err(|_| "this is not the URL of a Redis, such as redis://127.0.0.1:6379".to_owned())?;
        Ok(RedisAddress { url, info })
    }))
}

/// `None` without a source, or when it is wrong, which is reported.
pub fn issued(config: &Config, parts: &CompileParts<'_>, d: &mut Diagnostics) -> Option<Issued> {
    let source = &config.consumer_source;
    source.source.as_ref()?;
    // That it is missing was told when the file was read.
    let RedisAddress { url, info } = match redis_address(config, d)? {
        Ok(found) => found,
        Err(why) => {
            // Where limits use it too, they have said the same.
            if !d.has_errors() {
                d.error(config.redis.url.as_ref().and_then(|url| url.span.clone()), why);
            }
            return None;
        }
    };
    let options = TrackedOptions {
        info,
        prefix: source.prefix(&config.redis.prefix).to_owned(),
        timeout: source.timeout.get(),
        fresh: source.fresh.get(),
        stale: source.stale.get(),
        room: usize::try_from(source.entries.value).unwrap_or(usize::MAX),
    };
    let shape = (options.timeout, options.fresh, options.stale, options.room);
    let key = format!("{} {} {shape:?}", url.expose(), options.prefix);
    let tracked = parts.state.get_or_create(&key, || Tracked::new(options, Arc::clone(parts.clock), !parts.dry));
    Some(Issued::new(tracked))
}
