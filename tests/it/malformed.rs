//! Requests that are not HTTP, or could be read in two ways: 400, the connection closed, nothing forwarded.

use crate::frames::ambiguity;
use crate::support::corpus::rows;
use crate::support::raw::{Client, get};
use crate::support::{Gateway, Origin, SOON, eventually, everything_to};
use gatewright::listener::head::{Framing, HeadLimits, HeadScanner, Malformed};
use std::collections::BTreeMap;

#[test]
fn malformed_request_is_400_closes_and_reaches_no_origin() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let cases = [
        ("length and chunks", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("two lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"),
        ("length that is no number", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\na"),
        ("unknown coding", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        ("chunks on 1.0", "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("bare line feeds", "GET / HTTP/1.1\nhost: a\n\n"),
        ("folded header", "GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\r\n folded\r\n\r\n"),
        ("space before the colon", "GET / HTTP/1.1\r\nhost: a\r\nx-a : 1\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\nx-a: 1\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
        ("host that is none", "GET / HTTP/1.1\r\nhost: a b\r\n\r\n"),
        ("control byte in a header", "GET / HTTP/1.1\r\nhost: a\r\nx-a: \u{1}\r\n\r\n"),
        ("nul in a header", "GET / HTTP/1.1\r\nhost: a\r\nx-a: \0\r\n\r\n"),
        ("space in the target", "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("nul in the path", "GET /%00 HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("not HTTP at all", "\u{16}\u{3}\u{1}\u{2}\r\n\r\n"),
    ];
    for (what, bytes) in cases {
        let mut client = Client::connect(gateway.http());
        let answer = client.send(format!("{bytes}{smuggled}")).response();
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        assert!(!answer.keep_alive, "{what}: the connection stays open");
        let rest = client.read_until_closed();
        assert!(rest.is_empty(), "{what}: another answer follows: {:?}", String::from_utf8_lossy(&rest));
    }
    assert_eq!(origin.count(), 0, "{:?}", origin.requests());
    assert_eq!(get(gateway.http(), "/").status, 200);
}

#[test]
fn malformed_requests_are_counted_by_reason() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let counted = || {
        let metrics = gateway.metrics();
        let by_reason = metrics.samples.iter().filter(|s| s.name == "gatewright_listener_malformed_requests_total");
        by_reason.map(|s| (s.labels["reason"].clone(), s.value)).filter(|(_, value)| *value > 0.0).collect::<Vec<_>>()
    };
    assert_eq!(counted(), []);
    for bytes in ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nhost: a\r\nx-a : 1\r\n\r\n"] {
        assert_eq!(Client::connect(gateway.http()).send(bytes).response().status, 400);
    }
    let counted = counted();
    assert_eq!(counted.iter().map(|(_, value)| value).sum::<f64>(), 2.0, "{counted:?}");
    assert_eq!(counted.len(), 2, "one reason for two faults: {counted:?}");
}

/// What is refused of a path has a reason of its own, in the metric and in the access log.
#[test]
fn refused_paths_are_counted_by_reason() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let cases = [
        ("/a%2fb", "path_encoded_slash"),
        ("/a%00", "path_encoded_nul"),
        ("/a;b=c", "path_parameters"),
        ("/..;/b", "path_parameters"),
        ("/../b", "path_above_root"),
        ("/a//../b", "path_ambiguous_dot_segment"),
        ("/%252f", "path_double_encoding"),
        ("/%c0%ae", "path_invalid_utf8"),
        ("/%zz", "path_malformed_escape"),
    ];
    for (path, reason) in cases {
        let labels = [("listener", "http"), ("reason", reason)];
        let before = gateway.metric("gatewright_listener_malformed_requests_total", &labels);
        let answer = get(gateway.http(), path);
        assert_eq!((answer.status, answer.keep_alive), (400, false), "{path}");
        assert_eq!(gateway.metric("gatewright_listener_malformed_requests_total", &labels), before + 1.0, "{path}");
        let line = gateway.logged(path, |line| line["path"] == path);
        assert_eq!((&line["rejection"], &line["error"]), (&"path_invalid".into(), &reason.into()), "{line}");
    }
    assert_eq!(origin.count(), 0);
}

/// A listener may let encoded slashes and parameters pass; what they could disguise stays refused, and rewrites keep them.
#[test]
fn a_listener_may_allow_encoded_slashes_and_parameters() {
    let origin = Origin::start("a");
    let toml = format!(
        "[listeners.http]\naddress = \"127.0.0.1:0\"\nallow_encoded_slash = true\nallow_path_parameters = true\n\
         [listeners.strict]\naddress = \"127.0.0.1:0\"\n{}\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n\
         [routes.projects]\nmatch = {{ path = \"/api/projects/{{name}}\" }}\nupstream = \"app\"\n\
         filters = [{{ rewrite = {{ strip_prefix = \"/api\" }} }}, {{ request_headers = {{ set = {{ x-name = \"${{path.name}}\" }} }} }}]\n\
         [routes.exact]\nmatch = {{ path = \"/one%2Ftwo;x\" }}\nfilters = [{{ respond = {{ status = 204 }} }}]\n",
        crate::support::upstream("app", &[&origin], "")
    );
    let gateway = Gateway::start(&toml);
    let arrives = |path: &str| {
        let answer = get(gateway.http(), path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        origin.last()
    };
    assert_eq!(arrives("/map;zoom=3/a%2fb;c").request_line(), "GET /map;zoom=3/a%2Fb;c HTTP/1.1");
    let project = arrives("/api/projects/group%2fname;v=1");
    assert_eq!(project.request_line(), "GET /projects/group%2Fname;v=1 HTTP/1.1");
    assert_eq!(project.header("x-name").as_deref(), Some("group%2Fname;v=1"));
    assert_eq!(get(gateway.http(), "/one%2ftwo;x").status, 204);
    let before = origin.count();
    for path in ["/a/..;/b", "/a/..%2fb", "/a/..%3bx/b", "/a%2f../b", "/a/%2e%2e;x", "/a%5cb", "/a%252fb"] {
        assert_eq!(get(gateway.http(), path).status, 400, "{path}");
    }
    for path in ["/a%2fb", "/a;b", "/one%2ftwo;x"] {
        assert_eq!(get(gateway.address("strict"), path).status, 400, "{path}");
    }
    assert_eq!(origin.count(), before);
}

/// Each head of the corpus is answered once, with the status and code of its reason, and counted and logged under it.
#[test]
fn no_head_of_the_corpus_reaches_an_origin() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let cases: Vec<_> = rows::<2>(include_str!("../corpus/http1/malformed.txt")).collect();
    assert!(cases.len() >= 300, "{}", cases.len());
    let (mut expected, mut wrong) = (BTreeMap::<&str, f64>::new(), Vec::new());
    for ([name, reason], mut bytes) in cases {
        // What a reader that stops elsewhere would take for the next request.
        bytes.extend(b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
        let code = Malformed::ALL.iter().find(|known| known.name() == reason).unwrap_or_else(|| panic!("{reason}")).rejection();
        *expected.entry(reason).or_default() += 1.0;
        let mut client = Client::connect(gateway.http());
        let answers = client.send(&bytes).read_until_closed();
        let answers = String::from_utf8_lossy(&answers);
        let status = format!("HTTP/1.1 {} ", code.status);
        let once = answers.starts_with(&status) && !answers.contains("\nHTTP/1.1 ");
        if !once || !answers.contains(&format!("\"code\":\"{}\"", code.code)) {
            wrong.push(format!("{name} is not refused for {reason}: {answers}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(origin.count(), 0, "{:?}", origin.requests());
    let lines: f64 = expected.values().sum();
    eventually("the access log is complete", SOON, || gateway.access_log().len() as f64 >= lines);
    let log = gateway.access_log();
    for (reason, count) in expected {
        let labels = [("listener", "http"), ("reason", reason)];
        assert_eq!(gateway.metric("gatewright_listener_malformed_requests_total", &labels), count, "{reason}");
        assert_eq!(log.iter().filter(|line| line["error"] == reason).count() as f64, count, "{reason}");
    }
}

/// What passes arrives once, and in a form that has one reading.
#[test]
fn valid_heads_arrive_in_one_reading() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let mut wrong = Vec::new();
    for ([name, _], mut bytes) in rows::<2>(include_str!("../corpus/http1/valid.txt")) {
        let head = HeadScanner::new().scan(&bytes, &HeadLimits::default()).unwrap().unwrap();
        let there = bytes.len() - head.len;
        match head.framing {
            Framing::Length(length) if length < 10_000 => {
                bytes.resize(head.len + usize::try_from(length).unwrap().max(there), b'x')
            }
            Framing::Chunked if there == 0 => bytes.extend(b"3\r\nabc\r\n0\r\n\r\n"),
            _ => {}
        }
        let before = origin.count();
        let mut client = Client::connect(gateway.http());
        // Whoever waits for it sends the body anyway, in the end.
        let answer = client.send(&bytes).read();
        let status = answer.as_ref().map_or(0, |answer| answer.status);
        let expected = match name {
            "length_largest" => 413,
            // Nothing that a path pattern could match.
            "options_asterisk" => 404,
            "dot_segments" => 400,
            _ => 200,
        };
        if (if status == 100 { 200 } else { status }) != expected {
            wrong.push(format!("{name}: {answer:?}"));
            continue;
        }
        if name == "pipelined" {
            assert_eq!(client.response().status, 200);
        }
        let arrived = match (name, expected) {
            (_, 400..) => 0,
            ("pipelined", _) => 2,
            _ => 1,
        };
        eventually(&format!("{name} arrives"), SOON, || origin.count() - before >= arrived);
        assert_eq!(origin.count() - before, arrived, "{name}");
        for request in &origin.requests()[before..] {
            let why = ambiguity(request);
            // An upgrade is announced hop by hop.
            let upgrade = head.upgrade && !head.h2c && why.as_ref().is_some_and(|why| why.starts_with("connection"));
            if let Some(why) = why.filter(|_| !upgrade) {
                wrong.push(format!("{name} arrives with {why}: {}", String::from_utf8_lossy(&request.head)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each is sent with another request behind it, which arrives by itself where the body has one reading, and never where it has not.
#[test]
fn chunks_that_two_readers_could_end_apart_complete_no_request() {
    let origin = Origin::start("a");
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nbody_timeout = \"1s\"\n";
    let gateway = Gateway::start(&(listener.to_owned() + &everything_to(&[&origin], "")));
    let cases: Vec<_> = rows::<3>(include_str!("../corpus/http1/chunks.txt")).collect();
    assert!(cases.len() >= 145, "{}", cases.len());
    let (mut cut, mut wrong) = (BTreeMap::<&str, f64>::new(), Vec::new());
    for ([name, status, why], chunks) in &cases {
        let head = format!("POST /{name} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
        let next = format!("GET /after/{name} HTTP/1.1\r\nhost: a\r\n\r\n");
        let mut client = Client::connect(gateway.http());
        let answer = client.send([head.as_bytes(), chunks, next.as_bytes()].concat()).read();
        let (mut as_told, mut arrives) = (answer.as_ref().is_ok_and(|answer| answer.status.to_string() == *status), Vec::new());
        if *status == "200" {
            arrives = vec![format!("POST /{name} HTTP/1.1"), format!("GET /after/{name} HTTP/1.1")];
            as_told = as_told && client.read().is_ok_and(|answer| answer.status == 200);
        } else {
            *cut.entry(why).or_default() += 1.0;
            as_told = as_told && client.read_until_closed().is_empty();
        }
        let requests = origin.requests();
        let seen: Vec<_> = requests.iter().filter(|request| request.request_line().contains(&format!("/{name} "))).collect();
        let lines: Vec<String> = seen.iter().map(|request| request.request_line()).collect();
        let whole = seen.first().is_none_or(|request| {
            // Trailers that may not pass are dropped.
            request.body.len().to_string() == *why && request.trailers.lines().all(|line| line.starts_with("x-a:"))
        });
        let ambiguous = seen.iter().find_map(|request| ambiguity(request));
        if !as_told || lines != arrives || !whole || ambiguous.is_some() {
            wrong.push(format!("{name}: not {status} {why}, but {answer:?}, and {lines:?} arrived, {ambiguous:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (reason, count) in cut {
        let labels = [("listener", "http"), ("reason", reason)];
        eventually(&format!("{reason} is counted"), SOON, || {
            gateway.metric("gatewright_listener_connections_cut_total", &labels) == count
        });
    }
}
