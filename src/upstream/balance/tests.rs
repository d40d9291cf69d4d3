//! Each way of choosing, on upstreams as they are configured.

use super::*;
use crate::clock::{Clock, ManualClock, SharedClock, SystemClock};
use crate::state::StatePool;
use crate::upstream::tests::config;
use crate::upstream::{Beside, CheckError, Upstream};
use crate::value::Secret;
use http::{HeaderMap, HeaderName};
use std::collections::HashMap;
use std::net::IpAddr;

fn build(text: &str) -> Arc<Upstream> {
    build_with(text, &StatePool::new(), Arc::new(SystemClock))
}

fn build_with(text: &str, pool: &Arc<StatePool>, clock: SharedClock) -> Arc<Upstream> {
    let config = config(text);
    let sticky = match &config.balance.value {
        Balance::Sticky(sticky) => Sticky::new(sticky, "orders", &Secret::new("0123456789abcdef")).map(Arc::new),
        _ => None,
    };
    Upstream::build("orders", &config, Beside { sticky, ..Beside::default() }, pool, &clock)
}

/// `count` endpoints on ports from 1 on.
fn endpoints(count: u16) -> String {
    let list: Vec<String> = (1..=count).map(|port| format!("'127.0.0.1:{port}'")).collect();
    format!("endpoints = [{}]\n", list.join(", "))
}

fn pick(upstream: &Upstream) -> u16 {
    upstream.select(&Tried::new()).unwrap().address().port()
}

fn counts(upstream: &Upstream, picks: usize) -> HashMap<u16, usize> {
    (0..picks).map(|_| pick(upstream)).fold(HashMap::new(), |mut counts, port| {
        *counts.entry(port).or_default() += 1;
        counts
    })
}

/// The endpoint of a request with this header.
fn for_header(upstream: &Upstream, name: &'static str, value: &str, tried: &Tried) -> Arc<Endpoint> {
    let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())]);
    let facts = Facts { headers: &headers, query: None, client: IpAddr::from([192, 0, 2, 7]), identity: None };
    upstream.select_for(tried, Some(&facts)).unwrap()
}

fn fail(upstream: &Upstream, at: usize, result: Result<Duration, CheckError>) {
    let endpoints = upstream.endpoints();
    endpoints[at].health().unwrap().record(result, &upstream.tuning().unwrap());
}

#[test]
fn least_requests_finds_the_idle_one_and_takes_turns_among_equals() {
    let upstream = build(&format!("{}balance = 'least_requests'", endpoints(3)));
    assert_eq!((0..6).map(|_| pick(&upstream)).collect::<Vec<_>>(), [1, 2, 3, 1, 2, 3]);
    let busy: Vec<_> = (0..5).map(|_| upstream.select(&Tried::new()).unwrap().begin()).collect();
    let idle: Vec<u16> = upstream.endpoints().iter().filter(|e| e.state().in_flight() == 1).map(|e| e.address().port()).collect();
    assert_eq!(idle.len(), 1);
    assert_eq!([pick(&upstream), pick(&upstream)], [idle[0], idle[0]]);
    drop(busy);
}

#[test]
fn least_requests_counts_relative_to_weight() {
    let upstream = build("endpoints = ['127.0.0.1:1', { address = '127.0.0.1:2', weight = 3 }]\nbalance = 'least_requests'");
    let held: Vec<_> = (0..8).map(|_| upstream.select(&Tried::new()).unwrap().begin()).collect();
    let load: Vec<u32> = upstream.endpoints().iter().map(|endpoint| endpoint.state().in_flight()).collect();
    assert_eq!(load, [2, 6]);
    drop(held);
}

