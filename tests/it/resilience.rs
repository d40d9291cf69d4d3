//! Retries, deadlines, breakers, ejection and overload limits: one law a test.

use crate::support::h2::{H2Client, H2Origin, grpc};
use crate::support::raw::{Client, get, request, send};
use crate::support::{Answer, Gateway, Origin, SOON, eventually, everything_to, runtime};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const RETRY_503: &str = "retry = { attempts = 3, on = [\"connect\", \"reset\", \"503\"] }";

fn two(more: &str) -> (Vec<Origin>, Gateway) {
    let origins = Origin::start_many(2);
    let gateway = Gateway::start(&everything_to(&[&origins[0], &origins[1]], more));
    (origins, gateway)
}

fn upstream(gateway: &Gateway) -> serde_json::Value {
    gateway.status()["upstreams"][0].clone()
}

#[test]
fn a_status_that_is_written_is_retried_on_another_endpoint() {
    let (origins, gateway) = two(RETRY_503);
    origins[0].answer(Answer::Status(503));
    let mut client = Client::connect(gateway.http());
    for _ in 0..6 {
        let response = client.exchange(request("GET", "/", &[], b"")).unwrap();
        assert_eq!((response.status, response.origin().as_str()), (200, "b"));
    }
    // The retry takes the turn of b, so that the next request is a's again.
    assert_eq!((origins[0].count(), origins[1].count()), (6, 6));
    gateway.logged("a second attempt", |line| line["attempts"] == 2 && line["status"] == 200);
    assert_eq!(gateway.metric("gatewright_upstream_retries_total", &[("upstream", "app")]), 6.0);
}

#[test]
fn a_post_is_repeated_only_by_its_key_or_by_the_word_of_the_route() {
    let origin = Origin::start("a");
    let toml = everything_to(&[&origin], RETRY_503)
        + "[routes.again]\nmatch = { path = \"/again\" }\nupstream = \"app\"\n\
           retry = { attempts = 2, on = [\"503\"], methods = \"all\" }\n\
           [routes.never]\nmatch = { path = \"/never\" }\nupstream = \"app\"\nretry = { attempts = 1 }\n";
    let gateway = Gateway::start(&toml);
    origin.answer(Answer::Status(503));
    let mut sent = 0;
    for (method, path, headers, times) in [
        ("POST", "/", [].as_slice(), 1),
        ("POST", "/", [("idempotency-key", "\"k1\"")].as_slice(), 3),
        ("PUT", "/", [].as_slice(), 3),
        ("POST", "/again", [].as_slice(), 2),
        ("GET", "/never", [].as_slice(), 1),
    ] {
        let response = send(gateway.http(), method, path, headers, b"the body");
        assert_eq!((response.status, response.json()["body"].as_str()), (503, Some("the body")), "{method} {path}");
        sent += times;
        assert_eq!(origin.count(), sent, "{method} {path} {headers:?}");
    }
    assert!(origin.requests().iter().all(|request| request.body == b"the body"), "bodies are replayed in full");
}

#[test]
fn a_body_that_is_too_long_to_keep_is_not_repeated() {
    let (origins, gateway) = two(RETRY_503);
    let long = vec![b'x'; 100 << 10];
    origins[0].answer(Answer::Status(503));
    origins[1].answer(Answer::Status(503));
    assert_eq!(send(gateway.http(), "PUT", "/", &[], &long).status, 503);
    assert_eq!(origins[0].count() + origins[1].count(), 1);
    assert_eq!(send(gateway.http(), "PUT", "/", &[], &long[..50 << 10]).status, 503);
    assert_eq!(origins[0].count() + origins[1].count(), 4);
    assert!(origins[1].last().body.len() == 50 << 10);
}

