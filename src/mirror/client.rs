//! A small HTTP client for copies: it keeps idle connections over HTTP/1.1, and reads answers only to throw them away.

use crate::upstream::{Endpoint, Side, Tried, Upstream};
use bytes::Bytes;
use http::request::Parts;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;

/// Connections that are kept for the next copy.
const IDLE_MAX: usize = 64;
/// The most of an answer that is read for the sake of its connection, in bytes.
const ANSWER_MAX: usize = 1 << 20;

type Sender = http1::SendRequest<Full<Bytes>>;

#[derive(Default)]
pub(super) struct Client {
    /// By upstream, because the same address may be spoken to in another way by another one.
    idle: Mutex<Vec<(Arc<str>, SocketAddr, Sender)>>,
}

impl Client {
    /// One request to an endpoint of the upstream. The caller bounds the time.
    pub async fn send(&self, upstream: &Arc<Upstream>, head: Parts, body: Vec<Bytes>) -> Result<(), String> {
        let endpoint = upstream.select(&Tried::new()).ok_or("no endpoint takes traffic")?.begin();
        let mut request = Request::from_parts(head, Full::new(Bytes::from(body.concat())));
        let side = upstream.side();
        if side.http2 {
            return self.over_http2(&side, &endpoint, request).await;
        }
        let mut sender = match self.take(upstream.name(), endpoint.address()) {
            Some(sender) => sender,
            None => {
                let stream = side.connect(endpoint.address()).await.map_err(|error| error.to_string())?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
                tokio::spawn(connection);
                sender
            }
        };
        *request.version_mut() = http::Version::HTTP_11;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if discard(response.into_body()).await && sender.ready().await.is_ok() {
            let mut idle = self.idle.lock();
            idle.retain(|(.., sender)| !sender.is_closed());
            if idle.len() < IDLE_MAX {
                idle.push((Arc::clone(upstream.name()), endpoint.address(), sender));
            }
        }
        Ok(())
    }

    fn take(&self, upstream: &Arc<str>, address: SocketAddr) -> Option<Sender> {
        let mut idle = self.idle.lock();
        let at = idle.iter().rposition(|(name, known, sender)| name == upstream && *known == address && sender.is_ready())?;
        Some(idle.swap_remove(at).2)
    }

    async fn over_http2(&self, side: &Side, endpoint: &Endpoint, mut request: Request<Full<Bytes>>) -> Result<(), String> {
        let host = request.headers_mut().remove(http::header::HOST);
        let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
        let scheme = if side.tls.is_some() { "https" } else { "http" };
        let uri: Uri = format!("{scheme}://{host}{}", request.uri()).parse().map_err(|_| "not a host")?;
        *request.uri_mut() = uri;
        *request.version_mut() = http::Version::HTTP_2;
        let stream = side.connect(endpoint.address()).await.map_err(|error| error.to_string())?;
        let handshake = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        let talk = async {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            discard(response.into_body()).await;
            Ok(())
        };
        tokio::pin!(talk, connection);
        tokio::select! {
            done = &mut talk => done,
            _ = &mut connection => talk.await,
        }
    }
}

/// Reads an answer to its end. `false`: it was too long, or broke off.
async fn discard(body: Incoming) -> bool {
    let mut body = Limited::new(body, ANSWER_MAX);
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return false;
        }
    }
    true
}
