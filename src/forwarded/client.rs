//! The client's address, found from the right.
//!
//! Each proxy appends the address it was connected from. Only the entries that trusted proxies appended are true, and these
//! are the rightmost ones; everything to the left of the first untrusted address was in that client's hands. So the chain
//! is read from the right, and never from a place that the client chose: quotes, commas and garbage further left have no
//! influence on how an entry to the right of them is split.

use super::trusted::{Believed, TrustedProxies};
use http::header::{FORWARDED, HeaderMap, HeaderName};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many entries are read at most. A chain of more trusted proxies than this ends at the last one read.
pub const MAX_HOPS: usize = 32;

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The client's address, in canonical form (`::ffff:192.0.2.1` is `192.0.2.1`).
///
/// If `peer`, the address on the other end of the connection, is not trusted, it is the client, whatever the headers say.
/// Otherwise the rightmost address that is not trusted is. The walk ends at the last trusted address if the next entry is
/// malformed, `unknown` or an obfuscated name (RFC 7239 §6), if all entries are trusted, or after [`MAX_HOPS`].
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &TrustedProxies) -> IpAddr {
    let peer = peer.to_canonical();
    if !trusted.contains(peer) {
        return peer;
    }
    match trusted.believed(headers) {
        Believed::XForwardedFor => walk(peer, elements(headers, &X_FORWARDED_FOR, last_item).map(node), trusted),
        Believed::Forwarded => walk(peer, elements(headers, &FORWARDED, last_element).map(forwarded_for), trusted),
    }
}

fn walk(peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>, trusted: &TrustedProxies) -> IpAddr {
    let mut client = peer;
    for hop in hops.take(MAX_HOPS) {
        let Some(address) = hop else { break };
        client = address;
        if !trusted.contains(address) {
            break;
        }
    }
    client
}

type Last = for<'a> fn(&'a [u8]) -> (Option<&'a [u8]>, &'a [u8]);

/// The elements of all lines of `name` from right to left. `last` splits the last one off a line.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName, last: Last) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).into_iter().rev().flat_map(move |line| {
        let mut rest = Some(line.as_bytes());
        std::iter::from_fn(move || {
            let (before, element) = last(rest?);
            rest = before;
            Some(element.trim_ascii())
        })
    })
}

/// What stands before the last comma, and after it.
fn last_item(line: &[u8]) -> (Option<&[u8]>, &[u8]) {
    match memchr::memrchr(b',', line) {
        Some(comma) => (line.get(..comma), line.get(comma.saturating_add(1)..).unwrap_or_default()),
        None => (None, line),
    }
}

/// The same for commas outside quoted strings, found from the right.
fn last_element(line: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let mut quoted = false;
    for at in (0..line.len()).rev() {
        match line.get(at) {
            // Inside a string, a quote after an odd number of backslashes belongs to the text.
            Some(b'"') => quoted = !quoted || is_escaped(line.get(..at).unwrap_or_default()),
            Some(b',') if !quoted => return (line.get(..at), line.get(at.saturating_add(1)..).unwrap_or_default()),
            _ => {}
        }
    }
    (None, line)
}

fn is_escaped(before: &[u8]) -> bool {
    !before.iter().rev().take_while(|&&byte| byte == b'\\').count().is_multiple_of(2)
}

/// The address in the `for` of one element (RFC 7239 §4), if that is one.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    let mut quoted = false;
    let mut escaped = false;
    let pairs = element.split(|&byte| {
        // A state that is carried along, because `split` asks once for each byte, in order.
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        byte == b';' && !quoted
    });
    for pair in pairs {
        let pair = pair.trim_ascii();
        let equals = memchr::memchr(b'=', pair)?;
        let (name, value) = pair.split_at_checked(equals)?;
        if name.eq_ignore_ascii_case(b"for") {
            if found.is_some() {
                return None;
            }
            let value = value.get(1..)?;
            let value = match value {
                [b'"', inside @ .., b'"'] => inside,
                token => token,
            };
            found = Some(node(value)?);
        }
    }
    found
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (inside, after) = rest.split_once(']')?;
            (IpAddr::V6(inside.parse::<Ipv6Addr>().ok()?), after)
        }
        None => match text.parse::<IpAddr>() {
            Ok(address) => (address, ""),
            Err(_) => {
                let (address, port) = text.split_at_checked(text.find(':')?)?;
                (IpAddr::V4(address.parse::<Ipv4Addr>().ok()?), port)
            }
        },
    };
    (port.is_empty() || is_port(port.strip_prefix(':')?)).then(|| address.to_canonical())
}

