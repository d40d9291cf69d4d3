//! From a request that its route lets pass to an answer: stored, or fetched together with everyone who asks for the same.

use super::super::{Ctx, target};
use super::decide::{self, Use};
use super::fetch::{Ask, Plan, millis};
use super::miss::{self, Miss};
use super::note::{Forwarded, Status, received};
use super::validate::validators;
use super::{Outcome, Role, kept, serve};
use crate::cache::Cache;
use crate::cache::control::RequestControl;
use crate::cache::entry::{Body, Entry, Expired};
use crate::cache::fill::Fill;
use crate::cache::flight::{self, Joined, Name};
use crate::cache::freshen::Own;
use crate::cache::key::{self, Key, Place};
use crate::cache::memory::Counts;
use crate::cache::policy::Policy;
use crate::cache::range::{self, Wanted};
use crate::cache::url;
use crate::compress;
use crate::rejection::{self, Rejection};
use crate::respond;
use crate::snapshot::{Choice, Route};
use crate::telemetry::metrics::{Bypass, CacheResult};
use bytes::Bytes;
use http::{HeaderMap, Method, header};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use std::cell::RefCell;
use std::sync::Arc;

/// Bodies up to this many bytes are compressed where they are asked for; a longer one would hold up other requests.
const CODE_HERE: u64 = 64 << 10;

thread_local! {
    /// Where keys are written. A hit needs no copy of its key.
    static SCRATCH: RefCell<(Vec<u8>, String)> = const { RefCell::new((Vec::new(), String::new())) };
}

/// What goes out of a stored response.
pub struct Served {
    pub head: ResponseHeader,
    pub body: Vec<Bytes>,
    /// What it is of. The bytes are in the store's bound for as long as this is held.
    pub entry: Arc<Entry>,
}

/// Answers from the cache, or through it; or leaves the request to go upstream as any other.
pub async fn answer(session: &mut Session, ctx: &mut Ctx) -> Result<Outcome> {
    let (Some(cache), Some(policy)) = (ctx.snapshot.cache.clone(), ctx.route.as_ref().and_then(|route| route.cache.clone()))
    else {
        return Ok(Outcome::Forward);
    };
    if let Some(route) = ctx.route.clone() {
        target::draw(session, ctx, &route);
        if let Some(connection) = ctx.connection.as_ref().filter(|_| route.direct_hits) {
            connection.expect_hit();
        }
    }
    let control = RequestControl::of(&session.req_header().headers);
    if let Some(why) = bypass(session, &control) {
        policy.metrics.bypassed(why);
        ctx.cached = Some(CacheResult::Bypass);
        ctx.cache = Some(Box::new(Role::Past(why)));
        return Ok(Outcome::Forward);
    }
    let found = look_up(session.req_header(), ctx, &cache, &policy, Counts::Once);
    let now = ctx.gateway.clock().now();
    let (mut stale, mut part) = (None, None);
    let mut why = Forwarded::UriMiss;
    if let Some(entry) = found {
        let usable = entry.is_complete() || covers(&entry, &session.req_header().headers);
        let decision = if usable { decide::decide(&entry, &control, &policy, now) } else { Use::Validate };
        if decision != Use::Validate {
            let mut said = Status::hit(&entry, now);
            let result = match decision {
                Use::WhileRevalidating | Use::Stale => CacheResult::Stale,
                _ => CacheResult::Hit,
            };
            if matches!(decision, Use::Early | Use::WhileRevalidating) && entry.is_complete() {
                let key = owned(session, ctx, &cache, &policy);
                refresh(session, ctx, &cache, &policy, key);
                said.detail = (decision == Use::WhileRevalidating).then_some("stale_while_revalidate");
            }
            policy.metrics.answered(result);
            ctx.cached = Some(result);
            let entry = coded(session, ctx, &cache, &policy, entry).await;
            let bytes = serve::entry(session, ctx, &entry, &Own::new(), said).await?;
            policy.metrics.bytes.add(bytes);
            return Ok(Outcome::Answered);
        }
        why = match () {
            () if !usable => Forwarded::Partial,
            () if entry.freshness(now).is_ok() && !entry.terms.no_cache => Forwarded::Request,
            () => Forwarded::Stale,
        };
        if entry.is_complete() {
            stale = Some(entry);
        } else {
            part = Some(entry);
        }
    }
    if control.only_if_cached {
        policy.metrics.answered(CacheResult::Miss);
        ctx.cached = Some(CacheResult::Miss);
        respond::reject(session, ctx, Rejection::new(&rejection::NOT_CACHED)).await?;
        return Ok(Outcome::Answered);
    }
    let key = owned(session, ctx, &cache, &policy);
    let others = cache.memory.variants(&key);
    if why == Forwarded::UriMiss && !others.is_empty() {
        why = Forwarded::VaryMiss;
    }
    let crowd = flight::crowd(&key, &session.req_header().headers);
    if stale.is_none() && cache.flights.is_unshared(crowd, millis(&received(ctx))) {
        policy.metrics.bypassed(Bypass::Unshared);
        ctx.cached = Some(CacheResult::Bypass);
        let fill = kept::place(session, ctx, &cache, &policy);
        ctx.cache = Some(Box::new(Role::Unshared(crowd, fill)));
        return Ok(Outcome::Forward);
    }
    let ask_tier = policy.redis && stale.is_none() && control == RequestControl::default();
    Miss { cache, policy, key, others, stale, part, why, control, ask_tier }.answer(session, ctx).await
}

