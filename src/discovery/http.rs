//! One GET over HTTP/1.1, on a connection of its own: all that a registry's HTTP API needs.
//!
//! Nothing of it is left when the future is dropped. The answer is bounded.

use super::{Failure, Reason};
use crate::tls::ClientTls;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// The largest answer, in bytes: some thousand endpoints as Consul describes them.
const BODY_MAX: usize = 16 << 20;
const HEAD_MAX: usize = 64 << 10;

pub(super) struct Answered {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Asks `address`, a host and a port. The caller bounds the time.
pub(super) async fn get(address: &str, target: &str, headers: &HeaderMap, tls: Option<&ClientTls>) -> Result<Answered, Failure> {
    let unreachable = |error: std::io::Error| Failure::new(Reason::Unreachable, format!("{address}: {error}"));
    let stream = TcpStream::connect(address).await.map_err(unreachable)?;
    let mut request = http::Request::get(target).header(header::HOST, address).header(header::CONNECTION, "close");
    request = request.header(header::USER_AGENT, concat!("gatewright/", env!("CARGO_PKG_VERSION")));
    if let Some(all) = request.headers_mut() {
        all.extend(headers.clone());
    }
    let invalid = |error: http::Error| Failure::new(Reason::Invalid, error);
    let request = request.body(Empty::<Bytes>::new()).map_err(invalid)?;
    match tls {
        None => exchange(stream, request, address).await,
        Some(tls) => {
            let stream = tls.handshake(stream, false).await.map_err(unreachable)?;
            exchange(stream, request, address).await
        }
    }
}

async fn exchange<T>(stream: T, request: http::Request<Empty<Bytes>>, address: &str) -> Result<Answered, Failure>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: &dyn std::fmt::Display| Failure::new(Reason::Unreachable, format!("{address}: {error}"));
    let handshake = http1::Builder::new().max_buf_size(HEAD_MAX).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await.map_err(|error| broken(&error))?;
        Ok(Answered { status, headers, body: body.to_bytes() })
    };
    // Polled side by side and not spawned, so that dropping this future closes the connection.
    tokio::pin!(talk, connection);
    tokio::select! {
        answer = &mut talk => answer,
        _ = &mut connection => talk.await,
    }
}
