//! Hedged requests: where the first endpoint takes longer than most answers do, a second one is asked as well, and whoever
//! answers first is heard (J. Dean, L. A. Barroso, "The Tail at Scale", 2013).
//!
//! Pingora has one upstream connection for a request at a time, and no way to race two. So the race is run below it, in the
//! connection: Pingora writes the request to a [`Race`] and reads the answer from it. The race sends what is written to the
//! first endpoint and keeps a copy. When no byte has come back after the delay, it sends the copy to a second endpoint, and
//! the first of the two that answers becomes the connection; the other one is closed.
//!
//! That bounds what can be hedged: requests without a body and with a safe method over plain HTTP/1.1 (with TLS the bytes
//! are sealed for one connection, in HTTP/2 a connection carries other requests), on a connection of their own that closes
//! after the answer, because it may be with another endpoint than Pingora knows. The second request is paid out of the
//! retry budget, so that an upstream that is slow as a whole sees a tenth more and not twice as much.

mod config;

pub use config::HedgeConfig;

use super::budget::Allowance;
use super::dial;
use super::endpoint::{InFlight, Tried};
use super::{Endpoint, Upstream};
use crate::telemetry::histogram::Histogram;
use crate::telemetry::metrics::Counter;
use async_trait::async_trait;
use pingora::Result;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::upstreams::peer::HttpPeer;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

/// The longest request head that is kept for a second endpoint, in bytes. A longer one is not hedged.
const HEAD_MAX: usize = 64 << 10;
/// Fewer answers than this make no percentile.
const ANSWERS_MIN: u64 = 100;
/// Keeps the connections of races apart in Pingora's pool from those that may be used again.
const GROUP: u64 = 0x4845_4447_4544_0001;

/// When a second endpoint is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    Fixed(Duration),
    /// Parts per million of the answers that come earlier, and the least delay.
    Percentile(u32, Duration),
}

impl After {
    /// The delay by what was observed so far; `None` where that is too little. With a percentile it is the upper bound of the
    /// histogram's bucket.
    pub fn delay(self, observed: &Histogram) -> Option<Duration> {
        match self {
            After::Fixed(delay) => Some(delay),
            After::Percentile(share, least) => Some(observed.quantile(share, ANSWERS_MIN)?.max(least)),
        }
    }
}

/// What is counted of an upstream's hedges.
#[derive(Debug, Default)]
pub struct HedgeState {
    /// Second requests that were sent.
    pub sent: Counter,
    /// Those whose answer came first.
    pub won: Counter,
}

/// How one request is hedged.
#[derive(Clone)]
pub struct Hedge {
    pub upstream: Arc<Upstream>,
    pub state: Arc<HedgeState>,
    pub first: Arc<Endpoint>,
    pub delay: Duration,
    pub allowance: Allowance,
    pub connect_timeout: Duration,
}

impl std::fmt::Debug for Hedge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hedge").field("delay", &self.delay).finish_non_exhaustive()
    }
}

impl Hedge {
    /// Makes the connection of this peer a race.
    pub fn attach(self, peer: &mut HttpPeer) {
        peer.group_key ^= GROUP;
        peer.options.custom_l4 = Some(Arc::new(self));
    }

    /// Sends the request to another endpoint, if there is one and the budget has room.
    fn second(&self, request: &[u8]) -> Option<Second> {
        let mut tried = Tried::new();
        tried.add(&self.first);
        let endpoint = self.upstream.select(&tried)?;
        let now = self.upstream.clock().now();
        let open = endpoint.guards().breaker.as_ref().is_some_and(|breaker| !breaker.would_admit(now));
        if open || !self.upstream.guards().budget.withdraw(self.allowance, now) {
            return None;
        }
        self.state.sent.increment();
        let (address, request, timeout) = (endpoint.address(), request.to_owned(), self.connect_timeout);
        let lease = endpoint.begin();
        let task = tokio::spawn(async move {
            let mut stream = tokio::time::timeout(timeout, TcpStream::connect(address)).await??;
            stream.set_nodelay(true)?;
            stream.write_all(&request).await?;
            Ok(stream)
        });
        Some(Second { way: Way::Connecting(task), state: Arc::clone(&self.state), _lease: lease })
    }
}

