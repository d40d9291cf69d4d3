//! HTTP/2 from clients, with its bounds and its end.

use crate::support::h2::{H2Client, answer};
use crate::support::origin::Recorded;
use crate::support::raw::{Client, get, send};
use crate::support::tls::Authority;
use crate::support::{Answer, Gateway, Origin, SOON, eventually, everything_to, runtime};
use bytes::Bytes;
use http::{Method, Request};
use std::time::{Duration, Instant};

const CLEARTEXT: &str = "[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n";

/// A gateway with HTTP/2 without TLS; `more` are lines of its listener.
fn cleartext(origin: &Origin, more: &str) -> Gateway {
    Gateway::start(&format!("{CLEARTEXT}{more}{}", everything_to(&[origin], "")))
}

fn malformed(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric("gatewright_listener_malformed_requests_total", &[("reason", reason)])
}

#[test]
fn requests_share_a_tls_connection() {
    let origin = Origin::start("a");
    let authority = Authority::new();
    let tls = "tls = { certificates = [{ cert = \"a.pem\", key = \"a.key\" }] }\n";
    let listener = format!("[listeners.https]\naddress = \"127.0.0.1:0\"\nhttp2 = true\n{tls}");
    let toml = listener + &everything_to(&[&origin], "");
    let gateway = Gateway::try_start_with(&toml, |directory| authority.issue(&["localhost"]).write(directory, "a")).unwrap();
    let address = gateway.address("https");
    runtime().block_on(async {
        let client = H2Client::secure(address, &authority.trusting()).await;
        origin.answer(Answer::Delay(Duration::from_millis(300)));
        let began = Instant::now();
        let targets: Vec<String> = (0..20).map(|n| format!("/{n}?q=1")).collect();
        let calls = futures_join(targets.iter().map(|target| client.get(target)).collect()).await;
        assert!(began.elapsed() < Duration::from_secs(5), "one after the other: {:?}", began.elapsed());
        assert!(calls.iter().all(|call| call.as_ref().unwrap().status == 200));
    });
    assert_eq!(origin.requests()[0].header_all("host"), ["localhost"]);
    assert_eq!(origin.requests()[0].header_all("x-forwarded-proto"), ["https"]);
    assert_eq!(gateway.metric("gatewright_listener_connections_accepted_total", &[("listener", "https")]), 1.0);
    let line = gateway.logged("a request", |line| line["status"] == 200);
    assert_eq!(line["protocol"], "HTTP/2");
    // The same port for clients that offer nothing, or HTTP/1.1 alone.
    for offer in [&[][..], &["http/1.1"]] {
        let mut old = authority.trusting().offering(offer).connect(address, "localhost").unwrap();
        let request = crate::support::raw::request("GET", "/", &[], b"");
        assert_eq!(old.exchange(request).unwrap().status, 200);
    }
}

/// All of them at once; the crate has no `futures`.
async fn futures_join<F: Future>(list: Vec<F>) -> Vec<F::Output> {
    let mut pinned: Vec<_> = list.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(move |cx| {
        for (future, output) in pinned.iter_mut().filter(|(_, output)| output.is_none()) {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(cx) {
                *output = Some(value);
            }
        }
        if pinned.iter().all(|(_, output)| output.is_some()) {
            std::task::Poll::Ready(pinned.iter_mut().filter_map(|(_, output)| output.take()).collect())
        } else {
            std::task::Poll::Pending
        }
    })
    .await
}

#[test]
fn http1_and_http2_share_a_cleartext_port() {
    let origin = Origin::start("a");
    let gateway = cleartext(&origin, "");
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let post = Request::post("http://api.example.com/a/../%41?d").body(()).unwrap();
        assert_eq!(client.call(post, &[b"hello ", b"world"]).await.unwrap().status, 200);
        assert_eq!(client.get("/again").await.unwrap().status, 200);
    });
    assert_eq!(get(gateway.http(), "/old").status, 200);
    let seen = origin.requests();
    assert_eq!(seen[0].header_all("host"), ["api.example.com"], "a rewritten path keeps its host");
    assert_eq!(seen[0].body, b"hello world");
}

