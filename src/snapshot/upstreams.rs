//! What an upstream needs from outside of its section: secrets, and where its endpoints are found.

use crate::config::Config;
use crate::diagnostic::{Diagnostics, Span};
use crate::discovery::config::{DiscoverConfig, RedisConfig};
use crate::discovery::{Bounds, ConsulSource, DnsSource, FileSource, Plan, RedisSource};
use crate::redis_link::{Access, Pem, Place, Topology};
use crate::tls::{ClientTls, Files};
use crate::upstream::UpstreamConfig;
use crate::upstream::balance::sticky::SECRET_MIN;
use crate::upstream::balance::{Balance, Sticky};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The cookies of an upstream with `balance = { sticky = ... }`.
pub fn sticky(name: &str, config: &UpstreamConfig, d: &mut Diagnostics) -> Option<Arc<Sticky>> {
    let Balance::Sticky(sticky) = &config.balance.value else { return None };
    let span = sticky.secret.span.clone();
    match sticky.secret.resolve(&base(&span, d)) {
        Ok(secret) => match Sticky::new(sticky, name, &secret) {
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

/// How the endpoints of an upstream are found. `None` where something is wrong has left an error behind. `shared` is the Redis of
/// `[redis]`, if there is one.
pub fn discover(all: &Config, shared: Option<&Access>, config: &UpstreamConfig, d: &mut Diagnostics) -> Option<Arc<Plan>> {
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
        let built = tls.and_then(|tls| ClientTls::build(tls, &mut Files { d }));
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
        let settings =
            format!("{consul:?} {built:?} {}", token.as_ref().map_or_else(String::new, |token| digest(token.expose())));
        let config = consul.value.clone();
        Plan::new(what, &settings, bounds, move || ConsulSource::new(&config, token.as_ref(), built.clone()))
    } else {
        redis_plan(all, shared, redis.as_ref()?, bounds, d)?
    };
    Some(Arc::new(plan))
}

fn redis_plan(all: &Config, shared: Option<&Access>, config: &RedisConfig, bounds: Bounds, d: &mut Diagnostics) -> Option<Plan> {
    let topology = match &config.url {
        Some(url) => {
            let secret = url.value.resolve(&base(&url.span, d));
            match secret.and_then(|url| Topology::new(&Place::Url(url.expose()), &Pem::default())) {
                Ok(topology) => topology,
                Err(why) => {
                    d.error(url.span.clone(), why);
                    return None;
                }
            }
        }
        None => {
            if !all.redis.is_somewhere() {
                d.error(config.key.span.clone(), "there is no Redis to ask")
                    .help("write `url` here, or [redis] url = \"redis://127.0.0.1:6379\"");
            }
            shared?.topology.clone()
        }
    };
    let (config, most) = (config.clone(), bounds.max_endpoints);
    let settings = format!("{} {:?} {:?}", digest(topology.identity()), config.interval, config.timeout);
    let what = format!("redis {}", config.key.value);
    Some(Plan::new(what, &settings, bounds, move || RedisSource::new(&config, topology.clone(), most)))
}

/// Stands for a secret where two must be told apart.
fn digest(secret: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, secret.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The directory of the file in which something is written: where its relative paths begin.
fn base(span: &Option<Span>, d: &Diagnostics) -> PathBuf {
    let source = span.as_ref().and_then(|span| d.source(span.file));
    source.and_then(|source| source.path.parent()).unwrap_or(Path::new("")).to_owned()
}
