//! From the tree of TOML to a snapshot. Everything wrong that only shows when the parts meet is reported here, all of it.

use super::agree::{self, Facts};
use super::{DeadlineRules, Route, Snapshot, Split, Target};
use crate::canonical::PathRules;
use crate::clock::SharedClock;
use crate::config::{
    AccessOutput, Config, Entry, FilterEntry, Filters, HeaderCase, Http2, ListenerConfig, MirrorConfig, ProxyProtocolConfig,
    RouteConfig,
};
use crate::consumer::Consumers;
use crate::diagnostic::{Diagnostic, Diagnostics, Severity};
use crate::filter::{BuildContext, Chain, Filter, FilterSpec};
use crate::forwarded::{TrustedProxies, Via};
use crate::identity::{IdentityHeaders, IdentitySigner};
use crate::jwt::Issuers;
use crate::limit::Stores;
use crate::limit::shield::Shield;
use crate::listener::{Http2Mode, IoBounds, ListenerPlan, ListenerSettings, Tolerance, head::HeadLimits};
use crate::mirror::{Mirror, MirrorBounds, MirrorMetrics, Worker};
use crate::redis_link::Access;
use crate::route::{RouteEntry, Router};
use crate::state::StatePool;
use crate::telemetry::access_log::{AccessLog, AccessLogOptions};
use crate::telemetry::metrics::RouteMetrics;
use crate::telemetry::writer::{Output, Writer, WriterOptions};
use crate::tls::{ClientTls, Files, ServerParts, ServerTls};
use crate::upstream::{self, Beside, Upstream, UpstreamConfig};
use crate::value::{Duration, Located, noting_files};
use http::HeaderName;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
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
    compile_or_files(config, hash, parts, d).ok()
}

/// The same. Where it does not compile, the files come back that it has read: one of them may be what is wrong.
pub fn compile_or_files(
    config: &Config,
    hash: &str,
    parts: &CompileParts<'_>,
    d: &mut Diagnostics,
) -> Result<Snapshot, Vec<PathBuf>> {
    let (snapshot, mut files) = noting_files(|| build(config, hash, parts, d));
    files.sort_unstable();
    files.dedup();
    match snapshot {
        Some(snapshot) => Ok(Snapshot { files, ..snapshot }),
        None => Err(files),
    }
}

fn build(config: &Config, hash: &str, parts: &CompileParts<'_>, d: &mut Diagnostics) -> Option<Snapshot> {
    // Before anything is read: what changes while it is must count as newer.
    let loaded_at = parts.clock.wall();
    let listeners: Vec<_> = {
        let in_all = config.server.max_connections.as_ref().map(|most| most.value);
        config.listeners.values().map(|entry| listener(entry, in_all, parts, d)).collect()
    };
    let redis = super::redis::access(&config.redis, parts, &mut Files { d });
    let upstreams: Upstreams = config.upstreams.values().map(|entry| upstream(config, redis.as_ref(), entry, parts, d)).collect();
    let consumers = config.consumers.values().map(|entry| (&entry.name, &entry.value));
    let tiers = config.tiers.iter().map(|(name, entry)| (name.as_str(), &entry.value));
    let consumers = Consumers::build(consumers, tiers, d);
    let consumers = Arc::new(consumers.with_issued(super::consumers::issued(config, redis.as_ref(), parts)));
    let sections = config.jwt.values().map(|entry| (&entry.name, &entry.value));
    let issuers = Issuers::build(sections, parts.state, parts.clock, d).incomplete(config.unread.jwt);
    let limits = super::limits::stores(config, redis.as_ref(), parts, d);
    let builder = RouteBuilder {
        config,
        upstreams: &upstreams,
        consumers: &consumers,
        issuers: &issuers,
        redis: redis.as_ref(),
        limits: &limits,
        parts,
        facts: RefCell::default(),
    };
    let routes = config.routes.values().map(|entry| builder.route(entry, d)).collect::<Vec<_>>();
    builder.facts.into_inner().report(d);
    let router = router(config, d);
    let cache = super::cache::store(config, redis.as_ref(), parts, d);
    let access_log = access_log(config, parts, d);
    let signer = IdentitySigner::build(&config.identity, d).map(Arc::new);
    if d.has_errors() {
        return None;
    }
    let routes: Box<[Arc<Route>]> = routes.into_iter().collect::<Option<_>>()?;
    let shield = super::limits::shield(config, parts);
    let trusted: Vec<_> = config.server.trusted_proxies.iter().map(|network| network.value).collect();
    Some(Snapshot {
        hash: hash.to_owned(),
        loaded_at,
        router: router?,
        direct_hits: shield.is_none() && routes.iter().any(|route| route.direct_hits),
        routes,
        unrouted: parts.state.get_or_create("", RouteMetrics::default),
        upstreams,
        consumers,
        issuers,
        listeners: listeners.into_iter().collect::<Option<_>>()?,
        files: Vec::new(),
        trusted_proxies: TrustedProxies::new(&trusted).reading(config.server.client_from.into()),
        forwarded_headers: config.server.forwarded.into(),
        identity_headers: IdentityHeaders::new(
            config.server.identity_headers.iter().map(|name| name.as_str()).chain(config.identity.header_name()),
        ),
        signer,
        preserve_header_case: config.server.header_case == HeaderCase::Preserve,
        via: Via::new(&config.server.via.value)?,
        shield,
        limits,
        cache,
        access_log,
    })
}

