//! The helpers, tried on each other: a test that passes because its tools are blind is worse than none.

use super::http1::{Broken, parse};
use super::load::Plan;
use super::metrics::Metrics;
use super::raw::{self, Client, get, request, send};
use super::{Answer, Load, Origin, SOON, eventually};
use std::time::Duration;

#[test]
fn parser_tells_complete_from_broken() {
    let complete = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP";
    let (response, length) = parse(complete, false, false).unwrap().unwrap();
    assert_eq!((response.status, response.text().as_str(), length, response.keep_alive), (200, "ok", complete.len() - 4, true));

    let early = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
    let (response, _) = parse(early, false, false).unwrap().unwrap();
    assert_eq!((response.status, response.interim.as_slice(), response.keep_alive), (204, &[103][..], false));

    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(parse(chunked, false, false).unwrap().unwrap().0.text(), "abc");
    for cut in 0..chunked.len() {
        assert!(parse(&chunked[..cut], false, false).unwrap().is_none(), "{cut}");
        let broken = parse(&chunked[..cut], false, true).unwrap_err();
        assert_eq!(matches!(broken, Broken::Closed), cut == 0, "{cut}: {broken}");
    }
    for wrong in [
        &b"\x16\x03\x01"[..],
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        assert!(matches!(parse(wrong, false, false), Err(Broken::Malformed(_))), "{:?}", String::from_utf8_lossy(wrong));
    }
}

#[test]
fn metrics_reader_unescapes_labels_and_sums_what_matches() {
    let text = "# HELP a b\n# TYPE a counter\na{x=\"1\",y=\"q\\\"\\\\}\"} 2\na{x=\"1\",y=\"z\"} 3 # {id=\"7\"} 1\nb 1e3\n";
    let metrics = Metrics::parse(text);
    assert_eq!(metrics.get("a", &[("x", "1")]), Some(5.0));
    assert_eq!(metrics.get("a", &[("y", "q\"\\}")]), Some(2.0));
    assert_eq!((metrics.get("b", &[]), metrics.get("c", &[])), (Some(1000.0), None));
    assert_eq!(metrics.series().len(), 3);
}

#[test]
fn origin_echoes_what_it_was_sent() {
    let origin = Origin::start("a");
    let response = send(origin.address(), "POST", "/p?q=1", &[("X-Thing", "v")], b"hello");
    let echo = response.json();
    let seen = ["origin", "method", "target", "body"].map(|member| echo[member].as_str().unwrap());
    assert_eq!(seen, ["a", "POST", "/p?q=1", "hello"]);
    assert_eq!(origin.last().header("x-thing").as_deref(), Some("v"));
    let chunked = b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert_eq!(Client::connect(origin.address()).exchange(chunked).unwrap().json()["body"], "abcde");
    assert!(Client::connect(origin.address()).exchange(request("HEAD", "/", &[], b"")).unwrap().body.is_empty());
    origin.set_healthy(false);
    assert_eq!((get(origin.address(), "/health").status, origin.health_checks(), origin.count()), (503, 1, 3));
}

#[test]
fn origin_misbehaves_as_told() {
    let origin = Origin::start("a");
    let ask = |answer| {
        origin.answer(answer);
        Client::connect(origin.address()).timeout(Duration::from_millis(500)).exchange(request("GET", "/", &[], b""))
    };
    assert!(matches!(ask(Answer::ResetBefore), Err(Broken::Closed)));
    assert!(matches!(ask(Answer::ResetMid), Err(Broken::Truncated(_))));
    assert!(matches!(ask(Answer::TruncatedChunks), Err(Broken::Truncated(_))));
    assert!(matches!(ask(Answer::BlackHole), Err(Broken::TimedOut(_))));
    assert!(matches!(ask(Answer::InfiniteBody), Err(Broken::TimedOut(_))));
    assert!(matches!(ask(Answer::Garbage), Err(Broken::Malformed(_))));
    assert!(matches!(ask(Answer::Drip(Duration::from_millis(40))), Err(Broken::TimedOut(_))));
    assert_eq!(ask(Answer::HugeHeader(9000)).unwrap().header("x-huge").map(str::len), Some(9000));
    assert_eq!(ask(Answer::Status(418)).unwrap().status, 418);
    assert_eq!(ask(Answer::Delay(Duration::from_millis(50))).unwrap().status, 200);
    assert!(!ask(Answer::CloseAfter(1)).unwrap().keep_alive);
    assert_eq!(ask(Answer::Bytes(b"HTTP/1.1 204 X\r\n\r\n".to_vec())).unwrap().status, 204);
}

#[test]
fn load_accounts_for_every_request_and_sees_failures() {
    let origin = Origin::start("a");
    let plan = Plan {
        address: origin.address(),
        connections: 3,
        method: "POST",
        target: "/load".into(),
        pause: Duration::from_millis(1),
    };
    let load = Load::start(plan);
    eventually("300 requests", SOON, || load.ok() >= 300);
    let report = load.finish();
    report.assert_clean(300);
    assert_eq!((report.connects, report.ok), (3, origin.count()));
    assert!(report.ids.iter().all(|id| origin.ids()[id] == 1));

    let load = Load::get(origin.address(), "/load");
    eventually("a request", SOON, || load.ok() >= 10);
    origin.answer(Answer::Status(500));
    let before = origin.count();
    eventually("requests that fail", SOON, || origin.count() >= before + 20);
    let report = load.finish();
    assert!(report.failed > 0 && report.details[0].contains("status 500"), "{report}");
}

#[test]
fn stopped_origin_refuses_finishes_what_is_under_way_and_comes_back() {
    let origin = Origin::start("a");
    origin.answer(Answer::Delay(Duration::from_millis(300)));
    let mut idle = Client::connect(origin.address());
    let mut busy = Client::connect(origin.address());
    busy.send(request("GET", "/", &[], b""));
    eventually("the request is there", SOON, || origin.count() == 1);
    origin.stop();
    assert_eq!(busy.response().status, 200);
    assert!(idle.closes_within(SOON));
    assert!(matches!(Client::try_connect(origin.address()), Err(Broken::Connect(_))));
    origin.start_again();
    origin.answer(Answer::Echo);
    assert_eq!(get(origin.address(), "/").status, 200);
    let mut cut = Client::connect(origin.address());
    assert_eq!(cut.exchange(request("GET", "/", &[], b"")).unwrap().status, 200);
    origin.kill();
    assert!(cut.closes_within(SOON));
}

#[test]
fn refusing_port_refuses() {
    let (address, _port) = raw::refusing_port();
    assert!(matches!(Client::try_connect(address), Err(Broken::Connect(_))));
}
