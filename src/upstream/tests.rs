//! Tests of upstreams as a whole, and what the tests of the parts build them with.

use super::*;
use crate::clock::{ManualClock, SystemClock};
use health::CheckError;
use std::collections::HashMap;

pub(super) fn config(text: &str) -> UpstreamConfig {
    toml::from_str(text).unwrap()
}

/// An upstream with a state of its own.
pub(super) fn upstream(text: &str) -> Arc<Upstream> {
    build(text, &StatePool::new())
}

pub(super) fn build(text: &str, pool: &Arc<StatePool>) -> Arc<Upstream> {
    let clock: SharedClock = Arc::new(SystemClock);
    Upstream::build("orders", &config(text), Beside::default(), pool, &clock)
}

fn addresses(list: &[&str]) -> Vec<SocketAddr> {
    list.iter().map(|address| address.parse().unwrap()).collect()
}

/// The ports of the next `picks` choices, when nothing was tried before.
fn picks(upstream: &Upstream, picks: usize) -> Vec<u16> {
    (0..picks).map(|_| upstream.select(&Tried::new()).unwrap().address().port()).collect()
}

fn check(upstream: &Upstream, at: usize, result: Result<(), CheckError>) -> Option<bool> {
    let endpoints = upstream.endpoints();
    endpoints[at].health().unwrap().record(result.map(|()| Duration::from_millis(3)), &upstream.tuning().unwrap())
}

const DOWN: Result<(), CheckError> = Err(CheckError::Refused);

#[test]
fn selection_follows_smooth_weighted_round_robin() {
    let upstream = upstream(
        "endpoints = [{ address = '127.0.0.1:5', weight = 50 }, { address = '127.0.0.1:1', weight = 10 },
         { address = '127.0.0.1:2', weight = 10 }, { address = '127.0.0.1:9', weight = 0 }]",
    );
    assert_eq!(picks(&upstream, 14), [5, 5, 1, 5, 2, 5, 5, 5, 5, 1, 5, 2, 5, 5]);
    assert_eq!(upstream.available(), 3);
}

#[test]
fn concurrent_selection_is_exactly_proportional() {
    let upstream = upstream("endpoints = ['127.0.0.1:1', { address = '127.0.0.1:2', weight = 3 }]");
    let counts: HashMap<u16, usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| picks(&upstream, 1000))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).fold(HashMap::new(), |mut counts, port| {
            *counts.entry(port).or_default() += 1;
            counts
        })
    });
    assert_eq!(counts, HashMap::from([(1, 1000), (2, 3000)]));
}

#[test]
fn tried_endpoints_are_passed_over_until_none_is_left() {
    let upstream = upstream("endpoints = ['127.0.0.1:1', '127.0.0.1:2', '127.0.0.1:3']");
    let mut tried = Tried::new();
    let mut seen = Vec::new();
    while let Some(endpoint) = upstream.select(&tried) {
        tried.add(&endpoint);
        seen.push(endpoint.address().port());
    }
    seen.sort_unstable();
    assert_eq!((seen, tried.len()), (vec![1, 2, 3], 3));
}

#[test]
fn a_reload_goes_on_with_the_next_endpoint() {
    let pool = StatePool::new();
    let text = "endpoints = ['127.0.0.1:1', '127.0.0.1:2', '127.0.0.1:3']";
    let before = build(text, &pool);
    assert_eq!(picks(&before, 1), [1]);
    let after = build(text, &pool);
    assert_eq!(picks(&after, 3), [2, 3, 1]);
}

const CHECKED: &str =
    "endpoints = ['127.0.0.1:1', '127.0.0.1:2', { address = '127.0.0.1:3', weight = 0 }]\nhealth = { path = '/' }";

#[test]
fn unhealthy_endpoints_take_no_turns() {
    let upstream = upstream(CHECKED);
    assert_eq!(picks(&upstream, 2), [1, 2]);
    assert_eq!(check(&upstream, 0, DOWN), Some(false));
    assert_eq!((picks(&upstream, 2), upstream.available()), (vec![2, 2], 1));
    assert_eq!(check(&upstream, 0, Ok(())), Some(true));
    assert_eq!(picks(&upstream, 4).iter().filter(|port| **port == 1).count(), 2);
}

