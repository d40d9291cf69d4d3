//! The transport as Pingora sees it: our own stream between the socket and its HTTP session.
//!
//! Six things happen here that Pingora's own stream does not do.
//! - The request head is read, bounded and checked *before* a session exists ([`EdgeIo::read_head`]), so that an idle
//!   connection owns no session and no buffer, and what the parser would let through never reaches it.
//! - A client that keeps a request waiting longer than it may is found out, whatever the drip ([`Patience`]).
//! - Small writes are collected until Pingora flushes: head and body of a response leave in one system call.
//! - Trailers of answers are written, which Pingora does not know in HTTP/1, and those of requests kept, which it drops.
//! - Reading stops where the request ends. Bytes of the next request stay with us, so that pipelining neither confuses
//!   the session (which takes any byte after the end for a client error) nor loses a request.

use super::date;
use super::fault::{Fault, Faults};
use super::head::{Framing, Head, HeadLimits, HeadScanner, Malformed};
use super::linger::{self, Linger};
use super::patience::{Patience, Tolerance};
use super::transport::Transport;
use crate::http1::chunks::ChunkScanner;
use crate::http1::ending::Ending;
use crate::http1::write::{Collects, WriteBuffer};
use crate::request::TlsFacts;
use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Where a head is read into: one allocation holds almost every request head whole.
const READ_CHUNK: usize = 4 << 10;
/// RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

thread_local! {
    /// One read buffer for each worker: what a connection that turned out to have nothing to read gave back.
    static SPARE: Cell<BytesMut> = Cell::default();
}

/// How many bytes of the transport still belong to the request under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remaining {
    /// So many bytes of body; zero when the request is complete.
    Exactly(u64),
    /// Up to the end that [`ChunkScanner`] finds.
    Chunked,
    /// An upgrade was asked for and not granted yet. What the client says until then could be meant for either protocol.
    Upgrade,
    /// The upgrade was granted: everything, in both directions.
    Tunnel,
    /// HTTP/2 finds its own way.
    Streams,
}

/// The bounds of one request on its way through the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoBounds {
    pub body: Tolerance,
    pub write: Tolerance,
    /// Both directions of a tunnel together.
    pub tunnel: Tolerance,
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

pub struct EdgeIo<T: Transport> {
    transport: T,
    read: BytesMut,
    remaining: Remaining,
    /// The client waits for `100 Continue` or an answer before it sends the body (RFC 9110 §10.1.1): nobody waits for the client.
    awaits_continue: bool,
    chunks: ChunkScanner,
    write: WriteBuffer,
    ending: Ending,
    /// Our side is closed, and the client has not been heard to the end.
    linger: Option<Linger>,
    digest: Arc<SocketDigest>,
    tls: Option<Arc<TlsFacts>>,
    bounds: IoBounds,
    reading: Patience,
    writing: Patience,
    faults: Arc<dyn Faults>,
}

impl<T: Transport> std::fmt::Debug for EdgeIo<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeIo").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}

impl<T: Transport> EdgeIo<T> {
    pub fn new(
        transport: T,
        digest: SocketDigest,
        tls: Option<Arc<TlsFacts>>,
        bounds: IoBounds,
        faults: Arc<dyn Faults>,
    ) -> Self {
        EdgeIo {
            transport,
            read: BytesMut::new(),
            remaining: Remaining::Exactly(0),
            awaits_continue: false,
            chunks: ChunkScanner::new(),
            write: WriteBuffer::new(),
            ending: Ending::new(),
            linger: None,
            digest: Arc::new(digest),
            tls,
            bounds,
            reading: Patience::new(),
            writing: Patience::new(),
            faults,
        }
    }

    /// Takes the bounds of the next request.
    pub fn set_bounds(&mut self, bounds: IoBounds) {
        self.bounds = bounds;
    }

    /// From here on the session does the framing of everything.
    pub fn open_streams(&mut self) {
        self.remaining = Remaining::Streams;
        self.writing.reset(self.bounds.write);
    }

