//! Which upstream a request goes to, and which of its endpoints.
//!
//! A route has one upstream, parts of its requests may have others (`split`), and when the chosen one can take nothing, there
//! may be another to go on to (`fallback`). Whatever makes an upstream unable to take a request, no endpoint left or a
//! breaker that is open, comes here as the rejection that the client would get, and is answered in one place ([`move_on`]).

use super::Ctx;
use crate::rejection::{self, Rejection};
use crate::request::{RequestCtx, Scheme};
use crate::snapshot::{Route, Target};
use crate::upstream::{Endpoint, Facts};
use pingora::proxy::Session;
use std::sync::Arc;

/// Which part of the route's split the request belongs to. Drawn once: what the cache is asked for and where the request goes
/// are the same.
pub fn draw(session: &Session, ctx: &mut Ctx, route: &Route) {
    if let (Some(split), false) = (&route.split, ctx.drawn) {
        let chosen = split.choose(&facts(session, &ctx.request), ctx.request.scheme == Scheme::Https);
        (ctx.choice, ctx.cookie, ctx.drawn) = (chosen.choice, chosen.cookie, true);
    }
}

/// The upstream that the request begins with.
pub fn steer(session: &Session, ctx: &mut Ctx, route: &Route) {
    draw(session, ctx, route);
    while let Some(target) = route.target(ctx.choice)
        && target.upstream.is_out()
        && let Some(next) = route.instead_of(ctx.choice)
    {
        ctx.choice = next;
    }
}

/// Goes on to the next upstream of the route, if this rejection is a reason for that and there is one. `true`: there is.
pub fn move_on(ctx: &mut Ctx, route: &Route, refused: &Rejection) -> bool {
    let reasons = [&rejection::UPSTREAM_UNAVAILABLE, &rejection::CIRCUIT_OPEN, &rejection::UPSTREAM_CONNECT_FAILED];
    if !reasons.iter().any(|reason| std::ptr::eq(*reason, refused.code)) {
        return false;
    }
    let Some(next) = route.instead_of(ctx.choice) else { return false };
    ctx.choice = next;
    ctx.attempt.guarded.leave();
    true
}

/// An endpoint of it that the request has not tried.
pub fn endpoint(session: &Session, target: &Target, ctx: &mut Ctx) -> Option<Arc<Endpoint>> {
    let tried = &ctx.attempt.tried;
    // Most ways of choosing ask nothing of the request.
    if !target.upstream.asks() {
        return target.upstream.select(tried);
    }
    let facts = facts(session, &ctx.request);
    let endpoint = target.upstream.select_for(tried, Some(&facts))?;
    ctx.attempt.cookie = target.upstream.cookie_for(&endpoint, &facts, ctx.request.scheme == Scheme::Https);
    Some(endpoint)
}

fn facts<'a>(session: &'a Session, request: &'a RequestCtx) -> Facts<'a> {
    let head = session.req_header();
    Facts { headers: &head.headers, query: head.uri.query(), client: request.client, identity: request.identity.as_deref() }
}