#[test]
fn all_down_rejects_or_tries_all_but_the_drained() {
    let pool = StatePool::new();
    let reject = build(CHECKED, &pool);
    let try_all = build(&format!("{CHECKED}\nwhen_all_down = 'try_all'"), &pool);
    for at in 0..3 {
        check(&reject, at, DOWN);
    }
    assert!(reject.select(&Tried::new()).is_none());
    let mut ports = picks(&try_all, 4);
    ports.sort_unstable();
    assert_eq!(ports, [1, 1, 2, 2]);
    assert_eq!(try_all.available(), 0);
}

#[test]
fn retry_after_is_the_time_to_the_next_check() {
    let clock = ManualClock::new();
    let shared: SharedClock = clock.clone();
    let upstream = Upstream::build("orders", &config(CHECKED), Beside::default(), &StatePool::new(), &shared);
    for (at, wait) in [(0, 5), (1, 4), (2, 2)] {
        check(&upstream, at, DOWN);
        upstream.endpoints()[at].health().unwrap().expect_next(Duration::from_secs(wait));
    }
    clock.advance(Duration::from_secs(1));
    assert_eq!(upstream.retry_after(), Duration::from_secs(3), "the drained endpoint does not count");
    clock.advance(Duration::from_secs(10));
    assert_eq!(upstream.retry_after(), Duration::from_secs(1), "never zero");
}

#[test]
fn a_changed_weight_keeps_health_and_counters() {
    let pool = StatePool::new();
    let before = build(CHECKED, &pool);
    check(&before, 0, DOWN);
    drop(before.endpoints()[0].clone().begin());
    let after = build(&CHECKED.replace("'127.0.0.1:1'", "{ address = '127.0.0.1:1', weight = 7 }"), &pool);
    let endpoint = &after.endpoints()[0];
    assert_eq!((endpoint.weight(), endpoint.is_healthy(), endpoint.state().requests()), (7, false, 1));
    assert_eq!(picks(&after, 2), [2, 2]);
}

#[test]
fn changed_intervals_keep_health_and_another_path_finds_out_anew() {
    let pool = StatePool::new();
    let before = build(CHECKED, &pool);
    check(&before, 0, DOWN);
    drop(before.endpoints()[0].clone().begin());
    let tuned = build(&CHECKED.replace("path = '/'", "path = '/', interval = '9s', fall = 9"), &pool);
    assert!(!tuned.endpoints()[0].is_healthy());
    let other = build(&CHECKED.replace("path = '/'", "path = '/other'"), &pool);
    assert!(other.endpoints()[0].is_healthy());
    assert_eq!(other.endpoints()[0].state().requests(), 1, "requests are counted on");
}

#[test]
fn snapshots_still_in_use_follow_health_as_well() {
    let pool = StatePool::new();
    let before = build(CHECKED, &pool);
    let after = build(CHECKED, &pool);
    check(&after, 1, DOWN);
    assert_eq!((picks(&before, 2), picks(&after, 2)), (vec![1, 1], vec![1, 1]));
}

#[test]
fn upstreams_that_share_an_address_share_no_state() {
    let pool = StatePool::new();
    let clock: SharedClock = Arc::new(SystemClock);
    let [a, b] = ["a", "b"].map(|name| Upstream::build(name, &config(CHECKED), Beside::default(), &pool, &clock));
    check(&a, 0, DOWN);
    assert!(!a.endpoints()[0].is_healthy() && b.endpoints()[0].is_healthy());
}

#[test]
fn simultaneous_changes_of_health_lose_none() {
    let list: Vec<String> = (1..=64).map(|port| format!("'127.0.0.1:{port}'")).collect();
    let upstream = upstream(&format!("endpoints = [{}]\nhealth = {{ tcp = true }}", list.join(",")));
    std::thread::scope(|scope| {
        for half in 0..2 {
            let upstream = &upstream;
            scope.spawn(move || {
                for at in (0..64).filter(|at| at % 2 == half && *at != 10) {
                    assert_eq!(check(upstream, at, DOWN), Some(false));
                }
            });
        }
    });
    assert_eq!((upstream.available(), picks(&upstream, 1)), (1, vec![11]));
}

