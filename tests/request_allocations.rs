//! What a whole request costs in heap allocations: through the gateway, with a route of five local filters, metrics and access
//! log, and through the least that a Pingora proxy can do (`benches/wrk/bare.rs`). Both are real servers in this process, whose
//! allocator counts for all threads but those of client and origin.
//!
//! What happens beside requests (timers, a thread that writes logs) adds to a few batches of them: the median is what a request costs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]
#![allow(unsafe_code, reason = "an allocator that counts is one")]

#[path = "../benches/wrk/bare.rs"]
mod bare;

use gatewright::filter::Registry;
use gatewright::reload::Origin;
use gatewright::server;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Client and origin are not what is measured.
    static COUNTED: Cell<bool> = const { Cell::new(true) };
}

fn count() {
    if COUNTED.get() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: whatever is asked for is asked of the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are what is asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const REQUEST: &[u8] = b"GET /api/orders/42/items?page=2 HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: test\r\n\
    Accept: */*\r\nCookie: secret\r\nReferer: elsewhere\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: origin\r\nDate: Sun, 29 Nov 2026 12:00:00 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 5\r\nX-Powered-By: us\r\n\r\nhello";

/// Reads a head; the length of the body that it announces. `None` at the end of the connection.
fn read_head(from: &mut impl BufRead, line: &mut Vec<u8>) -> Option<u64> {
    let mut length = 0;
    loop {
        line.clear();
        if from.read_until(b'\n', line).unwrap() == 0 {
            return None;
        }
        if line == b"\r\n" {
            return Some(length);
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix(b"content-length:") {
            length = std::str::from_utf8(value).unwrap().trim().parse().unwrap();
        }
    }
}

fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            thread::spawn(move || {
                COUNTED.set(false);
                let mut connection = connection.unwrap();
                connection.set_nodelay(true).unwrap();
                let mut requests = BufReader::new(connection.try_clone().unwrap());
                let mut line = Vec::new();
                while read_head(&mut requests, &mut line).is_some() {
                    connection.write_all(ANSWER).unwrap();
                }
            });
        }
    });
    address
}

/// Waits for the server at `path`.
fn connect(path: &Path) -> UnixStream {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < until, "{}: {error}", path.display()),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The allocations of one request over a connection that is open already.
fn cost(path: &Path) -> f64 {
    const BATCHES: usize = 40;
    const REQUESTS: u32 = 100;
    COUNTED.set(false);
    let mut client = connect(path);
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answers = BufReader::new(client.try_clone().unwrap());
    let (mut line, mut body) = (Vec::new(), Vec::new());
    let mut batch = || {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..REQUESTS {
            client.write_all(REQUEST).unwrap();
            let length = read_head(&mut answers, &mut line).unwrap();
            body.clear();
            (&mut answers).take(length).read_to_end(&mut body).unwrap();
            assert_eq!(body, b"hello");
        }
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    let mut counts: Vec<u64> = (0..BATCHES).map(|_| batch()).collect();
    counts.sort_unstable();
    println!("{}: {counts:?}", path.display());
    f64::from(u32::try_from(counts[BATCHES / 2]).unwrap()) / f64::from(REQUESTS)
}

#[test]
fn a_request_allocates_no_more_than_that_of_a_bare_proxy() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = (directory.path().join("ours.sock"), directory.path().join("theirs.sock"));
    let endpoint = origin();

    let config = directory.path().join("gatewright.toml");
    std::fs::write(
        &config,
        format!(
            r#"
            server = {{ threads = 1 }}
            admin = {{ listen = "unix:{admin}" }}
            log = {{ access = {{ format = "json", output = "file:{log}" }} }}
            listeners.main = {{ address = "unix:{ours}" }}
            upstreams.orders = {{ endpoints = ["{endpoint}"] }}

            [routes.orders]
            match = {{ host = "*.example.com", path = "/api/orders/{{id}}/{{*rest}}", methods = ["GET"] }}
            upstream = "orders"
            filters = [
              {{ request_headers = {{ set = {{ from = "${{client_ip}};${{request_id}}", warning = "${{path.id}}" }}, remove = ["cookie"] }} }},
              {{ rewrite = {{ strip_prefix = "/api/orders", add_prefix = "/v2" }} }},
              {{ rewrite = {{ replace = {{ pattern = "items$", with = "entries" }} }} }},
              {{ response_headers = {{ set = {{ server = "gate", etag = "${{route}}" }}, remove = ["x-powered-by"] }} }},
              {{ response_headers = {{ add = {{ vary = "origin", link = "<${{scheme}}://${{host}}${{path}}>" }} }} }},
            ]
            "#,
            admin = directory.path().join("admin.sock").display(),
            log = directory.path().join("access.log").display(),
            ours = ours.display(),
        ),
    )
    .unwrap();
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        let ready: server::Ready = Box::new(move |_, _| ready.send(()).unwrap());
        match server::run(Origin::Paths(vec![config]), Registry::builtin(), Some(ready)) {
            Ok(()) => panic!("it ended"),
            Err(server::StartError::Config(diagnostics)) => panic!("{}", diagnostics.render(false)),
            Err(server::StartError::Environment(why)) => panic!("{why}"),
        }
    });
    is_ready.recv_timeout(Duration::from_secs(60)).expect("the gateway starts");
    let of_ours = cost(&ours);

    let path = theirs.to_str().unwrap().to_owned();
    thread::spawn(move || bare::run(1, true, vec![endpoint], |service| service.add_uds(&path, None)));
    let of_theirs = cost(&theirs);
    println!("allocations for each request: {of_ours} through the gateway, {of_theirs} through a bare proxy");
    assert!(of_theirs > 10.0, "the counter does not count");
    assert!(of_ours <= of_theirs, "{of_ours} allocations for each request, {of_theirs} of a bare proxy");
}
