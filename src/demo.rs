//! Three small origins inside the process, and the `curl` lines to try a gateway on them: what `gatewright demo` shows.
//!
//! They exist so that the first minute with the gateway needs no other software; for the same reason they issue tokens to
//! whoever asks. They listen on loopback only and are no part of what runs in production.

mod issuer;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fmt::Write;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// The config of the demo, as committed.
pub const QUICKSTART: &str = include_str!("../conf/quickstart.toml");

/// Where [`QUICKSTART`] expects the origins.
pub const ADDRESSES: [SocketAddr; 3] = [loopback(9101), loopback(9102), loopback(9103)];
/// Where its gateway and its admin listener are.
pub const GATEWAY: SocketAddr = loopback(8080);
pub const ADMIN: SocketAddr = loopback(9901);

/// [`QUICKSTART`] with other addresses than the usual ones.
pub fn quickstart(gateway: SocketAddr, admin: SocketAddr, origins: &[DemoOrigin]) -> String {
    let usual = ADDRESSES.into_iter().chain([GATEWAY, ADMIN]);
    let given = origins.iter().map(|origin| origin.addr).chain([gateway, admin]);
    usual.zip(given).fold(QUICKSTART.to_owned(), |text, (usual, given)| text.replace(&usual.to_string(), &given.to_string()))
}

/// The longest wait that `/slow` grants.
const SLOW_MAX: Duration = Duration::from_secs(60);

/// The pause after a failed `accept`: out of file descriptors, it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

/// One running origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoOrigin {
    /// `a`, `b`, `c`, ...
    pub name: &'static str,
    pub addr: SocketAddr,
}

/// Starts an origin on each address, named a, b and c in this order (at most three); port 0 lets the kernel pick one. They
/// run until the runtime ends.
///
/// # Errors
/// The first address that cannot be bound; the text names it. Origins that were started before it are not stopped.
pub async fn start_origins(addresses: &[SocketAddr]) -> io::Result<Vec<DemoOrigin>> {
    let mut origins = Vec::with_capacity(addresses.len());
    for (name, address) in ["a", "b", "c"].into_iter().zip(addresses) {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("demo origin {name} on {address}: {error}")))?;
        origins.push(DemoOrigin { name, addr: listener.local_addr()? });
        tokio::spawn(accept(listener, name));
    }
    Ok(origins)
}

async fn accept(listener: TcpListener, name: &'static str) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, name));
            }
            Err(error) => {
                log::warn!("demo origin {name}: accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, name: &'static str) {
    let service = service_fn(move |request| async move { Ok::<_, Infallible>(answer(name, request).await) });
    let mut server = hyper::server::conn::http1::Builder::new();
    // A timer lets hyper enforce its default 30 s for a request head.
    server.timer(TokioTimer::new());
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        log::debug!("demo origin {name}: {error}");
    }
}

type Answer = Response<Either<Full<Bytes>, Incoming>>;

async fn answer(name: &'static str, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    if path == "/health" {
        return json(StatusCode::OK, format!("{{\"origin\":\"{name}\",\"status\":\"ok\"}}\n"));
    }
    if path == "/echo" && request.method() == Method::POST {
        let mut answer = Response::new(Either::Right(request.into_body()));
        answer.headers_mut().insert("x-origin", HeaderValue::from_static(name));
        return answer;
    }
    match path.as_str() {
        "/jwks.json" => return json(StatusCode::OK, issuer::jwks()),
        "/token" => return text(StatusCode::OK, issuer::token()),
        _ => {}
    }
    if path == "/slow" {
        tokio::time::sleep(slow_for(request.uri().query().unwrap_or_default())).await;
    }
    let status = path.strip_prefix("/status/").and_then(|code| code.parse::<u16>().ok());
    let status = status.filter(|code| (200..600).contains(code)).and_then(|code| StatusCode::from_u16(code).ok());
    json(status.unwrap_or(StatusCode::OK), document(name, &request))
}

