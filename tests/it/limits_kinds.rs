//! Limits of every kind: failed authentications, costs that are known afterwards, tiers with multipliers and exceptions, shields,
//! estimates, gRPC; and what operators see and do.

use crate::support::gateway::run;
use crate::support::h2::{H2Client, H2Origin, grpc};
use crate::support::raw::{Client, get, request, send};
use crate::support::redis::Redis;
use crate::support::tokens::Signer;
use crate::support::{Answer, Gate, Gateway, Origin, SOON, Script, eventually, everything_to, runtime, upstream};
use std::time::Duration;

const PASSWORD: &str = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8";
const DIGITS: &str = "8d969eef6ecad3c29a3a629280e686cf0c3f5d5a86aff3ca12020c923adc6c92";

fn consumer(name: &str, digest: &str, more: &str) -> String {
    format!("[consumers.{name}]\n{more}credentials = [{{ api_key = {{ sha256 = \"{digest}\" }} }}]\n")
}

fn route(name: &str, filters: &str) -> String {
    format!("[routes.{name}]\nmatch = {{ path = \"/{name}\" }}\nfilters = [{filters}, {{ respond = {{ body = \"hello\" }} }}]\n")
}

fn failures(redis: &str, store: &str) {
    let limit = format!(
        "{{ rate_limit = {{ on = 'auth_failure', by = 'address', limits = [{{ rate = '3/1h' }}]{store} }} }}, {{ api_key = {{}} }}"
    );
    let gateway = Gateway::start(&(redis.to_owned() + &consumer("acme", PASSWORD, "") + &route("a", &limit)));
    if !redis.is_empty() {
        eventually("redis is up", SOON, || gateway.metric("gatewright_redis_up", &[]) == 1.0);
    }
    let ask = |key: &str| send(gateway.http(), "GET", "/a", &[("x-api-key", key)], b"");
    for _ in 0..6 {
        assert_eq!(ask("password").status, 200, "what succeeds is not counted");
        assert_eq!(get(gateway.http(), "/a").status, 401, "nor is what tries nothing");
    }
    for n in 0..3 {
        assert_eq!((n, ask("wrong").status), (n, 401));
    }
    eventually("the address is locked out", SOON, || {
        let refused = ask("password");
        if refused.status == 200 {
            return false;
        }
        assert_eq!((refused.status, refused.code().as_str()), (429, "rate_limited"));
        let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1_000..=1_200).contains(&wait), "{wait}");
        true
    });
}

#[test]
fn failed_authentications_are_limited_and_good_ones_are_not() {
    failures("", "");
}

#[test]
fn failed_authentications_are_limited_by_all_gateways_together() {
    let redis = Redis::start();
    failures(&format!("[redis]\nurl = \"{}\"\ntimeout = \"1s\"\n", redis.url()), ", store = 'redis', on_error = 'closed'");
}

#[test]
fn a_login_that_the_upstream_refuses_is_a_failed_authentication() {
    let origin = Origin::start("app");
    let mut config = everything_to(&[&origin], "");
    config.push_str("filters = [{ rate_limit = { on = 'auth_failure', by = 'address', limits = [{ rate = '2/1h' }] } }]\n");
    let gateway = Gateway::start(&config);
    assert_eq!((0..4).filter(|_| get(gateway.http(), "/login").status == 200).count(), 4);
    origin.answer(Answer::Status(401));
    let statuses: Vec<u16> = (0..4).map(|_| get(gateway.http(), "/login").status).collect();
    assert_eq!(statuses, [401, 401, 429, 429]);
}

