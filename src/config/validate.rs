//! What can only be said of the configuration as a whole: references, names, and values that cannot be.

use super::load::Progress;
use super::suggest::dangling;
use super::{ChainConfig, Config, Named};
use crate::consumer::CredentialConfig;
use crate::diagnostic::{Diagnostics, Span};
use crate::upstream::config::Balance;
use crate::value::{Address, Located};
use std::collections::{BTreeMap, HashSet};

/// Keys of a section that are checked beside each other. Where one of them is lost to an error, nothing is said of the others.
const TOGETHER: &[(&str, &[&[&str]])] = &[
    ("listeners", &[&["tls", "http2"], &["max_uri", "max_header"]]),
    ("upstreams", &[&["tls", "protocol"], &["balance", "hedge"]]),
    ("redis", &[&["cert", "key"]]),
    ("identity", &[&["key", "header", "audience", "also_publish"]]),
    ("jwt", &[&["algorithms", "secret", "public_key", "jwks"]]),
];

/// Checks the merged tree. Of entries that lost something to an error, what they have whole is.
pub(super) fn check(config: &Config, progress: &Progress, d: &mut Diagnostics) {
    let one = |section: &'static str, name: &str, d: &mut Diagnostics, check: &dyn Fn(&mut Diagnostics)| {
        let Some(whole) = progress.dirty.get(&(section, name.to_owned())) else { return check(d) };
        let mut found = Diagnostics::default();
        check(&mut found);
        let together = TOGETHER.iter().find(|(of, _)| *of == section).map_or(&[][..], |(_, groups)| groups);
        d.take(found, |found| found.primary.as_ref().is_some_and(|(span, _)| whole.vouches(&span.range, together)));
    };
    one("server", "", d, &|d| config.server.check(d));
    one("admin", "", d, &|d| config.admin.check(d));
    one("log", "", d, &|d| config.log.check(d));
    one("limits", "", d, &|d| config.limits.check(d));
    one("redis", "", d, &|d| config.redis.check(d));
    let has_redis = config.redis.is_somewhere() || progress.dirty.contains_key(&("redis", String::new()));
    one("consumer_source", "", d, &|d| config.consumer_source.check(has_redis, d));
    one("identity", "", d, &|d| config.identity.check(d));
    one("cache", "", d, &|d| config.cache.check(d));
    names("listener", &config.listeners, d);
    names("tier", &config.tiers, d);
    names("consumer", &config.consumers, d);
    names("issuer", &config.jwt, d);
    names("upstream", &config.upstreams, d);
    names("chain", &config.chains, d);
    names("route", &config.routes, d);
    for (name, listener) in &config.listeners {
        one("listeners", name, d, &|d| listener.check(d));
    }
    for (name, consumer) in &config.consumers {
        one("consumers", name, d, &|d| consumer.check(&consumer.name, d));
    }
    for (name, tier) in &config.tiers {
        one("tiers", name, d, &|d| tier.check(&tier.name, d));
    }
    for (name, issuer) in &config.jwt {
        one("jwt", name, d, &|d| issuer.check(&issuer.name, d));
    }
    for (name, upstream) in &config.upstreams {
        one("upstreams", name, d, &|d| upstream.check(&upstream.name, d));
    }
    for (name, route) in &config.routes {
        one("routes", name, d, &|d| route.check(d));
        // Not where it may only be missing because what was written there is wrong.
        if !progress.dirty.get(&("routes", name.clone())).is_some_and(|whole| whole.has_lost("upstream")) {
            one("routes", name, d, &|d| route.check_upstream(d));
        }
    }
    addresses(config, d);
    cookies(config, d);
    if config.listeners.is_empty() && !progress.incomplete && progress.failed_names("listeners").next().is_none() {
        d.error(None, "there are no listeners, so nothing can be served")
            .help("add [listeners.http] with address = \"0.0.0.0:8080\"");
    }
    if !progress.incomplete {
        references(config, progress, d);
    } else if !(config.routes.is_empty() && config.chains.is_empty() && config.consumers.is_empty()) {
        d.warning(None, "whether names that are used exist is looked at once everything can be read");
    }
    cycles(&config.chains, d);
    if !d.has_errors() {
        unused(config, d);
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
    let mut first: Vec<&Located<Address>> = Vec::new();
    for address in all {
        if matches!(&address.value, Address::Tcp(tcp) if tcp.port() == 0) {
            continue;
        }
        let same = |other: &&&Located<Address>| covers(&address.value, &other.value) || covers(&other.value, &address.value);
        let other = first.iter().find(same).copied();
        match other {
            Some(other) => {
                let found = d.error(address.span.clone(), format!("`{}` is taken by another listener", address.value));
                match &other.span {
                    Some(span) => found.related(span.clone(), "by this one"),
                    None => found.help(format!("the admin interface is on {} unless [admin] listen says otherwise", other.value)),
                };
            }
            None => first.push(address),
        }
    }
}

/// Whether who listens on one address takes what is meant for the other: `0.0.0.0` all of IPv4, `[::]` everything.
fn covers(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Tcp(one), Address::Tcp(other)) if one.port() == other.port() => {
            one == other || (one.ip().is_unspecified() && (one.is_ipv6() || other.is_ipv4()))
        }
        _ => one == other,
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

/// Cookies of one name, and by whom they are set: a client of both would have a place at neither.
fn cookies(config: &Config, d: &mut Diagnostics) {
    let mut first: BTreeMap<&str, &Located<String>> = BTreeMap::new();
    let mut named: Vec<_> = config
        .upstreams
        .values()
        .filter_map(|upstream| match &upstream.balance.value {
            Balance::Sticky(sticky) => sticky.cookie.as_ref(),
            _ => None,
        })
        .collect();
    named.sort_by_key(|cookie| cookie.span.as_ref().map(|span| (span.file, span.range.start)));
    for cookie in named {
        match first.get(cookie.value.as_str()) {
            Some(other) => {
                let message = format!("another upstream sets the cookie `{}` too", cookie.value);
                let found = d.warning(cookie.span.clone(), message);
                if let Some(span) = &other.span {
                    found.related(span.clone(), "here");
                }
                found.help(
                    "a client of both loses its place with every change; leave `cookie` out, which makes a name by the upstream",
                );
            }
            None => {
                first.insert(&cookie.value, cookie);
            }
        }
    }
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
