//! The cache under load and under attack: one fetch for any number of misses, nobody gets another's answer, and the bounds hold.

use crate::support::{self, Answer, Gate, Gateway, Origin, SOON, Script, eventually, raw};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub fn route(name: &str, cache: &str) -> String {
    format!("[routes.{name}]\nmatch = {{ path = \"/{name}/{{*rest}}\" }}\nupstream = \"app\"\n[routes.{name}.cache]\n{cache}\n")
}

pub fn script(answer: impl Fn(&str, &support::origin::Recorded) -> Option<Vec<u8>> + Send + Sync + 'static) -> Answer {
    Answer::Script(Script(Arc::new(move |request| {
        let line = request.request_line();
        answer(line.split(' ').nth(1).unwrap_or_default(), request)
    })))
}

pub fn ok(fields: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\n{fields}\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

/// An origin with a thread for each connection, so that an answer that takes its time holds up no other. `answer` gets each head; a
/// connection is closed behind an answer that says so.
pub fn threaded(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut buffer = [0; 4096];
                loop {
                    match stream.read(&mut buffer) {
                        Ok(length) if length > 0 => head.extend_from_slice(&buffer[..length]),
                        _ => return,
                    }
                    if head.ends_with(b"\r\n\r\n") {
                        let text = String::from_utf8_lossy(&head).to_lowercase();
                        let answer = answer(&text);
                        let last = answer.windows(17).any(|part| part == b"connection: close");
                        if stream.write_all(&answer).is_err() || last {
                            return;
                        }
                        head.clear();
                    }
                }
            });
        }
    });
    address
}

/// A gateway with one route `c` to this origin.
pub fn before(origin: SocketAddr, cache: &str) -> Gateway {
    Gateway::start(&format!("[upstreams.app]\nendpoints = [\"{origin}\"]\n{}", route("c", cache)))
}

/// A client that has sent its request and not read the answer.
pub fn ask(address: SocketAddr, target: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(format!("GET {target} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
    stream
}

/// Opens the gate once this many have asked for the same: one fetches, and the others wait for it by the gateway's own count.
pub fn open_for(gate: &Gate, gateway: &Gateway, requests: usize) {
    let waiting = || gateway.metric("gatewright_cache_waiting", &[("route", "c")]);
    eventually("all but one wait", SOON, || waiting() == (requests - 1) as f64);
    gate.open();
}

pub fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// An origin that sends the first half of a body, waits to be told, and sends the rest.
struct Halves {
    address: SocketAddr,
    fetches: Arc<AtomicUsize>,
    go: std::sync::mpsc::Sender<bool>,
}

impl Halves {
    fn start() -> Halves {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let fetches = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&fetches);
        let (go, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut buffer = [0; 4096];
                if !stream.read(&mut buffer).is_ok_and(|length| length > 0) {
                    continue;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let head = "HTTP/1.1 200 OK\r\ncache-control: max-age=100\r\ncontent-length: 10\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(b"first");
                if told.recv() == Ok(true) {
                    let _ = stream.write_all(b"later");
                }
            }
        });
        Halves { address, fetches, go }
    }

    fn gateway(&self) -> Gateway {
        Gateway::start(&format!("[upstreams.app]\nendpoints = [\"{}\"]\n{}", self.address, route("c", "wait = \"60s\"")))
    }
}

#[test]
fn five_thousand_misses_are_one_fetch() {
    let _alone = support::exclusive();
    let seen = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&seen);
    let gate = Gate::default();
    let held = gate.clone();
    let origin = threaded(move |_| {
        asked.fetch_add(1, Ordering::SeqCst);
        held.pass();
        ok("cache-control: max-age=100", b"the answer")
    });
    let gateway = before(origin, "wait = \"60s\"");
    let address = gateway.address("http");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let answered = runtime.block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let clients = (0..5_000).map(|_| {
            tokio::spawn(async move {
                let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
                stream.write_all(b"GET /c/x HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.ok()?;
                let mut text = String::new();
                stream.read_to_string(&mut text).await.ok()?;
                (text.starts_with("HTTP/1.1 200") && text.ends_with("the answer")).then_some(())
            })
        });
        let clients: Vec<_> = clients.collect();
        tokio::task::block_in_place(|| open_for(&gate, &gateway, 5_000));
        let mut answered = 0;
        for client in clients {
            answered += usize::from(client.await.unwrap().is_some());
        }
        answered
    });
    assert_eq!((answered, seen.load(Ordering::SeqCst)), (5_000, 1));
    assert_eq!(gateway.metric("gatewright_cache_requests_total", &[("route", "c"), ("result", "collapsed")]), 4_999.0);
}

