//! What can only be said of the configuration as a whole: references, names, and values that cannot be.

use super::load::Progress;
use super::suggest::dangling;
use super::{ChainConfig, Config, Named};
use crate::consumer::CredentialConfig;
use crate::diagnostic::{Diagnostics, Span};
use crate::value::{Address, Located};
use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

/// Checks the merged tree. Entries that lost something to an error are only looked up, not checked.
pub(super) fn check(config: &Config, progress: &Progress, d: &mut Diagnostics) {
    let intact = |section: &'static str, name: &str| !progress.dirty.contains(&(section, name.to_owned()));
    if intact("server", "") {
        config.server.check(d);
    }
    if intact("admin", "") {
        config.admin.check(d);
    }
    if intact("log", "") {
        config.log.check(d);
    }
    if intact("limits", "") {
        config.limits.check(d);
    }
    if intact("redis", "") {
        config.redis.check(d);
    }
    if intact("consumer_source", "") {
        config.consumer_source.check(config.redis.is_somewhere(), d);
    }
    if intact("identity", "") {
        config.identity.check(d);
    }
    if intact("cache", "") {
        config.cache.check(d);
    }
    names("listener", &config.listeners, d);
    names("tier", &config.tiers, d);
    names("consumer", &config.consumers, d);
    names("issuer", &config.jwt, d);
    names("upstream", &config.upstreams, d);
    names("chain", &config.chains, d);
    names("route", &config.routes, d);
    for (_, listener) in config.listeners.iter().filter(|(name, _)| intact("listeners", name)) {
        listener.check(d);
    }
    for (_, consumer) in config.consumers.iter().filter(|(name, _)| intact("consumers", name)) {
        consumer.check(&consumer.name, d);
    }
    for (_, tier) in config.tiers.iter().filter(|(name, _)| intact("tiers", name)) {
        tier.check(&tier.name, d);
    }
    for (_, issuer) in config.jwt.iter().filter(|(name, _)| intact("jwt", name)) {
        issuer.check(&issuer.name, d);
    }
    for (_, upstream) in config.upstreams.iter().filter(|(name, _)| intact("upstreams", name)) {
        upstream.check(&upstream.name, d);
    }
    for (_, route) in config.routes.iter().filter(|(name, _)| intact("routes", name)) {
        route.check(d);
    }
    addresses(config, d);
    if config.listeners.is_empty() && !progress.incomplete && progress.failed_names("listeners").next().is_none() {
        d.error(None, "there are no listeners, so nothing can be served")
            .help("add [listeners.http] with address = \"0.0.0.0:8080\"");
    }
    if !progress.incomplete {
        references(config, progress, d);
    }
    cycles(&config.chains, d);
    if !d.has_errors() {
        unused(config, d);
    }
}

/// Reports a value outside of its bounds.
pub(super) fn within<T: PartialOrd + Display>(value: &Located<T>, bounds: RangeInclusive<T>, d: &mut Diagnostics) {
    if !bounds.contains(&value.value) {
        d.error(value.span.clone(), format!("`{}` is not possible here", value.value)).label(format!(
            "must be from {} to {}",
            bounds.start(),
            bounds.end()
        ));
    }
}

/// Names appear in metrics, logs and URLs of the admin interface, so they are kept plain.
fn names<T>(kind: &str, entries: &Named<T>, d: &mut Diagnostics) {
    for (name, entry) in entries {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || name.len() > 63 || !name.bytes().all(plain) {
            d.error(entry.name.span.clone(), format!("`{name}` cannot be the name of a {kind}"))
                .help("use up to 63 letters, digits, `_`, `-` and `.`, and begin with a letter or digit");
        }
    }
}

/// Two listeners cannot have one address, nor can one of all addresses share its port.
fn addresses(config: &Config, d: &mut Diagnostics) {
    let mut all: Vec<&Located<Address>> = config.listeners.values().map(|listener| &listener.address).collect();
    all.push(&config.admin.listen);
    let place = |span: &Option<Span>| span.as_ref().map(|span| (span.file, span.range.start));
    // The default of the admin interface comes first, so that what is written is what is wrong.
    all.sort_by_key(|address| place(&address.span));
    let mut first: BTreeMap<&Address, &Located<Address>> = BTreeMap::new();
    for address in all {
        let wildcard = match &address.value {
            Address::Tcp(tcp) if tcp.port() == 0 => continue,
            Address::Tcp(tcp) => Some(Address::Tcp(any(tcp))),
            Address::Unix(_) => None,
        };
        let is_wildcard = wildcard.as_ref() == Some(&address.value);
        let covered = |other: &&&Address| match (&address.value, other) {
            (Address::Tcp(this), Address::Tcp(other)) => {
                is_wildcard && this.port() == other.port() && this.is_ipv4() == other.is_ipv4()
            }
            _ => false,
        };
        let other = first
            .get(&address.value)
            .or_else(|| wildcard.as_ref().and_then(|wildcard| first.get(wildcard)))
            .or_else(|| is_wildcard.then(|| first.keys().find(covered).and_then(|key| first.get(*key))).flatten());
        match other {
            Some(other) => {
                let found = d.error(address.span.clone(), format!("`{}` is taken by another listener", address.value));
                match &other.span {
                    Some(span) => found.related(span.clone(), "by this one"),
                    None => found.help(format!("the admin interface is on {} unless [admin] listen says otherwise", other.value)),
                };
            }
            None => {
                first.insert(&address.value, address);
            }
        }
    }
}