#[test]
fn retry_after_of_the_upstream_is_waited_for_where_there_is_time() {
    let (origins, gateway) = two(&format!("{RETRY_503}\ntimeouts = {{ request = \"5s\" }}"));
    origins[0].answer(Answer::Refuse(503, "retry-after: 1\r\n"));
    let begun = Instant::now();
    let mut client = Client::connect(gateway.http());
    let answers = [(); 2].map(|()| client.exchange(request("GET", "/", &[], b"")).unwrap().status);
    assert_eq!(answers, [200, 200]);
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());

    origins[0].answer(Answer::Refuse(503, "retry-after: 7\r\n"));
    let mut statuses = [(); 2].map(|()| client.exchange(request("GET", "/", &[], b"")).unwrap());
    statuses.sort_by_key(|response| response.status);
    assert_eq!(statuses.each_ref().map(|response| response.status), [200, 503]);
    assert_eq!(statuses[1].header("retry-after"), Some("7"), "passed on, for there is not so much time");
}

#[test]
fn an_attempt_that_times_out_is_made_elsewhere() {
    let (origins, gateway) = two("retry = { attempts = 2, on = [\"timeout\"] }\ntimeouts = { attempt = \"1s\" }");
    origins[0].answer(Answer::BlackHole);
    for _ in 0..4 {
        assert_eq!(get(gateway.http(), "/").origin(), "b");
    }
    assert_eq!(send(gateway.http(), "POST", "/", &[], b"x").status + send(gateway.http(), "POST", "/", &[], b"x").status, 704);
}

#[test]
fn what_is_left_of_the_deadline_goes_upstream_and_shrinks() {
    let (origins, gateway) = {
        let origins = Origin::start_many(2);
        let toml = everything_to(
            &[&origins[0], &origins[1]],
            "retry = { attempts = 2, on = [\"timeout\"] }\ntimeouts = { attempt = \"1s\", least = \"50ms\" }",
        ) + "timeouts = { request = \"20s\", client = \"any\", header = \"x-timeout-ms\" }\n";
        (origins, Gateway::start(&toml))
    };
    let told = |origin: &Origin| origin.last().header("x-timeout-ms").unwrap().parse::<u64>().unwrap();
    assert_eq!(get(gateway.http(), "/").status, 200);
    assert!((1..=20_000).contains(&told(&origins[0])), "the route's own");
    assert_eq!(send(gateway.http(), "GET", "/", &[("x-timeout-ms", "7000")], b"").status, 200);
    assert!((1..=7_000).contains(&told(&origins[1])), "the client's, which is shorter");

    origins[0].answer(Answer::BlackHole);
    assert_eq!(send(gateway.http(), "GET", "/", &[("x-timeout-ms", "9000")], b"").origin(), "b");
    let (first, second) = (told(&origins[0]), told(&origins[1]));
    assert!(second + 1_000 <= first, "{first} then {second}");

    origins[1].answer(Answer::BlackHole);
    let response = send(gateway.http(), "GET", "/", &[("x-timeout-ms", "250")], b"");
    assert_eq!((response.status, response.code().as_str()), (504, "deadline_exceeded"));

    let sent = origins[0].count() + origins[1].count();
    let response = send(gateway.http(), "GET", "/", &[("x-timeout-ms", "40")], b"");
    assert_eq!((response.status, response.code().as_str()), (504, "deadline_exceeded"));
    assert_eq!(origins[0].count() + origins[1].count(), sent, "what cannot be done in time is not begun");
}

#[test]
fn a_deadline_of_a_stranger_counts_for_nothing() {
    let origin = Origin::start("a");
    let toml = everything_to(&[&origin], "") + "timeouts = { request = \"20s\", header = \"x-timeout-ms\" }\n";
    let gateway = Gateway::start(&toml);
    assert_eq!(send(gateway.http(), "GET", "/", &[("x-timeout-ms", "0")], b"").status, 200);
    let told: u64 = origin.last().header("x-timeout-ms").unwrap().parse().unwrap();
    assert!((10_000..=20_000).contains(&told), "{told}");
}

