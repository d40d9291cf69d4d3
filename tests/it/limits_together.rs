//! Several filters that count on one route: what a later one refuses, the earlier ones have not counted, wherever they count.

use crate::limits_kinds::held_by;
use crate::support::raw::{Client, request};
use crate::support::redis::Redis;
use crate::support::{Gate, Gateway, Origin, SOON, eventually, everything_to};
use std::net::SocketAddr;

/// All requests together at most 10, each key at most 3, in stores of their own.
fn filters(first: &str, second: &str) -> String {
    format!(
        "{{ rate_limit = {{ by = 'address', limits = [{{ rate = '10/1h' }}, {{ quota = '1000/1mo' }}, \
         {{ rate = '500/1h', algorithm = 'sliding_window' }}]{first} }} }}, \
         {{ rate_limit = {{ by = 'header:x-key', limits = [{{ rate = '3/1h' }}]{second} }} }}"
    )
}

fn route(filters: &str) -> String {
    format!("[routes.a]\nmatch = {{ path = \"/a\" }}\nfilters = [{filters}, {{ respond = {{ body = \"hello\" }} }}]\n")
}

fn ask(client: &mut Client, key: &str) -> (u16, String, String) {
    let response = client.exchange(request("GET", "/a", &[("x-key", key)], b"")).unwrap();
    let limit = response.header_all("ratelimit").join(", ");
    match response.status {
        200 => (200, String::new(), limit),
        other => (other, response.json()["limit"].as_str().unwrap_or_default().to_owned(), limit),
    }
}

/// 3 of each key, whoever is refused in between, until the first limit has admitted its 10.
#[track_caller]
fn what_the_second_refuses_the_first_has_not_counted(address: SocketAddr) {
    let mut client = Client::connect(address);
    for (key, expected) in [("a", 3), ("b", 3), ("c", 3), ("d", 1)] {
        let mut admitted = 0;
        for _ in 0..20 {
            let (status, limit, told) = ask(&mut client, key);
            match (status, limit.as_str()) {
                (200, _) => admitted += 1,
                (429, "3/1h") => {
                    let most = if key == "c" { "r=1;" } else { "" };
                    assert!(told.contains(&format!("\"10/1h\";{most}")) && told.contains("\"3/1h\";r=0;"), "{key}: {told}");
                }
                (429, "10/1h") => assert_eq!(key, "d", "the first has counted what the second has refused: {told}"),
                other => panic!("{key}: {other:?}"),
            }
        }
        assert_eq!(admitted, expected, "{key}");
    }
    let (_, _, told) = ask(&mut client, "d");
    assert!(told.contains("\"1000/1mo\";r=990;") && told.contains("\"500/1h\";r=490;"), "{told}");
}

#[test]
fn limits_of_several_filters_count_a_refused_request_nowhere() {
    let gateway = Gateway::start(&route(&filters("", "")));
    what_the_second_refuses_the_first_has_not_counted(gateway.http());
}

fn shared(redis: &Redis, filters: &str) -> Gateway {
    let text = format!("[redis]\nurl = \"{}\"\ntimeout = \"1s\"\n{}", redis.url(), route(filters));
    let gateway = Gateway::start(&text);
    eventually("redis is up", SOON, || gateway.metric("gatewright_redis_up", &[]) == 1.0);
    gateway
}

#[test]
fn limits_of_several_filters_count_a_refused_request_nowhere_in_redis() {
    let redis = Redis::start();
    let store = ", store = 'redis', on_error = 'closed'";
    let gateway = shared(&redis, &filters(store, store));
    what_the_second_refuses_the_first_has_not_counted(gateway.http());
}

#[test]
fn limits_of_several_filters_count_a_refused_request_nowhere_whatever_their_stores() {
    let redis = Redis::start();
    let gateway = shared(&redis, &filters(", store = 'redis', on_error = 'closed'", ""));
    what_the_second_refuses_the_first_has_not_counted(gateway.http());
    let gateway = shared(&redis, &filters("", ", store = 'redis', on_error = 'closed', name = 'other'"));
    what_the_second_refuses_the_first_has_not_counted(gateway.http());
}

