//! The numbers: what they count, that Prometheus accepts them, and that no client can make more of them.

use crate::support::raw::{Client, get, refusing_port, request, send};
use crate::support::{Gateway, Origin, SOON, eventually, everything_to, exclusive};
use std::io::Write;
use std::process::{Command, Stdio};

#[test]
fn requests_are_counted_by_route_method_and_class() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], "").replace("path = \"/{*rest}\"", "path = \"/known\""));
    for _ in 0..3 {
        get(gateway.http(), "/known");
    }
    send(gateway.http(), "POST", "/known", &[], b"12345");
    get(gateway.http(), "/unknown");
    let count = |labels: &[(&str, &str)]| gateway.metric("gatewright_http_requests_total", labels);
    eventually("five requests", SOON, || count(&[]) == 5.0);
    assert_eq!(count(&[("route", "all"), ("method", "GET"), ("class", "2xx")]), 3.0);
    assert_eq!(count(&[("route", "all"), ("method", "POST"), ("class", "2xx")]), 1.0);
    assert_eq!(count(&[("class", "4xx")]), 1.0);
    assert_eq!(gateway.metric("gatewright_http_request_duration_seconds_count", &[("route", "all")]), 4.0);
    assert_eq!(gateway.metric("gatewright_http_rejections_total", &[("code", "route_not_found")]), 1.0);
    assert_eq!(gateway.metric("gatewright_http_request_body_bytes_total", &[("route", "all")]), 5.0);
    assert_eq!(gateway.metric("gatewright_build_info", &[]), 1.0);
    assert!(gateway.metric("process_resident_memory_bytes", &[]) > 1e6);
}

/// Connects, latency, retries, health and bytes on the upstream's side, connections on ours, and lines of the log.
#[test]
fn the_upstreams_side_is_counted() {
    let origin = Origin::start("a");
    let (refusing, _port) = refusing_port();
    let address = origin.address();
    let toml = format!(
        "[upstreams.app]\nendpoints = [\"{address}\", \"{refusing}\"]\n\
         [upstreams.checked]\nendpoints = [\"{address}\"]\n\
         health = {{ path = \"/health\", interval = \"1s\", timeout = \"900ms\", rise = 1, fall = 1 }}\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n\
         [routes.checked]\nmatch = {{ path = \"/checked\" }}\nupstream = \"checked\"\n"
    );
    let gateway = Gateway::start(&toml);
    let mut client = Client::connect(gateway.http());
    let mut bytes = 0;
    for _ in 0..10 {
        let answer = client.exchange(request("GET", "/", &[], b"")).unwrap();
        assert_eq!(answer.status, 200);
        bytes += answer.body.len();
    }
    let metric = |name: &str, labels: &[(&str, &str)]| gateway.metric(&format!("gatewright_{name}"), labels);
    let app = ("upstream", "app");
    eventually("ten requests", SOON, || metric("upstream_requests_total", &[app, ("class", "2xx")]) == 10.0);
    let (up, down) = (address.to_string(), refusing.to_string());
    let (up, down) = ([app, ("endpoint", up.as_str())], [app, ("endpoint", down.as_str())]);
    assert_eq!(metric("upstream_response_time_seconds_count", &[app]), 10.0);
    let connects = metric("upstream_connects_total", &[app, ("kind", "new")]);
    assert!(connects >= 1.0 && connects == metric("upstream_connect_duration_seconds_count", &[app]), "{connects}");
    assert_eq!(connects + metric("upstream_connects_total", &[app, ("kind", "reused")]), 10.0);
    // Every second request began at the one that refuses, and went on to the other.
    let refused = metric("upstream_connect_failures_total", &[app]);
    assert!(refused >= 4.0, "{refused}");
    assert_eq!(metric("endpoint_connect_failures_total", &down), refused);
    assert_eq!(metric("upstream_retries_total", &[app]), refused);
    assert_eq!((metric("endpoint_requests_total", &up), metric("endpoint_requests_in_flight", &up)), (10.0, 0.0));
    assert_eq!(metric("http_response_body_bytes_total", &[("route", "all")]), bytes as f64);
    assert_eq!(metric("listener_connections_active", &[("listener", "http")]), 1.0);
    assert_eq!(metric("listener_connections_accepted_total", &[("listener", "http")]), 1.0);

    let checked = [("upstream", "checked"), up[1]];
    let good = [checked[0], checked[1], ("result", "success")];
    eventually("a check", SOON, || metric("endpoint_health_checks_total", &good) >= 1.0);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let last = metric("endpoint_last_health_check_timestamp_seconds", &checked);
    assert!((last - now).abs() < 60.0, "{last} is not near {now}");
    eventually("healthy", SOON, || metric("endpoint_healthy", &checked) == 1.0);
    eventually("ten lines", SOON, || metric("log_records_total", &[("log", "access")]) == 10.0);
    assert!(metric("log_written_bytes_total", &[("log", "access")]) > 1_000.0);
}

#[test]
fn ten_thousand_random_requests_add_no_series() {
    let _machine = exclusive();
    let origin = Origin::start("a");
    let known = everything_to(&[&origin], "").replace("path = \"/{*rest}\"", "path = \"/known/{*rest}\", methods = [\"GET\"]");
    let gateway = Gateway::start(&known);
    let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"];
    // One of each kind first: a series appears with its first count.
    for method in methods {
        for target in ["/known/x", "/unknown"] {
            Client::connect(gateway.http()).exchange(request(method, target, &[], b"")).unwrap();
        }
    }
    let total = |gateway: &Gateway| gateway.metric("gatewright_http_requests_total", &[]);
    eventually("the first requests are counted", SOON, || total(&gateway) == 2.0 * methods.len() as f64);
    let before = gateway.metrics().series();

    let memory = gateway.rss();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut client = Client::connect(gateway.http());
    for n in 0..10_000 {
        let method = if n % 3 == 0 { random.word().to_uppercase() } else { methods[n % 4].to_owned() };
        let target = format!("/{}{}", if n % 2 == 0 { "known/" } else { "" }, random.word());
        let host = format!("{}.example.com", random.word());
        let response = client.exchange(request(&method, &target, &[("host", &host)], b""));
        let response = response.unwrap_or_else(|broken| panic!("{method} {target} {host}: {broken}"));
        // The last request that a connection may carry has a series, and is not what this is about.
        if !response.keep_alive || n == 5_000 {
            client = Client::connect(gateway.http());
        }
    }
    eventually("all are counted", SOON, || total(&gateway) == 10_000.0 + 2.0 * methods.len() as f64);
    let after = gateway.metrics().series();
    let added: Vec<_> = after.difference(&before).collect();
    assert!(added.is_empty(), "{added:?}");
    assert!(gateway.rss() < memory + (32 << 20), "from {memory} to {} bytes", gateway.rss());
}

#[test]
fn promtool_accepts_the_page() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], "health = { path = \"/health\" }"));
    get(gateway.http(), "/");
    gateway.reload();
    let page = gateway.admin.get("/metrics");
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{:?}", page.headers);
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().expect("promtool is missing: scripts/setup.sh test");
    child.stdin.take().unwrap().write_all(&page.body).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{}", page.text());
}

/// xorshift64*, so that a failure comes again.
struct Random(u64);

impl Random {
    fn word(&mut self) -> String {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mut bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let mut word = String::new();
        for _ in 0..8 {
            word.push(char::from(b'a' + (bits % 26) as u8));
            bits /= 26;
        }
        word
    }
}
