//! POST: an answer that names its own URL and says how long it is fresh stands for what a GET of that URL would bring
//! (RFC 9110 §9.3.3).
//!
//! It is not fetched for anybody else, so no request waits for it: the answer passes as any other, and is kept on the way.

use super::lookup::owned;
use super::note::{asked, port, received};
use super::{Ctx, Role};
use crate::cache::control::RequestControl;
use crate::cache::entry;
use crate::cache::fill::{Fill, Stored};
use crate::cache::freshen;
use crate::cache::key::KeyRules;
use crate::cache::{Cache, url};
use crate::snapshot::Choice;
use bytes::Bytes;
use http::{Method, StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use std::sync::Arc;

/// Where the answer is kept, if it is to be. To be asked after what the request has invalidated is gone.
pub fn kept(session: &Session, ctx: &Ctx, cache: &Cache, head: &ResponseHeader) -> Option<Arc<Fill>> {
    let request = session.req_header();
    // What another upstream has answered in the stead of a part is not that part's.
    if request.method != Method::POST || head.status != StatusCode::OK || ctx.choice == Choice::Fallback {
        return None;
    }
    let named = head.headers.get(header::CONTENT_LOCATION)?.to_str().ok()?;
    let policy = ctx.route.as_ref()?.cache.as_ref()?;
    let mut target = String::new();
    url::of_request(&ctx.request, &request.uri, &KeyRules::default(), &mut target);
    let same = url::of_reference(named, &ctx.request, &request.uri, port(request)).is_some_and(|named| named == target);
    let received = received(ctx);
    if !same || RequestControl::of(&request.headers).no_store || !policy.is_explicit(&head.headers, &received) {
        return None;
    }
    let mut fields = Vec::new();
    let terms = policy.judge(200, &head.headers, asked(ctx, &request.headers), &received, &mut fields).ok()?;
    let selecting = policy.selecting(&head.headers, &request.headers).ok()?;
    let key = owned(session, ctx, cache, policy);
    let mut replaces = cache.memory.variants(&key);
    replaces.retain(|known| known.selecting.matches(&request.headers));
    let stored = Stored { replaces, ..Stored::new(terms, received, selecting) };
    // Not for the other tier: there the invalidation may still be under way.
    let fill = Fill::new(key, Arc::clone(policy), Arc::clone(&cache.memory), None);
    let own = freshen::own(&head.headers, &fields);
    fill.begin(entry::stored_head(head, &fields, &received), own, Ok(stored), false).ok()?;
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
