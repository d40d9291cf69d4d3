//! What must hold for any bytes at all. Each target panics on a finding.
//!
//! One source for two drivers: libFuzzer, which follows coverage (`make fuzz`), and `tests/fuzz.rs`, which needs nothing but
//! cargo and mutates the corpus at random.

use gatewright::canonical::{self, PathForm, PathRules, check_query, is_canonical};
use gatewright::http1::chunks::ChunkScanner;
use gatewright::listener::head::{Framing, Head, HeadLimits, HeadScanner, Malformed, Version};
use gatewright::listener::proxy_protocol::{Named, parse_fixed, parse_line, parse_rest};
use gatewright::upstream::answer::{AnswerScanner, Asked, Malformed as MalformedAnswer};

/// The raw check of a request head: the same verdict however the bytes are cut, and no head passes that an independent
/// parser refuses or reads differently.
pub fn head(data: &[u8]) {
    // The first byte says where the rest is cut.
    let Some((&cut, bytes)) = data.split_first() else { return };
    let limits = HeadLimits { max_header: 2048, max_headers: 32, max_uri: 512, allow_underscores: cut & 1 == 1 };
    let whole = HeadScanner::new().scan(bytes, &limits);
    let cut = usize::from(cut).min(bytes.len());
    let mut scanner = HeadScanner::new();
    let pieces = match scanner.scan(&bytes[..cut], &limits) {
        Ok(None) => scanner.scan(bytes, &limits),
        verdict => verdict,
    };
    same_verdict(whole, pieces, bytes);
    let Ok(Some(head)) = whole else { return };
    assert!(head.len <= bytes.len() && head.len <= limits.max_header, "longer than it may be");
    second_opinion(&bytes[..head.len], &head);
}

fn same_verdict(whole: Result<Option<Head>, Malformed>, pieces: Result<Option<Head>, Malformed>, bytes: &[u8]) {
    match (whole, pieces) {
        (Ok(one), Ok(other)) => assert_eq!(one, other, "{:?}", bytes.escape_ascii().to_string()),
        // Which fault is named first may depend on how much has come.
        (Err(_), Err(_)) => {}
        (one, other) => panic!("{one:?} in one piece, {other:?} in two: {}", bytes.escape_ascii()),
    }
}

fn second_opinion(bytes: &[u8], head: &Head) {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(bytes);
    let end = parsed.unwrap_or_else(|e| panic!("{e} in a head that passed: {}", bytes.escape_ascii()));
    assert_eq!(end, httparse::Status::Complete(head.len), "it ends elsewhere: {}", bytes.escape_ascii());
    assert_eq!(request.version, Some(u8::from(head.version == Version::Http11)));
    let values = |name: &str| -> Vec<&[u8]> {
        let all = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        all.map(|header| header.value).collect()
    };
    let (length, coding) = (values("content-length"), values("transfer-encoding"));
    match head.framing {
        Framing::None => assert!(length.is_empty() && coding.is_empty()),
        Framing::Length(wanted) => {
            assert!(coding.is_empty() && length == [wanted.to_string().as_bytes()], "{}", bytes.escape_ascii());
        }
        Framing::Chunked => {
            assert!(length.is_empty() && coding.len() == 1 && coding[0].eq_ignore_ascii_case(b"chunked"));
        }
    }
    assert!(values("host").len() <= 1 && (values("host").len() == 1 || head.version == Version::Http10));
}

