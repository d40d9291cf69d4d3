//! Everything that a client can make large or slow has a bound, and each bound its answer.

use crate::support::raw::{Client, get, request, send};
use crate::support::{Answer, Gate, Gateway, Origin, SOON, eventually, everything_to};
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

#[test]
fn header_larger_than_the_bound_is_431() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let fits = "x".repeat(30 * 1024);
    assert_eq!(send(gateway.http(), "GET", "/", &[("x-big", &fits)], b"").status, 200);
    let large = "x".repeat(33 * 1024);
    let response = send(gateway.http(), "GET", "/", &[("x-big", &large)], b"");
    assert_eq!((response.status, response.code().as_str()), (431, "headers_too_large"));
    assert_eq!(origin.count(), 1);
}

#[test]
fn more_header_fields_than_the_bound_are_431() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    // `Host` is one of them.
    let fields = |count: usize| -> Vec<(String, String)> { (1..count).map(|n| (format!("x-{n}"), n.to_string())).collect() };
    for (count, status) in [(100, 200), (101, 431)] {
        let fields = fields(count);
        let borrowed: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(send(gateway.http(), "GET", "/", &borrowed, b"").status, status, "{count} fields");
    }
}

#[test]
fn target_longer_than_the_bound_is_414() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    for (length, status) in [(8 * 1024, 200), (8 * 1024 + 1, 414)] {
        let target = format!("/{}", "x".repeat(length - 1));
        assert_eq!(get(gateway.http(), &target).status, status, "{length} bytes");
    }
    assert_eq!(origin.count(), 1);
}

#[test]
fn body_larger_than_the_bound_is_413_by_its_length_before_anything_is_sent() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&("[server]\nmax_body = \"1KiB\"\n".to_owned() + &everything_to(&[&origin], "")));
    assert_eq!(send(gateway.http(), "POST", "/", &[], &[b'x'; 1024]).status, 200);
    let response = send(gateway.http(), "POST", "/", &[], &[b'x'; 1025]);
    assert_eq!((response.status, response.code().as_str()), (413, "body_too_large"));
    let announced = request("POST", "/", &[("content-length", "99999999999999")], b"");
    assert_eq!(Client::connect(gateway.http()).exchange(announced).unwrap().status, 413);
    assert_eq!(origin.count(), 1);
}

#[test]
fn body_larger_than_the_bound_is_413_by_counting() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&("[server]\nmax_body = \"1KiB\"\n".to_owned() + &everything_to(&[&origin], "")));
    let chunked = |size: usize| {
        let mut bytes = request("POST", "/", &[("transfer-encoding", "chunked")], b"");
        let half = "x".repeat(size / 2);
        bytes.extend(format!("{0:x}\r\n{1}\r\n{0:x}\r\n{1}\r\n0\r\n\r\n", half.len(), half).bytes());
        Client::connect(gateway.http()).exchange(bytes).unwrap()
    };
    assert_eq!(chunked(1024).json()["body"].as_str().map(str::len), Some(1024));
    let response = chunked(2048);
    assert_eq!((response.status, response.code().as_str()), (413, "body_too_large"));
    assert_eq!(origin.count(), 1, "the origin has seen a whole request");
}

/// A socket that is closed with unread bytes in it sends a reset, which takes the answer with it.
#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&("[server]\nmax_body = \"1KiB\"\n".to_owned() + &everything_to(&[&origin], "")));
    for framing in ["content-length: 1000000", "transfer-encoding: chunked"] {
        let mut client = TcpStream::connect(gateway.http()).unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        let chunk = format!("{:x}\r\n{}\r\n", 10_000, "x".repeat(10_000));
        write!(client, "POST / HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n{chunk}").unwrap();
        // The answer is here, and nobody has read it yet.
        assert_eq!(client.peek(&mut [0]).unwrap(), 1, "{framing}");
        for piece in 0..40 {
            client.write_all(chunk.as_bytes()).unwrap_or_else(|e| panic!("{framing}, piece {piece}: {e}"));
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap_or_else(|e| panic!("{framing}: {e}"));
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"), "{framing}: {answer}");
    }
}

#[test]
fn route_has_its_own_body_bound() {
    let origin = Origin::start("a");
    let upload = "[routes.upload]\nmatch = { path = \"/upload\" }\nupstream = \"app\"\nmax_body = \"4KiB\"\n";
    let toml = "[server]\nmax_body = \"1KiB\"\n".to_owned() + &everything_to(&[&origin], "") + upload;
    let gateway = Gateway::start(&toml);
    assert_eq!(send(gateway.http(), "POST", "/upload", &[], &[b'x'; 4096]).status, 200);
    assert_eq!(send(gateway.http(), "POST", "/upload", &[], &[b'x'; 4097]).status, 413);
    assert_eq!(send(gateway.http(), "POST", "/other", &[], &[b'x'; 4096]).status, 413);
}

