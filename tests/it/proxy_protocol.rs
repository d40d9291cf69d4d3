//! PROXY protocol: whose word on the client's address is taken, and where that address then shows.

use crate::support::http1::Broken;
use crate::support::raw::{Client, request};
use crate::support::tls::Authority;
use crate::support::{Gateway, Origin, SOON, eventually, everything_to};
use std::io::Write;

fn listener(from: &str, more: &str) -> String {
    format!("[listeners.http]\naddress = \"127.0.0.1:0\"\nproxy_protocol = {{ from = [\"{from}\"] }}\n{more}")
}

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\xdc\x04\x01\xbb";

fn refused(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric("gatewright_listener_connections_refused_total", &[("reason", reason)])
}

#[test]
fn the_address_that_a_trusted_balancer_names_is_the_clients_everywhere() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&(listener("127.0.0.0/8", "") + &everything_to(&[&origin], "")));
    for header in [V1, V2] {
        let mut client = Client::connect(gateway.http());
        // In one write with the request: not a byte of that may be lost.
        let answer = client.send([header, &request("GET", "/", &[], b"")].concat()).response();
        assert_eq!(answer.status, 200);
        assert_eq!(client.exchange(request("GET", "/", &[], b"")).unwrap().status, 200, "only the connection has a header");
    }
    for seen in origin.requests() {
        assert_eq!(seen.header_all("x-forwarded-for"), ["192.0.2.7"]);
    }
    gateway.logged("its line", |line| line["client"] == "192.0.2.7");
    // It speaks for itself: its own address.
    let mut client = Client::connect(gateway.http());
    client.send(["PROXY UNKNOWN\r\n".as_bytes(), &request("GET", "/", &[], b"")].concat()).response();
    assert_eq!(origin.requests()[4].header_all("x-forwarded-for"), ["127.0.0.1"]);
}

#[test]
fn a_balancer_that_sends_no_header_is_not_served() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&(listener("127.0.0.1", "header_timeout = \"500ms\"\n") + &everything_to(&[&origin], "")));
    for beginning in [request("GET", "/", &[], b""), b"PROXY TCP4 nobody\r\n\r\n\r\n".to_vec(), b"PROXY TCP4 192.0".to_vec()] {
        let mut client = Client::connect(gateway.http());
        client.send(&beginning);
        let answer = client.read();
        assert!(matches!(answer, Err(Broken::Closed)), "{}: {answer:?}", beginning.escape_ascii());
    }
    eventually("all are counted", SOON, || refused(&gateway, "proxy_header") == 3.0);
    assert_eq!(origin.count(), 0);
}

#[test]
fn a_header_from_elsewhere_is_a_malformed_request() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&(listener("10.0.0.0/8", "") + &everything_to(&[&origin], "")));
    let mut client = Client::connect(gateway.http());
    let answer = client.send([V1, &request("GET", "/", &[], b"")].concat()).response();
    assert_eq!(answer.status, 400);
    assert_eq!(origin.count(), 0);
    assert_eq!(Client::connect(gateway.http()).exchange(request("GET", "/", &[], b"")).unwrap().status, 200);
}

#[test]
fn connections_are_capped_by_the_address_that_is_named() {
    let origin = Origin::start("a");
    let toml = listener("127.0.0.1", "max_connections_per_address = 1\n") + &everything_to(&[&origin], "");
    let gateway = Gateway::start(&toml);
    let named = |address: &str| {
        let mut client = Client::connect(gateway.http());
        let (family, to) = if address.contains(':') { (6, "2001:db8:ff::1") } else { (4, "198.51.100.1") };
        client.send(format!("PROXY TCP{family} {address} {to} 1 2\r\n"));
        client
    };
    let addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8:0:1::1", "2001:db8:0:2::1"];
    let mut held: Vec<Client> = addresses.map(named).into();
    for client in &mut held {
        assert_eq!(client.exchange(request("GET", "/", &[], b"")).unwrap().status, 200);
    }
    assert!(named("192.0.2.1").closes_within(SOON));
    // A client of IPv6 has a /64 to choose addresses from.
    assert!(named("2001:db8:0:1:ffff:ffff:ffff:ffff").closes_within(SOON));
    let mut next = named("2001:db8:0:3::1");
    assert_eq!(next.exchange(request("GET", "/", &[], b"")).unwrap().status, 200, "another /64");
    eventually("both are counted", SOON, || refused(&gateway, "max_connections_per_address") == 2.0);
}

#[test]
fn the_header_comes_before_the_handshake() {
    let origin = Origin::start("a");
    let authority = Authority::new();
    let tls = "tls = { certificates = [{ cert = \"a.pem\", key = \"a.key\" }] }\n";
    let toml = listener("127.0.0.1", tls) + &everything_to(&[&origin], "");
    let gateway = Gateway::try_start_with(&toml, |directory| authority.issue(&["localhost"]).write(directory, "a")).unwrap();
    let mut socket = std::net::TcpStream::connect(gateway.http()).unwrap();
    socket.write_all(V2).unwrap();
    let mut client = authority.trusting().over(socket, "localhost").unwrap();
    assert_eq!(client.exchange(request("GET", "/", &[], b"")).unwrap().status, 200);
    assert_eq!(origin.requests()[0].header_all("x-forwarded-for"), ["192.0.2.7"]);
    assert_eq!(origin.requests()[0].header_all("x-forwarded-proto"), ["https"]);
}

#[test]
fn filters_decide_by_the_address_that_is_named() {
    let hello = "{ respond = { body = \"hello\" } }";
    let toml = format!(
        "{}[routes.denied]\nmatch = {{ path = \"/denied\" }}\nfilters = [{{ ip_deny = {{ networks = [\"192.0.2.7\"] }} }}, {hello}]\n\
         [routes.limited]\nmatch = {{ path = \"/limited\" }}\n\
         filters = [{{ rate_limit = {{ by = \"address\", limits = [{{ rate = \"1/1h\" }}] }} }}, {hello}]\n",
        listener("127.0.0.1", "")
    );
    let gateway = Gateway::start(&toml);
    let status = |address: &str, path: &str| {
        let mut client = Client::connect(gateway.http());
        client.send(format!("PROXY TCP4 {address} 198.51.100.1 1 2\r\n"));
        client.exchange(request("GET", path, &[], b"")).unwrap().status
    };
    assert_eq!((status("192.0.2.7", "/denied"), status("192.0.2.8", "/denied")), (403, 200));
    for address in ["192.0.2.1", "192.0.2.2"] {
        assert_eq!((status(address, "/limited"), status(address, "/limited")), (200, 429), "{address}");
    }
}
