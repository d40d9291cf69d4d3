//! Hits that are answered before there is a session are the same as all others: to clients, in the metrics, and in the log.

use crate::cache::{ok, route, script};
use crate::support::http1::Response;
use crate::support::raw::{Client, request};
use crate::support::{self, Gateway, Origin, SOON, eventually};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

type Fields = &'static [(&'static str, &'static str)];

/// A filter on the second of two routes that are alike otherwise: its hits take the usual way.
fn gateway(origin: &Origin) -> Gateway {
    let seen = "[routes.usual]\nmatch = { path = \"/usual/{*rest}\" }\nupstream = \"app\"\n\
                filters = [{ response_headers = { remove = [\"x-nothing\"] } }]\n[routes.usual.cache]\nvary = []\n";
    Gateway::start(&[support::upstream("app", &[origin], ""), route("direct", ""), seen.replace("vary = []\n", "")].concat())
}

fn direct_hits(gateway: &Gateway) -> f64 {
    gateway.metric("gatewright_cache_direct_hits_total", &[("route", "direct")])
}

/// What differs from one request to the next.
fn shown(answer: &Response) -> (u16, BTreeMap<String, Vec<String>>, Vec<u8>, bool) {
    let mut fields: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let boundary = answer.header("content-type").and_then(|kind| kind.split_once("boundary=")).map(|(_, after)| after.to_owned());
    let even = |text: &str| boundary.as_ref().map_or(text.to_owned(), |boundary| text.replace(boundary, "BOUNDARY"));
    for (name, value) in &answer.headers {
        // Seconds pass between the two.
        let value = match name.as_str() {
            "x-request-id" | "age" => "SOME".to_owned(),
            "cache-status" => value.split("; ttl=").next().unwrap().to_owned(),
            _ => even(value),
        };
        fields.entry(name.clone()).or_default().push(value);
    }
    let body = String::from_utf8(answer.body.clone()).unwrap();
    (answer.status, fields, even(&body).into_bytes(), answer.keep_alive)
}

fn logged(line: &Value) -> BTreeMap<String, Value> {
    let mut line: BTreeMap<String, Value> = serde_json::from_value(line.clone()).unwrap();
    for some in ["time", "request_id", "duration", "path", "route"] {
        assert!(line.remove(some).is_some(), "{some}: {line:?}");
    }
    line
}