/// `ms=N` of a query, 1000 by default, bounded by [`SLOW_MAX`].
fn slow_for(query: &str) -> Duration {
    let millis = query.split('&').find_map(|pair| pair.strip_prefix("ms=")).and_then(|n| n.parse().ok()).unwrap_or(1000);
    Duration::from_millis(millis).min(SLOW_MAX)
}

/// Which origin answers, and the request as it arrived there.
fn document(name: &str, request: &Request<Incoming>) -> String {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let document = serde_json::json!({
        "origin": name,
        "method": request.method().as_str(),
        "target": target,
        "headers": headers(request.headers()),
    });
    // `{:#}` indents: people read this.
    format!("{document:#}\n")
}

/// Header fields as they came; a repeated one is an array.
fn headers(map: &HeaderMap) -> serde_json::Map<String, serde_json::Value> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    map.keys()
        .map(|name| {
            let mut values: Vec<_> = map.get_all(name).iter().map(|value| serde_json::Value::String(text(value))).collect();
            let value = if values.len() == 1 { values.pop() } else { None };
            (name.as_str().to_owned(), value.unwrap_or(serde_json::Value::Array(values)))
        })
        .collect()
}

fn json(status: StatusCode, body: String) -> Answer {
    typed(status, "application/json", body)
}

fn text(status: StatusCode, body: String) -> Answer {
    typed(status, "text/plain", body)
}