type Upstreams = BTreeMap<Arc<str>, Arc<Upstream>>;

fn upstream(
    config: &Config,
    redis: Option<&Access>,
    entry: &Entry<UpstreamConfig>,
    parts: &CompileParts<'_>,
    d: &mut Diagnostics,
) -> (Arc<str>, Arc<Upstream>) {
    let name = entry.name.value.as_str();
    // `None` where it should be something has left an error behind, so that nothing of this is ever used.
    let tls = entry.value.tls.as_ref().and_then(|tls| ClientTls::build(tls, &mut Files { d }));
    let sticky = super::upstreams::sticky(&entry.name.value, &entry.value, d);
    let discover = super::upstreams::discover(config, redis, &entry.value, d);
    let beside = Beside { tls, sticky, discover };
    (name.into(), Upstream::build(name, &entry.value, beside, parts.state, parts.clock))
}

/// Compiles routes. Each gets its own copies of the filters of the chains that it uses.
struct RouteBuilder<'a> {
    config: &'a Config,
    upstreams: &'a Upstreams,
    consumers: &'a Arc<Consumers>,
    issuers: &'a Issuers,
    redis: Option<&'a Access>,
    limits: &'a Stores,
    parts: &'a CompileParts<'a>,
    facts: RefCell<Facts>,
}

/// What the filters of one route are compiled for.
struct Place<'a> {
    route: &'a str,
    credential_headers: &'a [HeaderName],
}

