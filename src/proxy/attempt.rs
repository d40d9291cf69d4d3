//! Whether an attempt may be made, and what follows from how it ended.
//!
//! Before the first one stand the guards of the upstream: its overload limit and its breakers (`admit`). Each attempt is
//! reported to whoever counts (`report`), once, and only with what the upstream has to answer for: not with what the gateway
//! refuses, and not with a client that goes away. A failed one is made again when the request may be repeated, the policy
//! wants it, time is left, and the budget has room.
//!
//! A route whose upstream has none of this pays a branch, and the count of its requests in the budget.

use super::{Ctx, target};
use crate::rejection::{self, Code, Rejection};
use crate::respond::{self, LocalResponse};
use crate::snapshot::{Choice, Route, Target};
use crate::upstream::breaker::{self, Permit, State};
use crate::upstream::exchanger::Failed;
use crate::upstream::hedge::{Hedge, Leg};
use crate::upstream::overload::Place;
use crate::upstream::retry::RetryPolicy;
use crate::upstream::{Endpoint, FixedAnswer, Guards, InFlight, exchange};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How often a request may be sent again because a pooled connection was closed in the meantime: several can be stale at
/// once when an endpoint restarts.
const MAX_STALE: u32 = 3;
/// Endpoints with an open breaker that are passed over in the search for one that takes the request.
const MAX_PASSED: usize = 16;
/// A `Retry-After` beyond this is for the client to wait, not for us.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);
/// What the client is told to wait after it was shed: the limit follows the load in less.
const SHED_RETRY_AFTER: Duration = Duration::from_secs(1);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The error of an attempt whose answer is dropped for the sake of another attempt. Nobody gets to see it.
const AGAIN: &str = "attempted_again";

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

/// How an attempt failed, as `retry.on` tells it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The connection broke, or what came was no HTTP.
    Reset,
    Timeout,
    Other,
}

