//! From the tree of TOML to a snapshot. Everything wrong that only shows when the parts meet is reported here, all of it.

use super::{Route, Snapshot, Target};
use crate::clock::SharedClock;
use crate::config::{AccessOutput, Config, Entry, FilterEntry, ListenerConfig, RouteConfig};
use crate::diagnostic::Diagnostics;
use crate::filter::{BuildContext, Chain, Filter, FilterSpec};
use crate::forwarded::TrustedProxies;
use crate::listener::{ListenerPlan, ListenerSettings, head::HeadLimits};
use crate::route::{RouteEntry, Router};
use crate::state::StatePool;
use crate::telemetry::access_log::{AccessLog, AccessLogOptions};
use crate::telemetry::metrics::{RouteMetrics, UpstreamMetrics};
use crate::telemetry::writer::{Output, Writer, WriterOptions};
use crate::upstream::Upstream;
use http::HeaderValue;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a snapshot is compiled with besides its configuration.
pub struct CompileParts<'a> {
    pub state: &'a Arc<StatePool>,
    pub clock: &'a SharedClock,
    /// Only look whether it compiles: nothing outside of the process is opened or written.
    pub dry: bool,
}

/// Compiles, or reports why not.
pub fn compile(config: &Config, hash: &str, parts: &CompileParts<'_>, d: &mut Diagnostics) -> Option<Snapshot> {
    let upstreams = upstreams(config, parts);
    let routes = config.routes.values().map(|entry| route(entry, config, &upstreams, parts, d)).collect::<Vec<_>>();
    let router = router(config, d);
    let access_log = access_log(config, parts, d);
    if d.has_errors() {
        return None;
    }
    let pseudonym = config.server.via.value.as_str();
    Some(Snapshot {
        hash: hash.to_owned(),
        loaded_at: parts.clock.wall(),
        router: router?,
        routes: routes.into_iter().collect::<Option<_>>()?,
        unrouted: parts.state.get_or_create("", RouteMetrics::default),
        upstreams: upstreams.into_iter().map(|(name, target)| (name, target.upstream)).collect(),
        listeners: config.listeners.values().map(listener).collect(),
        trusted_proxies: TrustedProxies::new(config.server.trusted_proxies.iter().map(|cidr| cidr.value)),
        pseudonym: pseudonym.into(),
        via: HeaderValue::try_from(format!("1.1 {pseudonym}")).ok()?,
        access_log: access_log?,
    })
}

fn upstreams(config: &Config, parts: &CompileParts<'_>) -> BTreeMap<Arc<str>, Target> {
    let build = |entry: &Entry<_>| {
        let name = entry.name.value.as_str();
        let upstream = Upstream::build(name, &entry.value, parts.state, parts.clock);
        let metrics = parts.state.get_or_create(name, UpstreamMetrics::default);
        (Arc::from(name), Target { upstream, metrics })
    };
    config.upstreams.values().map(build).collect()
}

fn route(
    entry: &Entry<RouteConfig>,
    config: &Config,
    upstreams: &BTreeMap<Arc<str>, Target>,
    parts: &CompileParts<'_>,
    d: &mut Diagnostics,
) -> Option<Arc<Route>> {
    let name = entry.name.value.as_str();
    let mut filters = Vec::new();
    let complete = build_filters(&entry.value.filters, name, config, parts, d, &mut filters);
    let chain = Chain::new(&filters);
    let upstream = match &entry.value.upstream {
        Some(upstream) => Some(upstreams.get(upstream.value.as_str())?.clone()),
        None => {
            if complete && !filters.iter().any(|filter| filter.answers()) {
                d.error(entry.name.span.clone(), format!("route `{name}` has neither an upstream nor a filter that answers"))
                    .help("add `upstream = \"...\"`, or a filter such as `respond` or `redirect`");
            }
            None
        }
    };
    let own = entry.value.timeouts.request.get();
    let inherited = upstream.as_ref().and_then(|target| target.upstream.request_timeout());
    Some(Arc::new(Route {
        name: name.into(),
        chain,
        upstream,
        timeout: [Some(own), inherited].into_iter().flatten().filter(|timeout| !timeout.is_zero()).min(),
        max_body: entry.value.max_body.unwrap_or(config.server.max_body).0,
        metrics: parts.state.get_or_create(name, RouteMetrics::default),
    }))
}

