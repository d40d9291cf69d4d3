//! What answers of the cache look like to those who get them: dates, parts, interim responses, trailers, what `Cache-Status` says, and
//! all of it over HTTP/2.

use crate::cache::{ok, route, script};
use crate::support::h2::{H2Client, H2Origin};
use crate::support::raw::Client;
use crate::support::{self, Gateway, Origin, SOON, eventually, raw, runtime};
use http::Request;

const CLEARTEXT: &str = "[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n";

#[test]
fn an_answer_without_a_date_has_that_of_its_coming() {
    let origin = Origin::start("app");
    origin.answer(script(|_, _| Some(ok("cache-control: max-age=1000", b"x"))));
    let gateway = Gateway::start(&[support::upstream("app", &[&origin], ""), route("c", "")].concat());
    let date = |answer: support::http1::Response| answer.header("date").unwrap().to_owned();
    let first = date(raw::get(gateway.http(), "/c/x"));
    eventually("two seconds are over", SOON, || {
        let hit = raw::get(gateway.http(), "/c/x");
        let old = hit.header("age").unwrap().parse::<u64>().unwrap() >= 2;
        assert_eq!(date(hit), first);
        old
    });
    // One of an old form goes on in the one that is sent.
    origin.answer(script(|_, _| Some(ok("date: Sunday, 06-Nov-94 08:49:37 GMT", b"x"))));
    assert_eq!(date(raw::send(gateway.http(), "POST", "/c/x", &[], b"")), "Sun, 06 Nov 1994 08:49:37 GMT");
    // What is none is that of the moment.
    origin.answer(script(|_, _| Some(ok("date: yesterday", b"x"))));
    assert!(httpdate::parse_http_date(&date(raw::send(gateway.http(), "POST", "/c/x", &[], b""))).is_ok());
}

/// The parts of a `multipart/byteranges` body: their fields and their bytes (RFC 2046 §5.1.1).
fn parts(answer: &support::http1::Response) -> Vec<(Vec<String>, String)> {
    let kind = answer.header("content-type").unwrap();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap_or_else(|| panic!("{kind}"));
    assert!(!boundary.is_empty() && boundary.len() <= 70);
    let text = answer.text();
    let inner = text.strip_suffix(&format!("\r\n--{boundary}--\r\n")).expect("the last boundary");
    let between = format!("\r\n--{boundary}\r\n");
    let mut parts = inner.split(&between);
    assert_eq!(parts.next(), Some(""), "nothing stands before the first");
    let part = |part: &str| {
        let (head, body) = part.split_once("\r\n\r\n").unwrap();
        (head.split("\r\n").map(str::to_lowercase).collect(), body.to_owned())
    };
    parts.map(part).collect()
}

#[test]
fn several_parts_have_their_boundaries_ranges_and_bytes() {
    let origin = Origin::start("app");
    let typed = "content-type: text/x-digits\r\netag: \"a\"\r\n";
    let body: Vec<u8> = (0..200_000_u32).map(|at| b'0' + (at % 10) as u8).collect();
    let whole = body.clone();
    origin.answer(script(move |line, _| {
        let fields = if line.contains("untyped") { "" } else { typed };
        Some(ok(&format!("{fields}cache-control: max-age=100"), &body))
    }));
    let gateway = Gateway::start(&[support::upstream("app", &[&origin], ""), route("c", "")].concat());
    let get = |target: &str, ranges: &str| raw::send(gateway.http(), "GET", target, &[("range", ranges)], b"");
    for target in ["/c/typed", "/c/untyped"] {
        assert_eq!(raw::get(gateway.http(), target).status, 200);
        // Across the pieces in which a body is kept, out of order, cut to what there is, and one beyond it.
        let answer = get(target, "bytes=10-19, 65530-65545 ,0-2,-3,199995-199996,500000-");
        assert_eq!((answer.status, answer.header("content-range")), (206, None), "{target}");
        assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()));
        let want = [(10, 20), (65_530, 65_546), (0, 3), (199_997, 200_000), (199_995, 199_997)];
        let parts = parts(&answer);
        assert_eq!(parts.len(), want.len(), "{target}");
        for ((fields, bytes), (start, end)) in parts.iter().zip(want) {
            let range = format!("content-range: bytes {start}-{}/200000", end - 1);
            let kind = (target == "/c/typed").then(|| "content-type: text/x-digits".to_owned());
            assert_eq!(*fields, kind.into_iter().chain([range]).collect::<Vec<_>>(), "{target}");
            assert_eq!(bytes.as_bytes(), &whole[start..end], "{target} {start}");
        }
        // If-Range is asked of all of them together.
        let same = raw::send(gateway.http(), "GET", target, &[("range", "bytes=0-1,4-5"), ("if-range", "\"b\"")], b"");
        assert_eq!((same.status, same.body.len()), (200, whole.len()));
        // A HEAD has no parts (RFC 9110 §14.2).
        assert_eq!(raw::send(gateway.http(), "HEAD", target, &[("range", "bytes=0-1,4-5")], b"").status, 200);
    }
    assert_eq!(origin.count(), 2);
}