    /// Whether the connection begins with the preface of HTTP/2 (RFC 9113 §3.4), which is left where it is. As many of its
    /// bytes are waited for as it takes to tell.
    pub async fn starts_with_preface(&mut self, deadline: Duration) -> Result<bool, HeadError> {
        let tell = async {
            loop {
                let seen = self.read.len().min(PREFACE.len());
                if self.read.get(..seen) != PREFACE.get(..seen) {
                    return Ok(false);
                }
                if seen == PREFACE.len() {
                    return Ok(true);
                }
                self.read.reserve(READ_CHUNK);
                if !matches!(self.transport.read_buf(&mut self.read).await, Ok(1..)) {
                    return Err(HeadError::Closed);
                }
            }
        };
        pingora_timeout::timeout(deadline, tell).await.unwrap_or(Err(HeadError::Timeout))
    }

    /// Ends an idle connection in order: over TLS the client learns that nothing was cut off.
    pub async fn close(mut self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        if self.tls.is_some() {
            // Whether the client still reads it is its own business.
            let _ = tokio::time::timeout(PATIENCE, self.transport.shutdown()).await;
        }
    }

    /// Waits until bytes of a next request are there: `false` if the connection ended instead. While it waits it holds no
    /// buffer: the thread's spare one is used once the socket is readable, and kept only if bytes came.
    pub async fn wait(&mut self) -> io::Result<bool> {
        if !self.read.is_empty() {
            return Ok(true);
        }
        self.read = BytesMut::new();
        self.write.give_back();
        poll_fn(|cx| {
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
            Framing::Chunked => Remaining::Chunked,
            // An upgrade to h2c is ignored, see `proxy::intake`: that request is like any other.
            _ if head.upgrade && !head.h2c && !self.read.is_empty() => {
                self.faults.report(Fault::EarlyBytes);
                return Err(HeadError::Malformed(Malformed::EarlyUpgradeBytes));
            }
            _ if head.upgrade && !head.h2c => Remaining::Upgrade,
            Framing::Length(length) => Remaining::Exactly(length),
            Framing::None => Remaining::Exactly(0),
        };
        self.awaits_continue = head.expect_continue;
        self.chunks = ChunkScanner::keeping(head.framing == Framing::Chunked);
        self.reading.reset(self.bounds.body);
        self.writing.reset(self.bounds.write);
        Ok(Some((head, bytes)))
    }

    /// Writes and flushes an answer that no session exists for. Returns how many bytes of its body were taken, and whether all
    /// was.
    pub async fn send(&mut self, head: impl FnOnce(&mut Vec<u8>), body: &[Bytes]) -> (u64, bool) {
        head(self.write.room());
        let mut sent = 0_u64;
        for piece in body {
            let mut rest: &[u8] = piece;
            while !rest.is_empty() {
                match poll_fn(|cx| self.poll_send(cx, rest)).await {
                    Ok(taken @ 1..) => {
                        sent = sent.saturating_add(u64::try_from(taken).unwrap_or(0));
                        rest = rest.get(taken..).unwrap_or_default();
                    }
                    Ok(0) | Err(_) => return (sent, false),
                }
            }
        }
        (sent, AsyncWriteExt::flush(self).await.is_ok())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut written = 0;
        let done = self.write.poll_write(&mut self.transport, cx, data, &mut written);
        self.wrote(written);
        match done {
            Poll::Pending => self.poll_reader_too_slow(cx),
            done => done,
        }
    }

    /// Writes an answer that no session exists for, and ends the connection in a way that lets the client read it.
    pub async fn answer_and_close(mut self, answer: &[u8]) {
        let close = async {
            self.transport.write_all(answer).await?;
            self.transport.shutdown().await?;
            let mut linger = Linger::new();
            poll_fn(|cx| linger.poll(&mut self.transport, cx)).await
        };
        // The client's problem from here on: an error or a timeout only means that it will not read the answer.
        let _ = pingora_timeout::timeout(linger::TIME, close).await;
    }

    fn wrote(&mut self, bytes: usize) {
        if bytes > 0 {
            self.writing.progress(bytes, self.bounds.write);
            if self.remaining == Remaining::Tunnel {
                self.reading.renew(self.bounds.tunnel);
            }
        }
    }

    /// The client does not take what we have for it.
    fn poll_reader_too_slow<R>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        ready!(self.writing.poll_exhausted(self.bounds.write, cx));
        Poll::Ready(Err(self.fault(Fault::SlowReader)))
    }