#[test]
fn grpc_calls_carry_their_deadline_and_are_retried_by_their_status() {
    let origin = H2Origin::plain();
    let more = "protocol = \"h2c\"\nretry = { attempts = 3, on = [\"NOT_FOUND\"], methods = \"all\" }";
    let toml = format!(
        "[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n{}timeouts = {{ client = \"any\" }}\n",
        origin.everything(more)
    );
    let gateway = Gateway::start(&toml);
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let mut call = grpc("Fail");
        call.headers_mut().insert("grpc-timeout", "5S".parse().unwrap());
        // Without a body: an origin that refuses early resets the stream, and a body under way would meet that.
        let answer = client.call(call, &[]).await.unwrap();
        assert_eq!(answer.header("grpc-status"), Some("5"));
    });
    let seen = origin.seen.requests.lock();
    assert_eq!(seen.len(), 3);
    let left: Vec<u64> = seen
        .iter()
        .map(|head| head.headers["grpc-timeout"].to_str().unwrap().strip_suffix('m').unwrap().parse().unwrap())
        .collect();
    assert!(left.is_sorted_by(|a, b| a >= b) && left[0] <= 5_000 && left[2] > 0, "{left:?}");
    assert!(origin.seen.connections.load(Ordering::SeqCst) <= 3);
}

const BREAKER: &str = "breaker = { consecutive_failures = 5, open_for = \"3s\", probes = 2 }\nretry = { attempts = 1 }";

#[test]
fn an_open_breaker_refuses_at_once_and_closes_after_its_probes() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], BREAKER));
    let mut client = Client::connect(gateway.http());
    let mut exchange = || client.exchange(request("GET", "/", &[], b"")).unwrap();
    origin.answer(Answer::Status(500));
    for _ in 0..5 {
        assert_eq!(exchange().status, 500);
    }
    assert_eq!(upstream(&gateway)["breaker"]["state"], "open");
    for _ in 0..20 {
        let response = exchange();
        assert_eq!((response.status, response.code().as_str()), (503, "circuit_open"));
        let after = response.header("retry-after").and_then(|after| after.parse::<u32>().ok());
        assert!(after.is_some_and(|after| (1..=3).contains(&after)), "{after:?}");
        assert!(response.keep_alive, "refusing costs no connection");
    }
    assert_eq!(origin.count(), 5);
    let labels = [("kind", "upstream"), ("name", "app")];
    assert_eq!(gateway.metric("gatewright_breaker_state", &labels), 2.0);
    assert_eq!(gateway.metric("gatewright_breaker_refused_total", &labels), 20.0);
    assert!(gateway.stderr().contains("the breaker of upstream app is open, was closed: 5 calls in a row failed"));

    // A probe fails, and the whole time begins anew.
    eventually("a probe", SOON, || exchange().status == 500);
    assert_eq!((origin.count(), exchange().status), (6, 503));
    origin.answer(Answer::Echo);
    eventually("another probe", SOON, || exchange().status == 200);
    assert_eq!(upstream(&gateway)["breaker"]["state"], "half_open");
    assert_eq!(exchange().status, 200);
    assert_eq!(upstream(&gateway)["breaker"]["state"], "closed");
    assert_eq!(gateway.metric("gatewright_breaker_changes_total", &[("name", "app"), ("state", "open")]), 2.0);
}

#[test]
fn an_endpoint_that_is_back_from_its_ejection_starts_slowly() {
    let origins = Origin::start_many(5);
    let more = "outlier = { consecutive_errors = 3, eject_for = \"500ms\" }\nslow_start = \"1h\"\nretry = { attempts = 2, on = [\"500\"] }";
    let gateway = Gateway::start(&everything_to(&origins.iter().collect::<Vec<_>>(), more));
    let mut client = Client::connect(gateway.http());
    let mut get = || client.exchange(request("GET", "/", &[], b"")).unwrap().status;
    origins[2].answer(Answer::Status(500));
    let ejected = || gateway.endpoint(origins[2].address())["ejected_for_ms"].is_number();
    eventually("an ejection", SOON, || get() == 200 && ejected());
    origins[2].answer(Answer::Echo);
    eventually("its return", SOON, || !ejected());
    let before = origins[2].count();
    for _ in 0..400 {
        assert_eq!(get(), 200);
    }
    // A tenth of the weight of each of the four others: of 400 requests about 10, where 80 would be its full share.
    let share = origins[2].count() - before;
    assert!((5..=20).contains(&share), "{share} of 400");
}

