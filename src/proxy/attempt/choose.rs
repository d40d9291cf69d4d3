//! Which endpoint the next attempt goes to: what balancing says, passing over endpoints whose breaker is open.

use super::super::{Ctx, target};
use super::{enter, permits, policy};
use crate::rejection::{self, Rejection};
use crate::snapshot::{Route, Target};
use crate::upstream::{Endpoint, PASSED_MAX};
use pingora::proxy::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    for _ in 0..PASSED_MAX {
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
    for _ in 0..PASSED_MAX {
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
    // Most breakers are open, and the balance of the upstream prefers who has nothing to do.
    let endpoint = target.upstream.any_admitting(&ctx.attempt.tried)?;
    if let Some(breaker) = &endpoint.guards().breaker {
        ctx.attempt.guarded.endpoint = Some(breaker.admit(now).ok()?);
    }
    Some(endpoint)
}

/// An endpoint that is ejected, where every other one cannot even be connected to.
fn last_resort(target: &Target, ctx: &mut Ctx, now: Instant) -> Option<Arc<Endpoint>> {
    let endpoint = target.upstream.last_resort(&ctx.attempt.tried)?;
    if let Some(breaker) = &endpoint.guards().breaker {
        ctx.attempt.guarded.endpoint = Some(breaker.admit(now).ok()?);
    }
    Some(endpoint)
}
