//! The corpus, its verdicts in every division into pieces, and a second opinion by httparse.

use super::*;
use crate::http1::corpus::rows;
use proptest::prelude::*;

const MALFORMED: &str = include_str!("../../../tests/corpus/http1/answers.txt");
const VALID: &str = include_str!("../../../tests/corpus/http1/answers_valid.txt");

fn asked(word: &str) -> Asked {
    match word {
        "head" => Asked::Head,
        "upgrade" => Asked::Upgrade,
        "get" => Asked::Other,
        other => panic!("{other} is nothing to ask"),
    }
}

/// How many bytes had one reading, and whether the answer is over.
fn whole(bytes: &[u8], asked: Asked) -> Result<(usize, bool), Malformed> {
    let mut scanner = AnswerScanner::new(asked);
    let read = scanner.scan(bytes)?;
    Ok((read, scanner.is_over()))
}

/// The same for bytes that arrive in pieces that end at `cuts`. What is held back is shown again, as its caller does.
fn in_pieces(bytes: &[u8], asked: Asked, cuts: impl IntoIterator<Item = usize>) -> Result<(usize, bool), Malformed> {
    let mut scanner = AnswerScanner::new(asked);
    let mut read = 0;
    for cut in cuts.into_iter().chain([bytes.len()]) {
        let end = cut.min(bytes.len());
        if end > read {
            read += scanner.scan(&bytes[read..end])?;
        }
    }
    Ok((read, scanner.is_over()))
}

#[test]
fn every_malformed_answer_is_refused_for_its_reason_however_it_is_cut() {
    let mut reasons = std::collections::HashSet::new();
    for ([name, question, reason], bytes) in rows::<3>(MALFORMED) {
        let asked = asked(question);
        let why = whole(&bytes, asked).expect_err(name);
        assert_eq!(why.name(), reason, "{name}");
        reasons.insert(why);
        assert_eq!(in_pieces(&bytes, asked, 0..bytes.len()), Err(why), "{name}, byte by byte");
        for cut in 0..bytes.len() {
            assert_eq!(in_pieces(&bytes, asked, [cut]), Err(why), "{name}, cut at {cut}");
        }
    }
    let missing: Vec<_> = Malformed::ALL.iter().filter(|reason| !reasons.contains(reason)).collect();
    assert_eq!(missing, [&Malformed::HeadersTooLarge, &Malformed::TooManyHeaders], "tested by themselves");
}

#[test]
fn every_valid_answer_passes_and_ends_where_it_says() {
    for ([name, question, end], bytes) in rows::<3>(VALID) {
        let expected = Ok((bytes.len(), end == "over"));
        assert_eq!(whole(&bytes, asked(question)), expected, "{name}");
        assert_eq!(in_pieces(&bytes, asked(question), 0..bytes.len()), expected, "{name}, byte by byte");
        let excess = [&bytes[..], b"x"].concat();
        let after = whole(&excess, asked(question));
        if end == "over" { assert_eq!(after, Err(Malformed::Excess), "{name}") } else { assert!(after.is_ok(), "{name}") }
    }
}

#[test]
fn nothing_of_a_head_passes_before_all_of_it() {
    let bytes = b"HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab";
    let (interim, head) = (b"HTTP/1.1 103 X\r\n\r\n".len(), bytes.len() - 2);
    for cut in 0..=bytes.len() {
        let mut scanner = AnswerScanner::new(Asked::Other);
        let passes = scanner.scan(&bytes[..cut]).unwrap();
        let expected = if cut < interim {
            0
        } else if cut < head {
            interim
        } else {
            cut
        };
        assert_eq!(passes, expected, "of {cut} bytes");
    }
}

#[test]
fn heads_have_bounds_in_bytes_and_in_lines() {
    let head = |filler: usize| format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "y".repeat(filler)).into_bytes();
    let room = HEAD_MAX - head(0).len();
    assert_eq!(whole(&head(room), Asked::Other), Ok((HEAD_MAX, true)));
    assert_eq!(whole(&head(room + 1), Asked::Other), Err(Malformed::HeadersTooLarge));
    assert_eq!(in_pieces(&head(room + 1), Asked::Other, (0..HEAD_MAX).step_by(997)), Err(Malformed::HeadersTooLarge));
    // One that never ends a line, and one that has not said what it is.
    assert_eq!(whole(&[b"HTTP/1.1 200 ", &[b'x'; HEAD_MAX][..]].concat(), Asked::Other), Err(Malformed::HeadersTooLarge));
    assert_eq!(whole(b"S", Asked::Other), Err(Malformed::StatusLine));
    let lines = |count: usize| format!("HTTP/1.1 204 X\r\n{}\r\n", "a: b\r\n".repeat(count)).into_bytes();
    assert!(whole(&lines(HEADERS_MAX.into()), Asked::Other).is_ok());
    assert_eq!(whole(&lines(usize::from(HEADERS_MAX) + 1), Asked::Other), Err(Malformed::TooManyHeaders));
}