#[test]
fn latency_keeps_requests_away_from_a_slow_endpoint() {
    let clock = ManualClock::new();
    let upstream = build_with(&format!("{}balance = 'peak_ewma'", endpoints(4)), &StatePool::new(), clock.clone());
    for (at, endpoint) in upstream.endpoints().iter().enumerate() {
        endpoint.answered(Duration::from_millis(if at == 2 { 900 } else { 10 }), clock.now());
    }
    assert_eq!(counts(&upstream, 500).get(&3), None, "two different ones are compared, and one of them is always faster");
    // A failure, however fast, counts as a slow answer.
    upstream.endpoints()[0].failed(Duration::from_micros(5), clock.now());
    assert_eq!(counts(&upstream, 500).get(&1).copied().unwrap_or_default(), 500 - counts_of(&upstream, &[2, 3, 4], 500));
    // Nobody asks it, so its past fades until it is worth asking again.
    clock.advance(Duration::from_secs(120));
    for endpoint in upstream.endpoints().iter().filter(|endpoint| endpoint.address().port() != 3) {
        endpoint.answered(Duration::from_millis(10), clock.now());
    }
    assert!(counts(&upstream, 500).contains_key(&3));
}

/// How many picks of those that remain cannot be the first endpoint: all of them, because it is the slowest.
fn counts_of(upstream: &Upstream, ports: &[u16], picks: usize) -> usize {
    let counts = counts(upstream, picks);
    ports.iter().filter_map(|port| counts.get(port)).sum()
}

#[test]
fn random_follows_the_weights() {
    let upstream = build("endpoints = ['127.0.0.1:1', { address = '127.0.0.1:2', weight = 3 }]\nbalance = 'random'");
    let counts = counts(&upstream, 20_000);
    assert!((14_500..15_500).contains(&counts[&2]), "{counts:?}");
}

#[test]
fn a_key_stays_with_its_endpoint_until_that_goes() {
    let text = format!("{}balance = {{ hash = {{ by = ['header:x-user'] }} }}\nhealth = {{ tcp = true }}", endpoints(5));
    let upstream = build(&text);
    let of = |user: usize| for_header(&upstream, "x-user", &user.to_string(), &Tried::new()).address().port();
    let before: Vec<u16> = (0..400).map(of).collect();
    assert_eq!(before, (0..400).map(of).collect::<Vec<_>>());
    fail(&upstream, 1, Err(CheckError::Refused));
    let during: Vec<u16> = (0..400).map(of).collect();
    for (before, during) in before.iter().zip(&during) {
        assert!(before == during || *before == 2, "{before} -> {during}");
    }
    assert!(!during.contains(&2));
    fail(&upstream, 1, Ok(Duration::ZERO));
    assert_eq!(before, (0..400).map(of).collect::<Vec<_>>());
    assert_eq!(
        before,
        (0..400)
            .map(|user| for_header(&build(&text), "x-user", &user.to_string(), &Tried::new()).address().port())
            .collect::<Vec<_>>(),
        "another gateway chooses the same"
    );
}

#[test]
fn requests_without_a_key_are_spread_in_turn() {
    let upstream = build(&format!("{}balance = {{ hash = {{ by = ['header:x-user'] }} }}", endpoints(3)));
    let ports: Vec<u16> = (0..6).map(|_| for_header(&upstream, "x-other", "1", &Tried::new()).address().port()).collect();
    assert_eq!(ports, [1, 2, 3, 1, 2, 3]);
}

#[test]
fn no_endpoint_gets_more_of_a_popular_key_than_the_bound() {
    let upstream = build(&format!("{}balance = {{ hash = {{ by = ['header:x-user'], max_load = 125 }} }}", endpoints(10)));
    let choose = || for_header(&upstream, "x-user", "everybody", &Tried::new());
    let home = choose().address();
    let held: Vec<_> = (0..1000).map(|_| choose().begin()).collect();
    let most = upstream.endpoints().iter().map(|endpoint| endpoint.state().in_flight()).max().unwrap();
    assert!((100..=126).contains(&most), "{most}");
    drop(held);
    assert_eq!(choose().address(), home, "with room again, the key is at home");
}

