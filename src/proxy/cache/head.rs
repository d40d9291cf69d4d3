//! HEAD: its answer is for everyone who asks the same way, is not stored, and tells what a stored answer to GET is worth.

use super::fetch::{Fetch, millis};
use super::note::received;
use crate::cache::entry::{self, Entry, Expired};
use crate::cache::fill::{Phase, Stored};
use crate::cache::freshen::{self, Freshened, freshened};
use crate::cache::freshness::Received;
use crate::cache::policy::Refusal;
use crate::proxy::Ctx;
use http::{HeaderMap, HeaderName, header};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use std::sync::Arc;

/// The answer to the HEAD of a fetch.
pub fn answered(session: &Session, head: &ResponseHeader, ctx: &mut Ctx) {
    let received = received(ctx);
    let Some(fetch) = ctx.fetch_mut() else { return };
    let request = &session.req_header().headers;
    let status = head.status.as_u16();
    let shown = shown(fetch, request, head, if status == 304 { 200 } else { status }, &received);
    if shown.outcome.is_err() && status < 500 {
        fetch.cache.flights.note_unshared(fetch.flight, millis(&received));
    }
    if status == 304 {
        fetch.fill.settle(Phase::NotModified(Arc::new(shown)));
        return;
    }
    learn(fetch, request, head, &received);
    let _ = fetch.fill.begin(shown.header, shown.own, shown.outcome, true);
}

/// A head without a body as it may be shown to others, if it may.
pub fn shown(
    fetch: &Fetch,
    request: &HeaderMap,
    head: &ResponseHeader,
    status: u16,
    received: &Received,
) -> crate::cache::fill::Head {
    let mut fields = Vec::new();
    let judged = fetch.fill.policy.judge(status, &head.headers, fetch.asked, received, &mut fields);
    let outcome = judged.and_then(|terms| {
        let selecting = fetch.fill.policy.selecting(&head.headers, request)?;
        Ok(Stored::new(terms, *received, selecting))
    });
    let mut header = head.clone();
    for name in &fields {
        header.remove_header(name);
    }
    crate::cache::fill::Head { header, outcome, length: None, kept: false, own: freshen::own(&head.headers, &fields) }
}

/// RFC 9111 §4.3.5: the answer to a HEAD refreshes the stored answers to GET that could have been chosen for it and are the same,
/// and invalidates those that are not.
fn learn(fetch: &Fetch, request: &HeaderMap, head: &ResponseHeader, received: &Received) {
    let status = head.status.as_u16();
    if !matches!(status, 200 | 404 | 410) {
        return;
    }
    let fill = &fetch.fill;
    let chosen = |known: &&Arc<Entry>| known.selecting.matches(request) && known.is_complete();
    for known in fetch.cache.memory.variants(&fill.key).iter().filter(chosen) {
        let differs = |name: &HeaderName| head.headers.get(name).is_some_and(|new| known.head.headers.get(name) != Some(new));
        let validators = [header::ETAG, header::LAST_MODIFIED, header::CONTENT_LENGTH];
        if known.head.status != head.status || status == 200 && validators.iter().any(differs) {
            known.expire(Expired::Invalid);
            continue;
        }
        let Freshened { head: fresh, terms, .. } = freshened(&fill.policy, known, head, fetch.asked, received);
        match terms {
            Ok(terms) => {
                let (body, tags) = (known.body.clone(), entry::tags(&fresh.headers));
                let fresh = Entry::new(fresh, body, terms, *received, known.selecting.clone(), tags);
                fill.keep(&Arc::new(fresh));
            }
            // It says of the one who asked only, not of what is stored for everyone.
            Err(Refusal::Authorization) => {}
            Err(_) => known.expire(Expired::Invalid),
        }
    }
}
