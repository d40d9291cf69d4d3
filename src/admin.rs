//! The admin listener: what the gateway says about itself, and the few things it can be told.
//!
//! It runs on the control runtime, apart from the traffic, so that it answers when the gateway is at its limit. It is for
//! the machine itself: a unix socket or a loopback address. A browser on that machine must not be able to reach it, so
//! a `Host` that is not loopback (DNS rebinding) and any `Origin` (cross-site requests) are refused.

pub mod client;
mod drain;
mod limits;
mod metrics;
mod purge;
mod resilience;
mod status;

pub use status::STATUS;

use crate::listener::Listeners;
use crate::proxy::Gateway;
use crate::readiness::Readiness;
use crate::reload::{Outcome, Reloader};
use crate::state::StatePool;
use crate::upgrade::{Door, Refused, Upgrader};
use crate::value::Address;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Paths, methods and meanings of everything that the admin listener answers to. The reference page is made of it.
pub const WAYS: &[(&str, &str, &str)] = &[
    ("/livez", "GET, HEAD", "200 as long as the process answers at all."),
    ("/readyz", "GET, HEAD", "200 while the gateway takes requests, 503 before that and as soon as it is about to leave."),
    ("/status", "GET, HEAD", "What runs now, as JSON; its members are below."),
    ("/metrics", "GET, HEAD", "Everything that is counted, in the text format of Prometheus."),
    ("/jwks", "GET, HEAD", "The public keys of `[identity]` as a JWK set; 404 where the gateway signs nothing."),
    (
        "/limits",
        "GET",
        "How a key stands with the limits of a route: `?route=NAME` and the facts that the route counts by, as `gatewright limit show` sends them.",
    ),
    ("/limits/top", "GET", "The keys that were refused most often; `?count=N` of them, 20 if it is not given."),
    ("/limits/reset", "POST", "Forgets a key, which is named as for `/limits`."),
    (
        "/reload",
        "POST",
        "What `gatewright reload` does: 200 when the configuration is in force, 422 with the report when it is refused, 409 when this process has handed over to another one meanwhile, which is to be asked.",
    ),
    (
        "/upgrade",
        "POST",
        "What `gatewright upgrade` does: 200 with the `pid` of the successor, 422 with the report when it has failed, 409 when this process has handed over already.",
    ),
    ("/drain", "POST", "Takes an endpoint out of use: `?upstream=NAME&endpoint=ADDRESS`."),
    ("/undrain", "POST", "Brings it back."),
    (
        "/purge",
        "POST",
        "Has the cache forget: one of `?url=`, `?prefix=`, `?tag=`, `?route=` and `?all`; with `&soft` the answers become stale instead.",
    ),
];

/// The chapter of the reference page about the admin listener, in Markdown.
pub fn reference() -> String {
    let mut page = String::from(
        "\n## Admin listener\n\nWhat `[admin] listen` answers to. It is for this machine: a `Host` that is not loopback and any `Origin` \
         are refused with 403. The verbs of `gatewright` ask it.\n\n| path | methods | answer |\n|---|---|---|\n",
    );
    for (path, methods, answer) in WAYS {
        page.push_str(&format!("| `{path}` | {methods} | {answer} |\n"));
    }
    page.push_str(
        "\n### `/status`\n\n`[]` stands for each element of a list. What there is nothing to say of is null.\n\n\
         | member | meaning |\n|---|---|\n",
    );
    for (member, meaning) in STATUS {
        page.push_str(&format!("| `{member}` | {meaning} |\n"));
    }
    page
}

/// What the admin listener answers from.
pub struct Admin {
    pub gateway: Gateway,
    pub listeners: Arc<Listeners>,
    pub readiness: Arc<Readiness>,
    pub reloader: Arc<Reloader>,
    pub upgrader: Arc<Upgrader>,
    pub door: Arc<Door>,
    pub state: Arc<StatePool>,
}

