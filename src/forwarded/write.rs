//! What the upstream is told about the client.
//!
//! From an untrusted peer, every header by which a service may take a client, host, scheme or path from a proxy is removed,
//! and those that this gateway writes are written from its own knowledge. From a trusted peer, the header that was believed
//! (see [`ClientHeader`](super::ClientHeader)) is appended to; the other one may hold anything and is written anew. A
//! header that is not to be written is removed: half a chain is worse than none.

use super::client::X_FORWARDED_FOR;
use super::trusted::{Believed, TrustedProxies};
use crate::arena::with_arena;
use crate::canonical::canonical_host;
use crate::fields::{Fields, Name};
use crate::request::{HOST_MAX, Scheme};
use crate::text::put_ip;
use arrayvec::ArrayString;
use bytes::{BufMut, BytesMut};
use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use std::fmt::Write;
use std::net::IpAddr;

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

static FOR: Name = Name { name: X_FORWARDED_FOR, spelled: "X-Forwarded-For" };
static PROTO: Name = Name { name: X_FORWARDED_PROTO, spelled: "X-Forwarded-Proto" };
static HOST: Name = Name { name: X_FORWARDED_HOST, spelled: "X-Forwarded-Host" };
static STANDARD: Name = Name { name: FORWARDED, spelled: "Forwarded" };

/// Longer chains than this many bytes are not appended to but replaced by the client and the peer.
const CHAIN_MAX: usize = 4 * 1024;

/// Names besides `x-forwarded-*` that services take facts of the connection from, in lower case.
const SPOOFABLE: &[&str] = &[
    "cf-connecting-ip",
    "client-ip",
    "fastly-client-ip",
    "forwarded",
    "front-end-https",
    "proxy",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-host",
    "x-original-forwarded-for",
    "x-original-host",
    "x-original-url",
    "x-originating-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-rewrite-url",
    "x-url-scheme",
];

/// Those of [`SPOOFABLE`] that say something of the client itself, and nothing of the URL that it has asked for.
const OF_THE_CLIENT: &[&str] = &[
    "cf-connecting-ip",
    "client-ip",
    "fastly-client-ip",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded-for",
    "x-original-forwarded-for",
    "x-originating-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
];

/// What a trusted peer says of the URL that its client has asked for, and of everything else but the client's address: an upstream
/// that believes it may answer by it. `tell` gets the header and what of it counts.
pub fn told_by_proxy(headers: &HeaderMap, mut tell: impl FnMut(&HeaderName, &[u8])) {
    for (name, value) in headers {
        if !is_spoofable(name) || OF_THE_CLIENT.contains(&name.as_str()) {
            continue;
        }
        if *name != FORWARDED {
            tell(name, value.as_bytes());
            continue;
        }
        for part in value.as_bytes().split(|byte| matches!(byte, b',' | b';')).map(<[u8]>::trim_ascii) {
            let is = |key: &[u8]| part.get(..key.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(key));
            if !is(b"for=") && !is(b"by=") {
                tell(name, part);
            }
        }
    }
}

/// Which headers the upstream gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardedHeaders {
    /// `X-Forwarded-For`, `-Proto` and `-Host`.
    pub x_forwarded: bool,
    /// `Forwarded` (RFC 7239).
    pub forwarded: bool,
}

impl Default for ForwardedHeaders {
    /// `X-Forwarded-*` only: the same facts twice is a second thing to disagree about.
    fn default() -> Self {
        ForwardedHeaders { x_forwarded: true, forwarded: false }
    }
}

/// What the headers are written from.
#[derive(Debug, Clone, Copy)]
pub struct ForwardedFacts<'a> {
    /// The address on the other end of the connection.
    pub peer: IpAddr,
    /// What [`client_address`](super::client_address) said.
    pub client: IpAddr,
    /// Of the client's connection to this gateway.
    pub scheme: Scheme,
    /// The host that the client asked for; a port may follow it.
    pub host: &'a str,
}