#[test]
fn a_direct_hit_is_the_same_as_any_other() {
    let origin = Origin::start("app");
    let body: Vec<u8> = (0..100_000_u32).map(|at| b'0' + (at % 10) as u8).collect();
    let small = b"0123456789".to_vec();
    let date = httpdate::fmt_http_date(std::time::SystemTime::now());
    origin.answer(script(move |target, asked| {
        let body = if target.contains("large") { &body } else { &small };
        let status = if target.contains("gone") { "404 Not Found" } else { "200 OK" };
        let coding = if asked.header("accept-language").is_some_and(|said| said.contains("de")) { "de" } else { "en" };
        let text = String::from_utf8(ok(
            &format!(
                "date: {date}\r\ncache-control: public, max-age=1000000000\r\netag: \"a\"\r\nvary: accept-language\r\n\
                 content-language: {coding}\r\ncontent-type: text/x-digits\r\nx-case-of-Name: Value"
            ),
            body,
        ));
        Some(text.unwrap().replacen("200 OK", status, 1).into_bytes())
    }));
    let gateway = gateway(&origin);
    let asked: [(&str, &str, Fields); 16] = [
        ("GET", "small", &[]),
        ("GET", "small?b=2&a=1", &[]),
        ("GET", "large", &[("user-agent", "some one")]),
        ("HEAD", "small", &[]),
        ("GET", "gone", &[]),
        ("GET", "small", &[("accept-language", "de, en;q=0.5")]),
        ("GET", "small", &[("if-none-match", "\"a\"")]),
        ("HEAD", "small", &[("if-none-match", "W/\"b\", W/\"a\"")]),
        ("GET", "small", &[("range", "bytes=2-4")]),
        ("GET", "large", &[("range", "bytes=90000-")]),
        ("GET", "small", &[("range", "bytes=0-1,4-5")]),
        ("GET", "small", &[("range", "bytes=50-")]),
        ("GET", "small", &[("range", "bytes=2-4"), ("if-range", "\"b\"")]),
        ("GET", "small", &[("cookie", "a=b"), ("x-forwarded-for", "9.9.9.9"), ("x-request-id", "theirs")]),
        ("GET", "small", &[("cache-control", "max-stale=5"), ("accept", "*/*")]),
        ("GET", "small", &[("connection", "close")]),
    ];
    let mut directly = 0.0;
    for (method, target, headers) in asked {
        let mut answers = Vec::new();
        for route in ["direct", "usual"] {
            let target = format!("/{route}/{target}");
            let languages: Vec<_> = headers.iter().filter(|(name, _)| *name == "accept-language").copied().collect();
            let mut client = Client::connect(gateway.http());
            client.exchange(request("GET", &target, &languages, b"")).unwrap();
            client.send(request(method, &target, headers, b""));
            answers.push(shown(&client.read_to(method == "HEAD").unwrap()));
        }
        let [one, other] = answers.try_into().unwrap();
        assert_eq!(one, other, "{method} {target} {headers:?}");
        assert!(one.1["cache-status"][0].starts_with("gatewright; hit"), "{one:?}");
        directly += 1.0;
        assert!(direct_hits(&gateway) >= directly, "{method} {target} {headers:?} has taken the usual way");
    }
    for (name, more) in [
        ("gatewright_cache_requests_total", &[("result", "hit")][..]),
        ("gatewright_http_requests_total", &[("method", "GET"), ("class", "2xx")]),
        ("gatewright_http_requests_total", &[("method", "HEAD"), ("class", "3xx")]),
        ("gatewright_cache_served_bytes_total", &[]),
        ("gatewright_http_response_body_bytes_total", &[]),
        ("gatewright_http_request_duration_seconds_count", &[]),
        ("gatewright_http_requests_in_flight", &[]),
    ] {
        let of = |route| gateway.metric(name, &[&[("route", route)], more].concat());
        eventually(&format!("{name} of both: {} and {}", of("direct"), of("usual")), SOON, || of("direct") == of("usual"));
        assert!(of("usual") > 0.0 || name.ends_with("in_flight"), "{name}");
    }
    let lines = |route: &str| -> Vec<_> {
        let log = gateway.access_log();
        log.iter().filter(|line| line["route"] == route && line["cache"] == "hit").map(logged).collect()
    };
    eventually("all is logged", SOON, || lines("direct").len() >= 16 && lines("usual").len() == lines("direct").len());
    assert_eq!(lines("direct"), lines("usual"));
    assert_eq!(gateway.metric("gatewright_cache_direct_hits_total", &[("route", "usual")]), 0.0);
}

/// Whatever is not a direct hit is answered as ever, on a connection that has had direct ones and will have more.
#[test]
fn what_is_no_direct_hit_takes_the_usual_way() {
    let origin = Origin::start("app");
    origin.answer(script(|target, asked| {
        let fields = if target.contains("short") {
            "cache-control: max-age=0, stale-while-revalidate=0"
        } else {
            "cache-control: max-age=1000"
        };
        Some(ok(fields, asked.request_line().split(' ').next().unwrap().as_bytes()))
    }));
    let gateway = gateway(&origin);
    let mut client = Client::connect(gateway.http());
    let mut ask = |method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]| {
        let answer = client.exchange(request(method, target, headers, body)).unwrap();
        (answer.status, answer.text(), answer.header("cache-status").unwrap_or_default().to_owned())
    };
    ask("GET", "/direct/a", &[], b"");
    let mut before = 0.0;
    let others: [(&str, &str, Fields, &[u8]); 9] = [
        ("GET", "/direct/never-asked", &[], b""),
        ("GET", "/direct/short", &[], b""),
        ("GET", "/direct/a", &[("cache-control", "no-cache")], b""),
        ("GET", "/direct/a", &[("cache-control", "no-store")], b""),
        ("GET", "/direct/a", &[("if-match", "\"x\"")], b""),
        ("GET", "/direct/a", &[], b"abc"),
        ("PUT", "/direct/b", &[], b"abc"),
        ("GET", "/nowhere", &[], b""),
        ("GET", "/direct/%00", &[], b""),
    ];
    for (method, target, headers, body) in others {
        let (status, text, said) = ask("GET", "/direct/a", &[], b"");
        assert!(status == 200 && text == "GET" && said.starts_with("gatewright; hit"), "{said}");
        let now = direct_hits(&gateway);
        assert!(now > before, "before {method} {target}");
        before = now;
        if target.contains("%00") {
            break;
        }
        let (_, _, said) = ask(method, target, headers, body);
        assert!(!said.contains("; hit"), "{method} {target}: {said}");
        assert_eq!(direct_hits(&gateway), before, "{method} {target}");
        // The first on a connection after another kind of request may take the usual way.
        ask("GET", "/direct/a", &[], b"");
        before = direct_hits(&gateway);
    }
    let (status, ..) = ask("GET", "/direct/%00", &[], b"");
    assert_eq!(status, 400);
}