#[async_trait]
impl L4Connect for Hedge {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let first = dial::tcp(address).await?;
        let race = Race {
            first: Some(first),
            second: None,
            request: Vec::new(),
            timer: None,
            decided: false,
            hedge: Some(self.clone()),
        };
        Ok(dial::exchange(race, (), false, false))
    }
}

/// The second request on its way.
#[derive(Debug)]
struct Second {
    way: Way,
    state: Arc<HedgeState>,
    /// Counts the request in on its endpoint.
    _lease: InFlight,
}

#[derive(Debug)]
enum Way {
    Connecting(JoinHandle<io::Result<TcpStream>>),
    Open(TcpStream),
}

impl Drop for Second {
    fn drop(&mut self) {
        if let Way::Connecting(task) = &self.way {
            task.abort();
        }
    }
}

/// A connection that is with one endpoint or, until one of them answers, with two. At least one of `first` and `second` is
/// there for as long as nothing has failed.
#[derive(Debug)]
struct Race {
    first: Option<TcpStream>,
    second: Option<Second>,
    request: Vec<u8>,
    timer: Option<Pin<Box<Sleep>>>,
    decided: bool,
    /// Until the second request has been sent, or will not be.
    hedge: Option<Hedge>,
}

impl Race {
    fn decide_for_first(&mut self) {
        (self.decided, self.second, self.hedge, self.timer) = (true, None, None, None);
        self.request = Vec::new();
    }

    fn poll_first(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(first) = &mut self.first else { return Poll::Pending };
        let before = buf.filled().len();
        let outcome = ready!(Pin::new(first).poll_read(cx, buf));
        let answered = outcome.is_ok() && buf.filled().len() > before;
        if !answered && self.second.is_some() {
            // It has failed, but the other one may still answer.
            self.first = None;
            return Poll::Pending;
        }
        self.decide_for_first();
        Poll::Ready(outcome)
    }

    fn poll_second(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(second) = &mut self.second else { return Poll::Pending };
        if let Way::Connecting(task) = &mut second.way {
            match ready!(Pin::new(task).poll(cx)) {
                Ok(Ok(stream)) => second.way = Way::Open(stream),
                _ => return self.second_failed(),
            }
        }
        let Way::Open(stream) = &mut second.way else { return Poll::Pending };
        let before = buf.filled().len();
        match ready!(Pin::new(stream).poll_read(cx, buf)) {
            Ok(()) if buf.filled().len() > before => {
                if !self.decided {
                    (self.decided, self.first) = (true, None);
                    second.state.won.increment();
                }
                Poll::Ready(Ok(()))
            }
            ended if self.decided => Poll::Ready(ended),
            _ => self.second_failed(),
        }
    }

    fn second_failed(&mut self) -> Poll<io::Result<()>> {
        self.second = None;
        // Without the first one either, the connection has ended before an answer.
        if self.first.is_some() { Poll::Pending } else { Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())) }
    }

    /// Sends the second request when it is time.
    fn poll_hedge(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(hedge) = &self.hedge else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(hedge.delay)));
        ready!(timer.as_mut().poll(cx));
        self.second = hedge.second(&self.request);
        (self.hedge, self.timer) = (None, None);
        Poll::Ready(())
    }
}

impl AsyncRead for Race {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let race = self.get_mut();
        if let Poll::Ready(outcome) = race.poll_first(cx, buf) {
            return Poll::Ready(outcome);
        }
        let _ = race.poll_hedge(cx);
        race.poll_second(cx, buf)
    }
}

impl AsyncWrite for Race {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let race = self.get_mut();
        let Some(first) = &mut race.first else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        let length = ready!(Pin::new(first).poll_write(cx, bytes))?;
        if race.hedge.is_some() {
            race.request.extend_from_slice(bytes.get(..length).unwrap_or_default());
            if race.request.len() > HEAD_MAX {
                (race.hedge, race.request) = (None, Vec::new());
            }
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets have nothing to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let race = self.get_mut();
        match (&mut race.first, &mut race.second) {
            (Some(first), _) => Pin::new(first).poll_shutdown(cx),
            (None, Some(Second { way: Way::Open(stream), .. })) => Pin::new(stream).poll_shutdown(cx),
            _ => Poll::Ready(Ok(())),
        }
    }
}
