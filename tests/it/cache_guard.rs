//! What the cache must not do for one client at the cost of another: choose what others get, keep them apart from each other, give
//! them what is of the past, or hold more memory than it may.

use crate::cache::{ask, before, ok, open_for, rest, route, script, slow, threaded};
use crate::support::gateway::run;
use crate::support::h2::H2Client;
use crate::support::{self, Gate, Gateway, Origin, SOON, eventually, raw, runtime};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let found = head.lines().find_map(|line| line.split_once(": ").filter(|(known, _)| known.eq_ignore_ascii_case(name)));
    found.map_or("", |(_, value)| value)
}

/// A service redirects to absolute URLs, which it makes of what it is told.
#[test]
fn nobody_chooses_by_a_port_or_a_scheme_where_others_are_sent() {
    let origin = threaded(|head| {
        let (scheme, host) = (field(head, "x-forwarded-proto"), field(head, "host"));
        let line = head.lines().next().unwrap_or_default();
        let status = if line.contains("secure") && scheme == "https" { "200 OK" } else { "301 Moved Permanently" };
        let fields = format!("cache-control: max-age=1000\r\nlocation: {scheme}://{host}/there\r\ncontent-length: 0");
        format!("HTTP/1.1 {status}\r\n{fields}\r\n\r\n").into_bytes()
    });
    let toml = format!(
        "[server]\ntrusted_proxies = [\"127.0.0.1/32\"]\n[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n\
         [upstreams.app]\nendpoints = [\"{origin}\"]\n{}",
        route("c", "")
    );
    let gateway = Gateway::start(&toml);
    let sent_to = |headers: &[(&str, &str)], target: &str| {
        let answer = raw::send(gateway.http(), "GET", target, headers, b"");
        (answer.status, answer.header("location").unwrap_or_default().to_owned())
    };
    for _ in 0..2 {
        for (host, location) in
            [("shop:1", "http://shop:1/there"), ("shop", "http://shop/there"), ("shop.", "http://shop./there")]
        {
            assert_eq!(sent_to(&[("host", host)], "/c/x"), (301, location.to_owned()));
        }
        // Behind a proxy that ends TLS, which says so.
        for (scheme, status) in [("http", 301), ("https", 200)] {
            let said = sent_to(&[("host", "shop"), ("x-forwarded-proto", scheme)], "/c/secure");
            assert_eq!(said, (status, format!("{scheme}://shop/there")));
        }
    }
    let hits = gateway.metric("gatewright_cache_requests_total", &[("route", "c"), ("result", "hit")]);
    assert_eq!(hits, 5.0, "each of them is stored");
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        for (authority, location) in [("shop:2", "http://shop:2/there"), ("shop", "http://shop/there")] {
            let request = http::Request::get(format!("http://{authority}/c/x")).body(()).unwrap();
            assert_eq!(client.call(request, &[]).await.unwrap().header("location"), Some(location));
        }
    });
}

#[test]
fn who_asks_after_a_change_does_not_wait_for_an_answer_from_before() {
    for change in ["POST", "purge"] {
        let (gate, fetches) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
        let (held, count) = (gate.clone(), Arc::clone(&fetches));
        let origin = threaded(move |head| {
            if head.starts_with("post") {
                return ok("x-done: yes", b"done");
            }
            if count.fetch_add(1, Ordering::SeqCst) > 0 {
                return ok("cache-control: max-age=1000", b"new");
            }
            held.pass();
            ok("cache-control: max-age=1000", b"old")
        });
        let gateway = before(origin, "wait = \"60s\"");
        let first = ask(gateway.http(), "/c/x");
        eventually("it is being fetched", SOON, || fetches.load(Ordering::SeqCst) == 1);
        if change == "POST" {
            assert_eq!(raw::send(gateway.http(), "POST", "/c/x", &[("host", "h")], b"").status, 200);
        } else {
            run(&["purge", "--url", "http://h/c/x", "--admin", &gateway.admin.argument()]);
        }
        let after = rest(ask(gateway.http(), "/c/x"));
        assert!(after.ends_with("new"), "{change}: {after}");
        gate.open();
        assert!(rest(first).ends_with("old"), "{change}: who asked before is answered");
        let stored = rest(ask(gateway.http(), "/c/x"));
        assert!(stored.ends_with("new") && stored.contains("; hit"), "{change}: {stored}");
    }
}

/// Clients that ask for the same at once.
fn crowd(gateway: &Gateway, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| ask(gateway.http(), "/c/x")).collect()
}

