//! One GET: all that a registry's HTTP API needs.

use super::{Failure, Reason};
use crate::fetch::{self, Answer};
use crate::tls::ClientTls;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::Empty;
use tokio::net::TcpStream;

/// The largest answer, in bytes: some thousand endpoints as Consul describes them.
const BODY_MAX: usize = 16 << 20;

pub(super) struct Answered {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Asks `address`, a host and a port. The caller bounds the time.
pub(super) async fn get(address: &str, target: &str, headers: &HeaderMap, tls: Option<&ClientTls>) -> Result<Answered, Failure> {
    let unreachable = |error: &dyn std::fmt::Display| Failure::new(Reason::Unreachable, format!("{address}: {error}"));
    let stream = TcpStream::connect(address).await.map_err(|error| unreachable(&error))?;
    let mut request = http::Request::get(target).header(header::HOST, address).header(header::CONNECTION, "close");
    request = request.header(header::USER_AGENT, concat!("gatewright/", env!("CARGO_PKG_VERSION")));
    if let Some(all) = request.headers_mut() {
        all.extend(headers.clone());
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| Failure::new(Reason::Invalid, error))?;
    let answer = match tls {
        None => fetch::exchange(stream, request, BODY_MAX).await,
        Some(tls) => {
            let stream = tls.handshake(stream, false).await.map_err(|error| unreachable(&error))?;
            fetch::exchange(stream, request, BODY_MAX).await
        }
    };
    let Answer { head, body } = answer.map_err(|error| unreachable(&error))?;
    let body = body.map_err(|error| unreachable(&error))?;
    Ok(Answered { status: head.status, headers: head.headers, body })
}
