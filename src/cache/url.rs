//! URLs in the form in which stored answers have them: `scheme://host/path?query`, with the canonical host and path, without a port,
//! and of the query the parameters that count, in the order of their names.
//!
//! What unsafe requests invalidate and what operators purge is found by it. All who write one do it here, so that they agree.

use super::key::{self, KeyRules};
use crate::canonical::{self, PathForm, PathRules};
use crate::request::{HOST_MAX, RequestCtx};
use arrayvec::ArrayString;
use http::Uri;

/// Of a request.
pub fn of_request(ctx: &RequestCtx, uri: &Uri, rules: &KeyRules, out: &mut String) {
    base_of_request(ctx, uri, out);
    if let Some(query) = uri.query() {
        push_query(query, rules, out);
    }
}

/// Of a request, without the query.
pub fn base_of_request(ctx: &RequestCtx, uri: &Uri, out: &mut String) {
    out.clear();
    for text in [ctx.scheme.as_str(), "://", &ctx.host, uri.path()] {
        out.push_str(text);
    }
}

/// Without the query.
pub fn base(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

/// The same URL as it is for other rules.
pub fn counted(url: &str, rules: &KeyRules) -> String {
    let Some((base, query)) = url.split_once('?') else { return url.to_owned() };
    let mut out = base.to_owned();
    push_query(query, rules, &mut out);
    out
}

fn push_query(query: &str, rules: &KeyRules, out: &mut String) {
    let mut parameters: Vec<&str> = query.split('&').filter(|parameter| rules.counts(parameter)).collect();
    if parameters.is_empty() {
        return;
    }
    // Stable: the order of those with the same name may mean something.
    parameters.sort_by_key(|parameter| key::name(parameter));
    for (at, parameter) in parameters.into_iter().enumerate() {
        out.push(if at == 0 { '?' } else { '&' });
        out.push_str(parameter);
    }
}

/// What a text says of a URL, as far as it does.
struct Parts<'a> {
    /// Scheme and authority.
    origin: Option<(&'a str, &'a str)>,
    path: &'a str,
    query: Option<&'a str>,
}

/// RFC 3986 §3, without the fragment. `scheme`: of what the text may be relative to.
fn parts<'a>(text: &'a str, scheme: &'a str) -> Parts<'a> {
    let text = text.split('#').next().unwrap_or_default();
    let absolute = text.split_once("://").filter(|(scheme, _)| !scheme.contains(['/', '?']));
    let named = absolute.or_else(|| text.strip_prefix("//").map(|rest| (scheme, rest)));
    let (origin, rest) = match named {
        Some((scheme, rest)) => {
            let (authority, rest) = rest.split_at_checked(rest.find(['/', '?']).unwrap_or(rest.len())).unwrap_or((rest, ""));
            (Some((scheme, authority)), rest)
        }
        None => (None, text),
    };
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    Parts { origin, path, query }
}

/// A URL that somebody wrote; `None` if it is none.
pub fn of_text(text: &str) -> Option<String> {
    let Parts { origin, path, query } = parts(text, "");
    let (scheme, authority) = origin.filter(|(scheme, _)| !scheme.is_empty())?;
    let (host, _) = host(authority)?;
    written(&scheme.to_ascii_lowercase(), &host, path, query)
}

/// A URL that a response to a request refers to (RFC 3986 §5.2); `None` if it is of another origin, or is none. `port`: the one that
/// the request was for.
pub fn of_reference(reference: &str, ctx: &RequestCtx, uri: &Uri, port: Option<u16>) -> Option<String> {
    let own = ctx.scheme.as_str();
    let Parts { origin, path, query } = parts(reference, own);
    if let Some((scheme, authority)) = origin {
        let (host, named) = host(authority)?;
        let default = if own == "https" { 443 } else { 80 };
        let same = scheme.eq_ignore_ascii_case(own) && host == ctx.host && named.unwrap_or(default) == port.unwrap_or(default);
        return same.then(|| written(own, &host, path, query)).flatten();
    }
    let merged;
    let (path, query) = match path {
        "" if query.is_none() => (uri.path(), uri.query()),
        "" => (uri.path(), query),
        path if path.starts_with('/') => (path, query),
        path => {
            let directory = uri.path().get(..=uri.path().rfind('/')?)?;
            merged = format!("{directory}{path}");
            (merged.as_str(), query)
        }
    };
    written(own, &ctx.host, path, query)
}