#[test]
fn an_ejected_endpoint_takes_what_no_other_one_can() {
    let (origins, gateway) = two("outlier = { consecutive_errors = 3, eject_for = \"1h\" }");
    origins[0].answer(Answer::Status(500));
    let ejected = || gateway.endpoint(origins[0].address())["ejected_for_ms"].is_number();
    eventually("an ejection", SOON, || get(gateway.http(), "/").status == 200 && ejected());
    origins[0].answer(Answer::Echo);
    assert_eq!(get(gateway.http(), "/").origin(), "b");
    origins[1].kill();
    for _ in 0..3 {
        assert_eq!(get(gateway.http(), "/").origin(), "a");
    }
    origins[1].start_again();
    eventually("b again", SOON, || get(gateway.http(), "/").origin() == "b");
    assert!(ejected());
}

#[test]
fn an_endpoint_that_a_reload_removes_leaves_no_series_behind() {
    let origins = Origin::start_many(2);
    let more = "outlier = {}\nbreaker = { scope = \"both\" }\n\
                health = { path = \"/health\", interval = \"50ms\", timeout = \"40ms\", rise = 1, fall = 1 }";
    let gateway = Gateway::start(&everything_to(&[&origins[0], &origins[1]], more));
    (0..4).for_each(|_| assert_eq!(get(gateway.http(), "/").status, 200));
    eventually("checks", SOON, || origins.iter().all(|origin| origin.health_checks() > 1));
    let series = |origin: &Origin| {
        let address = origin.address().to_string();
        gateway.metrics().series().into_iter().filter(|series| series.contains(&address)).collect::<Vec<_>>()
    };
    let kept = series(&origins[0]);
    assert!(kept.len() > 10 && series(&origins[1]).len() == kept.len(), "{kept:?}");
    gateway.reload_with(&everything_to(&[&origins[0]], more)).unwrap();
    assert_eq!((series(&origins[0]), series(&origins[1])), (kept, Vec::new()));
    let (left, stays) = (origins[1].health_checks(), origins[0].health_checks());
    eventually("more checks of a", SOON, || origins[0].health_checks() > stays + 10);
    assert!(origins[1].health_checks() <= left + 1, "one may have been on its way");
}

#[test]
fn a_breaker_survives_a_reload() {
    let origin = Origin::start("a");
    let toml = everything_to(&[&origin], &BREAKER.replace("3s", "1h"));
    let gateway = Gateway::start(&toml);
    origin.answer(Answer::ResetBefore);
    (0..5).for_each(|_| assert_eq!(get(gateway.http(), "/").status, 502));
    gateway.reload_with(&(toml + "[routes.more]\nmatch = { path = \"/more\" }\nupstream = \"app\"\n")).unwrap();
    assert_eq!(get(gateway.http(), "/more").code(), "circuit_open");
}

#[test]
fn an_endpoint_whose_breaker_is_open_is_passed_over() {
    let (origins, gateway) =
        two("breaker = { scope = \"endpoint\", consecutive_failures = 3, open_for = \"1h\" }\nretry = { attempts = 1 }");
    origins[0].answer(Answer::Status(500));
    let statuses: Vec<u16> = (0..20).map(|_| get(gateway.http(), "/").status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 500).count(), 3, "{statuses:?}");
    assert_eq!(gateway.endpoint(origins[0].address())["breaker"]["state"], "open");
    origins[1].answer(Answer::Status(500));
    (0..3).for_each(|_| assert_eq!(get(gateway.http(), "/").status, 500));
    let response = get(gateway.http(), "/");
    assert_eq!((response.status, response.code().as_str()), (503, "circuit_open"));
}

#[test]
fn who_takes_requests_is_found_among_any_number_of_open_breakers() {
    let origins = Origin::start_many(20);
    let all: Vec<&Origin> = origins.iter().collect();
    let breaker = "balance = \"least_requests\"\nretry = { attempts = 1 }\n\
                   breaker = { scope = \"endpoint\", consecutive_failures = 1, open_for = \"1h\" }";
    let gateway = Gateway::start(&everything_to(&all, breaker));
    let (good, bad) = origins.split_first().unwrap();
    bad.iter().for_each(|origin| origin.answer(Answer::Status(500)));
    let open = |origin: &Origin| gateway.endpoint(origin.address())["breaker"]["state"] == "open";
    // Whoever has nothing to do is asked first: the good one has, for as long as this is under way.
    good.answer(Answer::BlackHole);
    let mut held = Vec::new();
    eventually("all others have failed", SOON, || {
        let mut client = Client::connect(gateway.http());
        client.send(request("GET", "/", &[], b""));
        held.push(client);
        bad.iter().all(open)
    });
    good.answer(Answer::Echo);
    for _ in 0..5 {
        assert_eq!(get(gateway.http(), "/").status, 200);
    }
}

