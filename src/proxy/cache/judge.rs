//! What becomes of an answer that a fetch brings: whether it is stored, in whose place, and what it says of what is.

use super::super::Ctx;
use super::fetch::{Ask, Fetch, millis};
use super::note::received;
use super::{part, validate};
use crate::cache::entry::{self, Entry};
use crate::cache::fill::{Head, Phase, Stored};
use crate::cache::flight;
use crate::cache::freshen;
use crate::cache::freshness::Received;
use crate::cache::policy::Refusal;
use http::{HeaderMap, header};
use pingora::cache::{CacheMeta, NoCacheReason, RespCacheable};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use std::sync::Arc;
use std::time::SystemTime;

pub fn judge(session: &Session, head: &ResponseHeader, ctx: &mut Ctx) -> RespCacheable {
    let received = received(ctx);
    let uncacheable = |why: &'static str| RespCacheable::Uncacheable(NoCacheReason::Custom(why));
    let Some(fetch) = ctx.fetch_mut() else { return uncacheable("not a fetch") };
    let request = &session.req_header().headers;
    if let Some(update) = fetch.not_modified.take() {
        validate::validated(fetch, request, &update, &received);
        let shell = CacheMeta::new(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH, 0, 0, head.clone());
        return RespCacheable::Cacheable(shell);
    }
    let status = head.status.as_u16();
    let policy = Arc::clone(&fetch.fill.policy);
    let before = of_request(fetch, request);
    let shown = match &fetch.ask {
        Ask::Rest(part) => match part::completed(fetch, part, head, request, &received) {
            Some(whole) => {
                fetch.fill.complete(&part.body);
                Some(whole)
            }
            // Another part than the one that was asked for makes nothing whole.
            None if matches!(status, 206 | 416) => {
                fetch.fill.settle(Phase::Unclear);
                return uncacheable("unclear");
            }
            None => None,
        },
        _ => None,
    };
    let shown = shown.unwrap_or_else(|| new(fetch, request, head, &before, &received));
    let outcome = shown.outcome.map(|stored| match stored.part {
        None => Stored { replaces: before.clone(), ..stored },
        Some(_) => stored,
    });
    let Err(why) = fetch.fill.begin(shown.header, shown.own, outcome, false) else {
        policy.metrics.stored.increment();
        return RespCacheable::Cacheable(CacheMeta::new(received.wall, received.wall, 0, 0, head.clone()));
    };
    policy.metrics.refused(why);
    if displaces(status, why) {
        displace(fetch, &before);
    }
    // An error says nothing of the answers to come: those who wait for this one go on alone, and whoever comes later does not have to.
    // Room there may be for the next.
    if status < 500 && why != Refusal::NoRoom {
        // A part says nothing of the whole, nor does what conditions of one request have come to.
        let what = if matches!(status, 206 | 412 | 416) { fetch.flight } else { flight::crowd(&fetch.fill.key, request) };
        fetch.cache.flights.note_unshared(what, millis(&received));
    }
    uncacheable(why.as_str())
}

/// An answer by itself.
fn new(fetch: &Fetch, request: &HeaderMap, head: &ResponseHeader, before: &[Arc<Entry>], received: &Received) -> Head {
    let status = head.status.as_u16();
    let mut fields = Vec::new();
    let judged = fetch.fill.policy.judge(status, &head.headers, fetch.asked, received, &mut fields);
    let outcome = judged.and_then(|terms| {
        let selecting = fetch.fill.policy.selecting(&head.headers, request)?;
        let aged = head.headers.contains_key(header::AGE);
        let stored = Stored { aged, ..Stored::new(terms, *received, selecting) };
        if status != 206 {
            return Ok(stored);
        }
        let part = Some(part::of(head).ok_or(Refusal::Status)?);
        if let Some((joined, stored)) = part::joined(fetch, before, head, received) {
            return Ok(Stored { part, joined: Some(Box::new(joined)), ..stored });
        }
        // It is not worth what is whole and good.
        let good = |known: &Arc<Entry>| known.is_complete() && known.freshness(received.at).is_ok();
        if before.iter().any(good) { Err(Refusal::Status) } else { Ok(Stored { part, ..stored }) }
    });
    let (header, own) = match &outcome {
        Ok(_) => (entry::stored_head(head, &fields, received), freshen::own(&head.headers, &fields)),
        Err(_) => (head.clone(), freshen::Own::new()),
    };
    Head { header, outcome, length: None, kept: false, own }
}

/// The stored answers that such a request could be given.
fn of_request(fetch: &Fetch, request: &HeaderMap) -> Vec<Arc<Entry>> {
    let mut known = fetch.cache.memory.variants(&fetch.fill.key);
    known.retain(|entry| entry.selecting.matches(request));
    known
}

/// Whether an answer that is not stored shows that what is stored is of the past. Errors of the upstream do not, nor does what is said
/// of this request, or of this client, and not of the resource.
const fn displaces(status: u16, why: Refusal) -> bool {
    let of_request = matches!(status, 206 | 304 | 400 | 406 | 408 | 411..=417 | 421 | 425 | 426 | 428 | 429 | 431);
    status < 500 && !of_request && !matches!(why, Refusal::Authorization | Refusal::NoRoom)
}

/// The origin has said something else by now, and that this is not to be kept (RFC 9111 §4: of several answers the most recent one
/// counts).
fn displace(fetch: &Fetch, before: &[Arc<Entry>]) {
    for entry in before {
        fetch.cache.memory.remove(&fetch.fill.key, entry);
    }
    if let Some(tier) = fetch.cache.redis.as_ref().filter(|_| fetch.fill.policy.redis && !before.is_empty()) {
        tier.invalidate(&fetch.fill.key.url);
    }
}
