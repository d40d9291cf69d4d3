//! Whether an attempt may be made, and what follows from how it ended.
//!
//! Before the first one stand the guards of the upstream: its overload limit and its breakers (`admit`). Each attempt gets
//! an endpoint (`choose`), may become a race (`hedge`), and is reported to whoever counts (`outcome`), once, and only with
//! what the upstream has to answer for: not with what the gateway refuses, and not with a client that goes away. A failed
//! one is made again when the request may be repeated, the policy wants it, time is left, and the budget has room.
//!
//! A route whose upstream has none of this pays a branch, and the count of its requests in the budget.

mod choose;
mod outcome;
mod race;

pub use choose::choose;
pub use outcome::{again_by_http1, answered, connect_failed, failed};
pub use race::{hedge, settle};

use super::{Ctx, target};
use crate::rejection::{self, Code, LocalResponse, Rejection};
use crate::respond;
use crate::snapshot::{Choice, Route, Target};
use crate::upstream::breaker::Permit;
use crate::upstream::overload::Place;
use crate::upstream::retry::RetryPolicy;
use crate::upstream::{Endpoint, FixedAnswer, Guards};
use bytes::Bytes;
use http::{Response, header};
use pingora::Result;
use pingora::proxy::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the client is told to wait after it was shed: the limit follows the load in less.
const SHED_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What the guards know about one request and its attempt under way.
#[derive(Default)]
pub(super) struct Guarded {
    place: Option<Place>,
    /// What is answered in place of a refusal.
    answer: Option<Arc<FixedAnswer>>,
    upstream: Option<Permit>,
    route: Option<Permit>,
    endpoint: Option<Permit>,
    /// The request was counted in the budget of this upstream.
    counted: bool,
    /// The permits of this attempt were asked for.
    admitted: bool,
    /// Its end has been reported.
    reported: bool,
    /// Somebody wants to know when the last of the request's body went on its way.
    pub(super) timed: bool,
    /// When it did.
    pub(super) sent: Option<Instant>,
    /// Attempts that met a stale connection.
    stale: u32,
    /// Retries decided, for the backoff.
    retries: u32,
    /// How long to wait before the next attempt.
    pause: Option<Duration>,
    /// Why the last attempt failed.
    failure: Option<&'static Code>,
    /// The attempt ends for the sake of another.
    again: bool,
    /// The endpoint that the next one is at, whoever's turn it is.
    same: Option<Arc<Endpoint>>,
    /// The deadline is the client's own, so that missing it is no fault of the upstream.
    pub(super) deadline_of_client: bool,
}

/// Answers a request that may not go on to its upstream. This early the connection with the client can be kept.
pub async fn refuse(session: &mut Session, ctx: &mut Ctx, refused: Rejection) -> Result<()> {
    match instead(ctx) {
        Some(answer) => refuse_with(session, ctx, refused, answer).await,
        None => respond::reject(session, ctx, refused).await,
    }
}

/// What the breaker that has refused the request wants to be answered.
pub fn instead(ctx: &mut Ctx) -> Option<Response<Bytes>> {
    let answer = ctx.attempt.guarded.answer.take()?;
    let mut response = Response::new(answer.body.clone());
    *response.status_mut() = answer.status;
    response.headers_mut().insert(header::CONTENT_TYPE, answer.content_type.clone());
    Some(response)
}

/// Answers with that.
pub async fn refuse_with(session: &mut Session, ctx: &mut Ctx, refused: Rejection, answer: Response<Bytes>) -> Result<()> {
    let (head, body) = answer.into_parts();
    ctx.rejection = Some(refused);
    respond::local(session, ctx, LocalResponse { status: head.status, headers: head.headers, body }).await
}

/// Lets a request go on to one of its route's upstreams, or says why not.
pub fn admit(session: &Session, ctx: &mut Ctx) -> Result<(), Rejection> {
    let Some(route) = ctx.route.as_ref().filter(|route| route.steers()).map(Arc::clone) else { return guard(session, ctx) };
    target::steer(session, ctx, &route);
    loop {
        match guard(session, ctx) {
            Err(refused) if target::move_on(ctx, &route, &refused) => {}
            done => return done,
        }
    }
}

fn guard(session: &Session, ctx: &mut Ctx) -> Result<(), Rejection> {
    let Some(route) = &ctx.route else { return Ok(()) };
    let Some(target) = route.target(ctx.choice) else { return Ok(()) };
    let guards = target.guards();
    if let (Some(deadline), Some(least)) = (ctx.request.deadline, guards.least)
        && deadline.saturating_duration_since(ctx.gateway.clock().now()) <= least
    {
        return Err(Rejection::new(&rejection::DEADLINE_EXCEEDED));
    }
    if !guards.observes() && route.breaker.is_none() {
        return Ok(());
    }
    ctx.attempt.guarded.timed = true;
    let now = ctx.gateway.clock().now();
    let route = Arc::clone(route);
    let Some(target) = route.target(ctx.choice) else { return Ok(()) };
    let guards = target.guards();
    permits(ctx, &route, target, now)?;
    enter(session, ctx, guards)
}

/// A place of the upstream's overload limit, unless the request has one.
fn enter(session: &Session, ctx: &mut Ctx, guards: &Guards) -> Result<(), Rejection> {
    let Some(overload) = guards.overload.as_ref().filter(|_| ctx.attempt.guarded.place.is_none()) else { return Ok(()) };
    if session.is_upgrade_req() {
        return Ok(());
    }
    let share = ctx.snapshot.consumers.share(ctx.request.identity.as_deref());
    let Some(place) = overload.enter(share) else {
        ctx.attempt.guarded.release();
        return Err(Rejection::new(&rejection::UPSTREAM_OVERLOADED).retry_after(SHED_RETRY_AFTER));
    };
    ctx.attempt.guarded.place = Some(place);
    Ok(())
}

/// The permits of the breakers of route and upstream for one attempt.
fn permits(ctx: &mut Ctx, route: &Route, target: &Target, now: Instant) -> Result<(), Rejection> {
    let guarded = &mut ctx.attempt.guarded;
    if guarded.admitted {
        return Ok(());
    }
    let refused = |wait| Rejection::new(&rejection::CIRCUIT_OPEN).retry_after(wait);
    let guards = target.guards();
    // Where requests go instead is none of what the route's breaker has counted.
    if let Some(breaker) = route.breaker.as_ref().filter(|_| ctx.choice != Choice::Fallback) {
        guarded.answer.clone_from(&route.breaker_answer);
        guarded.route = Some(breaker.admit(now).map_err(refused)?);
    }
    if let Some(breaker) = &guards.breaker {
        guarded.answer.clone_from(&guards.answer);
        guarded.upstream = Some(breaker.admit(now).map_err(refused)?);
    }
    guarded.answer = None;
    guarded.admitted = true;
    Ok(())
}

impl Guarded {
    /// Forgets what one upstream has said, for another.
    pub(super) fn leave(&mut self) {
        self.release();
        (self.answer, self.place, self.failure, self.counted) = (None, None, None, false);
    }

    fn release(&mut self) {
        (self.upstream, self.route, self.endpoint) = (None, None, None);
        self.admitted = false;
    }
}

/// How long to wait before the next attempt, if there is anything to wait for.
pub fn pause(ctx: &mut Ctx) -> Option<Duration> {
    ctx.attempt.guarded.pause.take()
}

fn policy<'a>(route: &'a Route, target: &'a Target) -> &'a RetryPolicy {
    route.retry.as_deref().unwrap_or(&target.guards().retry)
}
