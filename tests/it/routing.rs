//! Which route takes a request, seen from outside.

use crate::support::raw::{get, send};
use crate::support::{Gateway, Origin, everything_to};
use std::net::SocketAddr;

/// A route that answers with its own name.
fn says(name: &str, matcher: &str) -> String {
    format!("\n[routes.{name}]\nmatch = {{ {matcher} }}\nfilters = [{{ respond = {{ status = 200, body = \"{name}\" }} }}]\n")
}

fn route_of(address: SocketAddr, method: &str, host: &str, target: &str, headers: &[(&str, &str)]) -> String {
    let headers: Vec<_> = [("host", host)].into_iter().chain(headers.iter().copied()).collect();
    send(address, method, target, &headers, b"").text()
}

#[test]
fn unknown_path_is_404() {
    let gateway = Gateway::start(&says("known", "path = \"/known\""));
    let response = get(gateway.http(), "/unknown");
    assert_eq!((response.status, response.code().as_str()), (404, "route_not_found"));
    assert_eq!(get(gateway.http(), "/known").status, 200);
}

#[test]
fn known_path_with_another_method_is_405_and_names_the_methods() {
    let gateway = Gateway::start(&says("things", "path = \"/things\", methods = [\"GET\", \"POST\"]"));
    let response = send(gateway.http(), "DELETE", "/things", &[], b"");
    assert_eq!((response.status, response.code().as_str()), (405, "method_not_allowed"));
    let mut allow: Vec<&str> = response.header("allow").expect("Allow").split(',').map(str::trim).collect();
    allow.sort_unstable();
    assert_eq!(allow, ["GET", "HEAD", "POST"]);
    assert_eq!(send(gateway.http(), "POST", "/things", &[], b"").status, 200);
}

#[test]
fn most_specific_route_wins_wherever_it_stands_in_the_file() {
    let routes = [
        says("rest", "path = \"/{*rest}\""),
        says("param", "path = \"/a/{id}\""),
        says("literal", "path = \"/a/b\""),
        says("method", "path = \"/a/b\", methods = [\"PUT\"]"),
        says("header", "path = \"/a/b\", headers = { x-beta = \"1\" }"),
        says("query", "path = \"/a/b\", query = { debug = \"yes\", trace = \"*\" }"),
        says("wildcard", "host = \"*.example.com\", path = \"/{*rest}\""),
        says("exact", "host = \"api.example.com\", path = \"/{*rest}\""),
    ];
    let reversed = routes.iter().rev().cloned().collect();
    for toml in [routes.concat(), reversed] {
        let gateway = Gateway::start(&toml);
        let of = |method, host, target, headers| route_of(gateway.http(), method, host, target, headers);
        assert_eq!(of("GET", "localhost", "/", &[]), "rest");
        assert_eq!(of("GET", "localhost", "/x/y/z", &[]), "rest");
        assert_eq!(of("GET", "localhost", "/a/other", &[]), "param");
        assert_eq!(of("GET", "localhost", "/a/b", &[]), "literal");
        assert_eq!(of("PUT", "localhost", "/a/b", &[]), "method");
        assert_eq!(of("GET", "localhost", "/a/b", &[("x-beta", "1")]), "header");
        assert_eq!(of("GET", "localhost", "/a/b", &[("x-beta", "2")]), "literal");
        assert_eq!(of("GET", "localhost", "/a/b?trace=1&debug=yes", &[]), "query");
        assert_eq!(of("GET", "www.example.com", "/a/b", &[]), "wildcard");
        assert_eq!(of("GET", "api.example.com", "/a/b", &[]), "exact");
        assert_eq!(of("GET", "API.example.com:8080", "/a/b", &[]), "exact");
        assert_eq!(of("GET", "example.com", "/a/b", &[]), "literal");
    }
}

#[test]
fn dot_segments_cannot_reach_around_a_route() {
    let origin = Origin::start("a");
    let toml = everything_to(&[&origin], "") + &says("secret", "path = \"/secret/{*rest}\"");
    let gateway = Gateway::start(&toml);
    for target in ["/open/../secret/x", "/secret/./x", "/%73ecret/x", "/open/%2e%2e/secret/x"] {
        let response = get(gateway.http(), target);
        assert!(response.text() == "secret" || response.status == 400, "{target}: {} {}", response.status, response.text());
    }
    assert!(origin.requests().iter().all(|r| !r.request_line().contains("secret")), "{:?}", origin.requests());
}
