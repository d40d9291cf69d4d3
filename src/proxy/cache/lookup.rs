//! From a request that its route lets pass to an answer: stored, or fetched together with everyone who asks for the same.

use super::super::{Ctx, target};
use super::decide::{self, Use};
use super::fetch::{self, Plan, millis};
use super::note::{Forwarded, HeadOf, Status, asked, received, ttl};
use super::{Outcome, Role, serve};
use crate::cache::Cache;
use crate::cache::control::RequestControl;
use crate::cache::entry::{Body, Entry, Expired};
use crate::cache::fill::{Fill, Phase, Reader};
use crate::cache::flight::Joined;
use crate::cache::key::{self, Key, Place};
use crate::cache::policy::Policy;
use crate::cache::range::{self, Wanted};
use crate::cache::vary::{self, Selecting};
use crate::compress;
use crate::rejection::{self, Rejection};
use crate::respond;
use crate::snapshot::Choice;
use crate::telemetry::metrics::{Bypass, CacheResult};
use http::{HeaderMap, Method, header};
use pingora::Result;
use pingora::proxy::Session;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a request may wait for the fetch of another before it goes by itself.
const WAITS_MAX: u32 = 3;
/// Bodies up to this many bytes are compressed where they are asked for; a longer one would hold up other requests.
const CODE_HERE: u64 = 64 << 10;

thread_local! {
    /// Where keys are written. A hit needs no copy of its key.
    static SCRATCH: RefCell<(Vec<u8>, String)> = const { RefCell::new((Vec::new(), String::new())) };
}

/// What a look-up gives.
struct Found {
    entry: Option<Arc<Entry>>,
    hash: u64,
    base_hash: u64,
}

/// Answers from the cache, or through it; or leaves the request to go upstream as any other.
pub async fn answer(session: &mut Session, ctx: &mut Ctx) -> Result<Outcome> {
    let (Some(cache), Some(policy)) = (ctx.snapshot.cache.clone(), ctx.route.as_ref().and_then(|route| route.cache.clone()))
    else {
        return Ok(Outcome::Forward);
    };
    if let Some(route) = ctx.route.clone() {
        target::draw(session, ctx, &route);
    }
    let control = RequestControl::of(&session.req_header().headers);
    if let Some(why) = bypass(session, &control) {
        policy.metrics.bypassed(why);
        ctx.cache = Some(Box::new(Role::Past(why)));
        return Ok(Outcome::Forward);
    }
    let found = look_up(session, ctx, &cache, &policy);
    let now = ctx.gateway.clock().now();
    let mut stale = None;
    let mut why = Forwarded::UriMiss;
    if let Some(entry) = found.entry.clone() {
        let usable = entry.is_complete() || covers(&entry, &session.req_header().headers);
        let decision = if usable { decide::decide(&entry, &control, &policy, now) } else { Use::Validate };
        if decision != Use::Validate {
            let mut said = Status::hit(&entry, now);
            let result = match decision {
                Use::WhileRevalidating | Use::Stale => CacheResult::Stale,
                _ => CacheResult::Hit,
            };
            if matches!(decision, Use::Early | Use::WhileRevalidating) && entry.is_complete() {
                let key = owned(session, ctx, &cache, &policy, &found);
                refresh(session, ctx, &cache, &policy, key);
                said.detail = (decision == Use::WhileRevalidating).then_some("stale_while_revalidate");
            }
            policy.metrics.answered(result);
            let entry = coded(session, ctx, &cache, &policy, &found, entry).await;
            let bytes = serve::entry(session, ctx, &entry, said).await?;
            policy.metrics.bytes.add(bytes);
            return Ok(Outcome::Answered);
        }
        why = match () {
            () if !usable => Forwarded::Partial,
            () if entry.freshness(now).is_ok() && !entry.terms.no_cache => Forwarded::Request,
            () => Forwarded::Stale,
        };
        stale = Some(entry).filter(|entry| entry.is_complete());
    }
    if control.only_if_cached {
        policy.metrics.answered(CacheResult::Miss);
        respond::reject(session, ctx, Rejection::new(&rejection::NOT_CACHED)).await?;
        return Ok(Outcome::Answered);
    }
    let key = owned(session, ctx, &cache, &policy, &found);
    if session.req_header().method == Method::HEAD {
        policy.metrics.answered(CacheResult::Miss);
        let asked = asked(ctx, &session.req_header().headers);
        ctx.cache = Some(Box::new(Role::Head(Box::new(HeadOf { key, policy, why, asked }))));
        return Ok(Outcome::Forward);
    }
    let others = cache.memory.variants(&key);
    if why == Forwarded::UriMiss && !others.is_empty() {
        why = Forwarded::VaryMiss;
    }
    if stale.is_none() && cache.flights.is_unshared(key.hash, millis(&received(ctx))) {
        policy.metrics.bypassed(Bypass::Unshared);
        ctx.cache = Some(Box::new(Role::Unshared(key.hash)));
        return Ok(Outcome::Forward);
    }
    let ask_tier = policy.redis && stale.is_none() && control == RequestControl::default();
    Miss { cache, policy, key, others, stale, why, ask_tier }.answer(session, ctx).await
}

