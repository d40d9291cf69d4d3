//! What a client is told when it is refused is true: whoever waits so long is admitted, whatever the limit is, and wherever it is
//! counted.

use crate::support::raw::{Client, request};
use crate::support::redis::Redis;
use crate::support::{Gateway, SOON, eventually};
use std::time::{Duration, SystemTime};

fn route(name: &str, limits: &str, more: &str) -> String {
    format!(
        "[routes.{name}]\nmatch = {{ path = \"/{name}\" }}\nfilters = [{{ rate_limit = {{ by = 'route', limits = {limits}{more} }} }}, \
         {{ respond = {{ body = \"hello\" }} }}]\n"
    )
}

fn start(redis: &Redis, routes: &str) -> Gateway {
    let gateway = Gateway::start(&format!("[redis]\nurl = \"{}\"\ntimeout = \"1s\"\n{routes}", redis.url()));
    eventually("redis is up", SOON, || gateway.metric("gatewright_redis_up", &[]) == 1.0);
    gateway
}

/// Asks until it is refused; what it is told then, in seconds, and by which limit.
#[track_caller]
fn refused(client: &mut Client, path: &str) -> (u64, String) {
    for _ in 0..100 {
        let response = client.exchange(request("GET", path, &[], b"")).unwrap();
        if response.status == 429 {
            let wait = response.header("retry-after").unwrap().parse().unwrap();
            return (wait, response.json()["limit"].as_str().unwrap().to_owned());
        }
        assert_eq!(response.status, 200);
    }
    panic!("{path}: never refused");
}

/// Waits as it was told, and is admitted; `rounds` times.
fn waits_and_is_admitted(gateway: &Gateway, path: &str, rounds: usize) -> Vec<String> {
    let mut client = Client::connect(gateway.http());
    let told = (0..rounds).map(|round| {
        let (wait, limit) = refused(&mut client, path);
        std::thread::sleep(Duration::from_secs(wait));
        let status = client.exchange(request("GET", path, &[], b"")).unwrap().status;
        assert_eq!(status, 200, "{path}, round {round}: not admitted after {wait} s, by {limit}");
        limit
    });
    told.collect()
}

#[test]
fn a_client_that_waits_is_admitted_whatever_refused_it() {
    let redis = Redis::start();
    let store = ", store = 'redis', on_error = 'closed'";
    let lease = format!("{store}, lease = 4");
    let both = "[{ rate = '4/2s', burst = 2 }, { rate = '5/6s', algorithm = 'sliding_window' }]";
    let routes = [
        route("local_both", both, ""),
        route("both", both, store),
        route("leased", "[{ rate = '10/5s', burst = 8 }]", &lease),
        route("leased_sliding", "[{ rate = '12/3s', algorithm = 'sliding_window' }]", &lease),
        route("leased_both", both, &format!("{store}, lease = 2")),
        route("local_quota", "[{ quota = '3/1m' }, { rate = '100/1h' }]", ""),
        route("quota", "[{ quota = '3/1m' }, { rate = '100/1h' }]", store),
        route("leased_quota", "[{ quota = '6/1m' }]", &lease),
    ]
    .concat();
    let gateway = start(&redis, &routes);
    std::thread::scope(|scope| {
        for path in ["/local_both", "/both"] {
            let gateway = &gateway;
            scope.spawn(move || {
                let limits = waits_and_is_admitted(gateway, path, 4);
                // Both of them have been in the way, and what was told was the longer of the two.
                for name in ["4/2s", "5/6s"] {
                    assert!(limits.iter().any(|limit| limit == name), "{path}: {limits:?}");
                }
            });
        }
        for (path, rounds) in [
            ("/leased", 4),
            ("/leased_sliding", 4),
            ("/leased_both", 3),
            ("/local_quota", 1),
            ("/quota", 1),
            ("/leased_quota", 1),
        ] {
            let gateway = &gateway;
            scope.spawn(move || waits_and_is_admitted(gateway, path, rounds));
        }
    });
}

/// Four gateways share what they cannot count together: each tells the wait of its own share, and has room for the dearest request.
#[test]
fn a_client_that_waits_is_admitted_while_redis_is_away() {
    let mut redis = Redis::start();
    let store = ", store = 'redis'";
    let routes = [
        route("bucket", "[{ rate = '8/2s' }]", store),
        route("sliding", "[{ rate = '8/2s', algorithm = 'sliding_window' }]", store),
        route("both", "[{ rate = '8/2s' }, { rate = '12/3s', algorithm = 'sliding_window' }]", store),
        route("dear", "[{ rate = '8/2s' }]", &format!("{store}, cost = {{ GET = 3 }}")),
        route("leased", "[{ rate = '8/2s' }]", &format!("{store}, lease = 2")),
    ]
    .concat();
    let gateway = start(&redis, &format!("gateways = 4\n{routes}"));
    redis.kill();
    eventually("redis is down", SOON, || gateway.metric("gatewright_redis_up", &[]) == 0.0);
    let gateway = &gateway;
    std::thread::scope(|scope| {
        for path in ["/bucket", "/sliding", "/both", "/dear", "/leased"] {
            scope.spawn(move || waits_and_is_admitted(gateway, path, 3));
        }
    });
    assert_eq!(gateway.metric("gatewright_redis_up", &[]), 0.0, "it was away all the time");
}

