//! What makes two requests the same request: scheme, host, path, query, chosen fields, route, the part of its split, and whose
//! answer it is.
//!
//! The host counts as it goes upstream, with its port, and so does what a trusted proxy says of the URL: an upstream makes absolute
//! URLs of them, in redirects above all, and somebody who asks for another port must not choose where others are sent.
//!
//! Every part stands behind its length, so that no two different lists of parts have the same bytes. Stores compare the bytes of
//! the key, never only a hash of it: two callers whose keys collide must not get each other's answers. The one exception are fields
//! that may hold credentials: keys are stored, so these stand in them by their SHA-256.

use super::vary::is_plain;
use crate::canonical::host_as_sent;
use crate::forwarded::told_by_proxy;
use crate::identity::Identity;
use crate::request::RequestCtx;
use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use std::hash::BuildHasher;
use std::sync::Arc;

/// Which parts of a request count, beyond those that always do.
#[derive(Debug, Clone)]
pub struct KeyRules {
    pub headers: Box<[HeaderName]>,
    /// Parameters of the query that do not count; a `*` at the end stands for any rest.
    pub ignore: Box<[Box<str>]>,
    /// If not empty, the only ones that do.
    pub only: Box<[Box<str>]>,
    pub sort: bool,
    /// The upstream is told of the client's certificate.
    pub certificate: bool,
}

impl Default for KeyRules {
    fn default() -> Self {
        KeyRules { headers: Box::default(), ignore: Box::default(), only: Box::default(), sort: true, certificate: false }
    }
}

/// The name of a parameter of a query.
pub fn name(parameter: &str) -> &str {
    parameter.split('=').next().unwrap_or_default()
}

impl KeyRules {
    /// Whether a parameter of the query counts.
    pub fn counts(&self, parameter: &str) -> bool {
        if self.ignore.is_empty() && self.only.is_empty() {
            return true;
        }
        let name = name(parameter);
        let any = |patterns: &[Box<str>]| {
            patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => **pattern == *name,
            })
        };
        !any(&self.ignore) && (self.only.is_empty() || any(&self.only))
    }
}

/// A key, and the hashes by which it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub bytes: Box<[u8]>,
    pub hash: u64,
    /// Of the URL alone: all keys of one URL live together, so that they can be invalidated together.
    pub url_hash: u64,
    /// Of the URL without its query: where it all is kept.
    pub base_hash: u64,
    /// `http://host/path?query`, as far as it counts; see [`super::url`].
    pub url: Box<str>,
    pub route: Arc<str>,
}

impl Key {
    pub fn is_of(&self, route: &str) -> bool {
        *self.route == *route
    }
}

/// Hashes by a secret of the process, so that nobody can choose keys that collide.
#[derive(Debug, Clone, Default)]
pub struct KeyHasher(foldhash::quality::RandomState);

impl KeyHasher {
    pub fn hash(&self, bytes: &[u8]) -> u64 {
        self.0.hash_one(bytes)
    }
}

/// Whose answers a key is for.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub route: &'a str,
    /// The upstream of the part of a split that the request has drawn; empty: that of the route.
    pub part: &'a str,
    /// All callers share them.
    pub public: bool,
}

/// Writes the bytes of the key.
pub fn write(rules: &KeyRules, place: Place<'_>, ctx: &RequestCtx, uri: &Uri, headers: &HeaderMap, out: &mut Vec<u8>) {
    out.clear();
    part(out, b"GET");
    part(out, ctx.scheme.as_str().as_bytes());
    match host_as_sent(uri, headers).filter(|sent| !sent.eq_ignore_ascii_case(ctx.host.as_bytes())) {
        Some(sent) => {
            let begin = out.len();
            part(out, sent);
            out.get_mut(begin.saturating_add(4)..).unwrap_or_default().make_ascii_lowercase();
        }
        None => part(out, ctx.host.as_bytes()),
    }
    if ctx.peer_trusted {
        told_by_proxy(headers, |name, value| {
            part(out, name.as_str().as_bytes());
            part(out, value);
        });
    }
    part(out, uri.path().as_bytes());
    query(rules, uri.query(), out);
    part(out, place.route.as_bytes());
    part(out, place.part.as_bytes());
    for name in &rules.headers {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => part(out, b""),
            (Some(one), None) => {
                part(out, b"1");
                value(name, one, out);
            }
            _ => {
                let count = headers.get_all(name).iter().count();
                part(out, count.to_string().as_bytes());
                headers.get_all(name).iter().for_each(|one| value(name, one, out));
            }
        }
    }
    match &ctx.identity {
        Some(identity) if !place.public => partition(identity, out),
        _ => part(out, b""),
    }
    let certificate = ctx.tls.as_ref().and_then(|tls| tls.client.as_ref()).filter(|_| rules.certificate);
    if !place.public && (certificate.is_some() || !ctx.apart.is_empty()) {
        part(out, certificate.map_or(&b""[..], |certificate| certificate.sha256.as_bytes()));
        // What the service behind `forward_auth` was told: tokens and cookies.
        match ctx.apart.is_empty() {
            true => part(out, b""),
            false => part(out, digest(&SHA256, &ctx.apart).as_ref()),
        }
    }
}

