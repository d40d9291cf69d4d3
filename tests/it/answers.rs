//! What upstreams may answer: a response that could be read in two ways is a 502, and its connection is not used again.

use crate::support::frames::{ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, SETTINGS, block, frame};
use crate::support::h2::{H2Client, H2Origin};
use crate::support::http1::{Broken, Response};
use crate::support::raw::{Client, get, request, send};
use crate::support::teller::{Case, Teller, Told, malformed_answers};
use crate::support::tls::Authority;
use crate::support::{Answer, Gateway, Origin, SOON, eventually, everything_to, runtime};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Instant;

/// One upstream and one route for each worker, so that their connections do not mix: `/N/...` goes to upstream `uN`.
fn lanes(address: SocketAddr, more: &str) -> String {
    let lane = |n: usize| {
        format!(
            "[upstreams.u{n}]\nendpoints = [\"{address}\"]\n{more}\n\
             [routes.r{n}]\nmatch = {{ path = \"/{n}/{{*rest}}\" }}\nupstream = \"u{n}\"\n"
        )
    };
    (0..LANES).map(lane).collect()
}

/// Work for that many clients at once.
const LANES: usize = 8;

fn ask(gateway: SocketAddr, asked: &str, target: &str) -> Result<Response, Broken> {
    let upgrade: &[_] = if asked == "upgrade" { &[("connection", "upgrade"), ("upgrade", "websocket")] } else { &[] };
    Client::connect(gateway).exchange(request(if asked == "head" { "HEAD" } else { "GET" }, target, upgrade, b""))
}

#[track_caller]
fn assert_refused(what: &str, answer: Result<Response, Broken>) {
    let answer = answer.unwrap_or_else(|broken| panic!("{what}: {broken}"));
    assert_eq!(answer.status, 502, "{what}: {}", answer.text());
    assert!(answer.body.is_empty() || answer.code() == "upstream_protocol_error", "{what}: {}", answer.text());
}

/// Runs the whole corpus against `teller`: at once, and byte by byte.
fn refuses_the_corpus(gateway: &Gateway, teller: &Teller, cases: &[Case]) {
    let http = gateway.http();
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            scope.spawn(move || {
                for Case { name, asked, reason, .. } in cases.iter().skip(lane).step_by(LANES) {
                    // All of it in one piece: nothing of it has passed when the fault is seen.
                    assert_refused(name, ask(http, asked, &format!("/{lane}/whole/{name}")));
                    let target = format!("/{lane}/drip/{name}");
                    let answer = ask(http, asked, &target);
                    match *reason {
                        // The answer may be complete before there is anything wrong. What comes then ends the connection.
                        "excess_bytes" => {
                            match answer {
                                Err(Broken::Truncated(_) | Broken::Closed) => {}
                                Err(broken) => panic!("{name}, byte by byte: {broken}"),
                                Ok(answer) => assert!(answer.status == 502 || matches!(answer.text().as_str(), "" | "ab")),
                            }
                            let ended = |told: &Told| told.targets.contains(&target) && told.ended;
                            eventually(&format!("{name}: the connection is closed"), SOON, || teller.told().iter().any(ended));
                        }
                        // The head has passed, and maybe some of the body: never a whole one.
                        "malformed_chunk" => match answer {
                            Err(Broken::Truncated(_) | Broken::Closed) => {}
                            answer => assert_refused(name, answer),
                        },
                        _ => assert_refused(name, answer),
                    }
                }
            });
        }
    });
    teller.assert_not_used_after(|target| !target.ends_with("/good"));
    let metrics = gateway.metrics();
    for reason in cases.iter().map(|case| case.reason) {
        let counted = metrics.get("gatewright_upstream_malformed_answers_total", &[("reason", reason)]);
        assert!(counted.is_some_and(|count| count >= 1.0), "{reason} is not counted");
    }
}

fn answers(cases: &[Case]) -> impl Iterator<Item = (String, Vec<u8>)> {
    cases.iter().map(|case| (case.name.to_owned(), case.bytes.clone()))
}