/// Answers a request that may not go on to its upstream. This early the connection with the client can be kept.
pub async fn refuse(session: &mut Session, ctx: &mut Ctx, refused: Rejection) -> Result<()> {
    match ctx.attempt.guarded.answer.take() {
        Some(answer) => {
            let mut headers = HeaderMap::with_capacity(1);
            headers.insert(header::CONTENT_TYPE, answer.content_type.clone());
            let response = LocalResponse { status: answer.status, headers, body: answer.body.clone() };
            ctx.rejection = Some(refused);
            respond::local(session, ctx, response).await?;
        }
        None => respond::reject(session, ctx, refused).await?,
    }
    Ok(())
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

/// The endpoint of the next attempt.
pub fn choose(session: &Session, ctx: &mut Ctx, now: Instant) -> Result<Arc<Endpoint>, Rejection> {
    if let Some(same) = ctx.attempt.guarded.same.take() {
        // With the permits that it has.
        return Ok(same);
    }
    // Lent to itself for the while, which costs less than a second handle.
    let route = ctx.route.take();
    let chosen = match &route {
        Some(route) => choose_on(session, ctx, route, now),
        None => Err(Rejection::new(&rejection::INTERNAL_ERROR)),
    };
    ctx.route = route;
    chosen
}

fn choose_on(session: &Session, ctx: &mut Ctx, route: &Route, now: Instant) -> Result<Arc<Endpoint>, Rejection> {
    loop {
        let target = route.target(ctx.choice).ok_or_else(|| Rejection::new(&rejection::INTERNAL_ERROR))?;
        match choose_of(session, ctx, route, target, now) {
            Err(refused) if target::move_on(ctx, route, &refused) => {}
            done => return done,
        }
    }
}

fn choose_of(session: &Session, ctx: &mut Ctx, route: &Route, target: &Target, now: Instant) -> Result<Arc<Endpoint>, Rejection> {
    let first = ctx.attempt.count == 0;
    // Of this upstream: one that was come to late has been asked for nothing before.
    if !std::mem::replace(&mut ctx.attempt.guarded.counted, true) {
        target.guards().budget.request(now);
    }
    if !first {
        // What was replayed is counted again.
        ctx.body.received = 0;
        ctx.attempt.guarded.endpoint = None;
    }
    permits(ctx, route, target, now)?;
    enter(session, ctx, target.guards())?;
    let guarded = &mut ctx.attempt.guarded;
    (guarded.admitted, guarded.reported, guarded.sent) = (false, false, None);
    let failure = guarded.failure.take();
    let mut open_for = None;
    let mut found = search(session, target, ctx, now, &mut open_for);
    if found.is_none() && !first {
        // A failed connect would only fail again; everything else may go better the next time.
        found = if failure == Some(&rejection::UPSTREAM_CONNECT_FAILED) {
            last_resort(target, ctx, now)
        } else {
            ctx.attempt.tried.clear();
            search(session, target, ctx, now, &mut open_for)
        };
    }
    let Some(endpoint) = found else {
        ctx.attempt.guarded.release();
        return Err(match (open_for, failure) {
            (Some(wait), _) => Rejection::new(&rejection::CIRCUIT_OPEN).retry_after(wait),
            (None, Some(failure)) => Rejection::new(failure),
            (None, None) => Rejection::new(&rejection::UPSTREAM_UNAVAILABLE).retry_after(target.upstream.retry_after()),
        });
    };
    // Moving on to an endpoint that accepts connections costs the upstream nothing. Knocking at one more closed door does.
    if failure == Some(&rejection::UPSTREAM_CONNECT_FAILED) && endpoint.state().is_refusing() {
        if let Some(open) = open_door(session, target, ctx, &endpoint, now) {
            return Ok(open);
        }
        let allowance = policy(route, target).allowance;
        if !target.guards().budget.withdraw(allowance, now) {
            ctx.attempt.guarded.release();
            return Err(Rejection::new(&rejection::UPSTREAM_CONNECT_FAILED));
        }
    }
    Ok(endpoint)
}

/// An endpoint that accepts connections, as far as is known, in place of this one that does not.
fn open_door(session: &Session, target: &Target, ctx: &mut Ctx, closed: &Arc<Endpoint>, now: Instant) -> Option<Arc<Endpoint>> {
    let (tried, permit) = (ctx.attempt.tried.clone(), ctx.attempt.guarded.endpoint.take());
    ctx.attempt.tried.add(closed);
    let mut found = None;
    for _ in 0..MAX_PASSED {
        found = search(session, target, ctx, now, &mut None);
        match &found {
            Some(endpoint) if endpoint.state().is_refusing() => ctx.attempt.tried.add(endpoint),
            _ => break,
        }
    }
    let found = found.filter(|endpoint| !endpoint.state().is_refusing());
    ctx.attempt.tried = tried;
    if found.is_none() {
        ctx.attempt.guarded.endpoint = permit;
    }
    found
}

fn search(
    session: &Session,
    target: &Target,
    ctx: &mut Ctx,
    now: Instant,
    open_for: &mut Option<Duration>,
) -> Option<Arc<Endpoint>> {
    for _ in 0..MAX_PASSED {
        let endpoint = target::endpoint(session, target, ctx)?;
        let Some(breaker) = &endpoint.guards().breaker else { return Some(endpoint) };
        match breaker.admit(now) {
            Ok(permit) => {
                ctx.attempt.guarded.endpoint = Some(permit);
                return Some(endpoint);
            }
            Err(wait) => {
                *open_for = Some(open_for.map_or(wait, |known| known.min(wait)));
                ctx.attempt.tried.add(&endpoint);
            }
        }
    }
    None
}

/// An endpoint that is ejected, where every other one cannot even be connected to.
fn last_resort(target: &Target, ctx: &mut Ctx, now: Instant) -> Option<Arc<Endpoint>> {
    let endpoint = target.upstream.last_resort(&ctx.attempt.tried)?;
    if let Some(breaker) = &endpoint.guards().breaker {
        ctx.attempt.guarded.endpoint = Some(breaker.admit(now).ok()?);
    }
    Some(endpoint)
}

fn policy<'a>(route: &'a Route, target: &'a Target) -> &'a RetryPolicy {
    route.retry.as_deref().unwrap_or(&target.guards().retry)
}

/// Makes a race of the first attempt of a request that may be hedged, and of its connection one end of it. `lease` counts the
/// attempt in on its endpoint, in the race if there is one.
pub fn hedge(
    session: &mut Session,
    ctx: &mut Ctx,
    lease: InFlight,
    peer: Box<HttpPeer>,
    now: Instant,
) -> (InFlight, Box<HttpPeer>) {
    ctx.attempt.race = None;
    let Some(hedge) = to_hedge(session, ctx) else { return (lease, peer) };
    let endpoint = Arc::clone(lease.endpoint());
    let first = Leg::new(Arc::clone(&endpoint), ctx.attempt.guarded.endpoint.take(), now);
    let (peer, ticket) = hedge.attach(first, lease, peer);
    ctx.attempt.race = Some(ticket);
    (InFlight::uncounted(endpoint), peer)
}

fn to_hedge(session: &mut Session, ctx: &Ctx) -> Option<Hedge> {
    let route = ctx.route.as_ref()?;
    let target = route.target(ctx.choice)?;
    let plan = target.guards().hedge.as_ref()?;
    let harmless = matches!(session.req_header().method, Method::GET | Method::HEAD) && session.as_mut().is_body_empty();
    // While probes find out whether the upstream is well, one call is one call.
    let probing = target.guards().breaker.as_ref().is_some_and(|breaker| breaker.state().state() != State::Closed);
    if ctx.attempt.count > 0 || !harmless || probing || session.is_upgrade_req() {
        return None;
    }
    Some(Hedge {
        upstream: Arc::clone(&target.upstream),
        plan: Arc::clone(plan),
        metrics: Arc::clone(&target.metrics),
        delay: plan.after.delay(&target.metrics.response_time)?,
        allowance: policy(route, target).allowance,
        share: ctx.snapshot.consumers.share(ctx.request.identity.as_deref()),
        deadline: ctx.request.deadline,
    })
}

/// Takes over what a race has come to, for an answer or a failure of the attempt under way. Gives why it failed, if it did
/// so by itself.
pub fn settle(ctx: &mut Ctx) -> Option<Failed> {
    let told = ctx.attempt.race.as_ref()?.settle();
    if let Some(leg) = told.leg {
        let started = ctx.attempt.started.unwrap_or(leg.began);
        ctx.attempt.ahead = leg.began.saturating_duration_since(started);
        (ctx.attempt.connect_time, ctx.attempt.reused) = (leg.connect_time, leg.reused);
        ctx.attempt.guarded.endpoint = leg.permit;
        ctx.attempt.endpoint = Some(InFlight::uncounted(leg.endpoint));
    }
    if let Some(endpoint) = told.tried {
        ctx.attempt.tried.add(&endpoint);
    }
    told.failed
}

/// Nothing was sent, so another endpoint may take the request, whatever its method.
pub fn connect_failed(ctx: &mut Ctx) -> bool {
    let Some(route) = ctx.route.clone() else { return false };
    let Some(target) = route.target(ctx.choice) else { return false };
    target.metrics.connect_failures.increment();
    if let Some(endpoint) = &ctx.attempt.endpoint {
        endpoint.state().count_connect_failure();
        endpoint.failed(since(ctx), ctx.gateway.clock().now());
        ctx.attempt.tried.add(endpoint);
    }
    report(ctx, target, true, None);
    let policy = policy(&route, target);
    ctx.attempt.guarded.failure = Some(&rejection::UPSTREAM_CONNECT_FAILED);
    if policy.connect && another(ctx, policy) {
        return true;
    }
    // Nothing was sent, so that what takes its place may have it, whatever its method.
    ctx.in_time() && target::move_on(ctx, &route, &Rejection::new(&rejection::UPSTREAM_CONNECT_FAILED))
}

/// The endpoint may speak HTTP/2 and has chosen HTTP/1, on a connection that Pingora has made. Nothing was sent on it: the same
/// attempt begins anew, on one of our own.
pub fn again_by_http1(ctx: &mut Ctx) -> Box<Error> {
    ctx.attempt.count = ctx.attempt.count.saturating_sub(1);
    let now = ctx.gateway.clock().now();
    if let Some(endpoint) = &ctx.attempt.endpoint {
        endpoint.state().chose_http1(now);
        ctx.attempt.guarded.same = Some(Arc::clone(endpoint.endpoint()));
    }
    ctx.attempt.guarded.again = true;
    Error::new(ErrorType::Custom(AGAIN))
}

/// Since the attempt began.
fn since(ctx: &Ctx) -> Duration {
    let now = ctx.gateway.clock().now();
    ctx.attempt.started.map_or(Duration::ZERO, |started| now.saturating_duration_since(started)).saturating_sub(ctx.attempt.ahead)
}

/// Whether there may be one more attempt.
fn another(ctx: &Ctx, policy: &RetryPolicy) -> bool {
    ctx.attempt.count.saturating_sub(ctx.attempt.guarded.stale) < policy.attempts && ctx.in_time()
}

/// The head of an answer has come. An error means that it is dropped, and another attempt made.
pub fn answered(session: &Session, head: &ResponseHeader, ctx: &mut Ctx) -> Result<()> {
    let concerns = |route: &&Arc<Route>| {
        let target = route.target(ctx.choice);
        let of = |target| route.breaker.is_some() || Target::guards(target).observes() || policy(route, target).wants_answers();
        target.is_some_and(of)
    };
    let Some(route) = ctx.route.as_ref().filter(concerns).map(Arc::clone) else { return Ok(()) };
    let Some(target) = route.target(ctx.choice) else { return Ok(()) };
    let (guards, policy) = (target.guards(), policy(&route, target));
    let status = head.status.as_u16();
    let grpc = breaker::grpc_status(&head.headers);
    let failed = breaker::is_failure(status, grpc);
    let took = latency(ctx);
    report(ctx, target, failed, took);
    if let (Some(overload), Some(took), false) = (&guards.overload, took, failed) {
        overload.answered(took, ctx.gateway.clock().now());
    }
    if !policy.wants(status, grpc) || !another(ctx, policy) || !repeatable(session, policy) {
        return Ok(());
    }
    let Some(pause) = waiting(ctx, policy, head.headers.get(header::RETRY_AFTER)) else { return Ok(()) };
    if !guards.budget.withdraw(policy.allowance, ctx.gateway.clock().now()) {
        return Ok(());
    }
    let guarded = &mut ctx.attempt.guarded;
    (guarded.pause, guarded.again) = (Some(pause), true);
    guarded.retries = guarded.retries.saturating_add(1);
    if let Some(endpoint) = &ctx.attempt.endpoint {
        ctx.attempt.tried.add(endpoint);
    }
    Err(Error::new(ErrorType::Custom(AGAIN)))
}

/// From the end of the request to the head of its answer. `None` where the answer came before the end of the request, or
/// where the client still held it up.
fn latency(ctx: &Ctx) -> Option<Duration> {
    let header = ctx.attempt.header_time?;
    if ctx.body.received == 0 {
        return Some(header.saturating_sub(ctx.attempt.ahead).saturating_sub(ctx.attempt.connect_time.unwrap_or_default()));
    }
    let answered = ctx.attempt.started?.checked_add(header)?;
    answered.checked_duration_since(ctx.attempt.guarded.sent?)
}

/// How long to wait before the next attempt; `None` if there is not so much time.
fn waiting(ctx: &Ctx, policy: &RetryPolicy, retry_after: Option<&HeaderValue>) -> Option<Duration> {
    let backoff = policy.backoff(ctx.attempt.guarded.retries.saturating_add(1), fastrand::f64());
    let asked = match retry_after {
        Some(value) => parse_retry_after(value, ctx.gateway.clock().wall()).filter(|wait| *wait <= MAX_RETRY_AFTER)?,
        None => Duration::ZERO,
    };
    let wait = backoff.max(asked);
    let left = ctx.request.deadline.map(|deadline| deadline.saturating_duration_since(ctx.gateway.clock().now()));
    let least = ctx.route.as_ref()?.target(ctx.choice)?.upstream.guards().least.unwrap_or_default();
    left.is_none_or(|left| left > wait.saturating_add(least)).then_some(wait)
}

/// RFC 9110 §10.2.3: seconds or a date. One that cannot be read is as good as one that is too long.
fn parse_retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default())
}

