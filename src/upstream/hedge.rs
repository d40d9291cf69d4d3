//! Hedged requests: where the first endpoint takes longer than most answers do, a second one is asked as well, and whoever
//! answers first is heard (J. Dean, L. A. Barroso, "The Tail at Scale", 2013).
//!
//! Pingora has one upstream connection for a request at a time, and no way to race two. So the race is run beside it: the
//! peer that it gets connects to a pipe ([`wire`]), and at the other end of the pipe a task ([`race`]) sends the request
//! to the endpoints, by whatever protocol they speak ([`super::exchanger`]), and writes the first answer into the pipe. Both
//! requests use kept connections, and give them back.
//!
//! What each endpoint did counts for itself ([`leg`]). The one that answers stands for the request from then on: its
//! breaker, its outlier detection and its latency get what the client gets. The one that is late is read to the head of its
//! answer beside the path, within a bound: it may be slow, or it may never answer, and only that tells which. For the
//! breakers of upstream and route a hedged request is one call.
//!
//! Only requests without a body and with a safe method are hedged. The second one is paid out of the retry budget, so that
//! an upstream that is slow as a whole sees a tenth more and not twice as much, and takes a place of the overload limit.

mod config;
mod leg;
mod race;
mod wire;

pub use config::HedgeConfig;
pub use leg::{Leg, Ticket, Told};

use super::Upstream;
use super::budget::Allowance;
use super::endpoint::InFlight;
use super::exchanger::Exchanger;
use super::guards::HedgePlan;
use crate::telemetry::histogram::Histogram;
use crate::telemetry::metrics::{Counter, UpstreamMetrics};
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use race::Race;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

/// Fewer answers than this make no percentile.
const ANSWERS_MIN: u64 = 100;
/// Requests that have lost and are still waited for, of one upstream. Further ones are given up at once.
const LINGERING: usize = 64;
/// Idle connections of all hedged upstreams together. How many there are for one endpoint `keepalive` bounds.
pub const IDLE: usize = 4096;

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

/// What is counted of an upstream's hedges. Outlives reloads.
#[derive(Debug)]
pub struct HedgeState {
    /// Second requests that were sent.
    pub sent: Counter,
    /// Those whose answer came first.
    pub won: Counter,
    lingering: Arc<Semaphore>,
}

impl Default for HedgeState {
    fn default() -> Self {
        HedgeState { sent: Counter::default(), won: Counter::default(), lingering: Arc::new(Semaphore::new(LINGERING)) }
    }
}

/// How one request is hedged.
pub struct Hedge {
    pub upstream: Arc<Upstream>,
    pub plan: Arc<HedgePlan>,
    pub metrics: Arc<UpstreamMetrics>,
    pub delay: Duration,
    pub allowance: Allowance,
    /// Which part of the overload limit it may fill, in percent.
    pub share: u32,
    /// When it must be answered.
    pub deadline: Option<Instant>,
}

impl Hedge {
    /// The peer that makes the connection a race, and the ticket by which the request takes part in it. `first` is what is
    /// known of the first endpoint, `lease` counts the request in on it, and `peer` is how it is connected to.
    pub fn attach(self, first: Leg, lease: InFlight, peer: Box<HttpPeer>) -> (Box<HttpPeer>, Ticket) {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(first.began));
        let mut pipe = Box::new(first.endpoint.pipe_peer(left));
        let (go, head) = oneshot::channel();
        let ticket = Ticket::new(first, go);
        let race = Race { hedge: self, board: ticket.board(), head, lease, peer };
        pipe.options.custom_l4 = Some(Arc::new(Start(Mutex::new(Some(race)))));
        (pipe, ticket)
    }
}

/// A race that begins when Pingora connects.
struct Start(Mutex<Option<Race>>);

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a race")
    }
}

#[async_trait]
impl L4Connect for Start {
    async fn connect(&self, _: &SocketAddr) -> Result<Stream> {
        let Some(race) = self.0.lock().take() else {
            return Error::e_explain(ErrorType::InternalError, "a race is run once");
        };
        let (out, socket) = wire::pair();
        tokio::spawn(race.run(out));
        Ok(VirtualSocketStream::new(Box::new(socket)).into())
    }
}

/// What hedges of all upstreams are sent by.
pub(super) fn exchanger() -> Exchanger {
    Exchanger::new(IDLE)
}