/// Appends the filters as they run, named chains in place. `false` if one of them could not be built.
fn build_filters(
    entries: &[FilterEntry],
    route: &str,
    config: &Config,
    parts: &CompileParts<'_>,
    d: &mut Diagnostics,
    filters: &mut Vec<Arc<dyn Filter>>,
) -> bool {
    let mut complete = true;
    for entry in entries {
        complete &= match entry {
            FilterEntry::Filter(spec) => match build_filter(spec, route, parts, d) {
                Some(filter) => {
                    filters.push(filter);
                    true
                }
                None => false,
            },
            // Names that do not exist, and chains that use themselves, were refused when the file was read.
            FilterEntry::Use(chain) => config
                .chains
                .get(&chain.value)
                .is_some_and(|chain| build_filters(&chain.value.filters, route, config, parts, d, filters)),
        };
    }
    complete
}

fn build_filter(spec: &FilterSpec, route: &str, parts: &CompileParts<'_>, d: &mut Diagnostics) -> Option<Arc<dyn Filter>> {
    let mut cx = BuildContext { route, state: parts.state, clock: parts.clock, diagnostics: d, span: spec.span.clone() };
    match (spec.build)(&mut cx) {
        Ok(filter) => Some(filter),
        Err(problem) => {
            let span = problem.span.unwrap_or_else(|| spec.span.clone());
            // A chain is built once for each route that uses it; its mistakes are told once.
            let known = d.list.iter().any(|known| {
                known.message == problem.message && known.primary.as_ref().is_some_and(|(place, _)| *place == span)
            });
            if !known {
                let diagnostic = d.error(span, problem.message);
                if let Some(help) = problem.help {
                    diagnostic.help(help);
                }
            }
            None
        }
    }
}

fn router(config: &Config, d: &mut Diagnostics) -> Option<Router> {
    let routes: Vec<_> = config.routes.values().collect();
    let entries = routes.iter().zip(0_u32..).filter_map(|(entry, index)| {
        // `None` was reported by the check of the match.
        Some(RouteEntry { index, matcher: entry.value.matcher.compile()? })
    });
    match Router::build(entries.collect()) {
        Ok(router) => Some(router),
        Err(ambiguities) => {
            for ambiguity in ambiguities {
                let at = |index: u32| usize::try_from(index).ok().and_then(|index| routes.get(index));
                let (Some(first), Some(second)) = (at(ambiguity.first), at(ambiguity.second)) else { continue };
                if ambiguity.first == ambiguity.second {
                    d.error(first.name.span.clone(), ambiguity.why);
                    continue;
                }
                let message = format!("routes `{}` and `{}` can take the same request", first.name.value, second.name.value);
                let diagnostic = d.error(second.name.span.clone(), message);
                diagnostic.label(ambiguity.why).help("make one of them more specific: by host, path, methods, headers or query");
                if let Some(span) = first.name.span.clone() {
                    diagnostic.related(span, "the other route");
                }
            }
            None
        }
    }
}

fn listener(entry: &Entry<ListenerConfig>) -> ListenerPlan {
    let config = &entry.value;
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let settings = ListenerSettings {
        head: HeadLimits {
            max_header: bytes(config.max_header.value.0),
            max_headers: count(config.max_headers.value),
            max_uri: bytes(config.max_uri.value.0),
            ..HeadLimits::default()
        },
        header_timeout: config.header_timeout.get(),
        keepalive_timeout: config.keepalive_timeout.get(),
        keepalive_requests: Some(config.keepalive_requests).filter(|most| *most > 0),
        body_timeout: config.body_timeout.get(),
        max_connections: count(config.max_connections.value),
        max_connections_per_address: config.max_connections_per_address.as_ref().map(|most| most.value),
    };
    ListenerPlan { name: entry.name.value.as_str().into(), address: config.address.value.clone(), settings: Arc::new(settings) }
}

/// The writer belongs to the output, not to the snapshot: lines of requests that began before a reload are not lost.
fn access_log(config: &Config, parts: &CompileParts<'_>, d: &mut Diagnostics) -> Option<Arc<AccessLog>> {
    let access = &config.log.access;
    let output = match &access.output.value {
        _ if parts.dry => Output::Null,
        AccessOutput::Stdout => Output::Stdout,
        AccessOutput::Stderr => Output::Stderr,
        AccessOutput::Off => Output::Null,
        AccessOutput::File(path) => Output::File(path.clone()),
    };
    let mut options = WriterOptions::new("access log", output);
    options.capacity = usize::try_from(config.log.buffer.value.0).unwrap_or(usize::MAX);
    let key = format!("{:?} {}", access.output.value, options.capacity);
    match parts.state.try_get_or_create(&key, || Writer::new(options)) {
        Ok(writer) => {
            let sample_per_million = access.sample.parts_per_million;
            Some(Arc::new(AccessLog::new(writer, AccessLogOptions { sample_per_million, ..AccessLogOptions::default() })))
        }
        Err(e) => {
            d.error(access.output.span.clone(), format!("the access log cannot be written: {e}"));
            None
        }
    }
}