#[test]
fn a_preface_has_a_deadline() {
    let origin = Origin::start("a");
    let gateway = cleartext(&origin, "header_timeout = \"500ms\"\nkeepalive_timeout = \"1s\"\n");
    // In part, and in full with nothing after it: that is an idle connection.
    for beginning in ["PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut client = Client::connect(gateway.http());
        let began = Instant::now();
        client.send(beginning);
        client.read_until_closed();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
    eventually("it is counted", SOON, || malformed(&gateway, "header_timeout") == 1.0);
}

#[test]
fn a_body_that_ends_in_an_empty_frame_ends_once() {
    let origin = Origin::start("a");
    let gateway = cleartext(&origin, "");
    let mut opened: Vec<usize> = Vec::new();
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        // One more connection now and then is a request that came before the connection was back in the pool, so that the best of
        // a few rounds counts. A second end desynchronises the connection of each request of each round.
        while !opened.iter().any(|opened| *opened <= 4) {
            let before = origin.connections();
            for _ in 0..20 {
                let post = Request::post("http://localhost/").body(()).unwrap();
                assert_eq!(client.call(post, &[b"body", b""]).await.unwrap().status, 200);
            }
            opened.push(origin.connections() - before);
            assert!(opened.len() < 10, "connections for 20 requests in turn, by round: {opened:?}");
        }
    });
    assert!(origin.requests().iter().all(|request| request.body == b"body"));
    assert_eq!(origin.count(), 20 * opened.len());
}

#[test]
fn malformed_requests_reach_no_origin() {
    let origin = Origin::start("a");
    let gateway = cleartext(&origin, "");
    let long = format!("http://localhost/{}", "x".repeat(9_000));
    let build = |method: &[u8], target: &str, headers: &[(&str, &str)]| {
        let mut request = Request::builder().method(Method::from_bytes(method).unwrap()).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    };
    let many: Vec<(String, &str)> = (0..101).map(|n| (format!("x-{n}"), "1")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let cases: [(&str, Request<()>, u16, Option<&str>); 8] = [
        ("underscore", build(b"GET", "http://localhost/", &[("x_user", "1")]), 400, Some("header_underscore")),
        ("method", build(b"get", "http://localhost/", &[]), 400, Some("invalid_method")),
        ("scheme", build(b"GET", "ftp://localhost/", &[]), 400, Some("invalid_target")),
        ("target", build(b"GET", &long, &[]), 414, Some("uri_too_long")),
        ("headers", build(b"GET", "http://localhost/", &many), 431, Some("too_many_headers")),
        ("two hosts", build(b"GET", "http://localhost/", &[("host", "other")]), 400, Some("http2_protocol")),
        ("expect", build(b"GET", "http://localhost/", &[("expect", "200-ok")]), 400, Some("invalid_expect")),
        ("path", build(b"GET", "http://localhost/%00", &[]), 400, None),
    ];
    runtime().block_on(async {
        for (what, request, status, reason) in cases {
            let client = H2Client::plain(gateway.http()).await;
            let answer = client.call(request, &[]).await;
            assert_eq!(answer.as_ref().map(|answer| answer.status.as_u16()).ok(), Some(status), "{what}: {answer:?}");
            if let Some(reason) = reason {
                assert_eq!(malformed(&gateway, reason), 1.0, "{what}");
            }
            assert_eq!(client.get("/healthy").await.unwrap().status, 200, "{what}: other streams go on");
        }
        let client = H2Client::plain(gateway.http()).await;
        let connect = Request::connect("localhost:443").body(()).unwrap();
        let refused = client.call(connect, &[]).await.map(|answer| answer.status.as_u16());
        assert!(matches!(refused, Ok(400 | 405) | Err(_)), "{refused:?}");
    });
    let unexpected: Vec<_> = origin.requests().iter().filter(|r| !r.request_line().contains("/healthy")).cloned().collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

#[test]
fn a_body_larger_than_the_bound_is_413_and_the_connection_serves_on() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&format!("{CLEARTEXT}[server]\nmax_body = \"1KiB\"\n{}", everything_to(&[&origin], "")));
    let post = |target: &str, length: Option<&str>| {
        let head = Request::post(format!("http://localhost/{target}"));
        length.into_iter().fold(head, |head, length| head.header("content-length", length)).body(()).unwrap()
    };
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let half = [b'x'; 512];
        for length in [Some("1024"), None] {
            assert_eq!(client.call(post("fits", length), &[&half, &half]).await.unwrap().status, 200, "{length:?}");
        }
        for length in [Some("1025"), None] {
            let answer = client.call(post("large", length), &[&half, &half, b"x"]).await.unwrap();
            let document: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!((answer.status.as_u16(), document["code"].as_str()), (413, Some("body_too_large")), "{length:?}");
        }
        // By what it says, before a byte of it has come.
        let mut sender = client.sender.clone().ready().await.unwrap();
        let (response, body) = sender.send_request(post("large", Some("99999999999")), false).unwrap();
        assert_eq!(response.await.unwrap().status(), 413);
        drop(body);
        assert_eq!(client.get("/after").await.unwrap().status, 200, "other streams go on");
    });
    let seen: Vec<String> = origin.requests().iter().map(target_of).collect();
    assert_eq!(seen, ["/fits", "/fits", "/after"], "no request that is too large came as a whole");
    assert_eq!(gateway.metric("gatewright_listener_connections_accepted_total", &[("listener", "http")]), 1.0);
}