#[test]
fn a_lease_takes_back_what_a_later_limit_refuses() {
    let redis = Redis::start();
    let gateway = shared(&redis, &filters(", store = 'redis', on_error = 'closed', lease = 4", ""));
    what_the_second_refuses_the_first_has_not_counted(gateway.http());
}

/// Decided alone, and told to Redis afterwards as it was.
#[test]
fn what_a_later_limit_refuses_while_redis_is_away_is_neither_counted_nor_owed() {
    let mut redis = Redis::start();
    let gateway = shared(&redis, &filters(", store = 'redis'", ""));
    redis.kill();
    eventually("redis is down", SOON, || gateway.metric("gatewright_redis_up", &[]) == 0.0);
    let mut client = Client::connect(gateway.http());
    let admitted = (0..20).filter(|_| ask(&mut client, "a").0 == 200).count();
    assert_eq!(admitted, 3);
    redis.restart();
    eventually("redis is up", SOON, || gateway.metric("gatewright_redis_up", &[]) == 1.0);
    let (status, _, told) = ask(&mut client, "b");
    assert_eq!(status, 200);
    assert!(told.contains("\"10/1h\";r=6;") && told.contains("\"1000/1mo\";r=996;"), "{told}");
}

#[test]
fn what_is_refused_because_too_much_is_under_way_is_counted_by_no_rate() {
    let origin = Origin::start("app");
    let mut config = everything_to(&[&origin], "");
    config.push_str(
        "filters = [{ rate_limit = { by = 'address', limits = [{ rate = '20/1h' }] } }, { concurrency = { by = 'route', most = 1 } }]\n",
    );
    let gateway = Gateway::start(&config);
    let gate = Gate::default();
    origin.answer(held_by(&gate));
    let mut slow = Client::connect(gateway.http());
    slow.send(request("GET", "/slow", &[], b""));
    eventually("one under way", SOON, || origin.count() == 1);
    let mut client = Client::connect(gateway.http());
    for _ in 0..10 {
        let refused = client.exchange(request("GET", "/x", &[], b"")).unwrap();
        assert_eq!((refused.status, refused.code().as_str()), (429, "concurrency_limited"));
        assert!(refused.header("ratelimit").unwrap().starts_with("\"20/1h\";r=19;"), "{refused:?}");
    }
    gate.open();
    assert_eq!(slow.response().status, 200);
    // The place is given back after the answer.
    eventually("a place", SOON, || {
        let response = client.exchange(request("GET", "/x", &[], b"")).unwrap();
        let left = if response.status == 200 { "r=18;t" } else { "r=19;t" };
        assert_eq!(&response.header("ratelimit").unwrap()[8..14], left);
        response.status == 200
    });
}

/// What anything but a limit refuses has been counted: an address that guesses credentials uses its limit up.
#[test]
fn what_authentication_refuses_is_counted() {
    let digest = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8";
    let gateway = Gateway::start(&format!(
        "[consumers.acme]\ncredentials = [{{ api_key = {{ sha256 = \"{digest}\" }} }}]\n{}",
        route(
            "{ rate_limit = { by = 'address', limits = [{ rate = '5/1h' }] } }, { api_key = {} }, \
             { rate_limit = { by = 'consumer', limits = [{ rate = '2/1h' }] } }"
        )
    ));
    let mut client = Client::connect(gateway.http());
    let mut status = |key| client.exchange(request("GET", "/a", &[("x-api-key", key)], b"")).unwrap().status;
    let statuses: Vec<u16> =
        ["wrong", "password", "password", "password", "password", "wrong", "wrong", "password"].map(&mut status).into();
    assert_eq!(statuses, [401, 200, 200, 429, 429, 401, 401, 429]);
}