/// A number, or a name that stands for one (RFC 7239 §6).
fn is_port(text: &str) -> bool {
    match text.strip_prefix('_') {
        Some(name) => !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)),
        None => text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ClientHeader;
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn trusted() -> TrustedProxies {
        TrustedProxies::new(&["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().expect("a network")))
    }

    fn client(peer: &str, lines: &[(&'static str, &str)], header: ClientHeader) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        client_address(peer.parse().expect("an address"), &headers, &trusted().reading(header)).to_string()
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_says() {
        let lies = [("x-forwarded-for", "10.0.0.1, 192.0.2.9"), ("forwarded", "for=192.0.2.9")];
        assert_eq!(client("203.0.113.5", &lies, ClientHeader::Any), "203.0.113.5");
        assert_eq!(client("::ffff:203.0.113.5", &lies, ClientHeader::Any), "203.0.113.5");
    }

    #[test]
    fn the_rightmost_untrusted_address_is_the_client() {
        for (lines, expected) in [
            (&[][..], "10.0.0.1"),
            (&["192.0.2.1"], "192.0.2.1"),
            (&["6.6.6.6, 192.0.2.1"], "192.0.2.1"),
            (&["6.6.6.6,192.0.2.1 ,\t10.0.0.3"], "192.0.2.1"),
            (&["6.6.6.6", "192.0.2.1", "10.0.0.3"], "192.0.2.1"),
            (&["10.9.9.9, 10.0.0.3"], "10.9.9.9"),
            (&["2001:db8::1, fd00::1"], "2001:db8::1"),
            (&["[2001:db8::1]:443, [fd00::1]"], "2001:db8::1"),
            (&["192.0.2.1:5000, ::ffff:10.0.0.3"], "192.0.2.1"),
            (&["::ffff:192.0.2.1"], "192.0.2.1"),
            (&["192.0.2.1, garbage, 10.0.0.3"], "10.0.0.3"),
            (&["192.0.2.1, unknown"], "10.0.0.1"),
            (&["192.0.2.1,, 10.0.0.3"], "10.0.0.3"),
            (&["192.0.2.1, "], "10.0.0.1"),
            (&[""], "10.0.0.1"),
            (&["192.0.2.1, 10.0.0.3:99999"], "10.0.0.1"),
            (&["192.0.2.1, 10.0.0.3:"], "10.0.0.1"),
            (&["192.0.2.1, 010.0.0.3"], "10.0.0.1"),
            (&["192.0.2.1, 10.0.0"], "10.0.0.1"),
            (&["192.0.2.1, [10.0.0.3]"], "10.0.0.1"),
            (&["192.0.2.1, [fd00::1"], "10.0.0.1"),
            (&["fe80::1%eth0"], "10.0.0.1"),
            (&["\u{661}0.0.0.3"], "10.0.0.1"),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            assert_eq!(client("10.0.0.1", &lines, ClientHeader::Any), expected, "{lines:?}");
            assert_eq!(client("::ffff:10.0.0.1", &lines, ClientHeader::XForwardedFor), expected, "{lines:?}");
        }
    }

    #[test]
    fn forwarded_is_read_by_its_grammar() {
        for (lines, expected) in [
            (&["for=192.0.2.1"][..], "192.0.2.1"),
            (&["For=\"192.0.2.1:47011\";proto=https;by=10.0.0.1"], "192.0.2.1"),
            (&["proto=http; for=192.0.2.1 "], "192.0.2.1"),
            (&["for=\"[2001:db8:cafe::17]:4711\""], "2001:db8:cafe::17"),
            (&["for=\"[2001:db8::1]:_port\", for=\"[fd00::1]\""], "2001:db8::1"),
            (&["for=6.6.6.6, for=192.0.2.1, for=10.0.0.3"], "192.0.2.1"),
            (&["for=6.6.6.6", "for=192.0.2.1;host=\"a,b;for=7.7.7.7\"", "for=10.0.0.3"], "192.0.2.1"),
            (&["for=192.0.2.1;host=\"a\\\",b\""], "192.0.2.1"),
            (&["for=unknown, for=10.0.0.3"], "10.0.0.3"),
            (&["for=_hidden, for=\"_SEVKISEK\""], "10.0.0.1"),
            (&["for=192.0.2.1;for=192.0.2.2"], "10.0.0.1"),
            (&["proto=https"], "10.0.0.1"),
            (&["for"], "10.0.0.1"),
            (&["for="], "10.0.0.1"),
            (&["for=\"192.0.2.1"], "10.0.0.1"),
            (&["by=192.0.2.1"], "10.0.0.1"),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("forwarded", *line)).collect();
            assert_eq!(client("10.0.0.1", &lines, ClientHeader::Forwarded), expected, "{lines:?}");
            assert_eq!(client("10.0.0.1", &lines, ClientHeader::Any), expected, "{lines:?}");
        }
    }

    #[test]
    fn an_open_quote_on_the_left_hides_nothing_on_the_right() {
        for spoof in ["for=\"", "for=\"6.6.6.6", "\"", "for=\"\\", "host=\"a\\\"", ",\",", "for=6.6.6.6;x=\"\\\\\""] {
            for appended in ["for=192.0.2.1", "for=\"192.0.2.1:80\";proto=https;host=\"a,b\"", "proto=http;for=192.0.2.1"] {
                let line = format!("{spoof}, {appended}, for=10.0.0.3");
                assert_eq!(client("10.0.0.1", &[("forwarded", &line)], ClientHeader::Forwarded), "192.0.2.1", "{line}");
            }
        }
    }

    #[test]
    fn only_one_of_the_two_headers_is_read() {
        let both = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.2")];
        assert_eq!(client("10.0.0.1", &both, ClientHeader::Any), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &both, ClientHeader::XForwardedFor), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &both, ClientHeader::Forwarded), "192.0.2.2");
        assert_eq!(client("10.0.0.1", &both[1..], ClientHeader::XForwardedFor), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &both[..1], ClientHeader::Forwarded), "10.0.0.1");
        let broken = [("x-forwarded-for", "nonsense"), ("forwarded", "for=192.0.2.2")];
        assert_eq!(client("10.0.0.1", &broken, ClientHeader::Any), "10.0.0.1", "no second choice after a bad first one");
    }

    #[test]
    fn a_chain_of_any_length_is_read_up_to_its_bound() {
        let chain = |trusted: usize| format!("192.0.2.1{}", ", 10.0.0.3".repeat(trusted));
        assert_eq!(client("10.0.0.1", &[("x-forwarded-for", &chain(MAX_HOPS - 1))], ClientHeader::Any), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &[("x-forwarded-for", &chain(MAX_HOPS))], ClientHeader::Any), "10.0.0.3");
    }

    proptest! {
        #[test]
        fn any_header_gets_a_verdict(
            lines in proptest::collection::vec((any::<bool>(), proptest::collection::vec(
                prop_oneof![Just(b','), Just(b'"'), Just(b'\\'), Just(b';'), Just(b'='), Just(b'['), Just(b':'), 0x20_u8..0x7f, 0x80_u8..], 0..60)), 0..4),
        ) {
            let mut headers = HeaderMap::new();
            for (forwarded, line) in lines {
                let name = if forwarded { FORWARDED } else { X_FORWARDED_FOR };
                headers.append(name, HeaderValue::from_bytes(&line).expect("visible bytes"));
            }
            client_address(IpAddr::from([10, 0, 0, 1]), &headers, &trusted());
        }

        #[test]
        fn what_a_client_sends_never_changes_what_a_proxy_appended(
            spoof in "[ -~]{0,40}", quoted in any::<bool>(),
        ) {
            let appended = if quoted { "for=\"[2001:db8::7]:1\"" } else { "for=\"192.0.2.7\";proto=https" };
            let expected = if quoted { "2001:db8::7" } else { "192.0.2.7" };
            let forwarded = format!("{spoof}, {appended}");
            prop_assert_eq!(client("10.0.0.1", &[("forwarded", &forwarded)], ClientHeader::Forwarded), expected);
            let chain = format!("{spoof}, {expected}");
            prop_assert_eq!(client("10.0.0.1", &[("x-forwarded-for", &chain)], ClientHeader::Any), expected);
        }
    }
}