/// The answer to a request whose head says all of it, if a fresh and whole response is in memory that is to be sent as it is. Then it
/// is counted; whatever else there is to do is for [`answer`].
pub fn direct_hit(request: &RequestHeader, ctx: &mut Ctx, route: &Route) -> Option<Served> {
    let (cache, policy) = (ctx.snapshot.cache.clone()?, route.cache.as_ref()?);
    let control = RequestControl::of(&request.headers);
    if bypass_by_head(request, &control).is_some() {
        return None;
    }
    let entry = look_up(request, ctx, &cache, policy, Counts::IfFound).filter(|entry| entry.is_complete())?;
    let now = ctx.gateway.clock().now();
    if decide::decide(&entry, &control, policy, now) != Use::Fresh || decide::is_near_end(&entry, policy, now) {
        return None;
    }
    let (head, body) = serve::of_entry(request, ctx, &entry, &Own::new(), Status::hit(&entry, now)).ok()?;
    policy.metrics.answered(CacheResult::Hit);
    policy.metrics.direct_hits.increment();
    ctx.cached = Some(CacheResult::Hit);
    Some(Served { head, body, entry })
}

fn bypass(session: &mut Session, control: &RequestControl) -> Option<Bypass> {
    if let Some(why) = bypass_by_head(session.req_header(), control) {
        return Some(why);
    }
    if session.is_upgrade_req() {
        return Some(Bypass::Upgrade);
    }
    (!session.is_body_empty()).then_some(Bypass::Body)
}

fn bypass_by_head(head: &RequestHeader, control: &RequestControl) -> Option<Bypass> {
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return Some(Bypass::Method);
    }
    if control.no_store {
        return Some(Bypass::Request);
    }
    let precondition = head.headers.contains_key(header::IF_MATCH) || head.headers.contains_key(header::IF_UNMODIFIED_SINCE);
    precondition.then_some(Bypass::Precondition)
}

/// A part of a split has entries of its own: whoever asks for the canary, or is kept away from it, gets what that means. What
/// another upstream answered in its stead, because it was down, is kept as its answer.
fn place<'a>(ctx: &'a Ctx, policy: &'a Policy) -> Place<'a> {
    let part = match ctx.choice {
        Choice::Part(_) => ctx.route.as_ref().and_then(|route| route.target(ctx.choice)).map(|target| &**target.upstream.name()),
        Choice::Primary | Choice::Fallback => None,
    };
    Place { route: &policy.route, part: part.unwrap_or_default(), public: policy.public }
}

pub fn look_up(head: &RequestHeader, ctx: &Ctx, cache: &Cache, policy: &Policy, counts: Counts) -> Option<Arc<Entry>> {
    SCRATCH.with_borrow_mut(|(bytes, base)| {
        url::base_of_request(&ctx.request, &head.uri, base);
        key::write(&policy.key, place(ctx, policy), &ctx.request, &head.uri, &head.headers, bytes);
        let hasher = &cache.memory.hasher;
        let (hash, base_hash) = (hasher.hash(bytes), hasher.hash(base.as_bytes()));
        cache.memory.get(bytes, hash, base_hash, &head.headers, counts)
    })
}