#[test]
fn waiters_read_bytes_as_they_arrive_and_outlive_the_one_who_asked_first() {
    let origin = Halves::start();
    let gateway = origin.gateway();
    let address = gateway.address("http");
    let mut leader = ask(address, "/c/x");
    let mut first = [0; 1024];
    let mut so_far = String::new();
    while !so_far.contains("first") {
        let length = leader.read(&mut first).unwrap();
        so_far.push_str(&String::from_utf8_lossy(&first[..length]));
    }
    let mut waiters: Vec<TcpStream> = (0..20).map(|_| ask(address, "/c/x")).collect();
    let mut texts = vec![String::new(); waiters.len()];
    for (waiter, text) in waiters.iter_mut().zip(&mut texts) {
        while !text.contains("first") {
            let length = waiter.read(&mut first).unwrap();
            assert!(length > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&first[..length]));
        }
    }
    // The one whose request it was goes away in the middle of it.
    drop(leader);
    origin.go.send(true).unwrap();
    for (waiter, mut text) in waiters.into_iter().zip(texts) {
        text.push_str(&rest(waiter));
        assert!(text.ends_with("firstlater"), "{text}");
    }
    assert_eq!(origin.fetches.load(Ordering::SeqCst), 1);
    // The waiters asked for this host.
    let hit = raw::send(address, "GET", "/c/x", &[("host", "h")], b"");
    assert_eq!(hit.text(), "firstlater");
    assert!(hit.header("cache-status").unwrap().contains("hit"));
}

#[test]
fn a_fetch_that_breaks_off_is_told_and_not_stored() {
    let origin = Halves::start();
    let gateway = origin.gateway();
    let address = gateway.address("http");
    let broken = ask(address, "/c/x");
    origin.go.send(false).unwrap();
    let text = rest(broken);
    let told = text.is_empty() || text.to_lowercase().contains("content-length: 10") && !text.ends_with("later");
    assert!(told, "the client can tell: {text}");
    origin.go.send(true).unwrap();
    assert_eq!(raw::get(address, "/c/x").text(), "firstlater");
    assert_eq!(origin.fetches.load(Ordering::SeqCst), 2);
    eventually("nothing is left of it", SOON, || gateway.metric("gatewright_cache_memory_bytes", &[("state", "filling")]) == 0.0);
}

#[test]
fn answers_that_are_not_whole_are_never_stored() {
    let origin = Origin::start("broken");
    let cases: [(&str, &[u8]); 4] = [
        ("short", b"HTTP/1.1 200 OK\r\ncache-control: max-age=100\r\ncontent-length: 100\r\nconnection: close\r\n\r\nhalf"),
        ("chunks", b"HTTP/1.1 200 OK\r\ncache-control: max-age=100\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n4\r\nhalf\r\n"),
        ("lengths", b"HTTP/1.1 200 OK\r\ncache-control: max-age=100\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nhalf!"),
        ("part", b"HTTP/1.1 206 Partial Content\r\ncache-control: max-age=100\r\ncontent-range: bytes 0-3/9\r\ncontent-length: 4\r\n\r\nhalf"),
    ];
    let gateway = Gateway::start(&[support::upstream("app", &[&origin], ""), route("c", "")].concat());
    for (name, bytes) in cases {
        let target = format!("/c/{name}");
        if name == "short" || name == "chunks" {
            // The origin hangs up in the middle: as much as it says, and then nothing.
            let partial = bytes.to_vec();
            origin.answer(Answer::Bytes(partial));
            let stream = ask(gateway.address("http"), &target);
            stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            drop(rest(stream));
            origin.kill();
            origin.start_again();
        } else {
            origin.answer(Answer::Bytes(bytes.to_vec()));
            let _ = raw::Client::connect(gateway.address("http")).exchange(raw::request("GET", &target, &[], b""));
        }
        origin.answer(script(|_, _| Some(ok("cache-control: max-age=100", b"whole"))));
        eventually(&format!("{name} is gone"), SOON, || {
            let answer = raw::get(gateway.address("http"), &target);
            answer.status == 200 && answer.text() == "whole"
        });
    }
}

