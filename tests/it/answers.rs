//! What upstreams may answer: a response that could be read in two ways is a 502, and its connection is not used again.

use crate::support::raw::{Client, get, request};
use crate::support::{Answer, Gateway, Origin, SOON, everything_to};

#[test]
fn an_ambiguous_answer_is_502_and_its_connection_is_not_used_again() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let cases = [
        ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc"),
        ("a list of lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2, 3\r\n\r\nabc"),
        ("a length that is no number", "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nab"),
        ("a length beyond all bounds", "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\nab"),
        (
            "chunks twice",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        ),
        ("another coding", "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"),
        ("a control byte", "HTTP/1.1 200 OK\r\nx-a: \u{1}\r\ncontent-length: 2\r\n\r\nab"),
        ("a zero byte", "HTTP/1.1 200 OK\r\nx-a: a\0b\r\ncontent-length: 2\r\n\r\nab"),
        ("no status", "HTTP/1.1\r\ncontent-length: 2\r\n\r\nab"),
        ("another protocol", "SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    ];
    for (what, bytes) in cases {
        origin.answer(Answer::Bytes(bytes.as_bytes().to_vec()));
        let answer = get(gateway.http(), "/");
        assert_eq!(answer.status, 502, "{what}: {:?} {}", answer.headers, answer.text());
        // It closes its connection, so that no good one is left in the pool for the next case.
        origin.answer(Answer::CloseAfter(1));
        let before = origin.connections();
        assert_eq!(get(gateway.http(), "/").status, 200, "{what}");
        assert_eq!(origin.connections(), before + 1, "{what}: the connection was used again");
    }
}

#[test]
fn an_answer_that_can_be_mended_has_one_reading_for_the_client() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    for bytes in [
        // RFC 9112 §6.3: the coding overrides the length, which is not passed on.
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        // RFC 9112 §5.1: the space is removed.
        "HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nab",
    ] {
        origin.answer(Answer::Bytes(bytes.into()));
        // The parser of the test takes neither.
        assert_eq!(get(gateway.http(), "/").text(), "ab");
    }
}

#[test]
fn bytes_after_an_answer_are_nobodys_answer() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let excess = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    origin.answer(Answer::Bytes(excess.as_bytes().to_vec()));
    let mut client = Client::connect(gateway.http());
    for _ in 0..10 {
        let answer = client.exchange(request("GET", "/", &[], b"")).unwrap();
        assert!(answer.status == 502 || answer.text() == "ab", "{} {}", answer.status, answer.text());
        if !answer.keep_alive {
            client = Client::connect(gateway.http());
        }
    }
}

#[test]
fn floods_of_headers_and_interim_answers_are_bounded() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    origin.answer(Answer::HugeHeader(2 << 20));
    assert_eq!(get(gateway.http(), "/").status, 502);
    let interim = |count: usize| "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n".repeat(count);
    let last = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    origin.answer(Answer::Bytes((interim(3) + last).into_bytes()));
    let answer = get(gateway.http(), "/");
    assert_eq!((answer.status, answer.interim), (200, vec![103; 3]));
    origin.answer(Answer::Bytes((interim(10_000) + last).into_bytes()));
    let answer = get(gateway.http(), "/");
    assert_eq!(answer.status, 502);
    assert!(answer.interim.len() <= 16, "{}", answer.interim.len());
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it_from_the_origin() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    // The origin says 100 by itself when it is asked to.
    let mut client = Client::connect(gateway.http());
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    // The body is sent only when the 100 is here.
    assert!(client.closed_or_answered(SOON));
    let answer = client.send("body").response();
    assert_eq!((answer.status, answer.interim.as_slice()), (200, &[100][..]));
    assert_eq!(origin.last().body, b"body");
}
