//! Limits through the real binary: what clients are told, what a reload keeps, and what Redis may do without anybody
//! getting an error.

use crate::limits_kinds::held_by;
use crate::support::raw::{Client, get, request, send};
use crate::support::redis::Redis;
use crate::support::{Gate, Gateway, Origin, SOON, eventually, everything_to, exclusive};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A route that answers by itself, with these filters before.
fn route(name: &str, path: &str, filters: &str) -> String {
    format!("\n[routes.{name}]\nmatch = {{ path = \"{path}\" }}\nfilters = [{filters}, {{ respond = {{ body = \"hello\" }} }}]\n")
}

/// How many of `count` requests are answered with 200; panics at anything but 200 and 429.
#[track_caller]
fn admitted(address: SocketAddr, path: &str, count: usize) -> usize {
    let mut client = Client::connect(address);
    let mut admitted = 0;
    for _ in 0..count {
        let response = client.exchange(request("GET", path, &[], b"")).unwrap();
        match response.status {
            200 => admitted += 1,
            429 => {}
            other => panic!("{other}: {}", response.text()),
        }
    }
    admitted
}

#[test]
fn a_client_that_waits_as_long_as_it_is_told_is_admitted() {
    let gateway = Gateway::start(&route(
        "login",
        "/login",
        "{ rate_limit = { by = 'address', limits = [{ rate = '6/50s', burst = 3 }] } }",
    ));
    let address = gateway.http();
    for left in [2, 1, 0] {
        let response = get(address, "/login");
        assert_eq!(response.status, 200);
        assert_eq!(response.header("ratelimit-policy"), Some("\"6/50s\";q=6;w=50"));
        assert!(response.header("ratelimit").unwrap().starts_with(&format!("\"6/50s\";r={left};t=")), "{response:?}");
    }
    let response = get(address, "/login");
    assert_eq!((response.status, response.code().as_str()), (429, "rate_limited"));
    assert_eq!(response.json()["limit"], "6/50s");
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    let told: u64 = response.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=9).contains(&told), "{told}");
    assert_eq!(response.header("ratelimit"), Some(format!("\"6/50s\";r=0;t={told}").as_str()));
    std::thread::sleep(Duration::from_secs(told));
    assert_eq!(get(address, "/login").status, 200);
    gateway.logged("the refusal", |line| line["status"] == 429 && line["rejection"] == "rate_limited");
    let decisions = |decision| {
        gateway.metric("gatewright_limit_decisions_total", &[("route", "login"), ("limit", "6/50s"), ("decision", decision)])
    };
    assert_eq!((decisions("allowed"), decisions("refused")), (4.0, 1.0));
}

#[test]
fn a_reload_keeps_the_counts_of_limits_that_mean_the_same() {
    let with = |number: u32, more: &str| {
        format!(
            "{}{more}",
            route("a", "/a", &format!("{{ rate_limit = {{ by = 'route', limits = [{{ rate = '{number}/1h' }}] }} }}"))
        )
    };
    let gateway = Gateway::start(&with(5, ""));
    assert_eq!(admitted(gateway.http(), "/a", 10), 5);
    gateway.reload_with(&with(5, &route("b", "/b", "{ response_headers = { set = { x-a = '1' } } }"))).unwrap();
    assert_eq!(admitted(gateway.http(), "/a", 10), 0, "another route's change gave the limit back");
    gateway.reload_with(&with(8, "")).unwrap();
    assert_eq!(admitted(gateway.http(), "/a", 10), 3, "a higher number gives the difference");
}

#[test]
fn filters_count_apart_unless_they_share_a_name() {
    let limit = |name: &str| format!("{{ rate_limit = {{ by = 'address', limits = [{{ rate = '3/1h' }}]{name} }} }}");
    let mut config = route("a", "/a", &limit("")) + &route("b", "/b", &limit(""));
    config += &(route("c", "/c", &limit(", name = 'both'")) + &route("d", "/d", &limit(", name = 'both'")));
    let gateway = Gateway::start(&config);
    let address = gateway.http();
    assert_eq!((admitted(address, "/a", 5), admitted(address, "/b", 5)), (3, 3));
    assert_eq!((admitted(address, "/c", 2), admitted(address, "/d", 5)), (2, 1));
}