#[test]
fn no_answer_of_the_corpus_passes_and_none_of_their_connections_is_used_again() {
    let cases = malformed_answers();
    assert!(cases.len() >= 190, "{}", cases.len());
    let teller = Teller::start(answers(&cases));
    let gateway = Gateway::start(&lanes(teller.address, "retry = { attempts = 1 }"));
    refuses_the_corpus(&gateway, &teller, &cases);
    // Good answers between bad ones use their connection again, over the same upstreams. Of one client: its next request is read
    // when the connection has been given back.
    let mut client = Client::connect(gateway.http());
    for _ in 0..5 {
        assert_eq!(client.exchange(request("GET", "/0/whole/good", &[], b"")).unwrap().text(), "good");
    }
    assert!(teller.told().iter().any(|told| told.targets.len() >= 5));
}

#[test]
fn over_tls_answers_are_held_to_the_same() {
    let authority = Authority::new();
    let pair = authority.issue(&["orders.internal"]);
    // Each kind once. An endpoint that may speak HTTP/2 and does not is no way around it.
    let mut seen = std::collections::HashSet::new();
    let cases: Vec<Case> = malformed_answers().into_iter().filter(|case| seen.insert(case.reason)).collect();
    for protocol in ["http1", "auto"] {
        let teller = Teller::over(answers(&cases), Some(pair.server()));
        let more = format!(
            "retry = {{ attempts = 1 }}\nprotocol = \"{protocol}\"\ntls = {{ sni = \"orders.internal\", ca = \"ca.pem\" }}"
        );
        let write = |directory: &std::path::Path| std::fs::write(directory.join("ca.pem"), &authority.pem).unwrap();
        let gateway = Gateway::try_start_with(&lanes(teller.address, &more), write).unwrap();
        refuses_the_corpus(&gateway, &teller, &cases);
        let before = teller.told().len();
        // Of one client: its next request is read when the connection has been given back.
        let mut client = Client::connect(gateway.http());
        for _ in 0..5 {
            assert_eq!(client.exchange(request("GET", "/0/whole/good", &[], b"")).unwrap().text(), "good", "{protocol}");
        }
        assert_eq!(teller.told().len(), before + 1, "{protocol}: a connection that is good is used again");
    }
}

#[test]
fn a_refused_answer_is_not_asked_for_again_unless_that_is_harmless() {
    let cases = malformed_answers();
    let teller = Teller::start(answers(&cases));
    let gateway = Gateway::start(&lanes(teller.address, "retry = { attempts = 3 }"));
    let asked = || teller.told().iter().map(|told| told.targets.len()).sum::<usize>();
    for (method, times) in [("POST", 1), ("PATCH", 1), ("GET", 3), ("PUT", 3)] {
        for name in ["cl_te", "after_length", "chunk_letters", "lf_status"] {
            let before = asked();
            let answer = send(gateway.http(), method, &format!("/0/whole/{name}"), &[], b"");
            assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_protocol_error"), "{method} {name}");
            assert_eq!(asked() - before, times, "{method} {name}");
        }
    }
    teller.assert_not_used_after(|_| true);
}