fn costs(redis: &str, store: &str) {
    let origin = Origin::start("app");
    let mut config = redis.to_owned() + &everything_to(&[&origin], "");
    config.push_str(&format!(
        "filters = [{{ rate_limit = {{ by = 'route', limits = [{{ rate = '20/1h' }}], cost = {{ POST = 2 }}, cost_header = 'X-Cost'{store} }} }}]\n"
    ));
    let gateway = Gateway::start(&config);
    if !redis.is_empty() {
        eventually("redis is up", SOON, || gateway.metric("gatewright_redis_up", &[]) == 1.0);
    }
    let left = || {
        let told = run(&["limit", "--admin", &gateway.admin.argument(), "--json", "show", "all"]);
        let document: serde_json::Value = serde_json::from_str(&told.stdout).unwrap_or_else(|_| panic!("{told:?}"));
        document["limits"][0]["limits"][0]["remaining"].as_u64().unwrap()
    };
    let says = |cost: &str| {
        origin.answer(Answer::Bytes(format!("HTTP/1.1 200 OK\r\nx-cost: {cost}\r\ncontent-length: 0\r\n\r\n").into_bytes()));
    };
    says("7");
    let response = get(gateway.http(), "/a");
    assert_eq!((response.status, response.header("x-cost")), (200, None), "the header is the gateway's business");
    eventually("7 in all are charged", SOON, || left() == 13);
    says("1");
    assert_eq!(send(gateway.http(), "POST", "/a", &[], b"").status, 200);
    eventually("less than it cost is not given back", SOON, || left() == 11);
    says("nonsense");
    get(gateway.http(), "/a");
    eventually("nonsense is the cost that was taken", SOON, || left() == 10);
    says("1000000");
    get(gateway.http(), "/a");
    eventually("no more is charged than there is", SOON, || left() == 0);
    assert_eq!(get(gateway.http(), "/a").status, 429);
}

#[test]
fn the_upstream_says_afterwards_what_a_request_has_cost() {
    costs("", "");
}

#[test]
fn the_upstream_says_afterwards_what_a_request_has_cost_in_redis() {
    let redis = Redis::start();
    costs(&format!("[redis]\nurl = \"{}\"\ntimeout = \"1s\"\n", redis.url()), ", store = 'redis', on_error = 'closed'");
}

#[test]
fn tiers_are_multiplied_by_route_and_consumers_have_their_own_limits() {
    let tiered = |more: &str| format!("{{ api_key = {{}} }}, {{ rate_limit = {{ by = 'consumer', limits = 'tier'{more} }} }}");
    let config = format!(
        "[tiers.free]\nlimits = [{{ rate = \"4/1h\" }}, {{ quota = \"1000/1mo\" }}]\n{}{}{}{}",
        consumer("plain", PASSWORD, "tier = \"free\"\n"),
        consumer("special", DIGITS, "tier = \"free\"\nlimits = [{ rate = \"6/1h\" }]\n"),
        route("a", &tiered("")),
        route("b", &tiered(", multiply = 0.5")),
    );
    let gateway = Gateway::start(&config);
    let admitted = |path: &str, key: &str| {
        (0..10).filter(|_| send(gateway.http(), "GET", path, &[("x-api-key", key)], b"").status == 200).count()
    };
    assert_eq!((admitted("/a", "password"), admitted("/b", "password")), (4, 2));
    assert_eq!((admitted("/a", "123456"), admitted("/b", "123456")), (6, 3));
}

#[test]
fn callers_are_counted_by_a_claim_inside_another() {
    let secret = "0123456789abcdef0123456789abcdef";
    let limit = "{ jwt = { issuer = 'main' } }, { rate_limit = { by = 'claim:realm_access.org', limits = [{ rate = '2/1h' }] } }";
    let config = format!("[jwt.main]\nalgorithms = ['HS256']\nsecret = {{ file = 'secret' }}\n{}", route("a", limit));
    let gateway = Gateway::try_start_with(&config, |dir| std::fs::write(dir.join("secret"), secret).unwrap()).unwrap();
    let signer = Signer::hs256("k", secret.as_bytes());
    let statuses = |claims: serde_json::Value| {
        let mut all = serde_json::json!({ "sub": "alice", "exp": 4_102_444_800_u64 });
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        let token = format!("Bearer {}", signer.token(&all));
        let ask = |_| send(gateway.http(), "GET", "/a", &[("authorization", &token)], b"").status;
        (0..3).map(ask).collect::<Vec<u16>>()
    };
    let of = |org: serde_json::Value| serde_json::json!({ "realm_access": { "org": org } });
    for org in [of("acme".into()), of("zenith".into()), of(7.into()), serde_json::json!({})] {
        assert_eq!(statuses(org.clone()), [200, 200, 429], "{org}");
    }
    assert_eq!(statuses(serde_json::json!({ "org": "acme" })), [429, 429, 429], "who lacks it shares one count");
    let shown = run(&["limit", "--admin", &gateway.admin.argument(), "show", "a", "claim:realm_access.org=acme"]);
    assert!(shown.stdout.contains("t:acme") && shown.stdout.contains("0 left (limit 2)"), "{shown:?}");
    let number = |verb| run(&["limit", "--admin", &gateway.admin.argument(), verb, "a", "claim:realm_access.org:=7"]);
    let shown = number("show");
    assert!(shown.stdout.contains("j:7") && shown.stdout.contains("0 left (limit 2)"), "{shown:?}");
    assert_eq!(number("reset").code, Some(0));
    assert_eq!(statuses(of(7.into())), [200, 200, 429], "it was not reset");
}

