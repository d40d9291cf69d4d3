//! One connection, many requests: what is kept open, for how long, and in which order it is answered.

use crate::support::h2::H2Origin;
use crate::support::raw::{Client, refusing_port, request};
use crate::support::{Answer, Gateway, Origin, SOON, eventually, everything_to, upstream};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// Waits until the gateway says that it closed so many connections for this reason.
fn closed(gateway: &Gateway, reason: &str, count: f64) {
    let labels = [("listener", "http"), ("reason", reason)];
    eventually(&format!("{count} closed: {reason}"), SOON, || {
        gateway.metric("gatewright_listener_connections_closed_total", &labels) == count
    });
}

#[test]
fn pipelined_requests_are_answered_each_and_in_order() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let mut client = Client::connect(gateway.http());
    // One write: gets, and a post whose body has the next request right behind it.
    let mut bytes = Vec::new();
    for target in ["/1", "/2"] {
        bytes.extend(request("GET", target, &[], b""));
    }
    bytes.extend(request("POST", "/3", &[], b"hello"));
    bytes.extend(request("GET", "/4", &[], b""));
    client.send(bytes);
    for target in ["/1", "/2", "/3", "/4"] {
        let response = client.response();
        assert_eq!(response.status, 200, "{target}");
        // The origin may have the next request already; its answer tells which one this belongs to.
        let echo: serde_json::Value = serde_json::from_str(&response.text()).unwrap();
        assert_eq!(echo["target"], target);
    }
    assert_eq!(origin.count(), 4);
}

#[test]
fn last_request_of_a_connection_says_so() {
    let origin = Origin::start("a");
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nkeepalive_requests = 2\n";
    let gateway = Gateway::start(&(listener.to_owned() + &everything_to(&[&origin], "")));
    let mut client = Client::connect(gateway.http());
    assert_ne!(client.exchange(request("GET", "/", &[], b"")).unwrap().header("connection"), Some("close"));
    assert_eq!(client.exchange(request("GET", "/", &[], b"")).unwrap().header("connection"), Some("close"));
    assert!(client.closes_within(SOON));
    closed(&gateway, "last_request", 1.0);
}

#[test]
fn a_client_that_wants_to_close_may_say_so_in_any_line() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    for lines in ["close", "keep-alive, close", "keep-alive\r\nconnection: close", "te\r\nte: trailers\r\nconnection: close"] {
        let mut client = Client::connect(gateway.http());
        let answer = client.exchange(format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: {lines}\r\n\r\n")).unwrap();
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{lines}");
        assert!(client.closes_within(SOON), "{lines}");
    }
}

#[test]
fn a_client_that_says_nothing_is_closed_and_counted() {
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nheader_timeout = \"300ms\"\n";
    let mut gateway = Gateway::start(listener);
    let mut silent = Client::connect(gateway.http());
    assert!(silent.closes_within(SOON));
    closed(&gateway, "silent", 1.0);
    // One that leaves by itself is not.
    drop(Client::connect(gateway.http()));
    eventually("it has left", SOON, || gateway.metric("gatewright_listener_connections_active", &[("listener", "http")]) == 0.0);
    closed(&gateway, "silent", 1.0);
    gateway.sigterm();
    gateway.wait_exit(SOON);
}

#[test]
fn idle_connection_is_closed_after_its_time() {
    let origin = Origin::start("a");
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nkeepalive_timeout = \"300ms\"\n";
    let gateway = Gateway::start(&(listener.to_owned() + &everything_to(&[&origin], "")));
    let mut client = Client::connect(gateway.http());
    let since = Instant::now();
    client.exchange(request("GET", "/", &[], b"")).unwrap();
    assert!(client.closes_within(SOON));
    assert!(since.elapsed() > Duration::from_millis(200), "{:?}", since.elapsed());
    closed(&gateway, "idle", 1.0);

    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nkeepalive_timeout = \"0s\"\n";
    let gateway = Gateway::start(&(listener.to_owned() + &everything_to(&[&origin], "")));
    let mut client = Client::connect(gateway.http());
    assert_eq!(client.exchange(request("GET", "/", &[], b"")).unwrap().header("connection"), Some("close"));
}