/// Whether the request may be sent once more after it has been sent: idempotent by its method or by its own word, with a
/// body that can be replayed, and with no answer begun. Interim answers (1xx) may come twice.
fn repeatable(session: &Session, policy: &RetryPolicy) -> bool {
    let head = session.req_header();
    let unanswered = session.response_written().is_none_or(|head| head.status.is_informational() && head.status != 101);
    let harmless = || {
        policy.all_methods || head.method.is_idempotent() || head.headers.get(IDEMPOTENCY_KEY).is_some_and(|key| !key.is_empty())
    };
    unanswered && !session.is_upgrade_req() && !session.as_ref().retry_buffer_truncated() && harmless()
}

/// The connection was made, and then something broke. `true`: the request is to be sent again.
pub fn failed(session: &Session, ctx: &mut Ctx, error: &Error) -> bool {
    let Some(route) = ctx.route.clone() else { return false };
    let Some(target) = route.target(ctx.choice) else { return false };
    if std::mem::take(&mut ctx.attempt.guarded.again) {
        return true;
    }
    let guards = target.guards();
    let policy = policy(&route, target);
    let invalid = ctx.rejection.as_ref().is_some_and(|found| std::ptr::eq(found.code, &rejection::UPSTREAM_PROTOCOL_ERROR));
    let of_upstream = error.esource() == &ErrorSource::Upstream || invalid;
    let kind = kind(error);
    let unanswered = ctx.attempt.header_time.is_none();
    let malformed = exchange::malformed(error);
    if let Some(why) = malformed {
        target.metrics.malformed.count(why as usize);
        let who = ctx.attempt.endpoint.as_ref().map(|endpoint| endpoint.address());
        log::warn!(
            "upstream {}: an answer of {} is refused: {why}",
            target.upstream.name(),
            who.map_or_else(String::new, |a| a.to_string())
        );
    }
    // A pooled connection that the upstream closed in the meantime says nothing about the endpoint; a fresh one does.
    let stale = ctx.attempt.reused && unanswered && malformed.is_none() && broke(error);
    if of_upstream && !stale {
        if let Some(endpoint) = &ctx.attempt.endpoint {
            endpoint.state().count_error();
            endpoint.failed(since(ctx), ctx.gateway.clock().now());
            ctx.attempt.tried.add(endpoint);
        }
        if ctx.in_time() || !ctx.attempt.guarded.deadline_of_client {
            report(ctx, target, true, None);
            if let (Kind::Timeout, Some(overload)) = (kind, &guards.overload) {
                overload.timed_out(ctx.gateway.clock().now());
            }
        }
    }
    ctx.attempt.guarded.release();
    if unanswered {
        target.metrics.attempted(None);
    }
    if !of_upstream || ctx.rejection.is_some() || !unanswered || !repeatable(session, policy) || !ctx.in_time() {
        return false;
    }
    let wanted = match kind {
        Kind::Reset => policy.reset,
        Kind::Timeout => policy.timeout,
        Kind::Other => false,
    };
    if wanted && stale && ctx.attempt.guarded.stale < MAX_STALE && policy.attempts > 1 {
        ctx.attempt.guarded.stale = ctx.attempt.guarded.stale.saturating_add(1);
        ctx.attempt.guarded.failure = Some(&rejection::UPSTREAM_RESET);
        return true;
    }
    if !wanted || !another(ctx, policy) {
        return false;
    }
    let Some(pause) = waiting(ctx, policy, None) else { return false };
    if !guards.budget.withdraw(policy.allowance, ctx.gateway.clock().now()) {
        return false;
    }
    let guarded = &mut ctx.attempt.guarded;
    guarded.pause = Some(pause);
    guarded.retries = guarded.retries.saturating_add(1);
    guarded.failure = Some(match (kind, malformed) {
        (Kind::Timeout, _) => &rejection::UPSTREAM_TIMEOUT,
        (_, Some(_)) => &rejection::UPSTREAM_PROTOCOL_ERROR,
        _ => &rejection::UPSTREAM_RESET,
    });
    true
}

