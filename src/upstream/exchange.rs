//! One request and its answer on a connection to an endpoint: the transport as Pingora's HTTP/1 client sees it.
//!
//! Seven things happen here that a plain socket does not do.
//! - What the endpoint answers is checked on its way in ([`AnswerScanner`]): a head arrives as a whole or not at all, and an
//!   answer that two readers could read differently is an error of the transport, with nothing of the piece passed on that
//!   showed it.
//! - Small parts of a body are collected until Pingora flushes: a chunk leaves in one system call.
//! - A chunked body ends with the trailers of the request, if it has some, which Pingora has none of to write.
//! - An exchange that has ended well gives its connection back to our own pool ([`Home`]) and not to Pingora's, which knows
//!   connections by their file descriptor and so none that is not a bare socket.
//! - A request that the endpoint does not take ends with the write that timed out. Pingora goes on to wait for an answer, for as
//!   long as reading may take.
//! - Bytes that come after an answer are found: those in the same piece make it an error, later ones end the connection.
//! - Waits are bounded ([`Patience`]) by one timer of the connection. Pingora's own timeouts would set one for each read.
//!
//! How the connection gets home: Pingora looks once more at a connection that it is about to keep, by a read of one byte
//! (`test_reusable_stream`). It is told that the connection has ended, drops it, and the drop is the way home. Nothing else
//! leads there: not an error, not an answer that is not over, not a request that was not sent as a whole, since Pingora then
//! does not ask.

use super::answer::{AnswerScanner, Asked, Malformed};
use super::place::Place;
use crate::alarm::Alarm;
use crate::http1::ending::Ending;
use crate::http1::trailers::Passing;
use crate::http1::write::{Collects, WriteBuffer};
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use pingora::{Error, ErrorType};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What requests can be sent on.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + Sync + std::fmt::Debug + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync + std::fmt::Debug + 'static> Transport for T {}

/// How long an exchange may wait for its endpoint. `None` is without bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Patience {
    /// For the head of the answer, and then for each piece of it.
    pub read: Option<Duration>,
    /// For the endpoint to take more of the request.
    pub write: Option<Duration>,
}

/// A connection to an endpoint, and the timer of its waits.
#[derive(Debug)]
pub struct Line<T> {
    pub transport: T,
    pub alarm: Alarm,
    /// On which runtime.
    pub opened: Place,
}

impl<T> Line<T> {
    pub fn new(transport: T) -> Self {
        Line { transport, alarm: Alarm::default(), opened: Place::here() }
    }
}

/// Where a connection goes that may be used again.
pub trait Home<T>: Unpin + Send + Sync + std::fmt::Debug + 'static {
    fn take_back(&mut self, line: Line<T>);
    /// The endpoint has spoken although nobody asked it. The connection is closed.
    fn spoke_unasked(&self);
}

/// Nowhere: it is closed.
impl<T> Home<T> for () {
    fn take_back(&mut self, _: Line<T>) {}
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

/// The endpoint took longer than its [`Patience`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Late {
    Answer,
    Request,
}

impl std::fmt::Display for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Late::Answer => "nothing has come for too long",
            Late::Request => "nothing could be sent for too long",
        })
    }
}

impl std::error::Error for Late {}

impl From<Late> for io::Error {
    fn from(late: Late) -> Self {
        io::Error::new(io::ErrorKind::TimedOut, late)
    }
}

/// Gives an error of an exchange that waited for too long the type that Pingora's own timeouts have: to Pingora it is one of
/// reading or writing.
pub fn name_late(error: &mut Error) {
    let cause = error.root_cause().downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match cause.and_then(|cause| cause.downcast_ref::<Late>()) {
        Some(Late::Answer) => error.etype = ErrorType::ReadTimedout,
        Some(Late::Request) => error.etype = ErrorType::WriteTimedout,
        None => {}
    }
}

#[derive(Debug)]
pub struct Exchange<T: Transport, H: Home<T>> {
    /// There until the drop.
    line: Option<Line<T>>,
    home: H,
    patience: Patience,
    /// Since when a read, or a write, has been waiting.
    reading_since: Option<Instant>,
    writing_since: Option<Instant>,
    answer: AnswerScanner,
    /// The request has begun, so that what was asked is known.
    asked: bool,
    /// Bytes that have come and were not passed on: `ready` ones with a verdict, then those of a head that goes on.
    held: Vec<u8>,
    ready: usize,
    write: WriteBuffer,
    /// A write or flush was given up.
    stalled: bool,
    /// Something of an answer has come.
    spoken: bool,
    /// It may be used again.
    kept: bool,
    trailers: Passing,
    ending: Ending,
}

