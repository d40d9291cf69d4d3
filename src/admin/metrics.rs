//! `/metrics`: everything that is counted, gathered from where it is counted.

use super::Admin;
use crate::consumer::Issued;
use crate::jwt::RemoteKeys;
use crate::listener::{ListenerPlan, ListenerState};
use crate::snapshot::Route;
use crate::telemetry::metrics::{
    self, AuthMetrics, AuthSample, CacheSample, CertificateSample, DiscoverySample, EndpointSample, KeySample, LimitMetrics,
    LimitsSample, LogSample, MetricsView, MirrorSample, NO_ROUTE, QueueMetrics, RouteMetrics, SourceSample,
};
use crate::telemetry::process::ProcessSample;
use crate::upstream::{self, Endpoint, Upstream};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

pub use crate::telemetry::metrics::CONTENT_TYPE;

pub fn exposition(admin: &Admin) -> String {
    let snapshot = admin.gateway.snapshot();
    let routes = snapshot.routes().map(|route| (route.name.to_string(), Arc::clone(&route.metrics)));
    let unrouted: (String, Arc<RouteMetrics>) = (NO_ROUTE.to_owned(), Arc::clone(&snapshot.unrouted));
    let upstream = |name: &Arc<str>| (name.to_string(), upstream::metrics_of(&admin.state, name));
    let listener = |state: Arc<ListenerState>| (state.name.to_string(), Arc::clone(&state.metrics));
    let mut logs = vec![LogSample { log: "gateway", stats: admin.reloader.logger.stats() }];
    if let Some(access_log) = &snapshot.access_log {
        logs.push(LogSample { log: "access", stats: access_log.writer().stats() });
    }
    metrics::encode(&MetricsView {
        routes: routes.chain([unrouted]).collect(),
        auth: auth(admin),
        keys: snapshot.issuers.remote().map(|(issuer, keys)| key_sample(issuer, keys)).collect(),
        source: snapshot.consumers.issued().map(source),
        limits: limits(admin),
        cache: cache(admin),
        upstreams: snapshot.upstreams.keys().map(upstream).collect(),
        mirrors: snapshot.routes().filter_map(|route| mirror(route)).collect(),
        endpoints: snapshot.upstreams.values().flat_map(endpoints).collect(),
        discovery: snapshot.upstreams.values().filter_map(discovery).collect(),
        resilience: super::resilience::sample(&snapshot),
        listeners: admin.listeners.states().into_iter().map(listener).collect(),
        certificates: snapshot.listeners.iter().flat_map(certificates).collect(),
        gateway: admin.gateway.metrics(),
        logs,
        log_suppressed: admin.reloader.logger.suppressed(),
        process: ProcessSample::read(),
    })
}

fn certificates(listener: &ListenerPlan) -> Vec<CertificateSample> {
    let list = listener.settings.tls.iter().flat_map(|tls| &tls.certificates);
    let mut samples: Vec<_> = list
        .map(|facts| CertificateSample {
            listener: listener.name.to_string(),
            certificate: facts.path.clone(),
            not_after: facts.not_after,
        })
        .collect();
    // A file may stand twice in a list; a series may not.
    samples.sort_by(|a, b| a.certificate.cmp(&b.certificate));
    samples.dedup_by(|a, b| a.certificate == b.certificate);
    samples
}

fn auth(admin: &Admin) -> Vec<AuthSample> {
    let live = admin.state.live::<AuthMetrics>().into_iter();
    let mut samples: Vec<AuthSample> = live
        .filter_map(|(key, metrics)| {
            let (route, filter) = key.split_once('/')?;
            Some(AuthSample { route: route.to_owned(), filter: filter.to_owned(), metrics })
        })
        .collect();
    samples.sort_by(|a, b| (&a.route, &a.filter).cmp(&(&b.route, &b.filter)));
    samples
}

fn source(issued: &Issued) -> SourceSample {
    let (facts, metrics) = (issued.facts(), issued.facts().metrics());
    SourceSample {
        up: facts.is_up(),
        asked: metrics.asked.get(),
        invalidated: metrics.invalidated.get(),
        outages: metrics.outages.get(),
        unavailable: metrics.unavailable.get(),
        entries: facts.len(),
    }
}

