//! The sockets that a connection can run on, with and without TLS.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// What a socket must offer beyond reading and writing.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + Sync + std::fmt::Debug + 'static {
    /// Ready when a read is worth trying. Must not consume anything and must not need a buffer.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn raw_fd(&self) -> RawFd;
    /// Has the other end see a reset when the socket is closed, where there is such a thing.
    fn reset_on_close(&self);
}

impl Transport for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }
    fn raw_fd(&self) -> RawFd {
        AsRawFd::as_raw_fd(self)
    }
    fn reset_on_close(&self) {
        // Then the client sees an end, which is all that there is left to do.
        let _ = self.set_zero_linger();
    }
}

impl Transport for UnixStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }
    fn raw_fd(&self) -> RawFd {
        AsRawFd::as_raw_fd(self)
    }
    fn reset_on_close(&self) {
        // Unix sockets have no such thing.
    }
}

impl<T: Transport> Transport for TlsStream<T> {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (transport, session) = self.get_ref();
        // rustls wants no more bytes when it holds decrypted ones that nobody has read, or the client's end of session.
        // Records that it holds in part need more bytes, and complete ones were decrypted when they came.
        if !session.wants_read() {
            return Poll::Ready(Ok(()));
        }
        transport.poll_readable(cx)
    }
    fn raw_fd(&self) -> RawFd {
        self.get_ref().0.raw_fd()
    }
    fn reset_on_close(&self) {
        self.get_ref().0.reset_on_close();
    }
}