fn target_of(request: &Recorded) -> String {
    request.request_line().split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn more_streams_than_the_bound_are_refused() {
    let origin = Origin::start("a");
    let gateway = cleartext(&origin, "http2_max_streams = 2\n");
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        client.get("/").await.unwrap();
        assert_eq!(client.sender.current_max_send_streams(), 2);
    });
}

#[test]
fn a_flood_of_resets_ends_the_connection_and_nothing_else() {
    let origin = Origin::start("a");
    let gateway = cleartext(&origin, "");
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let other = H2Client::plain(gateway.http()).await;
        let mut sent = 0;
        while sent < 50_000 {
            let request = Request::get("http://localhost/reset").body(()).unwrap();
            let Ok(mut sender) = client.sender.clone().ready().await else { break };
            let Ok((response, mut stream)) = sender.send_request(request, false) else { break };
            stream.send_reset(h2::Reason::CANCEL);
            drop(response);
            sent += 1;
        }
        assert!(sent < 50_000, "the flood went on");
        assert!(client.ended().await.is_err());
        assert_eq!(other.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn a_stopping_gateway_says_goaway_and_finishes_what_is_under_way() {
    let origin = Origin::start("a");
    let mut gateway = cleartext(&origin, "");
    let address = gateway.http();
    origin.answer(Answer::Delay(Duration::from_secs(1)));
    runtime().block_on(async {
        let client = H2Client::plain(address).await;
        let idle = H2Client::plain(address).await;
        let request = Request::get("http://localhost/slow").body(()).unwrap();
        let (response, _) = client.sender.clone().ready().await.unwrap().send_request(request, true).unwrap();
        tokio::task::block_in_place(|| eventually("the request is under way", SOON, || origin.count() == 1));
        gateway.sigterm();
        let answer = answer(response.await.unwrap()).await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(client.ended().await.is_ok(), "not by a GOAWAY without error");
        assert!(idle.ended().await.is_ok());
    });
    assert!(gateway.wait_exit(SOON).success());
}

#[test]
fn a_connection_ends_in_order_after_its_last_request_and_when_it_is_idle() {
    let origin = Origin::start("a");
    let gateway = cleartext(&origin, "keepalive_requests = 3\nkeepalive_timeout = \"1s\"\n");
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        for _ in 0..3 {
            assert_eq!(client.get("/").await.unwrap().status, 200);
        }
        assert!(client.ended().await.is_ok());
        let idle = H2Client::plain(gateway.http()).await;
        let sender = idle.sender.clone();
        let ended = tokio::time::timeout(SOON, idle.connection).await;
        assert!(ended.is_ok(), "an idle connection stays for ever");
        drop(sender);
    });
    for reason in ["last_request", "idle"] {
        let labels = [("listener", "http"), ("reason", reason)];
        assert_eq!(gateway.metric("gatewright_listener_connections_closed_total", &labels), 1.0, "{reason}");
    }
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    let origin = Origin::start("a");
    origin.answer(Answer::InfiniteBody);
    let gateway = cleartext(&origin, "write_timeout = \"500ms\"\n");
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let request = Request::get("http://localhost/").body(()).unwrap();
        let (response, _) = client.sender.clone().ready().await.unwrap().send_request(request, true).unwrap();
        let mut body = response.await.unwrap().into_body();
        // Capacity is never given back, so that the window closes.
        let read = async {
            let mut total = 0;
            loop {
                match body.data().await {
                    Some(Ok(piece)) => total += Bytes::len(&piece),
                    Some(Err(_)) => return total,
                    None => panic!("the end of an endless body"),
                }
            }
        };
        let total = tokio::time::timeout(SOON, read).await.expect("the stream stays open");
        assert!(total >= 65_535 - 16_384, "{total}");
    });
    let labels = [("listener", "http"), ("reason", "slow_reader")];
    eventually("it is counted", SOON, || gateway.metric("gatewright_listener_connections_cut_total", &labels) == 1.0);
}

#[test]
fn a_header_list_larger_than_the_bound_is_refused_however_small_it_is_on_the_wire() {
    let origin = Origin::start("a");
    let gateway = cleartext(&origin, "max_header = \"4KiB\"\nmax_uri = \"1KiB\"\n");
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        // Names, values and 32 bytes for each field count (RFC 9113 §6.5.2); the same value again is one byte in HPACK.
        for (fields, status) in [(40, Some(200)), (60, None)] {
            let head = (0..fields).fold(Request::get("http://localhost/"), |head, _| head.header("x-a", "y".repeat(40)));
            let answer = client.call(head.body(()).unwrap(), &[]).await;
            match status {
                Some(status) => assert_eq!(answer.unwrap().status, status),
                None => assert!(answer.map_or(true, |answer| answer.status == 431)),
            }
        }
    });
    assert_eq!(origin.count(), 1);
}

