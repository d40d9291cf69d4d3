//! Trailers of answers and of requests: passed on to whoever takes them, and only what may be one.

use crate::support::h2::{H2Client, H2Origin, grpc};
use crate::support::raw::Client;
use crate::support::{Answer, Gateway, Origin, SOON, eventually, everything_to, runtime, upstream};
use bytes::Bytes;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n";

fn ask(method: &str, te: bool, last: bool) -> String {
    let te = if te { "te: gzip, trailers\r\nconnection: te\r\n" } else { "" };
    let last = if last { "connection: close\r\n" } else { "" };
    format!("{method} / HTTP/1.1\r\nhost: a\r\n{te}{last}\r\n")
}

/// All bytes of the answers to these requests, the last of which ends the connection.
fn answers(address: SocketAddr, requests: &[String]) -> Vec<String> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(requests.concat().as_bytes()).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    let found: Vec<String> = all.split("HTTP/1.1 ").skip(1).map(ToOwned::to_owned).collect();
    assert_eq!(found.len(), requests.len(), "{all}");
    found
}

#[test]
fn trailers_reach_a_client_of_http1_that_takes_them_and_no_other() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    // The data look like the end of the body.
    let body = "5\r\n0\r\n\r\n\r\n0\r\n";
    let fields = "X-Sum: 1\r\nset-cookie: a=b\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\nServer-Timing: a;dur=1\r\n";
    origin.answer(Answer::Bytes(format!("{CHUNKED}{body}{fields}\r\n").into_bytes()));
    let [with, without, again] =
        &answers(gateway.http(), &[ask("GET", true, false), ask("GET", false, false), ask("GET", true, true)])[..]
    else {
        unreachable!()
    };
    for with in [with, again] {
        assert!(with.contains("trailer: x-sum\r\n"), "{with}");
        assert!(with.contains("\r\n5\r\n0\r\n\r\n\r\n"), "{with}");
        assert!(with.ends_with("0\r\nX-Sum: 1\r\nServer-Timing: a;dur=1\r\n\r\n"), "{with}");
    }
    assert!(without.ends_with("0\r\n\r\n") && !without.to_lowercase().contains("x-sum"), "{without}");
    // The upstream is told who takes them, and its connection is used again.
    let told: Vec<_> = origin.requests().iter().map(|request| request.header("te")).collect();
    assert_eq!(told, [Some("trailers".to_owned()), None, Some("trailers".to_owned())]);
    assert_eq!(origin.connections(), 1);
}

#[test]
fn trailers_stay_away_where_they_could_be_taken_for_something_else() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    // One of them is nominated for the connection with the upstream.
    let nominated = "HTTP/1.1 200 OK\r\nconnection: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-sum: 1\r\n\r\n";
    origin.answer(Answer::Bytes(nominated.into()));
    assert!(answers(gateway.http(), &[ask("GET", true, true)])[0].ends_with("2\r\nab\r\n0\r\n\r\n"));
    // Too many of them for anybody.
    let flood = format!("{CHUNKED}2\r\nab\r\n0\r\n{}\r\n", "x-sum: 1\r\n".repeat(2_000));
    origin.answer(Answer::Bytes(flood.into_bytes()));
    let mut client = Client::connect(gateway.http());
    let broken = client.exchange(ask("GET", true, false));
    assert!(broken.is_err() || broken.is_ok_and(|answer| answer.status == 502));
    // An answer to HEAD has no end that they could follow, and the next one is none of theirs.
    origin.answer(Answer::Bytes(CHUNKED.into()));
    let head = answers(gateway.http(), &[ask("HEAD", true, true)]);
    assert!(head[0].ends_with("\r\n\r\n") && !head[0].contains("\r\n0\r\n"), "{}", head[0]);
}

