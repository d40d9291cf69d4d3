//! Where a route sends its requests besides its upstream: splits, fallbacks, mirrors. And health checks that ask elsewhere.

use crate::support::h2::H2Origin;
use crate::support::raw::{Client, get, refusing_port, request, send};
use crate::support::service::Service;
use crate::support::{Answer, Gateway, Load, Origin, SOON, eventually, upstream};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const HEALTH: &str = "health = { path = \"/health\", interval = \"1s\", timeout = \"900ms\", rise = 1, fall = 1 }";

/// Two upstreams, `app` and `other`, and a route to the first with `more` lines.
fn two(app: &[&Origin], other: &[&Origin], more: &str) -> String {
    let upstreams = upstream("app", app, HEALTH) + &upstream("other", other, HEALTH);
    format!("{upstreams}\n[routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n{more}\n")
}

fn counts(gateway: &Gateway, requests: usize, headers: &[(&str, &str)]) -> HashMap<String, usize> {
    let mut client = Client::connect(gateway.http());
    (0..requests).fold(HashMap::new(), |mut seen, _| {
        let origin = client.exchange(request("GET", "/", headers, b"")).unwrap().origin();
        *seen.entry(origin).or_default() += 1;
        seen
    })
}

fn only(name: &str, requests: usize) -> HashMap<String, usize> {
    HashMap::from([(name.to_owned(), requests)])
}

#[test]
fn a_canary_gets_its_share_and_who_asks_for_it() {
    let origins = Origin::start_many(2);
    let split = "split = { to = [{ upstream = \"other\", share = \"20%\", headers = { x-canary = \"yes\" }, cookies = { canary = \"*\" } }] }";
    let gateway = Gateway::start(&two(&[&origins[0]], &[&origins[1]], split));
    let seen = counts(&gateway, 1000, &[]);
    let canary = seen.get("b").copied().unwrap_or_default();
    // Binomial: six standard deviations either way.
    assert!((124..=276).contains(&canary), "{seen:?}");
    assert_eq!(counts(&gateway, 10, &[("x-canary", "yes")]), only("b", 10));
    assert_eq!(counts(&gateway, 10, &[("cookie", "canary=whatever")]), only("b", 10));
    let record = gateway.logged("a request of the canary", |line| line["upstream"] == "other");
    assert_eq!(record["route"], "all");
}

#[test]
fn a_client_keeps_its_part_by_a_fact_or_by_a_cookie() {
    let origins = Origin::start_many(2);
    let by = |share: &str| {
        let split = format!(
            "split = {{ to = [{{ upstream = \"other\", share = \"{share}\" }}], keep = {{ by = [\"header:x-user\"] }} }}"
        );
        two(&[&origins[0]], &[&origins[1]], &split)
    };
    let gateway = Gateway::start(&by("30%"));
    let of = |user: usize| send(gateway.http(), "GET", "/", &[("x-user", &user.to_string())], b"").origin();
    let before: Vec<String> = (0..60).map(of).collect();
    assert_eq!(before, (0..60).map(of).collect::<Vec<_>>());
    assert!(before.contains(&"a".to_owned()) && before.contains(&"b".to_owned()));
    gateway.reload_with(&by("60%")).unwrap();
    let after: Vec<String> = (0..60).map(of).collect();
    assert!(before.iter().zip(&after).all(|(before, after)| before == "a" || after == "b"), "a larger share sends nobody back");
    assert_ne!(before, after);

    let split = "split = { to = [{ upstream = \"other\", share = \"50%\" }], keep = { cookie = { name = \"draw\" } } }";
    let gateway = Gateway::start(&two(&[&origins[0]], &[&origins[1]], split));
    for _ in 0..5 {
        let first = get(gateway.http(), "/");
        let given = first.header("set-cookie").expect("a cookie").to_owned();
        assert!(given.contains("; HttpOnly; SameSite=Lax; Max-Age=2592000"), "{given}");
        let cookie = given.split(';').next().unwrap();
        for _ in 0..4 {
            let again = send(gateway.http(), "GET", "/", &[("cookie", cookie)], b"");
            assert_eq!((again.origin(), again.header("set-cookie")), (first.origin(), None));
        }
    }
}

#[test]
fn a_canary_that_is_down_leaves_its_requests_to_the_rest() {
    let origins = Origin::start_many(2);
    let split = "split = { to = [{ upstream = \"other\", share = \"100%\" }] }";
    let gateway = Gateway::start(&two(&[&origins[0]], &[&origins[1]], split));
    assert_eq!(counts(&gateway, 5, &[]), only("b", 5));
    origins[1].set_healthy(false);
    gateway.wait_healthy(origins[1].address(), false);
    assert_eq!(counts(&gateway, 5, &[]), only("a", 5));
}

