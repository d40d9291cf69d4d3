use super::super::{AuthOutcome, Bypass, CacheMetrics, METRICS, Method, NO_ROUTE};
use super::*;
use crate::cache::memory::{MemoryStats, MemoryStore};
use crate::cache::policy::Refusal;
use crate::cache::redis::RedisTier;
use crate::redis_link::Access;
use crate::rejection;
use crate::telemetry::metrics::{BreakerSample, EjectionSample, OverloadSample, ReasonNames};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

/// A tier that is not connected to anything.
fn tier() -> Arc<RedisTier> {
    let memory = Arc::new(MemoryStore::new(1 << 20));
    Arc::new(RedisTier::new(Access::nowhere(), memory, Arc::new(crate::clock::SystemClock)))
}

/// A gateway in which everything that can be counted has been, under names that need every escape there is.
fn full(gateway: &GatewayMetrics) -> MetricsView<'_> {
    gateway.config_loaded("c0ffee", SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678));
    gateway.reload_failed();
    let route = Arc::new(RouteMetrics::default());
    let _guard = route.begin();
    for (index, method) in super::super::METHODS.iter().enumerate() {
        let status = [Some(101), Some(200), Some(304), Some(404), Some(503), None][index % 6];
        route.end(Method::of(method.as_bytes()), status, Duration::from_micros(90 << index), 10, 20);
    }
    rejection::ALL.iter().for_each(|code| route.rejected(code));
    let upstream = Arc::new(UpstreamMetrics::new(&["excess_bytes"]));
    upstream.attempted(Some(200));
    upstream.attempted(None);
    upstream.connected(Duration::from_micros(300));
    upstream.reused();
    upstream.response_time.observe(Duration::from_millis(7));
    upstream.connect_failures.increment();
    upstream.retries.add(3);
    upstream.malformed.count(0);
    let listener = Arc::new(ListenerMetrics::new(ReasonNames {
        refused: &["too_many_connections"],
        malformed: &["bad_header"],
        cut: &["slow_body"],
        closed: &["idle"],
    }));
    drop(listener.accept());
    listener.refused.count(0);
    listener.malformed.count(0);
    listener.cut.count(0);
    listener.closed.count(0);
    let endpoint = EndpointSample {
        upstream: "orders".into(),
        endpoint: "[::1]:3001".into(),
        healthy: true,
        drained: false,
        in_flight: 2,
        requests: 30,
        connect_failures: 1,
        checks_ok: 9,
        checks_failed: 1,
        last_check: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1)),
    };
    let cache = CacheMetrics::default();
    cache.bypassed(Bypass::Method);
    cache.refused(Refusal::NoStore);
    let auth = AuthMetrics::default();
    auth.count(AuthOutcome::Accepted);
    let stats = WriterStats { records: 5, dropped: 1, bytes: 500, write_errors: 1 };
    MetricsView {
        routes: vec![("a \"quoted\\\" \n route ü".into(), route), (NO_ROUTE.into(), Arc::default())],
        auth: vec![AuthSample { route: "orders".into(), filter: "api_key".into(), metrics: auth.into() }],
        keys: vec![KeySample { issuer: "main".into(), fetched: 3, failed: 1, age: Some(Duration::from_secs(7)) }],
        upstreams: vec![("orders".into(), upstream)],
        mirrors: vec![MirrorSample {
            route: "orders".into(),
            results: [("answered", 3), ("failed", 1), ("busy", 0), ("body", 0)],
        }],
        endpoints: vec![
            EndpointSample { endpoint: "127.0.0.1:1".into(), healthy: false, last_check: None, ..endpoint.clone() },
            endpoint,
        ],
        source: Some(crate::telemetry::metrics::SourceSample::default()),
        discovery: vec![DiscoverySample {
            upstream: "orders".into(),
            endpoints: 3,
            unused: 1,
            age: Some(Duration::from_secs(4)),
            failures: vec![("timeout", 2)],
        }],
        resilience: resilience(),
        cache: CacheSample {
            routes: vec![("orders".into(), cache.into())],
            memory: Some(MemoryStats::default()),
            redis: Some(tier()),
        },
        limits: LimitsSample {
            limits: vec![("orders".into(), "5/1m".into(), Arc::default())],
            queues: vec![("orders".into(), 2)],
            local: Some((1, 2, 3)),
            redis: Some(Arc::default()),
            redis_leased: 8,
            redis_gateways: 2,
            redis_held: 9,
            shield_refused: Some(4),
            listener_shields: vec![("http".into(), 5)],
        },
        listeners: vec![("http".into(), listener)],
        certificates: vec![CertificateSample {
            listener: "https".into(),
            certificate: "a \"b\".pem".into(),
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045),
        }],
        gateway,
        logs: vec![LogSample { log: "gateway", stats }, LogSample { log: "access", stats }],
        log_suppressed: 4,
        process: ProcessSample::read(),
    }
}

