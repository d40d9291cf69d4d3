//! One connection, many requests: what is kept open, for how long, and in which order it is answered.

use crate::support::raw::{Client, request};
use crate::support::{Answer, Gateway, Origin, SOON, everything_to};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

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
}

#[test]
fn idle_connection_is_closed_after_its_time() {
    let origin = Origin::start("a");
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nkeepalive_timeout = \"300ms\"\n";
    let gateway = Gateway::start(&(listener.to_owned() + &everything_to(&[&origin], "")));
    let mut client = Client::connect(gateway.http());
    client.exchange(request("GET", "/", &[], b"")).unwrap();
    let since = Instant::now();
    assert!(client.closes_within(SOON));
    assert!(since.elapsed() > Duration::from_millis(200), "{:?}", since.elapsed());

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