#[test]
fn the_fallback_takes_over_while_nothing_is_left_and_gives_back() {
    let origins = Origin::start_many(2);
    let gateway = Gateway::start(&two(&[&origins[0]], &[&origins[1]], "fallback = \"other\""));
    assert_eq!(counts(&gateway, 5, &[]), only("a", 5));
    origins[0].set_healthy(false);
    gateway.wait_healthy(origins[0].address(), false);
    assert_eq!(counts(&gateway, 5, &[]), only("b", 5));
    origins[1].set_healthy(false);
    gateway.wait_healthy(origins[1].address(), false);
    assert_eq!(get(gateway.http(), "/").code(), "upstream_unavailable");
    origins[0].set_healthy(true);
    gateway.wait_healthy(origins[0].address(), true);
    assert_eq!(counts(&gateway, 5, &[]), only("a", 5));
}

#[test]
fn the_fallback_takes_what_could_not_connect_whatever_the_method() {
    let origin = Origin::start("b");
    let (refusing, _port) = refusing_port();
    let gateway = Gateway::start(&format!(
        "[upstreams.app]\nendpoints = [\"{refusing}\"]\n{}\n[routes.all]\nmatch = {{ path = \"/\" }}\nupstream = \"app\"\nfallback = \"other\"\n",
        upstream("other", &[&origin], "")
    ));
    let response = send(gateway.http(), "POST", "/", &[], b"once");
    assert_eq!((response.status, response.origin().as_str(), origin.count()), (200, "b", 1));
}

#[test]
fn the_fallback_takes_over_while_a_breaker_is_open() {
    let origins = Origin::start_many(2);
    origins[0].answer(Answer::Status(500));
    let app =
        upstream("app", &[&origins[0]], "breaker = { consecutive_failures = 3, open_for = \"1m\" }\nretry = { attempts = 1 }");
    let toml = app
        + &upstream("other", &[&origins[1]], "")
        + "\n[routes.all]\nmatch = { path = \"/\" }\nupstream = \"app\"\nfallback = \"other\"\n";
    let gateway = Gateway::start(&toml);
    eventually("an open breaker", SOON, || get(gateway.http(), "/").status == 200);
    let before = origins[0].count();
    for _ in 0..5 {
        let response = get(gateway.http(), "/");
        assert_eq!((response.status, response.origin().as_str()), (200, "b"));
    }
    assert_eq!(origins[0].count(), before);
}

#[test]
fn a_fallback_that_is_come_to_late_keeps_to_its_own_limits() {
    let origin = Origin::start("b");
    origin.answer(Answer::BlackHole);
    let (refusing, _port) = refusing_port();
    let gateway = Gateway::start(&format!(
        "[upstreams.app]\nendpoints = [\"{refusing}\"]\n{}\n[routes.all]\nmatch = {{ path = \"/\" }}\nupstream = \"app\"\nfallback = \"other\"\n",
        upstream("other", &[&origin], "overload = { min = 1, max = 1 }")
    ));
    let other = |key: &str| {
        let status = gateway.status();
        let upstreams = status["upstreams"].as_array().unwrap().iter();
        upstreams.clone().find(|upstream| upstream["name"] == "other").unwrap()[key].clone()
    };
    let mut held = Client::connect(gateway.http());
    held.send(request("GET", "/", &[], b""));
    eventually("the fallback has it", SOON, || origin.count() == 1);
    assert_eq!((other("overload")["in_flight"].clone(), other("retry_budget")["requests"].clone()), (1.into(), 1.into()));
    let refused = get(gateway.http(), "/");
    assert_eq!((refused.status, refused.code().as_str(), origin.count()), (503, "upstream_overloaded", 1));
    drop(held);
    eventually("the place is given back", SOON, || other("overload")["in_flight"] == 0);
}

fn is_hit(response: &crate::support::http1::Response) -> bool {
    response.header("cache-status").is_some_and(|said| said.contains("; hit"))
}

#[test]
fn parts_of_a_split_keep_their_stored_answers_apart() {
    let origins = Origin::start_many(2);
    let more = "split = { to = [{ upstream = \"other\", headers = { x-canary = \"yes\" } }] }\ncache = { ttl = \"1h\" }";
    let gateway = Gateway::start(&two(&[&origins[0]], &[&origins[1]], more));
    let canary = [("x-canary", "yes")];
    for (headers, origin) in [(&[][..], "a"), (&canary[..], "b")] {
        let ask = || send(gateway.http(), "GET", "/", headers, b"");
        let (first, second) = (ask(), ask());
        assert_eq!((first.origin().as_str(), is_hit(&first)), (origin, false));
        assert_eq!((second.origin().as_str(), is_hit(&second)), (origin, true));
    }
    assert_eq!((origins[0].count(), origins[1].count()), (1, 1));
    // While the canary is down its answers stay, and what the rest answers instead is kept as well.
    origins[1].set_healthy(false);
    gateway.wait_healthy(origins[1].address(), false);
    assert!(is_hit(&send(gateway.http(), "GET", "/", &canary, b"")));
    for hit in [false, true] {
        let response = send(gateway.http(), "GET", "/new", &canary, b"");
        assert_eq!((response.origin().as_str(), is_hit(&response)), ("a", hit));
    }
}

