//! The transport as Pingora sees it: our own stream between the socket and its HTTP session.
//!
//! Three things happen here that Pingora's own stream does not do.
//! - The request head is read, bounded and checked *before* a session exists ([`EdgeIo::read_head`]), so that an idle
//!   connection owns no session and no buffer, and what the parser would let through never reaches it.
//! - Small writes are collected until Pingora flushes: head and body of a response leave in one system call.
//! - Reading stops where the request ends. Bytes of the next request stay with us, so that pipelining neither confuses
//!   the session (which takes any byte after the end for a client error) nor loses a request.

use super::head::{Framing, Head, HeadLimits, HeadScanner, Malformed};
use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID, UniqueIDType,
};
use std::cell::Cell;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Where a head is read into: one allocation holds almost every request head whole.
const READ_CHUNK: usize = 4 << 10;
/// Writes up to this many bytes wait for the flush that follows them.
const WRITE_BUFFER: usize = 16 << 10;
/// How long, and for how many bytes, a connection that is closed early goes on reading.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

thread_local! {
    /// One read buffer for each worker: what a connection that turned out to have nothing to read gave back.
    static SPARE: Cell<BytesMut> = Cell::default();
}

/// What a socket must offer beyond reading and writing.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + Sync + std::fmt::Debug + 'static {
    /// Ready when a read is worth trying. Must not consume anything and must not need a buffer.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn raw_fd(&self) -> std::os::fd::RawFd;
}

impl Transport for tokio::net::TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }
    fn raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(self)
    }
}

impl Transport for tokio::net::UnixStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }
    fn raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(self)
    }
}

/// How many bytes of the transport still belong to the request under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remaining {
    /// So many bytes of body; zero when the request is complete.
    Exactly(u64),
    /// The session itself finds the end: chunked bodies, and tunnels after an upgrade.
    Open,
}

/// Why no request head came.
#[derive(Debug)]
pub enum HeadError {
    /// The client closed the connection, or it broke.
    Closed,
    /// Not all of the head arrived within the deadline.
    Timeout,
    Malformed(Malformed),
}

pub struct EdgeIo<T> {
    transport: T,
    read: BytesMut,
    remaining: Remaining,
    write: Vec<u8>,
    digest: Arc<SocketDigest>,
}

impl<T> std::fmt::Debug for EdgeIo<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeIo").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}

impl<T: Transport> EdgeIo<T> {
    pub fn new(transport: T, digest: SocketDigest) -> Self {
        let remaining = Remaining::Exactly(0);
        EdgeIo { transport, read: BytesMut::new(), remaining, write: Vec::new(), digest: Arc::new(digest) }
    }

