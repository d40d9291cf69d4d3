//! The admin listener: what the gateway says about itself, and the few things it can be told.
//!
//! It runs on the control runtime, apart from the traffic, so that it answers when the gateway is at its limit. It is for
//! the machine itself: a unix socket or a loopback address. A browser on that machine must not be able to reach it, so
//! a `Host` that is not loopback (DNS rebinding) and any `Origin` (cross-site requests) are refused.

pub mod client;
mod limits;
mod metrics;
mod resilience;
mod status;

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

const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

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
    let service = hyper::service::service_fn(move |request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(answer(request, &admin).await) }
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
            served.as_mut().graceful_shutdown();
            served.await
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
        (&Method::POST, "/upgrade") => upgrade(admin).await,
        (&Method::GET, "/limits/top") => json(StatusCode::OK, &limits::top(admin, request.uri().query())),
        (&Method::GET, "/limits") => limit(admin, request.uri().query(), false).await,
        (&Method::POST, "/limits/reset") => limit(admin, request.uri().query(), true).await,
        (
            _,
            path @ ("/livez" | "/readyz" | "/status" | "/metrics" | "/jwks" | "/reload" | "/upgrade" | "/limits" | "/limits/top"
            | "/limits/reset"),
        ) => {
            let allow = match path {
                "/reload" | "/upgrade" | "/limits/reset" => "POST",
                "/limits" | "/limits/top" => "GET",
                _ => "GET, HEAD",
            };
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            if let Ok(allow) = allow.parse() {
                response.headers_mut().insert(header::ALLOW, allow);
            }
            response
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "not found: /livez /readyz /status /metrics /jwks /limits /limits/top, POST /reload /upgrade /limits/reset\n",
        ),
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
    let code = if matches!(outcome, Outcome::Refused { .. }) { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
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

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body.to_owned())
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