impl<T: Transport, H: Home<T>> Exchange<T, H> {
    /// `upgrade`: the request to come asks for another protocol.
    pub fn new(line: Line<T>, home: H, patience: Patience, upgrade: bool, trailers: Passing) -> Self {
        let asked = if upgrade { Asked::Upgrade } else { Asked::Other };
        Exchange {
            line: Some(line),
            home,
            patience,
            reading_since: None,
            writing_since: None,
            answer: AnswerScanner::new(asked).keeping_trailers(trailers.answer.is_some()),
            asked: false,
            held: Vec::new(),
            ready: 0,
            write: WriteBuffer::new(),
            stalled: false,
            spoken: false,
            kept: false,
            trailers,
            ending: Ending::new(),
        }
    }

    /// Nothing can be read now.
    fn wait_for_answer<R>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        wait(self.line.as_mut(), &mut self.reading_since, self.patience.read, Late::Answer, cx)
    }

    /// Nothing can be written now.
    fn wait_for_room<R>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        let late = wait(self.line.as_mut(), &mut self.writing_since, self.patience.write, Late::Request, cx);
        self.stalled = late.is_ready();
        late
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

    /// Reads until something can be passed on. Trailers are there before anybody knows that the answer is over.
    fn poll_answer(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.poll_scanned(cx, out);
        if let Some(trailers) = &self.trailers.answer
            && let Some(section) = self.answer.take_trailers()
        {
            trailers.keep_section(&section);
        }
        read
    }

    /// A head that comes in pieces is put together here.
    fn poll_scanned(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(Line { transport, .. }) = &mut self.line else { return Poll::Ready(Ok(())) };
        loop {
            let before = out.filled().len();
            ready!(Pin::new(&mut *transport).poll_read(cx, out))?;
            let fresh = out.filled().get(before..).unwrap_or_default();
            if fresh.is_empty() {
                // The end. Whether it comes too early is for whoever waits for more to say.
                return Poll::Ready(Ok(()));
            }
            self.spoken = true;
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
            && let Some(Line { transport, .. }) = &mut self.line
        {
            let state = look(transport);
            self.kept = state == Idle::Quiet;
            if state == Idle::Spoke {
                self.home.spoke_unasked();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport, H: Home<T>> Collects for Exchange<T, H> {
    fn collected(&self) -> &WriteBuffer {
        &self.write
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(Line { transport, .. }) = &mut self.line else { return Poll::Ready(Ok(())) };
        if self.write.is_empty() { Poll::Ready(Ok(())) } else { self.write.poll_drain(transport, cx, &mut 0) }
    }
}

/// Ready, with an error, when a wait has lasted too long.
fn wait<T, R>(
    line: Option<&mut Line<T>>,
    since: &mut Option<Instant>,
    most: Option<Duration>,
    late: Late,
    cx: &mut Context<'_>,
) -> Poll<io::Result<R>> {
    let (Some(line), Some(most)) = (line, most) else { return Poll::Pending };
    let since = *since.get_or_insert_with(Instant::now);
    let Some(end) = since.checked_add(most) else { return Poll::Pending };
    ready!(line.alarm.poll_late(end, cx));
    Poll::Ready(Err(late.into()))
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
        match this.poll_answer(cx, out) {
            // An answer that came early is passed on; none will come to a request that breaks off.
            Poll::Pending if this.stalled && !this.spoken => Poll::Ready(Err(Late::Request.into())),
            Poll::Pending => this.wait_for_answer(cx),
            done => {
                this.reading_since = None;
                done
            }
        }
    }
}

impl<T: Transport, H: Home<T>> AsyncWrite for Exchange<T, H> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(Line { transport, .. }) = &mut this.line else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        let written = if let (true, Some(trailers)) = (this.asked, &this.trailers.request) {
            let ending = this.ending.in_place_of(data, || trailers.copy());
            let done = this.write.poll_write(transport, cx, ending.as_deref().unwrap_or(data), &mut 0);
            this.ending.wrote(data, ending, done)
        } else if this.asked {
            this.write.poll_write(transport, cx, data, &mut 0)
        } else {
            // The head comes first, and whole. A flush follows it, so that to collect it would only be a copy more.
            if data.starts_with(b"HEAD ") {
                this.answer = AnswerScanner::new(Asked::Head);
            }
            let written = this.ending.wrote(data, None, Pin::new(transport).poll_write(cx, data));
            this.asked = written.is_ready();
            written
        };
        match written {
            Poll::Pending => this.wait_for_room(cx),
            done => {
                this.writing_since = None;
                done
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = match this.poll_drain(cx) {
            Poll::Ready(Ok(())) => match &mut this.line {
                // Over TLS this waits for the socket to take what is encrypted.
                Some(line) => Pin::new(&mut line.transport).poll_flush(cx),
                None => return Poll::Ready(Ok(())),
            },
            other => other,
        };
        match flushed {
            Poll::Pending => this.wait_for_room(cx),
            done => {
                this.writing_since = None;
                done
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.kept = false;
        ready!(this.poll_drain(cx))?;
        let Some(Line { transport, .. }) = &mut this.line else { return Poll::Ready(Ok(())) };
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
            && let Some(line) = self.line.take()
        {
            self.home.take_back(line);
        }
    }
}

#[cfg(test)]
mod tests;