#[test]
fn attempts_are_counted_in_and_out() {
    let upstream = upstream("endpoints = ['127.0.0.1:1']");
    let attempt = upstream.select(&Tried::new()).unwrap().begin();
    assert_eq!((attempt.state().in_flight(), attempt.state().requests()), (1, 1));
    attempt.state().count_connect_failure();
    attempt.state().count_error();
    let endpoint = attempt.endpoint().clone();
    drop(attempt);
    let state = endpoint.state();
    assert_eq!((state.in_flight(), state.requests(), state.connect_failures(), state.errors()), (0, 1, 1, 1));
}

#[test]
fn no_more_attempts_may_pool_at_once_than_connections_may_idle() {
    let upstream = upstream("endpoints = ['127.0.0.1:1']\nkeepalive = { connections = 2 }");
    let begin = || upstream.select(&Tried::new()).unwrap().begin();
    let (first, second, third) = (begin(), begin(), begin());
    assert_eq!([&first, &second, &third].map(|attempt| attempt.may_pool()), [true, true, false]);
    drop(third);
    assert!(!begin().may_pool(), "one that may not pool frees no place");
    drop(first);
    assert!(begin().may_pool());

    let never = build("endpoints = ['127.0.0.1:1']\nkeepalive = { connections = 0 }", &StatePool::new());
    assert!(!never.select(&Tried::new()).unwrap().begin().may_pool());
}

const NAMED: &str = "endpoints = [{ address = 'a.test:80', weight = 2 }, 'b.test:80']\nhealth = { tcp = true }";

fn answer(upstream: &Upstream, at: usize, list: &[&str]) -> bool {
    upstream.names().nth(at).unwrap().record(Ok(addresses(list)))
}

fn found(upstream: &Upstream) -> Vec<String> {
    upstream.endpoints().iter().map(|e| format!("{} {} {}", e.address(), e.written(), e.weight())).collect()
}

#[test]
fn names_bring_endpoints_when_they_resolve() {
    let upstream = upstream(NAMED);
    assert!(upstream.select(&Tried::new()).is_none());
    assert_eq!(upstream.retry_after(), Duration::from_secs(1));
    assert!(answer(&upstream, 0, &["10.0.0.2:0", "10.0.0.1:0"]));
    assert!(answer(&upstream, 1, &["[::1]:0"]));
    assert_eq!(found(&upstream), ["10.0.0.1:80 a.test:80 2", "10.0.0.2:80 a.test:80 2", "[::1]:80 b.test:80 1"]);
    assert_eq!(upstream.available(), 3);
}

#[test]
fn a_changed_answer_keeps_the_endpoints_that_stay() {
    let upstream = upstream(NAMED);
    answer(&upstream, 0, &["10.0.0.1:0", "10.0.0.2:0"]);
    check(&upstream, 1, DOWN);
    let stays = upstream.endpoints()[1].clone();
    answer(&upstream, 0, &["10.0.0.2:0", "10.0.0.3:0"]);
    assert_eq!(found(&upstream), ["10.0.0.2:80 a.test:80 2", "10.0.0.3:80 a.test:80 2"]);
    assert!(Arc::ptr_eq(&stays, &upstream.endpoints()[0]) && !stays.is_healthy());
    assert_eq!(upstream.available(), 1);
}

#[test]
fn two_names_of_one_address_are_one_endpoint() {
    let upstream = upstream(NAMED);
    answer(&upstream, 0, &["10.0.0.1:0"]);
    answer(&upstream, 1, &["10.0.0.1:0"]);
    assert_eq!(found(&upstream), ["10.0.0.1:80 a.test:80 2"]);
}

#[test]
fn a_reload_starts_with_the_last_answers() {
    let pool = StatePool::new();
    let before = build(NAMED, &pool);
    answer(&before, 0, &["10.0.0.1:0"]);
    let after = build(NAMED, &pool);
    assert_eq!(found(&after), ["10.0.0.1:80 a.test:80 2"]);
    answer(&after, 0, &["10.0.0.2:0"]);
    assert_eq!(found(&before), found(&after), "a snapshot still in use follows");
}

#[test]
fn state_that_nothing_uses_is_freed() {
    let pool = StatePool::new();
    let upstream = build(NAMED, &pool);
    answer(&upstream, 0, &["10.0.0.1:0"]);
    drop(upstream);
    pool.sweep();
    assert!(pool.live::<NameState>().is_empty() && pool.live::<EndpointState>().is_empty());
    assert!(pool.live::<HealthState>().is_empty() && pool.live::<Turn>().is_empty());
}