/// The admin socket, bound before the server starts so that a failure is told at once.
pub enum AdminSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl AdminSocket {
    /// The socket of the process that this one replaces.
    pub fn inherit(address: &Address, socket: OwnedFd) -> io::Result<AdminSocket> {
        match address {
            Address::Tcp(_) => {
                let socket = std::net::TcpListener::from(socket);
                socket.set_nonblocking(true)?;
                Ok(AdminSocket::Tcp(socket))
            }
            Address::Unix(_) => {
                let socket = std::os::unix::net::UnixListener::from(socket);
                socket.set_nonblocking(true)?;
                Ok(AdminSocket::Unix(socket))
            }
        }
    }
}

/// Binds the admin address. A unix socket is for its owner and group only.
pub fn bind(address: &Address) -> io::Result<AdminSocket> {
    match address {
        Address::Tcp(address) => {
            let socket = std::net::TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(AdminSocket::Tcp(socket))
        }
        Address::Unix(path) => {
            crate::listener::remove_stale(path)?;
            let socket = std::os::unix::net::UnixListener::bind(path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
            socket.set_nonblocking(true)?;
            Ok(AdminSocket::Unix(socket))
        }
    }
}

/// Serves until the runtime ends or the door closes.
pub async fn serve(socket: AdminSocket, admin: Arc<Admin>) -> io::Result<()> {
    let places = Arc::clone(&admin.door.places);
    match socket {
        AdminSocket::Tcp(socket) => {
            let listener = Arc::new(tokio::net::TcpListener::from_std(socket)?);
            admin.door.serves(&listener);
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = admin.door.wait_closed() => return Ok(()),
                };
                match accepted {
                    Ok((stream, _)) => drop(tokio::spawn(connection(stream, Arc::clone(&admin), place))),
                    Err(e) => pause(&e).await,
                }
            }
        }
        AdminSocket::Unix(socket) => {
            let listener = Arc::new(tokio::net::UnixListener::from_std(socket)?);
            admin.door.serves(&listener);
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = admin.door.wait_closed() => return Ok(()),
                };
                match accepted {
                    Ok((stream, _)) => drop(tokio::spawn(connection(stream, Arc::clone(&admin), place))),
                    Err(e) => pause(&e).await,
                }
            }
        }
    }
}