#[test]
fn a_listener_has_a_shield_of_its_own() {
    let config = format!(
        "[listeners.http]\naddress = \"127.0.0.1:0\"\nmax_requests = \"20/1h\"\n[listeners.other]\naddress = \"127.0.0.1:0\"\n{}",
        route("a", "{ response_headers = { set = { x-a = '1' } } }")
    );
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.http());
    let statuses: Vec<u16> = (0..30).map(|_| client.exchange(request("GET", "/a", &[], b"")).unwrap().status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 10, "{statuses:?}");
    assert_eq!(get(gateway.address("other"), "/a").status, 200);
    assert_eq!(gateway.metric("gatewright_listener_requests_refused_total", &[("listener", "http")]), 10.0);
}

/// A request to `/slow` is answered when the gate is open, any other at once.
pub fn held_by(gate: &Gate) -> Answer {
    let gate = gate.clone();
    Answer::Script(Script(std::sync::Arc::new(move |request| {
        if request.request_line().contains(" /slow ") {
            gate.pass();
        }
        Some(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())
    })))
}

#[test]
fn an_estimate_of_requests_under_way_refuses_what_is_too_much() {
    let origin = Origin::start("app");
    let mut config = everything_to(&[&origin], "");
    config.push_str("filters = [{ concurrency = { by = 'route', most = 2, count = 'estimate' } }]\n");
    let gateway = Gateway::start(&config);
    let gate = Gate::default();
    origin.answer(held_by(&gate));
    let mut clients: Vec<Client> = (0..2).map(|_| Client::connect(gateway.http())).collect();
    for client in &mut clients {
        client.send(request("GET", "/slow", &[], b""));
    }
    eventually("two under way", SOON, || origin.count() == 2);
    assert_eq!(get(gateway.http(), "/x").code(), "concurrency_limited");
    gate.open();
    clients.iter_mut().for_each(|client| assert_eq!(client.response().status, 200));
    eventually("places are given back", SOON, || get(gateway.http(), "/x").status == 200);
}

/// A request to `/slow` has the only place, for a minute; one to `/x`, whose route has these lines more, is refused before that, after
/// `wait` at the earliest.
fn waits_no_longer_than(wait: Duration, queue: &str, more: &str) {
    let origin = Origin::start("app");
    origin.answer(Answer::BlackHole);
    let route = |name: &str, more: &str| {
        format!(
            "[routes.{name}]\nmatch = {{ path = \"/{name}\" }}\nupstream = \"app\"\n{more}\nfilters = [{{ concurrency = {{ by = 'address', \
             most = 1, name = 'both', queue = {{ size = 5, timeout = '{queue}' }} }} }}]\n"
        )
    };
    let slow = route("slow", "timeouts = { request = \"60s\" }");
    let gateway =
        Gateway::start(&[upstream("app", &[&origin], "timeouts = { read = \"60s\" }"), slow, route("x", more)].concat());
    let mut first = Client::connect(gateway.http());
    first.send(request("GET", "/slow", &[], b""));
    eventually("the first has its place", SOON, || origin.count() == 1);
    let begun = std::time::Instant::now();
    let refused = get(gateway.http(), "/x");
    assert_eq!((refused.status, refused.code().as_str()), (429, "concurrency_limited"));
    assert!(begun.elapsed() >= wait, "it waited only {:?}", begun.elapsed());
    let slow = gateway.metric("gatewright_http_requests_in_flight", &[("route", "slow")]);
    assert_eq!((slow, origin.count()), (1.0, 1), "it waited as long as there was no place");
}