fn typed(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(Bytes::from(body))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// What can be tried on [`QUICKSTART`]: a line of explanation and a line to paste. `GATEWAY`, `ADMIN` and `ISSUER` stand for
/// addresses.
const TRY: &[(&str, &str)] = &[
    (
        "A route over three origins, in turn: call it a few times and watch `origin` (c has twice the weight)",
        "curl -s http://GATEWAY/",
    ),
    (
        "What the origin sees: request id, X-Forwarded-For, Via, and the prefix /api stripped",
        "curl -s 'http://GATEWAY/api/orders?page=2'",
    ),
    ("A body there and back", "curl -s -d 'hello' http://GATEWAY/echo"),
    ("An answer that the gateway makes itself", "curl -si http://GATEWAY/hello"),
    ("A key: without it a 401 that asks for one", "curl -si http://GATEWAY/private/orders"),
    (
        "With it, the consumer and its roles are told to the origin, and the key is not",
        "curl -si -H 'x-api-key: demo-key' http://GATEWAY/private/orders",
    ),
    (
        "A token of an issuer, whose keys are fetched from a URL",
        "curl -si -H \"authorization: Bearer $(curl -s http://ISSUER/token)\" http://GATEWAY/signed-in/orders",
    ),
    (
        "A limit: three at once, then 429 with Retry-After",
        "for n in 1 2 3 4 5; do curl -s -o /dev/null -w '%{http_code} ' http://GATEWAY/limited; done; echo",
    ),
    ("Whom limits refuse most", "curl -s http://ADMIN/limits/top"),
    ("A cache: the second time Cache-Status says hit", "curl -si http://GATEWAY/cached/prices"),
    ("And it can be told to forget", "curl -s -X POST 'http://ADMIN/purge?all'"),
    ("A redirect", "curl -si http://GATEWAY/old/page"),
    ("No route: RFC 9457 problem+json with the request id", "curl -si http://GATEWAY/nowhere"),
    ("A known path, another method: 405 with Allow", "curl -si -X DELETE http://GATEWAY/echo"),
    ("An answer that takes too long: 504 after two seconds", "curl -si 'http://GATEWAY/slow?ms=5000'"),
    ("Health of the gateway and of each endpoint", "curl -s http://GATEWAY/healthz"),
    ("The same for operators: routes, endpoints, last reload", "curl -s http://ADMIN/status"),
    ("Metrics for Prometheus", "curl -s http://ADMIN/metrics"),
    (
        "Load the config anew, all or nothing: here it is built in, `gatewright run -c FILE` reads yours",
        "curl -s -X POST http://ADMIN/reload",
    ),
];

/// Ready-to-paste `curl` lines for a gateway on `gateway` that runs [`QUICKSTART`], and its admin listener on `admin`.
pub fn curl_lines(gateway: SocketAddr, admin: SocketAddr, origins: &[DemoOrigin]) -> String {
    let mut text = format!("Gateway on http://{gateway}, admin on http://{admin}, origins");
    for origin in origins {
        // Writing to a `String` cannot fail.
        let _ = write!(text, " {}={}", origin.name, origin.addr);
    }
    text.push_str(". Stop with Ctrl-C.\n");
    let issuer = origins.first().map(|origin| origin.addr.to_string()).unwrap_or_default();
    for (what, line) in TRY {
        let line = line.replace("GATEWAY", &gateway.to_string()).replace("ADMIN", &admin.to_string()).replace("ISSUER", &issuer);
        let _ = write!(text, "\n# {what}\n{line}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn exchange(origin: &DemoOrigin, request: &str) -> String {
        let mut stream = TcpStream::connect(origin.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nx-twice: 1\r\nx-twice: 2\r\nconnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn origins_answer_each_under_its_name() {
        let origins = start_origins(&[loopback(0); 3]).await.unwrap();
        for (origin, name) in origins.iter().zip(["a", "b", "c"]) {
            let answer = exchange(origin, &get("/some?q=1")).await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/json"), "{head}");
            assert_eq!((body["origin"].as_str(), body["target"].as_str()), (Some(name), Some("/some?q=1")));
            assert_eq!(body["headers"]["x-twice"], serde_json::json!(["1", "2"]));
            assert!(exchange(origin, &get("/health")).await.contains("\"status\":\"ok\""));
            assert!(exchange(origin, &get("/status/503")).await.starts_with("HTTP/1.1 503"));
            assert!(exchange(origin, &get("/status/9")).await.starts_with("HTTP/1.1 200"));
        }
        let post = "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
        assert!(exchange(&origins[0], post).await.ends_with("\r\n\r\nhello"));
    }

    #[tokio::test]
    async fn taken_port_is_named() {
        let origins = start_origins(&[loopback(0)]).await.unwrap();
        let error = start_origins(&[origins[0].addr]).await.unwrap_err();
        assert!(error.to_string().contains(&format!("demo origin a on {}", origins[0].addr)), "{error}");
    }

    #[test]
    fn slow_is_bounded() {
        assert_eq!(slow_for("a=1&ms=250"), Duration::from_millis(250));
        assert_eq!((slow_for(""), slow_for("ms=99999999999")), (Duration::from_secs(1), SLOW_MAX));
    }

    #[test]
    fn quickstart_names_the_addresses_that_the_demo_listens_on() {
        for address in ADDRESSES.into_iter().chain([GATEWAY, ADMIN]) {
            assert!(QUICKSTART.contains(&address.to_string()), "{address}");
        }
        let origins = ["a", "b", "c"].map(|name| DemoOrigin { name, addr: loopback(1) });
        let elsewhere = quickstart(loopback(2), loopback(3), &origins);
        assert!(
            !ADDRESSES.iter().chain([&GATEWAY, &ADMIN]).any(|address| elsewhere.contains(&address.to_string())),
            "{elsewhere}"
        );
    }

    #[test]
    fn curl_lines_have_no_blanks_left() {
        let origins = [DemoOrigin { name: "a", addr: ADDRESSES[0] }];
        let lines = curl_lines(GATEWAY, ADMIN, &origins);
        assert!(lines.contains("a=127.0.0.1:9101") && lines.contains("curl -s http://127.0.0.1:8080/\n"), "{lines}");
        assert!(["GATEWAY", "ADMIN", "ISSUER"].iter().all(|blank| !lines.contains(blank)), "{lines}");
    }
}