/// The canonical path: one form, which stays as it is, and in which nothing is left that a service could read differently.
pub fn canonical_path(data: &[u8]) {
    let Some((&rules, path)) = data.split_first() else { return };
    // Whatever becomes of the path, a query that passes ends no line.
    if check_query(path).is_ok() {
        assert!(path.iter().all(|byte| *byte > b' ' && *byte != 0x7f), "{}", path.escape_ascii());
    }
    let rules = PathRules { encoded_slash: rules & 1 == 1, parameters: rules & 2 == 2, asterisk: rules & 4 == 4 };
    let mut out = String::from("left over");
    let Ok(form) = canonical::canonical_path(path, rules, &mut out) else { return };
    let canonical = match form {
        PathForm::Canonical => std::str::from_utf8(path).expect("a canonical path is text").to_owned(),
        PathForm::Rewritten => out,
    };
    let mut again = String::new();
    assert_eq!(
        canonical::canonical_path(canonical.as_bytes(), rules, &mut again),
        Ok(PathForm::Canonical),
        "{canonical:?} is not stable"
    );
    if canonical == "*" {
        return assert!(rules.asterisk);
    }
    assert!(canonical.starts_with('/') && canonical.bytes().all(|byte| byte.is_ascii_graphic()), "{canonical:?}");
    assert!(is_canonical(&canonical, rules), "{canonical:?}");
    if rules == PathRules::STRICT {
        assert!(!canonical.contains(';'), "{canonical:?}");
    }
    let segments: Vec<&str> = canonical.split('/').skip(1).collect();
    let (last, inner) = segments.split_last().expect("a path has a segment");
    assert!(inner.iter().all(|segment| !segment.is_empty()), "an empty segment in {canonical:?}");
    // As a service sees it that decodes and cuts parameters off before it splits.
    for segment in inner.iter().chain([last]) {
        let decoded = decode(segment);
        for part in decoded.split(|byte| *byte == b'/') {
            let name = part.split(|byte| *byte == b';').next().unwrap_or_default();
            assert!(name != b"." && name != b"..", "a dot segment in {canonical:?}");
        }
        assert!(!decoded.iter().any(|byte| *byte < 0x20 || *byte == 0x7f || *byte == b'\\'), "{canonical:?}");
        let twice = decode(std::str::from_utf8(&decoded).expect("text after decoding"));
        assert_eq!(decoded, twice, "decoding {canonical:?} again gives another path");
    }
}