#[test]
fn a_request_waits_for_a_place_no_longer_than_it_may_last() {
    waits_no_longer_than(Duration::from_millis(690), "60s", "timeouts = { request = \"700ms\" }");
}

#[test]
fn a_request_waits_for_a_place_no_longer_than_its_queue_lets_it() {
    waits_no_longer_than(Duration::from_millis(300), "300ms", "");
}

#[test]
fn a_grpc_call_over_its_limit_is_told_when_to_try_again() {
    let origin = H2Origin::plain();
    let cleartext = "[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n";
    let limited = origin.everything("protocol = \"h2c\"")
        + "filters = [{ rate_limit = { by = 'address', limits = [{ rate = '1/1h' }] } }]\n";
    let gateway = Gateway::start(&(cleartext.to_owned() + &limited));
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let first = client.call(grpc("Unary"), &[b"\0\0\0\0\x02hi"]).await.unwrap();
        assert_eq!(first.trailer("grpc-status"), Some("0"));
        let refused = client.call(grpc("Unary"), &[b"\0\0\0\0\x02hi"]).await.unwrap();
        assert_eq!((refused.status.as_u16(), refused.header("grpc-status")), (200, Some("8")), "{refused:?}");
        let details = refused.header("grpc-status-details-bin").expect("details");
        use base64::Engine as _;
        let details = base64::engine::general_purpose::STANDARD_NO_PAD.decode(details).unwrap();
        let text = String::from_utf8_lossy(&details).into_owned();
        assert!(text.contains("type.googleapis.com/google.rpc.RetryInfo"), "{text:?}");
        // After the name: field 2, RetryInfo; in it field 1, Duration; in it field 1, seconds, a varint of two bytes.
        let name = b"google.rpc.RetryInfo";
        let at = details.windows(name.len()).position(|window| window == name).unwrap() + name.len();
        let [0x12, _, 0x0a, _, 0x08, low, high, ..] = details[at..] else { panic!("{details:x?}") };
        let seconds = u64::from(low & 0x7f) | u64::from(high) << 7;
        assert!((3_500..=3_600).contains(&seconds), "{seconds} of {details:x?}");
    });
}

#[test]
fn operators_see_a_key_reset_it_and_find_who_is_refused_most() {
    let redis = Redis::start();
    let limit = |store: &str| {
        format!("{{ rate_limit = {{ by = ['address', 'header:x-app'], limits = [{{ rate = '3/1h' }}], store = '{store}' }} }}")
    };
    let config = format!(
        "[redis]\nurl = \"{}\"\ntimeout = \"1s\"\n{}{}",
        redis.url(),
        route("here", &limit("local")),
        route("there", &limit("redis"))
    );
    let gateway = Gateway::start(&config);
    eventually("redis is up", SOON, || gateway.metric("gatewright_redis_up", &[]) == 1.0);
    let admin = gateway.admin.argument();
    let limit = |words: &[&str]| run(&[&["limit", "--admin", &admin], words].concat());
    let ask = |path: &str| send(gateway.http(), "GET", path, &[("x-app", "mine")], b"").status;
    for (route, path) in [("here", "/here"), ("there", "/there")] {
        assert_eq!((0..8).map(|_| ask(path)).filter(|status| *status == 429).count(), 5);
        let facts = [route, "address=127.0.0.1", "header:x-app=mine"];
        let shown = limit(&[&["show"], &facts[..]].concat());
        assert_eq!(shown.code, Some(0), "{shown:?}");
        assert!(
            shown.stdout.contains("a:127.0.0.1|h:mine")
                && shown.stdout.contains("3/1h")
                && shown.stdout.contains("0 left (limit 3)"),
            "{shown:?}"
        );
        let reset = limit(&[&["reset"], &facts[..]].concat());
        assert!(reset.stdout.contains("3 left (limit 3)"), "{reset:?}");
        assert_eq!(ask(path), 200);
    }
    let top = limit(&["top", "--count", "1"]);
    assert_eq!(top.stdout.lines().count(), 1);
    let line: Vec<&str> = top.stdout.split_whitespace().collect();
    assert_eq!((line[0], line[2], line[3]), ("5", "3/1h", "a:127.0.0.1|h:mine"));
    for (words, why) in [
        (&["show", "nowhere"][..], "there is no route `nowhere`"),
        (&["show", "here"][..], "give address="),
        (&["show", "here", "colour=red"][..], "`colour` is no fact"),
        (&["show", "here", "address=red"][..], "`red` is not an address"),
    ] {
        let said = limit(words);
        assert!(said.code == Some(1) && said.stderr.contains(why), "{said:?}");
    }
}