#[test]
fn a_client_keeps_its_part_of_a_route_whose_answers_are_stored() {
    let origins = Origin::start_many(2);
    let split = "split = { to = [{ upstream = \"other\", share = \"50%\" }], keep = { cookie = { name = \"draw\" } } }";
    let gateway = Gateway::start(&two(&[&origins[0]], &[&origins[1]], &format!("{split}\ncache = {{ ttl = \"1h\" }}")));
    for _ in 0..12 {
        let first = get(gateway.http(), "/");
        let given = first.header("set-cookie").expect("a cookie, stored or not").to_owned();
        let cookie = given.split(';').next().unwrap();
        for _ in 0..3 {
            let again = send(gateway.http(), "GET", "/", &[("cookie", cookie)], b"");
            assert_eq!((again.origin(), again.header("set-cookie")), (first.origin(), None));
        }
    }
    assert!(origins.iter().all(|origin| origin.count() <= 1), "{} {}", origins[0].count(), origins[1].count());
}

fn mirrored(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric("gatewright_mirror_requests_total", &[("route", "all"), ("result", result)])
}

#[test]
fn a_mirror_gets_copies_with_bodies_and_its_answers_are_thrown_away() {
    let origins = Origin::start_many(2);
    let gateway = Gateway::start(&two(&[&origins[0]], &[&origins[1]], "mirror = { upstream = \"other\", max_body = \"1KiB\" }"));
    origins[1].answer(Answer::Status(500));
    let response = send(gateway.http(), "POST", "/orders?id=7", &[("x-user", "ada")], b"the body");
    assert_eq!((response.status, response.origin().as_str()), (200, "a"));
    assert_eq!(get(gateway.http(), "/plain").origin(), "a");
    eventually("two copies", SOON, || origins[1].count() == 2);
    let copies = origins[1].requests();
    let post = copies.iter().find(|copy| copy.request_line().starts_with("POST")).unwrap();
    assert_eq!(post.request_line(), "POST /orders?id=7 HTTP/1.1");
    assert_eq!((post.body.as_slice(), post.header("x-user").as_deref()), (&b"the body"[..], Some("ada")));
    assert_eq!(post.header("host"), origins[0].last().header("host"), "as the upstream got it");
    eventually("two answers", SOON, || mirrored(&gateway, "answered") == 2.0);
    let large = send(gateway.http(), "POST", "/", &[], &[b'x'; 2000]);
    assert_eq!(large.status, 200);
    eventually("a body that is too large", SOON, || mirrored(&gateway, "body") == 1.0);
    assert_eq!(origins[1].count(), 2);
}

#[test]
fn a_request_that_is_sent_again_is_copied_once_and_whole() {
    let origins = Origin::start_many(2);
    let (dead, _dead) = refusing_port();
    // One endpoint refuses the connection, so that the first attempt never gets as far as a head; another breaks off after the body.
    for first in ["refuses", "breaks off"] {
        let breaks = Origin::start("breaks");
        breaks.answer(Answer::ResetBefore);
        let other = if first == "refuses" { dead } else { breaks.address() };
        let toml = format!(
            "[upstreams.app]\nendpoints = [\"{other}\", \"{}\"]\nretry = {{ attempts = 2, on = [\"connect\", \"reset\"] }}\n{}\
             [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\nmirror = {{ upstream = \"other\" }}\n",
            origins[0].address(),
            upstream("other", &[&origins[1]], "")
        );
        let gateway = Gateway::start(&toml);
        let before = origins[1].count();
        // In turn: one of two begins at the endpoint that does not answer.
        for _ in 0..4 {
            assert_eq!(send(gateway.http(), "PUT", "/x", &[], b"the body").status, 200, "{first}");
        }
        eventually("a copy of each", SOON, || origins[1].count() == before + 4);
        assert!(origins[1].requests()[before..].iter().all(|copy| copy.body == b"the body"), "{first}");
    }
}

#[test]
fn a_share_of_the_requests_is_mirrored() {
    let origins = Origin::start_many(2);
    let gateway = Gateway::start(&two(&[&origins[0]], &[&origins[1]], "mirror = { upstream = \"other\", share = \"20%\" }"));
    assert_eq!(counts(&gateway, 500, &[]), only("a", 500));
    eventually("the last copy", SOON, || mirrored(&gateway, "answered") as usize == origins[1].count());
    // Six standard deviations either way.
    assert!((46..=154).contains(&origins[1].count()), "{}", origins[1].count());
}

