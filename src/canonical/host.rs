//! The canonical form of a host name, as it stands in `Host`, `:authority` or an absolute request target.
//!
//! Lower case, one trailing dot removed, the port split off. Letters, digits, hyphens and underscores make labels;
//! underscores are not host names by RFC 952, but service names in DNS and containers use them and no parser splits at
//! one. Anything that another parser may read as another host is refused: user information, percent-encoding, empty labels,
//! numbers that are not dotted-decimal addresses (`127.1`, `0x7f.0.0.1`, `2130706433`), IPv6 zones. International names
//! arrive in their ASCII form (`xn--`); raw UTF-8 is refused.

use super::path::problems;
use crate::request::HOST_MAX;
use arrayvec::{ArrayString, ArrayVec};
use http::{HeaderMap, Uri, header};
use std::cell::RefCell;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

/// RFC 1035 §2.3.4: 255 bytes on the wire are 253 characters of text.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

problems! {
    /// Why a host is refused.
    HostProblem {
        /// There is no host.
        Empty = "host_empty",
        /// More than 253 characters.
        TooLong = "host_too_long",
        /// Two dots in a row, a leading dot, or two trailing ones.
        EmptyLabel = "host_empty_label",
        /// A label of more than 63 characters.
        LabelTooLong = "host_label_too_long",
        /// A byte other than letters, digits, `-`, `_` and `.`.
        IllegalByte = "host_illegal_byte",
        /// `name@host`.
        Userinfo = "host_userinfo",
        /// `%`, which also begins an IPv6 zone.
        PercentEncoded = "host_percent_encoded",
        /// The port is empty, not a number from 1 to 65535, or starts with a zero.
        InvalidPort = "host_invalid_port",
        /// The text between brackets is not an IPv6 address.
        InvalidIpv6 = "host_invalid_ipv6",
        /// The last label is a number, but the name is not a dotted-decimal IPv4 address.
        InvalidIpv4 = "host_invalid_ipv4",
    }
}

/// The host as the client has sent it, with a port if it named one: HTTP/2 has it in `:authority`, an absolute-form target in itself
/// (and both equal `Host`, where there is one too).
pub fn host_as_sent<'a>(target: &'a Uri, headers: &'a HeaderMap) -> Option<&'a [u8]> {
    match target.authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => headers.get(header::HOST).map(|value| value.as_bytes()),
    }
}

const ILLEGAL: u8 = 0;
const DOT: u8 = 1;
const LABEL: u8 = 2;

const CLASSES: [u8; 256] = classes();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which reports an index out of bounds")]
const fn classes() -> [u8; 256] {
    let mut table = [ILLEGAL; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'.' => DOT,
            b'-' | b'_' => LABEL,
            value if value.is_ascii_alphanumeric() => LABEL,
            _ => ILLEGAL,
        };
        byte += 1;
    }
    table
}

fn class(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or(ILLEGAL)
}

/// A host as it was sent, and what was read from it.
struct Read {
    raw: ArrayVec<u8, { HOST_MAX + 8 }>,
    name: ArrayString<HOST_MAX>,
    port: Option<u16>,
}

thread_local! {
    /// The last good one. Each request asks twice, when its raw head is checked and when its route is looked for, and most
    /// requests ask for the same few hosts: to compare is much cheaper than to read again.
    static LAST: RefCell<Read> =
        const { RefCell::new(Read { raw: ArrayVec::new_const(), name: ArrayString::new_const(), port: None }) };
}

/// Writes the canonical host to `out`, which is cleared first, and returns the port if there is one. IPv6 addresses stay in
/// brackets, in the text form of RFC 5952.
///
/// # Errors
/// Why the host is refused; `out` is empty then.
pub fn canonical_host(raw: &[u8], out: &mut ArrayString<HOST_MAX>) -> Result<Option<u16>, HostProblem> {
    LAST.with_borrow_mut(|last| {
        out.clear();
        if raw.is_empty() || *last.raw != *raw {
            let mut name = ArrayString::new();
            let port = read(raw, &mut name)?;
            last.raw.clear();
            // One that is longer is read each time: an empty `raw` is never taken for it.
            let _ = last.raw.try_extend_from_slice(raw);
            (last.name, last.port) = (name, port);
        }
        out.clone_from(&last.name);
        Ok(last.port)
    })
}