/// Wherever it counts, and while it cannot count: what a shadow would have refused is told to operators, and to nobody else.
#[test]
fn a_shadow_counts_and_reports_in_redis_too_and_refuses_nothing() {
    let mut redis = Redis::start();
    let limit =
        |more: &str| format!("{{ rate_limit = {{ by = 'header:x-app', limits = [{{ rate = '4/1h' }}], shadow = true{more} }} }}");
    let asked = ", store = 'redis', on_error = 'closed'";
    let names = ["here", "there", "leased"];
    let config = format!(
        "[redis]\nurl = \"{}\"\ntimeout = \"1s\"\n{}{}{}",
        redis.url(),
        route(names[0], &limit("")),
        route(names[1], &limit(asked)),
        route(names[2], &limit(&format!("{asked}, lease = 2"))),
    );
    let gateway = Gateway::start(&config);
    eventually("redis is up", SOON, || gateway.metric("gatewright_redis_up", &[]) == 1.0);
    let admin = gateway.admin.argument();
    let silent = |name: &str| {
        let response = send(gateway.http(), "GET", &format!("/{name}"), &[("x-app", "mine")], b"");
        let told = response.header("ratelimit").or(response.header("ratelimit-policy")).or(response.header("retry-after"));
        assert_eq!((response.status, told), (200, None), "{name}");
    };
    let decided = |name: &str| {
        ["allowed", "shadowed", "refused"].map(|decision| {
            let labels = [("route", name), ("limit", "4/1h"), ("decision", decision)];
            gateway.metric("gatewright_limit_decisions_total", &labels)
        })
    };
    for name in names {
        (0..9).for_each(|_| silent(name));
        assert_eq!(decided(name), [4.0, 5.0, 0.0], "{name}");
        let shown = run(&["limit", "--admin", &admin, "show", name, "header:x-app=mine"]);
        assert!(shown.stdout.contains("h:mine") && shown.stdout.contains("0 left (limit 4)"), "{name}: {shown:?}");
    }
    let top = gateway.admin.get("/limits/top").text();
    assert!(!top.contains("h:mine"), "nobody was refused: {top}");
    redis.kill();
    eventually("redis is down", SOON, || gateway.metric("gatewright_redis_up", &[]) == 0.0);
    let before = decided("there");
    silent("there");
    assert_eq!(decided("there"), [before[0] + 1.0, before[1], before[2]], "without Redis nothing can be told of it");
}

#[test]
fn check_tells_what_a_lease_means() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.toml");
    let limit = "{ rate_limit = { by = 'route', limits = [{ rate = '600/1m' }], store = 'redis', lease = '2%' } }";
    let text = format!(
        "[redis]\nurl = \"redis://127.0.0.1:1\"\ngateways = 4\n[listeners.a]\naddress = \"127.0.0.1:0\"\n{}",
        route("a", limit)
    );
    std::fs::write(&file, text).unwrap();
    let checked = run(&["check", "-c", file.to_str().unwrap()]);
    assert!(
        checked.stdout.contains(
            "lease: route `a`, limit `600/1m`: overshoot 0; each gateway holds at most 12 of 600, 4 of them at most 48 (8.0 %)"
        ),
        "{checked:?}"
    );
}