#[test]
fn a_leader_that_fails_does_not_fail_the_rest() {
    let origin = Origin::start("flaky");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    origin.answer(script(move |_, _| {
        std::thread::sleep(Duration::from_millis(300));
        // The first hangs up; the next one answers.
        (count.fetch_add(1, Ordering::SeqCst) > 0).then(|| ok("cache-control: max-age=100", b"the answer"))
    }));
    let upstream = support::upstream("app", &[&origin], "");
    let gateway = Gateway::start(&[upstream, route("c", "")].concat());
    let clients: Vec<TcpStream> = (0..50).map(|_| ask(gateway.address("http"), "/c/x")).collect();
    let good = clients.into_iter().map(rest).filter(|text| text.ends_with("the answer")).count();
    assert!(good >= 49, "{good} of 50");
    assert!(asked.load(Ordering::SeqCst) <= 4, "{asked:?} fetches");
}

#[test]
fn memory_stays_within_its_bound() {
    let _alone = support::exclusive();
    let asked = AtomicUsize::new(0);
    let origin = threaded(move |head| {
        let target = head.split(' ').nth(1).unwrap_or_default();
        let size: usize = target.rsplit('/').next().and_then(|size| size.split('?').next()?.parse().ok()).unwrap_or(0);
        let mut answer = ok("cache-control: max-age=1000\r\netag: \"a\"\r\nconnection: close", &vec![b'x'; size]);
        if asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(5) {
            // Breaks off in the middle of it.
            answer.truncate(answer.len() - size / 2);
        }
        answer
    });
    let gateway = before(origin, "max_object = \"1MiB\"\n[cache]\nmemory = \"8MiB\"");
    let address = gateway.address("http");
    let before = gateway.rss();
    let memory = |state: &str| gateway.metric("gatewright_cache_memory_bytes", &[("state", state)]);
    let running = AtomicUsize::new(4);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while running.load(Ordering::SeqCst) > 0 {
                within_bound(&gateway);
            }
        });
        for seed in 0..4 {
            let running = &running;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..250 {
                    let target =
                        format!("/c/{}?{}", [100, 5_000, 60_000, 400_000, 1_500_000][random.usize(0..5)], random.u32(0..200));
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    let range = if random.bool() { "range: bytes=10-99\r\n" } else { "" };
                    let _ = stream
                        .write_all(format!("GET {target} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{range}\r\n").as_bytes());
                    if random.u8(0..3) == 0 {
                        // Goes away in the middle of it.
                        let _ = stream.read(&mut [0; 50]);
                    } else {
                        drop(rest(stream));
                    }
                }
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    for reason in ["room", "admission"] {
        assert!(gateway.metric("gatewright_cache_evicted_total", &[("reason", reason)]) > 0.0, "{reason}");
    }
    eventually("nothing is coming in any more", SOON, || memory("filling") == 0.0);
    let grown = gateway.rss().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes for a cache of 8 MiB");
}

/// What is stored, coming in and being sent is never more than the cache may take.
fn within_bound(gateway: &Gateway) {
    // One scrape, so that the parts are of one moment.
    let page = gateway.metrics();
    let memory = |state: &str| page.get("gatewright_cache_memory_bytes", &[("state", state)]).unwrap_or(0.0);
    let parts = ["stored", "filling", "leaving"].map(memory);
    assert!(parts.iter().sum::<f64>() <= memory("capacity"), "{parts:?}");
}

