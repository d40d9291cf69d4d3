//! What the gateway adds to, takes from and believes of the headers on both sides.

use crate::support::raw::{Client, request, reserved_port, send};
use crate::support::{Answer, Gateway, Origin, everything_to};

fn trusting(origin: &Origin) -> String {
    "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n".to_owned() + &everything_to(&[origin], "")
}

#[test]
fn hop_by_hop_headers_stay_on_their_hop() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let sent = [
        ("connection", "keep-alive, hop-note"),
        ("hop-note", "1"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers, deflate"),
        ("proxy-connection", "keep-alive"),
        ("x-end", "1"),
    ];
    assert_eq!(send(gateway.http(), "GET", "/", &sent, b"").status, 200);
    let request = origin.last();
    for gone in ["hop-note", "keep-alive", "proxy-connection"] {
        assert_eq!(request.header(gone), None, "{gone} reached the origin");
    }
    assert!(!request.header_all("connection").join(",").contains("hop-note"));
    assert_eq!(request.header("x-end").as_deref(), Some("1"));

    let back =
        b"HTTP/1.1 200 OK\r\nconnection: x-back\r\nx-back: 1\r\nkeep-alive: timeout=9\r\nx-end: 1\r\ncontent-length: 2\r\n\r\nok";
    origin.answer(Answer::Bytes(back.to_vec()));
    let response = send(gateway.http(), "GET", "/", &[], b"");
    assert_eq!((response.text().as_str(), response.header("x-end")), ("ok", Some("1")));
    assert_eq!((response.header("x-back"), response.header("keep-alive")), (None, None));
}

#[test]
fn requests_go_through_filters_in_order_and_responses_in_reverse() {
    let origin = Origin::start("a");
    let add = |what: &str, value: &str| format!("{{ {what} = {{ add = {{ x-order = \"{value}\" }} }} }}");
    let list = ["request_headers", "response_headers"].map(|what| ["1", "2", "3"].map(|value| add(what, value)).join(", "));
    let gateway = Gateway::start(&(everything_to(&[&origin], "") + &format!("filters = [{}]\n", list.join(", "))));
    let response = send(gateway.http(), "GET", "/", &[], b"");
    assert_eq!(origin.last().header_all("x-order"), ["1", "2", "3"]);
    assert_eq!(response.header_all("x-order"), ["3", "2", "1"]);
}

#[test]
fn via_names_the_gateway_both_ways() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&("[server]\nvia = \"edge-1\"\n".to_owned() + &everything_to(&[&origin], "")));
    let response = send(gateway.http(), "GET", "/", &[("via", "1.0 before")], b"");
    assert!(response.header_all("via").join(", ").contains("1.1 edge-1"), "{:?}", response.headers);
    assert_eq!(origin.last().header_all("via").join(", "), "1.0 before, 1.1 edge-1");
}

/// RFC 9110 §7.6.2.
#[test]
fn the_gateway_at_which_max_forwards_ends_answers_by_itself() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let asked = |method: &str, hops: &str| send(gateway.http(), method, "/", &[("max-forwards", hops)], b"");
    assert_eq!(asked("OPTIONS", "3").status, 200);
    assert_eq!(origin.last().header("max-forwards").as_deref(), Some("2"));
    assert_eq!(asked("OPTIONS", "few").status, 200);
    assert_eq!(origin.last().header("max-forwards").as_deref(), Some("few"));
    assert_eq!(asked("GET", "0").status, 200);
    assert_eq!(origin.last().header("max-forwards").as_deref(), Some("0"), "it means nothing to other methods");
    let before = origin.count();
    assert_eq!(asked("OPTIONS", "0").status, 204);
    let traced = asked("TRACE", "0");
    assert_eq!((traced.status, traced.header("allow").is_some()), (405, true));
    assert_eq!(origin.count(), before, "one of them went on");
}