fn bypass(session: &mut Session, control: &RequestControl) -> Option<Bypass> {
    let head = session.req_header();
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return Some(Bypass::Method);
    }
    if control.no_store {
        return Some(Bypass::Request);
    }
    if head.headers.contains_key(header::IF_MATCH) || head.headers.contains_key(header::IF_UNMODIFIED_SINCE) {
        return Some(Bypass::Precondition);
    }
    if session.is_upgrade_req() {
        return Some(Bypass::Upgrade);
    }
    (!session.is_body_empty()).then_some(Bypass::Body)
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

fn look_up(session: &Session, ctx: &Ctx, cache: &Cache, policy: &Policy) -> Found {
    let head = session.req_header();
    SCRATCH.with_borrow_mut(|(bytes, url)| {
        key::url(&ctx.request, &head.uri, url);
        key::write(&policy.key, place(ctx, policy), &ctx.request, &head.uri, &head.headers, bytes);
        let hasher = &cache.memory.hasher;
        let (hash, base_hash) = (hasher.hash(bytes), hasher.hash(key::base(url).as_bytes()));
        Found { entry: cache.memory.get(bytes, hash, base_hash, &head.headers), hash, base_hash }
    })
}

/// The key as a thing of its own. Nothing it is made of has changed since the look-up.
fn owned(session: &Session, ctx: &Ctx, cache: &Cache, policy: &Policy, found: &Found) -> Arc<Key> {
    let head = session.req_header();
    SCRATCH.with_borrow_mut(|(bytes, url)| {
        key::url(&ctx.request, &head.uri, url);
        key::write(&policy.key, place(ctx, policy), &ctx.request, &head.uri, &head.headers, bytes);
        let url_hash = cache.memory.hasher.hash(url.as_bytes());
        let Found { hash, base_hash, .. } = *found;
        Arc::new(Key {
            bytes: bytes.as_slice().into(),
            hash,
            url_hash,
            base_hash,
            url: url.as_str().into(),
            route: Arc::clone(&policy.route),
        })
    })
}

