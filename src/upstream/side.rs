//! Connections to endpoints beside Pingora's: for health checks and for copies of requests.

use super::Upstream;
use super::config::Protocol;
use crate::tls::ClientTls;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A byte stream of either kind.
pub trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// How endpoints are spoken to.
#[derive(Debug, Clone)]
pub struct Side {
    pub tls: Option<Arc<ClientTls>>,
    /// Nothing but HTTP/2.
    pub http2: bool,
}

impl Upstream {
    /// How its endpoints are spoken to beside Pingora.
    pub fn side(&self) -> Side {
        Side { tls: self.link.tls.clone(), http2: matches!(self.link.protocol, Protocol::H2 | Protocol::H2c) }
    }
}

impl Side {
    /// Opens a connection. The caller bounds the time.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<Pin<Box<dyn Stream>>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::pin(stream)),
            Some(tls) => Ok(Box::pin(secure(stream, tls, self.http2).await?)),
        }
    }
}

/// The TLS that requests use, its verification included.
pub(super) async fn secure(stream: TcpStream, tls: &ClientTls, http2: bool) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(tls.sni.clone()).map_err(io::Error::other)?;
    let mut config = ClientConfig::clone(&tls.config);
    config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}