#[test]
fn forwarding_headers_of_a_stranger_are_replaced() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let spoofed = [
        ("host", "api.example.com"),
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil.example.com"),
        ("forwarded", "for=203.0.113.9;host=evil.example.com"),
    ];
    assert_eq!(send(gateway.http(), "GET", "/", &spoofed, b"").status, 200);
    let request = origin.last();
    assert_eq!(request.header_all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(request.header_all("x-forwarded-proto"), ["http"]);
    assert_eq!(request.header_all("x-forwarded-host"), ["api.example.com"]);
    assert!(!String::from_utf8_lossy(&request.head).contains("evil"), "{}", String::from_utf8_lossy(&request.head));
    assert!(!String::from_utf8_lossy(&request.head).contains("203.0.113.9"));
    assert_eq!(gateway.logged("it", |line| line["path"] == "/")["client"], "127.0.0.1");
}

#[test]
fn forwarding_headers_of_a_trusted_proxy_are_continued() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&trusting(&origin));
    let chain = [("x-forwarded-for", "198.51.100.1, 203.0.113.9"), ("x-forwarded-proto", "https")];
    assert_eq!(send(gateway.http(), "GET", "/", &chain, b"").status, 200);
    let request = origin.last();
    assert_eq!(request.header_all("x-forwarded-for").join(", "), "198.51.100.1, 203.0.113.9, 127.0.0.1");
    assert_eq!(request.header_all("x-forwarded-proto"), ["https"]);
    // The rightmost hop that is not trusted: what stands left of it is that hop's claim.
    assert_eq!(gateway.logged("it", |line| line["path"] == "/")["client"], "203.0.113.9");
}

#[test]
fn request_id_is_made_unless_a_trusted_peer_sends_a_sane_one() {
    let origin = Origin::start("a");
    let id = |gateway: &Gateway, sent: &str| {
        let response = send(gateway.http(), "GET", "/", &[("x-request-id", sent)], b"");
        let id = response.header("x-request-id").expect("X-Request-Id").to_owned();
        assert_eq!(origin.last().header_all("x-request-id"), [id.as_str()], "the origin was told another");
        id
    };
    let is_uuid7 = |id: &str| id.len() == 36 && id.as_bytes()[14] == b'7';
    let gateway = Gateway::start(&everything_to(&[&origin], ""));
    let made = id(&gateway, "mine");
    assert!(is_uuid7(&made), "{made}");
    assert_eq!(gateway.logged("it", |line| line["request_id"] == made.as_str())["status"], 200);

    let gateway = Gateway::start(&trusting(&origin));
    assert_eq!(id(&gateway, "mine-1"), "mine-1");
    for insane in ["a b", "x\"y", "{}", &"x".repeat(200)] {
        let made = id(&gateway, insane);
        assert!(is_uuid7(&made), "{insane:?} became {made}");
    }
}

#[test]
fn client_cannot_have_headers_of_a_filter_removed() {
    let origin = Origin::start("a");
    let filters = "filters = [{ request_headers = { set = { tenant = \"acme\", caller = \"${client_ip}\" } } }]\n";
    let gateway = Gateway::start(&(everything_to(&[&origin], "") + filters));
    let sent = [("connection", "tenant, caller"), ("tenant", "other"), ("caller", "other")];
    let response = send(gateway.http(), "GET", "/", &sent, b"");
    assert_eq!(response.status, 200, "{}", response.text());
    let request = origin.last();
    assert_eq!(request.header_all("tenant"), ["acme"]);
    assert_eq!(request.header_all("caller"), ["127.0.0.1"]);
    // Names that services decide by may not even be tried.
    for name in ["authorization", "cookie", "x-forwarded-for", "x-request-id"] {
        assert_eq!(send(gateway.http(), "GET", "/", &[("connection", name)], b"").status, 400, "{name}");
    }
    assert_eq!(origin.count(), 1);
}

#[test]
fn response_filters_edit_answers_of_the_origin() {
    let origin = Origin::start("a");
    let filters = "filters = [{ response_headers = { set = { x-id = \"${request_id}\" }, remove = [\"content-type\"] } }]\n";
    let gateway = Gateway::start(&(everything_to(&[&origin], "") + filters));
    let response = Client::connect(gateway.http()).exchange(request("GET", "/", &[], b"")).unwrap();
    assert_eq!((response.header("x-id"), response.header("content-type")), (response.header("x-request-id"), None));
}