/// A client that takes next to nothing of what it is sent.
pub fn slow(address: SocketAddr, target: &str) -> TcpStream {
    let connect = async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket.connect(address).await.unwrap().into_std().unwrap()
    };
    let mut stream = support::runtime().block_on(connect);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(format!("GET {target} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    stream
}

#[test]
fn slow_readers_hold_no_more_than_the_bound() {
    let _alone = support::exclusive();
    const SIZE: usize = 4 << 20;
    let origin = Origin::start("large");
    origin.answer(script(|_, _| Some(ok("cache-control: max-age=1000", &vec![b'x'; SIZE]))));
    let config = [
        support::upstream("app", &[&origin], ""),
        route("c", "max_object = \"4MiB\""),
        "[cache]\nmemory = \"32MiB\"\n".to_owned(),
        // The first waits until all have asked.
        "[listeners.http]\naddress = \"127.0.0.1:0\"\nwrite_timeout = \"5m\"\n".to_owned(),
    ];
    let gateway = Gateway::start(&config.concat());
    let before = gateway.rss();
    // Each of another URL; half of them when it is stored already.
    let mut clients = Vec::new();
    for number in 0..80 {
        let target = format!("/c/{number}");
        if number % 2 == 0 {
            assert_eq!(raw::send(gateway.http(), "GET", &target, &[("host", "h")], b"").body.len(), SIZE);
        }
        clients.push(slow(gateway.http(), &target));
        within_bound(&gateway);
    }
    let grown = gateway.rss().saturating_sub(before);
    assert!(grown < 128 << 20, "{} MiB for a cache of 32 MiB and {} slow clients", grown >> 20, clients.len());
    // Nobody was cut off.
    for mut client in clients {
        let mut text = Vec::new();
        client.read_to_end(&mut text).unwrap();
        assert!(text.len() > SIZE, "{}", text.len());
    }
    eventually("nothing is held any more", SOON, || {
        gateway.metric("gatewright_cache_memory_bytes", &[("state", "leaving")]) == 0.0
    });
    within_bound(&gateway);
}

#[test]
fn a_scan_over_everything_does_not_flush_what_is_asked_for_often() {
    let origin = Origin::start("app");
    origin.answer(script(|target, _| {
        let size: usize = target.rsplit('/').next()?.parse().ok()?;
        Some(ok("cache-control: max-age=1000", &vec![b'x'; size]))
    }));
    let config = [support::upstream("app", &[&origin], ""), route("c", ""), "[cache]\nmemory = \"1MiB\"\n".to_owned()];
    let gateway = Gateway::start(&config.concat());
    let mut client = raw::Client::connect(gateway.http());
    let mut ask = |target: &str| {
        let answer = client.exchange(raw::request("GET", target, &[], b"")).unwrap();
        if !answer.keep_alive {
            client = raw::Client::connect(gateway.http());
        }
        answer.header("cache-status").unwrap().contains("; hit")
    };
    for _ in 0..8 {
        (0..20).for_each(|hot| _ = ask(&format!("/c/{hot}/10000")));
    }
    // Ten times what there is room for, large and small.
    (100..400).for_each(|cold| _ = ask(&format!("/c/{cold}/{}", [5_000, 100_000][cold % 2])));
    let hits = (0..20).filter(|hot| ask(&format!("/c/{hot}/10000"))).count();
    assert!(hits >= 15, "{hits} of 20 are left");
}

#[test]
fn a_reload_keeps_what_is_stored() {
    let origin = Origin::start("app");
    origin.answer(script(|_, _| Some(ok("cache-control: max-age=1000", b"kept"))));
    let config = [support::upstream("app", &[&origin], ""), route("c", "")].concat();
    let gateway = Gateway::start(&config);
    raw::get(gateway.address("http"), "/c/x");
    gateway
        .reload_with(&format!(
            "{config}\n[routes.new]\nmatch = {{ path = \"/new\" }}\nfilters = [{{ respond = {{ status = 200 }} }}]\n"
        ))
        .unwrap();
    let hit = raw::get(gateway.address("http"), "/c/x");
    assert!(hit.header("cache-status").unwrap().contains("hit") && hit.text() == "kept", "{hit:?}");
    assert_eq!(origin.count(), 1);
}

#[test]
fn limits_and_authentication_hold_for_hits_too() {
    let origin = Origin::start("app");
    origin.answer(script(|_, _| Some(ok("cache-control: max-age=1000", b"x"))));
    let config = [
        support::upstream("app", &[&origin], ""),
        "[routes.c]\nmatch = { path = \"/c\" }\nupstream = \"app\"\ncache = {}\nfilters = [{ rate_limit = { by = \"address\", limits = [{ rate = \"3/1h\" }] } }]\n".to_owned(),
        "[routes.s]\nmatch = { path = \"/s\" }\nupstream = \"app\"\ncache = { share = \"public\" }\nfilters = [{ api_key = {} }]\n".to_owned(),
        // Of "the key".
        "[consumers.known]\ncredentials = [{ api_key = { sha256 = \"3a0aac44832e55528a834fec737786c999e7b8dea8bd601bb59f195237d58b2e\" } }]\n".to_owned(),
    ];
    let gateway = Gateway::start(&config.concat());
    let statuses: Vec<u16> = (0..5).map(|_| raw::get(gateway.address("http"), "/c").status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    assert_eq!(origin.count(), 1);
    let with = |key: &str| raw::send(gateway.address("http"), "GET", "/s", &[("x-api-key", key)], b"");
    assert_eq!(with("the key").status, 200);
    assert!(with("the key").header("cache-status").unwrap().contains("hit"));
    assert_eq!((with("another").status, raw::get(gateway.address("http"), "/s").status), (401, 401));
    assert_eq!(origin.count(), 2);
}

#[test]
fn many_users_of_one_url_are_kept_apart_by_count() {
    let origin = Origin::start("app");
    let seen: Arc<parking_lot::Mutex<HashMap<String, usize>>> = Arc::default();
    let counted = Arc::clone(&seen);
    origin.answer(script(move |_, request| {
        let accept = request.header("accept").unwrap_or_default();
        *counted.lock().entry(accept.clone()).or_default() += 1;
        Some(ok("cache-control: max-age=1000\r\nvary: accept", accept.as_bytes()))
    }));
    let gateway = Gateway::start(&[support::upstream("app", &[&origin], ""), route("c", "max_variants = 4")].concat());
    for n in 0..40 {
        let accept = format!("text/{}", n % 10);
        let answer = raw::send(gateway.address("http"), "GET", "/c/x", &[("accept", &accept)], b"");
        assert_eq!(answer.text(), accept);
    }
    assert!(gateway.metric("gatewright_cache_entries", &[]) <= 4.0);
    assert_eq!(seen.lock().len(), 10);
}

#[test]
fn a_304_that_means_nothing_stored_is_asked_again_for_the_whole() {
    let origin = Origin::start("app");
    // As with a server that adds a suffix to tags: what it confirms is none of ours.
    origin.answer(script(|_, request| match request.header("if-none-match") {
        Some(_) => Some(b"HTTP/1.1 304 X\r\netag: \"a-gzip\"\r\ncache-control: max-age=100\r\n\r\n".to_vec()),
        None => Some(ok("cache-control: max-age=100\r\nage: 150\r\netag: \"a\"", b"whole")),
    }));
    let gateway = Gateway::start(&[support::upstream("app", &[&origin], ""), route("c", "")].concat());
    for round in 0..3 {
        let answer = raw::get(gateway.http(), "/c/x");
        assert_eq!((answer.status, answer.text().as_str()), (200, "whole"), "{round}");
    }
    let asked: Vec<bool> = origin.requests().iter().map(|request| request.header("if-none-match").is_some()).collect();
    assert_eq!(asked, [false, true, false, true, false]);
}

#[test]
fn conditions_parts_and_heads_are_asked_once_too() {
    let _alone = support::exclusive();
    let fetches = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&fetches);
    let gate = Gate::default();
    let held = gate.clone();
    let origin = threaded(move |head| {
        asked.fetch_add(1, Ordering::SeqCst);
        held.pass();
        let fields = "cache-control: max-age=100\r\netag: \"a\"";
        match () {
            () if head.contains("if-none-match") => format!("HTTP/1.1 304 X\r\n{fields}\r\n\r\n").into_bytes(),
            () if head.contains("range:") => {
                format!("HTTP/1.1 206 X\r\n{fields}\r\ncontent-range: bytes 0-2/10\r\ncontent-length: 3\r\n\r\n012").into_bytes()
            }
            () if head.starts_with("head") => format!("HTTP/1.1 200 X\r\n{fields}\r\ncontent-length: 10\r\n\r\n").into_bytes(),
            () => ok(fields, b"0123456789"),
        }
    });
    let gateway = before(origin, "wait = \"60s\"");
    let cases: [(&str, &str, (&str, &str), u16); 3] = [
        ("GET", "/c/condition", ("if-none-match", "\"a\""), 304),
        ("GET", "/c/part", ("range", "bytes=0-2"), 206),
        ("HEAD", "/c/head", ("x-none", ""), 200),
    ];
    for (method, target, header, status) in cases {
        let address = gateway.http();
        std::thread::scope(|scope| {
            let asked: Vec<_> =
                (0..50).map(|_| scope.spawn(move || raw::send(address, method, target, &[header], b"").status)).collect();
            open_for(&gate, &gateway, 50);
            assert!(asked.into_iter().all(|asked| asked.join().unwrap() == status), "{target}");
        });
        assert_eq!(fetches.swap(0, Ordering::SeqCst), 1, "{target}");
        gate.shut();
    }
}

#[test]
fn what_others_may_not_have_is_asked_by_each() {
    let count = AtomicUsize::new(0);
    let gate = Gate::default();
    let held = gate.clone();
    let origin = threaded(move |head| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        held.pass();
        let fields = format!("cache-control: private\r\netag: \"a\"\r\nset-cookie: s={number}");
        match head.contains("if-none-match") {
            true => format!("HTTP/1.1 304 X\r\n{fields}\r\n\r\n").into_bytes(),
            false => format!("HTTP/1.1 200 X\r\n{fields}\r\ncontent-length: 4\r\n\r\n").into_bytes(),
        }
    });
    let gateway = before(origin, "wait = \"60s\"");
    let address = gateway.http();
    for (method, header) in [("GET", ("if-none-match", "\"a\"")), ("HEAD", ("x-none", ""))] {
        let mut cookies = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..6)
                .map(|_| {
                    let ask = move || raw::send(address, method, "/c/x", &[header], b"");
                    scope.spawn(move || ask().header("set-cookie").unwrap().to_owned())
                })
                .collect();
            open_for(&gate, &gateway, 6);
            asked.into_iter().map(|asked| asked.join().unwrap()).collect::<Vec<_>>()
        });
        gate.shut();
        cookies.sort_unstable();
        cookies.dedup();
        assert_eq!(cookies.len(), 6, "{method}: {cookies:?}");
    }
}