    fn fault(&self, fault: Fault) -> io::Error {
        self.faults.report(fault);
        match fault {
            Fault::EarlyBytes | Fault::BadChunk => io::ErrorKind::InvalidData.into(),
            Fault::SlowBody | Fault::SlowReader | Fault::IdleTunnel | Fault::UpgradeUnanswered => io::ErrorKind::TimedOut.into(),
        }
    }

    /// The session waits for bytes that the client does not send.
    fn poll_sender_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (tolerance, fault) = match self.remaining {
            // How long that may last is the business of the upstream's timeouts.
            Remaining::Exactly(_) | Remaining::Chunked if self.awaits_continue => return Poll::Pending,
            Remaining::Exactly(_) | Remaining::Chunked => (self.bounds.body, Fault::SlowBody),
            Remaining::Tunnel => (self.bounds.tunnel, Fault::IdleTunnel),
            Remaining::Upgrade | Remaining::Streams => return Poll::Pending,
        };
        ready!(self.reading.poll_exhausted(tolerance, cx));
        Poll::Ready(Err(self.fault(fault)))
    }

    fn poll_transport(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        match Pin::new(&mut self.transport).poll_read(cx, out) {
            Poll::Pending => self.poll_sender_too_slow(cx),
            Poll::Ready(Ok(())) => {
                let read = out.filled().len().saturating_sub(before);
                self.awaits_continue = false;
                match self.remaining {
                    Remaining::Tunnel => self.reading.renew(self.bounds.tunnel),
                    _ => self.reading.progress(read, self.bounds.body),
                }
                Poll::Ready(Ok(()))
            }
            failed => failed,
        }
    }
}

impl<T: Transport> Collects for EdgeIo<T> {
    fn collected(&self) -> &WriteBuffer {
        &self.write
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = 0;
        let done = self.write.poll_drain(&mut self.transport, cx, &mut written);
        self.wrote(written);
        match done {
            Poll::Pending => self.poll_reader_too_slow(cx),
            done => done,
        }
    }
}