fn resilience() -> ResilienceSample {
    let breaker = BreakerSample {
        kind: "upstream",
        name: "orders".into(),
        state: 2,
        entered: vec![("closed", 0), ("open", 1), ("half_open", 0)],
        refused: 7,
    };
    let ejection = EjectionSample {
        upstream: "orders".into(),
        endpoint: "127.0.0.1:1".into(),
        ejected: true,
        ejections: vec![("consecutive_errors", 1), ("latency", 0)],
    };
    ResilienceSample {
        breakers: vec![breaker],
        ejections: vec![ejection],
        overloads: vec![OverloadSample { upstream: "orders".into(), limit: 50, in_flight: 3, shed: 2 }],
        budgets: vec![("orders".into(), 1)],
        hedges: vec![("orders".into(), 2, 1)],
    }
}

fn promtool_check(exposition: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is needed to judge the exposition: apt-get install prometheus");
    promtool.stdin.take().unwrap().write_all(exposition.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{}: {said}\n{exposition}", output.status);
}

#[test]
fn promtool_accepts_the_whole_exposition() {
    promtool_check(&encode(&full(&GatewayMetrics::default())));
}

#[test]
fn promtool_accepts_the_exposition_of_a_gateway_that_has_done_nothing() {
    let gateway = GatewayMetrics::default();
    let exposition = encode(&MetricsView {
        routes: vec![("r".into(), Arc::default())],
        auth: vec![AuthSample { route: "r".into(), filter: "jwt".into(), metrics: Arc::default() }],
        keys: vec![KeySample { issuer: "i".into(), fetched: 0, failed: 0, age: None }],
        upstreams: vec![("u".into(), Arc::new(UpstreamMetrics::new(&[])))],
        mirrors: Vec::new(),
        endpoints: Vec::new(),
        source: Some(crate::telemetry::metrics::SourceSample::default()),
        discovery: Vec::new(),
        resilience: ResilienceSample::default(),
        cache: CacheSample {
            routes: vec![("r".into(), Arc::default())],
            memory: Some(MemoryStats::default()),
            redis: Some(tier()),
        },
        limits: LimitsSample { limits: vec![("r".into(), "5/1m".into(), Arc::default())], ..LimitsSample::default() },
        listeners: Vec::new(),
        certificates: Vec::new(),
        gateway: &gateway,
        logs: Vec::new(),
        log_suppressed: 0,
        process: ProcessSample::default(),
    });
    assert!(!exposition.contains("gatewright_http_requests_total"), "nothing was counted: {exposition}");
    promtool_check(&exposition);
}

#[test]
fn the_table_and_the_exposition_are_equal() {
    let exposition = encode(&full(&GatewayMetrics::default()));
    let described: Vec<&str> = exposition.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
    let table: Vec<String> = METRICS.iter().map(|m| format!("{} {}", m.name, m.kind.as_str())).collect();
    assert_eq!(described, table, "each once, in order, with its type");
    let mut labels: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for line in exposition.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let metric = METRICS
            .iter()
            .find(|m| {
                m.name == name || (m.kind == Kind::Histogram && name.strip_prefix(m.name).is_some_and(|s| s.starts_with('_')))
            })
            .unwrap_or_else(|| panic!("{name} is not in the table"));
        for label in metric.labels {
            assert!(line.contains(&format!("{label}=\"")), "{line} lacks {label}");
        }
        labels.entry(metric.name).or_default().extend(metric.labels.iter().map(|l| (*l).to_owned()));
    }
    assert_eq!(labels.len(), METRICS.len(), "each metric has a sample");
    for metric in METRICS {
        assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
        assert!(!metric.help.contains(['\\', '\n']) && !metric.help.ends_with('.'), "{}", metric.name);
    }
}

#[test]
fn numbers_and_names_are_written_as_prometheus_reads_them() {
    let exposition = encode(&full(&GatewayMetrics::default()));
    for line in [
        "gatewright_http_requests_total{route=\"a \\\"quoted\\\\\\\" \\n route ü\",method=\"_OTHER\",class=\"4xx\"} 1",
        "gatewright_http_request_duration_seconds_bucket{route=\"_none\",le=\"+Inf\"} 0",
        "gatewright_upstream_response_time_seconds_bucket{upstream=\"orders\",le=\"0.005\"} 0",
        "gatewright_upstream_response_time_seconds_bucket{upstream=\"orders\",le=\"0.01\"} 1",
        "gatewright_upstream_response_time_seconds_bucket{upstream=\"orders\",le=\"+Inf\"} 1",
        "gatewright_upstream_response_time_seconds_sum{upstream=\"orders\"} 0.007000000",
        "gatewright_upstream_response_time_seconds_count{upstream=\"orders\"} 1",
        "gatewright_upstream_requests_total{upstream=\"orders\",class=\"none\"} 1",
        "gatewright_endpoint_healthy{upstream=\"orders\",endpoint=\"127.0.0.1:1\"} 0",
        "gatewright_endpoint_health_checks_total{upstream=\"orders\",endpoint=\"[::1]:3001\",result=\"failure\"} 1",
        "gatewright_listener_connections_refused_total{listener=\"http\",reason=\"too_many_connections\"} 1",
        "gatewright_config_reloads_total{result=\"failure\"} 1",
        "gatewright_config_last_reload_successful 0",
        "gatewright_config_last_reload_success_timestamp_seconds 1767323045.678000000",
        "gatewright_config_info{hash=\"c0ffee\"} 1",
        "gatewright_log_records_dropped_total{log=\"access\"} 1",
    ] {
        assert!(exposition.lines().any(|written| written == line), "no line {line}\n{exposition}");
    }
}