/// Several in one segment, and the last one says so.
#[test]
fn direct_hits_are_pipelined_and_end_with_their_connection() {
    let origin = Origin::start("app");
    origin.answer(script(|target, _| Some(ok("cache-control: max-age=1000", target.as_bytes()))));
    let gateway = gateway(&origin);
    let mut client = Client::connect(gateway.http());
    for n in 0..3 {
        client.exchange(request("GET", &format!("/direct/{n}"), &[], b"")).unwrap();
    }
    let many: Vec<u8> = (0..30).flat_map(|n| request("GET", &format!("/direct/{}", n % 3), &[], b"")).collect();
    client.send([many, request("GET", "/direct/1", &[("connection", "close")], b"")].concat());
    for n in 0..30 {
        let answer = client.response();
        assert_eq!((answer.status, answer.text(), answer.keep_alive), (200, format!("/direct/{}", n % 3), true));
    }
    let last = client.response();
    assert_eq!((&*last.text(), last.header("connection"), last.keep_alive), ("/direct/1", Some("close"), false));
    assert!(client.closes_within(SOON));
    assert_eq!(direct_hits(&gateway), 31.0);
}

/// Whatever told the end of the stored answer, the next one begins behind it.
#[test]
fn direct_hits_end_where_the_next_answer_begins() {
    let origin = Origin::start("app");
    origin.answer(script(|target, _| {
        let status = target.rsplit('/').next().unwrap();
        let rest = match status {
            "204" => "\r\n",
            "200" => "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            _ => "transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        };
        Some(format!("HTTP/1.1 {status} X\r\ncache-control: max-age=1000\r\n{rest}").into_bytes())
    }));
    let gateway = gateway(&origin);
    for status in ["200", "204", "205", "301", "404"] {
        let mut client = Client::connect(gateway.http());
        for hit in [false, true, true] {
            let answer = client.exchange(request("GET", &format!("/direct/{status}"), &[], b"")).unwrap();
            assert_eq!((answer.status.to_string(), answer.keep_alive), (status.to_owned(), true));
            assert_eq!(answer.header("cache-status").unwrap().contains("; hit"), hit, "{status}");
        }
    }
    assert_eq!(direct_hits(&gateway), 10.0);
}

/// A client that does not read is cut off as on the usual way, and the hit that it did not take is told from one that it did.
#[test]
fn a_direct_hit_that_nobody_reads_is_cut_off() {
    let origin = Origin::start("app");
    let body = vec![b'x'; 32 << 20];
    origin.answer(script(move |_, _| Some(ok("cache-control: max-age=1000", &body))));
    // Of this time goes all that the client of the first exchange takes for its 32 MiB.
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nwrite_timeout = \"4s\"\nmin_write_rate = \"1GiB\"\n";
    let store = "[cache]\nmemory = \"4GiB\"\n";
    let config =
        [listener, store, &support::upstream("app", &[&origin], ""), &route("direct", "max_object = \"64MiB\"\n")].concat();
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.http()).timeout(Duration::from_secs(30));
    assert_eq!(client.exchange(request("GET", "/direct/x", &[], b"")).unwrap().body.len(), 32 << 20);
    client.send(request("GET", "/direct/x", &[], b""));
    let line = gateway.logged("the hit that was not read", |line| line["error"] == "client_closed");
    assert!(line["bytes_out"].as_u64().unwrap() < 32 << 20 && line["status"] == 200 && line["cache"] == "hit", "{line}");
    assert_eq!(direct_hits(&gateway), 1.0);
    let slow = [("listener", "http"), ("reason", "slow_reader")];
    assert_eq!(gateway.metric("gatewright_listener_connections_cut_total", &slow), 1.0);
}
