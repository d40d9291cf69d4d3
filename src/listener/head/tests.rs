//! The corpus, its verdicts in every division into pieces, and a second opinion by httparse.

use super::*;
use crate::http1::corpus::rows;
use proptest::prelude::*;

const MALFORMED: &str = include_str!("../../../tests/corpus/http1/malformed.txt");
const VALID: &str = include_str!("../../../tests/corpus/http1/valid.txt");

/// Name, expectation, bytes.
fn corpus(text: &'static str) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    rows::<2>(text).map(|([name, expected], bytes)| (name, expected, bytes)).collect()
}

fn whole(bytes: &[u8], limits: &HeadLimits) -> Result<Option<Head>, Malformed> {
    HeadScanner::new().scan(bytes, limits)
}

/// The verdict on bytes that arrive in pieces that end at `cuts`, as soon as there is one.
fn in_pieces(bytes: &[u8], cuts: impl IntoIterator<Item = usize>, limits: &HeadLimits) -> Result<Option<Head>, Malformed> {
    let mut scanner = HeadScanner::new();
    for cut in cuts.into_iter().chain([bytes.len()]) {
        match scanner.scan(&bytes[..cut.min(bytes.len())], limits) {
            Ok(None) => {}
            verdict => return verdict,
        }
    }
    Ok(None)
}

/// Method, target, minor version, and the headers in order.
type Parsed = (String, String, u8, Vec<(String, Vec<u8>)>);

/// The head as httparse reads it, or `None` if it refuses.
fn second_opinion(head: &[u8]) -> Option<Parsed> {
    let mut headers = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(len)) => assert_eq!(len, head.len(), "the head ends elsewhere"),
        _ => return None,
    }
    let list = request.headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec())).collect();
    Some((request.method?.to_owned(), request.path?.to_owned(), request.version?, list))
}

/// The same, in the plainest way possible.
fn split(head: &[u8]) -> Parsed {
    let text: String = head.iter().map(|&byte| char::from(byte)).collect();
    let mut lines = text.trim_start_matches("\r\n").split("\r\n");
    let first: Vec<&str> = lines.next().expect("a request line").split(' ').collect();
    let header = |line: &str| {
        let (name, value) = line.split_once(':').expect("a colon");
        (name.to_owned(), value.trim_matches([' ', '\t']).chars().map(|c| c as u8).collect())
    };
    let headers = lines.take_while(|line| !line.is_empty()).map(header).collect();
    (first[0].to_owned(), first[1].to_owned(), u8::from(first[2] == "HTTP/1.1"), headers)
}

fn check_accepted(bytes: &[u8], head: &Head) {
    let own = split(&bytes[..head.len]);
    assert_eq!(second_opinion(&bytes[..head.len]).as_ref(), Some(&own), "{}", bytes.escape_ascii());
    let named = |wanted: &str| own.3.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).collect::<Vec<_>>();
    match (named("content-length").as_slice(), named("transfer-encoding").as_slice()) {
        ([], []) => assert_eq!(head.framing, Framing::None),
        ([(_, value)], []) => {
            let length = std::str::from_utf8(value).expect("digits").parse().expect("a number");
            assert_eq!(head.framing, Framing::Length(length));
        }
        ([], [(_, value)]) => {
            assert!(value.eq_ignore_ascii_case(b"chunked"));
            assert_eq!((head.framing, head.version), (Framing::Chunked, Version::Http11));
        }
        other => panic!("accepted: {other:?}"),
    }
    assert!(named("host").len() == 1 || (named("host").is_empty() && head.version == Version::Http10), "Host");
    assert_eq!(head.upgrade, !named("upgrade").is_empty());
}