#[test]
fn who_sends_credentials_does_not_keep_others_apart() {
    let (gate, fetches) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    let (held, count) = (gate.clone(), Arc::clone(&fetches));
    let origin = threaded(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        held.pass();
        ok("cache-control: max-age=1000", b"the answer")
    });
    let gateway = before(origin, "wait = \"60s\"");
    let address = gateway.http();
    let with =
        std::thread::spawn(move || raw::send(address, "GET", "/c/x", &[("host", "h"), ("authorization", "Basic eDp5")], b""));
    eventually("the first is being fetched", SOON, || fetches.load(Ordering::SeqCst) == 1);
    let clients = crowd(&gateway, 30);
    open_for(&gate, &gateway, 30);
    assert!(clients.into_iter().map(rest).all(|text| text.ends_with("the answer")));
    assert_eq!(with.join().unwrap().text(), "the answer");
    assert_eq!(fetches.load(Ordering::SeqCst), 2, "one for each kind");
    // Nor afterwards.
    assert!(rest(ask(address, "/c/x")).contains("; hit"));
}

#[test]
fn an_error_is_given_to_all_who_wait_and_later_ones_are_fetched_for_together() {
    let (gate, fetches) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    let (held, count, broken) = (gate.clone(), Arc::clone(&fetches), Arc::new(std::sync::atomic::AtomicBool::new(true)));
    let fails = Arc::clone(&broken);
    let origin = threaded(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        if fails.load(Ordering::SeqCst) {
            return b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\ndown".to_vec();
        }
        held.pass();
        ok("cache-control: max-age=1000", b"the answer")
    });
    let gateway = before(origin, "wait = \"60s\"");
    // By itself alone, so nobody else's answer.
    assert!(crowd(&gateway, 20).into_iter().map(rest).all(|text| text.starts_with("HTTP/1.1 503 ") && text.ends_with("down")));
    broken.store(false, Ordering::SeqCst);
    let before = fetches.load(Ordering::SeqCst);
    let clients = crowd(&gateway, 30);
    open_for(&gate, &gateway, 30);
    assert!(clients.into_iter().map(rest).all(|text| text.ends_with("the answer")));
    assert_eq!(fetches.load(Ordering::SeqCst) - before, 1, "one fetch");
}

#[test]
fn slow_readers_of_direct_hits_are_in_the_bound() {
    let _alone = support::exclusive();
    const SIZE: usize = 4 << 20;
    const MEMORY: usize = 32 << 20;
    let origin = Origin::start("large");
    origin.answer(script(|_, _| Some(ok("cache-control: max-age=1000", &vec![b'x'; SIZE]))));
    let config = [
        support::upstream("app", &[&origin], ""),
        route("c", "max_object = \"4MiB\""),
        format!("[cache]\nmemory = \"{}MiB\"\n", MEMORY >> 20),
    ];
    let gateway = Gateway::start(&config.concat());
    let direct = || gateway.metric("gatewright_cache_direct_hits_total", &[("route", "c")]);
    let mut held = Vec::new();
    let mut client = raw::Client::connect(gateway.http());
    for number in 0..24 {
        let target = format!("/c/{number}");
        // Asked for until it is worth its room, if there is any.
        let hit = (0..8).any(|_| {
            let answer = client.exchange(raw::request("GET", &target, &[("host", "h")], b"")).unwrap();
            answer.header("cache-status").unwrap().contains("; hit")
        });
        let before = direct();
        let reader = slow(gateway.http(), &target);
        if hit && direct() > before {
            held.push(reader);
        }
    }
    assert!(held.len() >= 3, "{} slow readers of direct hits", held.len());
    assert!(held.len() * SIZE <= MEMORY, "{} slow readers hold more than the cache may have", held.len());
}

#[test]
fn an_answer_that_is_too_large_keeps_its_age() {
    let origin = threaded(|_| ok("cache-control: max-age=1000\r\nage: 50", &[b'x'; 3_000]));
    let gateway = before(origin, "max_object = \"1KiB\"");
    for _ in 0..2 {
        let answer = raw::send(gateway.http(), "GET", "/c/x", &[("host", "h")], b"");
        assert_eq!((answer.header("age"), answer.body.len()), (Some("50"), 3_000));
    }
}

#[test]
fn check_tells_what_a_route_grants_beyond_the_origin() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.toml");
    let cache = "ttl = \"90s\"\nstatuses = [200, 404]\nstale_while_revalidate = \"10s\"\nstale_if_error = \"1h\"";
    let text = format!(
        "[listeners.a]\naddress = \"127.0.0.1:0\"\n[upstreams.app]\nendpoints = [\"127.0.0.1:1\"]\n{}{}",
        route("c", cache),
        route("d", "")
    );
    std::fs::write(&file, text).unwrap();
    let checked = run(&["check", "-c", file.to_str().unwrap()]);
    let promise = "route `c` keeps 200, 404 for 90s where the origin does not say how long, and gives a stale answer for 10s while it is \
                   fetched anew, and gives a stale answer for 1h while the upstream fails\n";
    assert!(checked.stdout.contains(promise) && !checked.stdout.contains("route `d`"), "{checked:?}");
}
