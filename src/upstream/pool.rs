//! Idle connections to endpoints, for HTTP/1: one [`Pool`] for each endpoint, and one [`Keeper`] of all of them.
//!
//! Pingora's pool is not used for these: it tells connections apart by file descriptor, and those of an [`Exchange`] have
//! none that it could see. This one also costs less. A connection is one entry of a list behind a lock that is held for a
//! push or a pop; nothing is spawned for it and no timer runs. Who takes one looks whether it is still quiet, and once a
//! second the keeper does so for all and closes those whose time is over. The one that was used last is taken first, so that
//! those which are not needed grow old and go; before it come those that the same worker has opened.
//!
//! How many an endpoint has is bounded by who may put one in, see [`InFlight::may_pool`]; how many there are in all by the
//! keeper, which closes the one that has been idle longest.
//!
//! [`Exchange`]: super::exchange::Exchange
//! [`InFlight::may_pool`]: super::InFlight::may_pool

use super::answer::Malformed;
use super::exchange::{Home, Idle, Line, look};
use super::place::Place;
use crate::alarm::Alarm;
use crate::state::StatePool;
use crate::telemetry::metrics::UpstreamMetrics;
use parking_lot::Mutex;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// How often idle connections are looked at.
const TURN: Duration = Duration::from_secs(1);
/// Until the configuration says how many there may be in all.
const MOST: usize = 1024;

/// An open connection to an endpoint.
#[derive(Debug)]
pub enum Link {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// All idle connections of the process.
#[derive(Debug)]
pub struct Keeper {
    pools: Mutex<Vec<Weak<Pool>>>,
    idle: AtomicUsize,
    most: AtomicUsize,
}

impl Keeper {
    /// The one of this process.
    pub fn of(state: &StatePool) -> Arc<Keeper> {
        let new = || Keeper { pools: Mutex::default(), idle: AtomicUsize::new(0), most: AtomicUsize::new(MOST) };
        state.get_or_create("", new)
    }

    /// At most so many are kept.
    pub fn keep_at_most(&self, most: usize) {
        self.most.store(most, Relaxed);
    }

    /// Closes connections as their time is over or their endpoint has closed them. For as long as it is polled.
    pub async fn tend(&self) {
        loop {
            tokio::time::sleep(TURN).await;
            let now = Instant::now();
            self.live().iter().for_each(|pool| pool.sweep(now));
        }
    }

    fn live(&self) -> Vec<Arc<Pool>> {
        let mut pools = self.pools.lock();
        pools.retain(|pool| pool.strong_count() > 0);
        pools.iter().filter_map(Weak::upgrade).collect()
    }

    /// Makes room for one more.
    fn enter(&self) {
        if self.idle.fetch_add(1, Relaxed) < self.most.load(Relaxed) {
            return;
        }
        let pools = self.live();
        let oldest = pools.iter().filter_map(|pool| Some((pool.oldest()?, pool))).min_by_key(|(since, _)| *since);
        if let Some((_, pool)) = oldest {
            pool.drop_oldest();
        }
    }

    fn leave(&self, number: usize) {
        self.idle.fetch_sub(number, Relaxed);
    }
}

/// The idle connections of one endpoint. It outlives a reload, and ends with its endpoint.
#[derive(Debug)]
pub struct Pool {
    /// In the order in which they came.
    idle: Mutex<Vec<Entry>>,
    keeper: Arc<Keeper>,
    metrics: Arc<UpstreamMetrics>,
}

#[derive(Debug)]
struct Entry {
    line: Line<Link>,
    since: Instant,
    until: Instant,
}

impl Pool {
    /// The pool under this key, which names the endpoint and everything that its connections are made with.
    pub fn of(state: &StatePool, key: &str, metrics: &Arc<UpstreamMetrics>) -> Arc<Pool> {
        let keeper = Keeper::of(state);
        let new = || Pool { idle: Mutex::default(), keeper: Arc::clone(&keeper), metrics: Arc::clone(metrics) };
        let pool = state.get_or_create(key, new);
        let mut known = keeper.pools.lock();
        if !known.iter().any(|other| std::ptr::eq(other.as_ptr(), Arc::as_ptr(&pool))) {
            known.push(Arc::downgrade(&pool));
        }
        pool
    }

    /// A connection that can be used, if there is one.
    pub fn take(&self) -> Option<Line<Link>> {
        let here = Place::here();
        loop {
            let mut entry = {
                let mut idle = self.idle.lock();
                let (mut own, mut lent) = (None, None);
                for (at, entry) in idle.iter().enumerate().rev() {
                    if entry.line.opened == here {
                        own = Some(at);
                        break;
                    }
                    if lent.is_none() && entry.line.opened.lends_to(here) {
                        lent = Some(at);
                    }
                }
                idle.remove(own.or(lent)?)
            };
            self.keeper.leave(1);
            if entry.until > Instant::now() && self.is_quiet(&mut entry.line.transport) {
                if entry.line.opened != here {
                    // The timer of its waits is another worker's, which may be busy.
                    entry.line.alarm = Alarm::default();
                }
                return Some(entry.line);
            }
        }
    }

    /// Keeps a connection for at most this long.
    fn put(&self, line: Line<Link>, idle: Duration) {
        let since = Instant::now();
        let Some(until) = since.checked_add(idle) else { return };
        self.keeper.enter();
        self.idle.lock().push(Entry { line, since, until });
    }

    fn is_quiet(&self, link: &mut Link) -> bool {
        let state = look(link);
        if state == Idle::Spoke {
            self.spoke_unasked();
        }
        state == Idle::Quiet
    }

    fn spoke_unasked(&self) {
        self.metrics.malformed.count(Malformed::Excess as usize);
    }

    fn oldest(&self) -> Option<Instant> {
        self.idle.lock().first().map(|entry| entry.since)
    }

    fn drop_oldest(&self) {
        let mut idle = self.idle.lock();
        if !idle.is_empty() {
            let entry = idle.remove(0);
            drop(idle);
            self.keeper.leave(1);
            drop(entry);
        }
    }

    fn sweep(&self, now: Instant) {
        let mut idle = self.idle.lock();
        // Closed when the lock is free again.
        let gone: Vec<Entry> =
            idle.extract_if(.., |entry| entry.until <= now || !self.is_quiet(&mut entry.line.transport)).collect();
        drop(idle);
        self.keeper.leave(gone.len());
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.keeper.leave(self.idle.get_mut().len());
    }
}

/// The way back into a pool.
#[derive(Debug)]
pub struct Way {
    pub pool: Arc<Pool>,
    /// How long a connection may wait there.
    pub idle: Duration,
}

impl Home<Link> for Way {
    fn take_back(&mut self, line: Line<Link>) {
        self.pool.put(line, self.idle);
    }

    fn spoke_unasked(&self) {
        self.pool.spoke_unasked();
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_read(cx, out),
            Link::Tls(stream) => Pin::new(stream).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_write(cx, data),
            Link::Tls(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, data),
            Link::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Link::Plain(stream) => stream.is_write_vectored(),
            Link::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Link::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Link::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests;
