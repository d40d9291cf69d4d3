//! The Redis that gateways share, as `[redis]` says.

use super::CompileParts;
use crate::config::{Config, RedisConfig};
use crate::diagnostic::Diagnostics;
use crate::redis_link::{Access, Pem, Place, Topology};
use crate::tls::Files;
use crate::value::{Located, Secret, TextOrSecret};
use std::path::Path;

/// Where it is, for commands that write to it; `None` if there is none, or it is wrong, which is reported.
pub fn redis_topology(config: &Config, d: &mut Diagnostics) -> Option<Topology> {
    topology(&config.redis, &mut Files { d })
}

/// The same for a snapshot, with how it is used.
pub fn access(config: &RedisConfig, parts: &CompileParts<'_>, files: &mut Files<'_>) -> Option<Access> {
    Some(Access {
        topology: topology(config, files)?,
        timeout: config.timeout.get(),
        prefix: config.prefix.as_str().into(),
        connect: !parts.dry,
    })
}

fn topology(config: &RedisConfig, files: &mut Files<'_>) -> Option<Topology> {
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
    match Topology::new(&place, &pem) {
        Ok(topology) => Some(topology),
        Err(why) => {
            files.error(span, why);
            None
        }
    }
}