fn read(raw: &[u8], out: &mut ArrayString<HOST_MAX>) -> Result<Option<u16>, HostProblem> {
    if let Some(rest) = raw.strip_prefix(b"[") {
        return bracketed(rest, out);
    }
    let (name, port) = match memchr::memchr(b':', raw) {
        None => (raw, None),
        Some(colon) => (raw.get(..colon).unwrap_or_default(), raw.get(colon.saturating_add(1)..)),
    };
    // Before the port is looked at: in `a:1@b` the colon ends nothing.
    if raw.contains(&b'@') {
        return Err(HostProblem::Userinfo);
    }
    let port = port.map(parse_port).transpose()?;
    let name = name.strip_suffix(b".").unwrap_or(name);
    if name.is_empty() {
        return Err(HostProblem::Empty);
    }
    if name.len() > NAME_MAX {
        return Err(HostProblem::TooLong);
    }
    // One pass without a branch for each byte; which one was wrong is asked only if one was.
    let mut previous = DOT;
    let mut wrong = false;
    for &byte in name {
        let class = class(byte);
        wrong |= class == ILLEGAL || (class == DOT && previous == DOT);
        previous = class;
    }
    if wrong || previous == DOT {
        return Err(refusal(name));
    }
    if name.len() > LABEL_MAX && name.split(|&byte| byte == b'.').any(|label| label.len() > LABEL_MAX) {
        return Err(HostProblem::LabelTooLong);
    }
    let text = std::str::from_utf8(name).map_err(|_| HostProblem::IllegalByte)?;
    if ends_in_a_number(text) && text.parse::<Ipv4Addr>().is_err() {
        return Err(HostProblem::InvalidIpv4);
    }
    out.try_push_str(text).map_err(|_| HostProblem::TooLong)?;
    out.make_ascii_lowercase();
    Ok(port)
}

/// Names the first thing that is wrong with the bytes of a name.
fn refusal(name: &[u8]) -> HostProblem {
    let illegal = name.iter().find(|&&byte| class(byte) == ILLEGAL);
    match illegal {
        Some(b'%') => HostProblem::PercentEncoded,
        Some(_) => HostProblem::IllegalByte,
        None => HostProblem::EmptyLabel,
    }
}