fn host(authority: &str) -> Option<(ArrayString<HOST_MAX>, Option<u16>)> {
    let mut host = ArrayString::new();
    let port = canonical::canonical_host(authority.as_bytes(), &mut host).ok()?;
    Some((host, port))
}

fn written(scheme: &str, host: &str, path: &str, query: Option<&str>) -> Option<String> {
    let path = if path.is_empty() { "/" } else { path };
    let mut rewritten = String::new();
    // A listener may be stricter; what it refuses is not stored.
    let path = match canonical::canonical_path(path.as_bytes(), PathRules::LENIENT, &mut rewritten).ok()? {
        PathForm::Canonical => path,
        PathForm::Rewritten => rewritten.as_str(),
    };
    let mut out = format!("{scheme}://{host}{path}");
    if let Some(query) = query {
        push_query(query, &KeyRules::default(), &mut out);
    }
    Some(out)
}

/// The beginning of URLs; `None` if it is none. It may end within a path or a query; parameters stand in the order of their names.
pub fn prefix_of_text(text: &str) -> Option<String> {
    // Without a path it stands for all of the host, and a slash after it changes nothing.
    of_text(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_of_a_query_stands_in_order() {
        let ctx = RequestCtx::for_test();
        let rules = KeyRules { ignore: Box::new(["utm_*".into()]), ..KeyRules::default() };
        let of = |target: &str| {
            let mut out = String::new();
            of_request(&ctx, &target.parse().unwrap(), &rules, &mut out);
            out
        };
        assert_eq!(of("/a?x=1&utm_b=2&a=3"), "http://example.com/a?a=3&x=1");
        assert_eq!(of("/a?utm_b=2"), "http://example.com/a");
        assert_eq!(counted("http://h/a?utm_b=1&x", &rules), "http://h/a?x");
        assert_eq!(counted("http://h/a", &rules), "http://h/a");
    }

    #[test]
    fn texts_have_the_form_of_requests() {
        assert_eq!(of_text("HTTP://H.example:8080/%7Ea/./b?b=2&a=1#x").as_deref(), Some("http://h.example/~a/b?a=1&b=2"));
        assert_eq!(of_text("https://h.example").as_deref(), Some("https://h.example/"));
        for none in ["/a", "//h/a", "h/a", "http:///a", "http://h/a%2", "http://h/../.."] {
            assert_eq!(of_text(none), None, "{none}");
        }
    }

    #[test]
    fn references_are_resolved_against_the_request() {
        let ctx = RequestCtx::for_test();
        let of = |reference: &str| of_reference(reference, &ctx, &"/d/e/f?q=1".parse().unwrap(), Some(8080));
        for (reference, path) in [
            ("g?b=2&a=1", "/d/e/g?a=1&b=2"),
            ("./g", "/d/e/g"),
            ("../g", "/d/g"),
            ("/x/../%7Eg", "/~g"),
            ("?y", "/d/e/f?y"),
            ("", "/d/e/f?q=1"),
            ("#part", "/d/e/f?q=1"),
            ("//EXAMPLE.com:8080/g", "/g"),
            ("http://example.com:8080/g?b&a", "/g?a&b"),
        ] {
            assert_eq!(of(reference), Some(format!("http://example.com{path}")), "{reference}");
        }
        for other in ["http://example.com/g", "https://example.com:8080/g", "//other.example:8080/g", "../../../g", "mailto://x"]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
