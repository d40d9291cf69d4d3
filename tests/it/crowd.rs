//! Many connections at once: what an idle one costs, what a slow one costs, and what happens when there are no more file
//! descriptors.

use crate::support::gateway::binary;
use crate::support::h2::H2Client;
use crate::support::load::Plan;
use crate::support::raw::{get, request};
use crate::support::tls::{Authority, TlsClient};
use crate::support::{Gateway, Load, Origin, SOON, eventually, everything_to, exclusive, record, runtime};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// Connections of each kind; `GATEWRIGHT_TEST_CONNECTIONS` asks for others.
const CONNECTIONS: usize = 2_000;
/// What an idle connection may cost, in bytes of resident memory: of HTTP/1.1; over TLS, where rustls has 4 KiB to read into and
/// its keys and states besides; and of HTTP/2, where the `h2` crate keeps 28 KiB of buffers that nobody else can give back.
const IDLE_MAX: u64 = 12 << 10;
const IDLE_TLS_MAX: u64 = 32 << 10;
const IDLE_HTTP2_MAX: u64 = 64 << 10;
/// What a connection may cost that sends its header a byte at a time.
const SLOW_MAX: u64 = 32 << 10;
const HELLO: &str = "[routes.hello]\nmatch = { path = \"/hello\" }\nfilters = [{ respond = { body = \"hello\" } }]\n";

fn connections() -> usize {
    std::env::var("GATEWRIGHT_TEST_CONNECTIONS").ok().and_then(|number| number.parse().ok()).unwrap_or(CONNECTIONS)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, SOON).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// One request and its answer.
fn exchange(stream: &mut TcpStream) {
    stream.write_all(&request("GET", "/hello", &[], b"")).unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !seen.ends_with(b"hello") {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..read]);
    }
}

#[test]
fn an_idle_connection_costs_less_than_12_kib() {
    let _machine = exclusive();
    let gateway = Gateway::start(HELLO);
    let address = gateway.http();
    idle_costs_at_most(IDLE_MAX, "HTTP/1.1", &gateway, || connect(address), exchange);
}

#[test]
fn an_idle_tls_connection_costs_less_than_32_kib() {
    let _machine = exclusive();
    let authority = Authority::new();
    let tls = "tls = { certificates = [{ cert = \"a.pem\", key = \"a.key\" }] }\n";
    let toml = format!("[listeners.http]\naddress = \"127.0.0.1:0\"\n{tls}{HELLO}");
    let gateway = Gateway::try_start_with(&toml, |directory| authority.issue(&["localhost"]).write(directory, "a")).unwrap();
    let address = gateway.http();
    let (client, config) = (authority.trusting(), authority.trusting().config());
    let open = || client.connect_with(&config, address, "localhost").unwrap();
    let ask = |client: &mut TlsClient| assert_eq!(client.exchange(request("GET", "/hello", &[], b"")).unwrap().text(), "hello");
    idle_costs_at_most(IDLE_TLS_MAX, "TLS", &gateway, open, ask);
}

#[test]
fn an_idle_http2_connection_costs_less_than_64_kib() {
    let _machine = exclusive();
    let gateway = Gateway::start(&format!("[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n{HELLO}"));
    let address = gateway.http();
    let open = || runtime().block_on(H2Client::plain(address));
    let ask = |client: &mut H2Client| assert_eq!(runtime().block_on(client.get("/hello")).unwrap().body, b"hello");
    idle_costs_at_most(IDLE_HTTP2_MAX, "HTTP/2", &gateway, open, ask);
}

