//! The task that asks one endpoint, and then another.

use super::Hedge;
use super::leg::{Accounts, Board, Leg};
use super::wire::{self, Out};
use crate::http1::trailers::Passing;
use crate::upstream::breaker::State;
use crate::upstream::endpoint::{InFlight, Tried};
use crate::upstream::exchanger::{Answer, Event, Failed, Request};
use crate::upstream::overload::Place;
use bytes::Bytes;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;
use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::sync::Arc;
use tokio::sync::mpsc::WeakSender;
use tokio::sync::oneshot;
use tokio::time::sleep;

/// How much of the answer of the one that is late is read for the sake of its connection, in bytes.
const DISCARD: usize = 64 << 10;
/// Endpoints that are passed over in the search for a second one, because their breaker is open.
const MAX_PASSED: usize = 4;

pub(super) struct Race {
    pub hedge: Hedge,
    pub board: Arc<Board>,
    pub head: oneshot::Receiver<Box<RequestHeader>>,
    pub lease: InFlight,
    pub peer: Box<HttpPeer>,
}

/// A request on its way.
struct Runner {
    outcome: Pin<Box<dyn Future<Output = Result<Answer, Failed>> + Send>>,
    /// Counts it in on its endpoint, until its connection has been given back.
    lease: InFlight,
    /// The second one is beyond what the request has a place for.
    place: Option<Place>,
}

/// What there was to begin with.
struct Course {
    hedge: Hedge,
    board: Arc<Board>,
    head: Arc<RequestHeader>,
    /// For interim responses only: what is late must not keep the pipe open.
    out: WeakSender<Bytes>,
}

impl Race {
    /// Runs to the end of an answer, or until nobody reads it.
    pub async fn run(self, out: Out) {
        let Race { hedge, board, head, lease, peer } = self;
        let Ok(head) = head.await else { return };
        let course = Course { hedge, board, head: Arc::from(head), out: out.downgrade() };
        let first = course.runner(0, lease, peer, None);
        let decided = tokio::select! {
            biased;
            decided = course.decide(first) => decided,
            () = out.closed() => return,
        };
        let (mut answer, _runner) = match decided {
            Ok(winner) => winner,
            // Told before the pipe ends.
            Err(failed) => return course.board.fail(failed),
        };
        let method = course.head.method.clone();
        let whole = tokio::select! {
            biased;
            whole = wire::pump(&mut answer, &method, &out) => whole,
            () = out.closed() => false,
        };
        drop(out);
        if whole {
            answer.release().await;
        }
    }
}

impl Course {
    fn accounts(&self) -> Accounts {
        Accounts { upstream: Arc::clone(&self.hedge.upstream), metrics: Arc::clone(&self.hedge.metrics) }
    }

    /// Whose answer is heard. What it gives beside that is to be kept until the connection has been given back.
    async fn decide(&self, first: Runner) -> Result<(Answer, (InFlight, Option<Place>)), Failed> {
        let mut first = Some(first);
        let mut second: Option<Runner> = None;
        let mut may_hedge = true;
        let mut timer = pin!(sleep(self.hedge.delay));
        loop {
            let (at, outcome) = tokio::select! {
                biased;
                outcome = outcome(&mut first) => (0, outcome),
                outcome = outcome(&mut second) => (1, outcome),
                () = &mut timer, if may_hedge => {
                    may_hedge = false;
                    second = self.second();
                    continue;
                }
            };
            let (own, other) = if at == 0 { (first.take(), &mut second) } else { (second.take(), &mut first) };
            match outcome {
                Ok(answer) => {
                    self.board.decide(at);
                    if at == 1 {
                        self.hedge.plan.state.won.increment();
                    }
                    if let Some(late) = other.take() {
                        self.linger(1_usize.saturating_sub(at), late);
                    }
                    let held = own.map(|runner| (runner.lease, runner.place));
                    let Some(held) = held else { continue };
                    return Ok((answer, held));
                }
                Err(failed) if other.is_none() => return Err(failed),
                Err(failed) => {
                    if let Some(leg) = self.board.drop_out(at) {
                        leg.failed(&failed, &self.accounts());
                    }
                }
            }
        }
    }