#[test]
fn an_answer_in_pieces_arrives_as_it_was() {
    let body: String = (0..500).map(|n| format!("{n},")).collect();
    let chunked: String = body.as_bytes().chunks(7).map(|chunk| format!("7\r\n{}\r\n", String::from_utf8_lossy(chunk))).collect();
    let tail = body.len() % 7;
    let chunked = match tail {
        0 => chunked,
        tail => chunked.replacen(
            &format!("7\r\n{}\r\n", &body[body.len() - tail..]),
            &format!("{tail}\r\n{}\r\n", &body[body.len() - tail..]),
            1,
        ),
    };
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";
    let teller = Teller::start([
        ("length".to_owned(), format!("{interim}HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()),
        ("chunks".to_owned(), format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunked}0\r\n\r\n").into_bytes()),
    ]);
    let gateway = Gateway::start(&lanes(teller.address, ""));
    for how in ["whole", "drip"] {
        for name in ["length", "chunks"] {
            let answer = get(gateway.http(), &format!("/0/{how}/{name}"));
            assert_eq!((answer.status, answer.text()), (200, body.clone()), "{how} {name}");
            assert_eq!(answer.interim.len(), usize::from(name == "length"), "{how} {name}");
        }
    }
    // A connection is back in its pool a moment after its answer, so that one request or another may come too early for it.
    assert!(teller.told().len() < 4, "no connection is used again: {:?}", teller.told());
}

#[test]
fn an_answer_may_come_before_its_request_has_been_sent() {
    let teller = Teller::start([("early".to_owned(), b"HTTP/1.1 413 X\r\ncontent-length: 5\r\n\r\nlarge".to_vec())]);
    let gateway = Gateway::start(&lanes(teller.address, ""));
    let mut client = Client::connect(gateway.http());
    client.send("POST /0/whole/early HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nthe first of it");
    let answer = client.response();
    assert_eq!((answer.status, answer.text().as_str()), (413, "large"));
    // Half a request is on that connection: the next one must not follow it there.
    assert_eq!(get(gateway.http(), "/0/whole/good").text(), "good");
    teller.assert_not_used_after(|target| target.ends_with("/early"));
}

#[test]
fn an_endpoint_that_chooses_http1_is_asked_over_checked_connections_only() {
    let authority = Authority::new();
    let pair = authority.issue(&["orders.internal"]);
    let teller = Teller::over([], Some(pair.server()));
    let more = "protocol = \"auto\"\ntls = { sni = \"orders.internal\", ca = \"ca.pem\" }";
    let write = |directory: &std::path::Path| std::fs::write(directory.join("ca.pem"), &authority.pem).unwrap();
    let gateway = Gateway::try_start_with(&lanes(teller.address, more), write).unwrap();
    // All on one connection of the client: the next is read when the last has given back the one that it used.
    let mut client = Client::connect(gateway.http());
    for method in ["POST", "GET", "POST", "GET"] {
        assert_eq!(client.exchange(request(method, "/0/whole/good", &[], b"body")).unwrap().status, 200);
    }
    // The connection that was given up carried nothing, and the one after it everything.
    let told = teller.told();
    assert_eq!(told.iter().map(|told| told.targets.len()).collect::<Vec<_>>(), [4], "{told:?}");
    gateway.logged("one attempt for each", |line| line["attempts"] == 1 && line["method"] == "POST");
    assert_eq!(gateway.metric("gatewright_upstream_retries_total", &[("upstream", "u0")]), 0.0);
    assert_eq!(gateway.metric("gatewright_upstream_connects_total", &[("upstream", "u0"), ("kind", "reused")]), 3.0);
}

#[test]
fn new_tls_connections_to_an_endpoint_resume_the_session_of_the_first() {
    let authority = Authority::new();
    let pair = authority.issue(&["orders.internal"]);
    let teller = Teller::over([], Some(pair.server()));
    let more = "keepalive = { connections = 0 }\ntls = { sni = \"orders.internal\", ca = \"ca.pem\" }";
    let write = |directory: &std::path::Path| std::fs::write(directory.join("ca.pem"), &authority.pem).unwrap();
    let gateway = Gateway::try_start_with(&lanes(teller.address, more), write).unwrap();
    for _ in 0..3 {
        assert_eq!(get(gateway.http(), "/0/whole/good").text(), "good");
    }
    assert_eq!(teller.told().iter().map(|told| told.resumed).collect::<Vec<_>>(), [false, true, true]);
}

#[test]
fn over_http2_a_body_of_another_length_than_announced_is_no_answer() {
    for (announced, sends) in [("4", "hello"), ("6", "hello"), ("0", "hello"), ("5, 5", "hello"), ("+5", "hello")] {
        let origin = H2Origin::answering(announced, sends);
        let gateway = Gateway::start(&origin.everything("protocol = \"h2c\""));
        match Client::connect(gateway.http()).exchange(request("GET", "/", &[], b"")) {
            // The head may have passed before its body was seen.
            Err(Broken::Truncated(_) | Broken::Closed) => {}
            // That there is none is known from the head, and nothing of it passes.
            Ok(answer) if announced == "0" => assert_eq!(answer.text(), "", "{}", answer.status),
            Ok(answer) => assert_eq!(answer.status, 502, "{announced} for {sends}: {}", answer.text()),
            Err(broken) => panic!("{announced} for {sends}: {broken}"),
        }
    }
    let origin = H2Origin::answering("5", "hello");
    let gateway = Gateway::start(&origin.everything("protocol = \"h2c\""));
    assert_eq!(get(gateway.http(), "/").text(), "hello");
}

#[test]
fn floods_of_headers_and_interim_answers_are_bounded() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    origin.answer(Answer::HugeHeader(2 << 20));
    assert_eq!(get(gateway.http(), "/").status, 502);
    let before = origin.connections();
    origin.answer(Answer::Echo);
    assert_eq!(get(gateway.http(), "/").status, 200);
    assert_eq!(origin.connections(), before + 1, "what may still come on it is nobody's answer");
    let interim = |count: usize| "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n".repeat(count);
    let last = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    origin.answer(Answer::Bytes((interim(3) + last).into_bytes()));
    let answer = get(gateway.http(), "/");
    assert_eq!((answer.status, answer.interim), (200, vec![103; 3]));
    origin.answer(Answer::Bytes((interim(10_000) + last).into_bytes()));
    let answer = get(gateway.http(), "/");
    assert_eq!(answer.status, 502);
    assert!(answer.interim.len() <= 16, "{}", answer.interim.len());
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it_from_the_origin() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    // The origin says 100 by itself when it is asked to.
    let mut client = Client::connect(gateway.http());
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    // The body is sent only when the 100 is here.
    assert!(client.closed_or_answered(SOON));
    let answer = client.send("body").response();
    assert_eq!((answer.status, answer.interim.as_slice()), (200, &[100][..]));
    assert_eq!(origin.last().body, b"body");
}

/// An origin that answers every request with these frames, word for word.
fn frames_origin(answer: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                let Ok(mut frames) = Frames::accepted(stream) else { return };
                frames.send(&frame(SETTINGS, 0, 0, &[]));
                while let Some((kind, flags, stream, _)) = frames.next(Instant::now() + SOON) {
                    match kind {
                        SETTINGS if flags & ACK == 0 => drop(frames.send(&frame(SETTINGS, ACK, 0, &[]))),
                        HEADERS => drop(frames.send(&answer(stream))),
                        _ => {}
                    }
                }
            });
        }
    });
    address
}

