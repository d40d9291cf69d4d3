//! Opening connections for HTTP/1 to one endpoint, or taking idle ones.
//!
//! Pingora calls this in place of its own connector, for each attempt: what it gets is an [`Exchange`], so that no answer
//! comes to its parser unchecked. TLS is made here as well, under the exchange, because the check needs the plain text. The
//! settings are those of [`ClientTls`], made once: Pingora would build them anew for every connection with its own authorities,
//! and resume no session.
//!
//! Since every exchange is a new connection to Pingora, it does not know which ones are used again. That is told by
//! [`take_opened`].

use super::exchange::{Exchange, Home, Transport};
use super::pool::{Link, Pool, Way};
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
pub(super) fn exchange<T: Transport, H: Home<T>>(transport: T, home: H, upgrade: bool, reused: bool) -> Stream {
    OPENED.set(Some(Opened { reused }));
    VirtualSocketStream::new(Box::new(Exchange::new(transport, home, upgrade))).into()
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

#[async_trait]
impl L4Connect for Dialer {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let way = || Way { pool: Arc::clone(&self.pool), idle: self.idle };
        if let Some(link) = self.pool.take() {
            return Ok(exchange(link, way(), self.upgrade, true));
        }
        let stream = tcp(address).await?;
        let link = match &self.tls {
            None => Link::Plain(stream),
            Some(tls) => {
                let secured = tls.handshake(stream, false).await;
                let failed = |error| Error::because(ErrorType::TLSHandshakeFailure, "with the endpoint", error);
                Link::Tls(Box::new(secured.map_err(failed)?))
            }
        };
        Ok(exchange(link, way(), self.upgrade, false))
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