#[test]
fn trailers_of_http2_reach_a_client_of_http1() {
    let origin = H2Origin::plain();
    let gateway = Gateway::start(&origin.everything("protocol = \"h2c\""));
    let post = |te: &str| format!("POST / HTTP/1.1\r\nhost: a\r\n{te}connection: close\r\ncontent-length: 2\r\n\r\nab");
    let with = answers(gateway.http(), &[post("te: trailers\r\n")]);
    assert!(with[0].ends_with("2\r\nab\r\n0\r\ngrpc-status: 0\r\nx-count: 1\r\n\r\n"), "{}", with[0]);
    let without = answers(gateway.http(), &[post("")]);
    assert!(without[0].ends_with("2\r\nab\r\n0\r\n\r\n"), "{}", without[0]);
    assert_eq!(origin.seen.requests.lock()[0].headers.get("te").map(|te| te.as_bytes()), Some(&b"trailers"[..]));
}

#[test]
fn trailers_of_http1_end_where_the_client_speaks_http2_and_are_not_announced() {
    let origin = Origin::start("a");
    origin.answer(Answer::Bytes(format!("{CHUNKED}2\r\nab\r\n0\r\nx-sum: 1\r\n\r\n").into_bytes()));
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n".to_owned();
    let gateway = Gateway::start(&(listener + &everything_to(&[&origin], "")));
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let answer = client.call(grpc("Any"), &[b"ab"]).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, &b"ab"[..]));
        assert_eq!((answer.header("trailer"), answer.trailer("x-sum")), (None, None));
    });
}

/// A request with these header lines and trailers, each with its line break.
fn sent(method: &str, lines: &str, trailers: &str) -> String {
    // The data look like the end of the body.
    format!("{method} / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n{lines}\r\n5\r\n0\r\n\r\n\r\n0\r\n{trailers}\r\n")
}

#[test]
fn trailers_of_a_request_follow_its_chunked_body_and_no_other() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let fields = "X-Sum: 1\r\ncookie: a=b\r\nContent-Length: 3\r\ntransfer-encoding: chunked\r\nauthorization: b\r\nHost: b\r\n\
                  x-forwarded-for: 192.0.2.1\r\nx-request-id: 1\r\nServer-Timing: a;dur=1\r\n";
    let with = sent("POST", "trailer: X-Sum, authorization\r\n", fields);
    let plain = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n0\r\n\r\n".to_owned();
    let last = sent("POST", "connection: close\r\n", "");
    // On one connection, all of them at once.
    answers(gateway.http(), &[with, plain, ask("GET", true, false), last]);
    let seen = origin.requests();
    let trailers: Vec<_> = seen.iter().map(|request| request.trailers.as_str()).collect();
    assert_eq!(trailers, ["X-Sum: 1\r\nServer-Timing: a;dur=1\r\n", "", "", ""]);
    let announced: Vec<_> = seen.iter().map(|request| request.header("trailer")).collect();
    assert_eq!(announced, [Some("X-Sum".to_owned()), None, None, None]);
    let bodies: Vec<_> = seen.iter().map(|request| request.body.as_slice()).collect();
    assert_eq!(bodies, [&b"0\r\n\r\n"[..], b"0\r\n\r\n", b"", b"0\r\n\r\n"]);
    assert_eq!(origin.connections(), 1, "the connection with the upstream is used again");
}

#[test]
fn a_request_that_is_sent_again_has_its_trailers_again_and_its_copy_has_none() {
    let (first, second, other) = (Origin::start("a"), Origin::start("b"), Origin::start("c"));
    for origin in [&first, &second] {
        origin.answer(Answer::Status(503));
    }
    let gateway = Gateway::start(&format!(
        "{}{}\n[routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\nmirror = {{ upstream = \"other\" }}\n",
        upstream("app", &[&first, &second], "retry = { attempts = 2, on = [\"503\"] }"),
        upstream("other", &[&other], ""),
    ));
    // The second one has no data, only trailers.
    let empty = "PUT / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-sum: 2\r\n\r\n";
    answers(gateway.http(), &[sent("PUT", "", "x-sum: 1\r\n"), empty.to_owned()]);
    for origin in [&first, &second] {
        let trailers: Vec<_> = origin.requests().into_iter().map(|request| request.trailers).collect();
        assert_eq!(trailers, ["x-sum: 1\r\n", "x-sum: 2\r\n"]);
    }
    eventually("two copies", SOON, || other.count() == 2);
    assert!(other.requests().iter().all(|copy| copy.trailers.is_empty() && copy.header("transfer-encoding").is_none()));
}

