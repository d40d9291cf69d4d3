//! Small writes, collected until they are flushed: a head and its body, or the parts of a chunk, leave in one system call,
//! are one segment more often, and wake the other end once.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Writes below this many bytes wait for the flush that follows them.
const ROOM: usize = 16 << 10;

thread_local! {
    /// One buffer for each worker: what a connection gave back when it began to idle.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What has been written and not sent. `written` of its methods grows by what the transport took in the call, also where it
/// did not take everything.
#[derive(Debug, Default)]
pub struct WriteBuffer(Vec<u8>);

impl WriteBuffer {
    pub const fn new() -> Self {
        WriteBuffer(Vec::new())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What it holds of memory, in bytes.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Drops what is in it, and lends its memory to whoever writes next on this thread.
    pub fn give_back(&mut self) {
        if self.0.capacity() > 0 {
            self.0.clear();
            SPARE.set(std::mem::take(&mut self.0));
        }
    }

    /// Sends what is there.
    pub fn poll_drain<T: AsyncWrite + Unpin>(
        &mut self,
        transport: &mut T,
        cx: &mut Context<'_>,
        written: &mut usize,
    ) -> Poll<io::Result<()>> {
        let mut sent = 0_usize;
        let done = loop {
            let Some(rest) = self.0.get(sent..).filter(|rest| !rest.is_empty()) else { break Poll::Ready(Ok(())) };
            match Pin::new(&mut *transport).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => sent = sent.saturating_add(n),
                Poll::Ready(Err(e)) => break Poll::Ready(Err(e)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.0.drain(..sent.min(self.0.len()));
        *written = written.saturating_add(sent);
        done
    }

    /// Takes `data` in, or sends it where it is not worth collecting.
    pub fn poll_write<T: AsyncWrite + Unpin>(
        &mut self,
        transport: &mut T,
        cx: &mut Context<'_>,
        data: &[u8],
        written: &mut usize,
    ) -> Poll<io::Result<usize>> {
        if data.len() >= ROOM {
            return self.poll_write_large(transport, cx, data, written);
        }
        if self.0.len().saturating_add(data.len()) > ROOM {
            ready!(self.poll_drain(transport, cx, written))?;
        }
        self.collect(data);
        Poll::Ready(Ok(data.len()))
    }

    /// Takes all of `data` in, which is the head of a response or no longer than one, and lends it to be amended.
    pub fn collect(&mut self, data: &[u8]) -> &mut [u8] {
        let room = self.room();
        let start = room.len();
        room.extend_from_slice(data);
        room.get_mut(start..).unwrap_or_default()
    }

    /// What is collected, to write to.
    pub fn room(&mut self) -> &mut Vec<u8> {
        if self.0.capacity() == 0 {
            self.0 = SPARE.take();
        }
        &mut self.0
    }

    /// Sends `data` together with what has been collected before it.
    fn poll_write_large<T: AsyncWrite + Unpin>(
        &mut self,
        transport: &mut T,
        cx: &mut Context<'_>,
        data: &[u8],
        written: &mut usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            let collected = self.0.len();
            let sent = if collected == 0 {
                ready!(Pin::new(&mut *transport).poll_write(cx, data))?
            } else {
                let both = [IoSlice::new(&self.0), IoSlice::new(data)];
                ready!(Pin::new(&mut *transport).poll_write_vectored(cx, &both))?
            };
            *written = written.saturating_add(sent);
            self.0.drain(..sent.min(collected));
            let of_data = sent.saturating_sub(collected);
            // Nothing of a transport that takes nothing is an error to whoever writes.
            if of_data > 0 || sent == 0 {
                return Poll::Ready(Ok(of_data));
            }
        }
    }
}

/// What collects its writes in a [`WriteBuffer`], and is read from as well.
pub trait Collects {
    fn collected(&self) -> &WriteBuffer;
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Sends what is there when whoever writes turns to reading. It is waiting for something, maybe for long, and has not
    /// flushed what it wrote of a message whose length is known: the other end may wait for just that.
    fn flush_while_waiting(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.collected().is_empty() {
            return Ok(());
        }
        match self.poll_drain(cx) {
            Poll::Ready(done) => done,
            // The other end is slow. The next write or flush waits for it; this read must not.
            Poll::Pending => Ok(()),
        }
    }
}
