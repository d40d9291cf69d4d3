//! Requests that are not HTTP, or could be read in two ways: 400, the connection closed, nothing forwarded.

use crate::support::corpus::rows;
use crate::support::raw::{Client, get};
use crate::support::{Gateway, Origin, everything_to};

#[test]
fn malformed_request_is_400_closes_and_reaches_no_origin() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let cases = [
        ("length and chunks", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("two lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"),
        ("length that is no number", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\na"),
        ("unknown coding", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        ("chunks on 1.0", "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("bare line feeds", "GET / HTTP/1.1\nhost: a\n\n"),
        ("folded header", "GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\r\n folded\r\n\r\n"),
        ("space before the colon", "GET / HTTP/1.1\r\nhost: a\r\nx-a : 1\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\nx-a: 1\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
        ("host that is none", "GET / HTTP/1.1\r\nhost: a b\r\n\r\n"),
        ("control byte in a header", "GET / HTTP/1.1\r\nhost: a\r\nx-a: \u{1}\r\n\r\n"),
        ("nul in a header", "GET / HTTP/1.1\r\nhost: a\r\nx-a: \0\r\n\r\n"),
        ("space in the target", "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("nul in the path", "GET /%00 HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("not HTTP at all", "\u{16}\u{3}\u{1}\u{2}\r\n\r\n"),
    ];
    for (what, bytes) in cases {
        let mut client = Client::connect(gateway.http());
        let answer = client.send(format!("{bytes}{smuggled}")).response();
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        assert!(!answer.keep_alive, "{what}: the connection stays open");
        let rest = client.read_until_closed();
        assert!(rest.is_empty(), "{what}: another answer follows: {:?}", String::from_utf8_lossy(&rest));
    }
    assert_eq!(origin.count(), 0, "{:?}", origin.requests());
    assert_eq!(get(gateway.http(), "/").status, 200);
}

#[test]
fn malformed_requests_are_counted_by_reason() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let counted = || {
        let metrics = gateway.metrics();
        let by_reason = metrics.samples.iter().filter(|s| s.name == "gatewright_listener_malformed_requests_total");
        by_reason.map(|s| (s.labels["reason"].clone(), s.value)).filter(|(_, value)| *value > 0.0).collect::<Vec<_>>()
    };
    assert_eq!(counted(), []);
    for bytes in ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nhost: a\r\nx-a : 1\r\n\r\n"] {
        assert_eq!(Client::connect(gateway.http()).send(bytes).response().status, 400);
    }
    let counted = counted();
    assert_eq!(counted.iter().map(|(_, value)| value).sum::<f64>(), 2.0, "{counted:?}");
    assert_eq!(counted.len(), 2, "one reason for two faults: {counted:?}");
}

/// What is refused of a path has a reason of its own, in the metric and in the access log.
#[test]
fn refused_paths_are_counted_by_reason() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let cases = [
        ("/a%2fb", "path_encoded_slash"),
        ("/a%00", "path_encoded_nul"),
        ("/a;b=c", "path_parameters"),
        ("/..;/b", "path_parameters"),
        ("/../b", "path_above_root"),
        ("/a//../b", "path_ambiguous_dot_segment"),
        ("/%252f", "path_double_encoding"),
        ("/%c0%ae", "path_invalid_utf8"),
        ("/%zz", "path_malformed_escape"),
    ];
    for (path, reason) in cases {
        let labels = [("listener", "http"), ("reason", reason)];
        let before = gateway.metric("gatewright_listener_malformed_requests_total", &labels);
        let answer = get(gateway.http(), path);
        assert_eq!((answer.status, answer.keep_alive), (400, false), "{path}");
        assert_eq!(gateway.metric("gatewright_listener_malformed_requests_total", &labels), before + 1.0, "{path}");
        let line = gateway.logged(path, |line| line["path"] == path);
        assert_eq!((&line["rejection"], &line["error"]), (&"path_invalid".into(), &reason.into()), "{line}");
    }
    assert_eq!(origin.count(), 0);
}

/// A listener may let encoded slashes and parameters pass; what they could disguise stays refused, and rewrites keep them.
#[test]
fn a_listener_may_allow_encoded_slashes_and_parameters() {
    let origin = Origin::start("a");
    let toml = format!(
        "[listeners.http]\naddress = \"127.0.0.1:0\"\nallow_encoded_slash = true\nallow_path_parameters = true\n\
         [listeners.strict]\naddress = \"127.0.0.1:0\"\n{}\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n\
         [routes.projects]\nmatch = {{ path = \"/api/projects/{{name}}\" }}\nupstream = \"app\"\n\
         filters = [{{ rewrite = {{ strip_prefix = \"/api\" }} }}, {{ request_headers = {{ set = {{ x-name = \"${{path.name}}\" }} }} }}]\n\
         [routes.exact]\nmatch = {{ path = \"/one%2Ftwo;x\" }}\nfilters = [{{ respond = {{ status = 204 }} }}]\n",
        crate::support::upstream("app", &[&origin], "")
    );
    let gateway = Gateway::start(&toml);
    let arrives = |path: &str| {
        let answer = get(gateway.http(), path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        origin.last()
    };
    assert_eq!(arrives("/map;zoom=3/a%2fb;c").request_line(), "GET /map;zoom=3/a%2Fb;c HTTP/1.1");
    let project = arrives("/api/projects/group%2fname;v=1");
    assert_eq!(project.request_line(), "GET /projects/group%2Fname;v=1 HTTP/1.1");
    assert_eq!(project.header("x-name").as_deref(), Some("group%2Fname;v=1"));
    assert_eq!(get(gateway.http(), "/one%2ftwo;x").status, 204);
    let before = origin.count();
    for path in ["/a/..;/b", "/a/..%2fb", "/a/..%3bx/b", "/a%2f../b", "/a/%2e%2e;x", "/a%5cb", "/a%252fb"] {
        assert_eq!(get(gateway.http(), path).status, 400, "{path}");
    }
    for path in ["/a%2fb", "/a;b", "/one%2ftwo;x"] {
        assert_eq!(get(gateway.address("strict"), path).status, 400, "{path}");
    }
    assert_eq!(origin.count(), before);
}

#[test]
fn no_head_of_the_corpus_reaches_an_origin() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let cases: Vec<_> = rows::<2>(include_str!("../corpus/http1/malformed.txt")).collect();
    assert!(cases.len() >= 300, "{}", cases.len());
    for ([name, _], mut bytes) in cases {
        // What a reader that stops elsewhere would take for the next request.
        bytes.extend(b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
        let mut client = Client::connect(gateway.http());
        let answers = client.send(&bytes).read_until_closed();
        let answers = String::from_utf8_lossy(&answers);
        assert!(
            answers.is_empty() || answers.starts_with("HTTP/1.1 4") || answers.starts_with("HTTP/1.1 5"),
            "{}: {answers}",
            name
        );
        assert_eq!(
            answers.matches("HTTP/1.1 4").count() + answers.matches("HTTP/1.1 505 ").count(),
            usize::from(!answers.is_empty()),
            "{}: {answers}",
            name
        );
    }
    assert_eq!(origin.count(), 0, "{:?}", origin.requests());
}

#[test]
fn chunks_that_two_readers_could_end_apart_complete_no_request() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let cases = [
        "\r\n",
        "x\r\n",
        "-1\r\nhello\r\n",
        "+5\r\nhello\r\n",
        " 5\r\nhello\r\n",
        "5 \r\nhello\r\n",
        "\t5\r\nhello\r\n",
        "5\t\r\nhello\r\n",
        "0x5\r\nhello\r\n",
        "5h\r\nhello\r\n",
        "5\nhello\r\n",
        "5\r\nhello\n",
        "5\r\nhello",
        "5\r\nhelloX\r\n",
        "5\r\nhell\r\n",
        "5\rhello\r\n",
        "5\r\r\nhello\r\n",
        "5,5\r\nhello\r\n",
        "5_0\r\nhello\r\n",
        "fffffffffffffffff\r\nhello\r\n",
        "10000000000000000\r\nhello\r\n",
        "ffffffffffffffff\r\nhello\r\n",
        "8000000000000000\r\nhello\r\n",
        "7fffffffffffffff\r\nhello\r\n",
        "100000005\r\nhello\r\n",
        "00000000000000000000000000000000005\r\nhello\r\n",
        "5\0\r\nhello\r\n",
        "5;\nx\r\nhello\r\n",
        "5;a\rb\r\nhello\r\n",
        "5;a\nb\r\nhello\r\n",
        "5;a\0b\r\nhello\r\n",
        "\u{665}\r\nhello\r\n",
        "5\u{a0}\r\nhello\r\n",
        "5 5\r\nhello\r\n",
        "5=a\r\nhello\r\n",
        "5:\r\nhello\r\n",
        "'5'\r\nhello\r\n",
        "\"5\"\r\nhello\r\n",
        "5.0\r\nhello\r\n",
        "5e0\r\nhello\r\n",
        "0\n\n",
        "0\r\n\n",
        "0\r\nx-trailer : 1\r\n\r\n",
        "0\r\nx-trailer\r\n\r\n",
        "0\r\n x: 1\r\n\r\n",
        "0\r\nx: 1\n\r\n",
        "00x\r\n\r\n",
        "0 \r\n\r\n",
        "-0\r\n\r\n",
        "+0\r\n\r\n",
    ];
    let mut complete = Vec::new();
    for (number, chunks) in cases.iter().enumerate() {
        let head = format!("POST /chunk/{number} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
        let end =
            if chunks.starts_with(['0', '-', '+']) && chunks.len() < 30 && !chunks.contains("hello") { "" } else { "0\r\n\r\n" };
        let mut client = Client::connect(gateway.http()).timeout(std::time::Duration::from_secs(1));
        let answers = client.send(format!("{head}{chunks}{end}{smuggled}")).read();
        if answers.is_ok_and(|answer| answer.status == 200) {
            complete.push(format!("{chunks:?}"));
        }
    }
    let smuggled: Vec<_> = origin.requests().iter().map(|r| r.request_line()).filter(|line| line.contains("smuggled")).collect();
    assert!(smuggled.is_empty() && complete.is_empty(), "complete: {complete:#?}\nsmuggled: {smuggled:?}");
}