/// Opens many connections that ask once and then say nothing, and looks what the gateway has grown by.
fn idle_costs_at_most<C>(most: u64, what: &str, gateway: &Gateway, open: impl Fn() -> C, ask: impl Fn(&mut C)) {
    // What the first few requests allocate is for all of them.
    let mut first: Vec<C> = std::iter::repeat_with(&open).take(50).collect();
    for _ in 0..5 {
        first.iter_mut().for_each(&ask);
    }
    let before = gateway.rss();
    let number = connections();
    // Each asks at once: one that says nothing for as long as a header may take is closed, and to open all of them takes a
    // busy machine longer than that.
    let asked = || {
        let mut connection = open();
        ask(&mut connection);
        connection
    };
    let mut idle: Vec<C> = std::iter::repeat_with(asked).take(number).collect();
    eventually("all are open", SOON, || gateway.status()["connections"].as_u64() == Some((number + first.len()) as u64));
    let each = gateway.rss().saturating_sub(before) / number as u64;
    println!("{each} bytes for each of {number} idle connections of {what}");
    record("idle_connection", serde_json::json!({ "protocol": what, "connections": number, "bytes_each": each }));
    assert!(each <= most, "{each} bytes for each of {number} idle connections of {what}");
    // They are as good as ever.
    idle.iter_mut().step_by(97).for_each(ask);
}

#[test]
fn two_thousand_slow_headers_harm_no_good_request() {
    let _machine = exclusive();
    let origin = Origin::start("a");
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nheader_timeout = \"20s\"\n";
    let gateway = Gateway::start(&(listener.to_owned() + &everything_to(&[&origin], "")));
    let address = gateway.http();
    let pause = Duration::from_millis(5);
    let load = Load::start(Plan { address, connections: 3, method: "GET", target: "/load".into(), pause });
    eventually("load", SOON, || load.ok() >= 100);
    let before = gateway.rss();
    let number = connections();
    let mut slow: Vec<TcpStream> = (0..number).map(|_| connect(address)).collect();
    // A header of some length first, then a byte at a time.
    let beginning = format!("GET / HTTP/1.1\r\nhost: a\r\nx-slow: {}", "x".repeat(500));
    for stream in &mut slow {
        stream.write_all(beginning.as_bytes()).unwrap();
    }
    let (mut most, began) = (0, load.ok());
    for _ in 0..4 {
        for stream in &mut slow {
            stream.write_all(b"x").unwrap();
        }
        most = most.max(gateway.rss().saturating_sub(before) / number as u64);
        let at_least = load.ok() + 50;
        eventually("load goes on", SOON, || load.ok() >= at_least);
    }
    println!("{most} bytes for each of {number} slow headers, {} good requests meanwhile", load.ok() - began);
    assert!(most <= SLOW_MAX, "{most} bytes for each of {number} slow headers");
    load.finish().assert_clean(300);
}

/// Seconds of processor time of a process.
fn cpu(pid: i64) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // utime and stime, in ticks, of which Linux tells a hundred for each second.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[test]
fn without_file_descriptors_it_waits_and_does_not_spin() {
    let _machine = exclusive();
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("gatewright");
    let real = binary();
    std::fs::write(&script, format!("#!/bin/sh\nulimit -n 80\nexec '{real}' \"$@\"\n")).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    // The admin listener is on a connection that is open already when descriptors run out.
    let gateway = Gateway::try_start_binary(&script, HELLO).unwrap();
    let address = gateway.http();
    let pid = gateway.status()["pid"].as_i64().unwrap();
    let mut crowd: Vec<TcpStream> = (0..120).map(|_| connect(address)).collect();
    std::thread::sleep(Duration::from_millis(300));
    let (before, began) = (cpu(pid), Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let share = (cpu(pid) - before) / began.elapsed().as_secs_f64();
    assert!(share < 0.3, "{share:.2} of a processor while nothing can be accepted");
    // Those who were let in are served, and with them gone everybody is.
    exchange(&mut crowd[0]);
    crowd.truncate(10);
    assert_eq!(get(address, "/hello").text(), "hello");
    let failed = gateway.metric("gatewright_listener_connections_refused_total", &[("reason", "accept_failed")]);
    assert!(failed > 0.0 && failed < 1_000.0, "{failed} failed attempts to accept");
}