#[test]
fn hits_over_http2_are_those_of_http1() {
    let origin = Origin::start("app");
    let fields = "cache-control: max-age=1000\r\netag: \"a\"\r\ncontent-type: text/plain\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT";
    origin.answer(script(|_, _| Some(ok(fields, b"0123456789"))));
    let gateway = Gateway::start(
        &[CLEARTEXT, &support::upstream("app", &[&origin], ""), &route("c", "ttl = \"1h\"\nforce = true")].concat(),
    );
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let ask = async |method: &str, fields: &[(&str, &str)]| {
            let request = Request::builder().method(method).uri("http://localhost/c/x");
            let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            client.call(request.body(()).unwrap(), &[]).await.unwrap()
        };
        let said = |answer: &support::h2::Answer| answer.header("cache-status").unwrap_or_default().to_owned();
        let miss = ask("GET", &[]).await;
        assert_eq!((miss.status.as_u16(), miss.body.as_slice(), miss.header("age")), (200, &b"0123456789"[..], None));
        assert!(said(&miss).contains("fwd=uri-miss") && said(&miss).contains("stored"), "{}", said(&miss));
        let hit = ask("GET", &[]).await;
        assert_eq!((hit.status.as_u16(), hit.body.as_slice(), hit.header("etag")), (200, &b"0123456789"[..], Some("\"a\"")));
        assert!(said(&hit).starts_with("gatewright; hit") && hit.header("age").is_some(), "{}", said(&hit));
        let head = ask("HEAD", &[]).await;
        assert_eq!((head.status.as_u16(), head.body.len(), head.header("content-length")), (200, 0, Some("10")));
        assert!(said(&head).starts_with("gatewright; hit"), "{}", said(&head));
        let same = ask("GET", &[("if-none-match", "\"a\"")]).await;
        assert_eq!((same.status.as_u16(), same.body.len(), same.header("content-length")), (304, 0, None));
        let part = ask("GET", &[("range", "bytes=2-4")]).await;
        assert_eq!((part.status.as_u16(), part.body.as_slice()), (206, &b"234"[..]));
        assert_eq!(part.header("content-range"), Some("bytes 2-4/10"));
        let parts = ask("GET", &[("range", "bytes=0-1,8-9")]).await;
        assert_eq!(parts.status.as_u16(), 206);
        assert!(parts.header("content-type").is_some_and(|kind| kind.starts_with("multipart/byteranges")));
        let beyond = ask("GET", &[("range", "bytes=10-")]).await;
        assert_eq!((beyond.status.as_u16(), beyond.header("content-range")), (416, Some("bytes */10")));
        // As the reference says: the library that writes heads of HTTP/2 dates them itself.
        assert_ne!(hit.header("date"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    });
    // The same store for both.
    let hit = raw::get(gateway.http(), "/c/x");
    assert!(hit.header("cache-status").is_some_and(|said| said.starts_with("gatewright; hit")));
    assert_eq!(hit.header("date"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    assert_eq!(origin.count(), 1);
}

#[test]
fn clients_of_http_1_0_get_no_interim_responses() {
    let origin = Origin::start("app");
    origin.answer(script(|_, _| {
        let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".to_vec();
        Some([interim, ok("cache-control: no-store", b"x")].concat())
    }));
    let plain = "[routes.p]\nmatch = { path = \"/p/{*rest}\" }\nupstream = \"app\"\n";
    let gateway = Gateway::start(&[&support::upstream("app", &[&origin], ""), &route("c", ""), plain].concat());
    for target in ["/c/x", "/p/x"] {
        let ask = |line: &str, more: &str, body: &str| {
            let request = format!("{line}\r\nhost: localhost\r\n{more}content-length: {}\r\n\r\n{body}", body.len());
            let answer = Client::connect(gateway.http()).exchange(request).unwrap();
            assert_eq!((answer.status, answer.text().as_str()), (200, "x"), "{line}");
            answer.interim
        };
        let expect = "expect: 100-continue\r\n";
        assert_eq!(ask(&format!("GET {target} HTTP/1.1"), "", ""), [100, 103], "{target}");
        assert_eq!(ask(&format!("GET {target} HTTP/1.0"), "", ""), [0_u16; 0], "{target}");
        assert_eq!(ask(&format!("POST {target} HTTP/1.0"), expect, "body"), [0_u16; 0], "{target}");
        assert_eq!(origin.last().header("expect"), None, "RFC 9110 §10.1.1: it is to be ignored");
    }
}

#[test]
fn trailers_pass_with_what_is_not_stored_and_are_not_kept() {
    let origin = H2Origin::plain();
    let upstream = format!("[upstreams.app]\nendpoints = [\"{}\"]\nprotocol = \"h2c\"\n", origin.address);
    let config = [CLEARTEXT, &upstream, &route("stored", "ttl = \"1h\""), &route("passed", "")].concat();
    let gateway = Gateway::start(&config);
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        for (target, kept) in [("/passed/x", true), ("/passed/x", true), ("/stored/x", false), ("/stored/x", false)] {
            let answer = client.get(target).await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0), "{target}");
            assert_eq!(answer.trailer("x-count"), kept.then_some("0"), "{target} {:?}", answer.headers);
        }
        let hit = client.get("/stored/x").await.unwrap();
        assert!(hit.header("cache-status").is_some_and(|said| said.starts_with("gatewright; hit")), "{:?}", hit.headers);
    });
    assert_eq!(origin.seen.requests.lock().len(), 3);
}