#[test]
fn underscores_in_names_pass_where_the_listener_allows_them() {
    let origin = Origin::start("a");
    let gateway = cleartext(&origin, "allow_underscores = true\n");
    assert_eq!(send(gateway.http(), "GET", "/1", &[("x_user", "1")], b"").status, 200);
    assert_eq!(origin.last().header("x_user").as_deref(), Some("1"));
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let request = Request::get("http://localhost/2").header("x_user", "2").body(()).unwrap();
        assert_eq!(client.call(request, &[]).await.unwrap().status, 200);
    });
    assert_eq!(origin.last().header("x_user").as_deref(), Some("2"));
    let strict = cleartext(&origin, "");
    assert_eq!(send(strict.http(), "GET", "/1", &[("x_user", "1")], b"").status, 400);
    assert_eq!(origin.count(), 2);
}

/// Whether the stream of a client that opens its window by 16 KiB every 200 ms is ended within this time.
fn stream_drips(gateway: &Gateway, within: Duration) -> bool {
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let request = Request::get("http://localhost/").body(()).unwrap();
        let (response, _) = client.sender.clone().ready().await.unwrap().send_request(request, true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let (started, mut owed) = (Instant::now(), 0_usize);
        while started.elapsed() < within {
            match tokio::time::timeout(Duration::from_millis(200), body.data()).await {
                Ok(Some(Ok(piece))) => owed += piece.len(),
                Ok(_) => return true,
                Err(_) => {
                    let part = owed.min(16 << 10);
                    owed -= part;
                    body.flow_control().release_capacity(part).unwrap();
                }
            }
        }
        false
    })
}

#[test]
fn a_client_that_opens_its_window_bit_by_bit_has_to_meet_the_rate() {
    let origin = Origin::start("a");
    origin.answer(Answer::InfiniteBody);
    // 64 KiB take it about a second, so that no piece takes as long as it may.
    let gateway = cleartext(&origin, "write_timeout = \"4s\"\nmin_write_rate = \"10MiB\"\n");
    assert!(stream_drips(&gateway, SOON), "80 KiB/s where 10 MiB/s are asked for");
    let labels = [("listener", "http"), ("reason", "slow_reader")];
    eventually("it is counted", SOON, || gateway.metric("gatewright_listener_connections_cut_total", &labels) == 1.0);
    let without = cleartext(&origin, "write_timeout = \"4s\"\nmin_write_rate = \"0B\"\n");
    assert!(!stream_drips(&without, Duration::from_secs(8)), "without a rate only pauses count");
}

#[test]
fn a_body_that_drips_is_ended_also_where_a_request_has_no_deadline() {
    let origin = Origin::start("a");
    let toml = format!(
        "{CLEARTEXT}body_timeout = \"1s\"\nmin_body_rate = \"100B\"\n{}timeouts = {{ request = \"0s\" }}\n",
        everything_to(&[&origin], "timeouts = { read = \"2s\" }")
    );
    let gateway = Gateway::start(&toml);
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        // One byte now and then; and nothing at all.
        for drips in [true, false] {
            let request = Request::post("http://localhost/slow").body(()).unwrap();
            let (response, mut body) = client.sender.clone().ready().await.unwrap().send_request(request, false).unwrap();
            let drip = async {
                for _ in 0..200 {
                    if drips && body.send_data(Bytes::from_static(b"x"), false).is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            let began = Instant::now();
            let answered = tokio::select! {
                answered = response => answered.map(|response| response.status().as_u16()),
                () = drip => panic!("the stream goes on"),
            };
            let expected = if drips { 408 } else { 504 };
            assert_eq!(answered.ok(), Some(expected), "after {:?}", began.elapsed());
        }
        // A fast one is as good as ever.
        let request = Request::post("http://localhost/fast").body(()).unwrap();
        assert_eq!(client.call(request, &[&[b'x'; 10_000]]).await.unwrap().status, 200);
    });
}

#[test]
fn an_answer_that_breaks_off_is_a_broken_stream() {
    let origin = Origin::start("a");
    let gateway = cleartext(&origin, "");
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        for broken in [Answer::ResetMid, Answer::TruncatedChunks] {
            origin.answer(broken);
            let answer = client.get("/").await;
            assert!(answer.is_err(), "a part of an answer that looks whole: {answer:?}");
        }
        origin.answer(Answer::Echo);
        assert_eq!(client.get("/").await.unwrap().status, 200, "other streams go on");
    });
}
