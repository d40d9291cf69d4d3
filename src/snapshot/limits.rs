//! What limits are counted with, as the configuration says. The counts themselves outlive the snapshot.

use super::CompileParts;
use crate::config::Config;
use crate::diagnostic::Diagnostics;
use crate::limit::Stores;
use crate::limit::config::compile_all;
use crate::limit::shield::Shield;
use crate::redis_link::Access;
use std::sync::Arc;

/// `redis` is where the shared one is, if there is one.
pub fn stores(config: &Config, redis: Option<&Access>, parts: &CompileParts<'_>, d: &mut Diagnostics) -> Stores {
    let memory = &config.limits.local_memory;
    let redis = redis.map(|access| (access.clone(), config.redis.gateways.value.into()));
    let mut stores = Stores::new(memory.value.0, redis);
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

/// Another rate begins a count of its own.
pub fn shield(config: &Config, parts: &CompileParts<'_>) -> Option<Arc<Shield>> {
    let rate = config.limits.global?;
    Some(parts.state.get_or_create(&rate.to_string(), || Shield::new(rate)))
}
