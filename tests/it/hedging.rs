//! Hedged requests: a second endpoint is asked where the first one is late, by whatever protocol, and each is held to account.

use crate::support::raw::{Client, get, request};
use crate::support::service::Service;
use crate::support::tls::Authority;
use crate::support::{Answer, Gateway, Origin, SOON, eventually, everything_to};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const MILLI: Duration = Duration::from_millis(1);

fn hedges(gateway: &Gateway, event: &str) -> f64 {
    gateway.metric("gatewright_upstream_hedges_total", &[("upstream", "app"), ("event", event)])
}

/// One upstream over these addresses, for everything.
fn over(addresses: &[SocketAddr], more: &str) -> String {
    let list: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    format!(
        "[upstreams.app]\nendpoints = [{}]\n{more}\n[routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n",
        list.join(", ")
    )
}

fn two(more: &str) -> (Vec<Origin>, Gateway) {
    let origins = Origin::start_many(2);
    let gateway = Gateway::start(&everything_to(&[&origins[0], &origins[1]], more));
    (origins, gateway)
}

/// What is spoken with the endpoints: the lines of the upstream, HTTP/2, TLS.
fn protocols(ca: &Path) -> [(String, bool, bool); 5] {
    let tls = format!("tls = {{ sni = \"app.test\", ca = \"{}\" }}", ca.display());
    [
        (String::new(), false, false),
        (tls.clone(), false, true),
        ("protocol = \"h2c\"".to_owned(), true, false),
        (format!("{tls}\nprotocol = \"h2\""), true, true),
        (format!("{tls}\nprotocol = \"auto\""), true, true),
    ]
}

#[test]
fn a_late_answer_is_overtaken_by_whatever_protocol_and_connections_are_kept() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, &authority.pem).unwrap();
    let pair = authority.issue(&["app.test"]);
    for (protocol, http2, tls) in protocols(&ca) {
        let services = ["a", "b"].map(|name| Service::start(name, http2, tls.then_some(&pair)));
        let more = format!("{protocol}\nhedge = {{ after = \"100ms\" }}\nretry = {{ attempts = 1 }}");
        let gateway = Gateway::start(&over(&services.each_ref().map(|service| service.address), &more));
        services[0].delay(Duration::from_secs(10));
        let mut client = Client::connect(gateway.http());
        for n in 0..8 {
            let begun = Instant::now();
            let response = client.exchange(request("GET", &format!("/{n}?q=1"), &[("x-user", "ada")], b"")).unwrap();
            assert_eq!((response.status, response.header("x-served-by"), response.text().as_str()), (200, Some("b"), "b"));
            assert!(begun.elapsed() < Duration::from_secs(8), "{protocol}: {:?}", begun.elapsed());
        }
        let (sent, won) = (hedges(&gateway, "sent"), hedges(&gateway, "won"));
        // Where b was asked first and took its time, the second request went to a for nothing.
        assert!(won >= 4.0 && sent >= won, "{protocol}: {sent} {won}");
        let heads = services[1].requests();
        assert_eq!(heads.len(), 8, "{protocol}");
        for head in &heads {
            assert_eq!(head.headers()["x-user"], "ada");
            let version = if http2 { http::Version::HTTP_2 } else { http::Version::HTTP_11 };
            assert_eq!(head.version(), version, "{protocol}");
            assert!(!head.headers().contains_key("connection"), "{:?}", head.headers());
        }
        assert!(heads.iter().any(|head| head.uri().path_and_query().unwrap() == "/7?q=1"));
        assert!(services[1].connections() <= 3, "{protocol}: {} connections for 8 requests", services[1].connections());
        eventually("both give back what they held", SOON, || gateway.endpoint(services[1].address)["in_flight"] == 0);
    }
}

