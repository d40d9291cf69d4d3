//! Endpoints that are found: in a file, in DNS (a real dnsmasq), in Redis (a real one), and in a double of Consul's API.

use crate::support::consul::Consul;
use crate::support::dns::Dnsmasq;
use crate::support::raw::get;
use crate::support::redis::Redis;
use crate::support::tls::Authority;
use crate::support::{Gateway, Origin, SOON, eventually};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

/// One upstream that finds its endpoints, for everything.
pub fn discovering(discover: &str, more: &str) -> String {
    format!(
        "[upstreams.app]\ndiscover = {{ {discover} }}\n{more}\n[routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n"
    )
}

/// The addresses of the endpoints, as `/status` shows them.
fn found(gateway: &Gateway) -> Vec<String> {
    let status = gateway.status();
    let endpoints = status["upstreams"][0]["endpoints"].as_array().unwrap().iter();
    endpoints.map(|endpoint| endpoint["address"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn becomes(gateway: &Gateway, expected: &[&str]) {
    let mut last = Vec::new();
    let deadline = Instant::now() + SOON;
    while last != expected {
        assert!(Instant::now() < deadline, "{last:?} does not become {expected:?}");
        std::thread::sleep(Duration::from_millis(10));
        last = found(gateway);
    }
}

fn failures(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric("gatewright_discovery_failures_total", &[("upstream", "app"), ("reason", reason)])
}

fn addresses(origins: &[Origin]) -> Vec<SocketAddr> {
    origins.iter().map(Origin::address).collect()
}

fn sorted(origins: &[&Origin]) -> Vec<String> {
    let mut list: Vec<SocketAddr> = origins.iter().map(|origin| origin.address()).collect();
    list.sort_unstable();
    list.iter().map(ToString::to_string).collect()
}

#[track_caller]
pub fn becomes_origins(gateway: &Gateway, origins: &[&Origin]) {
    let list = sorted(origins);
    becomes(gateway, &list.iter().map(String::as_str).collect::<Vec<_>>());
}

// ---- a file

#[test]
fn a_file_is_followed_and_a_broken_one_changes_nothing() {
    let origins = Origin::start_many(2);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.json");
    let write = |text: &str| {
        let temporary = directory.path().join("next.tmp");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, &path).unwrap();
    };
    let list = |origins: &[&Origin]| format!("{{ \"endpoints\": {:?} }}", sorted(origins));
    write(&list(&[&origins[0]]));
    // The interval is long, so that only the watch can be what brings changes.
    let discover = format!("file = {{ path = \"{}\", interval = \"1h\" }}, debounce = \"0s\"", path.display());
    let gateway = Gateway::start(&discovering(&discover, ""));
    assert_eq!(get(gateway.http(), "/").origin(), "a", "the first answer is awaited at the start");
    write(&list(&[&origins[0], &origins[1]]));
    becomes_origins(&gateway, &[&origins[0], &origins[1]]);
    write("{ \"endpoints\": [\"127.0.");
    eventually("a failure", SOON, || failures(&gateway, "invalid") > 0.0);
    becomes_origins(&gateway, &[&origins[0], &origins[1]]);
    write("{ \"endpoints\": [] }");
    eventually("an empty answer", SOON, || failures(&gateway, "empty") > 0.0);
    becomes_origins(&gateway, &[&origins[0], &origins[1]]);
    write(&list(&[&origins[1]]));
    becomes_origins(&gateway, &[&origins[1]]);
    assert_eq!(get(gateway.http(), "/").origin(), "b");
}

#[test]
fn what_a_file_may_say_is_bounded_by_the_allowed_networks() {
    let origin = Origin::start("a");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.toml");
    std::fs::write(&path, format!("endpoints = ['{}', '169.254.169.254:80', '192.0.2.1:80']", origin.address())).unwrap();
    let discover = format!("file = {{ path = \"{}\" }}, allow = [\"127.0.0.0/8\"]", path.display());
    let gateway = Gateway::start(&discovering(&discover, ""));
    becomes_origins(&gateway, &[&origin]);
    assert_eq!(gateway.metric("gatewright_discovery_unused", &[("upstream", "app")]), 2.0);
    assert_eq!(gateway.metric("gatewright_discovery_endpoints", &[("upstream", "app")]), 1.0);
    assert!(gateway.metrics().get("gatewright_discovery_age_seconds", &[("upstream", "app")]).is_some());
}

#[test]
fn endpoints_that_leave_take_their_checks_and_series_with_them() {
    let origins = Origin::start_many(2);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.json");
    let write = |origins: &[&Origin]| std::fs::write(&path, format!("{{ \"endpoints\": {:?} }}", sorted(origins))).unwrap();
    write(&[&origins[0], &origins[1]]);
    let discover = format!("file = {{ path = \"{}\" }}, debounce = \"0s\"", path.display());
    let health = "health = { path = \"/health\", interval = \"50ms\", timeout = \"40ms\", rise = 1, fall = 1 }";
    let gateway = Gateway::start(&discovering(&discover, health));
    origins[0].set_healthy(false);
    gateway.wait_healthy(origins[0].address(), false);
    eventually("checks of b", SOON, || origins[1].health_checks() > 1);
    write(&[&origins[0]]);
    becomes_origins(&gateway, &[&origins[0]]);
    let address = origins[1].address().to_string();
    let series = || gateway.metrics().series().into_iter().filter(|series| series.contains(&address)).collect::<Vec<_>>();
    assert_eq!(series(), Vec::<String>::new());
    // What stays is as it was; while it is checked ten more times, b is not.
    let (left, stays) = (origins[1].health_checks(), origins[0].health_checks());
    assert_eq!(gateway.endpoint(origins[0].address())["healthy"], false);
    eventually("more checks of a", SOON, || origins[0].health_checks() > stays + 10);
    assert!(origins[1].health_checks() <= left + 1, "one may have been on its way");
}

// ---- DNS

fn dns(server: &Dnsmasq, more: &str) -> String {
    format!("dns = {{ servers = [\"{}\"], timeout = \"1s\", {more} }}, debounce = \"0s\"", server.address())
}

#[test]
fn pods_behind_a_headless_service_come_and_go() {
    let origin = Origin::start("a");
    let port = origin.address().port();
    let server = Dnsmasq::start(&["--local-ttl=1"]);
    server.hosts(&[("orders.test", "127.0.0.1")]);
    // Without the TTL of a second it would be asked once a day.
    let more = format!("name = \"orders.test\", port = {port}, max_interval = \"1d\"");
    let gateway = Gateway::start(&discovering(&dns(&server, &more), ""));
    assert_eq!(get(gateway.http(), "/").status, 200);
    assert_eq!(gateway.status()["upstreams"][0]["endpoints"][0]["written"], format!("orders.test:{port}"));
    server.hosts(&[("orders.test", "127.0.0.1"), ("orders.test", "127.0.0.2"), ("orders.test", "::1")]);
    let all = [format!("127.0.0.1:{port}"), format!("127.0.0.2:{port}"), format!("[::1]:{port}")];
    becomes(&gateway, &all.each_ref().map(String::as_str));
    server.hosts(&[("orders.test", "127.0.0.2")]);
    becomes(&gateway, &[&all[1]]);
}

#[test]
fn a_name_or_a_server_that_is_gone_takes_nothing_away() {
    let origin = Origin::start("a");
    let port = origin.address().port();
    let mut server = Dnsmasq::start(&[]);
    server.hosts(&[("orders.test", "127.0.0.1")]);
    let more = format!("name = \"orders.test\", port = {port}, min_interval = \"100ms\", max_interval = \"100ms\"");
    let gateway = Gateway::start(&discovering(&dns(&server, &more), ""));
    server.hosts(&[]);
    eventually("NXDOMAIN", SOON, || failures(&gateway, "empty") > 1.0);
    assert_eq!(get(gateway.http(), "/").status, 200);
    server.kill();
    eventually("a dead server", SOON, || failures(&gateway, "timeout") + failures(&gateway, "unreachable") > 0.0);
    assert_eq!(get(gateway.http(), "/").status, 200);
    // A reload meanwhile begins with what was known.
    assert_eq!(gateway.reload().code, Some(0));
    assert_eq!(get(gateway.http(), "/").status, 200);
    server.hosts(&[("orders.test", "127.0.0.3")]);
    server.start_again();
    becomes(&gateway, &[&format!("127.0.0.3:{port}")]);
}

#[test]
fn srv_records_bring_ports_weights_and_priorities() {
    let server = Dnsmasq::start(&[
        "--srv-host=_http._tcp.orders.test,a.test,3001,10,1",
        "--srv-host=_http._tcp.orders.test,b.test,3002,10,3",
        "--srv-host=_http._tcp.orders.test,c.test,3003,20,1",
        "--srv-host=_http._tcp.orders.test,gone.test,3004,10,1",
    ]);
    server.hosts(&[("a.test", "127.0.0.1"), ("b.test", "127.0.0.2"), ("c.test", "127.0.0.3")]);
    let gateway = Gateway::start(&discovering(&dns(&server, "name = \"_http._tcp.orders.test\", record = \"srv\""), ""));
    becomes(&gateway, &["127.0.0.1:3001", "127.0.0.2:3002", "127.0.0.3:3003"]);
    let status = gateway.status();
    let of = |at: usize, key: &str| status["upstreams"][0]["endpoints"][at][key].clone();
    assert_eq!([of(0, "weight"), of(1, "weight")], [1, 3]);
    assert_eq!([of(0, "priority"), of(1, "priority"), of(2, "priority")], [0, 0, 1]);
    assert_eq!(of(1, "written"), "b.test:3002");
}

#[test]
fn an_answer_is_dropped_when_it_is_too_old() {
    let mut server = Dnsmasq::start(&[]);
    server.hosts(&[("orders.test", "127.0.0.1")]);
    let more = "name = \"orders.test\", port = 1, min_interval = \"100ms\", max_interval = \"100ms\"";
    let gateway = Gateway::start(&discovering(&format!("{}, max_stale = \"1s\"", dns(&server, more)), ""));
    becomes(&gateway, &["127.0.0.1:1"]);
    server.kill();
    eventually("an end of it", SOON, || get(gateway.http(), "/").code() == "upstream_unavailable");
    assert_eq!(found(&gateway), Vec::<String>::new());
}

// ---- Redis

#[test]
fn services_keep_themselves_in_a_redis_set() {
    let origins = Origin::start_many(2);
    let mut redis = Redis::start();
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let heartbeat = |redis: &Redis, origin: &Origin, seconds: u64| {
        redis.ask(&format!("ZADD app:endpoints {} {}", now() + seconds, origin.address())).unwrap();
    };
    heartbeat(&redis, &origins[0], 3_600);
    // One that has stopped long ago, and one that is nonsense.
    redis.ask("ZADD app:endpoints 1000000000 127.0.0.1:9").unwrap();
    redis.ask("ZADD app:endpoints 9999999999 nonsense").unwrap();
    let discover =
        format!("redis = {{ url = \"{}\", key = \"app:endpoints\", interval = \"100ms\" }}, debounce = \"0s\"", redis.url());
    let gateway = Gateway::start(&discovering(&discover, ""));
    becomes_origins(&gateway, &[&origins[0]]);
    heartbeat(&redis, &origins[1], 2);
    becomes_origins(&gateway, &[&origins[0], &origins[1]]);
    // No further heartbeat: b lapses by itself.
    becomes_origins(&gateway, &[&origins[0]]);
    redis.kill();
    eventually("a failure", SOON, || failures(&gateway, "unreachable") + failures(&gateway, "timeout") > 0.0);
    assert_eq!(get(gateway.http(), "/").origin(), "a");
    redis.restart();
    eventually("an empty Redis is no reason to stop", SOON, || failures(&gateway, "empty") > 0.0);
    assert_eq!(get(gateway.http(), "/").origin(), "a");
    heartbeat(&redis, &origins[1], 3_600);
    becomes_origins(&gateway, &[&origins[1]]);
}

// ---- Consul

fn consul(consul: &Consul, more: &str) -> String {
    format!("consul = {{ address = \"{}\", service = \"orders\", {more} }}, debounce = \"0s\"", consul.address())
}

#[test]
fn consul_is_asked_by_blocking_queries() {
    let origins = Origin::start_many(2);
    let consul_double = Consul::start();
    consul_double.register(&addresses(&origins[..1]));
    let more = "tags = [\"v2\"], datacenter = \"dc1\", wait = \"5m\"";
    let gateway = Gateway::start(&discovering(&consul(&consul_double, more), ""));
    assert_eq!(get(gateway.http(), "/").origin(), "a");
    assert_eq!(gateway.status()["upstreams"][0]["endpoints"][0]["zone"], "a");
    // A wakeup without a change is answered with the next question and nothing else.
    for _ in 0..3 {
        let before = consul_double.queries().len();
        consul_double.wake();
        eventually("the next question", SOON, || consul_double.queries().len() > before);
    }
    consul_double.register(&addresses(&origins));
    becomes_origins(&gateway, &[&origins[0], &origins[1]]);
    let queries = consul_double.queries();
    assert!(queries.len() <= 8, "questions are held back: {}", queries.len());
    let first = &queries[0];
    assert_eq!((first.path.as_str(), first.parameters.get("index")), ("/v1/health/service/orders", None));
    for query in &queries {
        let parameter = |key: &str| query.parameters.get(key).map(String::as_str);
        assert_eq!((parameter("passing"), parameter("tag"), parameter("dc")), (Some("1"), Some("v2"), Some("dc1")));
        assert_ne!(parameter("index"), Some("0"));
    }
    assert!(queries[1..].iter().all(|query| query.parameters["wait"] == "300000ms" && query.parameters.contains_key("index")));
}

#[test]
fn an_index_that_goes_backwards_is_forgotten() {
    let origins = Origin::start_many(2);
    let consul_double = Consul::start();
    consul_double.register(&addresses(&origins[..1]));
    let gateway = Gateway::start(&discovering(&consul(&consul_double, "wait = \"1s\""), ""));
    becomes_origins(&gateway, &[&origins[0]]);
    consul_double.restore(&addresses(&origins[1..]), 3);
    becomes_origins(&gateway, &[&origins[1]]);
    // The question after that does not wait for the index of before.
    eventually("a fresh question", SOON, || {
        consul_double.queries()[1..].iter().any(|query| !query.parameters.contains_key("index"))
    });
    consul_double.register(&addresses(&origins));
    becomes_origins(&gateway, &[&origins[0], &origins[1]]);
}

#[test]
fn a_refused_token_keeps_the_last_answer_until_it_is_right() {
    let origins = Origin::start_many(2);
    let consul_double = Consul::start();
    consul_double.demand_token(Some("hush"));
    consul_double.register(&addresses(&origins[..1]));
    let toml = discovering(&consul(&consul_double, "token = { env = \"TEST_CONSUL_TOKEN\" }, wait = \"1s\""), "");
    let gateway = Gateway::start_with_environment(&toml, &[("TEST_CONSUL_TOKEN", "hush")]);
    becomes_origins(&gateway, &[&origins[0]]);
    consul_double.demand_token(Some("other"));
    eventually("a refusal", SOON, || failures(&gateway, "denied") > 0.0);
    consul_double.fail(Some(500));
    eventually("an error", SOON, || failures(&gateway, "unreachable") > 0.0);
    assert_eq!(get(gateway.http(), "/").origin(), "a");
    consul_double.fail(None);
    consul_double.demand_token(Some("hush"));
    consul_double.register(&addresses(&origins[1..]));
    becomes_origins(&gateway, &[&origins[1]]);
    let said = gateway.stderr() + &gateway.status().to_string();
    assert!(!said.contains("hush"), "the token shows");
}

#[test]
fn flapping_instances_are_debounced() {
    let origins = Origin::start_many(2);
    let consul_double = Consul::start();
    consul_double.register(&addresses(&origins[..1]));
    let discover = consul(&consul_double, "").replace("debounce = \"0s\"", "debounce = \"1m\"");
    let gateway = Gateway::start(&discovering(&discover, ""));
    becomes_origins(&gateway, &[&origins[0]]);
    for round in 0..10 {
        let before = consul_double.queries().len();
        consul_double.register(&addresses(if round % 2 == 0 { &origins } else { &origins[..1] }));
        eventually("the next question", SOON, || consul_double.queries().len() > before);
    }
    assert_eq!(found(&gateway), sorted(&[&origins[0]]), "what is taken back within the debounce never happens");
    let changes = gateway.stderr().lines().filter(|line| line.contains("endpoints, ")).count();
    assert_eq!(changes, 1);
}

#[test]
fn health_and_counters_of_what_stays_survive_changes() {
    let origins = Origin::start_many(3);
    let consul_double = Consul::start();
    consul_double.register(&addresses(&origins[..2]));
    let health = "health = { path = \"/health\", interval = \"1s\", timeout = \"900ms\", rise = 100, fall = 1 }";
    let gateway = Gateway::start(&discovering(&consul(&consul_double, ""), health));
    becomes_origins(&gateway, &[&origins[0], &origins[1]]);
    gateway.wait_healthy(origins[0].address(), true);
    eventually("a check", SOON, || gateway.endpoint(origins[0].address())["check"]["ok"].as_u64() > Some(0));
    origins[0].set_healthy(false);
    gateway.wait_healthy(origins[0].address(), false);
    origins[0].set_healthy(true);
    for _ in 0..5 {
        assert_eq!(get(gateway.http(), "/").origin(), "b");
    }
    consul_double.register(&addresses(&origins));
    becomes_origins(&gateway, &[&origins[0], &origins[1], &origins[2]]);
    assert_eq!(gateway.endpoint(origins[0].address())["healthy"], false, "a hundred passes are not over");
    assert_eq!(gateway.endpoint(origins[1].address())["requests"], 5);
}

#[test]
fn consul_is_asked_over_tls_that_is_verified() {
    let origin = Origin::start("a");
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ca.pem"), &authority.pem).unwrap();
    let pair = authority.issue(&["consul.test"]);
    let consul_double = Consul::secure(pair.server());
    consul_double.register(&[origin.address()]);
    let tls = |sni: &str| {
        let ca = directory.path().join("ca.pem");
        discovering(&consul(&consul_double, &format!("tls = {{ sni = \"{sni}\", ca = \"{}\" }}", ca.display())), "")
    };
    let gateway = Gateway::start(&tls("consul.test"));
    becomes_origins(&gateway, &[&origin]);
    let stranger = Gateway::start(&tls("other.test"));
    eventually("a failure", SOON, || failures(&stranger, "unreachable") > 0.0);
    assert_eq!(found(&stranger), Vec::<String>::new());
}