/// The entry in the coding that the client likes best. Made once, and kept beside the plain one under the same bound.
async fn coded(session: &Session, ctx: &Ctx, cache: &Cache, policy: &Policy, found: &Found, entry: Arc<Entry>) -> Arc<Entry> {
    let head = session.req_header();
    let wanted = ctx.compression().filter(|_| entry.is_complete());
    let Some(coding) = wanted.and_then(|compression| compression.would_choose(&head.method, &head.headers, &entry.head)) else {
        return entry;
    };
    let plain = owned(session, ctx, cache, policy, found);
    let bytes: Box<[u8]> = plain.bytes.iter().copied().chain(coding.as_str().bytes()).collect();
    let hash = cache.memory.hasher.hash(&bytes);
    // Before the look at the entry: a purge in between is seen by one of the two.
    let epoch = cache.memory.epoch();
    let known = cache.memory.get(&bytes, hash, plain.base_hash, &head.headers);
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
    if length < entry.body.length / 100 * 95 {
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
        cache.memory.insert(&key, Arc::clone(&fresh), policy.max_variants, epoch);
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
fn refresh(session: &Session, ctx: &Ctx, cache: &Arc<Cache>, policy: &Arc<Policy>, key: Arc<Key>) {
    let (id, hash) = flight_id(&key, None, &session.req_header().headers, cache);
    let make = || Fill::new(Arc::clone(&key), Arc::clone(policy), Arc::clone(&cache.memory), cache.redis.as_ref());
    if let Joined::Leader(fill) = cache.flights.join(&id, hash, make) {
        policy.metrics.refreshes.increment();
        let validate = validators(&cache.memory.variants(&key));
        start(session, ctx, cache, Plan { fill, validate, flight: Some((id, hash)), as_asked: false, ask_tier: false });
    }
}

fn validators(variants: &[Arc<Entry>]) -> Vec<Arc<Entry>> {
    variants.iter().filter(|entry| entry.is_complete() && entry.validator()).take(8).cloned().collect()
}

/// Starts a fetch; one that cannot be started has failed.
fn start(session: &Session, ctx: &Ctx, cache: &Arc<Cache>, plan: Plan) {
    let fill = Arc::clone(&plan.fill);
    let flight = plan.flight.clone();
    if !fetch::start(session, ctx, cache, plan) {
        fill.settle(Phase::Failed(Rejection::new(&rejection::INTERNAL_ERROR)));
        fill.close();
        if let Some((id, hash)) = flight {
            cache.flights.leave(&id, hash, &fill);
        }
    }
}

/// What requests must have in common to share a fetch: the key, and the fields that select among its answers as far as they are
/// known.
fn flight_id(key: &Key, selecting: Option<&Selecting>, request: &HeaderMap, cache: &Cache) -> (Box<[u8]>, u64) {
    let mut id = key.bytes.to_vec();
    for (name, _) in selecting.iter().flat_map(|selecting| selecting.fields.iter()) {
        let value = vary::normalised(name, request);
        for text in [name.as_str(), value.as_str()] {
            id.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
            id.extend_from_slice(text.as_bytes());
        }
    }
    let hash = if id.len() == key.bytes.len() { key.hash } else { cache.memory.hasher.hash(&id) };
    (id.into(), hash)
}

/// A request that needs the upstream.
struct Miss {
    cache: Arc<Cache>,
    policy: Arc<Policy>,
    key: Arc<Key>,
    others: Vec<Arc<Entry>>,
    stale: Option<Arc<Entry>>,
    why: Forwarded,
    /// Nothing is stored here, and the client has no wishes: what another gateway has will do.
    ask_tier: bool,
}

/// Whether the request has its answer, or has to try again.
enum Turn {
    Answered,
    Again,
}

impl Miss {
    async fn answer(mut self, session: &mut Session, ctx: &mut Ctx) -> Result<Outcome> {
        let headers = &session.req_header().headers;
        let validate = validators(&self.others);
        let own_conditions = validate.is_empty()
            && [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::RANGE].iter().any(|name| headers.contains_key(name));
        let mut selecting = self.others.first().map(|entry| entry.selecting.clone());
        for round in 0..WAITS_MAX {
            let make = || {
                Fill::new(
                    Arc::clone(&self.key),
                    Arc::clone(&self.policy),
                    Arc::clone(&self.cache.memory),
                    self.cache.redis.as_ref(),
                )
            };
            let (id, hash) = flight_id(&self.key, selecting.as_ref(), &session.req_header().headers, &self.cache);
            let (fill, leads) = if own_conditions {
                (make(), true)
            } else {
                match self.cache.flights.join(&id, hash, make) {
                    Joined::Leader(fill) => (fill, true),
                    Joined::Follower(fill) => (fill, false),
                }
            };
            // The fetch before this one may have ended between the look into the store and here.
            if leads && !own_conditions && self.stored(session, ctx).is_some() {
                fill.settle(Phase::Stored);
                fill.close();
                self.cache.flights.leave(&id, hash, &fill);
            }
            // Before it can begin to run away.
            let Some(reader) = fill.read() else { continue };
            if leads && fill.is_waiting() {
                let flight = (!own_conditions).then_some((id, hash));
                let plan = Plan {
                    fill: Arc::clone(&fill),
                    validate: validate.clone(),
                    flight,
                    as_asked: own_conditions,
                    ask_tier: self.ask_tier,
                };
                start(session, ctx, &self.cache, plan);
            }
            match self.follow(session, ctx, &fill, reader, leads, round, &mut selecting).await? {
                Turn::Answered => return Ok(Outcome::Answered),
                Turn::Again => {
                    if self.look_again(session, ctx).await? {
                        return Ok(Outcome::Answered);
                    }
                }
            }
            if self.cache.flights.is_unshared(self.key.hash, millis(&received(ctx))) {
                break;
            }
        }
        self.policy.metrics.bypassed(Bypass::Wait);
        ctx.cache = Some(Box::new(Role::Past(Bypass::Wait)));
        Ok(Outcome::Forward)
    }

    /// What another's fetch has brought since, if it will do for this request.
    fn stored(&self, session: &Session, ctx: &Ctx) -> Option<Arc<Entry>> {
        let entry = look_up(session, ctx, &self.cache, &self.policy).entry.filter(|entry| entry.is_complete())?;
        let control = RequestControl::of(&session.req_header().headers);
        let decision = decide::decide(&entry, &control, &self.policy, ctx.gateway.clock().now());
        (decision != Use::Validate).then_some(entry)
    }

    /// Answers with what another's fetch has brought since.
    async fn look_again(&mut self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        let Some(entry) = self.stored(session, ctx) else { return Ok(false) };
        let now = ctx.gateway.clock().now();
        let said = Status { forwarded: Some(self.why), collapsed: true, ttl: Some(ttl(&entry, now)), ..Status::default() };
        self.policy.metrics.answered(CacheResult::Collapsed);
        let bytes = serve::entry(session, ctx, &entry, said).await?;
        self.policy.metrics.bytes.add(bytes);
        Ok(true)
    }

    #[allow(clippy::too_many_arguments, reason = "one call, of one place")]
    async fn follow(
        &mut self,
        session: &mut Session,
        ctx: &mut Ctx,
        fill: &Arc<Fill>,
        reader: Reader,
        leads: bool,
        round: u32,
        selecting: &mut Option<Selecting>,
    ) -> Result<Turn> {
        let phase = loop {
            let patience = match (leads, ctx.check_deadline()?) {
                (true, None) => Duration::from_secs(86_400),
                (true, Some(left)) => left,
                (false, left) => left.unwrap_or(self.policy.wait).min(self.policy.wait),
            };
            match tokio::time::timeout(patience, fill.wait(|fill| fill.decided(leads))).await {
                Ok(Phase::Waiting) => {
                    for head in fill.take_interim() {
                        session.write_response_header(Box::new(head), false).await?;
                    }
                }
                Ok(phase) => break phase,
                Err(_) if leads => break Phase::Failed(Rejection::new(&rejection::DEADLINE_EXCEEDED)),
                Err(_) => return Ok(Turn::Again),
            }
        };
        let now = ctx.gateway.clock().now();
        let result = if leads { CacheResult::Miss } else { CacheResult::Collapsed };
        let mut said = Status { forwarded: Some(self.why), collapsed: !leads, ..Status::default() };
        match phase {
            Phase::Streaming(head) => {
                let status = head.header.status.as_u16();
                if matches!(status, 500 | 502..=504)
                    && let Some(turn) = self.instead_of_error(session, ctx, now, Some(status)).await?
                {
                    return Ok(turn);
                }
                if !leads {
                    match &head.outcome {
                        Ok(stored) if stored.selecting.matches(&session.req_header().headers) => {}
                        Ok(stored) => {
                            *selecting = Some(stored.selecting.clone());
                            return Ok(Turn::Again);
                        }
                        Err(_) => return Ok(Turn::Again),
                    }
                }
                match &head.outcome {
                    Ok(stored) => {
                        said.stored = true;
                        let left = stored.terms.lifetime.saturating_sub(stored.terms.initial_age);
                        said.ttl = i64::try_from(left.as_secs()).ok();
                    }
                    Err(why) => said.detail = Some(why.as_str()),
                }
                self.policy.metrics.answered(result);
                serve::stream(session, ctx, &head, reader, said).await?;
                Ok(Turn::Answered)
            }
            Phase::Validated(entry) => {
                drop(reader);
                if !entry.selecting.matches(&session.req_header().headers) && !leads {
                    return Ok(Turn::Again);
                }
                (said.upstream, said.ttl) = (Some(304), Some(ttl(&entry, now)));
                self.policy.metrics.answered(CacheResult::Revalidated);
                let bytes = serve::entry(session, ctx, &entry, said).await?;
                self.policy.metrics.bytes.add(bytes);
                Ok(Turn::Answered)
            }
            Phase::Shared(entry) => {
                drop(reader);
                if !entry.selecting.matches(&session.req_header().headers) {
                    return Ok(Turn::Again);
                }
                self.policy.metrics.answered(CacheResult::Hit);
                let said = Status { detail: Some("redis"), ..Status::hit(&entry, now) };
                let bytes = serve::entry(session, ctx, &entry, said).await?;
                self.policy.metrics.bytes.add(bytes);
                Ok(Turn::Answered)
            }
            Phase::NotModified(head) if leads => {
                drop(reader);
                self.policy.metrics.answered(result);
                let mut head = (*head).clone();
                said.write(&mut head);
                serve::not_modified(session, ctx, head).await?;
                Ok(Turn::Answered)
            }
            Phase::NotModified(_) | Phase::Stored | Phase::Waiting => Ok(Turn::Again),
            Phase::Failed(rejection) => {
                if let Some(turn) = self.instead_of_error(session, ctx, now, None).await? {
                    return Ok(turn);
                }
                if !leads && round == 0 {
                    // The one who asked first had bad luck; that need not be so for everyone.
                    return Ok(Turn::Again);
                }
                self.policy.metrics.answered(result);
                respond::reject(session, ctx, rejection).await?;
                Ok(Turn::Answered)
            }
        }
    }

    /// A stale answer where the upstream has none (RFC 5861 §4).
    async fn instead_of_error(
        &mut self,
        session: &mut Session,
        ctx: &mut Ctx,
        now: Instant,
        status: Option<u16>,
    ) -> Result<Option<Turn>> {
        let Some(entry) = self.stale.clone().filter(|entry| decide::on_error(entry, now)) else { return Ok(None) };
        let said = Status {
            forwarded: Some(self.why),
            upstream: status,
            ttl: Some(ttl(&entry, now)),
            detail: Some("stale_if_error"),
            ..Status::default()
        };
        self.policy.metrics.answered(CacheResult::Stale);
        let bytes = serve::entry(session, ctx, &entry, said).await?;
        self.policy.metrics.bytes.add(bytes);
        Ok(Some(Turn::Answered))
    }
}