impl<T: Transport> AsyncRead for EdgeIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.flush_while_waiting(cx)?;
        let allowed = match this.remaining {
            // The request is complete: the session only wants to know whether the client is still there. One that asked for
            // an upgrade has to wait for it (RFC 9110 §7.8): two readers could take what it says for two different things.
            Remaining::Exactly(0) | Remaining::Upgrade => return this.poll_gone(cx),
            Remaining::Exactly(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
            Remaining::Chunked | Remaining::Tunnel | Remaining::Streams => usize::MAX,
        };
        let before = out.filled().len();
        if !this.read.is_empty() {
            let n = this.read.len().min(out.remaining()).min(allowed);
            out.put_slice(this.read.get(..n).unwrap_or_default());
            this.read.advance(n);
            if this.read.is_empty() && this.remaining == Remaining::Streams {
                this.read = BytesMut::new();
            }
        } else if allowed >= out.remaining() {
            ready!(this.poll_transport(cx, out))?;
        } else {
            let mut limited = ReadBuf::new(out.initialize_unfilled_to(allowed));
            ready!(this.poll_transport(cx, &mut limited))?;
            let read = limited.filled().len();
            out.advance(read);
        }
        match &mut this.remaining {
            Remaining::Exactly(left) => {
                let read = out.filled().len().saturating_sub(before);
                *left = left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
            }
            Remaining::Chunked => this.check_chunks(out, before)?,
            Remaining::Upgrade | Remaining::Tunnel | Remaining::Streams => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport> EdgeIo<T> {
    /// Checks what the session is about to get of a chunked body, and takes back what is behind its end.
    fn check_chunks(&mut self, out: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        let fresh = out.filled().get(before..).unwrap_or_default();
        let Ok(body) = self.chunks.scan(fresh) else { return Err(self.fault(Fault::BadChunk)) };
        if self.chunks.is_done() {
            if let Some(section) = self.chunks.take_trailers() {
                self.faults.asked_trailers(&section);
            }
            if let Some(next) = fresh.get(body..).filter(|next| !next.is_empty()) {
                let kept = std::mem::take(&mut self.read);
                self.read = BytesMut::with_capacity(next.len().saturating_add(kept.len()).max(READ_CHUNK));
                self.read.extend_from_slice(next);
                self.read.extend_from_slice(&kept);
                out.set_filled(before.saturating_add(body));
            }
            self.remaining = Remaining::Exactly(0);
        }
        Ok(())
    }

    /// The request is complete and the session reads on only to notice that the client has gone. What comes in instead of
    /// the end belongs to the next request and is kept for it, at most one buffer of it.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.read.is_empty() {
            return Poll::Pending;
        }
        if self.remaining == Remaining::Upgrade
            && let Some(end) = self.faults.upgrade_deadline()
            && self.reading.poll_until(end, cx).is_ready()
        {
            return Poll::Ready(Err(self.fault(Fault::UpgradeUnanswered)));
        }
        ready!(self.transport.poll_readable(cx))?;
        let mut spare = SPARE.take();
        spare.reserve(READ_CHUNK);
        match pin!(self.transport.read_buf(&mut spare)).poll(cx) {
            Poll::Ready(Ok(0)) => Poll::Ready(Ok(())),
            Poll::Ready(Ok(_)) if self.remaining == Remaining::Upgrade => Poll::Ready(Err(self.fault(Fault::EarlyBytes))),
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

impl<T: Transport> EdgeIo<T> {
    /// The session writes a head. With a 101 the connection becomes a tunnel.
    fn see_upgrade(&mut self, data: &[u8]) {
        if data.starts_with(b"HTTP/1.1 101") {
            self.remaining = Remaining::Tunnel;
            self.reading.reset(self.bounds.tunnel);
        } else if !data.starts_with(b"HTTP/1.1 1") {
            // Refused: a request like any other, which is complete.
            self.remaining = Remaining::Exactly(0);
        }
    }
}

impl<T: Transport> AsyncWrite for EdgeIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.remaining == Remaining::Upgrade {
            this.see_upgrade(data);
        }
        // Pingora writes a head at once. Other interim responses say nothing of the body.
        if this.awaits_continue && (data.starts_with(b"HTTP/1.1 100") || !data.starts_with(b"HTTP/1.1 1")) {
            this.awaits_continue = false;
        }
        if date::is_final_head(data)
            && let Some(date) = this.faults.date()
        {
            date::put(this.write.collect(data), &date);
            return Poll::Ready(Ok(data.len()));
        }
        let ending = this.ending.in_place_of(data, || this.faults.trailers());
        let done = this.poll_send(cx, ending.as_deref().unwrap_or(data));
        this.ending.wrote(data, ending, done)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        if this.remaining == Remaining::Streams {
            // Nobody says when a connection with streams begins to idle.
            this.write.give_back();
        }
        // Over TLS this waits for the socket to take what is encrypted.
        match Pin::new(&mut this.transport).poll_flush(cx) {
            Poll::Pending => this.poll_reader_too_slow(cx),
            done => done,
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(this.poll_drain(cx))?;
            ready!(Pin::new(&mut this.transport).poll_shutdown(cx))?;
            // Else the request was answered before it had arrived in full, or cannot be told from one that was.
            if matches!(this.remaining, Remaining::Exactly(0) | Remaining::Tunnel | Remaining::Streams) {
                return Poll::Ready(Ok(()));
            }
        }
        this.linger.get_or_insert_with(Linger::new).poll(&mut this.transport, cx)
    }
}

impl<T: Transport> Drop for EdgeIo<T> {
    fn drop(&mut self) {
        if self.faults.cut_off() {
            self.transport.reset_on_close();
        }
    }
}

#[async_trait]
impl<T: Transport> Shutdown for EdgeIo<T> {
    async fn shutdown(&mut self) {
        // An error is the client having gone. Pingora's HTTP/1 session does not come by here, but by `poll_shutdown`.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl<T: Transport> UniqueID for EdgeIo<T> {
    fn id(&self) -> UniqueIDType {
        self.transport.raw_fd()
    }
}

impl<T: Transport> Ssl for EdgeIo<T> {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        let facts = self.tls.as_ref()?;
        Some(Arc::new(SslDigest::new(facts.cipher, facts.version, None, None, Vec::new())))
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        let facts = self.tls.as_ref()?;
        Some(if facts.http2 { ALPN::H2 } else { ALPN::H1 })
    }
}

impl<T: Transport> Peek for EdgeIo<T> {}

impl<T: Transport> GetTimingDigest for EdgeIo<T> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl<T: Transport> GetProxyDigest for EdgeIo<T> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl<T: Transport> GetSocketDigest for EdgeIo<T> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

#[cfg(test)]
mod tests;
