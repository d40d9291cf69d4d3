//! How an attempt ended, who is told of it, and whether it is made again.

use super::super::{Ctx, target};
use super::policy;
use crate::rejection::{self, Rejection};
use crate::snapshot::{Route, Target};
use crate::upstream::retry::RetryPolicy;
use crate::upstream::{breaker, exchange};
use http::{HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType, Result};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often a request may be sent again because a pooled connection was closed in the meantime: several can be stale at
/// once when an endpoint restarts.
const MAX_STALE: u32 = 3;
/// A `Retry-After` beyond this is for the client to wait, not for us.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The error of an attempt whose answer is dropped for the sake of another attempt. Nobody gets to see it.
const AGAIN: &str = "attempted_again";

/// How an attempt failed, as `retry.on` tells it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The connection broke, or what came was no HTTP.
    Reset,
    Timeout,
    Other,
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
