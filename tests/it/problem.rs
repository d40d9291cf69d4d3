//! Answers that the gateway makes itself: RFC 9457 problem documents, on connections that stay in step.

use crate::support::raw::{Client, get, request};
use crate::support::{Gateway, Origin, everything_to};

const ONE: &str = "[routes.one]\nmatch = { path = \"/one\", methods = [\"GET\"] }\nfilters = [{ respond = { status = 200, body = \"one\" } }]\n";

#[test]
fn rejection_is_a_problem_document() {
    let gateway = Gateway::start(ONE);
    let response = get(gateway.http(), "/nowhere");
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    let problem = response.json();
    assert_eq!((problem["status"].as_u64(), problem["code"].as_str()), (Some(404), Some("route_not_found")));
    assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{problem}");
    let id = response.header("x-request-id").expect("X-Request-Id");
    assert!(problem["instance"].as_str().is_some_and(|instance| instance.ends_with(id)), "{problem} is not about {id}");
    assert_eq!(gateway.logged("it", |line| line["request_id"] == id)["rejection"], "route_not_found");
}

#[test]
fn rejection_of_a_head_has_the_headers_and_no_body() {
    let gateway = Gateway::start(ONE);
    let mut client = Client::connect(gateway.http());
    let head = client.exchange(request("HEAD", "/nowhere", &[], b"")).unwrap();
    assert_eq!((head.status, head.header("content-type")), (404, Some("application/problem+json")));
    // A body here would be read as the start of the next response.
    let next = client.exchange(request("GET", "/one", &[], b"")).unwrap();
    assert_eq!((next.status, next.text().as_str()), (200, "one"));
}

#[test]
fn connection_stays_open_after_a_rejection() {
    let gateway = Gateway::start(ONE);
    let mut client = Client::connect(gateway.http());
    for (method, target, status) in [("GET", "/a", 404), ("PUT", "/one", 405), ("GET", "/one", 200), ("GET", "/b", 404)] {
        let response = client.exchange(request(method, target, &[], b"")).unwrap();
        assert_eq!((response.status, response.keep_alive), (status, true), "{method} {target}");
    }
}

#[test]
fn body_of_a_rejected_request_is_never_read_as_a_request() {
    let origin = Origin::start("a");
    let toml = everything_to(&[&origin], "").replace("path = \"/{*rest}\"", "path = \"/known\"");
    let gateway = Gateway::start(&toml);
    let hidden = "GET /known HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for _ in 0..5 {
        let mut client = Client::connect(gateway.http());
        let response = client.exchange(request("POST", "/unknown", &[], hidden.as_bytes())).unwrap();
        assert_eq!(response.status, 404);
        if response.keep_alive {
            assert_eq!(client.exchange(request("GET", "/nowhere", &[], b"")).unwrap().status, 404, "out of step");
        }
    }
    assert_eq!(origin.count(), 0, "a request out of a body reached the origin");
}

#[test]
fn redirect_and_respond_answer_without_an_upstream() {
    let toml = "[routes.old]\nmatch = { path = \"/old\" }\nfilters = [{ redirect = { to = \"/new\" } }]\n";
    let gateway = Gateway::start(&(ONE.to_owned() + toml));
    let response = get(gateway.http(), "/old");
    assert!((300..400).contains(&response.status), "{}", response.status);
    assert!(response.header("location").is_some_and(|location| location.ends_with("/new")), "{:?}", response.headers);
    assert_eq!(get(gateway.http(), "/one").text(), "one");
}