#[test]
fn a_hedged_answer_arrives_as_it_was_sent() {
    let answers: Vec<(&str, Vec<u8>)> = [
        ("GET", "HTTP/1.1 200 Fine\r\nx-a: 1\r\nX-A: 2\r\ncontent-length: 5\r\n\r\nhello"),
        ("GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("GET", "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno"),
        ("GET", "HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"),
        ("GET", "SSH-2.0-OpenSSH\r\n\r\n"),
    ]
    .map(|(method, text)| (method, text.as_bytes().to_vec()))
    .into();
    let origin = Origin::start("a");
    // Late enough never to be sent.
    let plain = Gateway::start(&everything_to(&[&origin], "retry = { attempts = 1 }"));
    let hedged = Gateway::start(&everything_to(&[&origin], "retry = { attempts = 1 }\nhedge = { after = \"1h\" }"));
    let own = ["date", "x-request-id"];
    for (method, bytes) in answers {
        origin.answer(Answer::Bytes(bytes.clone()));
        let [expected, found] = [&plain, &hedged].map(|gateway| {
            let mut client = Client::connect(gateway.http());
            let response = client.exchange(request(method, "/x", &[], b"")).unwrap();
            let mut headers = response.headers.clone();
            headers.retain(|(name, _)| !own.contains(&name.to_ascii_lowercase().as_str()));
            headers.sort();
            let body = if response.status < 500 { response.text() } else { response.code() };
            (response.status, headers, response.interim, body)
        });
        assert_eq!(expected, found, "{}", String::from_utf8_lossy(&bytes));
    }
    for broken in [Answer::ResetMid, Answer::TruncatedChunks, Answer::Drip(100 * MILLI)] {
        origin.answer(broken.clone());
        let limit = "timeouts = { request = \"2s\" }\nretry = { attempts = 1 }\nhedge = { after = \"1h\" }";
        let gateway = Gateway::start(&everything_to(&[&origin], limit));
        assert!(Client::connect(gateway.http()).exchange(request("GET", "/", &[], b"")).is_err(), "{broken:?} looks complete");
    }
}

#[test]
fn hedges_are_bounded_by_the_budget_and_a_lost_race_is_no_error() {
    let (origins, gateway) = two("hedge = { after = \"20ms\" }\nretry = { attempts = 1, budget_floor = 5 }");
    origins.iter().for_each(|origin| origin.answer(Answer::Delay(60 * MILLI)));
    let mut client = Client::connect(gateway.http());
    for _ in 0..40 {
        assert_eq!(client.exchange(request("GET", "/", &[], b"")).unwrap().status, 200);
    }
    let sent = hedges(&gateway, "sent");
    assert!((1.0..=6.0).contains(&sent), "{sent}");
}

#[test]
fn a_percentile_hedges_what_is_slow_for_this_upstream_once_a_hundred_answers_tell() {
    let (origins, gateway) = two("hedge = { percentile = \"99%\" }\nretry = { attempts = 1 }");
    let mut client = Client::connect(gateway.http());
    let mut ask = || client.exchange(request("GET", "/", &[], b"")).unwrap().status;
    // Nearly all answers take 100 ms, so that is the percentile; and too few of them tell nothing, however late one is.
    origins.iter().for_each(|origin| origin.answer(Answer::Delay(100 * MILLI)));
    (0..10).for_each(|_| assert_eq!(ask(), 200));
    origins[0].answer(Answer::Delay(800 * MILLI));
    (0..2).for_each(|_| assert_eq!(ask(), 200));
    assert_eq!(hedges(&gateway, "sent"), 0.0, "with a dozen answers");
    origins[0].answer(Answer::Delay(100 * MILLI));
    (0..100).for_each(|_| assert_eq!(ask(), 200));
    origins[0].answer(Answer::Delay(20_000 * MILLI));
    let (before, begun) = (hedges(&gateway, "won"), Instant::now());
    (0..2).for_each(|_| assert_eq!(ask(), 200));
    let took = begun.elapsed();
    // One that is asked of the living one, and one that waits as long as answers take before it is.
    assert!(took >= 290 * MILLI, "{took:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert!(hedges(&gateway, "won") > before);
}

#[test]
fn nothing_that_changes_anything_is_sent_twice() {
    let (origins, gateway) = two("hedge = { after = \"50ms\" }\nretry = { attempts = 1 }");
    origins.iter().for_each(|origin| origin.answer(Answer::Delay(400 * MILLI)));
    for (method, body) in [("POST", "once"), ("PUT", "once"), ("DELETE", ""), ("GET", "a body")] {
        let before = origins[0].count() + origins[1].count();
        assert_eq!(crate::support::raw::send(gateway.http(), method, "/", &[], body.as_bytes()).status, 200);
        assert_eq!(origins[0].count() + origins[1].count(), before + 1, "{method}");
    }
    assert_eq!(hedges(&gateway, "sent"), 0.0);
}

#[test]
fn an_endpoint_that_breaks_while_another_is_asked_is_not_noticed_and_counts() {
    let (origins, gateway) = two("hedge = { after = \"50ms\" }\nretry = { attempts = 1 }\nbreaker = { scope = \"both\" }");
    // Late enough for the second request to be on its way.
    origins[0].answer(Answer::LateReset(1_000 * MILLI));
    origins[1].answer(Answer::Delay(2_000 * MILLI));
    let origin = (0..2).map(|_| get(gateway.http(), "/")).map(|response| (response.status, response.origin()));
    assert_eq!(origin.collect::<Vec<_>>(), [(200, "b".to_owned()), (200, "b".to_owned())]);
    let breaker = |origin: &Origin| gateway.endpoint(origin.address())["breaker"].clone();
    eventually("a's failure", SOON, || breaker(&origins[0])["failed"].as_u64() >= Some(1));
    assert_eq!(breaker(&origins[1])["failed"], 0);
    assert_eq!(gateway.status()["upstreams"][0]["breaker"]["failed"], 0, "the request was answered");
}

#[test]
fn what_the_second_endpoint_answers_counts_for_itself() {
    let more = "hedge = { after = \"50ms\" }\nretry = { attempts = 1 }\n\
                breaker = { scope = \"endpoint\", consecutive_failures = 3, open_for = \"1h\" }\ntimeouts = { attempt = \"10s\" }";
    let (origins, gateway) = two(more);
    origins[0].answer(Answer::Delay(1_500 * MILLI));
    origins[1].answer(Answer::Status(500));
    // Whichever is asked first, b answers first, until its breaker is open.
    let statuses: Vec<u16> = (0..6).map(|_| get(gateway.http(), "/").status).collect();
    assert_eq!(statuses, [500, 500, 500, 200, 200, 200]);
    assert_eq!(gateway.endpoint(origins[1].address())["breaker"]["state"], "open");
    assert_eq!(gateway.endpoint(origins[0].address())["breaker"]["state"], "closed");
    eventually("late answers are told", SOON, || gateway.endpoint(origins[0].address())["breaker"]["calls"].as_u64() >= Some(4));
    assert_eq!(gateway.endpoint(origins[0].address())["breaker"]["failed"], 0);
}

#[test]
fn an_endpoint_that_never_answers_is_ejected_although_no_client_waits_for_it() {
    // The budget has room for as many second requests as there are until then.
    let more = "hedge = { after = \"30ms\" }\nretry = { attempts = 1, budget_floor = 1000 }\n\
                outlier = { consecutive_errors = 3, eject_for = \"1h\" }\ntimeouts = { attempt = \"1s\" }";
    let (origins, gateway) = two(more);
    origins[0].answer(Answer::BlackHole);
    eventually("an ejection", SOON, || {
        let response = get(gateway.http(), "/");
        assert_eq!((response.status, response.origin().as_str()), (200, "b"));
        gateway.endpoint(origins[0].address())["ejected_for_ms"].is_number()
    });
    assert!(gateway.endpoint(origins[1].address())["ejected_for_ms"].is_null());
    eventually("nothing is waited for any more", SOON, || gateway.endpoint(origins[0].address())["in_flight"] == 0);
    let (sent, asked) = (hedges(&gateway, "sent"), origins[0].count());
    for _ in 0..5 {
        assert_eq!(get(gateway.http(), "/").origin(), "b");
    }
    assert_eq!((hedges(&gateway, "sent"), origins[0].count()), (sent, asked));
}

#[test]
fn a_second_request_takes_a_place_of_the_overload_limit() {
    let (origins, gateway) = two("hedge = { after = \"20ms\" }\nretry = { attempts = 1 }\noverload = { min = 1, max = 1 }");
    origins.iter().for_each(|origin| origin.answer(Answer::Delay(200 * MILLI)));
    for _ in 0..4 {
        assert_eq!(get(gateway.http(), "/").status, 200);
        // By the worker that had it, which may be later than the client's next request is with another one.
        eventually("the place is given back", SOON, || gateway.status()["upstreams"][0]["overload"]["in_flight"] == 0);
    }
    assert_eq!(hedges(&gateway, "sent"), 0.0);
}

#[test]
fn a_client_that_goes_away_ends_both_requests() {
    let (origins, gateway) = two("hedge = { after = \"30ms\" }\nretry = { attempts = 1 }\nbreaker = { scope = \"endpoint\" }");
    origins.iter().for_each(|origin| origin.answer(Answer::BlackHole));
    let mut client = Client::connect(gateway.http());
    client.send(request("GET", "/", &[], b""));
    eventually("two requests", SOON, || origins.iter().all(|origin| origin.count() == 1));
    drop(client);
    for origin in &origins {
        eventually("nothing is under way", SOON, || gateway.endpoint(origin.address())["in_flight"] == 0);
        assert_eq!(gateway.endpoint(origin.address())["breaker"]["failed"], 0, "it is nobody's fault");
    }
}

#[test]
fn a_failure_before_it_is_late_is_retried_as_any_other() {
    let (refusing, _port) = crate::support::raw::refusing_port();
    let origin = Origin::start("b");
    let gateway = Gateway::start(&over(&[refusing, origin.address()], "hedge = { after = \"1h\" }"));
    for _ in 0..4 {
        assert_eq!(get(gateway.http(), "/").origin(), "b");
    }
    assert!(gateway.endpoint(refusing)["connect_failures"].as_u64() >= Some(1));
    let (origins, gateway) = two("hedge = { after = \"1h\" }");
    origins[0].answer(Answer::ResetBefore);
    for _ in 0..4 {
        assert_eq!(get(gateway.http(), "/").origin(), "b");
    }
    let (origins, gateway) = two("hedge = { after = \"1h\" }\ntimeouts = { attempt = \"1s\" }\nretry = { on = [\"timeout\"] }");
    origins[0].answer(Answer::BlackHole);
    for _ in 0..4 {
        assert_eq!(get(gateway.http(), "/").origin(), "b");
    }
}

#[test]
fn a_kept_connection_that_was_closed_is_made_again() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], "hedge = { after = \"1h\" }\nretry = { attempts = 1 }"));
    for _ in 0..3 {
        assert_eq!(get(gateway.http(), "/").status, 200);
        origin.kill();
        origin.start_again();
    }
    assert!(gateway.metric("gatewright_upstream_connects_total", &[("upstream", "app")]) >= 3.0);
}