impl RouteBuilder<'_> {
    fn route(&self, entry: &Entry<RouteConfig>, d: &mut Diagnostics) -> Option<Arc<Route>> {
        let name = entry.name.value.as_str();
        let mut filters = Vec::new();
        let mut credential_headers = Vec::new();
        self.credential_headers(&entry.value.filters, 0, &mut credential_headers);
        let place = Place { route: name, credential_headers: &credential_headers };
        let complete = self.filters(&entry.value.filters, &place, 0, d, &mut filters);
        agree::order(&filters, complete, d);
        agree::untold(&filters, d);
        let unread = self.config.unread.routes || self.config.unread.matches.contains(name);
        self.facts.borrow_mut().note(&filters, Some(&entry.value.matcher).filter(|_| !unread), complete && !unread);
        let filters: Vec<_> = filters.into_iter().map(|(_, filter)| filter).collect();
        let upstream = match &entry.value.upstream {
            Some(upstream) => Some(self.target(upstream)?),
            None => {
                // Where something else is wrong in the file, a filter or the upstream may only be missing because of that.
                let file = entry.name.span.as_ref().map(|span| span.file);
                let elsewhere = |known: &Diagnostic| {
                    known.severity == Severity::Error && known.primary.as_ref().map(|(span, _)| span.file) == file
                };
                let certain = complete && !d.list.iter().any(elsewhere);
                if certain && !filters.iter().any(|filter| filter.answers()) {
                    d.error(entry.name.span.clone(), format!("route `{name}` has neither an upstream nor a filter that answers"))
                        .help("add `upstream = \"...\"`, or a filter such as `respond` or `redirect`");
                }
                None
            }
        };
        let split = match &entry.value.split {
            Some(split) => {
                let targets: Option<Vec<_>> = split.to.iter().map(|part| self.target(&part.upstream)).collect();
                Some(Box::new(Split::new(split, targets?)))
            }
            None => None,
        };
        let fallback = match &entry.value.fallback {
            Some(fallback) => Some(self.target(fallback)?),
            None => None,
        };
        let mirror = match &entry.value.mirror {
            Some(mirror) => Some(self.mirror(name, mirror)?),
            None => None,
        };
        let breaker = entry.value.breaker.as_ref().map(|breaker| &breaker.value);
        let cache = super::cache::policy(self.config, entry, &filters, self.parts, d).filter(|_| upstream.is_some());
        let own = entry.value.timeouts.request.get();
        let inherited = upstream.as_ref().and_then(|target| target.upstream.request_timeout());
        let chain = Chain::new(&filters);
        let compress = entry.value.compress.as_ref().map(|compress| Arc::new(compress.build()));
        Some(Arc::new(Route {
            name: name.into(),
            direct_hits: cache.is_some() && split.is_none() && compress.is_none() && chain.is_transparent(),
            chain,
            cache,
            compress,
            upstream,
            split,
            fallback,
            mirror,
            timeout: [Some(own), inherited].into_iter().flatten().filter(|timeout| !timeout.is_zero()).min(),
            deadline: DeadlineRules {
                client: entry.value.timeouts.client,
                header: entry.value.timeouts.header.as_ref().and_then(|name| name.parse().ok()),
            },
            retry: entry.value.retry.as_ref().map(|retry| Arc::new(retry.policy())),
            breaker: breaker.map(|breaker| upstream::guard("route", name, breaker, self.parts.state, self.parts.clock)),
            breaker_answer: breaker.and_then(|breaker| upstream::fixed(breaker.answer.as_ref()?)),
            max_body: entry.value.max_body.unwrap_or(self.config.server.max_body).0,
            metrics: self.parts.state.get_or_create(name, RouteMetrics::default),
        }))
    }

    /// `None` for a name that does not exist, which was reported when the file was read.
    fn target(&self, name: &Located<String>) -> Option<Target> {
        let upstream = Arc::clone(self.upstreams.get(name.value.as_str())?);
        let metrics = upstream::metrics_of(self.parts.state, upstream.name());
        Some(Target { upstream, metrics })
    }

    fn mirror(&self, route: &str, config: &MirrorConfig) -> Option<Arc<Mirror>> {
        let CompileParts { state, dry, .. } = self.parts;
        let upstream = Arc::clone(self.upstreams.get(config.upstream.value.as_str())?);
        let bounds = MirrorBounds {
            share: config.share.parts_per_million,
            max_body: usize::try_from(config.max_body.value.0).unwrap_or(0),
            timeout: config.timeout.get(),
        };
        let metrics = state.get_or_create(route, MirrorMetrics::default);
        Some(Mirror::new(upstream, metrics, bounds, state.get_or_create("", || Worker::start(*dry))))
    }

    /// Appends the filters in the order in which they run, those of named chains in place. `false` if one could not be built.
    fn filters(
        &self,
        entries: &Filters,
        place: &Place<'_>,
        depth: usize,
        d: &mut Diagnostics,
        into: &mut Vec<(FilterSpec, Arc<dyn Filter>)>,
    ) -> bool {
        // Chains that use themselves were reported when the file was read; what follows them round must end all the same.
        if depth > self.config.chains.len() {
            return false;
        }
        let mut complete = !entries.lacks_some;
        for entry in entries.iter() {
            complete &= match entry {
                FilterEntry::Filter(spec) => match self.filter(spec, place, d) {
                    Some(filter) => {
                        into.push((spec.clone(), filter));
                        true
                    }
                    None => false,
                },
                // Names that do not exist were reported when the file was read.
                FilterEntry::Use(name) => match self.config.chains.get(&name.value) {
                    Some(chain) => self.filters(&chain.value.filters, place, depth.saturating_add(1), d, into),
                    None => false,
                },
            };
        }
        complete
    }

    /// Of all filters of a route, those of its chains too: a limit may stand before the filter that reads the credential.
    fn credential_headers(&self, entries: &[FilterEntry], depth: usize, into: &mut Vec<HeaderName>) {
        if depth > self.config.chains.len() {
            return;
        }
        for entry in entries {
            match entry {
                FilterEntry::Filter(spec) => into.extend(spec.prepared.credential_headers.iter().cloned()),
                FilterEntry::Use(name) => {
                    if let Some(chain) = self.config.chains.get(&name.value) {
                        self.credential_headers(&chain.value.filters, depth.saturating_add(1), into);
                    }
                }
            }
        }
    }

    fn filter(&self, spec: &FilterSpec, place: &Place<'_>, d: &mut Diagnostics) -> Option<Arc<dyn Filter>> {
        let span = spec.span.clone();
        let CompileParts { state, clock, .. } = self.parts;
        let mut cx = BuildContext {
            route: place.route,
            state,
            clock,
            upstreams: self.upstreams,
            consumers: self.consumers,
            issuers: self.issuers,
            redis: self.redis,
            limits: self.limits,
            credential_headers: place.credential_headers,
            diagnostics: d,
            span: span.clone(),
        };
        let problem = match (spec.prepared.build)(&mut cx) {
            Ok(filter) => return Some(filter),
            Err(problem) if problem.reported => return None,
            Err(problem) => problem,
        };
        agree::once(d, problem.span.unwrap_or(span), problem.message, problem.help);
        None
    }
}