/// The head of an answer with `:status: 200` and these fields.
fn answer_head(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags, stream, &block(&[&[(":status", "200")], fields].concat()))
}

#[test]
fn an_answer_over_http2_is_held_to_the_same_rules() {
    let whole = |fields: &'static [(&str, &str)], body: &'static [u8]| {
        move |stream| [answer_head(stream, END_HEADERS, fields), frame(DATA, END_STREAM, stream, body)].concat()
    };
    type Answers = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;
    let raw = |block: Vec<u8>| -> Answers { Box::new(move |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)) };
    let cases: Vec<(&str, Answers)> = vec![
        ("more length than data", Box::new(whole(&[("content-length", "5")], b"ab"))),
        ("less length than data", Box::new(whole(&[("content-length", "1")], b"ab"))),
        ("two lengths", Box::new(whole(&[("content-length", "2"), ("content-length", "3")], b"ab"))),
        ("a length that is no number", Box::new(whole(&[("content-length", "+2")], b"ab"))),
        ("connection", Box::new(whole(&[("connection", "close")], b"ab"))),
        ("transfer-encoding", Box::new(whole(&[("transfer-encoding", "chunked")], b"ab"))),
        ("upgrade", Box::new(whole(&[("upgrade", "h2c")], b"ab"))),
        ("upper case", Box::new(whole(&[("X-Upper", "1")], b"ab"))),
        ("a line feed in a value", Box::new(whole(&[("x-a", "a\nb: c")], b"ab"))),
        ("no status", raw(block(&[("x-a", "1")]))),
        ("a status that is none", raw(block(&[(":status", "2000")]))),
        ("two statuses", raw(block(&[(":status", "200"), (":status", "201")]))),
        ("a late pseudo-header", raw(block(&[("x-a", "1"), (":status", "200")]))),
        ("data before a head", Box::new(|stream| frame(DATA, END_STREAM, stream, b"ab"))),
        (
            "a flood of fields",
            Box::new(|stream| {
                let fields = block(&vec![("x-flood", "y".repeat(1000)); 3000]);
                let mut pieces = fields.chunks(16_000).peekable();
                let mut bytes = frame(HEADERS, 0, stream, &block(&[(":status", "200")]));
                while let Some(piece) = pieces.next() {
                    bytes.extend(frame(
                        CONTINUATION,
                        if pieces.peek().is_none() { END_HEADERS | END_STREAM } else { 0 },
                        stream,
                        piece,
                    ));
                }
                bytes
            }),
        ),
    ];
    for (what, answer) in cases {
        let address = frames_origin(answer);
        let gateway = Gateway::start(&format!(
            "[upstreams.app]\nendpoints = [\"{address}\"]\nprotocol = \"h2c\"\ntimeouts = {{ read = \"5s\" }}\n\
             [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n"
        ));
        match Client::connect(gateway.http()).exchange(request("GET", "/", &[], b"")) {
            Ok(answer) => assert_eq!(answer.status, 502, "{what}: {:?} {}", answer.headers, answer.text()),
            // The head was good, and what follows broke off.
            Err(broken) => assert!(matches!(broken, Broken::Truncated(_)), "{what}: {broken:?}"),
        }
        assert!(gateway.rss() < 200 << 20, "{what}");
    }
}

