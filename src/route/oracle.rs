//! The router against an oracle: a linear scan that knows the order from its description alone and shares no code with it.
//!
//! The alphabet is small, so that random routes and requests meet often, and ambiguity is checked the same way: a set of
//! routes that builds never leaves two routes level for any request, and a set that does not build names two routes that
//! some request of the alphabet, or one made for the pair, leaves level.

use super::*;
use crate::diagnostic::Diagnostics;
use proptest::prelude::*;
use std::cmp::Ordering;

/// A route of the alphabet, in plain data.
#[derive(Debug, Clone)]
struct Plain {
    host: Option<&'static str>,
    path: Option<String>,
    methods: Vec<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
    query: Vec<(&'static str, &'static str)>,
}

impl Plain {
    fn matcher(&self) -> Matcher {
        let table = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| format!("{name} = '{value}'")).collect::<Vec<_>>().join(", ")
        };
        let mut text = String::new();
        if let Some(host) = self.host {
            text += &format!("host = '{host}'\n");
        }
        if let Some(path) = &self.path {
            text += &format!("path = '{path}'\n");
        }
        if !self.methods.is_empty() {
            text += &format!("methods = {:?}\n", self.methods);
        }
        text += &format!("headers = {{ {} }}\nquery = {{ {} }}\n", table(&self.headers), table(&self.query));
        let config: MatchConfig = toml::from_str(&text).unwrap();
        let mut d = Diagnostics::default();
        config.compile(&mut d).unwrap_or_else(|| panic!("{text}: {d:?}"))
    }

    fn host_rank(&self, host: &str) -> Option<usize> {
        match self.host {
            None => Some(0),
            Some(pattern) => match pattern.strip_prefix('*') {
                Some(suffix) => (host.ends_with(suffix) && host.len() > suffix.len()).then_some(suffix.len()),
                None => (host == pattern).then_some(usize::MAX),
            },
        }
    }

    /// One digit a segment: 3 literal, 2 param, 1 remainder; 2 at the end of the path, so that it beats a remainder.
    fn path_rank(&self, path: &str) -> Option<Vec<u8>> {
        let mut rank = Vec::new();
        let mut parts = path[1..].split('/').map(Some).collect::<Vec<_>>();
        parts.push(None);
        let pattern = self.path.as_deref().unwrap_or("/{*all}");
        let mut patterns = pattern[1..].split('/').map(Some).collect::<Vec<_>>();
        patterns.push(None);
        let mut at = 0;
        loop {
            match (patterns.get(at).copied().flatten(), parts.get(at).copied().flatten()) {
                (Some(p), _) if p.starts_with("{*") => {
                    rank.push(1);
                    return Some(rank);
                }
                (Some(p), Some(s)) if p.starts_with('{') && !s.is_empty() => rank.push(2),
                (Some(p), Some(s)) if p == s => rank.push(3),
                (None, None) => {
                    rank.push(2);
                    return Some(rank);
                }
                _ => return None,
            }
            at += 1;
        }
    }

    fn method_rank(&self, method: &str) -> Option<u8> {
        if self.methods.is_empty() {
            Some(0)
        } else if self.methods.contains(&method) {
            Some(2)
        } else {
            (method == "HEAD" && self.methods.contains(&"GET")).then_some(1)
        }
    }

    fn conditions_hold(&self, request: &Plea) -> bool {
        let holds = |have: &[(&str, &str)], want: &[(&str, &str)]| {
            want.iter().all(|(name, value)| {
                let values: Vec<&str> = have.iter().filter(|(n, _)| n == name).map(|(_, v)| *v).collect();
                if *value == "*" { !values.is_empty() } else { values == [*value] }
            })
        };
        holds(&request.headers, &self.headers) && holds(&request.query, &self.query)
    }

    fn condition_rank(&self) -> (usize, usize) {
        let all = self.headers.iter().chain(&self.query);
        (all.clone().count(), all.filter(|(_, value)| *value != "*").count())
    }
}

/// A request of the alphabet.
#[derive(Debug, Clone)]
struct Plea {
    host: &'static str,
    path: String,
    method: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    query: Vec<(&'static str, &'static str)>,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Route(u32),
    NotFound,
    NotAllowed(String),
    /// Two routes are level.
    Level(u32, u32),
}