    /// Waits until bytes of a next request are there: `false` if the connection ended instead. While it waits it holds no
    /// buffer: the thread's spare one is used once the socket is readable, and kept only if bytes came.
    pub async fn wait(&mut self) -> io::Result<bool> {
        if !self.read.is_empty() {
            return Ok(true);
        }
        self.read = BytesMut::new();
        self.write = Vec::new();
        std::future::poll_fn(|cx| {
            ready!(self.transport.poll_readable(cx))?;
            let mut spare = SPARE.take();
            spare.reserve(READ_CHUNK);
            match pin!(self.transport.read_buf(&mut spare)).poll(cx) {
                Poll::Ready(Ok(read)) => {
                    self.read = spare;
                    Poll::Ready(Ok(read > 0))
                }
                Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
                Poll::Pending => {
                    SPARE.set(spare);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Reads one request head, however slowly it drips, within `deadline` in all. The head comes back as its bytes;
    /// what follows it is held for the session, up to the end of this request.
    pub async fn read_head(&mut self, limits: &HeadLimits, deadline: Duration) -> Result<(Head, BytesMut), HeadError> {
        let mut scanner = HeadScanner::new();
        // A head that is here already needs no timer.
        if let Some(head) = self.scan(&mut scanner, limits)? {
            return Ok(head);
        }
        let rest = async {
            loop {
                if self.read.capacity().saturating_sub(self.read.len()) < READ_CHUNK / 4 {
                    self.read.reserve(READ_CHUNK);
                }
                match self.transport.read_buf(&mut self.read).await {
                    Ok(0) | Err(_) => return Err(HeadError::Closed),
                    Ok(_) => {}
                }
                if let Some(head) = self.scan(&mut scanner, limits)? {
                    return Ok(head);
                }
            }
        };
        match pingora_timeout::timeout(deadline, rest).await {
            Ok(done) => done,
            Err(_) => Err(HeadError::Timeout),
        }
    }

    fn scan(&mut self, scanner: &mut HeadScanner, limits: &HeadLimits) -> Result<Option<(Head, BytesMut)>, HeadError> {
        let Some(head) = scanner.scan(&self.read, limits).map_err(HeadError::Malformed)? else {
            return Ok(None);
        };
        // `len` never exceeds what was scanned; `min` keeps `split_to` from ever panicking.
        let bytes = self.read.split_to(head.len.min(self.read.len()));
        self.remaining = match head.framing {
            Framing::Chunked => Remaining::Open,
            // An upgrade to h2c is ignored, see `proxy::intake`: that request is like any other.
            _ if head.upgrade && !head.h2c => Remaining::Open,
            Framing::Length(length) => Remaining::Exactly(length),
            Framing::None => Remaining::Exactly(0),
        };
        Ok(Some((head, bytes)))
    }

    /// Writes an answer that no session exists for, and ends the connection in a way that lets the client read it.
    pub async fn answer_and_close(mut self, answer: &[u8]) {
        let close = async {
            self.transport.write_all(answer).await?;
            self.transport.shutdown().await?;
            self.linger().await
        };
        // The client's problem from here on: an error or a timeout only means that it will not read the answer.
        let _ = pingora_timeout::timeout(LINGER, close).await;
    }

    /// Our side is closed; what still comes in is read and dropped for a moment. To close at once would make the kernel
    /// send a reset, which can overtake the answer that the client has not read yet.
    async fn linger(&mut self) -> io::Result<()> {
        let mut scratch = [0_u8; 4096];
        let mut dropped = 0_usize;
        while dropped < LINGER_BYTES {
            match self.transport.read(&mut scratch).await? {
                0 => break,
                n => dropped = dropped.saturating_add(n),
            }
        }
        Ok(())
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = 0;
        while let Some(rest) = self.write.get(written..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.transport).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => written = written.saturating_add(n),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {
                    self.write.drain(..written.min(self.write.len()));
                    return Poll::Pending;
                }
            }
        }
        self.write.clear();
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport> AsyncRead for EdgeIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.flush_while_waiting(cx)?;
        let allowed = match this.remaining {
            // The request is complete: the session only wants to know whether the client is still there.
            Remaining::Exactly(0) => return this.poll_gone(cx),
            Remaining::Exactly(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
            Remaining::Open => usize::MAX,
        };
        let before = out.filled().len();
        if !this.read.is_empty() {
            let n = this.read.len().min(out.remaining()).min(allowed);
            out.put_slice(this.read.get(..n).unwrap_or_default());
            this.read.advance(n);
        } else if allowed >= out.remaining() {
            ready!(Pin::new(&mut this.transport).poll_read(cx, out))?;
        } else {
            let mut limited = ReadBuf::new(out.initialize_unfilled_to(allowed));
            ready!(Pin::new(&mut this.transport).poll_read(cx, &mut limited))?;
            let read = limited.filled().len();
            out.advance(read);
        }
        if let Remaining::Exactly(left) = &mut this.remaining {
            let read = out.filled().len().saturating_sub(before);
            *left = left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport> EdgeIo<T> {
    /// A session that reads is waiting for something, and has not flushed what it wrote of a response whose length is
    /// known. It may wait for long, on a slow upstream: what is there so far goes out now.
    fn flush_while_waiting(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.write.is_empty() {
            return Ok(());
        }
        match self.poll_drain(cx) {
            Poll::Ready(done) => done,
            // The client is slow. The next write or flush waits for it; this read must not.
            Poll::Pending => Ok(()),
        }
    }

    /// The request is complete and the session reads on only to notice that the client has gone. What comes in instead of
    /// the end belongs to the next request and is kept for it, at most one buffer of it.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.read.is_empty() {
            return Poll::Pending;
        }
        ready!(self.transport.poll_readable(cx))?;
        let mut spare = SPARE.take();
        spare.reserve(READ_CHUNK);
        match pin!(self.transport.read_buf(&mut spare)).poll(cx) {
            Poll::Ready(Ok(0)) => Poll::Ready(Ok(())),
            Poll::Ready(Ok(_)) => {
                self.read = spare;
                Poll::Pending
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                SPARE.set(spare);
                Poll::Pending
            }
        }
    }
}

impl<T: Transport> AsyncWrite for EdgeIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.write.len().saturating_add(data.len()) > WRITE_BUFFER {
            ready!(this.poll_drain(cx))?;
            if data.len() >= WRITE_BUFFER {
                return Pin::new(&mut this.transport).poll_write(cx, data);
            }
        }
        this.write.extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.transport).poll_shutdown(cx)
    }
}

#[async_trait]
impl<T: Transport> Shutdown for EdgeIo<T> {
    async fn shutdown(&mut self) {
        // An error here is the client's connection being gone, which is what was asked for.
        let _ = AsyncWriteExt::shutdown(self).await;
        if self.remaining != Remaining::Exactly(0) {
            // The request was answered before it had arrived in full, or cannot be told from one that was.
            let _ = pingora_timeout::timeout(LINGER, self.linger()).await;
        }
    }
}

impl<T: Transport> UniqueID for EdgeIo<T> {
    fn id(&self) -> UniqueIDType {
        self.transport.raw_fd()
    }
}

impl<T> Ssl for EdgeIo<T> {}

impl<T: Transport> Peek for EdgeIo<T> {}

impl<T> GetTimingDigest for EdgeIo<T> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl<T> GetProxyDigest for EdgeIo<T> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl<T> GetSocketDigest for EdgeIo<T> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

#[cfg(test)]
mod tests;
