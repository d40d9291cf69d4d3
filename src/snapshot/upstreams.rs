//! What an upstream needs from outside of its section: secrets, and where its endpoints are found.

use crate::config::Config;
use crate::diagnostic::{Diagnostics, Span};
use crate::discovery::config::{DiscoverConfig, RedisConfig};
use crate::discovery::{Bounds, ConsulSource, DnsSource, FileSource, Plan, RedisSource};
use crate::tls::{ClientTls, Files};
use crate::upstream::UpstreamConfig;
use crate::upstream::balance::sticky::SECRET_MIN;
use crate::upstream::balance::{Balance, Sticky};
use crate::value::Secret;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The cookies of an upstream with `balance = { sticky = ... }`.
pub fn sticky(config: &UpstreamConfig, d: &mut Diagnostics) -> Option<Arc<Sticky>> {
    let Balance::Sticky(sticky) = &config.balance.value else { return None };
    let span = sticky.secret.span.clone();
    match sticky.secret.resolve(&base(&span, d)) {
        Ok(secret) => match Sticky::new(sticky, &secret) {
            Some(sticky) => Some(Arc::new(sticky)),
            None => {
                d.error(span, format!("a secret that signs cookies has at least {SECRET_MIN} bytes"))
                    .help("for example the output of `openssl rand -hex 32`");
                None
            }
        },
        Err(why) => {
            d.error(span, why);
            None
        }
    }
}

/// How the endpoints of an upstream are found. `None` where something is wrong has left an error behind.
pub fn discover(all: &Config, config: &UpstreamConfig, read: &mut Vec<PathBuf>, d: &mut Diagnostics) -> Option<Arc<Plan>> {
    let config = config.discover.as_ref()?;
    let bounds = Bounds {
        allow: config.allow.iter().map(|network| network.value).collect(),
        max_endpoints: config.max_endpoints.value.into(),
        allow_empty: config.allow_empty,
        debounce: config.debounce.get(),
        max_stale: config.max_stale.as_ref().map(|age| age.get()),
    };
    let DiscoverConfig { file, dns, consul, redis, .. } = &config.value;
    let plan = if let Some(file) = file {
        let path = base(&file.path.span, d).join(&file.path.value);
        let (what, config) = (format!("file {}", path.display()), file.value.clone());
        Plan::new(what, &format!("{:?}", config.interval), bounds, move || FileSource::new(&config, path.clone()))
    } else if let Some(dns) = dns {
        let port = dns.port.as_ref().map(|port| port.value);
        let what = format!("dns {:?} {} {port:?}", dns.record, dns.name.value);
        let (settings, config) = (format!("{dns:?}"), dns.value.clone());
        Plan::new(what, &settings, bounds, move || DnsSource::new(&config))
    } else if let Some(consul) = consul {
        let tls = consul.tls.as_ref();
        let built = tls.and_then(|tls| ClientTls::build(tls, &mut Files { d, read }));
        if tls.is_some() && built.is_none() {
            return None;
        }
        let token = match &consul.token {
            None => None,
            Some(source) => match source.resolve(&base(&source.span, d)) {
                Ok(token) => Some(token),
                Err(why) => {
                    d.error(source.span.clone(), why);
                    return None;
                }
            },
        };
        let what = format!("consul {} {:?} {:?}", consul.service.value, consul.tags.value, consul.datacenter.as_deref());
        let settings = format!("{consul:?} {built:?} {}", token.as_ref().map_or_else(String::new, digest));
        let config = consul.value.clone();
        Plan::new(what, &settings, bounds, move || ConsulSource::new(&config, token.as_ref(), built.clone()))
    } else {
        redis_plan(all, redis.as_ref()?, bounds, d)?
    };
    Some(Arc::new(plan))
}

fn redis_plan(all: &Config, config: &RedisConfig, bounds: Bounds, d: &mut Diagnostics) -> Option<Plan> {
    let Some(url) = config.url.as_ref().or(all.redis.url.as_ref()) else {
        d.error(config.key.span.clone(), "there is no Redis to ask")
            .help("write `url` here, or [redis] url = \"redis://127.0.0.1:6379\"");
        return None;
    };
    // The error of the library could hold the URL, which may have a password.
    let opened = url.value.resolve(&base(&url.span, d)).and_then(|url| {
        let client = redis::Client::open(url.expose()).map_err(|_| {
            "this is not the URL of a Redis, such as redis://127.0.0.1:6379 or rediss://user:password@host:6379/0".to_owned()
        });
        Ok((client?, digest(&url)))
    });
    match opened {
        Ok((client, identity)) => {
            let (config, most) = (config.clone(), bounds.max_endpoints);
            let settings = format!("{identity} {:?} {:?}", config.interval, config.timeout);
            let what = format!("redis {}", config.key.value);
            Some(Plan::new(what, &settings, bounds, move || RedisSource::new(&config, client.clone(), most)))
        }
        Err(why) => {
            d.error(url.span.clone(), why);
            None
        }
    }
}

/// Stands for a secret where two must be told apart.
fn digest(secret: &Secret) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, secret.expose().as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The directory of the file in which something is written: where its relative paths begin.
fn base(span: &Option<Span>, d: &Diagnostics) -> PathBuf {
    let source = span.as_ref().and_then(|span| d.source(span.file));
    source.and_then(|source| source.path.parent()).unwrap_or(Path::new("")).to_owned()
}