#[test]
fn a_mirror_that_hangs_never_slows_the_main_path() {
    let origins = Origin::start_many(2);
    let mirror = "mirror = { upstream = \"other\", timeout = \"1m\" }";
    // Not checked: nothing takes it out.
    let toml = upstream("app", &[&origins[0]], "")
        + &upstream("other", &[&origins[1]], "")
        + &format!("\n[routes.all]\nmatch = {{ path = \"/\" }}\nupstream = \"app\"\n{mirror}\n");
    let gateway = Gateway::start(&toml);
    origins[1].answer(Answer::BlackHole);
    let load = Load::get(gateway.http(), "/");
    eventually("copies that are dropped", Duration::from_secs(60), || mirrored(&gateway, "busy") > 10.0);
    let started = Instant::now();
    assert_eq!(get(gateway.http(), "/").status, 200);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    // 128 under way, 1,024 that wait.
    assert!(origins[1].count() <= 128, "{}", origins[1].count());
    load.finish().assert_clean(1_000);
}

#[test]
fn copies_share_connections_by_whatever_protocol() {
    for (protocol, http2) in [("protocol = \"http1\"", false), ("protocol = \"h2c\"", true)] {
        let (origin, copy) = (Origin::start("a"), Service::start("copy", http2, None));
        let gateway = Gateway::start(&format!(
            "{}\n[upstreams.other]\nendpoints = [\"{}\"]\n{protocol}\n[routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n\
             mirror = {{ upstream = \"other\" }}\n",
            upstream("app", &[&origin], ""),
            copy.address
        ));
        for n in 1..=10 {
            let body = format!("copy {n}");
            assert_eq!(send(gateway.http(), "POST", "/orders?id=7", &[], body.as_bytes()).status, 200);
            eventually("the copy", SOON, || mirrored(&gateway, "answered") == f64::from(n));
        }
        let copies = copy.requests();
        for (n, copy) in (1..=10).zip(&copies) {
            assert_eq!((copy.body().as_ref(), copy.method().as_str()), (format!("copy {n}").as_bytes(), "POST"));
            assert_eq!(copy.uri().path_and_query().unwrap(), "/orders?id=7");
            assert_eq!(copy.version() == http::Version::HTTP_2, http2);
        }
        assert_eq!((copies.len(), copy.connections()), (10, 1), "{protocol}");
    }
}

#[test]
fn health_is_asked_by_grpc_and_on_a_port_of_its_own() {
    let (service, status) = (Service::start("a", true, None), Service::start("status", true, None));
    let toml = format!(
        "[upstreams.app]\nprotocol = \"h2c\"\nendpoints = [\"{}\"]\nhealth = {{ grpc = \"orders.v1.Orders\", port = {}, host = \"orders.test\", \
         interval = \"1s\", timeout = \"900ms\", rise = 1, fall = 1 }}\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n",
        service.address,
        status.address.port()
    );
    let gateway = Gateway::start(&toml);
    eventually("a check", SOON, || gateway.endpoint(service.address)["check"]["ok"].as_u64() >= Some(1));
    assert_eq!(get(gateway.http(), "/").text(), "a");
    status.serving(false);
    gateway.wait_healthy(service.address, false);
    assert_eq!(gateway.endpoint(service.address)["check"]["error"], "gRPC serving status 2");
    status.serving(true);
    gateway.wait_healthy(service.address, true);
}

#[test]
fn health_is_asked_on_a_port_of_its_own() {
    let (service, status) = (Origin::start("a"), Origin::start("status"));
    let health = format!(
        "health = {{ path = \"/health\", port = {}, interval = \"1s\", timeout = \"900ms\", rise = 1, fall = 1 }}",
        status.address().port()
    );
    let gateway = Gateway::start(&crate::support::everything_to(&[&service], &health));
    eventually("checks", SOON, || status.health_checks() > 1);
    assert_eq!(get(gateway.http(), "/").origin(), "a");
    status.set_healthy(false);
    gateway.wait_healthy(service.address(), false);
    assert_eq!(service.health_checks(), 0);
}

#[test]
fn an_endpoint_that_speaks_no_health_protocol_is_not_healthy() {
    let origin = H2Origin::plain();
    let toml = format!(
        "[upstreams.app]\nprotocol = \"h2c\"\nendpoints = [\"{}\"]\nhealth = {{ grpc = \"orders.v1.Orders\", interval = \"1s\", timeout = \"900ms\" }}\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n",
        origin.address
    );
    let gateway = Gateway::start(&toml);
    gateway.wait_healthy(origin.address, false);
    assert!(gateway.endpoint(origin.address)["check"]["error"].is_string());
}