#[test]
fn nobody_waits_for_others_longer_than_the_route_says() {
    let count = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&count);
    let gate = Gate::default();
    let held = gate.clone();
    let origin = threaded(move |_| {
        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            held.pass();
        }
        ok("cache-control: max-age=100", b"the answer")
    });
    let gateway = before(origin, "wait = \"2s\"");
    let stuck = ask(gateway.http(), "/c/x");
    eventually("the first is being fetched", SOON, || count.load(Ordering::SeqCst) == 1);
    let begun = std::time::Instant::now();
    assert!(rest(ask(gateway.http(), "/c/x")).ends_with("the answer"));
    // Waiting once more after each time-out would take three times as long.
    assert!((2..5).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    gate.open();
    assert!(rest(stuck).ends_with("the answer"));
    assert!(gateway.metric("gatewright_cache_bypass_total", &[("route", "c"), ("reason", "wait")]) >= 1.0);
}

#[test]
fn another_part_than_the_one_asked_for_makes_nothing_whole() {
    let origin = Origin::start("app");
    // Answers the rest with other bytes than those that were asked for.
    origin.answer(script(|_, request| {
        let fields = "cache-control: max-age=100\r\netag: \"a\"";
        let part = |range: &str, body: &str| {
            let length = body.len();
            format!("HTTP/1.1 206 X\r\n{fields}\r\ncontent-range: bytes {range}/8\r\ncontent-length: {length}\r\n\r\n{body}")
                .into_bytes()
        };
        Some(match request.header("range").as_deref() {
            Some("bytes=0-3") => part("0-3", "0123"),
            Some(_) => part("5-7", "567"),
            None => ok(fields, b"01234567"),
        })
    }));
    let gateway = Gateway::start(&[support::upstream("app", &[&origin], ""), route("c", "")].concat());
    assert_eq!(raw::send(gateway.http(), "GET", "/c/x", &[("range", "bytes=0-3")], b"").text(), "0123");
    let whole = raw::get(gateway.http(), "/c/x");
    assert_eq!((whole.status, whole.text().as_str()), (200, "01234567"));
    assert_eq!(origin.count(), 3);
}
