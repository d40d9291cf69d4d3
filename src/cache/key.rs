//! What makes two requests the same request: scheme, host, path, query, chosen fields, route, the part of its split, and whose
//! answer it is.
//!
//! Every part stands behind its length, so that no two different lists of parts have the same bytes. Stores compare the bytes of
//! the key, never only a hash of it: two callers whose keys collide must not get each other's answers.

use crate::identity::Identity;
use crate::request::RequestCtx;
use http::{HeaderMap, HeaderName, Uri};
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

/// A key, and the hashes by which it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub bytes: Box<[u8]>,
    pub hash: u64,
    /// Of the URL alone: all keys of one URL live together, so that they can be invalidated together.
    pub url_hash: u64,
    /// Of the URL without its query: where it all is kept.
    pub base_hash: u64,
    /// `http://host/path?query` as asked for.
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

/// The URL that a request is for, with the parameters of its query in the order of their names.
pub fn url(ctx: &RequestCtx, uri: &Uri, out: &mut String) {
    out.clear();
    out.push_str(ctx.scheme.as_str());
    out.push_str("://");
    out.push_str(&ctx.host);
    out.push_str(uri.path());
    if let Some(query) = uri.query() {
        out.push('?');
        push_sorted(query, out);
    }
}

fn push_sorted(query: &str, out: &mut String) {
    if !query.contains('&') {
        out.push_str(query);
        return;
    }
    let mut parameters: Vec<&str> = query.split('&').collect();
    // Stable: the order of those with the same name may mean something.
    parameters.sort_by_key(|parameter| parameter.split('=').next().unwrap_or_default());
    for (at, parameter) in parameters.into_iter().enumerate() {
        if at > 0 {
            out.push('&');
        }
        out.push_str(parameter);
    }
}

/// A URL that somebody wrote, in the form of [`url`]; `None` if it is none.
pub fn url_of_text(text: &str) -> Option<String> {
    let uri: Uri = text.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let mut host = arrayvec::ArrayString::new();
    crate::canonical::canonical_host(authority.as_str().as_bytes(), &mut host).ok()?;
    let mut out = format!("{scheme}://{host}{}", uri.path());
    if let Some(query) = uri.query() {
        out.push('?');
        push_sorted(query, &mut out);
    }
    Some(out)
}

/// A URL without its query.
pub fn base(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
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
    part(out, ctx.host.as_bytes());
    part(out, uri.path().as_bytes());
    query(rules, uri.query(), out);
    part(out, place.route.as_bytes());
    part(out, place.part.as_bytes());
    for name in &rules.headers {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => part(out, b""),
            (Some(value), None) => {
                part(out, b"1");
                part(out, value.as_bytes());
            }
            _ => {
                let count = headers.get_all(name).iter().count();
                part(out, count.to_string().as_bytes());
                headers.get_all(name).iter().for_each(|value| part(out, value.as_bytes()));
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
        part(out, &ctx.apart);
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
    let matches = |patterns: &[Box<str>], name: &str| {
        patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => **pattern == *name,
        })
    };
    let name = |parameter: &'_ str| parameter.split_once('=').map_or(parameter.len(), |(name, _)| name.len());
    let counts = |parameter: &&str| {
        let name = parameter.get(..name(parameter)).unwrap_or(parameter);
        !matches(&rules.ignore, name) && (rules.only.is_empty() || matches(&rules.only, name))
    };
    let mut parameters: Vec<&str> = query.split('&').filter(counts).collect();
    if rules.sort {
        // Stable: the order of those with the same name may mean something.
        parameters.sort_by_key(|parameter| parameter.get(..name(parameter)).unwrap_or(parameter));
    }
    part(out, if parameters.is_empty() { b"" } else { b"?" });
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
        assert_ne!(key(&rules, "/a?tt=1", &[], &ctx), key(&rules, "/a?tt=2", &[], &ctx));
        let rules = KeyRules { only: Box::new(["b".into()]), ..KeyRules::default() };
        assert_eq!(key(&rules, "/a?c=1&b=2", &[], &ctx), key(&rules, "/a?b=2&d=1", &[], &ctx));
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