fn broke(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed)
}

fn kind(error: &Error) -> Kind {
    use ErrorType::*;
    match error.etype() {
        ReadError | WriteError | ConnectionClosed | InvalidHTTPHeader | H1Error | H2Error | InvalidH2 => Kind::Reset,
        ReadTimedout | WriteTimedout | ConnectTimedout => Kind::Timeout,
        _ => Kind::Other,
    }
}

/// Tells whoever counts how the attempt under way ended. An answer that breaks off after it began well is told as one more
/// failure.
fn report(ctx: &mut Ctx, target: &Target, failed: bool, took: Option<Duration>) {
    let guards = target.guards();
    let of_route = ctx.route.as_ref().and_then(|route| route.breaker.as_ref());
    if !guards.observes() && of_route.is_none() {
        return;
    }
    let now = ctx.gateway.clock().now();
    let again = std::mem::replace(&mut ctx.attempt.guarded.reported, true);
    let of_endpoint = ctx.attempt.endpoint.as_ref().map(|endpoint| endpoint.guards());
    if let Some(endpoint) = of_endpoint {
        endpoint.record(failed, took, now);
    }
    if again {
        let breakers = [of_route, guards.breaker.as_ref(), of_endpoint.and_then(|endpoint| endpoint.breaker.as_ref())];
        breakers.into_iter().flatten().for_each(|breaker| breaker.broke_off(now));
        return;
    }
    let guarded = &mut ctx.attempt.guarded;
    let permits = [guarded.route.take(), guarded.upstream.take(), guarded.endpoint.take()];
    permits.into_iter().flatten().for_each(|permit| permit.record(failed, took, now));
    guarded.admitted = false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let parse = |text: &str| parse_retry_after(&HeaderValue::from_str(text).unwrap(), now);
        assert_eq!(parse("120"), Some(Duration::from_secs(120)));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:40 GMT"), Some(Duration::from_secs(3)));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:30 GMT"), Some(Duration::ZERO), "a date that has passed");
        assert_eq!(parse("soon"), None);
        assert_eq!(parse("-1"), None);
    }

    #[test]
    fn errors_are_resets_timeouts_or_neither() {
        let kind_of = |etype| kind(&Error::new(etype));
        assert_eq!(kind_of(ErrorType::ConnectionClosed), Kind::Reset);
        assert_eq!(kind_of(ErrorType::InvalidHTTPHeader), Kind::Reset);
        assert_eq!(kind_of(ErrorType::ReadTimedout), Kind::Timeout);
        assert_eq!(kind_of(ErrorType::InternalError), Kind::Other);
    }
}
