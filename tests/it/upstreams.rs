//! How requests are spread over endpoints, and what happens when endpoints fail.

use crate::support::http1::Broken;
use crate::support::raw::{Client, get, refusing_port, request, send};
use crate::support::{Answer, Gateway, Origin, SOON, eventually, everything_to};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Checks often enough that a test need not wait long.
const HEALTH: &str = "health = { path = \"/health\", interval = \"500ms\", timeout = \"490ms\", rise = 2, fall = 2 }";

/// One upstream over these addresses, for everything.
fn endpoints(addresses: &[SocketAddr], more: &str) -> String {
    let list: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    let upstream = format!("[upstreams.app]\nendpoints = [{}]\n{more}\n", list.join(", "));
    format!("{upstream}\n[routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n")
}

#[test]
fn requests_are_spread_by_weight() {
    let origins = Origin::start_many(3);
    let [a, b, c] = [0, 1, 2].map(|i| origins[i].address());
    let gateway = Gateway::start(&format!(
        "[upstreams.app]\nendpoints = [\"{a}\", {{ address = \"{b}\", weight = 2 }}, {{ address = \"{c}\", weight = 3 }}]\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n"
    ));
    let mut client = Client::connect(gateway.http());
    let mut seen: HashMap<String, usize> = HashMap::new();
    for _ in 0..60 {
        *seen.entry(client.exchange(request("GET", "/", &[], b"")).unwrap().origin()).or_default() += 1;
    }
    assert_eq!(seen, HashMap::from([("a".into(), 10), ("b".into(), 20), ("c".into(), 30)]));
}

/// Panics unless 20 requests in turn open at most so many connections to the origin.
///
/// A connection is back in the pool a moment after its answer is: on a busy machine the next request may find none and open one,
/// so that the best of a few rounds counts. Without a pool each request of each round opens one.
#[track_caller]
fn twenty_requests_open(origin: &Origin, gateway: SocketAddr, most: usize) {
    let mut opened: Vec<usize> = Vec::new();
    while !opened.iter().any(|opened| *opened <= most) {
        let before = origin.connections();
        for _ in 0..20 {
            assert_eq!(get(gateway, "/").status, 200);
        }
        opened.push(origin.connections() - before);
        assert!(opened.len() < 10, "connections for 20 requests in turn, by round: {opened:?}");
    }
}

#[test]
fn connections_to_endpoints_are_reused() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    twenty_requests_open(&origin, gateway.http(), 4);
}

#[test]
fn endpoint_may_be_a_name() {
    let origin = Origin::start("a");
    let port = origin.address().port();
    let gateway = Gateway::start(&format!(
        "[upstreams.app]\nendpoints = [\"localhost:{port}\"]\n[routes.all]\nmatch = {{ path = \"/\" }}\nupstream = \"app\"\n"
    ));
    // `localhost` may also be ::1, where nobody listens: the refused connect moves on.
    eventually("the name is resolved", SOON, || get(gateway.http(), "/").status == 200);
}

#[test]
fn refused_connect_moves_on_to_another_endpoint() {
    let origin = Origin::start("a");
    let (refusing, _port) = refusing_port();
    let gateway = Gateway::start(&endpoints(&[refusing, origin.address()], ""));
    for n in 0..20 {
        let (method, body) = if n % 2 == 0 { ("GET", "") } else { ("POST", "body") };
        let response = send(gateway.http(), method, "/", &[], body.as_bytes());
        assert_eq!((response.status, response.json()["body"].as_str()), (200, Some(body)), "request {n}");
    }
    assert_eq!(origin.count(), 20);
    gateway.logged("a second attempt", |line| line["attempts"] == 2 && line["status"] == 200);
}

#[test]
fn timed_out_connect_moves_on_to_another_endpoint() {
    let origin = Origin::start("a");
    let full = FullBacklog::new();
    let gateway = Gateway::start(&endpoints(&[full.address, origin.address()], "timeouts = { connect = \"200ms\" }"));
    for _ in 0..6 {
        assert_eq!(get(gateway.http(), "/").status, 200);
    }
    gateway.logged("a second attempt", |line| line["attempts"] == 2);
}

#[test]
fn attempts_are_bounded() {
    let ports = [refusing_port(), refusing_port(), refusing_port(), refusing_port()];
    let gateway = Gateway::start(&endpoints(&ports.each_ref().map(|(address, _)| *address), "retry = { attempts = 3 }"));
    let response = get(gateway.http(), "/");
    assert_eq!((response.status, response.code().as_str()), (502, "upstream_connect_failed"));
    gateway.logged("three attempts", |line| line["attempts"] == 3 && line["rejection"] == "upstream_connect_failed");
}

