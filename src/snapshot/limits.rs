//! What limits are counted with, as the configuration says. The counts themselves outlive the snapshot.

use super::CompileParts;
use crate::config::{Config, RedisConfig};
use crate::limit::Stores;
use crate::limit::config::compile_all;
use crate::limit::redis::{Pem, Place, RedisOptions, RedisStore};
use crate::limit::shield::Shield;
use crate::tls::Files;
use crate::value::{Located, Secret, TextOrSecret};
use std::path::Path;
use std::sync::Arc;

/// `redis` is what [`redis`] has made of `[redis]`.
pub fn stores(config: &Config, redis: Option<RedisOptions>, parts: &CompileParts<'_>, files: &mut Files<'_>) -> Stores {
    let memory = &config.limits.local_memory;
    let store = |options: RedisOptions| parts.state.get_or_create(&options.identity(), || RedisStore::new(options, !parts.dry));
    let mut stores = Stores::new(memory.value.0, redis.map(store));
    if let Some(known) = stores.live(parts.state)
        && known.bytes() != memory.value.0
    {
        let d = &mut files.d;
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

/// Where the shared Redis is; `None` if there is none, or what is written about it is wrong, which is reported.
pub fn redis(config: &RedisConfig, files: &mut Files<'_>) -> Option<RedisOptions> {
    let mut whole = true;
    let mut resolve = |text: &Located<TextOrSecret>, files: &mut Files<'_>| {
        let source = text.span.as_ref().and_then(|span| files.d.source(span.file));
        let directory = source.and_then(|source| source.path.parent()).unwrap_or(Path::new("")).to_owned();
        match text.value.resolve(&directory) {
            Ok(secret) => secret,
            Err(why) => {
                files.error(text.span.clone(), why);
                whole = false;
                Secret::new("")
            }
        }
    };
    let url = config.url.as_ref().map(|url| resolve(url, files));
    let cluster: Vec<_> = config.cluster.iter().map(|url| resolve(url, files)).collect();
    let sentinels: Vec<_> = config.sentinel.iter().flat_map(|config| &config.addresses).map(|url| resolve(url, files)).collect();
    let password = config.sentinel.as_ref().and_then(|config| config.password.as_ref()).map(|text| resolve(text, files));
    let exposed = |list: &'_ [Secret]| list.iter().map(|secret| secret.expose().to_owned()).collect::<Vec<_>>();
    let (cluster, sentinels) = (exposed(&cluster), exposed(&sentinels));
    let (place, span) = match (&url, &config.sentinel, config.cluster.first()) {
        (Some(url), ..) => (Place::Url(url.expose()), config.url.as_ref().and_then(|url| url.span.clone())),
        (None, Some(sentinel), _) => {
            let place = Place::Sentinel {
                master: &sentinel.master,
                addresses: sentinels.iter().map(String::as_str).collect(),
                username: sentinel.username.as_deref(),
                password: password.as_ref().map(Secret::expose),
                database: sentinel.database,
                tls: sentinel.tls,
            };
            (place, sentinel.span.clone())
        }
        (None, None, Some(first)) => (Place::Cluster(cluster.iter().map(String::as_str).collect()), first.span.clone()),
        (None, None, None) => return None,
    };
    let ca = config.ca.as_ref().map(|path| files.certificates_text(path));
    let client = config.cert.as_ref().zip(config.key.as_ref());
    let client = client.map(|(cert, key)| Some((files.certificates_text(cert)?, files.key_text(key)?)));
    if !whole || matches!(ca, Some(None)) || matches!(client, Some(None)) {
        return None;
    }
    let pem = Pem { ca: ca.flatten(), client: client.flatten() };
    match RedisOptions::new(&place, &pem, config.timeout.get(), config.gateways.value.into(), &config.prefix.value) {
        Ok(options) => Some(options),
        Err(why) => {
            files.error(span, why);
            None
        }
    }
}

/// Another rate begins a count of its own.
pub fn shield(config: &Config, parts: &CompileParts<'_>) -> Option<Arc<Shield>> {
    let rate = config.limits.global?;
    Some(parts.state.get_or_create(&rate.to_string(), || Shield::new(rate)))
}