#[test]
fn a_retry_of_a_key_goes_to_the_next_endpoint_on_the_ring() {
    let upstream = build(&format!("{}balance = {{ hash = {{ by = ['header:x-user'] }} }}", endpoints(3)));
    let mut tried = Tried::new();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let endpoint = for_header(&upstream, "x-user", "ada", &tried);
        tried.add(&endpoint);
        seen.push(endpoint.address().port());
    }
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3]);
    assert!(upstream.select(&tried).is_none());
}

#[test]
fn a_signed_cookie_brings_a_client_back_and_a_forged_one_does_not() {
    let upstream =
        build(&format!("{}balance = {{ sticky = {{ secret = {{ env = 'X' }} }} }}\nhealth = {{ tcp = true }}", endpoints(3)));
    let endpoints = upstream.endpoints();
    let cookie = endpoints[1].cookie().unwrap().plain.to_str().unwrap().split(';').next().unwrap().to_owned();
    for _ in 0..5 {
        assert_eq!(for_header(&upstream, "cookie", &cookie, &Tried::new()).address().port(), 2);
    }
    let forged = format!("{}x", &cookie[..cookie.len() - 1]);
    let ports: Vec<u16> = (0..3).map(|_| for_header(&upstream, "cookie", &forged, &Tried::new()).address().port()).collect();
    assert_eq!(
        {
            let mut sorted = ports.clone();
            sorted.sort_unstable();
            sorted
        },
        [1, 2, 3],
        "spread in turn: {ports:?}"
    );

    let headers = HeaderMap::from_iter([(http::header::COOKIE, cookie.parse().unwrap())]);
    let facts = Facts { headers: &headers, query: None, client: IpAddr::from([192, 0, 2, 7]), identity: None };
    assert_eq!(upstream.cookie_for(&endpoints[1], &facts, false), None, "it knows");
    assert!(upstream.cookie_for(&endpoints[0], &facts, true).unwrap().to_str().unwrap().ends_with("; Secure"));

    fail(&upstream, 1, Err(CheckError::Refused));
    assert_ne!(for_header(&upstream, "cookie", &cookie, &Tried::new()).address().port(), 2);
}

const LEVELS: &str = "endpoints = ['127.0.0.1:1', '127.0.0.1:2', { address = '127.0.0.1:3', priority = 1 },
    { address = '127.0.0.1:4', priority = 2 }]\nhealth = { tcp = true }";

#[test]
fn a_lower_priority_takes_traffic_only_when_the_higher_one_is_gone() {
    for balance in ["'round_robin'", "'least_requests'", "'peak_ewma'", "'random'", "{ hash = { by = ['address'] } }"] {
        let upstream = build(&format!("{LEVELS}\nbalance = {balance}"));
        let ports = |upstream: &Upstream| {
            let mut ports: Vec<u16> = counts(upstream, 100).into_keys().collect();
            ports.sort_unstable();
            ports
        };
        assert_eq!(ports(&upstream), [1, 2], "{balance}");
        fail(&upstream, 0, Err(CheckError::Refused));
        assert_eq!(ports(&upstream), [2], "{balance}");
        fail(&upstream, 1, Err(CheckError::Refused));
        assert_eq!(ports(&upstream), [3], "{balance}");
        fail(&upstream, 2, Err(CheckError::Refused));
        assert_eq!(ports(&upstream), [4], "{balance}");
        fail(&upstream, 1, Ok(Duration::ZERO));
        assert_eq!(ports(&upstream), [2], "{balance}");
    }
}

#[test]
fn a_request_that_has_tried_its_level_goes_on_to_the_next() {
    let upstream = build(LEVELS);
    let mut tried = Tried::new();
    let order: Vec<u16> = std::iter::from_fn(|| {
        let endpoint = upstream.select(&tried)?;
        tried.add(&endpoint);
        Some(endpoint.address().port())
    })
    .collect();
    assert_eq!(order, [1, 2, 3, 4]);
}