/// Out of file descriptors, accepting again at once would spin.
async fn pause(error: &io::Error) {
    log::warn!("the admin listener cannot accept: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn connection<S, P>(stream: S, admin: Arc<Admin>, _place: P)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let door = Arc::clone(&admin.door);
    let asked = Arc::new(Notify::new());
    let asks = Arc::clone(&asked);
    let service = hyper::service::service_fn(move |request| {
        asks.notify_one();
        let admin = Arc::clone(&admin);
        // By itself: whoever asked may go away, and what was begun, an upgrade above all, must come to its end.
        let answered = tokio::spawn(async move { answer(request, &admin).await });
        async move { Ok::<_, Infallible>(answered.await.unwrap_or_else(|e| failed(&e))) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    let served = tokio::select! {
        served = served.as_mut() => served,
        () = door.wait_closed() => {
            // hyper ends a connection at once that has not asked anything yet: who was let in is answered first.
            let silent = tokio::select! {
                served = served.as_mut() => Some(served),
                () = asked.notified() => None,
            };
            match silent {
                Some(served) => served,
                None => {
                    served.as_mut().graceful_shutdown();
                    served.await
                }
            }
        }
    };
    if let Err(e) = served {
        log::debug!("admin connection: {e}");
    }
}

async fn answer(request: Request<Incoming>, admin: &Admin) -> Response<Full<Bytes>> {
    if let Some(refused) = refuse_browser(request.headers()) {
        return refused;
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/livez") => text(StatusCode::OK, "ok\n"),
        (&Method::GET | &Method::HEAD, "/readyz") => readiness(admin),
        (&Method::GET | &Method::HEAD, "/status") => json(StatusCode::OK, &status::document(admin)),
        (&Method::GET | &Method::HEAD, "/metrics") => {
            let body = metrics::exposition(admin);
            typed(StatusCode::OK, metrics::CONTENT_TYPE, body)
        }
        (&Method::GET | &Method::HEAD, "/jwks") => match &admin.gateway.snapshot().signer {
            Some(signer) => typed(StatusCode::OK, "application/jwk-set+json", signer.jwks().to_owned()),
            None => text(StatusCode::NOT_FOUND, "this gateway signs nothing: [identity] has no key\n"),
        },
        (&Method::POST, "/reload") => reload(admin).await,
        (&Method::POST, "/purge") => purge::answer(request.uri().query().unwrap_or_default(), admin).await,
        (&Method::POST, path @ ("/drain" | "/undrain")) => drain::answer(request.uri().query(), path == "/drain", admin),
        (&Method::POST, "/upgrade") => upgrade(admin).await,
        (&Method::GET, "/limits/top") => json(StatusCode::OK, &limits::top(admin, request.uri().query())),
        (&Method::GET, "/limits") => limit(admin, request.uri().query(), false).await,
        (&Method::POST, "/limits/reset") => limit(admin, request.uri().query(), true).await,
        (_, path) => match WAYS.iter().find(|(known, ..)| *known == path) {
            Some((_, allow, _)) => {
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
                response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allow));
                response
            }
            None => {
                let ways: Vec<_> = WAYS.iter().map(|(path, methods, _)| format!("{methods} {path}")).collect();
                text(StatusCode::NOT_FOUND, format!("not found; there are\n{}\n", ways.join("\n")))
            }
        },
    }
}

fn readiness(admin: &Admin) -> Response<Full<Bytes>> {
    if admin.readiness.is_ready() {
        text(StatusCode::OK, "ready\n")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn limit(admin: &Admin, query: Option<&str>, reset: bool) -> Response<Full<Bytes>> {
    let (code, document) = limits::inspect(admin, query, reset).await;
    json(code, &document)
}

async fn reload(admin: &Admin) -> Response<Full<Bytes>> {
    let outcome = admin.reloader.reload("admin").await;
    let code = match outcome {
        Outcome::Applied { .. } => StatusCode::OK,
        Outcome::Refused { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        Outcome::Gone => StatusCode::CONFLICT,
    };
    json(code, &outcome.document())
}

async fn upgrade(admin: &Admin) -> Response<Full<Bytes>> {
    let us = std::process::id();
    match admin.upgrader.upgrade("admin").await {
        Ok(pid) => json(StatusCode::OK, &json!({ "result": "upgraded", "pid": pid, "previous_pid": us })),
        Err(Refused::Failed(report)) => json(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "result": "failed", "report": report })),
        Err(Refused::Gone) => {
            let report = format!("process {us} has handed over already\n");
            json(StatusCode::CONFLICT, &json!({ "result": "failed", "report": report }))
        }
    }
}

fn failed(error: &tokio::task::JoinError) -> Response<Full<Bytes>> {
    log::error!("the admin listener has no answer: {error}");
    text(StatusCode::INTERNAL_SERVER_ERROR, "there is no answer, the log says why\n")
}

/// `Some` for what only a browser would send.
fn refuse_browser(headers: &HeaderMap) -> Option<Response<Full<Bytes>>> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    let local = matches!(name, "" | "localhost" | "127.0.0.1" | "[::1]");
    if headers.contains_key(header::ORIGIN) || !local {
        return Some(text(StatusCode::FORBIDDEN, "the admin listener answers to this machine only\n"));
    }
    None
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body.into())
}

fn json(status: StatusCode, document: &serde_json::Value) -> Response<Full<Bytes>> {
    typed(status, "application/json", format!("{document:#}\n"))
}

fn typed(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_answered() {
        let refused = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            refuse_browser(&headers).is_some()
        };
        assert!(
            !refused(&[("host", "127.0.0.1:9901")]) && !refused(&[("host", "localhost")]) && !refused(&[("host", "[::1]:80")])
        );
        assert!(!refused(&[("host", "[::1]")]) && !refused(&[]));
        assert!(refused(&[("host", "evil.example:9901")]), "DNS rebinding");
        assert!(refused(&[("host", "127.0.0.1"), ("origin", "http://evil.example")]), "a cross-site request");
    }
}