#[test]
fn every_malformed_head_is_refused_for_its_reason() {
    let corpus = corpus(MALFORMED);
    assert!(corpus.len() >= 300, "{}", corpus.len());
    let (mut reasons, mut wrong) = (std::collections::BTreeSet::new(), Vec::new());
    for (name, reason, bytes) in corpus {
        let verdict = whole(&bytes, &HeadLimits::default());
        if verdict.map_err(Malformed::name) != Err(reason) {
            wrong.push(format!("{name} {reason} {}: {verdict:?}", bytes.escape_ascii()));
        }
        reasons.insert(reason);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for problem in Malformed::ALL {
        // The bounds have a test of their own.
        let bound = matches!(problem, Malformed::UriTooLong | Malformed::HeadersTooLarge | Malformed::TooManyHeaders);
        // Not in the head but after it; the transport finds it.
        let bound = bound || *problem == Malformed::EarlyUpgradeBytes;
        // HTTP/1 trims values; over HTTP/2 frames.rs has them.
        let bound = bound || *problem == Malformed::PaddedValue;
        assert!(bound || reasons.contains(problem.name()), "no head in the corpus is refused for {problem}");
    }
}

#[test]
fn every_valid_head_passes_and_is_understood() {
    let corpus = corpus(VALID);
    assert!(corpus.len() >= 30);
    for (name, expected, bytes) in corpus {
        let head = match whole(&bytes, &HeadLimits::default()) {
            Ok(Some(head)) => head,
            other => panic!("{name}: {other:?}"),
        };
        let mut found = match head.framing {
            Framing::None => "none".to_owned(),
            Framing::Length(length) => format!("length={length}"),
            Framing::Chunked => "chunked".to_owned(),
        };
        for (flag, text) in
            [(!head.keep_alive, ",close"), (head.upgrade, ",upgrade"), (head.h2c, ",h2c"), (head.expect_continue, ",expect")]
        {
            if flag {
                found.push_str(text);
            }
        }
        assert_eq!(found, expected, "{name}");
        assert!(bytes[..head.len].ends_with(b"\r\n\r\n"), "{name}");
        check_accepted(&bytes, &head);
    }
}

#[test]
fn pieces_change_no_verdict() {
    for (name, _, bytes) in corpus(MALFORMED).into_iter().chain(corpus(VALID)) {
        for limits in [HeadLimits::default(), HeadLimits { max_header: 40, max_headers: 1, max_uri: 3, allow_underscores: true }]
        {
            let verdict = whole(&bytes, &limits);
            assert_eq!(in_pieces(&bytes, 0..bytes.len(), &limits), verdict, "{name} byte by byte");
            for cut in 0..bytes.len() {
                assert_eq!(in_pieces(&bytes, [cut], &limits), verdict, "{name} cut at {cut}");
            }
        }
    }
}

#[test]
fn a_head_without_its_last_byte_is_not_complete() {
    for (name, _, bytes) in corpus(VALID) {
        let head = whole(&bytes, &HeadLimits::default()).expect(name).expect(name);
        for end in 0..head.len {
            assert_eq!(whole(&bytes[..end], &HeadLimits::default()), Ok(None), "{name} up to {end}");
        }
    }
}

#[test]
fn bounds_hold_at_their_edge() {
    let bytes = b"GET /1234567 HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n";
    let exact = HeadLimits { max_header: bytes.len(), max_headers: 2, max_uri: 8, allow_underscores: false };
    assert!(whole(bytes, &exact).is_ok_and(|head| head.is_some_and(|head| head.len == bytes.len())));
    let smaller = |change: fn(&mut HeadLimits)| {
        let mut limits = exact;
        change(&mut limits);
        whole(bytes, &limits)
    };
    assert_eq!(smaller(|limits| limits.max_header -= 1), Err(Malformed::HeadersTooLarge));
    assert_eq!(smaller(|limits| limits.max_headers -= 1), Err(Malformed::TooManyHeaders));
    assert_eq!(smaller(|limits| limits.max_uri -= 1), Err(Malformed::UriTooLong));
    assert_eq!(smaller(|limits| limits.max_header = 5), Err(Malformed::UriTooLong), "not even the request line fits");
    assert_eq!(smaller(|limits| *limits = HeadLimits { max_header: 0, ..*limits }), Err(Malformed::UriTooLong));
    // Not only when the line ends: a line that never ends is cut as well.
    let endless = [b"GET /".as_slice(), &vec![b'a'; 9_000]].concat();
    assert_eq!(whole(&endless, &HeadLimits::default()), Err(Malformed::UriTooLong));
    let endless = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &vec![b'a'; 33_000]].concat();
    assert_eq!(whole(&endless, &HeadLimits::default()), Err(Malformed::HeadersTooLarge));
}