#[test]
fn request_that_takes_longer_than_its_deadline_is_504() {
    let origin = Origin::start("a");
    // Long enough for a request that is answered.
    let toml = everything_to(&[&origin], "") + "timeouts = { request = \"3s\" }\n";
    let gateway = Gateway::start(&toml);
    assert_eq!(get(gateway.http(), "/").status, 200);
    origin.answer(Answer::BlackHole);
    let started = Instant::now();
    let response = get(gateway.http(), "/");
    assert_eq!((response.status, response.code().as_str()), (504, "deadline_exceeded"));
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn deadline_holds_for_a_response_that_never_ends() {
    let origin = Origin::start("a");
    // The head has to come before the deadline, or it is a whole 504; the body takes far longer.
    origin.answer(Answer::Drip(Duration::from_millis(100)));
    let gateway = Gateway::start(&(everything_to(&[&origin], "") + "timeouts = { request = \"3s\" }\n"));
    let answer = Client::connect(gateway.http()).exchange(request("GET", "/", &[], b""));
    assert!(matches!(answer, Err(crate::support::http1::Broken::Truncated(_))), "{answer:?}");
}

#[test]
fn slow_header_is_cut_in_total_not_per_read() {
    let origin = Origin::start("a");
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nheader_timeout = \"500ms\"\n";
    let gateway = Gateway::start(&(listener.to_owned() + &everything_to(&[&origin], "")));
    let mut client = Client::connect(gateway.http());
    let started = Instant::now();
    client.send("GET / HTTP/1.1\r\nhost: localhost\r\n");
    // Each header line comes well within the time that one read may take.
    eventually("cut off", SOON, || {
        client.send("x-slow: 1\r\n");
        client.closed_or_answered(Duration::from_millis(50))
    });
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let answer = client.response();
    assert_eq!((answer.status, answer.code().as_str(), answer.keep_alive), (408, "request_timeout", false));
    eventually("it is counted", SOON, || malformed(&gateway, "header_timeout") == 1.0);
    assert_eq!(origin.count(), 0);
}

fn malformed(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric("gatewright_listener_malformed_requests_total", &[("listener", "http"), ("reason", reason)])
}

#[test]
fn the_preface_and_the_header_share_one_deadline() {
    let gateway = Gateway::start("[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\nheader_timeout = \"3s\"\n");
    let mut client = Client::connect(gateway.http());
    client.send("P");
    // It is a preface until then, and a header from there on: one with a deadline of its own would have all of it before it.
    std::thread::sleep(Duration::from_millis(2500));
    let header = Instant::now();
    client.send("OST / HTTP/1.1\r\n");
    assert_eq!(client.response().status, 408);
    assert!(header.elapsed() < Duration::from_secs(3), "{:?}", header.elapsed());
    // What never becomes more than the beginning of a preface is late in the same way.
    let mut client = Client::connect(gateway.http());
    client.send("PRI");
    assert_eq!(client.response().status, 408);
    eventually("both are counted", SOON, || malformed(&gateway, "header_timeout") == 2.0);
}

#[test]
fn connections_of_one_address_are_capped() {
    let origin = Origin::start("a");
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nmax_connections_per_address = 2\n";
    let gateway = Gateway::start(&(listener.to_owned() + &everything_to(&[&origin], "")));
    let mut held: Vec<Client> = (0..2).map(|_| Client::connect(gateway.http())).collect();
    for client in &mut held {
        assert_eq!(client.exchange(request("GET", "/", &[], b"")).unwrap().status, 200);
    }
    assert!(Client::connect(gateway.http()).closes_within(SOON));
    let labels = [("listener", "http"), ("reason", "max_connections_per_address")];
    eventually("it is counted", SOON, || gateway.metric("gatewright_listener_connections_refused_total", &labels) == 1.0);
    held.pop();
    eventually("room for another", SOON, || {
        Client::connect(gateway.http()).exchange(request("GET", "/", &[], b"")).is_ok_and(|r| r.status == 200)
    });
}

#[test]
fn client_that_sends_too_much_can_read_why() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&("[server]\nmax_body = \"64KiB\"\n".to_owned() + &everything_to(&[&origin], "")));
    for framing in ["content-length: 900000", "transfer-encoding: chunked"] {
        for _ in 0..10 {
            let mut client = Client::connect(gateway.http());
            client.send(format!("POST / HTTP/1.1\r\nhost: localhost\r\n{framing}\r\n\r\n"));
            // All of it before reading anything, as simple clients do.
            for _ in 0..9 {
                let piece = "x".repeat(100_000);
                client.send(if framing.starts_with('t') { format!("186a0\r\n{piece}\r\n") } else { piece });
            }
            let response = client.read().unwrap_or_else(|e| panic!("{framing}: {e:?}"));
            assert_eq!((response.status, response.header("connection")), (413, Some("close")), "{framing}");
        }
    }
}

