//! Upgrades: what goes through a tunnel, what must not, and how it ends.

use crate::support::raw::{Client, request};
use crate::support::{Gateway, SOON, eventually};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// An origin that grants every upgrade at once and then echoes what comes; `refuses` has it answer 200, as often as it is asked.
struct Tunnels {
    address: SocketAddr,
    heads: Arc<parking_lot::Mutex<Vec<String>>>,
    early: Arc<AtomicUsize>,
}

/// The next head, unless the connection ends before.
fn head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).unwrap())
}

fn tunnels(refuses: bool, delay: Duration) -> Tunnels {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (heads, early) = (Arc::new(parking_lot::Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let (seen, bytes) = (heads.clone(), early.clone());
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let (seen, bytes) = (seen.clone(), bytes.clone());
            std::thread::spawn(move || {
                loop {
                    let Some(head) = head(&mut stream) else { return };
                    seen.lock().push(head);
                    if !refuses {
                        break;
                    }
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").is_err() {
                        return;
                    }
                }
                if !delay.is_zero() {
                    stream.set_read_timeout(Some(delay)).unwrap();
                    bytes.fetch_add(stream.read(&mut [0; 64]).unwrap_or(0), Ordering::SeqCst);
                    stream.set_read_timeout(None).unwrap();
                }
                let _ = stream.write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n",
                );
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..read]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Tunnels { address, heads, early }
}

fn gateway(origin: &Tunnels, listener: &str) -> Gateway {
    bounded(origin, listener, "1s", "2s")
}

/// `read` is the read timeout of the upstream, `deadline` that of a request.
fn bounded(origin: &Tunnels, listener: &str, read: &str, deadline: &str) -> Gateway {
    Gateway::start(&format!(
        "[listeners.http]\naddress = \"127.0.0.1:0\"\n{listener}\n[upstreams.app]\nendpoints = [\"{}\"]\ntimeouts = {{ read = \"{read}\" }}\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\ntimeouts = {{ request = \"{deadline}\" }}\n\
         filters = [{{ request_headers = {{ set = {{ x-filtered = \"yes\" }} }} }}]\n",
        origin.address
    ))
}

fn upgrade() -> Vec<u8> {
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    request("GET", "/chat", &headers, b"")
}

/// Reads the 101; panics with what came instead.
fn switched(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut byte).unwrap();
        assert!(read == 1, "ended after {:?}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    head
}

fn tunnel(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&upgrade()).unwrap();
    switched(&mut stream);
    stream
}

fn echo(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text);
}

#[test]
fn a_tunnel_carries_bytes_both_ways_and_outlives_every_request_timeout() {
    let origin = tunnels(false, Duration::ZERO);
    let gateway = gateway(&origin, "");
    let mut stream = tunnel(gateway.http());
    let head = origin.heads.lock()[0].to_ascii_lowercase();
    for line in ["upgrade: websocket\r\n", "connection: upgrade\r\n", "sec-websocket-key: ", "x-filtered: yes\r\n"] {
        assert!(head.contains(line), "{line} in {head}");
    }
    echo(&mut stream, b"\x81\x05hello");
    // Longer than the read timeout of the upstream and the deadline of the route.
    std::thread::sleep(Duration::from_millis(3_500));
    echo(&mut stream, b"still here");
    echo(&mut stream, &vec![b'x'; 200_000][..1_000]);
    drop(stream);
    gateway.logged("the tunnel", |line| line["status"] == 101);
}

#[test]
fn an_upgrade_that_is_granted_at_once_is_a_tunnel_every_time() {
    // cloudflare/pingora#946: a 101 that came before the end of the empty request body ended the tunnel.
    let origin = tunnels(false, Duration::ZERO);
    let gateway = gateway(&origin, "");
    for n in 0..300 {
        let mut stream = tunnel(gateway.http());
        echo(&mut stream, format!("frame {n}").as_bytes());
    }
}