#[test]
fn secrets_from_file_environment_and_credential_reach_the_origin_and_no_log() {
    let origin = Origin::start("a");
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), "canary-from-credential\n").unwrap();
    let filters = "filters = [{ request_headers = { set = { x-a = { file = \"secret.txt\" }, x-b = { env = \"UPSTREAM_TOKEN\" }, \
                   x-c = { credential = \"token\" } } } }]\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "canary-from-file").unwrap();
    let filters = filters.replace("secret.txt", file.path().to_str().unwrap());
    let environment =
        [("UPSTREAM_TOKEN", "canary-from-environment"), ("CREDENTIALS_DIRECTORY", directory.path().to_str().unwrap())];
    let gateway = Gateway::start_with_environment(&(everything_to(&[&origin], "") + &filters), &environment);
    assert_eq!(send(gateway.http(), "GET", "/", &[], b"").status, 200);
    let request = origin.last();
    assert_eq!(request.header("x-a").as_deref(), Some("canary-from-file"));
    assert_eq!(request.header("x-b").as_deref(), Some("canary-from-environment"));
    assert_eq!(request.header("x-c").as_deref(), Some("canary-from-credential"));
    gateway.logged("the request", |line| line["status"] == 200);
    let said = format!("{:?}{}{}", gateway.access_log(), gateway.stderr(), gateway.status());
    assert!(!said.contains("canary"), "{said}");
}

#[test]
fn both_families_of_forwarding_headers_are_written_on_request() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&("[server]\nforwarded = \"both\"\n".to_owned() + &everything_to(&[&origin], "")));
    assert_eq!(send(gateway.http(), "GET", "/", &[("forwarded", "for=6.6.6.6")], b"").status, 200);
    let request = origin.last();
    assert_eq!(request.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    let forwarded = request.header("forwarded").unwrap();
    assert!(forwarded.starts_with("for=127.0.0.1;host=") && forwarded.ends_with(";proto=http"), "{forwarded}");
}

#[test]
fn names_of_headers_keep_their_spelling_only_where_the_operator_asks_for_it() {
    let origin = Origin::start("a");
    let toml = everything_to(&[&origin], "");
    let has = |head: &[u8], line: &str| String::from_utf8_lossy(head).lines().any(|other| other.starts_with(line));
    let back = b"HTTP/1.1 200 OK\r\nX-BACK: 1\r\nContent-Length: 2\r\n\r\nok";
    origin.answer(Answer::Bytes(back.to_vec()));
    for (server, there, returned, ours) in [
        ("", "x-from-client: 1", "x-back: 1", "x-forwarded-for: "),
        ("[server]\nheader_case = \"preserve\"\n", "X-From-CLIENT: 1", "X-BACK: 1", "X-Forwarded-For: "),
    ] {
        let gateway = Gateway::start(&(server.to_owned() + &toml));
        let sent = [("X-From-CLIENT", "1"), ("X-Twice", "1"), ("x-twice", "2"), ("connection", "close")];
        let answer = Client::connect(gateway.http()).send(request("GET", "/", &sent, b"")).read_until_closed();
        let request = origin.last();
        assert!(has(&request.head, there) && has(&request.head, ours), "{}", String::from_utf8_lossy(&request.head));
        assert_eq!(request.header_all("x-twice"), ["1", "2"]);
        assert!(has(&answer, returned), "{}", String::from_utf8_lossy(&answer));
    }
}

#[test]
fn a_request_that_comes_back_again_and_again_is_508() {
    let (address, _reserved) = reserved_port();
    let toml = format!(
        "[listeners.http]\naddress = \"{address}\"\n[upstreams.app]\nendpoints = [\"{address}\"]\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n"
    );
    let gateway = Gateway::start(&toml);
    let answer = send(address, "GET", "/", &[], b"");
    assert_eq!((answer.status, answer.code().as_str()), (508, "loop_detected"));
    // It went round a few times, and not for ever.
    let rounds = gateway.access_log().len();
    assert!(rounds < 50, "{rounds}");
}