#[test]
fn all_down_is_503_with_retry_after() {
    let origins = Origin::start_many(2);
    let gateway = Gateway::start(&everything_to(&[&origins[0], &origins[1]], HEALTH));
    for origin in &origins {
        origin.set_healthy(false);
        gateway.wait_healthy(origin.address(), false);
    }
    let response = get(gateway.http(), "/");
    assert_eq!((response.status, response.code().as_str()), (503, "upstream_unavailable"));
    let wait: u64 = response.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..=5).contains(&wait), "{wait}");
    assert_eq!(origins[0].count() + origins[1].count(), 0);
}

#[test]
fn try_all_spreads_over_all_while_none_is_healthy() {
    let origins = Origin::start_many(2);
    let more = format!("{HEALTH}\nwhen_all_down = \"try_all\"");
    let gateway = Gateway::start(&everything_to(&[&origins[0], &origins[1]], &more));
    for origin in &origins {
        origin.set_healthy(false);
        gateway.wait_healthy(origin.address(), false);
    }
    for _ in 0..10 {
        assert_eq!(get(gateway.http(), "/").status, 200);
    }
    assert_eq!((origins[0].count(), origins[1].count()), (5, 5));
}

#[test]
fn failing_health_checks_eject_and_passing_ones_bring_back() {
    let origins = Origin::start_many(2);
    let gateway = Gateway::start(&everything_to(&[&origins[0], &origins[1]], HEALTH));
    origins[1].set_healthy(false);
    gateway.wait_healthy(origins[1].address(), false);
    let before = origins[1].count();
    for _ in 0..10 {
        assert_eq!(get(gateway.http(), "/").origin(), "a");
    }
    assert_eq!(origins[1].count(), before);
    let labels = [("upstream", "app"), ("endpoint", &*origins[1].address().to_string())];
    assert_eq!(gateway.metric("gatewright_endpoint_healthy", &labels), 0.0);

    origins[1].set_healthy(true);
    gateway.wait_healthy(origins[1].address(), true);
    eventually("b takes traffic again", SOON, || get(gateway.http(), "/").origin() == "b");
    assert_eq!(gateway.metric("gatewright_endpoint_healthy", &labels), 1.0);
}

#[test]
fn tcp_health_check_sees_a_closed_port() {
    let origins = Origin::start_many(2);
    let health = "health = { tcp = true, interval = \"1s\", timeout = \"900ms\", rise = 1, fall = 1 }";
    let gateway = Gateway::start(&everything_to(&[&origins[0], &origins[1]], health));
    origins[0].stop();
    gateway.wait_healthy(origins[0].address(), false);
    assert_eq!(get(gateway.http(), "/").origin(), "b");
    origins[0].start_again();
    gateway.wait_healthy(origins[0].address(), true);
}

#[test]
fn silent_endpoint_is_504() {
    let origin = Origin::start("a");
    origin.answer(Answer::BlackHole);
    let gateway = Gateway::start(&everything_to(&[&origin], "timeouts = { read = \"300ms\" }"));
    let started = Instant::now();
    let response = get(gateway.http(), "/");
    assert_eq!((response.status, response.code().as_str()), (504, "upstream_timeout"));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn endpoint_that_does_not_read_is_504() {
    // Takes connections and leaves what is sent where it is.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let _held = std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    let toml = "[server]\nmax_body = \"256MiB\"\n".to_owned() + &endpoints(&[address], "timeouts = { write = \"300ms\" }");
    let gateway = Gateway::start(&toml);
    let mut client = Client::connect(gateway.http());
    let started = Instant::now();
    // More than the buffers of the kernel take on both ways.
    client.send(request("POST", "/", &[("content-length", "200000000")], b""));
    for _ in 0..200 {
        client.send(vec![b'x'; 1_000_000]);
        if client.closed_or_answered(Duration::from_millis(1)) {
            break;
        }
    }
    let response = client.response();
    assert_eq!((response.status, response.code().as_str()), (504, "upstream_timeout"));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn idle_connections_to_an_upstream_are_closed() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], "timeouts = { idle = \"500ms\" }"));
    assert_eq!(get(gateway.http(), "/").status, 200);
    eventually("its connection is closed", SOON, || established(origin.address()) == 0);
    assert_eq!(get(gateway.http(), "/").status, 200);
    assert_eq!(origin.connections(), 2);
}

#[test]
fn request_timeout_of_an_upstream_is_in_total() {
    let origin = Origin::start("a");
    let within = |time: &str| Gateway::start(&everything_to(&[&origin], &format!("timeouts = {{ request = \"{time}\" }}")));
    origin.answer(Answer::Delay(Duration::from_secs(30)));
    assert_eq!(get(within("300ms").http(), "/").status, 504);
    // Each byte comes in time; all of them do not. The head must, or it is a whole 504 again.
    origin.answer(Answer::Drip(Duration::from_millis(100)));
    let gateway = within("3s");
    let answer = Client::connect(gateway.http()).exchange(request("GET", "/", &[], b""));
    assert!(matches!(answer, Err(Broken::Truncated(_))), "{answer:?}");
}

