//! One line for each request, and whatever a client sends stays inside its field.

use crate::support::raw::{Client, refusing_port, request, send};
use crate::support::{Gateway, Origin, SOON, eventually, eventually_some, everything_to};

#[test]
fn every_request_has_a_line_also_those_refused() {
    let origin = Origin::start("a");
    let (refusing, _port) = refusing_port();
    let down = format!(
        "[upstreams.down]\nendpoints = [\"{refusing}\"]\n[routes.down]\nmatch = {{ path = \"/down\" }}\nupstream = \"down\"\n"
    );
    let toml = everything_to(&[&origin], "").replace("path = \"/{*rest}\"", "path = \"/up\", methods = [\"POST\"]") + &down;
    let gateway = Gateway::start(&toml);
    let ask = |method, target, body: &str| {
        let response = send(gateway.http(), method, target, &[("user-agent", "test")], body.as_bytes());
        let id = response.header("x-request-id").unwrap().to_owned();
        (response, gateway.logged(target, |line| line["request_id"] == id.as_str()))
    };
    let (response, line) = ask("POST", "/up?secret=1", "hello");
    let expected = serde_json::json!({
        "method": "POST", "host": "localhost", "path": "/up", "route": "all", "upstream": "app", "status": 200, "attempts": 1,
        "endpoint": origin.address().to_string(), "client": "127.0.0.1", "bytes_in": 5, "bytes_out": response.body.len(),
        "listener": "http", "user_agent": "test",
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&line[field], value, "{field} in {line}");
    }
    // Where the time went: a connection was opened for the first attempt, and is used again for the next.
    for field in ["connect_time", "upstream_time"] {
        let seconds = line[field].as_f64().unwrap_or_else(|| panic!("{field} in {line}"));
        assert!(seconds >= 0.0 && seconds <= line["duration"].as_f64().unwrap(), "{field} in {line}");
    }
    assert_eq!(line["reused"], false);
    let again = eventually_some("a request on a kept connection", SOON, || {
        let (_, line) = ask("POST", "/up", "again");
        (line["reused"] == true).then_some(line)
    });
    assert!(again["connect_time"].is_null() && again["upstream_time"].is_number(), "{again}");
    let before = gateway.access_log().len();
    assert!(line["duration"].as_f64().is_some_and(|seconds| seconds > 0.0 && seconds < 10.0), "{line}");
    assert!(!line.to_string().contains("secret"), "the query is logged: {line}");

    for (method, target, status, code) in [
        ("GET", "/nowhere", 404, "route_not_found"),
        ("GET", "/up", 405, "method_not_allowed"),
        ("GET", "/%75p", 405, "method_not_allowed"),
        ("GET", "/down", 502, "upstream_connect_failed"),
    ] {
        let (_, line) = ask(method, target, "");
        assert_eq!((line["status"].as_u64(), line["rejection"].as_str()), (Some(status), Some(code)), "{line}");
        // In its canonical form: that is what routes, filters and the upstream go by.
        assert_eq!(line["path"], target.replace("%75", "u"));
    }
    eventually("four lines more", SOON, || gateway.access_log().len() == before + 4);
}

#[test]
fn no_field_can_forge_a_line() {
    let origin = Origin::start("a");
    let trusting = "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n".to_owned();
    let gateway = Gateway::start(&(trusting + &everything_to(&[&origin], "")));
    let forged = "\",\"status\":999,\"x\":\"";
    let raw: Vec<Vec<u8>> = [
        &b"a\xff\xfe\x80b"[..],
        b"quote \" backslash \\ end",
        b"\x1b[31mred",
        b"tab\tand \x7f delete",
        b"\x01\x02\x1f",
        b"{\"status\":999}",
        b"\xe2\x80\xa8 line separator",
        forged.as_bytes(),
        b"a\r\n{\"status\":999}",
        b"a\n{\"status\":999}",
    ]
    .iter()
    .map(|value| value.to_vec())
    .collect();
    let mut sent = 0;
    for value in &raw {
        let places: [(&[u8], &[u8]); 6] = [
            (b"", b" / HTTP/1.1\r\nhost: localhost\r\n\r\n"),
            (b"GET / HTTP/1.1\r\nhost: localhost\r\nx-request-id: ", b"\r\n\r\n"),
            (b"GET / HTTP/1.1\r\nhost: localhost\r\nx-forwarded-for: ", b"\r\n\r\n"),
            (b"GET / HTTP/1.1\r\nhost: localhost\r\nuser-agent: ", b"\r\n\r\n"),
            (b"GET / HTTP/1.1\r\nhost: ", b"\r\n\r\n"),
            (b"GET /", b" HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        ];
        for (before, after) in places {
            let mut client = Client::connect(gateway.http());
            // Refused or not, as it may be: what matters is the log.
            let _ = client.exchange([before, value, after].concat());
            sent += 1;
        }
    }
    for target in ["/%0d%0a%22", "/%00", "/\"}{", "/%ff%fe", "/x%0a{\"status\":999}"] {
        let _ = Client::connect(gateway.http()).exchange(request("GET", target, &[], b""));
        sent += 1;
    }
    assert_eq!(send(gateway.http(), "GET", "/last", &[], b"").status, 200);
    // `access_log` has parsed every line as one JSON document by then.
    gateway.logged("the last", |line| line["path"] == "/last");
    // The line of a request that another worker had may come after it.
    eventually("a line for each request", SOON, || gateway.access_log().len() > sent);
    let lines = gateway.access_log();
    assert_eq!(lines.len(), sent + 1, "one line for each request");
    assert!(lines.iter().all(|line| line["status"] != 999), "{lines:?}");
    for line in &lines {
        for field in
            ["request_id", "client", "method", "host", "path", "user_agent"].iter().filter_map(|name| line[name].as_str())
        {
            assert!(!field.bytes().any(|b| matches!(b, b'\r' | b'\n')), "{field:?}");
        }
    }
}
