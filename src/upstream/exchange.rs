//! One request and its answer on a connection to an endpoint: the transport as Pingora's HTTP/1 client sees it.
//!
//! Four things happen here that a plain socket does not do.
//! - What the endpoint answers is checked on its way in ([`AnswerScanner`]): a head arrives as a whole or not at all, and an
//!   answer that two readers could read differently is an error of the transport, with nothing of the piece passed on that
//!   showed it.
//! - Small parts of a body are collected until Pingora flushes: a chunk leaves in one system call.
//! - An exchange that has ended well gives its connection back to our own pool ([`Home`]) and not to Pingora's, which knows
//!   connections by their file descriptor and so none that is not a bare socket.
//! - Bytes that come after an answer are found: those in the same piece make it an error, later ones end the connection.
//!
//! How the connection gets home: Pingora looks once more at a connection that it is about to keep, by a read of one byte
//! (`test_reusable_stream`). It is told that the connection has ended, drops it, and the drop is the way home. Nothing else
//! leads there: not an error, not an answer that is not over, not a request that was not sent as a whole, since Pingora then
//! does not ask.

use super::answer::{AnswerScanner, Asked, Malformed};
use crate::http1::write::WriteBuffer;
use pingora::Error;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What requests can be sent on.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + Sync + std::fmt::Debug + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync + std::fmt::Debug + 'static> Transport for T {}

/// Where a connection goes that may be used again.
pub trait Home<T>: Unpin + Send + Sync + std::fmt::Debug + 'static {
    fn take_back(&mut self, transport: T);
    /// The endpoint has spoken although nobody asked it. The connection is closed.
    fn spoke_unasked(&self);
}

/// Nowhere: it is closed.
impl<T> Home<T> for () {
    fn take_back(&mut self, _: T) {}
    fn spoke_unasked(&self) {}
}

/// How a connection is that nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    Quiet,
    Closed,
    /// There are bytes to read.
    Spoke,
}

/// Looks whether a connection that waits for its next request is still what it was. Asks the kernel only if the reactor has
/// news of it.
pub fn look<T: Transport>(transport: &mut T) -> Idle {
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    // Nobody else waits for it, so that nobody's waker is lost.
    match Pin::new(transport).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer) {
        Poll::Pending => Idle::Quiet,
        Poll::Ready(Ok(())) if !buffer.filled().is_empty() => Idle::Spoke,
        Poll::Ready(_) => Idle::Closed,
    }
}

/// Why an exchange failed, if that was because of what the endpoint answered.
pub fn malformed(error: &Error) -> Option<Malformed> {
    let cause = error.root_cause().downcast_ref::<io::Error>()?;
    cause.get_ref()?.downcast_ref::<Malformed>().copied()
}

#[derive(Debug)]
pub struct Exchange<T: Transport, H: Home<T>> {
    /// There until the drop.
    transport: Option<T>,
    home: H,
    answer: AnswerScanner,
    /// The request has begun, so that what was asked is known.
    asked: bool,
    /// Bytes that have come and were not passed on: `ready` ones with a verdict, then those of a head that goes on.
    held: Vec<u8>,
    ready: usize,
    write: WriteBuffer,
    /// It may be used again.
    kept: bool,
}

impl<T: Transport, H: Home<T>> Exchange<T, H> {
    /// `upgrade`: the request to come asks for another protocol.
    pub fn new(transport: T, home: H, upgrade: bool) -> Self {
        Exchange {
            transport: Some(transport),
            home,
            answer: AnswerScanner::new(if upgrade { Asked::Upgrade } else { Asked::Other }),
            asked: false,
            held: Vec::new(),
            ready: 0,
            write: WriteBuffer::new(),
            kept: false,
        }
    }