/// Writes the forwarding headers of an upstream request by the rule above. The values need no allocation of their own.
pub fn write_forwarded(head: &mut dyn Fields, facts: &ForwardedFacts<'_>, trusted: &TrustedProxies, write: ForwardedHeaders) {
    let peer = facts.peer.to_canonical();
    let believed = trusted.contains(peer).then(|| trusted.believed(head.map()));
    if believed.is_none() {
        // Once for each such header; the head bounds their number.
        while let Some(name) = head.map().keys().find(|name| is_spoofable(name)).cloned() {
            head.remove(&name);
        }
    }
    // The upstream's peer is this gateway, so the chain ends with whoever this gateway was connected from. What is not
    // known from a believed chain begins with the client.
    let client = (facts.client != peer).then_some(facts.client);
    if write.x_forwarded {
        let own = believed == Some(Believed::XForwardedFor);
        let chain = build(|out| {
            if !(own && append_lines(head.map(), &X_FORWARDED_FOR, out))
                && let Some(client) = client
            {
                put_ip(out, client);
                out.put_slice(b", ");
            }
            put_ip(out, peer);
        });
        set(head, &FOR, chain);
        if believed.is_none() || !has_scheme(head.map()) {
            set(head, &PROTO, Some(HeaderValue::from_static(facts.scheme.as_str())));
        }
        if believed.is_none() || !has_host(head.map()) {
            // HTTP/1.0 may come without one.
            let host = (!facts.host.is_empty()).then(|| build(|out| out.put_slice(facts.host.as_bytes()))).flatten();
            set(head, &HOST, host);
        }
    } else {
        for name in [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST] {
            head.remove(&name);
        }
    }
    if write.forwarded {
        let own = believed == Some(Believed::Forwarded);
        let chain = build(|out| {
            if !(own && append_lines(head.map(), &FORWARDED, out))
                && let Some(client) = client
            {
                push_for(client, out);
                out.put_slice(b", ");
            }
            push_for(peer, out);
            push_host(facts.host, out);
            let _ = write!(out, ";proto={}", facts.scheme.as_str());
        });
        set(head, &STANDARD, chain);
    } else {
        head.remove(&FORWARDED);
    }
}

fn is_spoofable(name: &HeaderName) -> bool {
    let name = name.as_str();
    // Most headers of most requests are told apart by their first letter.
    let candidate = matches!(name.as_bytes().first(), Some(b'c' | b'f' | b'p' | b't' | b'x'));
    candidate && (name.starts_with("x-forwarded-") || SPOOFABLE.contains(&name))
}

fn build(write: impl FnOnce(&mut BytesMut)) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(with_arena(write)).ok()
}

/// A value that could not be built (a host with control bytes, say) leaves no header rather than the client's.
fn set(head: &mut dyn Fields, name: &Name, value: Option<HeaderValue>) {
    match value {
        Some(value) => head.set(name, value),
        None => head.remove(&name.name),
    }
}

/// Copies all lines of `name`, a comma and a space after each. False, and nothing is copied, if they are too long or there
/// are none.
fn append_lines(headers: &HeaderMap, name: &HeaderName, out: &mut BytesMut) -> bool {
    let lines = || headers.get_all(name).into_iter().map(|line| line.as_bytes().trim_ascii()).filter(|line| !line.is_empty());
    let length = lines().fold(0_usize, |sum, line| sum.saturating_add(line.len()).saturating_add(2));
    if length == 0 || length > CHAIN_MAX {
        return false;
    }
    for line in lines() {
        out.put_slice(line);
        out.put_slice(b", ");
    }
    true
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut lines = headers.get_all(name).into_iter();
    lines.next().filter(|_| lines.next().is_none())
}

fn has_scheme(headers: &HeaderMap) -> bool {
    only(headers, &X_FORWARDED_PROTO).is_some_and(|value| matches!(value.as_bytes(), b"http" | b"https"))
}

fn has_host(headers: &HeaderMap) -> bool {
    let valid = |value: &HeaderValue| canonical_host(value.as_bytes(), &mut ArrayString::<HOST_MAX>::new()).is_ok();
    only(headers, &X_FORWARDED_HOST).is_some_and(valid)
}

/// RFC 7239 §6: an IPv6 address stands in brackets, and brackets in quotes.
fn push_for(address: IpAddr, out: &mut BytesMut) {
    let _ = match address {
        IpAddr::V4(address) => write!(out, "for={address}"),
        IpAddr::V6(address) => write!(out, "for=\"[{address}]\""),
    };
}

