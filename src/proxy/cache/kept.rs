//! Answers that are kept on their way to the one client whose they are, instead of being fetched for all who wait.
//!
//! - POST: an answer that names its own URL and says how long it is fresh stands for what a GET of that URL would bring
//!   (RFC 9110 §9.3.3).
//! - What was not to be shared a moment ago: nobody waits for such an answer, but this one may be for everybody again.

use super::lookup::owned;
use super::note::{asked, port, received};
use super::{Ctx, Role};
use crate::cache::control::RequestControl;
use crate::cache::entry;
use crate::cache::fill::{Fill, Stored};
use crate::cache::freshen;
use crate::cache::key::KeyRules;
use crate::cache::policy::Policy;
use crate::cache::{Cache, url};
use crate::snapshot::Choice;
use bytes::Bytes;
use http::{HeaderName, Method, StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use std::sync::Arc;

/// Where the answer to a POST is kept, if it is to be. To be asked after what the request has invalidated is gone.
pub fn of_post(session: &Session, ctx: &Ctx, cache: &Cache, head: &ResponseHeader) -> Option<Arc<Fill>> {
    let request = session.req_header();
    if request.method != Method::POST || head.status != StatusCode::OK {
        return None;
    }
    let named = head.headers.get(header::CONTENT_LOCATION)?.to_str().ok()?;
    let policy = ctx.route.as_ref()?.cache.as_ref()?;
    let mut target = String::new();
    url::of_request(&ctx.request, &request.uri, &KeyRules::default(), &mut target);
    let same = url::of_reference(named, &ctx.request, &request.uri, port(request)).is_some_and(|named| named == target);
    let explicit = policy.is_explicit(&head.headers, &received(ctx));
    if !same || RequestControl::of(&request.headers).no_store || !explicit {
        return None;
    }
    let (stored, fields) = judged(session, ctx, policy, head)?;
    // Not for the other tier: there the invalidation may still be under way.
    let fill = Fill::new(owned(session, ctx, cache, policy), Arc::clone(policy), Arc::clone(&cache.memory), None);
    begin(session, ctx, cache, fill, head, stored, &fields)
}

/// Where the answer to a request that went past what could not be shared is kept, for who comes next. To be made before the request
/// goes upstream: what is purged meanwhile must not be stored by it.
pub fn place(session: &Session, ctx: &Ctx, cache: &Cache, policy: &Arc<Policy>) -> Option<Arc<Fill>> {
    let head = session.req_header();
    let whole = head.method == Method::GET && !head.headers.contains_key(header::RANGE);
    let key = whole.then(|| owned(session, ctx, cache, policy))?;
    Some(Fill::new(key, Arc::clone(policy), Arc::clone(&cache.memory), cache.redis.as_ref()))
}

/// Whether an answer to such a request can be shared; and where it is kept, if it is to be.
pub fn of_unshared(
    session: &Session,
    ctx: &Ctx,
    cache: &Cache,
    fill: Option<Arc<Fill>>,
    head: &ResponseHeader,
) -> (bool, Option<Arc<Fill>>) {
    let judged = ctx.route.as_ref().and_then(|route| judged(session, ctx, route.cache.as_ref()?, head));
    let Some((stored, fields)) = judged else { return (false, None) };
    let fill = fill.filter(|_| head.status != StatusCode::PARTIAL_CONTENT);
    (true, fill.and_then(|fill| begin(session, ctx, cache, fill, head, stored, &fields)))
}

/// How the answer may be used, and which of its fields are not to be kept.
fn judged(session: &Session, ctx: &Ctx, policy: &Policy, head: &ResponseHeader) -> Option<(Stored, Vec<HeaderName>)> {
    let request = &session.req_header().headers;
    let (received, mut fields) = (received(ctx), Vec::new());
    let terms = policy.judge(head.status.as_u16(), &head.headers, asked(ctx, request), &received, &mut fields).ok()?;
    let selecting = policy.selecting(&head.headers, request).ok()?;
    let aged = head.headers.contains_key(header::AGE);
    Some((Stored { aged, ..Stored::new(terms, received, selecting) }, fields))
}

fn begin(
    session: &Session,
    ctx: &Ctx,
    cache: &Cache,
    fill: Arc<Fill>,
    head: &ResponseHeader,
    stored: Stored,
    fields: &[HeaderName],
) -> Option<Arc<Fill>> {
    // What another upstream has answered in the stead of a part is not that part's.
    if ctx.choice == Choice::Fallback {
        return None;
    }
    let mut replaces = cache.memory.variants(&fill.key);
    replaces.retain(|known| known.selecting.matches(&session.req_header().headers));
    let own = freshen::own(&head.headers, fields);
    let header = entry::stored_head(head, fields, &stored.received);
    fill.begin(header, own, Ok(Stored { replaces, ..stored }), false).ok()?;
    Some(fill)
}

/// The next bytes of the answer.
pub fn keep(body: Option<&Bytes>, end: bool, ctx: &mut Ctx) {
    let Some(Role::Kept(fill)) = ctx.cache.as_deref() else { return };
    let kept = body.is_none_or(|data| fill.push_now(data).is_ok());
    if kept && end && fill.finish(None).is_ok_and(|entry| entry.is_some()) {
        fill.policy.metrics.stored.increment();
    }
    if end || !kept {
        ctx.cache = None;
    }
}