fn router(config: &Config, d: &mut Diagnostics) -> Option<Router> {
    let routes: Vec<_> = config.routes.values().collect();
    let entries = routes.iter().zip(0_u32..).filter_map(|(entry, index)| {
        // What is wrong with it was told when the file was read.
        Some(RouteEntry { index, matcher: entry.value.matcher.compile(&mut Diagnostics::default())? })
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

fn listener(
    entry: &Entry<ListenerConfig>,
    in_all: Option<u32>,
    parts: &CompileParts<'_>,
    d: &mut Diagnostics,
) -> Option<ListenerPlan> {
    let config = &entry.value;
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let tolerance = |pause: &Located<Duration>, rate: u64| Tolerance { pause: pause.get(), rate };
    let http2 = match config.http2.value {
        Http2::Off => Http2Mode::Off,
        Http2::On => Http2Mode::Tls,
        Http2::Cleartext => Http2Mode::Cleartext,
    };
    let tls = match &config.tls {
        None => None,
        Some(tls) => {
            let listener = entry.name.value.as_str();
            let http2 = http2 == Http2Mode::Tls;
            let server = ServerParts { listener, state: parts.state, clock: parts.clock, http2 };
            Some(ServerTls::build(tls, &server, &mut Files { d })?)
        }
    };
    let balancers = |proxy: &Located<ProxyProtocolConfig>| {
        let from: Vec<_> = proxy.from.iter().map(|network| network.value).collect();
        Arc::new(TrustedProxies::new(&from))
    };
    let settings = ListenerSettings {
        head: HeadLimits {
            max_header: bytes(config.max_header.value.0),
            max_headers: count(config.max_headers.value),
            max_uri: bytes(config.max_uri.value.0),
            allow_underscores: config.allow_underscores,
        },
        path: PathRules {
            encoded_slash: config.allow_encoded_slash,
            parameters: config.allow_path_parameters,
            ..PathRules::STRICT
        },
        header_timeout: config.header_timeout.get(),
        keepalive_timeout: config.keepalive_timeout.get(),
        keepalive_requests: Some(config.keepalive_requests).filter(|most| *most > 0),
        io: IoBounds {
            body: tolerance(&config.body_timeout, config.min_body_rate.0),
            write: tolerance(&config.write_timeout, config.min_write_rate.0),
            tunnel: tolerance(&config.tunnel_timeout, 0),
        },
        http2,
        http2_max_streams: config.http2_max_streams.value,
        tls,
        redirect_to_https: config.redirect_to_https.value.then_some(config.https_port),
        proxy_protocol: config.proxy_protocol.as_ref().map(balancers),
        shield: config.max_requests.map(|rate| {
            // Another rate begins a count of its own.
            let key = format!("listener {} {rate}", entry.name.value);
            parts.state.get_or_create(&key, || Shield::new(rate))
        }),
        max_connections: count(config.max_connections.value),
        max_connections_in_all: in_all.map_or(usize::MAX, count),
        max_connections_per_address: config.max_connections_per_address.as_ref().map(|most| most.value),
    };
    let address = config.address.value.clone();
    Some(ListenerPlan { name: entry.name.value.as_str().into(), address, settings: Arc::new(settings) })
}

/// The writer belongs to the output, not to the snapshot: lines of requests that began before a reload are not lost.
fn access_log(config: &Config, parts: &CompileParts<'_>, d: &mut Diagnostics) -> Option<Arc<AccessLog>> {
    let access = &config.log.access;
    let output = match &access.output.value {
        AccessOutput::Off => return None,
        _ if parts.dry => return None,
        AccessOutput::Stdout => Output::Stdout,
        AccessOutput::Stderr => Output::Stderr,
        AccessOutput::File(path) => Output::File(path.clone()),
    };
    let mut options = WriterOptions::new("access log", output);
    options.queue_bytes = usize::try_from(config.log.buffer.value.0).unwrap_or(usize::MAX);
    let key = format!("{:?} {}", access.output.value, options.queue_bytes);
    match parts.state.try_get_or_create(&key, || Writer::new(options)) {
        Ok(writer) => {
            let sample_per_million = access.sample.parts_per_million;
            Some(Arc::new(AccessLog::new(writer, AccessLogOptions { sample_per_million })))
        }
        Err(e) => {
            d.error(access.output.span.clone(), format!("the access log cannot be written: {e}"));
            None
        }
    }
}