/// A listener with these lines in front of one origin.
fn bounded(origin: &Origin, lines: &str) -> Gateway {
    let listener = format!("[listeners.http]\naddress = \"127.0.0.1:0\"\n{lines}");
    Gateway::start(&(listener + &everything_to(&[origin], "")))
}

fn cut(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric("gatewright_listener_connections_cut_total", &[("reason", reason)])
}

#[test]
fn body_that_drips_is_408_however_it_drips() {
    let origin = Origin::start("a");
    for framing in ["content-length: 100000\r\n", "transfer-encoding: chunked\r\n"] {
        let gateway = bounded(&origin, "body_timeout = \"500ms\"\n");
        let mut client = Client::connect(gateway.http());
        let started = Instant::now();
        client.send(format!("POST / HTTP/1.1\r\nhost: localhost\r\n{framing}\r\n"));
        // Each piece comes well within the time that one pause may take.
        let piece = if framing.starts_with("content") { "x" } else { "1\r\nx\r\n" };
        eventually("cut off", SOON, || {
            client.send(piece);
            client.closed_or_answered(Duration::from_millis(50))
        });
        assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
        let answer = client.response();
        assert_eq!((answer.status, answer.code().as_str(), answer.keep_alive), (408, "request_timeout", false));
        eventually("it is counted", SOON, || cut(&gateway, "slow_body") == 1.0);
    }
    let without = bounded(&origin, "body_timeout = \"3s\"\nmin_body_rate = \"0B\"\n");
    let mut client = Client::connect(without.http());
    client.send("POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 30\r\n\r\n");
    // No pause comes near to what one may take, and all of them together are longer.
    for _ in 0..30 {
        std::thread::sleep(Duration::from_millis(150));
        client.send("x");
    }
    assert_eq!(client.response().status, 200, "without a rate only pauses count");
}

/// An origin whose one connection gets a request head, and its `100 Continue` when the gate is open.
fn continues_late(gate: &Gate) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, gate) = (listener.local_addr().unwrap(), gate.clone());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = Vec::new();
        let mut read_to = |stream: &mut TcpStream, end: &[u8]| {
            let mut piece = [0; 1024];
            while !heard.ends_with(end) {
                match stream.read(&mut piece) {
                    Ok(n @ 1..) => heard.extend_from_slice(&piece[..n]),
                    _ => return,
                }
            }
        };
        read_to(&mut stream, b"\r\n\r\n");
        gate.pass();
        let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
        read_to(&mut stream, b"body");
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    });
    address
}

#[test]
fn client_that_waits_for_100_continue_is_not_slow() {
    const EXPECT: &str = "POST / HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
    let start = |gate: &Gate, body: &str, timeouts: &str| {
        Gateway::start(&format!(
            "[listeners.http]\naddress = \"127.0.0.1:0\"\nbody_timeout = \"{body}\"\n[upstreams.app]\nendpoints = [\"{}\"]\n{timeouts}\n\
             [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n",
            continues_late(gate)
        ))
    };
    let gate = Gate::default();
    // Once it is told to go on, the client has this long for the body.
    let gateway = start(&gate, "3s", "");
    let mut client = Client::connect(gateway.http());
    client.send(EXPECT);
    assert!(!client.closed_or_answered(Duration::from_secs(4)), "it was cut off: {:?}", client.response());
    gate.open();
    assert!(client.closed_or_answered(SOON));
    let answer = client.send("body").response();
    assert_eq!((answer.status, answer.interim.as_slice()), (200, &[100][..]));

    // Told to go on, it is as bound as any other.
    let gateway = start(&gate, "100ms", "");
    let mut client = Client::connect(gateway.http());
    client.send(EXPECT);
    let answer = client.response();
    assert_eq!((answer.status, answer.interim.as_slice()), (408, &[100][..]));

    // An upstream that says nothing is cut off by its own bounds.
    let gateway = start(&Gate::default(), "100ms", "timeouts = { read = \"500ms\" }\nretry = { attempts = 1 }");
    let mut client = Client::connect(gateway.http());
    assert_eq!(client.send(EXPECT).response().status, 504);
    assert_eq!(cut(&gateway, "slow_body"), 0.0);
}