/// All addresses of the family, with the same port.
fn any(address: &SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => (std::net::Ipv4Addr::UNSPECIFIED, v4.port()).into(),
        SocketAddr::V6(v6) => (std::net::Ipv6Addr::UNSPECIFIED, v6.port()).into(),
    }
}

/// Every name that is used must exist. Names that exist but could not be decoded have errors enough.
fn references(config: &Config, progress: &Progress, d: &mut Diagnostics) {
    let failed = |section: &'static str, name: &str| {
        !progress.failed.is_empty() && progress.failed.contains_key(&(section, name.to_owned()))
    };
    let credentials = config.consumers.values().flat_map(|consumer| &consumer.credentials);
    for credential in credentials {
        if let CredentialConfig::Jwt(jwt) = credential
            && let Some(issuer) = &jwt.issuer
            && !config.jwt.contains_key(&issuer.value)
            && !failed("jwt", issuer)
        {
            let known = config.jwt.keys().map(String::as_str).chain(progress.failed_names("jwt"));
            dangling(d, issuer.span.clone(), "issuer", issuer, known);
        }
    }
    for issuer in config.jwt.values().filter(|issuer| issuer.deny_list.value) {
        if config.consumer_source.source.is_none() {
            d.error(issuer.deny_list.span.clone(), "withdrawn tokens are listed in Redis, and no source says where")
                .help("write [consumer_source] with source = \"redis\"");
        }
    }
    for route in config.routes.values() {
        for upstream in route.upstream.iter().chain(route.others()) {
            if !config.upstreams.contains_key(&upstream.value) && !failed("upstreams", upstream) {
                let known = config.upstreams.keys().map(String::as_str).chain(progress.failed_names("upstreams"));
                dangling(d, upstream.span.clone(), "upstream", upstream, known);
            }
        }
    }
    for consumer in config.consumers.values() {
        if let Some(tier) = &consumer.tier
            && !config.tiers.contains_key(&tier.value)
            && !failed("tiers", tier)
        {
            let known = config.tiers.keys().map(String::as_str).chain(progress.failed_names("tiers"));
            dangling(d, tier.span.clone(), "tier", tier, known);
        }
    }
    let routes = config.routes.values().map(|route| &route.filters);
    for used in routes.chain(config.chains.values().map(|chain| &chain.filters)).flat_map(|filters| filters.uses()) {
        if !config.chains.contains_key(&used.value) && !failed("chains", used) {
            let known = config.chains.keys().map(String::as_str).chain(progress.failed_names("chains"));
            dangling(d, used.span.clone(), "chain", used, known);
        }
    }
}

/// A chain may use others, but not come back to itself.
fn cycles(chains: &Named<ChainConfig>, d: &mut Diagnostics) {
    let mut done = HashSet::new();
    for name in chains.keys() {
        // Depth first with an explicit stack: the depth is up to whoever wrote the file.
        let mut path: Vec<(&str, std::vec::IntoIter<&Located<String>>)> = Vec::new();
        if done.insert(name.as_str()) {
            path.push((name, uses(chains, name)));
        }
        while let Some((_, next)) = path.last_mut() {
            let Some(used) = next.next() else {
                path.pop();
                continue;
            };
            if let Some(start) = path.iter().position(|(name, _)| *name == used.value) {
                let mut way: Vec<&str> = path.iter().skip(start).map(|(name, _)| *name).collect();
                way.push(&used.value);
                d.error(used.span.clone(), format!("chain `{}` uses itself", used.value)).label(way.join(" -> "));
            } else if chains.contains_key(&used.value) && done.insert(&used.value) {
                path.push((&used.value, uses(chains, &used.value)));
            }
        }
    }
}

fn uses<'a>(chains: &'a Named<ChainConfig>, name: &str) -> std::vec::IntoIter<&'a Located<String>> {
    let list: Vec<_> = chains.get(name).map(|chain| chain.filters.uses().collect()).unwrap_or_default();
    list.into_iter()
}

/// What nobody uses is likely a forgotten reference.
fn unused(config: &Config, d: &mut Diagnostics) {
    let upstreams: HashSet<&str> =
        config.routes.values().flat_map(|route| route.upstream.iter().chain(route.others())).map(|name| name.as_str()).collect();
    for (_, upstream) in config.upstreams.iter().filter(|(name, _)| !upstreams.contains(name.as_str())) {
        d.warning(upstream.name.span.clone(), format!("no route uses upstream `{}`", upstream.name.value));
    }
    let filters = config.routes.values().map(|r| &r.filters).chain(config.chains.values().map(|c| &c.filters));
    let chains: HashSet<&str> = filters.flat_map(|filters| filters.uses()).map(|used| used.value.as_str()).collect();
    for (_, chain) in config.chains.iter().filter(|(name, _)| !chains.contains(name.as_str())) {
        d.warning(chain.name.span.clone(), format!("no route uses chain `{}`", chain.name.value));
    }
}
