//! gRPC from end to end, and what its clients get from the gateway itself. Upstreams over HTTP/2 and TLS.

use crate::support::h2::{H2Client, H2Origin, answer, grpc};
use crate::support::raw::{get, send};
use crate::support::tls::Authority;
use crate::support::{Gateway, Origin, SOON, eventually, runtime};
use bytes::Bytes;
use std::path::Path;
use std::sync::atomic::Ordering;

const CLEARTEXT: &str = "[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n";

#[test]
fn a_unary_call_keeps_its_trailers() {
    let origin = H2Origin::plain();
    let gateway = Gateway::start(&(CLEARTEXT.to_owned() + &origin.everything("protocol = \"h2c\"")));
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        for _ in 0..5 {
            let answer = client.call(grpc("Unary"), &[b"\0\0\0\0\x02hi"]).await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("application/grpc")));
            assert_eq!(answer.body, b"\0\0\0\0\x02hi");
            assert_eq!((answer.trailer("grpc-status"), answer.trailer("x-count")), (Some("0"), Some("1")));
        }
    });
    let seen = origin.seen.requests.lock();
    assert_eq!(seen[0].headers["te"], "trailers");
    assert_eq!(seen[0].uri.authority().unwrap(), "localhost");
    assert_eq!(origin.seen.connections.load(Ordering::SeqCst), 1, "the connection to the origin is shared");
}

#[test]
fn both_directions_of_a_stream_flow_at_once() {
    let origin = H2Origin::plain();
    let gateway = Gateway::start(&(CLEARTEXT.to_owned() + &origin.everything("protocol = \"h2c\"")));
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let mut sender = client.sender.clone().ready().await.unwrap();
        let (response, mut out) = sender.send_request(grpc("Chat"), false).unwrap();
        let mut response = response.await.unwrap();
        // Each piece is sent only when the one before has come back.
        for n in 0..20_u8 {
            out.send_data(Bytes::from(vec![n; 100]), false).unwrap();
            let mut echoed = Vec::new();
            while echoed.len() < 100 {
                let piece = response.body_mut().data().await.unwrap().unwrap();
                response.body_mut().flow_control().release_capacity(piece.len()).unwrap();
                echoed.extend_from_slice(&piece);
            }
            assert_eq!(echoed, [n; 100]);
        }
        out.send_data(Bytes::new(), true).unwrap();
        let rest = answer(response).await.unwrap();
        assert_eq!((rest.trailer("grpc-status"), rest.trailer("x-count")), (Some("0"), Some("20")));
    });
}

#[test]
fn an_error_of_the_service_comes_as_it_is() {
    let origin = H2Origin::plain();
    let gateway = Gateway::start(&(CLEARTEXT.to_owned() + &origin.everything("protocol = \"h2c\"")));
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let answer = client.call(grpc("Fail"), &[b""]).await.unwrap();
        assert_eq!((answer.header("grpc-status"), answer.header("grpc-message")), (Some("5"), Some("nothing there")));
        assert!(answer.body.is_empty());
    });
}

#[test]
fn a_rejection_of_a_grpc_call_is_a_grpc_status() {
    let (gone, _reserved) = crate::support::raw::refusing_port();
    let toml = format!(
        "{CLEARTEXT}[upstreams.app]\nendpoints = [\"{gone}\"]\n[routes.app]\nmatch = {{ path = \"/test.Echo/{{*rest}}\" }}\nupstream = \"app\"\n"
    );
    let gateway = Gateway::start(&toml);
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let answer = client.call(grpc("Unary"), &[b"call"]).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, Some("14")), "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/grpc"));
        assert_eq!(answer.header("x-gatewright-code"), Some("upstream_connect_failed"));
        assert!(answer.body.is_empty() && answer.trailers.is_none() && answer.header("content-length").is_none());
        let unknown = http::Request::post("http://localhost/other.Service/Call").header("content-type", "application/grpc+proto");
        let answer = client.call(unknown.body(()).unwrap(), &[b"call"]).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, Some("12")));
        let plain = client.get("/nothing").await.unwrap();
        assert_eq!(plain.status, 404);
    });
    let rejected = |code| gateway.metric("gatewright_http_rejections_total", &[("code", code)]);
    eventually("they are counted", SOON, || (rejected("upstream_connect_failed"), rejected("route_not_found")) == (1.0, 2.0));
}

/// Writes what the upstreams of these tests refer to.
fn trust(directory: &Path, authority: &Authority) {
    std::fs::write(directory.join("ca.pem"), &authority.pem).unwrap();
}

#[test]
fn endpoints_are_verified_by_name_and_authority() {
    let authority = Authority::new();
    let origin = H2Origin::secure(&authority.issue(&["orders.internal"]), None);
    let start = |tls: &str| {
        let more = format!(
            "protocol = \"h2\"\ntls = {{ {tls} }}\nhealth = {{ path = \"/\", interval = \"1s\", timeout = \"500ms\" }}\nwhen_all_down = \"try_all\""
        );
        Gateway::try_start_with(&(origin.everything(&more)), |directory| trust(directory, &authority)).unwrap()
    };
    let gateway = start("sni = \"orders.internal\", ca = \"ca.pem\"");
    assert_eq!(send(gateway.http(), "POST", "/", &[], b"over h2").text(), "over h2");
    gateway.wait_healthy(origin.address, true);
    assert!(gateway.status().to_string().contains("\"healthy\":true"));
    // Only the name, only the authority, neither.
    for tls in ["sni = \"other.internal\", ca = \"ca.pem\"", "sni = \"orders.internal\""] {
        let gateway = start(tls);
        let answer = get(gateway.http(), "/");
        assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_connect_failed"), "{tls}");
        gateway.wait_healthy(origin.address, false);
    }
    let gateway = start("sni = \"other.internal\", insecure = true");
    assert_eq!(get(gateway.http(), "/").status, 200);
    gateway.wait_healthy(origin.address, true);
}

