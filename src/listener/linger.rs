//! The last moment of a connection whose client is still talking.
//!
//! A socket that is closed with unread bytes in it makes the kernel send a reset, and a reset can overtake the answer that the
//! client has not read yet: it sees a broken connection instead of the 413 that says why (RFC 9112 §9.6). So our side is
//! closed first, and what still comes in is read and dropped, for [`TIME`] and [`BYTES`] at most.

use super::transport::Transport;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::ReadBuf;
use tokio::time::{Sleep, sleep};

/// How long reading goes on.
pub const TIME: Duration = Duration::from_secs(1);
/// And for how many bytes.
const BYTES: usize = 1 << 20;

pub struct Linger {
    end: Pin<Box<Sleep>>,
    left: usize,
}

impl Linger {
    pub fn new() -> Self {
        Linger { end: Box::pin(sleep(TIME)), left: BYTES }
    }

    /// Reads on until the client has closed its side, or either bound is reached.
    pub fn poll<T: Transport>(&mut self, transport: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [0_u8; 4096];
        while self.left > 0 && self.end.as_mut().poll(cx).is_pending() {
            let mut read = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut *transport).poll_read(cx, &mut read))?;
            match read.filled().len() {
                0 => break,
                bytes => self.left = self.left.saturating_sub(bytes),
            }
        }
        Poll::Ready(Ok(()))
    }
}
