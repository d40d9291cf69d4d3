//! What can be written in `[upstreams.NAME]`, and what is said where it is wrong.

use super::*;
use crate::diagnostic::Severity;

fn findings(text: &str) -> Vec<String> {
    let config: UpstreamConfig = toml::from_str(text).unwrap();
    let mut d = Diagnostics::default();
    config.check(&Located::nowhere("orders".to_owned()), &mut d);
    assert!(d.list.iter().all(|finding| finding.severity == Severity::Error && finding.primary.is_some()), "{:?}", d.list);
    d.list
        .iter()
        .map(|finding| {
            let (span, _) = finding.primary.as_ref().unwrap();
            format!("{} @ {}", finding.message, &text[span.range.clone()])
        })
        .collect()
}

#[test]
fn one_line_is_a_whole_upstream() {
    let config: UpstreamConfig = toml::from_str(r#"endpoints = ["127.0.0.1:3001"]"#).unwrap();
    assert_eq!((*config.retry.attempts, config.keepalive.connections, *config.endpoints[0].weight), (2, 256, 1));
    assert_eq!(config.timeouts.connect.value, Duration::from_secs(1));
    assert_eq!(config.when_all_down, WhenAllDown::Reject);
    assert!(config.health.is_none());
}

#[test]
fn every_key_of_the_reference_is_understood() {
    let text = r#"
        endpoints = ["[::1]:3001", { address = "orders.internal:3002", weight = 2 }, { address = "127.0.0.1:1", weight = 0 }]
        balance = "round_robin"
        health = { path = "/health?deep=1", expect = "200-399", host = "o", interval = "5s", timeout = "1s",
                   rise = 2, fall = 3 }
        timeouts = { connect = "1s", read = "30s", write = "30s", idle = "60s", request = "5s", attempt = "2s", least = "5ms" }
        keepalive = { connections = 0 }
        retry = { attempts = 3, on = ["connect", "reset", "timeout", "503", "502-504", "UNAVAILABLE"],
                  backoff = { base = "25ms", max = "250ms" }, budget = "10%", budget_floor = 20, methods = "idempotent" }
        outlier = { consecutive_errors = 5, error_rate = "50%", latency_factor = 3, latency_min = "50ms", min_requests = 20,
                    window = "10s", eject_for = "30s", eject_for_max = "5m", max_ejected = "50%", panic = "0%" }
        breaker = { scope = "both", error_rate = "50%", window = "10s", min_requests = 20, consecutive_failures = 10,
                    slow = "1s", slow_rate = "80%", open_for = "30s", probes = 3,
                    answer = { status = 200, body = "later", content_type = "text/plain" } }
        hedge = { after = "50ms" }
        overload = { min = 4, max = 1000, initial = 50, slack = "50%" }
        when_all_down = "try_all"
        resolve = { interval = "10s", timeout = "2s" }
    "#;
    assert_eq!(findings(text), [""; 0]);
    assert_eq!(findings("endpoints = ['127.0.0.1:1']\nhealth = { tcp = true }"), [""; 0]);
}

#[test]
fn impossible_values_are_all_reported_where_they_stand() {
    let text = r#"
        endpoints = ["a:1", "b:0", { address = "A:1", weight = 1001 }]
        health = { path = "health", host = "a b", interval = "1s", timeout = "1s", rise = 0, fall = 101 }
        timeouts = { connect = "0s" }
        retry = { attempts = 11 }
        resolve = { interval = "10ms" }
    "#;
    assert_eq!(
        findings(text),
        [
            "`b:0` is not the address of an endpoint @ \"b:0\"",
            "endpoint `a:1` stands twice in upstream `orders` @ \"A:1\"",
            "`weight` is 1001 @ 1001",
            "`health` is not a path @ \"health\"",
            "`a b` is not a host @ \"a b\"",
            "a health check may take 1s but runs every 1s @ \"1s\"",
            "`rise` is 0 @ 0",
            "`fall` is 101 @ 101",
            "`0s` is not possible here @ \"0s\"",
            "`10ms` is not possible here @ \"10ms\"",
            "`attempts` is 11 @ 11",
        ]
    );
}

#[test]
fn an_upstream_that_can_take_no_traffic_is_an_error() {
    assert_eq!(findings("endpoints = []"), ["upstream `orders` has no endpoints @ []"]);
    let drained = "endpoints = [{ address = 'a:1', weight = 0 }]";
    assert_eq!(findings(drained), ["every endpoint of upstream `orders` has weight 0 @ [{ address = 'a:1', weight = 0 }]"]);
}

#[test]
fn a_health_check_has_one_kind() {
    let with = |health: &str| findings(&format!("endpoints = ['a:1']\nhealth = {health}"));
    assert_eq!(with("{}"), ["a health check has neither `path` nor `tcp` nor `grpc` @ {}"]);
    assert_eq!(with("{ path = '/', tcp = true }").len(), 1);
    assert_eq!(with("{ tcp = true, expect = '200' }"), ["`expect` has no meaning for a TCP check @ '200'"]);
}

#[test]
fn decoding_errors_point_into_the_endpoint() {
    let spans = |text: &str| {
        let error = toml::from_str::<UpstreamConfig>(text).unwrap_err();
        (error.message().to_owned(), text[error.span().unwrap()].to_owned())
    };
    let (message, at) = spans("endpoints = [{ address = 'a:1', wieght = 2 }]");
    assert_eq!(
        (message.as_str(), at.as_str()),
        ("unknown field `wieght`, expected one of `address`, `weight`, `priority`, `zone`", "wieght")
    );
    let (message, at) = spans("endpoints = [7]");
    assert!(message.contains("expected an address such as"), "{message}");
    assert_eq!(at, "7");
    let (_, at) = spans("endpoints = [{ address = 'a:1', weight = -1 }]");
    assert_eq!(at, "-1");
}

#[test]
fn status_ranges_have_one_spelling() {
    assert_eq!("200".parse(), Ok(StatusRange { first: 200, last: 200 }));
    assert_eq!("200-399".parse::<StatusRange>().map(|range| range.to_string()), Ok("200-399".to_owned()));
    for wrong in ["", "2xx", "100", "600", "200-", "-200", "200 - 299", "+200", "399-200"] {
        assert!(wrong.parse::<StatusRange>().is_err(), "{wrong}");
    }
}

#[test]
fn the_schema_takes_text_and_table() {
    let schema = serde_json::to_value(schemars::schema_for!(UpstreamConfig)).unwrap();
    assert_eq!(schema["$defs"]["Endpoint"]["oneOf"].as_array().map(Vec::len), Some(2));
}