#[test]
fn what_the_gateway_answers_itself_has_a_cache_status_too() {
    let origin = Origin::start("app");
    origin.answer(script(|_, _| Some(ok("cache-control: max-age=1000", b"x"))));
    let route = |name: &str, filters: &str, more: &str| {
        format!("[routes.{name}]\nmatch = {{ path = \"/{name}\" }}\nupstream = \"app\"\n{more}filters = [{filters}]\n")
    };
    let limit = "{ rate_limit = { by = \"address\", limits = [{ rate = \"1/1h\" }] } }";
    let config = [
        support::upstream("app", &[&origin], ""),
        route("limited", limit, "cache = {}\n"),
        route("known", "{ ip_deny = { networks = [\"127.0.0.1\"] } }", "cache = {}\n"),
        route("local", "{ respond = { status = 404 } }", "cache = {}\n"),
        route("bare", "{ ip_deny = { networks = [\"127.0.0.1\"] } }", ""),
    ];
    let gateway = Gateway::start(&config.concat());
    let get = |target: &str| {
        let answer = raw::get(gateway.http(), target);
        (answer.status, answer.header("cache-status").map(str::to_owned))
    };
    assert_eq!(get("/limited").0, 200);
    for (target, status, said) in [
        ("/limited", 429, Some("gatewright; detail=rate_limited")),
        ("/known", 403, Some("gatewright; detail=address_forbidden")),
        ("/local", 404, Some("gatewright; detail=local")),
        ("/bare", 403, None),
    ] {
        assert_eq!(get(target), (status, said.map(str::to_owned)), "{target}");
    }
}

#[test]
fn what_an_answer_has_cost_is_not_charged_for_its_copies() {
    let origin = Origin::start("app");
    origin.answer(script(|_, _| Some(ok("cache-control: max-age=1000\r\nx-cost: 5", b"x"))));
    let limit = "{ rate_limit = { by = \"address\", limits = [{ rate = \"10/1h\", burst = 10 }], cost_header = \"x-cost\" } }";
    let route =
        format!("[routes.c]\nmatch = {{ path = \"/c/{{*rest}}\" }}\nupstream = \"app\"\ncache = {{}}\nfilters = [{limit}]\n");
    let gateway = Gateway::start(&[support::upstream("app", &[&origin], ""), route].concat());
    let answers: Vec<_> = (0..7).map(|_| raw::get(gateway.http(), "/c/x")).collect();
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    // Five for the fetch, one for each hit.
    assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 429]);
    assert!(answers.iter().all(|answer| answer.header("x-cost").is_none()));
    assert_eq!(origin.count(), 1);
}