fn oracle(routes: &[Plain], request: &Plea) -> Answer {
    let mut best: Option<(u32, _)> = None;
    let mut level = None;
    let mut allow = std::collections::BTreeSet::new();
    for (index, route) in routes.iter().enumerate() {
        let (Some(host), Some(path)) = (route.host_rank(request.host), route.path_rank(&request.path)) else { continue };
        if !route.conditions_hold(request) {
            continue;
        }
        let Some(method) = route.method_rank(request.method) else {
            allow.extend(&route.methods);
            continue;
        };
        let rank = (host, path, method, route.condition_rank());
        let index = index as u32;
        match best.as_ref().map(|(_, known)| rank.cmp(known)) {
            None | Some(Ordering::Greater) => {
                best = Some((index, rank));
                level = None;
            }
            Some(Ordering::Equal) => level = best.as_ref().map(|(first, _)| (*first, index)),
            Some(Ordering::Less) => {}
        }
    }
    if allow.contains(&"GET") {
        allow.insert("HEAD");
    }
    match (level, best) {
        (Some((first, second)), _) => Answer::Level(first, second),
        (None, Some((index, _))) => Answer::Route(index),
        (None, None) if allow.is_empty() => Answer::NotFound,
        (None, None) => Answer::NotAllowed(allow.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

fn router(routes: &[Plain]) -> Result<Router, Vec<Ambiguity>> {
    let entry = |(index, route): (usize, &Plain)| RouteEntry { index: index as u32, matcher: route.matcher() };
    Router::build(routes.iter().enumerate().map(entry).collect())
}

fn ask(router: &Router, request: &Plea) -> (Answer, Params) {
    let mut headers = HeaderMap::new();
    for (name, value) in &request.headers {
        headers.append(*name, HeaderValue::from_static(value));
    }
    let query: Vec<String> = request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let query = query.join("&");
    let method = Method::from_bytes(request.method.as_bytes()).unwrap();
    let query = Query {
        host: request.host,
        path: &request.path,
        method: &method,
        headers: &headers,
        query: (!query.is_empty()).then_some(&query),
    };
    let mut params = Params::default();
    let answer = match router.find(&query, &mut params) {
        Found::Route(index) => Answer::Route(index),
        Found::NotFound => Answer::NotFound,
        Found::MethodNotAllowed(allow) => Answer::NotAllowed(allow.to_str().unwrap().to_owned()),
    };
    (answer, params)
}

fn hosts() -> impl Strategy<Value = Option<&'static str>> {
    prop::sample::select(vec![None, Some("a.x"), Some("*.x"), Some("*.a.x"), Some("b.a.x")])
}

fn paths() -> impl Strategy<Value = Option<String>> {
    let segment = prop::sample::select(vec!["a", "b", "{p}"]);
    let end = prop::sample::select(vec!["", "", "/", "/{*rest}"]);
    let path = (prop::collection::vec(segment, 0..4), end).prop_map(|(segments, end)| {
        let mut path: String =
            segments.iter().enumerate().map(|(n, s)| format!("/{}", s.replace('p', &format!("p{n}")))).collect();
        path += end;
        if path.is_empty() { "/".to_owned() } else { path }
    });
    prop::option::weighted(0.9, path)
}

fn pairs(values: Vec<&'static str>, most: usize) -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    prop::collection::vec((prop::sample::select(vec!["u", "v"]), prop::sample::select(values)), 0..=most)
}

fn distinct(mut pairs: Vec<(&'static str, &'static str)>) -> Vec<(&'static str, &'static str)> {
    pairs.sort();
    pairs.dedup_by_key(|(name, _)| *name);
    pairs
}

fn routes() -> impl Strategy<Value = Plain> {
    let methods = prop::sample::subsequence(vec!["GET", "HEAD", "PATCH", "LINK"], 0..=2);
    let values = || pairs(vec!["1", "2", "*"], 2).prop_map(distinct);
    let few = |pairs: Vec<_>, keep: bool| if keep { pairs } else { Vec::new() };
    (hosts(), paths(), methods, values(), values(), any::<bool>(), prop::bool::weighted(0.3)).prop_map(
        move |(host, path, methods, headers, query, with_headers, with_query)| Plain {
            host,
            path,
            methods,
            headers: few(headers, with_headers),
            query: few(query, with_query),
        },
    )
}

fn requests() -> impl Strategy<Value = Plea> {
    let host = prop::sample::select(vec!["a.x", "b.a.x", "c.b.a.x", "x", "q.x", "other"]);
    let segment = prop::sample::select(vec!["a", "b", "c"]);
    let path = (prop::collection::vec(segment, 0..4), any::<bool>()).prop_map(|(segments, slash)| {
        let mut path: String = segments.iter().map(|s| format!("/{s}")).collect();
        if slash || path.is_empty() {
            path.push('/');
        }
        path
    });
    let method = prop::sample::select(vec!["GET", "HEAD", "PATCH", "LINK", "DELETE"]);
    (host, path, method, pairs(vec!["1", "2", "3"], 3), pairs(vec!["1", "2"], 3))
        .prop_map(|(host, path, method, headers, query)| Plea { host, path, method, headers, query })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn finds_what_a_linear_scan_finds(
        mut routes in prop::collection::vec(routes(), 1..24),
        requests in prop::collection::vec(requests(), 64),
    ) {
        // Drop one route of each pair that cannot live together until the rest can, checking each claim.
        let router = loop {
            match router(&routes) {
                Ok(router) => break router,
                Err(list) => {
                    let Ambiguity { first, second, .. } = &list[0];
                    let request = level_request(&routes[*first as usize], &routes[*second as usize]);
                    let pair = [routes[*first as usize].clone(), routes[*second as usize].clone()];
                    prop_assert_eq!(oracle(&pair, &request), Answer::Level(0, 1), "{:?} {:?}", pair, request);
                    routes.remove(*second as usize);
                }
            }
        };
        for request in &requests {
            let (found, params) = ask(&router, request);
            prop_assert_eq!(&found, &oracle(&routes, request), "{:?}", request);
            if let Answer::Route(index) = found {
                let pattern = routes[index as usize].path.as_deref().unwrap_or("/");
                let mut filled = pattern.to_owned();
                for (name, value) in params.iter(&request.path) {
                    filled = filled.replace(&format!("{{{name}}}"), value).replace(&format!("{{*{name}}}"), value);
                }
                let same = filled == request.path || filled.strip_suffix('/') == Some(&request.path);
                prop_assert!(routes[index as usize].path.is_none() || same, "{} {}", filled, request.path);
            }
        }
    }
}

/// A request that meets both routes of an ambiguous pair.
fn level_request(first: &Plain, second: &Plain) -> Plea {
    let host = match first.host {
        None => "other",
        Some("*.x") => "q.x",
        Some("*.a.x") => "c.b.a.x",
        Some(exact) => exact,
    };
    let path: String = first
        .path
        .as_deref()
        .unwrap_or("/")
        .split('/')
        .map(|s| if s.starts_with('{') { "c" } else { s })
        .collect::<Vec<_>>()
        .join("/");
    let shared = ["GET", "PATCH", "LINK", "HEAD", "DELETE"].into_iter().find(|method| {
        let takes = |route: &Plain| route.methods.is_empty() || route.methods.contains(method);
        takes(first) && takes(second)
    });
    let meet = |a: &[(&'static str, &'static str)], b: &[(&'static str, &'static str)]| {
        let mut all: Vec<_> = a.iter().chain(b).copied().collect();
        // The exact value of a name before its `*`, which any value meets.
        all.sort_by_key(|(name, value)| (*name, *value == "*"));
        all.dedup_by_key(|(name, _)| *name);
        all.into_iter().map(|(name, value)| (name, if value == "*" { "3" } else { value })).collect()
    };
    Plea {
        host,
        path,
        method: shared.unwrap_or("GET"),
        headers: meet(&first.headers, &second.headers),
        query: meet(&first.query, &second.query),
    }
}

fn plain(path: &str) -> Plain {
    Plain { host: None, path: Some(path.to_owned()), methods: vec![], headers: vec![], query: vec![] }
}

fn get(path: &str) -> Plea {
    Plea { host: "a.x", path: path.to_owned(), method: "GET", headers: vec![], query: vec![] }
}

/// Every pair of routes over a tiny alphabet: two level routes exist for some request exactly when the pair is refused.
#[test]
fn a_pair_is_refused_exactly_when_some_request_leaves_it_level() {
    let conditions: [&[(&str, &str)]; 5] = [&[], &[("u", "1")], &[("u", "2")], &[("v", "1")], &[("u", "*")]];
    let methods: [&[&str]; 5] = [&[], &["GET"], &["HEAD"], &["PATCH"], &["GET", "PATCH"]];
    let mut all = Vec::new();
    for path in ["/a", "/{p}", "/{*rest}", "/a/{q}"] {
        for methods in methods {
            for headers in conditions {
                all.push(Plain { methods: methods.to_vec(), headers: headers.to_vec(), ..plain(path) });
            }
        }
    }
    let mut requests = Vec::new();
    for path in ["/a", "/b", "/a/b", "/"] {
        for method in ["GET", "HEAD", "PATCH", "DELETE"] {
            let values: [&[(&str, &str)]; 6] = [
                &[],
                &[("u", "1")],
                &[("u", "2")],
                &[("u", "1"), ("v", "1")],
                &[("u", "2"), ("v", "1")],
                &[("u", "1"), ("u", "2"), ("v", "1")],
            ];
            for headers in values {
                requests.push(Plea { method, headers: headers.to_vec(), ..get(path) });
            }
        }
    }
    for first in &all {
        for second in &all {
            let pair = [first.clone(), second.clone()];
            let level = requests.iter().find(|request| matches!(oracle(&pair, request), Answer::Level(..)));
            assert_eq!(router(&pair).is_err(), level.is_some(), "{pair:?} {level:?}");
        }
    }
}

#[test]
fn ambiguous_routes_are_both_named_with_the_reason() {
    let list = router(&[plain("/a/{x}"), plain("/b"), plain("/a/{y}")]).unwrap_err();
    assert_eq!((list.len(), list[0].first, list[0].second), (1, 0, 2));
    assert!(list[0].why.contains("same host and path"), "{}", list[0].why);
}

#[test]
fn a_remainder_may_be_empty_and_has_no_leading_slash() {
    let router = router(&[plain("/api/{*rest}")]).unwrap();
    for (path, rest) in [("/api", ""), ("/api/", ""), ("/api/x", "x"), ("/api/x/y/", "x/y/")] {
        let (answer, params) = ask(&router, &get(path));
        assert_eq!((answer, params.get(path, "rest")), (Answer::Route(0), Some(rest)), "{path}");
    }
    assert_eq!(ask(&router, &get("/apix")).0, Answer::NotFound);
}

#[test]
fn a_method_mismatch_falls_back_before_it_is_refused() {
    let only = |path, methods: &[&'static str]| Plain { methods: methods.to_vec(), ..plain(path) };
    let router = router(&[only("/a/b", &["GET"]), only("/a/{p}", &["PATCH"]), only("/{*rest}", &["LINK"])]).unwrap();
    let with = |path, method| ask(&router, &Plea { method, ..get(path) }).0;
    assert_eq!(with("/a/b", "PATCH"), Answer::Route(1));
    assert_eq!(with("/a/b", "LINK"), Answer::Route(2));
    assert_eq!(with("/a/b", "DELETE"), Answer::NotAllowed("GET, HEAD, LINK, PATCH".to_owned()));
    assert_eq!(with("/c", "OPTIONS"), Answer::NotAllowed("LINK".to_owned()));
    assert_eq!(with("/a/b", "BREW"), Answer::NotAllowed("GET, HEAD, LINK, PATCH".to_owned()));
}

#[test]
fn query_conditions_are_compared_decoded() {
    let config: MatchConfig = toml::from_str("query = { 'a b' = 'c/d' }").unwrap();
    let matcher = config.compile(&mut Diagnostics::default()).unwrap();
    let router = Router::build(vec![RouteEntry { index: 5, matcher }]).unwrap();
    let headers = HeaderMap::new();
    let find = |query| {
        let query = Query { host: "a", path: "/", method: &Method::GET, headers: &headers, query };
        router.find(&query, &mut Params::default())
    };
    assert_eq!(find(Some("x=1&a+b=c%2Fd")), Found::Route(5));
    assert_eq!(find(Some("a%20b=c/d")), Found::Route(5));
    assert_eq!(find(Some("a+b=c%2Fd&a+b=c/d")), Found::NotFound);
    assert_eq!(find(None), Found::NotFound);
}

#[test]
fn routes_that_would_cost_a_request_too_much_are_refused() {
    // All mixtures of literal and param at eight depths under one root: 511 places. With a second host level: over 1,024.
    let mixed = |depth: usize, host| {
        (0_u32..1 << depth).map(move |mask| {
            let path = (0..depth).map(|n| if mask >> n & 1 == 1 { format!("/{{p{n}}}") } else { "/a".to_owned() }).collect();
            Plain { host, ..plain(&String::from_iter::<Vec<String>>(path)) }
        })
    };
    let one: Vec<Plain> = mixed(8, None).collect();
    assert_eq!(ask(&router(&one).unwrap(), &get("/a/a/a/a/a/a/a/a/b")).0, Answer::NotFound);
    let three: Vec<Plain> = mixed(8, None).chain(mixed(8, Some("*.x"))).chain(mixed(8, Some("a.x"))).collect();
    let list = router(&three).unwrap_err();
    assert!(list[0].why.contains("1533 places"), "{}", list[0].why);
}

#[test]
fn ten_thousand_tenants_told_apart_by_a_header_are_found() {
    let entries = (0..10_000).map(|n| {
        let config: MatchConfig = toml::from_str(&format!("path = '/a'\nheaders = {{ x-tenant = '{n}' }}")).unwrap();
        RouteEntry { index: n, matcher: config.compile(&mut Diagnostics::default()).unwrap() }
    });
    let router = Router::build(entries.collect()).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("x-tenant", HeaderValue::from_static("7777"));
    let query = Query { host: "a", path: "/a", method: &Method::GET, headers: &headers, query: None };
    assert_eq!(router.find(&query, &mut Params::default()), Found::Route(7777));
}