#[test]
fn a_breaker_of_a_route_has_its_own_counts_and_its_own_answer() {
    let origin = Origin::start("a");
    let toml = everything_to(&[&origin], "")
        + "[routes.news]\nmatch = { path = \"/news\" }\nupstream = \"app\"\n\
           breaker = { consecutive_failures = 3, open_for = \"1h\", answer = { status = 200, body = \"[]\", content_type = \"application/json\" } }\n";
    let gateway = Gateway::start(&toml);
    origin.answer(Answer::Status(500));
    (0..3).for_each(|_| assert_eq!(get(gateway.http(), "/news").status, 500));
    let response = get(gateway.http(), "/news");
    assert_eq!(
        (response.status, response.text().as_str(), response.header("content-type")),
        (200, "[]", Some("application/json"))
    );
    assert_eq!(get(gateway.http(), "/other").status, 500, "the other route has no breaker");
    gateway.logged("the breaker", |line| line["rejection"] == "circuit_open" && line["status"] == 200);
}

#[test]
fn an_open_breaker_is_hidden_by_a_stale_answer_and_told_where_there_is_none() {
    let origin = Origin::start("a");
    let more = "breaker = { consecutive_failures = 1, open_for = \"1h\" }\nretry = { attempts = 1 }";
    let toml = everything_to(&[&origin], more) + "cache = { ttl = \"1s\", stale_if_error = \"1h\" }\n";
    let gateway = Gateway::start(&toml);
    assert_eq!(get(gateway.http(), "/kept").status, 200);
    origin.answer(Answer::Status(500));
    assert_eq!(get(gateway.http(), "/other").status, 500);
    assert_eq!(upstream(&gateway)["breaker"]["state"], "open");
    eventually("a stale answer", SOON, || {
        let response = get(gateway.http(), "/kept");
        assert_eq!(response.status, 200);
        response.header("cache-status").is_some_and(|said| said.contains("stale_if_error"))
    });
    assert_eq!(get(gateway.http(), "/other").code(), "circuit_open");
    assert_eq!(origin.count(), 2, "nothing reaches the upstream while it is open");
}