/// WHATWG URL, "ends in a number": the last label is decimal, or `0x` and hex digits.
fn ends_in_a_number(name: &str) -> bool {
    let last = name.as_bytes();
    let last = memchr::memrchr(b'.', last).and_then(|dot| last.get(dot.saturating_add(1)..)).unwrap_or(last);
    match last {
        [b'0', b'x' | b'X', digits @ ..] => digits.iter().all(u8::is_ascii_hexdigit),
        [b'0'..=b'9', ..] => last.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

fn bracketed(rest: &[u8], out: &mut ArrayString<HOST_MAX>) -> Result<Option<u16>, HostProblem> {
    let end = memchr::memchr(b']', rest).ok_or(HostProblem::InvalidIpv6)?;
    let (inside, after) = rest.split_at_checked(end).ok_or(HostProblem::InvalidIpv6)?;
    if inside.contains(&b'%') {
        return Err(HostProblem::PercentEncoded);
    }
    let address: Option<Ipv6Addr> = std::str::from_utf8(inside).ok().and_then(|text| text.parse().ok());
    let address = address.ok_or(HostProblem::InvalidIpv6)?;
    let port = match after {
        b"]" => None,
        [b']', b':', port @ ..] => Some(parse_port(port)?),
        _ => return Err(HostProblem::InvalidIpv6),
    };
    write!(out, "[{address}]").map_err(|_| HostProblem::TooLong)?;
    Ok(port)
}

fn parse_port(digits: &[u8]) -> Result<u16, HostProblem> {
    if !matches!(digits, [b'1'..=b'9', ..]) || digits.len() > 5 {
        return Err(HostProblem::InvalidPort);
    }
    digits
        .iter()
        .try_fold(0_u16, |port, &digit| match digit {
            b'0'..=b'9' => port.checked_mul(10)?.checked_add(u16::from(digit.wrapping_sub(b'0'))),
            _ => None,
        })
        .ok_or(HostProblem::InvalidPort)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(raw: &str) -> Result<(String, Option<u16>), HostProblem> {
        let mut out = ArrayString::new();
        canonical_host(raw.as_bytes(), &mut out).map(|port| (out.as_str().to_owned(), port))
    }

    #[test]
    fn one_form_for_each_host() {
        for (raw, name, port) in [
            ("example.com", "example.com", None),
            ("EXAMPLE.com.", "example.com", None),
            ("Example.COM.:8080", "example.com", Some(8080)),
            ("my_service", "my_service", None),
            ("_grpc._tcp.example.com", "_grpc._tcp.example.com", None),
            ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
            ("127.0.0.1:1", "127.0.0.1", Some(1)),
            ("1.2.3.4.example", "1.2.3.4.example", None),
            ("7f.example.0xg", "7f.example.0xg", None),
            ("a.face", "a.face", None),
            ("[::1]", "[::1]", None),
            ("[2001:DB8:0:0::1]:65535", "[2001:db8::1]", Some(65535)),
            ("[::ffff:192.0.2.1]", "[::ffff:192.0.2.1]", None),
        ] {
            assert_eq!(host(raw), Ok((name.to_owned(), port)), "{raw}");
        }
        let longest = format!("{}.{}", "a".repeat(63), vec!["b".repeat(62); 3].join("."));
        assert!(host(&longest).is_ok() && longest.len() == 252);
    }

    #[test]
    fn another_reading_is_a_refusal() {
        use HostProblem::*;
        let label = "a".repeat(64);
        let long = vec!["a".repeat(50); 6].join(".");
        for (raw, problem) in [
            ("", Empty),
            (".", Empty),
            (":80", Empty),
            ("::1", InvalidPort),
            ("a..b", EmptyLabel),
            (".a", EmptyLabel),
            ("a..", EmptyLabel),
            ("user@host", Userinfo),
            ("user:pw@host", Userinfo),
            ("a:80@b:81", Userinfo),
            ("a%2eb", PercentEncoded),
            ("[fe80::1%25eth0]", PercentEncoded),
            ("[fe80::1%eth0]", PercentEncoded),
            ("a b", IllegalByte),
            ("a/b", IllegalByte),
            ("a,b", IllegalByte),
            ("a\tb", IllegalByte),
            ("b\u{fc}cher.example", IllegalByte),
            ("a:", InvalidPort),
            ("a:0", InvalidPort),
            ("a:080", InvalidPort),
            ("a:65536", InvalidPort),
            ("a:99999", InvalidPort),
            ("a:8a", InvalidPort),
            ("a:+80", InvalidPort),
            ("a:80:80", InvalidPort),
            ("[::1", InvalidIpv6),
            ("[::1]x", InvalidIpv6),
            ("[]", InvalidIpv6),
            ("[127.0.0.1]", InvalidIpv6),
            ("[v1.a]", InvalidIpv6),
            ("[::1]:", InvalidPort),
            ("127.1", InvalidIpv4),
            ("0177.0.0.1", InvalidIpv4),
            ("2130706433", InvalidIpv4),
            ("0x7f.0.0.0x1", InvalidIpv4),
            ("0X7F000001", InvalidIpv4),
            ("127.0.0.256", InvalidIpv4),
            ("a.0x", InvalidIpv4),
            (&label, LabelTooLong),
            (&long, TooLong),
        ] {
            assert_eq!(host(raw), Err(problem), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn a_canonical_host_stays_as_it_is(raw in "[a-zA-Z0-9._:\\[\\]@%-]{0,40}") {
            if let Ok((name, _)) = host(&raw) {
                prop_assert_eq!(host(&name), Ok((name.clone(), None)));
            }
        }

        #[test]
        fn any_bytes_get_a_verdict(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut out = ArrayString::new();
            let verdict = canonical_host(&raw, &mut out);
            prop_assert_eq!(verdict.is_ok(), !out.is_empty());
        }
    }
}
