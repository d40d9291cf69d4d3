//! Opening connections for HTTP/1 to one endpoint, or taking idle ones.
//!
//! Pingora calls this in place of its own connector, for each attempt: what it gets is an [`Exchange`], so that no answer
//! comes to its parser unchecked. TLS is made here as well, under the exchange, because the check needs the plain text. The
//! settings are those of [`ClientTls`], made once: Pingora would build them anew for every connection with its own authorities,
//! and resume no session.
//!
//! Since every exchange is a new connection to Pingora, it does not know which ones are used again. That is told by
//! [`take_opened`].

use super::exchange::{Exchange, Home, Line, Patience, Transport};
use super::pool::{Link, Pool, Way};
use crate::http1::trailers::Passing;
use crate::tls::ClientTls;
use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::{Error, ErrorType, Result};
use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

thread_local! {
    static OPENED: Cell<Option<Opened>> = const { Cell::new(None) };
}

/// How the connection of an exchange came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub reused: bool,
}

/// About the connection that Pingora has just got, for its hook `connected_to_upstream`; `None` if it made that one by itself.
/// It calls the hook in the very poll in which the connector was ready, so that nothing can come between the two.
pub fn take_opened() -> Option<Opened> {
    OPENED.take()
}

/// The connection of one attempt, as Pingora wants it.
fn exchange<T: Transport, H: Home<T>>(line: Line<T>, home: H, of: &Dial, reused: bool) -> Stream {
    OPENED.set(Some(Opened { reused }));
    VirtualSocketStream::new(Box::new(Exchange::new(line, home, of.patience, of.dialer.upgrade, of.trailers.clone()))).into()
}

/// One endpoint, for requests that ask for another protocol or for all others.
#[derive(Debug)]
pub(super) struct Dialer {
    pub pool: Arc<Pool>,
    pub tls: Option<Arc<ClientTls>>,
    /// How long a connection may be idle.
    pub idle: Duration,
    pub upgrade: bool,
}

/// What Pingora connects by for one attempt. Pingora has no timeouts for it: it would set up timers and copies for each attempt,
/// most of which find a connection in the pool and wait for their answer only.
#[derive(Debug)]
pub(super) struct Dial {
    pub dialer: Arc<Dialer>,
    /// For opening a connection, TLS included.
    pub connect: Duration,
    pub patience: Patience,
    pub trailers: Passing,
}

#[async_trait]
impl L4Connect for Dial {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let Dialer { pool, idle, .. } = &*self.dialer;
        let way = || Way { pool: Arc::clone(pool), idle: *idle };
        if let Some(line) = pool.take() {
            return Ok(exchange(line, way(), self, true));
        }
        // Rare, and large: it has a box of its own.
        let opened = tokio::time::timeout(self.connect, Box::pin(self.dialer.open(address))).await;
        let late = |_| Error::explain(ErrorType::ConnectTimedout, format!("no connection within {:?}", self.connect));
        Ok(exchange(Line::new(opened.map_err(late)??), way(), self, false))
    }
}

impl Dialer {
    async fn open(&self, address: &SocketAddr) -> Result<Link> {
        let stream = tcp(address).await?;
        let Some(tls) = &self.tls else { return Ok(Link::Plain(stream)) };
        let secured = tls.handshake(stream, false).await;
        let failed = |error| Error::because(ErrorType::TLSHandshakeFailure, "with the endpoint", error);
        Ok(Link::Tls(Box::new(secured.map_err(failed)?)))
    }
}

/// A plain connection. Whoever asks bounds the time.
pub(super) async fn tcp(address: &SocketAddr) -> Result<TcpStream> {
    let Some(address) = address.as_inet() else {
        return Error::e_explain(ErrorType::InternalError, "endpoints have internet addresses");
    };
    let opened = TcpStream::connect(address).await.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
    opened.map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
            io::ErrorKind::TimedOut => ErrorType::ConnectTimedout,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ErrorType::ConnectNoRoute,
            _ => ErrorType::ConnectError,
        };
        Error::because(kind, "the endpoint", error)
    })
}