#[test]
fn a_quota_tells_the_end_of_its_period() {
    let redis = Redis::start();
    let routes = [
        route("here", "[{ quota = '1/1h' }]", ""),
        route("there", "[{ quota = '1/1h' }]", ", store = 'redis', on_error = 'closed'"),
    ]
    .concat();
    let gateway = start(&redis, &routes);
    let mut client = Client::connect(gateway.http());
    for path in ["/here", "/there"] {
        let left = || 3_600 - SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() % 3_600;
        let before = left();
        let (told, limit) = refused(&mut client, path);
        let after = left();
        // The hour may end in between.
        let near = told.abs_diff(before) <= 1 || told.abs_diff(after) <= 1;
        assert!(near && limit == "1/1h", "{path}: {told}, {before} to {after} are left");
    }
}

/// As few in as long as can be written, and as many in as short a time, in both stores.
#[test]
fn the_ends_of_what_can_be_configured_are_told_as_they_are() {
    let redis = Redis::start();
    let stores = [("here", ""), ("there", ", store = 'redis', on_error = 'closed'")];
    let limits = [
        ("year", "[{ rate = '1/365d', burst = 0 }]"),
        ("fast", "[{ rate = '1_000_000_000/1ms' }]"),
        ("many", "[{ rate = '1_000_000_000_000/365d' }]"),
        ("window", "[{ rate = '1/365d', algorithm = 'sliding_window' }]"),
    ];
    let routes = stores
        .iter()
        .flat_map(|(store, more)| limits.iter().map(move |(name, limits)| route(&format!("{store}_{name}"), limits, more)));
    let gateway = start(&redis, &routes.collect::<String>());
    let mut client = Client::connect(gateway.http());
    for (store, _) in stores {
        let (wait, _) = refused(&mut client, &format!("/{store}_year"));
        assert!((31_535_990..=31_536_000).contains(&wait), "{store}: {wait}");
        // A sliding window keeps a use up to a fifteenth longer.
        let (wait, _) = refused(&mut client, &format!("/{store}_window"));
        assert!((31_535_990..=31_536_000 / 15 * 16).contains(&wait), "{store}: {wait}");
        for n in 1..=5_u64 {
            let mut told = |path: &str| {
                let response = client.exchange(request("GET", path, &[], b"")).unwrap();
                assert_eq!(response.status, 200, "{path}");
                response.header("ratelimit").unwrap().to_owned()
            };
            let left = told(&format!("/{store}_fast"));
            assert!(left.contains(";r=999999999;") || left.contains(";r=1000000000;"), "{store}: {left}");
            // One comes back every 32 us, so that no more than one is missing.
            let left = told(&format!("/{store}_many"));
            assert!(left.contains(";r=999999999999;"), "{store}, {n}: {left}");
        }
    }
}

/// The old fields have room for one limit: that which is nearest to its end.
#[test]
fn the_old_fields_tell_of_the_limit_that_is_nearest_to_its_end() {
    let redis = Redis::start();
    // So slow that nothing comes back in between, however busy the machine is.
    let limits = "[{ rate = '4/120s', burst = 4 }, { rate = '100/24h', burst = 6 }]";
    let routes = [
        route("legacy", limits, ", headers = 'legacy'"),
        route("both", limits, ", headers = 'both', store = 'redis', on_error = 'closed'"),
    ]
    .concat();
    let gateway = start(&redis, &routes);
    let mut client = Client::connect(gateway.http());
    for path in ["/legacy", "/both"] {
        for (status, left) in [(200, "3"), (200, "2"), (200, "1"), (200, "0"), (429, "0")] {
            let response = client.exchange(request("GET", path, &[], b"")).unwrap();
            let field = |name: &str| response.header(name).unwrap_or_else(|| panic!("{path}: no {name}: {response:?}"));
            assert_eq!(
                (response.status, field("x-ratelimit-limit"), field("x-ratelimit-remaining")),
                (status, "4", left),
                "{path}"
            );
            // A use comes back every thirty seconds.
            let reset: u64 = field("x-ratelimit-reset").parse().unwrap();
            assert!((1..=30).contains(&reset), "{path}: {reset}");
            if status == 429 {
                assert_eq!(response.header("retry-after"), Some(field("x-ratelimit-reset")), "{path}");
            }
            assert_eq!(response.header("ratelimit").is_some(), path == "/both", "{path}");
        }
    }
}