#[test]
fn the_global_limit_holds_for_all_routes_together() {
    let config = format!("[limits]\nglobal = \"20/1h\"\n{}", route("a", "/a", "{ response_headers = { set = { x-a = '1' } } }"));
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.http());
    let statuses: Vec<u16> =
        (0..30).map(|n| client.exchange(request("GET", ["/a", "/none"][n % 2], &[], b"")).unwrap().status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 10, "{statuses:?}");
    assert_eq!(gateway.metric("gatewright_limit_global_refused_total", &[]), 10.0);
}

#[test]
fn no_more_requests_are_under_way_than_may_and_the_queue_lets_the_next_in() {
    let origin = Origin::start("app");
    let mut config = everything_to(&[&origin], "");
    config.push_str("filters = [{ concurrency = { by = 'route', most = 2, queue = { size = 1, timeout = '10s' } } }]\n");
    let gateway = Gateway::start(&config);
    let address = gateway.http();
    let gate = Gate::default();
    origin.answer(held_by(&gate));
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(address)).collect();
    for client in &mut clients {
        client.send(request("GET", "/slow", &[], b""));
    }
    let waiting = || gateway.metric("gatewright_limit_waiting", &[("route", "all")]);
    eventually("two have places and one waits", SOON, || origin.count() == 2 && waiting() == 1.0);
    let refused = get(address, "/x");
    assert_eq!((refused.status, refused.code().as_str()), (429, "concurrency_limited"));
    assert!(refused.header("retry-after").is_some());
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
    eventually("places are given back", SOON, || get(address, "/x").status == 200);
    assert_eq!(waiting(), 0.0);
}

fn with_redis(redis: &Redis, more: &str, on_error: &str) -> String {
    let filter = |lease: &str| {
        format!(
            "{{ rate_limit = {{ by = 'header:x-key', limits = [{{ rate = '50/1h' }}, {{ quota = '1000/1d' }}], store = 'redis', on_error = '{on_error}'{lease} }} }}"
        )
    };
    let routes = route("a", "/a", &filter("")) + &route("leased", "/leased", &filter(", lease = 4"));
    format!("[redis]\nurl = \"{}\"\n{more}\n{routes}", redis.url())
}

fn wait_redis(gateway: &Gateway, up: bool) {
    eventually(&format!("redis up = {up}"), SOON, || gateway.metric("gatewright_redis_up", &[]) == f64::from(u8::from(up)));
}

/// One request with this key.
#[track_caller]
fn keyed(client: &mut Client, key: &str) -> u16 {
    client.exchange(request("GET", "/a", &[("x-key", key)], b"")).unwrap_or_else(|broken| panic!("{broken}")).status
}

#[test]
fn two_gateways_count_together_in_redis() {
    let redis = Redis::start();
    let config = with_redis(&redis, "timeout = \"1s\"", "closed");
    let gateways = [Gateway::start(&config), Gateway::start(&config)];
    gateways.iter().for_each(|gateway| wait_redis(gateway, true));
    let mut clients: Vec<Client> = gateways.iter().map(|gateway| Client::connect(gateway.http())).collect();
    let statuses: Vec<u16> = (0..80)
        .map(|n| {
            // The counts stay, and either gateway finds out by itself that the script is gone.
            if n == 20 || n == 41 {
                assert_eq!(redis.ask("SCRIPT FLUSH").unwrap(), "+OK");
            }
            keyed(&mut clients[n % 2], "k")
        })
        .collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 50, "{statuses:?}");
    for gateway in &gateways {
        assert_eq!(gateway.metric("gatewright_redis_state_changes_total", &[("state", "down")]), 0.0, "Redis was never away");
    }
    assert!(statuses[50..].iter().all(|status| *status == 429), "{statuses:?}");
    let refused = clients[0].exchange(request("GET", "/a", &[("x-key", "k")], b"")).unwrap();
    // 72 seconds from the first of these requests.
    let wait = refused.header("retry-after").unwrap();
    assert_eq!(refused.json()["limit"], "50/1h");
    assert!(wait.parse().is_ok_and(|wait: u32| (40..=72).contains(&wait)), "{wait}");
    let told = refused.header("ratelimit").unwrap();
    assert!(told.starts_with(&format!("\"50/1h\";r=0;t={wait}, \"1000/1d\";r=950;t=")), "{told}");
    assert_eq!(keyed(&mut clients[0], "other"), 200);
}