#[test]
fn client_that_does_not_read_is_cut_off() {
    let origin = Origin::start("a");
    origin.answer(Answer::InfiniteBody);
    let gateway = bounded(&origin, "write_timeout = \"500ms\"\n");
    let mut client = Client::connect(gateway.http());
    client.send(request("GET", "/", &[], b""));
    eventually("it is counted", SOON, || cut(&gateway, "slow_reader") == 1.0);
    eventually("its place is given back", SOON, || {
        gateway.metric("gatewright_listener_connections_active", &[("listener", "http")]) == 0.0
    });
}

/// Whether a client that takes 64 KiB every 10 ms, with no pause of note, is ended within this time.
fn drips(gateway: &Gateway, within: Duration) -> bool {
    let mut stream = TcpStream::connect(gateway.http()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&request("GET", "/", &[], b"")).unwrap();
    let mut piece = vec![0; 64 << 10];
    let started = Instant::now();
    while started.elapsed() < within {
        std::thread::sleep(Duration::from_millis(10));
        if stream.read_exact(&mut piece).is_err() {
            return true;
        }
    }
    false
}

#[test]
fn client_that_reads_too_slowly_on_average_is_cut_off() {
    let origin = Origin::start("a");
    origin.answer(Answer::InfiniteBody);
    let gateway = bounded(&origin, "write_timeout = \"2s\"\nmin_write_rate = \"1GiB\"\n");
    assert!(drips(&gateway, SOON), "6 MB/s where 1 GiB/s are asked for");
    eventually("it is counted", SOON, || cut(&gateway, "slow_reader") == 1.0);
    let without = bounded(&origin, "write_timeout = \"2s\"\nmin_write_rate = \"0B\"\n");
    assert!(!drips(&without, Duration::from_secs(5)), "without a rate only pauses count");
}

#[test]
fn connections_are_capped_for_each_listener_and_in_all() {
    let toml = "[server]\nmax_connections = 5\n[listeners.http]\naddress = \"127.0.0.1:0\"\nmax_connections = 3\n\
                [listeners.other]\naddress = \"127.0.0.1:0\"\n\
                [routes.hello]\nmatch = { path = \"/\" }\nfilters = [{ respond = { body = \"hello\" } }]\n";
    let gateway = Gateway::start(toml);
    let (http, other) = (gateway.http(), gateway.address("other"));
    let hello = |client: &mut Client| client.exchange(request("GET", "/", &[], b"")).is_ok_and(|answer| answer.status == 200);
    let hold = |address, number| -> Vec<Client> {
        let mut held: Vec<Client> = (0..number).map(|_| Client::connect(address)).collect();
        assert!(held.iter_mut().all(hello));
        held
    };
    let mut held = hold(http, 3);
    assert!(Client::connect(http).closes_within(SOON), "the listener is full");
    held.extend(hold(other, 2));
    assert!(Client::connect(other).closes_within(SOON), "the gateway is full");
    let refused = |reason| gateway.metric("gatewright_listener_connections_refused_total", &[("reason", reason)]);
    assert_eq!((refused("max_connections"), refused("max_connections_in_all")), (1.0, 1.0));
    held.remove(0);
    eventually("room for another", SOON, || hello(&mut Client::connect(other)));
    // By reload, for those that come.
    gateway.reload_with(&toml.replace("max_connections = 5", "max_connections = 50")).unwrap();
    assert!(hold(other, 10).len() == 10);
}

#[test]
fn a_burst_of_connections_waits_in_the_queue() {
    let gateway = Gateway::start("[routes.hello]\nmatch = { path = \"/\" }\nfilters = [{ respond = { body = \"hello\" } }]\n");
    let address = gateway.http();
    // Far more than the 128 that a socket asks for by default, and nobody accepts.
    gateway.signal(Signal::SIGSTOP);
    let connect = |_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(900));
    let burst: Vec<_> = (0..400).map(connect).collect();
    gateway.signal(Signal::SIGCONT);
    let waiting = burst.iter().filter(|connection| connection.is_ok()).count();
    // A first packet that is dropped is sent again after a second.
    assert_eq!(waiting, 400, "the others found the queue full");
    assert_eq!(get(address, "/").text(), "hello");
}