#[test]
fn underscores_pass_where_they_are_allowed() {
    let limits = HeadLimits { allow_underscores: true, ..HeadLimits::default() };
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nX_Y: z\r\nContent_Length: 5\r\n\r\n";
    let head = whole(bytes, &limits).expect("valid").expect("complete");
    assert_eq!(head.framing, Framing::None, "it is another header");
    check_accepted(bytes, &head);
}

#[test]
fn a_refusal_has_the_status_of_its_kind() {
    for problem in Malformed::ALL {
        let expected = match problem {
            Malformed::UriTooLong => 414,
            Malformed::HeadersTooLarge | Malformed::TooManyHeaders => 431,
            Malformed::VersionNotSupported => 505,
            _ => 400,
        };
        assert_eq!(problem.rejection().status, expected, "{problem}");
    }
}

/// Heads that are nearly right: from pieces of the grammar, some of them spoilt.
fn nearly_a_head() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        8 => Just("GET / HTTP/1.1\r\n"), 2 => Just("POST /a?b HTTP/1.0\r\n"), 1 => Just("OPTIONS * HTTP/1.1\r\n"),
        1 => Just("GET http://a/ HTTP/1.1\r\n"), 1 => Just("GET /  HTTP/1.1\r\n"),
    ];
    let header = prop_oneof![
        4 => Just("Host: a\r\n"), 2 => Just("Host: b:80\r\n"), 3 => Just("Content-Length: 5\r\n"), 2 => Just("Content-Length: 6\r\n"),
        3 => Just("Transfer-Encoding: chunked\r\n"), 1 => Just("Transfer-Encoding: x\r\n"), 2 => Just("Connection: close\r\n"),
        1 => Just("Connection: upgrade\r\n"), 1 => Just("Upgrade: websocket\r\n"), 1 => Just("Expect: 100-continue\r\n"),
        2 => Just("X: y\r\n"), 1 => Just("X: y\n"), 1 => Just(" z\r\n"), 1 => Just("X : y\r\n"),
    ];
    let spoil = proptest::option::weighted(0.4, (any::<prop::sample::Index>(), any::<u8>()));
    (line, proptest::collection::vec(header, 0..6), spoil).prop_map(|(line, headers, spoil)| {
        let mut bytes = [line, &headers.concat(), "\r\n"].concat().into_bytes();
        if let Some((at, byte)) = spoil {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_passes_reads_the_same_to_another_parser(bytes in nearly_a_head(), cuts in proptest::collection::vec(0_usize..120, 0..4)) {
        let limits = HeadLimits::default();
        let verdict = whole(&bytes, &limits);
        let mut cuts = cuts;
        cuts.sort_unstable();
        prop_assert_eq!(in_pieces(&bytes, cuts, &limits), verdict);
        if let Ok(Some(head)) = verdict {
            check_accepted(&bytes, &head);
        }
    }

    #[test]
    fn any_bytes_get_a_verdict(
        bytes in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b' '), Just(b':'), Just(b'A'), any::<u8>()], 0..200),
        max_header in 0_usize..300, max_headers in 0_usize..5, max_uri in 0_usize..50, cut in 0_usize..200,
    ) {
        let limits = HeadLimits { max_header, max_headers, max_uri, allow_underscores: false };
        prop_assert_eq!(in_pieces(&bytes, [cut], &limits), whole(&bytes, &limits));
    }
}