#[test]
fn a_reload_that_trusts_another_authority_uses_no_old_connection() {
    let (authority, other) = (Authority::new(), Authority::new());
    let origin = H2Origin::secure(&authority.issue(&["orders.internal"]), None);
    let toml = |ca: &str| origin.everything(&format!("protocol = \"h2\"\ntls = {{ sni = \"orders.internal\", ca = \"{ca}\" }}"));
    let gateway = Gateway::try_start_with(&toml("ca.pem"), |directory| {
        trust(directory, &authority);
        std::fs::write(directory.join("other.pem"), &other.pem).unwrap();
    })
    .unwrap();
    assert_eq!(get(gateway.http(), "/").status, 200);
    gateway.reload_with(&toml("other.pem")).unwrap();
    assert_eq!(get(gateway.http(), "/").status, 502, "a pooled connection was made by other rules");
    gateway.reload_with(&toml("ca.pem")).unwrap();
    assert_eq!(get(gateway.http(), "/").status, 200);
}

#[test]
fn endpoints_can_ask_for_the_gateways_certificate() {
    let authority = Authority::new();
    let clients = Authority::new();
    let origin = H2Origin::secure(&authority.issue(&["orders.internal"]), Some(clients.roots()));
    let start = |own: &str| {
        let more = format!("protocol = \"auto\"\ntls = {{ sni = \"orders.internal\", ca = \"ca.pem\"{own} }}");
        Gateway::try_start_with(&origin.everything(&more), |directory| {
            trust(directory, &authority);
            clients.client("gateway").write(directory, "own");
        })
        .unwrap()
    };
    assert_eq!(get(start(", cert = \"own.pem\", key = \"own.key\"").http(), "/").status, 200);
    assert_eq!(get(start("").http(), "/").status, 502);
}

#[test]
fn http1_and_http2_clients_reach_http1_origins() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&(CLEARTEXT.to_owned() + &crate::support::everything_to(&[&origin], "protocol = \"http1\"")));
    assert_eq!(get(gateway.http(), "/").status, 200);
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        // A connection is back in the pool a moment after its answer is: on a busy machine the next request may find none and
        // open one, so that the best of a few rounds counts. Without a pool each request of each round opens one.
        let mut opened = Vec::new();
        while !opened.iter().any(|opened| *opened <= 4) {
            let before = origin.connections();
            for _ in 0..20 {
                assert_eq!(client.get("/").await.unwrap().status, 200);
            }
            opened.push(origin.connections() - before);
            assert!(opened.len() < 10, "connections for 20 requests in turn, by round: {opened:?}");
        }
    });
}

/// A call as a browser makes it.
fn web(method: &str) -> Vec<u8> {
    let headers = [("content-type", "application/grpc-web+proto"), ("x-grpc-web", "1")];
    crate::support::raw::request("POST", &format!("/test.Echo/{method}"), &headers, b"\0\0\0\0\x02hi")
}

#[test]
fn grpc_web_reaches_a_grpc_service_and_gets_its_trailers_in_the_body() {
    let origin = H2Origin::plain();
    let gateway = Gateway::start(&(CLEARTEXT.to_owned() + &origin.everything("protocol = \"h2c\"")));
    let mut client = crate::support::raw::Client::connect(gateway.http());
    for _ in 0..2 {
        let answer = client.exchange(web("Unary")).unwrap();
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/grpc-web")));
        let (message, trailers) = answer.body.split_at(7);
        assert_eq!(message, b"\0\0\0\0\x02hi");
        assert_eq!(trailers[0], 0x80);
        let length = u32::from_be_bytes(trailers[1..5].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), trailers.len() - 5);
        let text = String::from_utf8(trailers[5..].to_vec()).unwrap();
        assert!(text.contains("grpc-status:0\r\n") && text.contains("x-count:1\r\n"), "{text}");
    }
    let answer = client.exchange(web("Fail")).unwrap();
    assert_eq!((answer.header("grpc-status"), answer.header("grpc-message")), (Some("5"), Some("nothing there")));
    let seen = origin.seen.requests.lock();
    assert_eq!(
        (&seen[0].headers["content-type"], &seen[0].headers["te"]),
        (&"application/grpc+proto".parse().unwrap(), &"trailers".parse().unwrap())
    );
}

#[test]
fn a_rejection_of_a_grpc_web_call_is_a_status_that_its_client_reads() {
    let (gone, _reserved) = crate::support::raw::refusing_port();
    let toml = format!(
        "[upstreams.app]\nendpoints = [\"{gone}\"]\nprotocol = \"h2c\"\n[routes.app]\nmatch = {{ path = \"/test.Echo/{{*rest}}\" }}\nupstream = \"app\"\n"
    );
    let gateway = Gateway::start(&toml);
    let answer = crate::support::raw::Client::connect(gateway.http()).exchange(web("Unary"));
    // Its header ends with the connection: there is no body.
    let text = match answer {
        Ok(answer) => format!("{:?}", answer.headers),
        Err(broken) => broken.to_string(),
    };
    assert!(text.contains("application/grpc-web") && text.contains("grpc-status") && text.contains("14"), "{text}");
}