/// Where it ends, its minor version, and the headers in order with their names in lower case.
type Parsed = (usize, u8, Vec<(String, Vec<u8>)>);

/// The head at the beginning as httparse reads it in its own way, as strict as it can be.
fn second_opinion(bytes: &[u8]) -> Option<Parsed> {
    let mut headers = [httparse::EMPTY_HEADER; 300];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(end) = response.parse(bytes).ok()? else { return None };
    let list = response.headers.iter().map(|header| (header.name.to_ascii_lowercase(), header.value.to_vec())).collect();
    Some((end, response.version?, list))
}

#[test]
fn httparse_reads_every_valid_head_and_ends_it_at_the_same_place() {
    for ([name, question, _], bytes) in rows::<3>(VALID) {
        let mut scanner = AnswerScanner::new(asked(question));
        let (end, ..) = second_opinion(&bytes).unwrap_or_else(|| panic!("{name}: httparse refuses it"));
        assert_eq!(scanner.scan(&bytes[..end]), Ok(end), "{name}");
        assert_eq!(AnswerScanner::new(asked(question)).scan(&bytes[..end - 1]), Ok(0), "{name}");
    }
}

/// Lines that matter, and some noise.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("Content-Length: 2\r\n".to_owned()),
        Just("Content-Length: 0\r\n".to_owned()),
        Just("Transfer-Encoding: chunked\r\n".to_owned()),
        Just("Connection: close\r\n".to_owned()),
        "[A-Za-z_-]{1,8}:[ \t]?[ -~]{0,12}\r\n",
        "[ -~\r\n\t]{0,10}",
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let status = prop_oneof![
        Just("HTTP/1.1 200 OK\r\n".to_owned()),
        Just("HTTP/1.0 200 OK\r\n".to_owned()),
        Just("HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 OK\r\n".to_owned()),
        Just("HTTP/1.1 204 X\r\n".to_owned()),
        "HTTP/1\\.[0-2] [0-9]{2,4} ?[ -~]{0,4}\r\n",
    ];
    let body = prop_oneof![Just("ab".to_owned()), Just("2\r\nab\r\n0\r\n\r\n".to_owned()), "[ -~\r\n]{0,12}"];
    (status, prop::collection::vec(line(), 0..5), body)
        .prop_map(|(status, lines, body)| format!("{status}{}\r\n{body}", lines.concat()).into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_division_into_pieces_gives_one_verdict(
        bytes in bytes(),
        question in prop_oneof![Just(Asked::Other), Just(Asked::Head), Just(Asked::Upgrade)],
        mut cuts in prop::collection::vec(0usize..200, 0..8),
    ) {
        cuts.sort_unstable();
        prop_assert_eq!(in_pieces(&bytes, question, cuts), whole(&bytes, question));
    }

    #[test]
    fn whatever_passes_is_read_in_the_same_way_by_another_parser(bytes in bytes()) {
        let mut scanner = AnswerScanner::new(Asked::Other);
        let Ok(passed) = scanner.scan(&bytes) else { return Ok(()) };
        let mut at = 0;
        while at < passed {
            let Some((end, minor, headers)) = second_opinion(&bytes[at..]) else {
                return Err(TestCaseError::fail(format!("httparse refuses {}", bytes.escape_ascii())));
            };
            let interim = bytes[at..].get(9) == Some(&b'1');
            at += end;
            if interim {
                continue;
            }
            let values = |name: &str| headers.iter().filter(|(known, _)| known == name).map(|(_, v)| v.clone()).collect::<Vec<_>>();
            let (length, coding) = (values("content-length"), values("transfer-encoding"));
            prop_assert!(length.len() + coding.len() <= 1, "{}", bytes.escape_ascii());
            prop_assert!(coding.is_empty() || minor == 1);
            let status = &bytes[at - end..][9..12];
            if let (Some(length), false) = (length.first(), matches!(status, b"204" | b"304")) {
                let length: usize = std::str::from_utf8(length).unwrap().parse().unwrap();
                prop_assert_eq!(passed, bytes.len().min(at + length));
            }
            break;
        }
    }
}