fn push_host(host: &str, out: &mut BytesMut) {
    // A host that cannot stand between quotes has not been checked; it is not passed on.
    if !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\') {
        let token = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        let _ = if token { write!(out, ";host={host}") } else { write!(out, ";host=\"{host}\"") };
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ClientHeader, client_address};
    use super::*;
    use pingora::http::RequestHeader;
    use proptest::prelude::*;

    const BOTH: ForwardedHeaders = ForwardedHeaders { x_forwarded: true, forwarded: true };

    fn trusted() -> TrustedProxies {
        TrustedProxies::new(&["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().expect("a network")))
    }

    fn request(lines: &[(&'static str, &str)]) -> RequestHeader {
        let mut head = RequestHeader::build("GET", b"/", None).expect("a request");
        for (name, value) in lines {
            head.append_header(*name, *value).expect("a header");
        }
        head
    }

    /// All headers after writing, sorted.
    fn written(peer: &str, lines: &[(&'static str, &str)], header: ClientHeader, write: ForwardedHeaders) -> Vec<String> {
        let mut head = request(lines);
        let (peer, trusted) = (peer.parse().expect("an address"), trusted().reading(header));
        let client = client_address(peer, &head.headers, &trusted);
        let facts = ForwardedFacts { peer, client, scheme: Scheme::Https, host: "a.example:8443" };
        write_forwarded(&mut head, &facts, &trusted, write);
        let mut all: Vec<_> =
            head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
        all.sort();
        all
    }

    #[test]
    fn nothing_an_untrusted_peer_says_comes_through() {
        let mut lies: Vec<_> = SPOOFABLE.iter().map(|name| (*name, "10.0.0.1")).collect();
        lies.extend(["X-Forwarded-For", "x-forwarded-for", "X-Forwarded-Proto", "X-Forwarded-Host"].map(|name| (name, "evil")));
        lies.extend(["X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Anything"].map(|name| (name, "evil")));
        lies.push(("accept", "*/*"));
        assert_eq!(
            written("::ffff:203.0.113.5", &lies, ClientHeader::Any, BOTH),
            [
                "accept: */*",
                "forwarded: for=203.0.113.5;host=\"a.example:8443\";proto=https",
                "x-forwarded-for: 203.0.113.5",
                "x-forwarded-host: a.example:8443",
                "x-forwarded-proto: https",
            ]
        );
        let none = ForwardedHeaders { x_forwarded: false, forwarded: false };
        assert_eq!(written("203.0.113.5", &lies, ClientHeader::Any, none), ["accept: */*"]);
    }

    #[test]
    fn a_trusted_chain_grows_by_the_peer() {
        let lines = [
            ("x-forwarded-for", "6.6.6.6, 192.0.2.1"),
            ("x-forwarded-for", "10.0.0.3"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "Outer.example"),
            ("x-real-ip", "192.0.2.1"),
            ("forwarded", "for=7.7.7.7"),
        ];
        assert_eq!(
            written("10.0.0.1", &lines, ClientHeader::Any, BOTH),
            [
                "forwarded: for=192.0.2.1, for=10.0.0.1;host=\"a.example:8443\";proto=https",
                "x-forwarded-for: 6.6.6.6, 192.0.2.1, 10.0.0.3, 10.0.0.1",
                "x-forwarded-host: Outer.example",
                "x-forwarded-proto: http",
                "x-real-ip: 192.0.2.1",
            ]
        );
        assert_eq!(
            written(
                "fd00::1",
                &[("forwarded", "for=\"[2001:db8::1]\""), ("x-forwarded-for", "7.7.7.7")],
                ClientHeader::Forwarded,
                BOTH
            ),
            [
                "forwarded: for=\"[2001:db8::1]\", for=\"[fd00::1]\";host=\"a.example:8443\";proto=https",
                "x-forwarded-for: 2001:db8::1, fd00::1",
                "x-forwarded-host: a.example:8443",
                "x-forwarded-proto: https",
            ]
        );
    }

    #[test]
    fn a_trusted_proxy_that_says_nonsense_is_corrected() {
        let long = format!("{}192.0.2.1", "6.6.6.6, ".repeat(1_000));
        let lines = [
            ("x-forwarded-for", long.as_str()),
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-host", "a"),
            ("x-forwarded-host", "b"),
        ];
        assert_eq!(
            written("10.0.0.1", &lines, ClientHeader::Any, ForwardedHeaders::default()),
            ["x-forwarded-for: 192.0.2.1, 10.0.0.1", "x-forwarded-host: a.example:8443", "x-forwarded-proto: https",]
        );
    }

    proptest! {
        #[test]
        fn the_next_gateway_finds_the_same_client(
            peer in prop_oneof![Just("10.0.0.1"), Just("203.0.113.5"), Just("fd00::1"), Just("2001:db8::5")],
            chain in proptest::option::of("[ -~]{0,30}"),
            hop in prop_oneof![Just(", 192.0.2.1"), Just(", 2001:db8::9, 10.0.0.3"), Just("")],
        ) {
            let value = chain.map(|chain| chain + hop);
            let lines: Vec<_> = value.iter().map(|value| ("x-forwarded-for", value.as_str())).collect();
            let mut head = request(&lines);
            let peer: IpAddr = peer.parse().expect("an address");
            let client = client_address(peer, &head.headers, &trusted());
            let facts = ForwardedFacts { peer, client, scheme: Scheme::Http, host: "a" };
            write_forwarded(&mut head, &facts, &trusted(), ForwardedHeaders::default());
            let next = client_address(IpAddr::from([10, 0, 0, 2]), &head.headers, &trusted());
            prop_assert_eq!(next, client);
        }
    }
}