fn decode(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.filter(|digits| byte == b'%' && digits.bytes().all(|b| b.is_ascii_hexdigit()));
        match value.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(value) => {
                out.push(value);
                rest = &after[2..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

/// PROXY protocol, both versions: a verdict on any bytes, and an address only from the bytes that hold it.
pub fn proxy_protocol(data: &[u8]) {
    if let Ok(Named::Client(client)) = parse_line(data) {
        let line = std::str::from_utf8(data).expect("a line that passes is text");
        let words: Vec<&str> = line.trim_end_matches("\r\n").split(' ').collect();
        assert_eq!(words.len(), 6, "{line:?}");
        assert_eq!(words[4], client.port().to_string(), "{line:?}");
        assert_eq!(words[2].parse(), Ok(client.ip()), "{line:?}");
        assert_eq!(words[1], if client.is_ipv4() { "TCP4" } else { "TCP6" }, "{line:?}");
    }
    let Some((fixed, rest)) = data.split_first_chunk::<4>() else { return };
    let Ok((command, length)) = parse_fixed(*fixed) else { return };
    let rest = &rest[..length.min(rest.len())];
    if let Ok(Named::Client(client)) = parse_rest(command, rest) {
        let octets = match client.ip() {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        assert!(rest.starts_with(&octets), "an address that is not there");
    }
}

/// The framing of a chunked body: the same verdict however it is cut, and never another end than an independent reader's.
pub fn chunks(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let mut scanner = ChunkScanner::new();
    let whole = scanner.scan(bytes).map(|read| (read, scanner.is_done()));
    let cut = usize::from(cut).min(bytes.len());
    let mut scanner = ChunkScanner::new();
    let pieces = scanner.scan(&bytes[..cut]).and_then(|first| {
        let second = if first == cut { scanner.scan(&bytes[cut..])? } else { 0 };
        Ok((first + second, scanner.is_done()))
    });
    assert_eq!(whole, pieces, "{}", bytes.escape_ascii());
    if let Ok((read, true)) = whole {
        assert_eq!(plain_end(bytes), Some(read), "{}", bytes.escape_ascii());
    }
}

/// Where a chunked body ends, in the plainest way.
fn plain_end(bytes: &[u8]) -> Option<usize> {
    let line = |from: usize| {
        let rest = bytes.get(from..)?;
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        Some((&rest[..end], from + end + 2))
    };
    let mut at = 0;
    loop {
        let (text, after) = line(at)?;
        let digits = text.split(|byte| *byte == b';').next()?;
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        at = after;
        if size == 0 {
            loop {
                let (text, after) = line(at)?;
                at = after;
                if text.is_empty() {
                    return Some(at);
                }
            }
        }
        at = at.checked_add(size)?;
        if bytes.get(at..at.checked_add(2)?)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
}

/// The raw check of an answer: the same verdict however it is cut, and what passes is read by an independent parser in the same
/// way, with its end at the same place.
pub fn answer(data: &[u8]) {
    let Some((&[cut, asked], bytes)) = data.split_first_chunk() else { return };
    let asked = [Asked::Other, Asked::Head, Asked::Upgrade][usize::from(asked % 3)];
    let scan = |scanner: &mut AnswerScanner, bytes: &[u8]| -> Result<usize, MalformedAnswer> {
        let read = scanner.scan(bytes)?;
        assert!(read <= bytes.len(), "more than there is");
        Ok(read)
    };
    let mut scanner = AnswerScanner::new(asked);
    let whole = scan(&mut scanner, bytes).map(|read| (read, scanner.is_over()));
    let cut = usize::from(cut).min(bytes.len());
    let mut scanner = AnswerScanner::new(asked);
    let pieces = scan(&mut scanner, &bytes[..cut]).and_then(|first| {
        let second = scan(&mut scanner, &bytes[first..])?;
        Ok((first + second, scanner.is_over()))
    });
    assert_eq!(whole, pieces, "{}", bytes.escape_ascii());
    let Ok((passed, over)) = whole else { return };
    plain_answer(&bytes[..passed], asked, over);
}

/// Reads what has passed once more, with httparse for the heads and the plainest of rules for the bodies.
fn plain_answer(bytes: &[u8], asked: Asked, over: bool) {
    let mut at = 0;
    while at < bytes.len() {
        let mut headers = [httparse::EMPTY_HEADER; 300];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&bytes[at..]);
        let Ok(httparse::Status::Complete(end)) = parsed else {
            panic!("{parsed:?} of a head that passed: {}", bytes[at..].escape_ascii());
        };
        at += end;
        let value = |name: &str| {
            let all: Vec<_> = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).collect();
            assert!(all.len() <= 1, "{name} twice: {}", bytes.escape_ascii());
            all.first().map(|header| header.value)
        };
        let (length, coding) = (value("content-length"), value("transfer-encoding"));
        assert!(length.is_none() || coding.is_none(), "{}", bytes.escape_ascii());
        assert!(coding.is_none_or(|coding| coding.eq_ignore_ascii_case(b"chunked") && response.version == Some(1)));
        let body = &bytes[at..];
        match response.code.expect("a status") {
            101 => return assert!(asked == Asked::Upgrade && !over),
            100..=199 => continue,
            204 | 304 => return assert!(over && body.is_empty()),
            _ if asked == Asked::Head => return assert!(over && body.is_empty()),
            _ => {}
        }
        match (length, coding) {
            (None, None) => assert!(!over),
            (Some(length), _) => {
                let length: usize = std::str::from_utf8(length).expect("digits").parse().expect("a number");
                assert!(body.len() <= length && over == (body.len() == length), "{}", bytes.escape_ascii());
            }
            (None, Some(_)) => assert_eq!(plain_end(body), over.then_some(body.len()), "{}", bytes.escape_ascii()),
        }
        return;
    }
}