/// Four gateways at full speed against the simplest oracle: what one bucket has given in that time.
#[test]
fn four_gateways_together_admit_what_one_bucket_would() {
    let _alone = exclusive();
    let redis = Redis::start();
    let filter =
        "{ rate_limit = { by = 'route', limits = [{ rate = '200/1s', burst = 100 }], store = 'redis', on_error = 'closed' } }";
    // One connection for each, however much it carries.
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nkeepalive_requests = 0\n";
    let config = format!("[redis]\nurl = \"{}\"\ntimeout = \"1s\"\n{listener}{}", redis.url(), route("a", "/a", filter));
    let gateways: Vec<Gateway> = (0..4).map(|_| Gateway::start(&config)).collect();
    gateways.iter().for_each(|gateway| wait_redis(gateway, true));
    let addresses: Vec<SocketAddr> = gateways.iter().map(Gateway::http).collect();
    let (count, begun) = (AtomicUsize::new(0), Instant::now());
    let full = std::sync::OnceLock::new();
    let ends: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let workers: Vec<_> = addresses
            .iter()
            .map(|address| {
                let (count, full) = (&count, &full);
                scope.spawn(move || {
                    let mut client = Client::connect(*address);
                    loop {
                        let sent = Instant::now();
                        match client.exchange(request("GET", "/a", &[], b"")).unwrap().status {
                            200 => drop(count.fetch_add(1, Ordering::SeqCst)),
                            429 => drop(full.get_or_init(|| begun.elapsed())),
                            other => panic!("{other}"),
                        }
                        if begun.elapsed() > Duration::from_secs(5) {
                            return (sent, Instant::now());
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let admitted = count.into_inner() as f64;
    let longest = ends.iter().map(|(_, end)| end.duration_since(begun)).max().unwrap().as_secs_f64();
    let shortest = ends.iter().map(|(sent, _)| sent.duration_since(begun)).min().unwrap().as_secs_f64();
    assert!(admitted <= 100.0 + 200.0 * longest + 1.0, "{admitted} in {longest} s");
    // Until the burst is used up the bucket may be full and gain nothing; from the first refusal on it gains all the time.
    let full = full.get().expect("a refusal").as_secs_f64();
    assert!(
        admitted >= (100.0 + 200.0 * (shortest - full)) * 0.999 - 1.0,
        "{admitted} in {shortest} s, {full} s to the first refusal"
    );
}

/// The script in Redis and the code here are two writings of the same algorithms.
#[test]
fn redis_and_the_local_store_tell_the_same() {
    let redis = Redis::start();
    let limits = "[{ rate = '5/8s', algorithm = 'sliding_window' }, { rate = '7/20s', burst = 6 }, { quota = '100/1m' }, { quota = '100/1h' }, \
                  { quota = '100/1d' }, { quota = '100/1mo' }]";
    let filter = |store: &str| {
        format!("{{ rate_limit = {{ by = 'address', limits = {limits}, store = '{store}', on_error = 'closed' }} }}")
    };
    let config = format!("[redis]\nurl = \"{}\"\ntimeout = \"1s\"\n", redis.url());
    let gateway =
        Gateway::start(&(config + &route("here", "/here", &filter("local")) + &route("there", "/there", &filter("redis"))));
    wait_redis(&gateway, true);
    let address = gateway.http();
    let told = |path: &str| {
        let response = get(address, path);
        let numbers: Vec<(String, i64)> = response
            .header("ratelimit")
            .unwrap()
            .split(", ")
            .map(|limit| {
                let (left, reset) = limit.split_once(";t=").unwrap();
                (left.to_owned(), reset.parse().unwrap())
            })
            .collect();
        (response.status, numbers)
    };
    for round in 0..8 {
        let ((status, here), (other, there)) = (told("/here"), told("/there"));
        assert_eq!(status, other, "round {round}");
        assert_eq!(status, if round < 5 { 200 } else { 429 }, "round {round}");
        for ((left, reset), (their_left, their_reset)) in here.iter().zip(&there) {
            let near_border = *reset <= 2 || *their_reset <= 2;
            assert!(near_border || (left == their_left && (reset - their_reset).abs() <= 1), "round {round}: {here:?} {there:?}");
        }
    }
    let wait = get(address, "/there").header("retry-after").unwrap().parse().unwrap();
    assert!((1..=9).contains(&wait), "{wait}");
    std::thread::sleep(Duration::from_secs(wait));
    assert_eq!(told("/there").0, 200, "the sliding window in Redis gave nothing back");
}

#[test]
fn limits_of_the_tier_hold_for_the_consumer_and_not_for_the_rest() {
    let key = |consumer: &str, tier: &str, digest: &str| {
        format!("[consumers.{consumer}]\n{tier}credentials = [{{ api_key = {{ sha256 = \"{digest}\" }} }}]\n")
    };
    // The hashes of "password" and "123456", which no test needs to keep secret.
    let config = format!(
        "[tiers.free]\nlimits = [{{ rate = \"2/1h\" }}]\n[tiers.gold]\nlimits = [{{ rate = \"5/1h\" }}]\n{}{}{}",
        key("acme", "tier = \"gold\"\n", "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"),
        key("none", "", "8d969eef6ecad3c29a3a629280e686cf0c3f5d5a86aff3ca12020c923adc6c92"),
        route("a", "/a", "{ api_key = {} }, { rate_limit = { by = 'consumer', limits = 'tier' } }"),
    );
    let gateway = Gateway::start(&config);
    let ask = |key: &str| send(gateway.http(), "GET", "/a", &[("x-api-key", key)], b"");
    let admitted = (0..8).filter(|_| ask("password").status == 200).count();
    assert_eq!(admitted, 5);
    let refused = ask("123456");
    assert_eq!((refused.status, refused.code().as_str()), (403, "tier_missing"));
}

#[test]
fn many_requests_share_a_round_trip() {
    let redis = Redis::start();
    let gateway = Gateway::start(&with_redis(&redis, "timeout = \"1s\"", "closed"));
    wait_redis(&gateway, true);
    let address = gateway.http();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            scope.spawn(move || {
                let mut client = Client::connect(address);
                (0..50).for_each(|n| assert_eq!(keyed(&mut client, &format!("{thread}-{n}")), 200));
            });
        }
    });
    let count = |name| gateway.metric(name, &[]);
    let (decisions, pipelines) = (count("gatewright_redis_decisions_total"), count("gatewright_redis_pipelines_total"));
    assert_eq!(decisions, 800.0);
    assert!(pipelines < decisions, "{decisions} decisions in {pipelines} pipelines");
}

#[test]
fn closed_means_503_and_open_means_200_while_redis_is_away() {
    let mut redis = Redis::start();
    for (on_error, status) in [("closed", 503), ("open", 200)] {
        redis.restart();
        let gateway = Gateway::start(&with_redis(&redis, "", on_error));
        wait_redis(&gateway, true);
        redis.kill();
        wait_redis(&gateway, false);
        let response = send(gateway.http(), "GET", "/a", &[("x-key", "k")], b"");
        assert_eq!(response.status, status, "{on_error}");
        if status == 503 {
            assert_eq!(response.code(), "limit_unavailable");
            assert!(response.header("retry-after").is_some());
        }
    }
}

#[test]
fn alone_a_gateway_admits_its_share_and_redis_is_told_afterwards() {
    let mut redis = Redis::start();
    // However long Redis takes, it decides: what is decided here meanwhile is told to it once more.
    let config = with_redis(&redis, "gateways = 2\ntimeout = \"1s\"", "local");
    let gateways = [Gateway::start(&config), Gateway::start(&config)];
    gateways.iter().for_each(|gateway| wait_redis(gateway, true));
    redis.kill();
    gateways.iter().for_each(|gateway| wait_redis(gateway, false));
    let mut clients: Vec<Client> = gateways.iter().map(|gateway| Client::connect(gateway.http())).collect();
    let first: Vec<u16> = (0..40).map(|_| keyed(&mut clients[0], "k")).collect();
    let alone = first.iter().filter(|status| **status == 200).count();
    assert_eq!(alone, 25, "the share of one of two");
    assert!(first.iter().all(|status| matches!(status, 200 | 429)), "{first:?}");
    redis.restart();
    gateways.iter().for_each(|gateway| wait_redis(gateway, true));
    let left = (0..60).filter(|_| keyed(&mut clients[1], "k") == 200).count();
    assert_eq!(left, 50 - alone, "what was spent meanwhile was forgotten");
}

/// Everything that can befall Redis, under load: no request gets a 5xx, and once the breaker is open none waits.
#[test]
fn whatever_befalls_redis_no_client_gets_an_error() {
    let _alone = exclusive();
    let mut redis = Redis::start();
    let gateway = Gateway::start(&with_redis(&redis, "", "local"));
    wait_redis(&gateway, true);
    let rounds = crate::redis_topologies::rounds(5);
    let times = crate::redis_topologies::under_load(&gateway, |away, progress| {
        for _ in 0..rounds {
            redis.ask("SCRIPT FLUSH").unwrap();
            progress("requests after SCRIPT FLUSH");
            redis.ask("FLUSHALL").unwrap();
            progress("requests after FLUSHALL");
            redis.freeze();
            wait_redis(&gateway, false);
            away.store(true, Ordering::SeqCst);
            progress("requests while Redis is frozen");
            away.store(false, Ordering::SeqCst);
            redis.thaw();
            wait_redis(&gateway, true);
            redis.kill();
            wait_redis(&gateway, false);
            away.store(true, Ordering::SeqCst);
            progress("requests while Redis is dead");
            away.store(false, Ordering::SeqCst);
            redis.restart();
            wait_redis(&gateway, true);
            progress("requests with Redis back");
        }
    });
    let changes = |state| gateway.metric("gatewright_redis_state_changes_total", &[("state", state)]);
    assert!(
        changes("down") >= 2.0 * rounds as f64 && changes("up") > changes("down"),
        "{} down, {} up",
        changes("down"),
        changes("up")
    );
    let logged = gateway.stderr();
    let told = logged.lines().filter(|line| line.contains("Redis is away")).count();
    assert_eq!(told as f64, changes("down"), "one line for each outage\n{logged}");
    let told = logged.lines().filter(|line| line.contains("Redis is reachable")).count();
    assert_eq!(told as f64, changes("up"), "one line for each recovery\n{logged}");
    assert!(gateway.metric("gatewright_redis_leased_total", &[]) > 0.0, "nothing was leased");
    assert!(times.away.len() > 100 * rounds, "{} requests without Redis", times.away.len());
    crate::redis_topologies::told("SCRIPT FLUSH, FLUSHALL, SIGSTOP, kill -9", rounds, times);
}