fn value(name: &HeaderName, value: &HeaderValue, out: &mut Vec<u8>) {
    match is_plain(name) {
        true => part(out, value.as_bytes()),
        false => part(out, digest(&SHA256, value.as_bytes()).as_ref()),
    }
}

/// Everything about a caller that an upstream can be told, so that two callers who could be answered differently never share.
fn partition(identity: &Arc<Identity>, out: &mut Vec<u8>) {
    part(out, b"identity");
    part(out, identity.name.as_bytes());
    part(out, identity.consumer.as_ref().map_or(&b""[..], |consumer| consumer.name.as_bytes()));
    part(out, identity.credential.as_bytes());
    part(out, identity.tier.as_deref().unwrap_or_default().as_bytes());
    for list in [&identity.roles, &identity.scopes] {
        part(out, list.len().to_string().as_bytes());
        list.iter().for_each(|entry| part(out, entry.as_bytes()));
    }
    if let Some(claims) = &identity.claims {
        for (name, value) in claims.iter() {
            // These differ from token to token of the same caller, and say nothing about who it is.
            if !matches!(name.as_str(), "exp" | "iat" | "nbf" | "jti") {
                part(out, name.as_bytes());
                part(out, value.to_string().as_bytes());
            }
        }
    }
}

fn query(rules: &KeyRules, query: Option<&str>, out: &mut Vec<u8>) {
    let Some(query) = query else { return part(out, b"") };
    let whole = rules.ignore.is_empty() && rules.only.is_empty();
    if whole && (!rules.sort || !query.contains('&')) {
        part(out, b"?");
        return part(out, query.as_bytes());
    }
    let mut parameters: Vec<&str> = query.split('&').filter(|parameter| rules.counts(parameter)).collect();
    if rules.sort {
        // Stable: the order of those with the same name may mean something.
        parameters.sort_by_key(|parameter| name(parameter));
    }
    if parameters.is_empty() {
        return part(out, b"");
    }
    part(out, b"?");
    part(out, parameters.join("&").as_bytes());
}

