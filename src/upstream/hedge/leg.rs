//! What is known of the two requests of a race, and what the request that they are made for learns of it.

use crate::telemetry::metrics::UpstreamMetrics;
use crate::upstream::breaker::{self, Permit};
use crate::upstream::exchanger::Failed;
use crate::upstream::{Endpoint, Upstream};
use parking_lot::Mutex;
use pingora::ErrorType;
use pingora::http::{RequestHeader, ResponseHeader};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// One of the two requests.
pub struct Leg {
    pub endpoint: Arc<Endpoint>,
    /// Of the endpoint's breaker.
    pub permit: Option<Permit>,
    pub began: Instant,
    /// How long it took to connect; `None` if the connection was kept, or does not stand yet.
    pub connect_time: Option<Duration>,
    pub reused: bool,
}

/// Who has to know how a request ended that nobody else tells of.
#[derive(Clone)]
pub(super) struct Accounts {
    pub upstream: Arc<Upstream>,
    pub metrics: Arc<UpstreamMetrics>,
}

impl Leg {
    pub fn new(endpoint: Arc<Endpoint>, permit: Option<Permit>, began: Instant) -> Self {
        Leg { endpoint, permit, began, connect_time: None, reused: false }
    }

    /// An answer that nobody hears: the endpoint gave it all the same.
    pub(super) fn answered(self, head: Option<&ResponseHeader>, accounts: &Accounts) {
        let Accounts { upstream, metrics } = accounts;
        let now = upstream.clock().now();
        let status = head.map_or(0, |head| head.status.as_u16());
        let failed = head.is_none_or(|head| breaker::is_failure(status, breaker::grpc_status(&head.headers)));
        let took = now.saturating_duration_since(self.began).saturating_sub(self.connect_time.unwrap_or_default());
        metrics.attempted(Some(status));
        self.endpoint.answered(took, now);
        if let (Some(overload), false) = (&upstream.guards().overload, failed) {
            overload.answered(took, now);
        }
        self.record(failed, Some(took), now);
    }

    /// It failed, and another endpoint's answer is heard or waited for.
    pub(super) fn failed(self, failed: &Failed, accounts: &Accounts) {
        let Accounts { upstream, metrics } = accounts;
        let now = upstream.clock().now();
        if failed.unsent {
            metrics.connect_failures.increment();
            self.endpoint.state().count_connect_failure();
        } else {
            metrics.attempted(None);
            self.endpoint.state().count_error();
        }
        self.endpoint.failed(now.saturating_duration_since(self.began), now);
        if let (ErrorType::ReadTimedout, Some(overload)) = (failed.error.etype(), &upstream.guards().overload) {
            overload.timed_out(now);
        }
        self.record(true, None, now);
    }

    fn record(self, failed: bool, took: Option<Duration>, now: Instant) {
        self.endpoint.guards().record(failed, took, now);
        if let Some(permit) = self.permit {
            permit.record(failed, took, now);
        }
    }
}

/// Where a race stands.
#[derive(Default)]
pub(super) struct Board(Mutex<Standing>);

#[derive(Default)]
struct Standing {
    legs: [Option<Leg>; 2],
    /// Which of them stands for the request: the one whose answer is heard, or the one that failed last.
    speaker: usize,
    /// Whose answer is heard is settled.
    decided: bool,
    /// An endpoint that failed while the other was waited for.
    tried: Option<Arc<Endpoint>>,
    failed: Option<Failed>,
}

impl Board {
    pub fn add(&self, at: usize, leg: Leg) {
        if let Some(slot) = self.0.lock().legs.get_mut(at) {
            *slot = Some(leg);
        }
    }

    /// Somebody else tells how this one ends.
    pub fn take(&self, at: usize) -> Option<Leg> {
        self.0.lock().legs.get_mut(at)?.take()
    }

    pub fn connected(&self, at: usize, took: Option<Duration>) {
        if let Some(Some(leg)) = self.0.lock().legs.get_mut(at) {
            (leg.connect_time, leg.reused) = (took, took.is_none());
        }
    }

    pub fn endpoint(&self, at: usize) -> Option<Arc<Endpoint>> {
        Some(Arc::clone(&self.0.lock().legs.get(at)?.as_ref()?.endpoint))
    }

    /// Nobody else is asked, and nobody has answered.
    pub fn is_alone(&self) -> bool {
        let standing = self.0.lock();
        !standing.decided && standing.legs.get(1).is_some_and(Option::is_none)
    }

    /// This one's answer is heard.
    pub fn decide(&self, at: usize) {
        let mut standing = self.0.lock();
        (standing.speaker, standing.decided) = (at, true);
    }

    /// One has failed, and the other stands for the request from here on. Gives the one that failed.
    pub fn drop_out(&self, at: usize) -> Option<Leg> {
        let mut standing = self.0.lock();
        standing.speaker = 1_usize.saturating_sub(at);
        let leg = standing.legs.get_mut(at)?.take()?;
        standing.tried = Some(Arc::clone(&leg.endpoint));
        Some(leg)
    }

    pub fn fail(&self, failed: Failed) {
        self.0.lock().failed = Some(failed);
    }
}

/// How the request takes part in its race.
pub struct Ticket {
    board: Arc<Board>,
    go: Option<oneshot::Sender<Box<RequestHeader>>>,
}

/// What the request learns.
pub struct Told {
    /// What stands for it from here on; `None` when this was told before.
    pub leg: Option<Leg>,
    pub tried: Option<Arc<Endpoint>>,
    pub failed: Option<Failed>,
}

impl Ticket {
    pub(super) fn new(first: Leg, go: oneshot::Sender<Box<RequestHeader>>) -> Self {
        let board = Arc::<Board>::default();
        board.add(0, first);
        Ticket { board, go: Some(go) }
    }

    pub(super) fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Sends the request on its way.
    pub fn send(&mut self, head: &RequestHeader) {
        if let Some(go) = self.go.take() {
            // Without a receiver there is no connection either, which Pingora finds out.
            let _ = go.send(Box::new(head.clone()));
        }
    }

    /// Where the race stands, for an answer that has come or will not come.
    pub fn settle(&self) -> Told {
        let mut standing = self.board.0.lock();
        let speaker = standing.speaker;
        let leg = standing.legs.get_mut(speaker).and_then(Option::take);
        Told { leg, tried: standing.tried.take(), failed: standing.failed.take() }
    }
}