#[test]
fn another_zone_serves_while_the_own_one_is_gone() {
    let upstream = build(
        "zone = 'a'\nhealth = { tcp = true }
         endpoints = [{ address = '127.0.0.1:1', zone = 'a' }, { address = '127.0.0.1:2', zone = 'b' }, '127.0.0.1:3',
                      { address = '127.0.0.1:4', zone = 'a', priority = 1 }]",
    );
    assert_eq!(pick(&upstream), 1);
    fail(&upstream, 0, Err(CheckError::Refused));
    let mut ports: Vec<u16> = counts(&upstream, 10).into_keys().collect();
    ports.sort_unstable();
    assert_eq!(ports, [2, 3], "priority comes before zone");
}

#[test]
fn a_recovered_endpoint_gets_its_share_slowly() {
    let clock = ManualClock::new();
    let text = format!("{}slow_start = '10s'\nhealth = {{ tcp = true }}", endpoints(2));
    let upstream = build_with(&text, &StatePool::new(), clock.clone());
    let share = || {
        upstream.rebuild_ring();
        counts(&upstream, 2000).get(&1).copied().unwrap_or_default()
    };
    assert_eq!(share(), 1000, "an upstream does not begin with a slow start");
    fail(&upstream, 0, Err(CheckError::Refused));
    assert_eq!(share(), 0);
    fail(&upstream, 0, Ok(Duration::ZERO));
    let first = share();
    assert!((100..250).contains(&first), "a tenth against a whole: {first}");
    clock.advance(Duration::from_secs(5));
    let half = share();
    assert!((600..730).contains(&half), "a half against a whole: {half}");
    assert!(upstream.is_warming());
    clock.advance(Duration::from_secs(5));
    assert_eq!((share(), upstream.is_warming()), (1000, false));
}

#[test]
fn a_drained_endpoint_takes_nothing_through_reloads_and_comes_back_slowly() {
    let (pool, clock) = (StatePool::new(), ManualClock::new());
    let text = format!("{}slow_start = '10s'\nwhen_all_down = 'try_all'", endpoints(2));
    let before = build_with(&text, &pool, clock.clone());
    assert_eq!(before.set_drained("127.0.0.1:9", true), 0);
    assert_eq!((before.set_drained("127.0.0.1:1", true), before.available()), (1, 1));
    let after = build_with(&text, &pool, clock.clone());
    assert_eq!((counts(&before, 10).get(&1), counts(&after, 10).get(&1)), (None, None));
    assert_eq!(after.set_drained("127.0.0.1:2", true), 1);
    assert!(after.select(&Tried::new()).is_none() && before.select(&Tried::new()).is_none() && after.is_out(), "not even to try");
    after.set_drained("127.0.0.1:2", false);
    clock.advance(Duration::from_secs(20));
    after.set_drained("127.0.0.1:1", false);
    assert!(after.is_warming() && counts(&before, 100)[&1] < 20, "snapshots still in use follow");
}

#[test]
fn no_way_of_choosing_allocates() {
    for balance in [
        "'round_robin'",
        "'least_requests'",
        "'peak_ewma'",
        "'random'",
        "{ hash = { by = ['header:x-user', 'cookie:u'] } }",
        "{ sticky = { secret = { env = 'X' } } }",
    ] {
        let upstream = build(&format!("{}balance = {balance}\nslow_start = '10s'", endpoints(1000)));
        let cookie = upstream.endpoints()[7]
            .cookie()
            .map_or("u=1".to_owned(), |cookie| format!("gatewright_endpoint_orders={}", cookie.value));
        let headers = HeaderMap::from_iter([(http::header::COOKIE, cookie.parse().unwrap())]);
        let facts = Facts { headers: &headers, query: None, client: IpAddr::from([192, 0, 2, 7]), identity: None };
        let choose = || {
            let attempt = upstream.select_for(&Tried::new(), Some(&facts)).unwrap().begin();
            attempt.answered(Duration::from_millis(1), SystemClock.now());
        };
        // The first use of a thread allocates what arc-swap and the random generator keep for it.
        choose();
        let counted = allocation_counter::measure(|| (0..100).for_each(|_| choose()));
        assert_eq!(counted.count_total, 0, "{balance}");
    }
}
