//! What limits are counted with, as the configuration says. The counts themselves outlive the snapshot.

use super::CompileParts;
use crate::config::{Config, RedisConfig};
use crate::diagnostic::Diagnostics;
use crate::limit::Stores;
use crate::limit::config::compile_all;
use crate::limit::redis::{RedisOptions, RedisStore};
use crate::limit::shield::Shield;
use std::path::Path;
use std::sync::Arc;

pub fn stores(config: &Config, parts: &CompileParts<'_>, d: &mut Diagnostics) -> Stores {
    let memory = &config.limits.local_memory;
    let mut stores = Stores::new(memory.value.0, redis(&config.redis, parts, d));
    if let Some(known) = stores.live(parts.state)
        && known.bytes() != memory.value.0
    {
        d.warning(memory.span.clone(), "`limits.local_memory` has changed, which takes effect when the process starts again")
            .help("restart the service; everything else of this configuration is applied now");
    }
    for (name, tier) in &config.tiers {
        if tier.limits.is_empty() {
            continue;
        }
        // What is wrong with them was told when the file was read.
        if let Ok(limits) = compile_all(&tier.limits) {
            stores.tier(name.as_str().into(), limits);
        }
    }
    stores
}

fn redis(config: &RedisConfig, parts: &CompileParts<'_>, d: &mut Diagnostics) -> Option<Arc<RedisStore>> {
    let url = config.url.as_ref()?;
    let source = url.span.as_ref().and_then(|span| d.source(span.file));
    let directory = source.and_then(|source| source.path.parent()).unwrap_or(Path::new("")).to_owned();
    let options = url.value.resolve(&directory).and_then(|url| {
        RedisOptions::new(url.expose(), config.timeout.get(), config.gateways.value.into(), &config.prefix.value)
    });
    match options {
        Ok(options) => Some(parts.state.get_or_create(&options.identity(), || RedisStore::new(options, !parts.dry))),
        Err(why) => {
            d.error(url.span.clone(), why);
            None
        }
    }
}

/// Another rate begins a count of its own.
pub fn shield(config: &Config, parts: &CompileParts<'_>) -> Option<Arc<Shield>> {
    let rate = config.limits.global?;
    Some(parts.state.get_or_create(&rate.to_string(), || Shield::new(rate)))
}