#[test]
fn broken_responses_are_502_and_the_request_is_not_repeated() {
    for (answer, code) in [
        (Answer::ResetBefore, "upstream_reset"),
        (Answer::Garbage, "upstream_protocol_error"),
        (Answer::HugeHeader(2 << 20), "upstream_protocol_error"),
    ] {
        let origin = Origin::start("a");
        origin.answer(answer.clone());
        let gateway = Gateway::start(&everything_to(&[&origin], ""));
        let response = send(gateway.http(), "POST", "/", &[], b"once");
        assert_eq!((response.status, response.code().as_str()), (502, code), "{answer:?}");
        assert_eq!(origin.count(), 1, "{answer:?}");
    }
}

#[test]
fn response_that_breaks_off_is_seen_as_broken() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    for broken in [Answer::ResetMid, Answer::TruncatedChunks] {
        origin.answer(broken.clone());
        let answer = Client::connect(gateway.http()).exchange(request("GET", "/", &[], b""));
        // Nothing at all, if the end came before the head was on its way; never what looks complete.
        assert!(matches!(answer, Err(Broken::Truncated(_) | Broken::Closed)), "{broken:?}: {answer:?}");
    }
    origin.answer(Answer::Echo);
    assert_eq!(get(gateway.http(), "/").status, 200);
    // Less than was announced, and then an end in order.
    let address = closing(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
    let gateway = Gateway::start(&format!(
        "[upstreams.app]\nendpoints = [\"{address}\"]\nretry = {{ attempts = 1 }}\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n"
    ));
    for version in ["1.1", "1.0"] {
        let answer = Client::connect(gateway.http()).exchange(format!("GET / HTTP/{version}\r\nhost: a\r\n\r\n"));
        assert!(matches!(answer, Err(Broken::Truncated(_) | Broken::Closed)), "{version}: {answer:?}");
    }
}

/// An endpoint that answers each request so, and closes.
fn closing(answer: &'static [u8]) -> SocketAddr {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let _ = stream.write_all(answer);
        }
    });
    address
}

/// A loopback port whose accept queue is full: the kernel drops every further SYN, so that connects time out.
struct FullBacklog {
    address: SocketAddr,
    _listener: tokio::net::TcpListener,
    _queued: Vec<std::net::TcpStream>,
}

impl FullBacklog {
    fn new() -> FullBacklog {
        let _context = crate::support::runtime().enter();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        for _ in 0..8 {
            match std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
                Ok(stream) => queued.push(stream),
                Err(_) => return FullBacklog { address, _listener: listener, _queued: queued },
            }
        }
        panic!("the accept queue of {address} does not fill");
    }
}

#[test]
fn listener_and_endpoint_may_be_ipv6() {
    let socket = std::net::TcpListener::bind("[::1]:0").expect("this machine has no IPv6 loopback");
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = socket.accept().unwrap();
        let mut head = [0; 2048];
        let _ = stream.read(&mut head).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nv6").unwrap();
    });
    let toml = format!(
        "[listeners.http]\naddress = \"[::1]:0\"\n[upstreams.app]\nendpoints = [\"{address}\"]\n[routes.all]\nmatch = {{}}\nupstream = \"app\"\n"
    );
    let gateway = Gateway::start(&toml);
    assert!(gateway.http().is_ipv6());
    assert_eq!(get(gateway.http(), "/").text(), "v6");
    gateway.logged("the client's address", |line| line["client"] == "::1");
}

/// Connections to a port of this machine that are open, by the kernel's table.
fn established(address: SocketAddr) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{:04X}", address.port());
    let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() > 3 && row[1].ends_with(&port) && row[3] == "01").count()
}

#[test]
fn an_upstream_keeps_as_many_idle_connections_as_it_may() {
    let origin = Origin::start("a");
    origin.answer(Answer::Delay(Duration::from_millis(500)));
    let gateway = Gateway::start(&everything_to(&[&origin], "keepalive = { connections = 5 }"));
    let address = gateway.http();
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| assert_eq!(get(address, "/").status, 200));
        }
    });
    assert!(origin.connections() > 20, "{} connections: the burst was none", origin.connections());
    eventually("all but five are closed", SOON, || established(origin.address()) <= 5);
    // Those that are kept are used.
    origin.answer(Answer::Echo);
    twenty_requests_open(&origin, address, 2);
}