#[test]
fn every_answer_is_counted_as_what_it_was() {
    let origin = Origin::start("app");
    origin.answer(script(|target, request| {
        let validates = request.header("if-none-match").is_some();
        Some(match target {
            "/c/fresh" => ok("cache-control: max-age=1000", b"12345678"),
            "/c/window" => ok("cache-control: max-age=1, stale-while-revalidate=1000\r\nage: 10", b"1234"),
            "/c/validated" if validates => b"HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n".to_vec(),
            "/c/validated" => ok("cache-control: no-cache\r\netag: \"a\"", b"12"),
            _ => ok("cache-control: no-store", b"x"),
        })
    }));
    let gateway = Gateway::start(&[support::upstream("app", &[&origin], ""), route("c", "")].concat());
    let get = |target: &str| assert_eq!(raw::get(gateway.http(), target).status, 200);
    let counted = |name: &str, label: &str, value: &str| {
        gateway.metric(&format!("gatewright_cache_{name}_total"), &[("route", "c"), (label, value)])
    };
    let results = || ["hit", "stale", "revalidated", "miss", "bypass"].map(|result| counted("requests", "result", result));
    for (target, want) in [
        ("/c/fresh", [0.0, 0.0, 0.0, 1.0, 0.0]),
        ("/c/fresh", [1.0, 0.0, 0.0, 1.0, 0.0]),
        ("/c/validated", [1.0, 0.0, 0.0, 2.0, 0.0]),
        ("/c/validated", [1.0, 0.0, 1.0, 2.0, 0.0]),
        ("/c/window", [1.0, 0.0, 1.0, 3.0, 0.0]),
        ("/c/window", [1.0, 1.0, 1.0, 3.0, 0.0]),
        ("/c/nothing", [1.0, 1.0, 1.0, 4.0, 0.0]),
        ("/c/nothing", [1.0, 1.0, 1.0, 4.0, 1.0]),
    ] {
        get(target);
        assert_eq!(results(), want, "{target}");
    }
    raw::send(gateway.http(), "POST", "/c/fresh", &[], b"x");
    raw::send(gateway.http(), "GET", "/c/other", &[("cache-control", "no-store")], b"");
    raw::send(gateway.http(), "GET", "/c/other", &[("if-match", "\"a\"")], b"");
    for why in ["method", "request", "precondition", "unshared"] {
        assert_eq!(counted("bypass", "reason", why), 1.0, "{why}");
    }
    assert_eq!(counted("not_stored", "reason", "no_store"), 1.0);
    let of_route = |name: &str| gateway.metric(&format!("gatewright_cache_{name}_total"), &[("route", "c")]);
    // Three at first; the one that is refreshed in the background comes when it comes.
    eventually("the refreshed one", SOON, || (of_route("stored"), of_route("refreshes")) == (4.0, 1.0));
    // Of the hit, the stale one and the one that was confirmed.
    assert_eq!(gateway.metric("gatewright_cache_served_bytes_total", &[("route", "c")]), 8.0 + 4.0 + 2.0);
    assert_eq!(gateway.metric("gatewright_cache_invalidations_total", &[("route", "c")]), 1.0);
}

#[test]
fn the_access_log_says_what_the_cache_did_and_where_a_fetch_went() {
    let origin = Origin::start("app");
    origin.answer(script(|target, _| if target == "/c/fails" { None } else { Some(ok("cache-control: max-age=1000", b"x")) }));
    let gateway = Gateway::start(&[support::upstream("app", &[&origin], ""), route("c", "")].concat());
    let endpoint = origin.address().to_string();
    let line = |path: &str, cache: &str| gateway.logged(path, |line| line["path"] == path && line["cache"] == cache);
    raw::get(gateway.http(), "/c/x");
    let miss = line("/c/x", "miss");
    assert_eq!((miss["endpoint"].as_str(), miss["attempts"].as_u64()), (Some(endpoint.as_str()), Some(1)), "{miss}");
    assert!(miss["upstream_time"].is_number() && miss["reused"].is_boolean(), "{miss}");
    raw::get(gateway.http(), "/c/x");
    let hit = line("/c/x", "hit");
    assert!(hit["endpoint"].is_null() && hit["attempts"] == 0 && hit["upstream_time"].is_null(), "{hit}");
    assert_eq!(raw::get(gateway.http(), "/c/fails").status, 502);
    let failed = line("/c/fails", "miss");
    assert_eq!((failed["endpoint"].as_str(), failed["rejection"].as_str()), (Some(endpoint.as_str()), Some("upstream_reset")));
    assert!(failed["attempts"].as_u64() >= Some(1), "{failed}");
    raw::send(gateway.http(), "POST", "/c/x", &[], b"x");
    assert_eq!(line("/c/x", "bypass")["endpoint"].as_str(), Some(endpoint.as_str()));
}

#[test]
fn what_an_open_breaker_answers_holds_for_cached_routes_too() {
    let origin = Origin::start("app");
    origin.answer(script(|_, _| Some(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n".to_vec())));
    let answer = "answer = { status = 503, body = \"later\", content_type = \"text/plain\" }";
    let breaker = format!("breaker = {{ consecutive_failures = 3, open_for = \"1h\", {answer} }}\nretry = {{ attempts = 1 }}\n");
    let gateway = Gateway::start(&[support::upstream("app", &[&origin], &breaker), route("c", "")].concat());
    for target in ["/c/1", "/c/2", "/c/3"] {
        assert_eq!(raw::get(gateway.http(), target).status, 500);
    }
    let refused = raw::get(gateway.http(), "/c/4");
    assert_eq!((refused.status, refused.text().as_str()), (503, "later"));
    assert_eq!(refused.header("content-type"), Some("text/plain"));
    let said = refused.header("cache-status").unwrap_or_default();
    assert_eq!(said, "gatewright; fwd=uri-miss; detail=circuit_open");
    assert_eq!(origin.count(), 3);
}