#[test]
fn what_clients_and_the_gateway_do_counts_against_nobody() {
    let (origins, gateway) =
        two("outlier = { consecutive_errors = 2 }\nbreaker = { consecutive_failures = 2, open_for = \"1h\" }");
    for origin in &origins {
        origin.answer(Answer::BlackHole);
    }
    // Clients that go away while the upstream works.
    for n in 1..=8 {
        let mut client = Client::connect(gateway.http());
        client.send(request("GET", "/", &[], b""));
        eventually("the request arrives", SOON, || origins[0].count() + origins[1].count() == n);
        drop(client);
    }
    eventually("all are gone", SOON, || origins.iter().all(|o| gateway.endpoint(o.address())["in_flight"] == 0));
    for origin in &origins {
        origin.answer(Answer::Echo);
    }
    // Requests that the gateway refuses in the middle.
    for _ in 0..4 {
        let mut client = Client::connect(gateway.http());
        client.send(b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nnot a chunk\r\n");
        client.closed_or_answered(SOON);
    }
    let status = upstream(&gateway);
    assert_eq!((&status["breaker"]["state"], &status["breaker"]["failed"]), (&"closed".into(), &0.into()), "{status}");
    for origin in &origins {
        assert_eq!(gateway.endpoint(origin.address())["ejected_for_ms"], serde_json::Value::Null);
        assert_eq!(get(gateway.http(), "/").status, 200);
    }
}

#[test]
fn whatever_an_endpoint_does_ends_in_an_answer_or_in_a_clean_break_and_counts() {
    let garbage = [
        (Answer::ResetBefore, "upstream_reset"),
        (Answer::BlackHole, "upstream_timeout"),
        (Answer::Garbage, "upstream_protocol_error"),
        (Answer::HugeHeader(2 << 20), "upstream_protocol_error"),
        (Answer::InterimFlood, "upstream_protocol_error"),
    ];
    for (answer, code) in garbage {
        let origin = Origin::start("a");
        origin.answer(answer.clone());
        let attempt = if matches!(answer, Answer::BlackHole) { "1s" } else { "10s" };
        let more = format!("retry = {{ attempts = 1 }}\nbreaker = {{}}\ntimeouts = {{ attempt = \"{attempt}\" }}");
        let gateway = Gateway::start(&everything_to(&[&origin], &more));
        assert_eq!(get(gateway.http(), "/").code(), code, "{answer:?}");
        assert_eq!(upstream(&gateway)["breaker"]["failed"], 1, "{answer:?}");
        origin.answer(Answer::Echo);
        assert_eq!(get(gateway.http(), "/").status, 200, "{answer:?}");
    }
    for answer in [Answer::ResetMid, Answer::TruncatedChunks] {
        let origin = Origin::start("a");
        origin.answer(answer.clone());
        let gateway = Gateway::start(&everything_to(&[&origin], "retry = { attempts = 1 }\nbreaker = {}"));
        assert!(Client::connect(gateway.http()).exchange(request("GET", "/", &[], b"")).is_err(), "{answer:?}");
        eventually("it counts", SOON, || upstream(&gateway)["breaker"]["failed"] == 1);
    }
    // A body without end, and one that only drips, end with the request's time.
    for answer in [Answer::InfiniteBody, Answer::Drip(Duration::from_millis(100))] {
        let origin = Origin::start("a");
        origin.answer(answer.clone());
        let gateway = Gateway::start(&everything_to(&[&origin], "timeouts = { request = \"2s\" }"));
        assert!(Client::connect(gateway.http()).exchange(request("GET", "/", &[], b"")).is_err(), "{answer:?}");
        origin.answer(Answer::Echo);
        assert_eq!(get(gateway.http(), "/").status, 200, "{answer:?}");
    }
}

#[test]
fn lower_tiers_are_shed_first_and_the_admin_listener_answers() {
    let origin = Origin::start("a");
    origin.answer(Answer::BlackHole);
    let toml = everything_to(&[&origin], "overload = { min = 10, max = 10 }").replace(
        "upstream = \"app\"\n",
        "upstream = \"app\"\nfilters = [{ any_of = { methods = [{ api_key = {} }], anonymous = true } }]\n",
    );
    let digest = {
        use std::fmt::Write as _;
        let digest = ring::digest::digest(&ring::digest::SHA256, b"gw_acme_0123456789abcdef0123456789abcdef");
        digest.as_ref().iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    };
    let toml = format!(
        "[tiers.gold]\npriority = 5\n[consumers.acme]\ntier = \"gold\"\ncredentials = [{{ api_key = {{ sha256 = \"{digest}\" }} }}]\n{toml}"
    );
    let gateway = Gateway::start(&toml);
    let open = |headers: &[(&str, &str)]| {
        let mut client = Client::connect(gateway.http());
        client.send(request("GET", "/", headers, b""));
        client
    };
    let anonymous: Vec<Client> = (0..8).map(|_| open(&[])).collect();
    eventually("eight are under way", SOON, || origin.count() == 8);
    let refused = get(gateway.http(), "/");
    assert_eq!((refused.status, refused.code().as_str()), (503, "upstream_overloaded"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    let gold = [("x-api-key", "gw_acme_0123456789abcdef0123456789abcdef")];
    let more: Vec<Client> = (0..2).map(|_| open(&gold)).collect();
    eventually("gold fills the rest", SOON, || origin.count() == 10);
    assert_eq!(send(gateway.http(), "GET", "/", &gold, b"").code(), "upstream_overloaded");
    assert!(gateway.ready());
    assert_eq!(gateway.metric("gatewright_upstream_shed_total", &[("upstream", "app")]), 2.0);
    assert_eq!(upstream(&gateway)["overload"]["in_flight"], 10);
    drop((anonymous, more));
    eventually("the places are given back", SOON, || upstream(&gateway)["overload"]["in_flight"] == 0);
}