#[test]
fn http_1_0_is_kept_open_only_if_asked_to() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let mut client = Client::connect(gateway.http());
    client.send(b"GET / HTTP/1.0\r\nhost: localhost\r\n\r\n");
    assert_eq!(client.response().status, 200);
    assert!(client.closes_within(SOON));
    // One that asks must be told, or it takes the connection for closed.
    let mut client = Client::connect(gateway.http());
    for exchange in 0..3 {
        let answer = client.exchange("GET / HTTP/1.0\r\nhost: localhost\r\nconnection: keep-alive\r\n\r\n").unwrap();
        assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")), "{exchange}");
    }
    let last = client.exchange("GET / HTTP/1.0\r\nhost: localhost\r\n\r\n").unwrap();
    assert_eq!((last.status, last.keep_alive), (200, false));
    assert!(client.closes_within(SOON));
}

#[test]
fn slow_body_of_known_length_is_passed_on_as_it_comes() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    // The rest of the body never comes.
    origin.answer(Answer::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhel".to_vec()));
    let mut stream = std::net::TcpStream::connect(gateway.http()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&request("GET", "/", &[], b"")).unwrap();
    let mut buffer = [0; 4096];
    let mut seen = String::new();
    while !seen.ends_with("\r\n\r\nhel") {
        let length = stream.read(&mut buffer).unwrap_or_else(|e| panic!("{e} after {seen:?}"));
        assert_ne!(length, 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
}

#[test]
fn listener_may_be_a_unix_socket() {
    let origin = Origin::start("a");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("http.sock");
    let listener =
        format!("[listeners.http]\naddress = \"127.0.0.1:0\"\n[listeners.local]\naddress = \"unix:{}\"\n", path.display());
    let gateway = Gateway::start(&(listener + &everything_to(&[&origin], "")));
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    gateway.reload_with(&everything_to(&[&origin], "")).unwrap();
    crate::support::eventually("the socket file is removed with its listener", SOON, || !path.exists());
}

#[test]
fn a_request_that_fails_upstream_keeps_its_connection() {
    let origins = Origin::start_many(4);
    let (refusing, _port) = refusing_port();
    let answers = [Answer::ResetBefore, Answer::BlackHole, Answer::Garbage, Answer::ResetMid];
    origins.iter().zip(answers).for_each(|(origin, answer)| origin.answer(answer));
    let well = Origin::start("well");
    let address = |at: usize| origins[at].address();
    let mut toml = String::new();
    for (name, endpoint) in [
        ("refused", refusing),
        ("reset", address(0)),
        ("late", address(1)),
        ("garbage", address(2)),
        ("cut", address(3)),
        ("well", well.address()),
    ] {
        let attempt = if name == "late" { "200ms" } else { "10s" };
        let more = format!("retry = {{ attempts = 1 }}\ntimeouts = {{ attempt = \"{attempt}\" }}");
        toml += &format!(
            "[upstreams.{name}]\nendpoints = [\"{endpoint}\"]\n{more}\n[routes.{name}]\nmatch = {{ path = \"/{name}\" }}\nupstream = \"{name}\"\n"
        );
    }
    let gateway = Gateway::start(&toml);
    let mut client = Client::connect(gateway.http());
    for round in 0..2 {
        for (path, status, code) in [
            ("/refused", 502, "upstream_connect_failed"),
            ("/reset", 502, "upstream_reset"),
            ("/late", 504, "upstream_timeout"),
            ("/garbage", 502, "upstream_protocol_error"),
        ] {
            for (method, body) in [("GET", ""), ("POST", "a short body")] {
                let response = client.exchange(request(method, path, &[], body.as_bytes())).unwrap();
                assert_eq!(
                    (response.status, response.code().as_str(), response.keep_alive),
                    (status, code, true),
                    "{method} {path} {round}"
                );
                assert_eq!(client.exchange(request("GET", "/well", &[], b"")).unwrap().status, 200, "after {method} {path}");
            }
        }
    }
    // Each is in the access log once, with what was answered.
    let lines = || gateway.access_log().into_iter().filter(|line| line["path"] == "/late" && line["status"] == 504).count();
    eventually("four lines", SOON, || lines() == 4);
    // The next request may be on its way already.
    client.send([request("GET", "/refused", &[], b""), request("GET", "/well", &[], b"")].concat());
    assert_eq!([client.response().status, client.response().status], [502, 200]);
    // A body that is too long to be read for nothing ends the connection, and so does an answer that broke off.
    let long = vec![b'x'; 1 << 20];
    let response = client.exchange(request("POST", "/refused", &[], &long)).unwrap();
    assert_eq!((response.status, response.keep_alive), (502, false));
    assert!(Client::connect(gateway.http()).exchange(request("GET", "/cut", &[], b"")).is_err());
}

#[test]
fn a_request_that_finds_no_endpoint_keeps_its_connection() {
    let origin = Origin::start("a");
    let health = "health = { path = \"/health\", interval = \"1s\", timeout = \"900ms\", rise = 1, fall = 1 }";
    let gateway = Gateway::start(&everything_to(&[&origin], health));
    origin.set_healthy(false);
    gateway.wait_healthy(origin.address(), false);
    let mut client = Client::connect(gateway.http());
    for _ in 0..3 {
        let response = client.exchange(request("POST", "/", &[], b"body")).unwrap();
        assert_eq!((response.code().as_str(), response.keep_alive), ("upstream_unavailable", true));
    }
    origin.set_healthy(true);
    gateway.wait_healthy(origin.address(), true);
    assert_eq!(client.exchange(request("GET", "/", &[], b"")).unwrap().status, 200);
}

#[test]
fn http_1_0_gets_no_chunks_and_the_end_of_the_connection_is_that_of_the_answer() {
    let (origin, h2) = (Origin::start("a"), H2Origin::plain());
    let toml = [
        upstream("app", &[&origin], ""),
        format!("[upstreams.h2]\nendpoints = [\"{}\"]\nprotocol = \"h2c\"\n", h2.address),
        "[routes.plain]\nmatch = { path = \"/plain\" }\nupstream = \"app\"\n".to_owned(),
        "[routes.coded]\nmatch = { path = \"/coded\" }\nupstream = \"app\"\ncompress = { min_size = \"1B\" }\n".to_owned(),
        "[routes.cached]\nmatch = { path = \"/cached\" }\nupstream = \"app\"\ncache = {}\n".to_owned(),
        "[routes.h2]\nmatch = { path = \"/h2\" }\nupstream = \"h2\"\n".to_owned(),
    ];
    let gateway = Gateway::start(&toml.concat());
    let whole =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncache-control: max-age=100\r\ntransfer-encoding: chunked\r\n\r\n\
                  5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n";
    origin.answer(Answer::Bytes(whole.to_vec()));
    for path in ["/plain", "/coded", "/cached", "/cached", "/h2"] {
        for more in ["", "connection: keep-alive\r\n"] {
            let mut client = Client::connect(gateway.http());
            client.send(format!(
                "POST {path} HTTP/1.0\r\nhost: localhost\r\naccept-encoding: gzip\r\ncontent-length: 12\r\n{more}\r\nhello, world"
            ).replace("POST /cached", "GET /cached"));
            let answer = client.response();
            assert_eq!((answer.status, answer.header("transfer-encoding")), (200, None), "{path}");
            let mut body = answer.text();
            if path == "/coded" {
                body.clear();
                flate2::read::GzDecoder::new(&*answer.body).read_to_string(&mut body).unwrap();
            }
            assert_eq!(body, "hello, world", "{path}");
            if answer.header("content-length").is_none() {
                assert_eq!(answer.header("connection"), Some("close"), "{path}");
                assert!(client.closes_within(SOON), "{path}");
            }
        }
    }
    let mut slowly = Client::connect(gateway.http());
    origin.answer(Answer::Drip(Duration::from_millis(1)));
    slowly.send("GET /plain HTTP/1.0\r\nhost: localhost\r\n\r\n");
    assert_eq!(slowly.response().origin(), "a");
    // An answer that breaks off is not one that ends.
    origin.answer(Answer::TruncatedChunks);
    for path in ["/plain", "/coded", "/cached?cut"] {
        let mut client = Client::connect(gateway.http());
        client.send(format!("GET {path} HTTP/1.0\r\nhost: localhost\r\naccept-encoding: gzip\r\n\r\n"));
        let answer = client.read();
        assert!(answer.is_err(), "{path}: {answer:?}");
    }
}