/// The key as a thing of its own. Nothing it is made of changes after the look-up.
pub(super) fn owned(session: &Session, ctx: &Ctx, cache: &Cache, policy: &Policy) -> Arc<Key> {
    let head = session.req_header();
    SCRATCH.with_borrow_mut(|(bytes, url)| {
        url::of_request(&ctx.request, &head.uri, &policy.key, url);
        key::write(&policy.key, place(ctx, policy), &ctx.request, &head.uri, &head.headers, bytes);
        let hasher = &cache.memory.hasher;
        Arc::new(Key {
            bytes: bytes.as_slice().into(),
            hash: hasher.hash(bytes),
            url_hash: hasher.hash(url.as_bytes()),
            // Nothing of a query's rules stands before it.
            base_hash: hasher.hash(url::base(url).as_bytes()),
            url: url.as_str().into(),
            route: Arc::clone(&policy.route),
        })
    })
}

/// The entry in the coding that the client likes best. Made once, and kept beside the plain one under the same bound.
async fn coded(session: &Session, ctx: &Ctx, cache: &Cache, policy: &Policy, entry: Arc<Entry>) -> Arc<Entry> {
    let head = session.req_header();
    let wanted = ctx.compression().filter(|_| entry.is_complete());
    let Some(coding) = wanted.and_then(|compression| compression.would_choose(&head.method, &head.headers, &entry.head)) else {
        return entry;
    };
    let plain = owned(session, ctx, cache, policy);
    let bytes: Box<[u8]> = plain.bytes.iter().copied().chain(coding.as_str().bytes()).collect();
    let hash = cache.memory.hasher.hash(&bytes);
    // Before the look at the entry: a purge in between is seen by one of the two.
    let epoch = cache.memory.epoch();
    let known = cache.memory.get(&bytes, hash, plain.base_hash, &head.headers, Counts::Once);
    if let Some(known) = known.filter(|known| known.received.at == entry.received.at && known.expired() == entry.expired()) {
        return known;
    }
    let pieces = Arc::clone(&entry);
    let work = move || compress::whole(coding, &pieces.body.pieces);
    let body = if entry.body.length > CODE_HERE { tokio::task::spawn_blocking(work).await.ok() } else { Some(work()) };
    let Some(Ok(body)) = body else { return entry };
    let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
    let mut kept = entry.head.clone();
    let mut whole = entry.body.clone();
    // What does not gain by it is remembered as it is.
    if length.saturating_mul(100) < entry.body.length.saturating_mul(95) {
        if let Some(compression) = ctx.compression() {
            compression.mark(&mut kept);
        }
        compress::describe(&mut kept, coding, Some(length));
        whole = Body::whole(std::iter::once(body), length);
    }
    let fresh = Entry::new(kept, whole, entry.terms, entry.received, entry.selecting.clone(), entry.tags.clone());
    let fresh = Arc::new(fresh);
    if entry.expired() == Expired::No {
        let key = Arc::new(Key { bytes, hash, ..Key::clone(&plain) });
        cache.memory.insert(&key, Arc::clone(&fresh), policy.max_variants, epoch, 0);
    } else {
        fresh.expire(entry.expired());
    }
    fresh
}

/// Whether a stored part has all that is asked for.
fn covers(entry: &Entry, request: &HeaderMap) -> bool {
    let Some(range) = request.get(header::RANGE) else { return false };
    if !crate::cache::conditional::range_applies(request, &entry.head.headers) {
        return false;
    }
    match range::wanted(range, entry.body.total) {
        Wanted::One(start, end) => entry.body.holds(start, end),
        Wanted::Many(ranges) => ranges.iter().all(|(start, end)| entry.body.holds(*start, *end)),
        _ => false,
    }
}

/// Fetches anew in the background, unless somebody does already.
fn refresh(session: &mut Session, ctx: &Ctx, cache: &Arc<Cache>, policy: &Arc<Policy>, key: Arc<Key>) {
    let headers = &session.req_header().headers;
    let flight = Name::whole(&key, None, headers, &cache.memory.hasher);
    let make = || Fill::new(Arc::clone(&key), Arc::clone(policy), Arc::clone(&cache.memory), cache.redis.as_ref());
    if let Joined::Leader(fill) = cache.flights.join(&flight, make) {
        policy.metrics.refreshes.increment();
        let validate = validators(&cache.memory.variants(&key), headers);
        miss::start(session, ctx, cache, Plan { fill, flight, ask: Ask::Whole(validate), ask_tier: false });
    }
}