/// Nobody else would tell it: an upstream of HTTP/2 is not asked, and a client of HTTP/2 is told nothing.
#[test]
fn who_waits_for_100_continue_is_answered_where_either_side_speaks_http2() {
    let endpoint = H2Origin::plain();
    let gateway = Gateway::start(&endpoint.everything("protocol = \"h2c\""));
    let mut client = Client::connect(gateway.http());
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    assert!(client.closed_or_answered(SOON), "nobody says 100");
    let answer = client.send("body").response();
    assert_eq!((answer.status, answer.interim.as_slice(), answer.text().as_str()), (200, &[100][..], "body"));
    assert!(endpoint.seen.requests.lock().iter().all(|head| !head.headers.contains_key("expect")));

    let origin = Origin::start("a");
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n";
    let gateway = Gateway::start(&(listener.to_owned() + &everything_to(&[&origin], "")));
    let answer = runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let asked = http::Request::post("http://localhost/").header("expect", "100-continue").body(()).unwrap();
        client.call(asked, &[b"body"]).await.unwrap()
    });
    assert_eq!((answer.status.as_u16(), origin.last().header("expect")), (200, None));
    assert_eq!(origin.last().body, b"body");
}

#[test]
fn a_flood_of_interim_answers_over_http2_is_bounded() {
    let interim = |stream: u32| frame(HEADERS, END_HEADERS, stream, &block(&[(":status", "103"), ("link", "</a.css>")]));
    let last = |stream| [answer_head(stream, END_HEADERS, &[]), frame(DATA, END_STREAM, stream, b"ok")].concat();
    let address = frames_origin(move |stream| [interim(stream).repeat(200_000), last(stream)].concat());
    let gateway = Gateway::start(&format!(
        "[upstreams.app]\nendpoints = [\"{address}\"]\nprotocol = \"h2c\"\nretry = {{ attempts = 1 }}\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n"
    ));
    let before = gateway.rss();
    let answer = get(gateway.http(), "/");
    assert!(matches!(answer.status, 200 | 502), "{}", answer.status);
    assert!(answer.interim.len() <= 16, "{}", answer.interim.len());
    assert!(gateway.rss().saturating_sub(before) < 24 << 20, "{} KiB", gateway.rss().saturating_sub(before) >> 10);
}
