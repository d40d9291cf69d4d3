//! Compression towards clients: what they accept and nothing else, stored once for each coding.

use crate::support::http1::Response;
use crate::support::{self, Answer, Gateway, Origin, Script, raw};
use std::io::Read;
use std::sync::Arc;

fn plain(response: &Response) -> Vec<u8> {
    let mut back = Vec::new();
    match response.header("content-encoding") {
        Some("gzip") => drop(flate2::read::GzDecoder::new(&*response.body).read_to_end(&mut back).unwrap()),
        Some("br") => drop(brotli::Decompressor::new(&*response.body, 4096).read_to_end(&mut back).unwrap()),
        Some("zstd") => drop(zstd::stream::read::Decoder::new(&*response.body).unwrap().read_to_end(&mut back).unwrap()),
        Some(other) => panic!("coded as {other}"),
        None => back.clone_from(&response.body),
    }
    back
}

fn origin(text: &'static [u8]) -> Origin {
    let origin = Origin::start("app");
    origin.answer(Answer::Script(Script(Arc::new(move |request| {
        let line = request.request_line();
        let more =
            if line.contains("keep") { "cache-control: max-age=100, no-transform\r\n" } else { "cache-control: max-age=100\r\n" };
        let kind = if line.contains("image") { "image/png" } else { "text/plain" };
        let head =
            format!("HTTP/1.1 200 OK\r\n{more}content-type: {kind}\r\netag: \"a\"\r\ncontent-length: {}\r\n\r\n", text.len());
        Some([head.as_bytes(), text].concat())
    }))));
    origin
}

fn gateway(origin: &Origin) -> Gateway {
    let route = |name: &str, more: &str| {
        format!("[routes.{name}]\nmatch = {{ path = \"/{name}/{{*rest}}\" }}\nupstream = \"app\"\ncompress = {{}}\n{more}")
    };
    Gateway::start(&[support::upstream("app", &[origin], ""), route("cached", "cache = {}\n"), route("plain", "")].concat())
}

#[test]
fn every_client_gets_a_coding_that_it_reads() {
    let text: &'static [u8] = Vec::leak(b"a line of text that repeats\n".repeat(20_000));
    let origin = origin(text);
    let gateway = gateway(&origin);
    for route in ["plain", "cached", "cached"] {
        for (accept, coding) in
            [("gzip", Some("gzip")), ("br", Some("br")), ("zstd, gzip;q=0.5", Some("zstd")), ("identity", None), ("", None)]
        {
            let answer = raw::send(gateway.address("http"), "GET", &format!("/{route}/x"), &[("accept-encoding", accept)], b"");
            assert_eq!((answer.status, answer.header("content-encoding")), (200, coding), "{route} {accept}");
            assert!(plain(&answer) == text, "{route} {accept}");
            assert_eq!(answer.header("vary"), Some("Accept-Encoding"), "{route} {accept}");
            assert_eq!(answer.header("etag"), Some(if coding.is_some() { "W/\"a\"" } else { "\"a\"" }), "{route} {accept}");
            if coding.is_some() {
                assert!(answer.body.len() < text.len() / 20);
            }
        }
    }
    assert_eq!(origin.last().header("accept-encoding"), None, "the upstream sends plain bytes");
    assert_eq!(origin.count(), 5 + 1, "one fetch for all codings");
}

#[test]
fn what_varies_by_coding_at_the_origin_is_fetched_once() {
    let text: &'static [u8] = Vec::leak(b"a line of text that repeats\n".repeat(2_000));
    let origin = Origin::start("app");
    origin.answer(Answer::Script(Script(Arc::new(move |_| {
        let head = "HTTP/1.1 200 OK\r\ncache-control: max-age=100\r\ncontent-type: text/plain\r\nvary: X-A, Accept-Encoding\r\n";
        Some([format!("{head}content-length: {}\r\n\r\n", text.len()).as_bytes(), text].concat())
    }))));
    let gateway = gateway(&origin);
    for (accept, coding) in [("gzip", Some("gzip")), ("br", Some("br")), ("gzip, br;q=0.5", Some("gzip")), ("identity", None)] {
        let answer = raw::send(gateway.http(), "GET", "/cached/x", &[("accept-encoding", accept)], b"");
        assert_eq!((answer.status, answer.header("content-encoding")), (200, coding), "{accept}");
        assert!(plain(&answer) == text, "{accept}");
    }
    assert_eq!(origin.count(), 1, "one fetch, one stored answer");
    raw::send(gateway.http(), "GET", "/cached/x", &[("x-a", "1")], b"");
    assert_eq!(origin.count(), 2, "what else it varies by counts");
}

#[test]
fn who_wants_bytes_as_they_are_gets_them() {
    let text: &'static [u8] = Vec::leak(b"a line of text that repeats\n".repeat(2_000));
    let origin = origin(text);
    let gateway = gateway(&origin);
    for target in ["/plain/x", "/cached/x", "/cached/x"] {
        for (control, coding) in [("no-transform", None), ("max-age=100", Some("gzip"))] {
            let fields = [("accept-encoding", "gzip"), ("cache-control", control)];
            let answer = raw::send(gateway.http(), "GET", target, &fields, b"");
            assert_eq!((answer.status, answer.header("content-encoding")), (200, coding), "{target} {control}");
            assert!(plain(&answer) == text);
        }
    }
}

#[test]
fn what_must_stay_as_it_is_does() {
    let text: &'static [u8] = Vec::leak(b"0123456789".repeat(1_000));
    let origin = origin(text);
    let gateway = gateway(&origin);
    let get = |target: &str, fields: &[(&str, &str)]| {
        let fields = [&[("accept-encoding", "gzip")], fields].concat();
        raw::send(gateway.address("http"), "GET", target, &fields, b"")
    };
    for route in ["plain", "cached", "cached"] {
        for target in ["keep", "image"] {
            let answer = get(&format!("/{route}/{target}"), &[]);
            assert_eq!(
                (answer.header("content-encoding"), answer.header("etag"), answer.body == text),
                (None, Some("\"a\""), true)
            );
        }
    }
    get("/cached/x", &[]);
    let part = get("/cached/x", &[("range", "bytes=5-9")]);
    assert_eq!((part.status, part.text().as_str(), part.header("content-encoding")), (206, "56789", None));
    let same = get("/cached/x", &[("if-none-match", "W/\"a\"")]);
    assert_eq!((same.status, same.body.len()), (304, 0));
}