#[test]
fn trailers_of_a_request_say_nothing_that_the_gateway_says_in_its_head() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&format!(
        "[server]\nidentity_headers = [\"x-staff-*\"]\n\
         [consumers.acme]\ncredentials = [{{ api_key = {{ sha256 = \"20f03f9b9b50f0e4d02549f151bcfdf21f6122673088163251b9be2792f0efb9\" }} }}]\n{}\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\ntimeouts = {{ request = \"30s\", header = \"x-time-left\" }}\n\
         filters = [{{ api_key = {{}} }}, {{ request_headers = {{ set = {{ x-set = \"1\", x-who = \"${{client_cert_subject}}\" }}, \
         add = {{ x-added = \"1\" }}, remove = [\"x-gone\"] }} }}]\n",
        upstream("app", &[&origin], "")
    ));
    let forged = "x-consumer-name: admin\r\nX-Staff-Id: 1\r\nx-api-key: k\r\nx-set: 2\r\nx-who: admin\r\nx-added: 2\r\nX-Gone: 1\r\n\
                  x-time-left: 1\r\nx_under: 1\r\nx-sum: 1\r\n";
    let key = "x-api-key: key-of-acme-0123456789\r\n";
    let named = format!("{key}connection: x-sum, close\r\n");
    let answers = answers(gateway.http(), &[sent("POST", key, forged), sent("POST", &named, "x-sum: 2\r\nx-other: 2\r\n")]);
    assert!(answers.iter().all(|answer| answer.starts_with("200")), "{answers:?}");
    let trailers: Vec<_> = origin.requests().into_iter().map(|request| request.trailers).collect();
    // In the second request one of them is nominated for the connection with the gateway.
    assert_eq!(trailers, ["x-sum: 1\r\n", ""]);
}

#[test]
fn trailers_of_one_request_are_those_of_no_other() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    // Those of the first one may not pass, and stay where they are.
    let requests = [
        sent("POST", "connection: x-sum\r\n", "x-sum: 1\r\n"),
        sent("POST", "", ""),
        sent("POST", "", "x-sum: 3\r\n"),
        sent("POST", "connection: close\r\n", ""),
    ];
    answers(gateway.http(), &requests);
    let trailers: Vec<_> = origin.requests().into_iter().map(|request| request.trailers).collect();
    assert_eq!(trailers, ["", "", "x-sum: 3\r\n", ""]);
}

#[test]
fn trailers_of_a_request_end_where_one_side_speaks_http2() {
    let http2 = H2Origin::plain();
    let gateway = Gateway::start(&http2.everything("protocol = \"h2c\""));
    let answer = answers(gateway.http(), &[sent("POST", "trailer: x-sum\r\nconnection: close\r\n", "x-sum: 1\r\n")]);
    assert!(answer[0].starts_with("200") && answer[0].ends_with("\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n"), "{}", answer[0]);
    assert!(http2.seen.trailers.lock().is_empty());
    assert_eq!(http2.seen.requests.lock()[0].headers.get("trailer"), None);

    let origin = Origin::start("a");
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n".to_owned();
    let gateway = Gateway::start(&(listener + &everything_to(&[&origin], "")));
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let mut sender = client.sender.clone().ready().await.unwrap();
        let request = http::Request::post("http://localhost/").header("trailer", "x-sum").body(()).unwrap();
        let (answer, mut body) = sender.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"ab"), false).unwrap();
        body.send_trailers(http::HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())])).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
    });
    let seen = origin.last();
    assert_eq!((seen.body.as_slice(), seen.trailers.as_str(), seen.header("trailer")), (&b"ab"[..], "", None));
}