#[test]
fn bytes_before_the_101_are_a_bad_request_and_reach_no_origin() {
    // Nobody waits for that long: the origin sees the end of its connection. It is the time that this test has.
    let origin = tunnels(false, Duration::from_secs(5));
    let gateway = bounded(&origin, "", "10s", "20s");
    // With the head: nothing is sent upstream at all.
    let mut client = Client::connect(gateway.http());
    let answer = client.send([upgrade(), b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n".to_vec()].concat()).response();
    assert_eq!((answer.status, answer.keep_alive), (400, false));
    assert!(origin.heads.lock().is_empty());
    // After it, while the upgrade is under way.
    let mut client = Client::connect(gateway.http());
    client.send(upgrade());
    eventually("the upgrade is under way", SOON, || origin.heads.lock().len() == 1);
    let answer = client.send("GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n").response();
    assert_eq!((answer.status, answer.code().as_str(), answer.keep_alive), (400, "request_malformed", false));
    assert!(client.read_until_closed().is_empty());
    assert_eq!(origin.early.load(Ordering::SeqCst), 0);
    let cut = gateway.metric("gatewright_listener_connections_cut_total", &[("reason", "early_upgrade_bytes")]);
    assert_eq!(cut, 2.0);
}

#[test]
fn a_refused_upgrade_is_a_response_like_any_other() {
    let origin = tunnels(true, Duration::ZERO);
    let gateway = gateway(&origin, "");
    let mut client = Client::connect(gateway.http());
    assert_eq!(client.send(upgrade()).response().text(), "no");
}

#[test]
fn a_tunnel_in_which_nothing_moves_is_closed() {
    let origin = tunnels(false, Duration::ZERO);
    let gateway = gateway(&origin, "tunnel_timeout = \"3s\"");
    let mut stream = tunnel(gateway.http());
    // No pause comes near to what one may take, and all of them together are longer.
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(800));
        echo(&mut stream, b"alive");
    }
    let quiet = Instant::now();
    let ended = stream.read(&mut [0; 16]);
    assert!(matches!(ended, Ok(0) | Err(_)) && quiet.elapsed() < Duration::from_secs(10), "{ended:?} {:?}", quiet.elapsed());
    let cut = || gateway.metric("gatewright_listener_connections_cut_total", &[("reason", "idle_tunnel")]);
    eventually("it is counted", SOON, || cut() == 1.0);
}

#[test]
fn events_arrive_one_by_one_as_they_are_sent() {
    // The origin sends an event, waits until the test has seen it, and sends the next.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = Tunnels { address: listener.local_addr().unwrap(), heads: Arc::default(), early: Arc::default() };
    let (next, wait) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
        let mut n = 0;
        while wait.recv().is_ok() {
            n += 1;
            let event = format!("data: {n}\n\n");
            stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).unwrap();
        }
    });
    let gateway = gateway(&origin, "");
    let mut stream = TcpStream::connect(gateway.http()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&request("GET", "/events", &[], b"")).unwrap();
    let mut seen = Vec::new();
    for n in 1..=5 {
        next.send(()).unwrap();
        let wanted = format!("data: {n}\n\n");
        while !String::from_utf8_lossy(&seen).contains(&wanted) {
            let mut buffer = [0; 1024];
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "ended before event {n}");
            seen.extend_from_slice(&buffer[..read]);
        }
    }
}

#[test]
fn an_upgrade_that_is_never_answered_is_504() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = Tunnels { address: silent.local_addr().unwrap(), heads: Arc::default(), early: Arc::default() };
    // By the read timeout of the upstream, which is shorter than the deadline of the route; a second request does as well.
    let gateway = gateway(&origin, "");
    for _ in 0..2 {
        let mut client = Client::connect(gateway.http());
        let began = Instant::now();
        let answer = client.send(upgrade()).response();
        assert_eq!((answer.status, answer.code().as_str(), answer.keep_alive), (504, "upstream_timeout", false));
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    }
    gateway.logged("the upgrade", |line| line["status"] == 504);
}

#[test]
fn other_protocols_are_tunnelled_as_well() {
    let origin = tunnels(false, Duration::ZERO);
    let gateway = gateway(&origin, "");
    let mut stream = TcpStream::connect(gateway.http()).unwrap();
    let headers = [("connection", "upgrade"), ("upgrade", "custom/1.0")];
    stream.write_all(&request("GET", "/", &headers, b"")).unwrap();
    switched(&mut stream);
    echo(&mut stream, b"any bytes at all\0\xff");
    let head = origin.heads.lock()[0].to_ascii_lowercase();
    assert!(head.contains("upgrade: custom/1.0\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
}

/// What the gateway answers by itself is answered before anything is done for a tunnel.
#[test]
fn a_refusal_of_the_gateway_keeps_the_connection_and_one_of_the_upstream_says_that_it_closes() {
    let respond = "[routes.all]\nmatch = { path = \"/{*rest}\" }\nfilters = [{ respond = { status = 403, body = \"no\" } }]\n";
    let gateway = Gateway::start(respond);
    let mut client = Client::connect(gateway.http());
    for request in [upgrade(), request("GET", "/plain", &[], b""), upgrade()] {
        let answer = client.exchange(request).unwrap();
        assert_eq!((answer.status, answer.text().as_str(), answer.keep_alive), (403, "no", true));
    }

    let refusing = tunnels(true, Duration::ZERO);
    let gateway = self::gateway(&refusing, "");
    let mut client = Client::connect(gateway.http());
    let plain = || request("GET", "/plain", &[], b"");
    assert!(client.exchange(plain()).unwrap().keep_alive);
    let answer = client.exchange(upgrade()).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "no"));
    assert_eq!((answer.header("connection"), client.closes_within(SOON)), (Some("close"), true));
    assert_eq!(Client::connect(gateway.http()).exchange(plain()).unwrap().text(), "no");
    assert_eq!(refusing.heads.lock().len(), 3);
}