    /// A request to the endpoint of this lease.
    fn runner(&self, at: usize, lease: InFlight, peer: Box<HttpPeer>, place: Option<Place>) -> Runner {
        let exchanger = Arc::clone(&self.hedge.plan.exchanger);
        let (head, keep) = (Arc::clone(&self.head), lease.may_pool());
        let (board, metrics, endpoint) = (Arc::clone(&self.board), Arc::clone(&self.hedge.metrics), Arc::clone(lease.endpoint()));
        let out = self.out.clone();
        let outcome = async move {
            let request = Request { head: &head, body: &[], keep };
            let on = |event: Event<'_>| match event {
                Event::Connected(took) => {
                    endpoint.state().connected();
                    board.connected(at, took);
                    took.map_or_else(|| metrics.reused(), |took| metrics.connected(took));
                }
                // Those of the first as long as it is alone. Where nobody reads them they are lost.
                Event::Interim(head) if at == 0 && board.is_alone() => {
                    let _ = out.upgrade().map(|out| out.try_send(wire::head_bytes(head)));
                }
                Event::Interim(_) => {}
            };
            exchanger.send(peer, request, on).await
        };
        Runner { outcome: Box::pin(outcome), lease, place }
    }

    /// The request to another endpoint, if there is one that takes it and the budget has room.
    fn second(&self) -> Option<Runner> {
        let Hedge { upstream, plan, allowance, share, deadline, .. } = &self.hedge;
        let guards = upstream.guards();
        let now = upstream.clock().now();
        if guards.breaker.as_ref().is_some_and(|breaker| breaker.state().state() != State::Closed) {
            return None;
        }
        let mut tried = Tried::new();
        let first = self.board.endpoint(0)?;
        tried.add(&first);
        let mut found = None;
        for _ in 0..MAX_PASSED {
            let endpoint = upstream.select(&tried)?;
            match endpoint.guards().breaker.as_ref().map(|breaker| breaker.admit(now)) {
                Some(Err(_)) => tried.add(&endpoint),
                permit => {
                    found = Some((endpoint, permit.and_then(Result::ok)));
                    break;
                }
            }
        }
        let (endpoint, permit) = found?;
        let place = match &guards.overload {
            Some(overload) => Some(overload.enter(*share)?),
            None => None,
        };
        if !guards.budget.withdraw(*allowance, now) {
            return None;
        }
        plan.state.sent.increment();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
        let peer = endpoint.http_peer(left, now, Passing::default());
        self.board.add(1, Leg::new(Arc::clone(&endpoint), permit, now));
        Some(self.runner(1, endpoint.begin(), peer, place))
    }

    /// Waits for the one that is late, beside the path, and tells what became of it.
    fn linger(&self, at: usize, late: Runner) {
        let Some(leg) = self.board.take(at) else { return };
        let accounts = self.accounts();
        // It takes at least this long. How long it really takes shows later, if at all.
        let now = accounts.upstream.clock().now();
        leg.endpoint.answered(now.saturating_duration_since(leg.began), now);
        let Ok(room) = Arc::clone(&self.hedge.plan.state.lingering).try_acquire_owned() else { return };
        tokio::spawn(async move {
            let Runner { outcome, lease, place } = late;
            match outcome.await {
                Ok(answer) => {
                    leg.answered(answer.head(), &accounts);
                    answer.discard(DISCARD).await;
                }
                Err(failed) => leg.failed(&failed, &accounts),
            }
            drop((lease, place, room));
        });
    }
}

async fn outcome(runner: &mut Option<Runner>) -> Result<Answer, Failed> {
    match runner {
        Some(runner) => runner.outcome.as_mut().await,
        None => pending().await,
    }
}