fn key_sample(issuer: &str, keys: &RemoteKeys) -> KeySample {
    KeySample { issuer: issuer.to_owned(), fetched: keys.fetched.get(), failed: keys.failed.get(), age: keys.age() }
}

fn limits(admin: &Admin) -> LimitsSample {
    let snapshot = admin.gateway.snapshot();
    let live = admin.state.live::<LimitMetrics>().into_iter();
    let mut limits: Vec<_> = live
        .filter_map(|(key, metrics)| {
            let (route, limit) = key.split_once('/')?;
            Some((route.to_owned(), limit.to_owned(), metrics))
        })
        .collect();
    limits.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    let queues = admin.state.live::<QueueMetrics>().into_iter();
    let mut queues: Vec<_> = queues.map(|(route, metrics)| (route, metrics.waiting.get())).collect();
    queues.sort_unstable();
    let shields = snapshot.listeners.iter().filter_map(|listener| {
        let shield = listener.settings.shield.as_ref()?;
        Some((listener.name.to_string(), shield.refused.get()))
    });
    let local = snapshot.limits.live(&admin.state).map(|store| store.stats());
    LimitsSample {
        limits,
        queues,
        local: local.map(|stats| (stats.evicted, stats.shared, stats.bytes)),
        redis: snapshot.limits.live_redis().map(|redis| Arc::clone(redis.metrics())),
        redis_gateways: snapshot.limits.live_redis().map_or(0, |redis| redis.gateways()),
        redis_held: snapshot.limits.live_redis().map_or(0, |redis| redis.held()),
        redis_leased: snapshot.limits.live_redis().map_or(0, |redis| redis.leased()),
        listener_shields: shields.collect(),
        shield_refused: snapshot.shield.as_ref().map(|shield| shield.refused.get()),
    }
}

fn cache(admin: &Admin) -> CacheSample {
    let snapshot = admin.gateway.snapshot();
    let policies =
        snapshot.routes().filter_map(|route| Some((route.name.to_string(), Arc::clone(&route.cache.as_ref()?.metrics))));
    CacheSample {
        routes: policies.collect(),
        memory: snapshot.cache.as_ref().map(|cache| cache.memory.stats()),
        redis: snapshot.cache.as_ref().and_then(|cache| cache.redis.clone()),
    }
}

fn endpoints(upstream: &Arc<Upstream>) -> Vec<EndpointSample> {
    upstream.endpoints().iter().map(|endpoint| sample(upstream, endpoint)).collect()
}

fn mirror(route: &Route) -> Option<MirrorSample> {
    let metrics = &route.mirror.as_ref()?.metrics;
    let counts = [("answered", &metrics.answered), ("failed", &metrics.failed), ("busy", &metrics.busy), ("body", &metrics.body)];
    Some(MirrorSample { route: route.name.to_string(), results: counts.map(|(result, count)| (result, count.get())) })
}

fn discovery(upstream: &Arc<Upstream>) -> Option<DiscoverySample> {
    let standing = upstream.found()?.0.standing();
    Some(DiscoverySample {
        upstream: upstream.name().to_string(),
        endpoints: standing.endpoints,
        unused: standing.unused,
        age: standing.age,
        failures: standing.failures.to_vec(),
    })
}

fn sample(upstream: &Upstream, endpoint: &Endpoint) -> EndpointSample {
    let report = endpoint.health().map(|health| health.report()).unwrap_or_default();
    let state = endpoint.state();
    // The check remembers a monotonic time, the exposition shows wall time.
    let wall = |at: Instant| SystemTime::now().checked_sub(at.elapsed());
    EndpointSample {
        upstream: upstream.name().to_string(),
        endpoint: endpoint.address().to_string(),
        healthy: endpoint.is_healthy(),
        drained: state.is_drained(),
        in_flight: state.in_flight().into(),
        requests: state.requests(),
        connect_failures: state.connect_failures(),
        checks_ok: report.checks_ok,
        checks_failed: report.checks_failed,
        last_check: report.last_check.and_then(wall),
    }
}
