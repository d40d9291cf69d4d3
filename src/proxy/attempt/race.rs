//! A hedged attempt: what makes it a race, and what the race has come to.

use super::super::Ctx;
use super::policy;
use crate::upstream::InFlight;
use crate::upstream::breaker::State;
use crate::upstream::exchanger::Failed;
use crate::upstream::hedge::{Hedge, Leg};
use http::Method;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use std::sync::Arc;
use std::time::Instant;

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
