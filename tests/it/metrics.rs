//! The numbers: what they count, that Prometheus accepts them, and that no client can make more of them.

use crate::support::raw::{Client, get, request, send};
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
        if !response.keep_alive {
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