/// Bytes behind their length.
pub fn part(out: &mut Vec<u8>, bytes: &[u8]) {
    // Nothing in a request is longer than the bound of its header, far below four gigabytes.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(rules: &KeyRules, target: &str, headers: &[(&'static str, &'static str)], ctx: &RequestCtx) -> Vec<u8> {
        let headers = headers.iter().map(|(n, v)| (HeaderName::from_static(n), v.parse().unwrap())).collect();
        let mut out = Vec::new();
        let place = Place { route: "route", part: "", public: false };
        write(rules, place, ctx, &target.parse().unwrap(), &headers, &mut out);
        out
    }

    #[test]
    fn the_parts_of_a_split_keep_their_answers_apart() {
        let ctx = RequestCtx::for_test();
        let of = |route: &str, part: &str| {
            let mut out = Vec::new();
            let place = Place { route, part, public: true };
            write(&KeyRules::default(), place, &ctx, &"/".parse().unwrap(), &HeaderMap::new(), &mut out);
            out
        };
        assert_ne!(of("r", ""), of("r", "next"));
        assert_ne!(of("r", "next"), of("rn", "ext"));
        assert_eq!(of("r", "next"), of("r", "next"));
    }

    #[test]
    fn the_order_of_parameters_does_not_count_but_that_of_equal_names_does() {
        let (rules, ctx) = (KeyRules::default(), RequestCtx::for_test());
        let of = |target: &str| key(&rules, target, &[], &ctx);
        assert_eq!(of("/a?x=1&y=2"), of("/a?y=2&x=1"));
        assert_ne!(of("/a?x=1&x=2"), of("/a?x=2&x=1"));
        assert_ne!(of("/a?"), of("/a"));
        assert_ne!(of("/a?x"), of("/a?x="));
    }

    #[test]
    fn parameters_can_be_left_out_or_chosen() {
        let ctx = RequestCtx::for_test();
        let rules = KeyRules { ignore: Box::new(["utm_*".into(), "t".into()]), ..KeyRules::default() };
        assert_eq!(key(&rules, "/a?utm_x=1&b=2&t=3", &[], &ctx), key(&rules, "/a?b=2", &[], &ctx));
        assert_eq!(key(&rules, "/a?utm_x=1", &[], &ctx), key(&rules, "/a", &[], &ctx), "nothing is left of it");
        assert_ne!(key(&rules, "/a?tt=1", &[], &ctx), key(&rules, "/a?tt=2", &[], &ctx));
        let rules = KeyRules { only: Box::new(["b".into()]), ..KeyRules::default() };
        assert_eq!(key(&rules, "/a?c=1&b=2", &[], &ctx), key(&rules, "/a?b=2&d=1", &[], &ctx));
    }

    #[test]
    fn the_host_counts_as_it_goes_upstream() {
        let (rules, ctx) = (KeyRules::default(), RequestCtx::for_test());
        let of = |host: &'static str| key(&rules, "/", &[("host", host)], &ctx);
        assert_eq!(of("example.com"), of("Example.COM"));
        assert_eq!(of("example.com:81"), of("EXAMPLE.com:81"));
        for other in ["example.com:80", "example.com:81", "example.com."] {
            assert_ne!(of("example.com"), of(other), "{other}");
        }
        assert_eq!(of("example.com"), key(&rules, "http://example.com/", &[], &ctx));
        assert_eq!(of("example.com:81"), key(&rules, "http://example.com:81/", &[], &ctx));
    }

    #[test]
    fn what_a_trusted_proxy_says_of_the_url_counts_and_what_it_says_of_the_client_does_not() {
        let rules = KeyRules::default();
        let of = |trusted: bool, name: &'static str, value: &'static str| {
            let ctx = RequestCtx { peer_trusted: trusted, ..RequestCtx::for_test() };
            key(&rules, "/", &[(name, value)], &ctx)
        };
        for name in ["x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix", "front-end-https"] {
            assert_ne!(of(true, name, "a"), of(true, name, "b"), "{name}");
            assert_eq!(of(false, name, "a"), of(false, name, "b"), "{name} does not go upstream");
        }
        for name in ["x-forwarded-for", "x-real-ip", "accept"] {
            assert_eq!(of(true, name, "a"), of(true, name, "b"), "{name}");
        }
        let standard = |value| of(true, "forwarded", value);
        assert_eq!(standard("for=1.2.3.4;proto=https, For=5.6.7.8"), standard("for=9.9.9.9;proto=https, for=1.1.1.1"));
        assert_ne!(standard("for=1.2.3.4;proto=https"), standard("for=1.2.3.4;proto=http"));
    }

    #[test]
    fn parts_cannot_run_into_each_other() {
        let ctx = RequestCtx::for_test();
        let rules =
            KeyRules { headers: Box::new([HeaderName::from_static("a"), HeaderName::from_static("b")]), ..KeyRules::default() };
        let of = |headers: &[(&'static str, &'static str)]| key(&rules, "/", headers, &ctx);
        assert_ne!(of(&[("a", "xy")]), of(&[("a", "x"), ("b", "y")]));
        assert_ne!(of(&[("a", "x")]), of(&[("b", "x")]));
        assert_ne!(of(&[("a", "")]), of(&[]));
        assert_ne!(of(&[("a", "x"), ("a", "y")]), of(&[("a", "x")]));
    }

    #[test]
    fn callers_never_share_a_key_unless_it_is_public() {
        let rules = KeyRules::default();
        let of = |name: Option<&str>, public: bool| {
            let mut ctx = RequestCtx::for_test();
            ctx.identity = name.map(Identity::for_test);
            let mut out = Vec::new();
            write(&rules, Place { route: "r", part: "", public }, &ctx, &"/".parse().unwrap(), &HeaderMap::new(), &mut out);
            out
        };
        assert_ne!(of(Some("a"), false), of(Some("b"), false));
        assert_ne!(of(Some("a"), false), of(None, false));
        assert_eq!(of(Some("a"), true), of(Some("b"), true));
    }

    #[test]
    fn no_credential_stands_in_a_key() {
        let mut ctx = RequestCtx::for_test();
        ctx.tell_apart("authorization", b"secret");
        let rules = KeyRules { headers: Box::new([HeaderName::from_static("cookie")]), ..KeyRules::default() };
        for cookies in [&[("cookie", "secret")][..], &[("cookie", "secret"), ("cookie", "secret2")]] {
            let key = key(&rules, "/", cookies, &ctx);
            assert!(!key.windows(6).any(|part| part == b"secret"), "{key:?}");
        }
    }

    #[test]
    fn what_is_told_apart_is_kept_apart() {
        let of = |told: &[(&str, &[u8])], public: bool| {
            let mut ctx = RequestCtx::for_test();
            told.iter().for_each(|(name, value)| ctx.tell_apart(name, value));
            let mut out = Vec::new();
            let place = Place { route: "r", part: "", public };
            write(&KeyRules::default(), place, &ctx, &"/".parse().unwrap(), &HeaderMap::new(), &mut out);
            out
        };
        assert_ne!(of(&[("a", b"1")], false), of(&[("a", b"2")], false));
        assert_ne!(of(&[("a", b"1")], false), of(&[], false));
        assert_ne!(of(&[("a", b"1b")], false), of(&[("a1", b"b")], false));
        assert_eq!(of(&[("a", b"1")], true), of(&[("a", b"2")], true));
    }
}
