//! Where a route sends its requests besides its upstream: splits, fallbacks, mirrors. And health checks that ask elsewhere.

use crate::support::h2::H2Origin;
use crate::support::raw::{Client, get, refusing_port, request, send};
use crate::support::{Answer, Gateway, Load, Origin, SOON, eventually, upstream};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const HEALTH: &str = "health = { path = \"/health\", interval = \"100ms\", timeout = \"90ms\", rise = 1, fall = 1 }";

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
fn health_is_asked_on_a_port_of_its_own() {
    let (service, status) = (Origin::start("a"), Origin::start("status"));
    let health = format!(
        "health = {{ path = \"/health\", port = {}, interval = \"100ms\", timeout = \"90ms\", rise = 1, fall = 1 }}",
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
        "[upstreams.app]\nprotocol = \"h2c\"\nendpoints = [\"{}\"]\nhealth = {{ grpc = \"orders.v1.Orders\", interval = \"100ms\", timeout = \"90ms\" }}\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n",
        origin.address
    );
    let gateway = Gateway::start(&toml);
    gateway.wait_healthy(origin.address, false);
    assert!(gateway.endpoint(origin.address)["check"]["error"].is_string());
}
