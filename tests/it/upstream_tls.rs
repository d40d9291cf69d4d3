//! Endpoints of HTTP/1.1 behind TLS: requests, health checks and upgrades, whatever the handshake settles.

use crate::support::raw::{request, send};
use crate::support::tls::Authority;
use crate::support::{Answer, Gateway, Origin, SOON, eventually, runtime};
use rustls::ServerConfig;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// Ends TLS in front of `origin`.
pub fn behind_tls(origin: SocketAddr, config: ServerConfig) -> SocketAddr {
    let listener = runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    runtime().spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(socket).await else { return };
                let Ok(mut plain) = tokio::net::TcpStream::connect(origin).await else { return };
                // Either end may go at any time.
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut plain).await;
            });
        }
    });
    address
}

#[test]
fn an_endpoint_of_http1_behind_tls_is_reached_whatever_it_negotiates() {
    let authority = Authority::new();
    let pair = authority.issue(&["orders.internal"]);
    for alpn in [&[][..], &[b"http/1.1".to_vec()]] {
        let origin = Origin::start("a");
        let mut config = (*pair.server()).clone();
        config.alpn_protocols = alpn.to_vec();
        let address = behind_tls(origin.address(), config);
        for protocol in ["http1", "auto"] {
            let toml = format!(
                "[upstreams.app]\nendpoints = [\"{address}\"]\nprotocol = \"{protocol}\"\n\
                 tls = {{ sni = \"orders.internal\", ca = \"ca.pem\" }}\n\
                 health = {{ path = \"/health\", interval = \"500ms\", timeout = \"450ms\", rise = 1, fall = 3 }}\n\
                 when_all_down = \"try_all\"\n\
                 [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n"
            );
            let write = |directory: &std::path::Path| std::fs::write(directory.join("ca.pem"), &authority.pem).unwrap();
            let gateway = Gateway::try_start_with(&toml, write).unwrap();
            for method in ["POST", "GET", "POST"] {
                assert_eq!(send(gateway.http(), method, "/", &[], b"body").status, 200, "{protocol} {alpn:?}");
            }
            assert_eq!(origin.last().body, b"body");
            upgrade(&gateway, &origin);
            origin.set_healthy(false);
            gateway.wait_healthy(address, false);
            origin.set_healthy(true);
            gateway.wait_healthy(address, true);
        }
    }
}

fn upgrade(gateway: &Gateway, origin: &Origin) {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello";
    origin.answer(Answer::Bytes(switch.into()));
    let mut stream = TcpStream::connect(gateway.http()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let headers = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")];
    stream.write_all(&request("GET", "/chat", &headers, b"")).unwrap();
    let mut all = Vec::new();
    let mut buffer = [0; 1024];
    while !all.ends_with(b"\r\n\r\nhello") {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "ended after {:?}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&buffer[..read]);
    }
    assert!(all.starts_with(b"HTTP/1.1 101 "), "{:?}", String::from_utf8_lossy(&all));
    origin.answer(Answer::Echo);
}

#[test]
fn a_handshake_that_fails_is_tried_at_another_endpoint() {
    let authority = Authority::new();
    let origins = Origin::start_many(2);
    let [wrong, right] = ["other.internal", "orders.internal"].map(|name| authority.issue(&[name]));
    let addresses: Vec<_> =
        origins.iter().zip([wrong, right]).map(|(origin, pair)| behind_tls(origin.address(), (*pair.server()).clone())).collect();
    let toml = format!(
        "[upstreams.app]\nendpoints = [\"{}\", \"{}\"]\ntls = {{ sni = \"orders.internal\", ca = \"ca.pem\" }}\n\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n",
        addresses[0], addresses[1]
    );
    let write = |directory: &std::path::Path| std::fs::write(directory.join("ca.pem"), &authority.pem).unwrap();
    let gateway = Gateway::try_start_with(&toml, write).unwrap();
    // Nothing has been sent when it fails, so that a POST may go elsewhere too.
    for method in ["POST", "GET", "POST", "GET"] {
        assert_eq!(send(gateway.http(), method, "/", &[], b"body").status, 200);
    }
    assert_eq!((origins[0].count(), origins[1].count()), (0, 4));
    let failures = [("upstream", "app")];
    eventually("they are counted", SOON, || gateway.metric("gatewright_upstream_connect_failures_total", &failures) >= 1.0);
}

/// Without the end of the session nobody knows that nothing was cut off (RFC 8446 §6.1).
#[test]
fn an_answer_that_ends_with_the_connection_needs_the_end_of_the_session() {
    let authority = Authority::new();
    let pair = authority.issue(&["orders.internal"]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, config) = (listener.local_addr().unwrap(), pair.server());
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(session, socket);
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    head.push(byte[0]);
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello");
                if head.starts_with(b"GET /whole") {
                    stream.conn.send_close_notify();
                }
                let _ = stream.flush();
            });
        }
    });
    let toml = format!(
        "[upstreams.app]\nendpoints = [\"{address}\"]\ntls = {{ sni = \"orders.internal\", ca = \"ca.pem\" }}\n\
         retry = {{ attempts = 1 }}\ntimeouts = {{ connect = \"10s\" }}\n[routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n"
    );
    let write = |directory: &std::path::Path| std::fs::write(directory.join("ca.pem"), &authority.pem).unwrap();
    let gateway = Gateway::try_start_with(&toml, write).unwrap();
    for version in ["1.1", "1.0"] {
        let get = |path: &str| {
            let asked = format!("GET {path} HTTP/{version}\r\nhost: a\r\n\r\n");
            crate::support::raw::Client::connect(gateway.http()).exchange(asked)
        };
        assert_eq!(get("/whole").unwrap().text(), "hello", "{version}");
        let cut = get("/cut");
        assert!(cut.is_err(), "{version}: {cut:?}");
    }
}