    fn refuse(why: Malformed) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)))
    }

    /// Passes on what has been found good, as much as there is room for.
    fn deliver(&mut self, out: &mut ReadBuf<'_>) {
        let part = self.ready.min(out.remaining());
        out.put_slice(self.held.get(..part).unwrap_or_default());
        self.held.drain(..part.min(self.held.len()));
        self.ready = self.ready.saturating_sub(part);
        if self.held.is_empty() {
            self.held = Vec::new();
        }
    }

    /// Reads until something can be passed on. A head that comes in pieces is put together here.
    fn poll_answer(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(transport) = &mut self.transport else { return Poll::Ready(Ok(())) };
        loop {
            let before = out.filled().len();
            ready!(Pin::new(&mut *transport).poll_read(cx, out))?;
            let fresh = out.filled().get(before..).unwrap_or_default();
            if fresh.is_empty() {
                // The end. Whether it comes too early is for whoever waits for more to say.
                return Poll::Ready(Ok(()));
            }
            if self.held.is_empty() {
                let good = match self.answer.scan(fresh) {
                    Ok(good) => good,
                    Err(why) => return Self::refuse(why),
                };
                self.held.extend_from_slice(fresh.get(good..).unwrap_or_default());
                out.set_filled(before.saturating_add(good));
                if good > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                self.held.extend_from_slice(fresh);
                out.set_filled(before);
                self.ready = match self.answer.scan(&self.held) {
                    Ok(good) => good,
                    Err(why) => return Self::refuse(why),
                };
                if self.ready > 0 {
                    self.deliver(out);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// The answer is over, and somebody reads on.
    fn poll_over(&mut self, out: &ReadBuf<'_>) -> Poll<io::Result<()>> {
        if out.remaining() == 1
            && self.write.is_empty()
            && let Some(transport) = &mut self.transport
        {
            let state = look(transport);
            self.kept = state == Idle::Quiet;
            if state == Idle::Spoke {
                self.home.spoke_unasked();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What has been collected goes out when whoever writes turns to reading: the endpoint may wait for it.
    fn flush_while_waiting(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.write.is_empty() {
            return Ok(());
        }
        match self.poll_drain(cx) {
            Poll::Ready(done) => done,
            // The endpoint is slow. The next write or flush waits for it; this read must not.
            Poll::Pending => Ok(()),
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(transport) = &mut self.transport else { return Poll::Ready(Ok(())) };
        if self.write.is_empty() { Poll::Ready(Ok(())) } else { self.write.poll_drain(transport, cx, &mut 0) }
    }
}

impl<T: Transport, H: Home<T>> AsyncRead for Exchange<T, H> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.flush_while_waiting(cx)?;
        if this.ready > 0 {
            this.deliver(out);
            return Poll::Ready(Ok(()));
        }
        if this.answer.is_over() {
            return this.poll_over(out);
        }
        this.poll_answer(cx, out)
    }
}

impl<T: Transport, H: Home<T>> AsyncWrite for Exchange<T, H> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(transport) = &mut this.transport else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        if this.asked {
            return this.write.poll_write(transport, cx, data, &mut 0);
        }
        // The head comes first, and whole. A flush follows it, so that to collect it would only be a copy more.
        if data.starts_with(b"HEAD ") {
            this.answer = AnswerScanner::new(Asked::Head);
        }
        let written = ready!(Pin::new(transport).poll_write(cx, data));
        this.asked = true;
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        let Some(transport) = &mut this.transport else { return Poll::Ready(Ok(())) };
        // Over TLS this waits for the socket to take what is encrypted.
        Pin::new(transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.kept = false;
        ready!(this.poll_drain(cx))?;
        let Some(transport) = &mut this.transport else { return Poll::Ready(Ok(())) };
        Pin::new(transport).poll_shutdown(cx)
    }
}

impl<T: Transport, H: Home<T>> VirtualSocket for Exchange<T, H> {
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        // The socket was set up when it was opened.
        Ok(())
    }
}

impl<T: Transport, H: Home<T>> Drop for Exchange<T, H> {
    fn drop(&mut self) {
        self.write.give_back();
        if self.kept
            && let Some(transport) = self.transport.take()
        {
            self.home.take_back(transport);
        }
    }
}

#[cfg(test)]
mod tests;
