//! Writes the exposition: Prometheus text format 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).
//!
//! Runs at a scrape and off the request path. It reads the atomics one after the other, so that numbers of one scrape may be
//! a few requests apart, except within a histogram.

use super::table::{self as t, Kind, Metric};
use super::{
    AuthMetrics, CacheSample, DiscoverySample, EndpointSample, GatewayMetrics, LimitsSample, ListenerMetrics, MirrorSample,
    Reasons, ResilienceSample, RouteMetrics, SourceSample, UpstreamMetrics,
};
use crate::telemetry::histogram::{BOUNDS, Histogram};
use crate::telemetry::process::ProcessSample;
use crate::telemetry::writer::WriterStats;
use std::fmt::{self, Display, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The media type of what [`encode`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The counters of one log.
#[derive(Debug, Clone, Copy)]
pub struct LogSample {
    /// The label `log`: `gateway`, `access`.
    pub log: &'static str,
    pub stats: WriterStats,
}

/// A certificate of a listener.
#[derive(Debug, Clone)]
pub struct CertificateSample {
    pub listener: String,
    /// The path of its file as written.
    pub certificate: String,
    pub not_after: SystemTime,
}

/// The counters of one kind of filter on one route.
#[derive(Debug, Clone)]
pub struct AuthSample {
    pub route: String,
    pub filter: String,
    pub metrics: Arc<AuthMetrics>,
}

/// The keys of one issuer that are fetched from a URL.
#[derive(Debug, Clone)]
pub struct KeySample {
    pub issuer: String,
    pub fetched: u64,
    pub failed: u64,
    /// Since they were last known to be right; `None` before the first time.
    pub age: Option<Duration>,
}

/// Everything that a scrape shows. A name must stand only once in its list: Prometheus refuses a series that is there twice.
#[derive(Debug)]
pub struct MetricsView<'a> {
    pub routes: Vec<(String, Arc<RouteMetrics>)>,
    /// Sorted, so that pages can be compared.
    pub auth: Vec<AuthSample>,
    pub keys: Vec<KeySample>,
    /// `None` without `[consumer_source]`.
    pub source: Option<SourceSample>,
    pub upstreams: Vec<(String, Arc<UpstreamMetrics>)>,
    pub mirrors: Vec<MirrorSample>,
    pub endpoints: Vec<EndpointSample>,
    pub discovery: Vec<DiscoverySample>,
    pub resilience: ResilienceSample,
    pub limits: LimitsSample,
    pub cache: CacheSample,
    pub listeners: Vec<(String, Arc<ListenerMetrics>)>,
    pub certificates: Vec<CertificateSample>,
    pub gateway: &'a GatewayMetrics,
    pub logs: Vec<LogSample>,
    /// [`crate::telemetry::logger::LoggerHandle::suppressed`].
    pub log_suppressed: u64,
    pub process: ProcessSample,
}

/// The exposition of a view; see [`CONTENT_TYPE`].
pub fn encode(view: &MetricsView<'_>) -> String {
    // About what a route, an upstream, an endpoint and a listener take, so that the text is rarely moved while it grows.
    let series = view.routes.len() * 2 + view.upstreams.len() * 3 + view.endpoints.len() + view.listeners.len();
    let mut page = Page { out: String::with_capacity(8 << 10 | series.saturating_mul(1 << 10)) };
    routes(&mut page, &view.routes);
    auth(&mut page, &view.auth);
    keys(&mut page, &view.keys);
    if let Some(sample) = &view.source {
        source(&mut page, sample);
    }
    upstreams(&mut page, &view.upstreams);
    mirrors(&mut page, &view.mirrors);
    endpoints(&mut page, &view.endpoints);
    discovery(&mut page, &view.discovery);
    super::resilience::encode(&mut page, &view.resilience);
    limits(&mut page, &view.limits);
    cache(&mut page, &view.cache);
    listeners(&mut page, &view.listeners);
    certificates(&mut page, &view.certificates);
    gateway(&mut page, view.gateway);
    logs(&mut page, view);
    process(&mut page, &view.process);
    page.out
}

fn routes(page: &mut Page, routes: &[(String, Arc<RouteMetrics>)]) {
    let mut family = page.family(&t::HTTP_REQUESTS);
    for (route, metrics) in routes {
        for (method, class, count) in metrics.requests().filter(|(.., count)| *count > 0) {
            family.sample(&[route, method, class], count);
        }
    }
    each_histogram(page, &t::HTTP_DURATION, routes, RouteMetrics::duration);
    each(page, &t::HTTP_REQUEST_BYTES, routes, RouteMetrics::bytes_in);
    each(page, &t::HTTP_RESPONSE_BYTES, routes, RouteMetrics::bytes_out);
    let mut family = page.family(&t::HTTP_REJECTIONS);
    for (route, metrics) in routes {
        for (code, count) in metrics.rejections().filter(|(_, count)| *count > 0) {
            family.sample(&[route, code], count);
        }
    }
    each(page, &t::HTTP_IN_FLIGHT, routes, RouteMetrics::in_flight);
}

fn auth(page: &mut Page, samples: &[AuthSample]) {
    let mut family = page.family(&t::AUTH);
    for AuthSample { route, filter, metrics } in samples {
        for (outcome, count) in metrics.outcomes().filter(|(_, count)| *count > 0) {
            family.sample(&[route, filter, outcome], count);
        }
    }
}

fn keys(page: &mut Page, keys: &[KeySample]) {
    let mut family = page.family(&t::KEY_FETCHES);
    for sample in keys {
        family.sample(&[&sample.issuer, "success"], sample.fetched);
        family.sample(&[&sample.issuer, "failure"], sample.failed);
    }
    let mut family = page.family(&t::KEY_AGE);
    for sample in keys {
        if let Some(age) = sample.age {
            family.sample(&[&sample.issuer], age.as_secs());
        }
    }
}

fn upstreams(page: &mut Page, upstreams: &[(String, Arc<UpstreamMetrics>)]) {
    let mut family = page.family(&t::UPSTREAM_REQUESTS);
    for (upstream, metrics) in upstreams {
        for (class, count) in metrics.attempts().filter(|(_, count)| *count > 0) {
            family.sample(&[upstream, class], count);
        }
    }
    each_histogram(page, &t::UPSTREAM_RESPONSE_TIME, upstreams, |metrics| &metrics.response_time);
    each_histogram(page, &t::UPSTREAM_CONNECT_TIME, upstreams, |metrics| &metrics.connect_time);
    let mut family = page.family(&t::UPSTREAM_CONNECTS);
    for (upstream, metrics) in upstreams {
        let (new, reused) = metrics.connects();
        family.sample(&[upstream, "new"], new);
        family.sample(&[upstream, "reused"], reused);
    }
    each(page, &t::UPSTREAM_CONNECT_FAILURES, upstreams, |metrics| metrics.connect_failures.get());
    each(page, &t::UPSTREAM_RETRIES, upstreams, |metrics| metrics.retries.get());
    by_reason(page, &t::UPSTREAM_MALFORMED, upstreams, |metrics| &metrics.malformed);
}

fn mirrors(page: &mut Page, samples: &[MirrorSample]) {
    let mut family = page.family(&t::MIRROR_REQUESTS);
    for sample in samples {
        for (result, count) in sample.results {
            family.sample(&[&sample.route, result], count);
        }
    }
}

fn endpoints(page: &mut Page, endpoints: &[EndpointSample]) {
    let mut each = |metric, value: fn(&EndpointSample) -> u64| {
        let mut family = page.family(metric);
        for sample in endpoints {
            family.sample(&[&sample.upstream, &sample.endpoint], value(sample));
        }
    };
    each(&t::ENDPOINT_HEALTHY, |sample| sample.healthy.into());
    each(&t::ENDPOINT_IN_FLIGHT, |sample| sample.in_flight);
    each(&t::ENDPOINT_DRAINED, |sample| sample.drained.into());
    each(&t::ENDPOINT_REQUESTS, |sample| sample.requests);
    each(&t::ENDPOINT_CONNECT_FAILURES, |sample| sample.connect_failures);
    let mut family = page.family(&t::ENDPOINT_CHECKS);
    for sample in endpoints {
        family.sample(&[&sample.upstream, &sample.endpoint, "success"], sample.checks_ok);
        family.sample(&[&sample.upstream, &sample.endpoint, "failure"], sample.checks_failed);
    }
    let mut family = page.family(&t::ENDPOINT_LAST_CHECK);
    for sample in endpoints {
        if let Some(at) = sample.last_check {
            family.sample(&[&sample.upstream, &sample.endpoint], unix(at));
        }
    }
}

fn discovery(page: &mut Page, samples: &[DiscoverySample]) {
    let mut each = |metric, value: fn(&DiscoverySample) -> Option<u64>| {
        let mut family = page.family(metric);
        for sample in samples {
            if let Some(value) = value(sample) {
                family.sample(&[&sample.upstream], value);
            }
        }
    };
    each(&t::DISCOVERY_ENDPOINTS, |sample| sample.endpoints.try_into().ok());
    each(&t::DISCOVERY_UNUSED, |sample| sample.unused.try_into().ok());
    each(&t::DISCOVERY_AGE, |sample| sample.age.map(|age| age.as_secs()));
    let mut family = page.family(&t::DISCOVERY_FAILURES);
    for sample in samples {
        for (reason, count) in &sample.failures {
            family.sample(&[&sample.upstream, reason], count);
        }
    }
}

fn limits(page: &mut Page, sample: &LimitsSample) {
    let mut family = page.family(&t::LIMIT_DECISIONS);
    for (route, limit, metrics) in &sample.limits {
        let counts = [("allowed", &metrics.allowed), ("refused", &metrics.refused), ("shadowed", &metrics.shadowed)];
        for (decision, counter) in counts {
            family.sample(&[route, limit, decision], counter.get());
        }
    }
    let mut family = page.family(&t::LIMIT_WAITING);
    for (route, waiting) in &sample.queues {
        family.sample(&[route], *waiting);
    }
    if let Some((forgotten, shared, bytes)) = sample.local {
        page.family(&t::LIMIT_FORGOTTEN).sample(&[], forgotten);
        page.family(&t::LIMIT_CROWDED).sample(&[], shared);
        page.family(&t::LIMIT_MEMORY).sample(&[], bytes);
    }
    if let Some(refused) = sample.shield_refused {
        page.family(&t::SHIELD_REFUSED).sample(&[], refused);
    }
    if !sample.listener_shields.is_empty() {
        let mut family = page.family(&t::LISTENER_SHIELD_REFUSED);
        for (listener, refused) in &sample.listener_shields {
            family.sample(&[listener], *refused);
        }
    }
    if let Some(redis) = &sample.redis {
        page.family(&t::REDIS_UP).sample(&[], u8::from(redis.is_up()));
        let mut family = page.family(&t::REDIS_CHANGES);
        family.sample(&["up"], redis.recoveries.get());
        family.sample(&["down"], redis.outages.get());
        page.family(&t::REDIS_DECISIONS).sample(&[], redis.decisions.get());
        page.family(&t::REDIS_LEASED).sample(&[], sample.redis_leased);
        page.family(&t::REDIS_GATEWAYS).sample(&[], sample.redis_gateways);
        page.family(&t::REDIS_HELD).sample(&[], sample.redis_held);
        page.family(&t::REDIS_PIPELINES).sample(&[], redis.pipelines.get());
        page.family(&t::REDIS_FALLBACKS).sample(&[], redis.fallbacks.get());
        page.family(&t::REDIS_ERRORS).sample(&[], redis.errors.get());
        let mut family = page.family(&t::REDIS_LOST);
        family.sample(&["charge"], redis.lost.charges.get());
        family.sample(&["return"], redis.lost.returns.get());
    }
}

fn source(page: &mut Page, sample: &SourceSample) {
    page.family(&t::SOURCE_UP).sample(&[], u8::from(sample.up));
    page.family(&t::SOURCE_OUTAGES).sample(&[], sample.outages);
    page.family(&t::SOURCE_ASKED).sample(&[], sample.asked);
    page.family(&t::SOURCE_INVALIDATED).sample(&[], sample.invalidated);
    page.family(&t::SOURCE_UNAVAILABLE).sample(&[], sample.unavailable);
    page.family(&t::SOURCE_ENTRIES).sample(&[], sample.entries);
}

fn cache(page: &mut Page, sample: &CacheSample) {
    let routes = &sample.routes;
    let mut family = page.family(&t::CACHE_REQUESTS);
    for (route, metrics) in routes {
        for (result, count) in metrics.results() {
            family.sample(&[route, result], count);
        }
    }
    let mut family = page.family(&t::CACHE_BYPASS);
    for (route, metrics) in routes {
        for (reason, count) in metrics.bypasses().filter(|(_, count)| *count > 0) {
            family.sample(&[route, reason], count);
        }
    }
    let mut family = page.family(&t::CACHE_REFUSED);
    for (route, metrics) in routes {
        for (reason, count) in metrics.refusals().filter(|(_, count)| *count > 0) {
            family.sample(&[route, reason], count);
        }
    }
    each(page, &t::CACHE_STORED, routes, |metrics| metrics.stored.get());
    each(page, &t::CACHE_BYTES, routes, |metrics| metrics.bytes.get());
    each(page, &t::CACHE_DIRECT, routes, |metrics| metrics.direct_hits.get());
    each(page, &t::CACHE_REFRESHES, routes, |metrics| metrics.refreshes.get());
    each(page, &t::CACHE_WAITING, routes, |metrics| metrics.waiting.get());
    each(page, &t::CACHE_INVALIDATIONS, routes, |metrics| metrics.invalidations.get());
    if let Some(memory) = &sample.memory {
        let mut family = page.family(&t::CACHE_MEMORY);
        family.sample(&["capacity"], memory.capacity);
        family.sample(&["stored"], memory.stored);
        family.sample(&["filling"], memory.filling);
        family.sample(&["leaving"], memory.leaving);
        page.family(&t::CACHE_ENTRIES).sample(&[], memory.entries);
        let mut family = page.family(&t::CACHE_EVICTED);
        family.sample(&["room"], memory.evicted);
        family.sample(&["admission"], memory.rejected);
    }
    if let Some(tier) = &sample.redis {
        let metrics = tier.metrics();
        let counts = [
            ("hit", &metrics.hits),
            ("miss", &metrics.misses),
            ("failure", &metrics.failures),
            ("stored", &metrics.stored),
            ("dropped", &metrics.dropped),
            ("corrupt", &metrics.corrupt),
        ];
        let mut family = page.family(&t::CACHE_REDIS);
        for (result, counter) in counts {
            family.sample(&[result], counter.get());
        }
    }
    let mut family = page.family(&t::CACHE_TIER_TIME);
    if let Some(memory) = &sample.memory {
        family.histogram("memory", &memory.lookups);
    }
    if let Some(tier) = &sample.redis {
        family.histogram("redis", &tier.metrics().lookups);
    }
}

fn listeners(page: &mut Page, listeners: &[(String, Arc<ListenerMetrics>)]) {
    each(page, &t::CONNECTIONS_ACCEPTED, listeners, ListenerMetrics::accepted);
    each(page, &t::CONNECTIONS_ACTIVE, listeners, ListenerMetrics::active);
    by_reason(page, &t::CONNECTIONS_REFUSED, listeners, |metrics| &metrics.refused);
    by_reason(page, &t::MALFORMED, listeners, |metrics| &metrics.malformed);
    by_reason(page, &t::CONNECTIONS_CUT, listeners, |metrics| &metrics.cut);
    by_reason(page, &t::CONNECTIONS_CLOSED, listeners, |metrics| &metrics.closed);
}

/// Reasons that have counted nothing are left out.
fn by_reason<T>(page: &mut Page, metric: &'static Metric, all: &[(String, Arc<T>)], reasons: fn(&T) -> &Reasons) {
    let mut family = page.family(metric);
    for (name, metrics) in all {
        for (reason, count) in reasons(metrics).counts().filter(|(_, count)| *count > 0) {
            family.sample(&[name, reason], count);
        }
    }
}

fn certificates(page: &mut Page, certificates: &[CertificateSample]) {
    let mut family = page.family(&t::CERTIFICATE_EXPIRY);
    for sample in certificates {
        family.sample(&[&sample.listener, &sample.certificate], unix(sample.not_after));
    }
}

fn gateway(page: &mut Page, metrics: &GatewayMetrics) {
    let (ok, failed) = metrics.reloads();
    let mut family = page.family(&t::RELOADS);
    family.sample(&["success"], ok);
    family.sample(&["failure"], failed);
    page.family(&t::UPGRADES_FAILED).sample(&[], metrics.upgrades_failed());
    let config = metrics.config();
    page.family(&t::LAST_RELOAD_OK).sample(&[], u8::from(config.last_successful));
    if let Some(at) = config.last_success {
        page.family(&t::LAST_RELOAD_AT).sample(&[], unix(at));
        page.family(&t::CONFIG_INFO).sample(&[&config.hash], 1);
    }
    page.family(&t::BUILD_INFO).sample(&[env!("CARGO_PKG_VERSION")], 1);
}

fn logs(page: &mut Page, view: &MetricsView<'_>) {
    let mut each = |metric, value: fn(&WriterStats) -> u64| {
        let mut family = page.family(metric);
        for sample in &view.logs {
            family.sample(&[sample.log], value(&sample.stats));
        }
    };
    each(&t::LOG_RECORDS, |stats| stats.records);
    each(&t::LOG_DROPPED, |stats| stats.dropped);
    each(&t::LOG_BYTES, |stats| stats.bytes);
    each(&t::LOG_ERRORS, |stats| stats.write_errors);
    page.family(&t::LOG_SUPPRESSED).sample(&[], view.log_suppressed);
}

fn process(page: &mut Page, sample: &ProcessSample) {
    let mut one = |metric, value: Option<&dyn Display>| {
        if let Some(value) = value {
            page.family(metric).sample(&[], value);
        }
    };
    fn shown<T: Display>(value: Option<&T>) -> Option<&dyn Display> {
        value.map(|value| value as &dyn Display)
    }
    one(&t::PROCESS_CPU, shown(sample.cpu.map(Seconds).as_ref()));
    one(&t::PROCESS_RESIDENT, shown(sample.resident_memory.as_ref()));
    one(&t::PROCESS_VIRTUAL, shown(sample.virtual_memory.as_ref()));
    one(&t::PROCESS_OPEN_FDS, shown(sample.open_fds.as_ref()));
    one(&t::PROCESS_MAX_FDS, shown(sample.max_fds.as_ref()));
    one(&t::PROCESS_THREADS, shown(sample.threads.as_ref()));
    one(&t::PROCESS_START, shown(sample.start_time.map(Seconds).as_ref()));
}

/// A metric with one label and one number for each of a list.
fn each<T>(page: &mut Page, metric: &'static Metric, list: &[(String, Arc<T>)], value: impl Fn(&T) -> u64) {
    let mut family = page.family(metric);
    for (name, metrics) in list {
        family.sample(&[name], value(metrics));
    }
}

fn each_histogram<T>(page: &mut Page, metric: &'static Metric, list: &[(String, Arc<T>)], of: impl Fn(&T) -> &Histogram) {
    let mut family = page.family(metric);
    for (name, metrics) in list {
        family.histogram(name, of(metrics));
    }
}

fn unix(time: SystemTime) -> Seconds {
    Seconds(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

/// A duration as a decimal number of seconds, exact.
struct Seconds(Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0.as_secs(), self.0.subsec_nanos())
    }
}

pub(super) struct Page {
    out: String,
}

impl Page {
    pub(super) fn family(&mut self, metric: &'static Metric) -> Family<'_> {
        Family { out: &mut self.out, metric, begun: false }
    }
}

/// One metric on its way out. `HELP` and `TYPE` come with the first sample, so that a metric without any leaves no trace.
pub(super) struct Family<'a> {
    out: &'a mut String,
    metric: &'static Metric,
    begun: bool,
}

// Writing to a `String` cannot fail.
impl Family<'_> {
    fn begin(&mut self) {
        if !self.begun {
            self.begun = true;
            let Metric { name, kind, help, .. } = self.metric;
            let _ = write!(self.out, "# HELP {name} {help}.\n# TYPE {name} {}\n", kind.as_str());
        }
    }

    pub(super) fn sample(&mut self, labels: &[&str], value: impl Display) {
        self.begin();
        self.line("", labels, None, value);
    }

    fn histogram(&mut self, label: &str, histogram: &Histogram) {
        debug_assert_eq!(self.metric.kind, Kind::Histogram);
        self.begin();
        let sample = histogram.sample();
        let mut below = 0_u64;
        let bounds = BOUNDS.iter().map(|(_, seconds)| *seconds).chain(["+Inf"]);
        for (bound, count) in bounds.zip(sample.buckets) {
            below = below.saturating_add(count);
            self.line("_bucket", &[label], Some(bound), below);
        }
        self.line("_sum", &[label], None, Seconds(sample.sum));
        self.line("_count", &[label], None, below);
    }

    fn line(&mut self, suffix: &str, labels: &[&str], bound: Option<&str>, value: impl Display) {
        debug_assert_eq!(labels.len(), self.metric.labels.len(), "{}", self.metric.name);
        self.out.push_str(self.metric.name);
        self.out.push_str(suffix);
        let named = self.metric.labels.iter().copied().zip(labels.iter().copied());
        let mut before = '{';
        for (name, value) in named.chain(bound.map(|bound| ("le", bound))) {
            self.out.push(before);
            self.out.push_str(name);
            self.out.push_str("=\"");
            push_label_value(self.out, value);
            self.out.push('"');
            before = ',';
        }
        if before == ',' {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

fn push_label_value(out: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => out.push_str(r"\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str(r"\n"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests;
