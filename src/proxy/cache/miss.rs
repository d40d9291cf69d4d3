//! A request that needs the upstream: fetched together with everyone who asks for the same, and waited for only so long.

use super::super::{Ctx, attempt};
use super::decide::{self, Use};
use super::fetch::{self, Ask, Plan, millis};
use super::lookup::look_up;
use super::note::{Forwarded, Status, received, ttl};
use super::part::lacks;
use super::validate::validators;
use super::{Outcome, Role, serve};
use crate::cache::Cache;
use crate::cache::control::RequestControl;
use crate::cache::entry::Entry;
use crate::cache::fill::{Fill, Phase, Reader};
use crate::cache::flight::{self, Joined, Name};
use crate::cache::freshen::Own;
use crate::cache::key::Key;
use crate::cache::memory::Counts;
use crate::cache::policy::{Policy, Refusal};
use crate::cache::vary::Selecting;
use crate::rejection::{self, Rejection};
use crate::respond;
use crate::telemetry::metrics::{Bypass, CacheResult};
use http::{Method, header};
use pingora::Result;
use pingora::proxy::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a request may join a fetch before it goes by itself.
const TURNS_MAX: u32 = 3;

pub(super) struct Miss {
    pub cache: Arc<Cache>,
    pub policy: Arc<Policy>,
    pub key: Arc<Key>,
    pub others: Vec<Arc<Entry>>,
    pub stale: Option<Arc<Entry>>,
    /// A stored part, which is not what is asked for.
    pub part: Option<Arc<Entry>>,
    pub why: Forwarded,
    pub control: RequestControl,
    /// Nothing is stored here, and the client has no wishes: what another gateway has will do.
    pub ask_tier: bool,
}

/// Whether the request has its answer, or has to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Answered,
    Again,
    /// And nothing that is stored will do: without conditions.
    Whole,
    /// It has waited for others as long as it may.
    Late,
    /// What others were answered is not for it, and another of the kind is not to be waited for.
    Alone,
}

/// The fetch that a request takes part in.
struct Joining {
    fill: Arc<Fill>,
    leads: bool,
    flight: Name,
    as_asked: bool,
}

/// Starts a fetch; one that cannot be started has failed.
pub(super) fn start(session: &mut Session, ctx: &Ctx, cache: &Arc<Cache>, plan: Plan) {
    let fill = Arc::clone(&plan.fill);
    let flight = plan.flight.clone();
    if !fetch::start(session, ctx, cache, plan) {
        fill.settle(Phase::Failed(Rejection::new(&rejection::INTERNAL_ERROR)));
        fill.close();
        cache.flights.leave(&flight, &fill);
    }
}

impl Miss {
    pub(super) async fn answer(mut self, session: &mut Session, ctx: &mut Ctx) -> Result<Outcome> {
        let mut validate = validators(&self.others, &session.req_header().headers);
        let as_asked = self.goes_as_asked(session, &validate);
        self.part = self.part.take().filter(|part| !as_asked && lacks(part, self.policy.max_object).is_some());
        let mut selecting = self.others.first().map(|entry| entry.selecting.clone());
        let now = ctx.gateway.clock().now();
        // However many fetches it waits for.
        let patience = now.checked_add(self.policy.wait).unwrap_or(now);
        for turn in 0..TURNS_MAX {
            let joining = self.join(session, selecting.as_ref(), as_asked);
            let Joining { fill, leads, flight, as_asked } = &joining;
            if *as_asked && *leads && self.is_unshared(flight.hash, ctx) {
                self.cache.flights.leave(flight, fill);
                return Ok(self.past(Role::Unshared(flight.hash, None), Bypass::Unshared, ctx));
            }
            // The fetch before this one may have ended between the look into the store and here.
            if *leads && !as_asked && self.stored(session, ctx).is_some() {
                fill.settle(Phase::Stored);
                fill.close();
                self.cache.flights.leave(flight, fill);
            }
            // Before it can begin to run away.
            let Some(reader) = fill.read() else { continue };
            if *leads && fill.is_waiting() {
                let ask = match &self.part {
                    _ if *as_asked => Ask::AsAsked,
                    Some(part) => Ask::Rest(Arc::clone(part)),
                    None => Ask::Whole(validate.clone()),
                };
                let plan = Plan { fill: Arc::clone(fill), ask, flight: flight.clone(), ask_tier: self.ask_tier };
                start(session, ctx, &self.cache, plan);
            }
            match self.follow(session, ctx, &joining, reader, patience, turn, &mut selecting).await? {
                Turn::Answered => return Ok(Outcome::Answered),
                Turn::Late => break,
                Turn::Alone => return Ok(self.past(Role::Past(Bypass::Unshared), Bypass::Unshared, ctx)),
                Turn::Whole => {
                    validate.clear();
                    self.part = None;
                }
                Turn::Again => {}
            }
            if self.look_again(session, ctx).await? {
                return Ok(Outcome::Answered);
            }
            for hash in [flight::crowd(&self.key, &session.req_header().headers), flight.hash] {
                if self.is_unshared(hash, ctx) {
                    return Ok(self.past(Role::Unshared(hash, None), Bypass::Unshared, ctx));
                }
            }
        }
        Ok(self.past(Role::Past(Bypass::Wait), Bypass::Wait, ctx))
    }

    /// Whether what comes of such a fetch was for one client only a moment ago.
    fn is_unshared(&self, hash: u64, ctx: &Ctx) -> bool {
        self.cache.flights.is_unshared(hash, millis(&received(ctx)))
    }

    fn past(&self, role: Role, why: Bypass, ctx: &mut Ctx) -> Outcome {
        self.policy.metrics.bypassed(why);
        ctx.cached = Some(CacheResult::Bypass);
        ctx.cache = Some(Box::new(role));
        Outcome::Forward
    }

    /// Whether what the client asks goes upstream as it is: a HEAD, a part, or its own conditions where there is nothing to validate.
    fn goes_as_asked(&self, session: &Session, validate: &[Arc<Entry>]) -> bool {
        let head = session.req_header();
        let conditions = [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::RANGE];
        head.method == Method::HEAD || validate.is_empty() && conditions.iter().any(|name| head.headers.contains_key(name))
    }

    /// Joins the fetch that others with the same wishes wait for, or begins it. Whoever comes while the whole is being fetched takes
    /// what is wanted from that.
    fn join(&self, session: &Session, selecting: Option<&Selecting>, as_asked: bool) -> Joining {
        let head = session.req_header();
        let whole = Name::whole(&self.key, selecting, &head.headers, &self.cache.memory.hasher);
        let make = || {
            Fill::new(Arc::clone(&self.key), Arc::clone(&self.policy), Arc::clone(&self.cache.memory), self.cache.redis.as_ref())
        };
        let (joined, flight, as_asked) = match as_asked.then(|| self.cache.flights.open(&whole)) {
            Some(Some(fill)) => (Joined::Follower(fill), whole, false),
            Some(None) => {
                let flight = whole.as_asked(head, &self.cache.memory.hasher);
                (self.cache.flights.join(&flight, make), flight, true)
            }
            None => (self.cache.flights.join(&whole, make), whole, false),
        };
        match joined {
            Joined::Leader(fill) => Joining { fill, leads: true, flight, as_asked },
            Joined::Follower(fill) => Joining { fill, leads: false, flight, as_asked },
        }
    }

    /// What another's fetch has brought since, if it will do for this request.
    fn stored(&self, session: &Session, ctx: &Ctx) -> Option<Arc<Entry>> {
        let entry =
            look_up(session.req_header(), ctx, &self.cache, &self.policy, Counts::Not).filter(|entry| entry.is_complete())?;
        let decision = decide::decide(&entry, &self.control, &self.policy, ctx.gateway.clock().now());
        (decision != Use::Validate).then_some(entry)
    }

    /// Answers with what another's fetch has brought since.
    async fn look_again(&mut self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        let Some(entry) = self.stored(session, ctx) else { return Ok(false) };
        let now = ctx.gateway.clock().now();
        let said = Status { forwarded: Some(self.why), collapsed: true, ttl: Some(ttl(&entry, now)), ..Status::default() };
        self.serve(session, ctx, &entry, &Own::new(), said, CacheResult::Collapsed).await?;
        Ok(true)
    }

    async fn serve(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        entry: &Entry,
        own: &Own,
        said: Status,
        result: CacheResult,
    ) -> Result<Turn> {
        self.policy.metrics.answered(result);
        ctx.cached = Some(result);
        let bytes = serve::entry(session, ctx, entry, own, said).await?;
        self.policy.metrics.bytes.add(bytes);
        Ok(Turn::Answered)
    }

    /// Waits until it is decided what becomes of the fetch; `None`: for as long as this request may.
    async fn decided(&self, session: &mut Session, ctx: &mut Ctx, joining: &Joining, patience: Instant) -> Result<Option<Phase>> {
        let Joining { fill, leads, .. } = joining;
        let _waits = (!leads).then(|| self.policy.metrics.waiting.enter());
        loop {
            let left = ctx.check_deadline()?;
            let wait = match leads {
                true => left.unwrap_or(Duration::from_secs(86_400)),
                false => {
                    let wait = patience.saturating_duration_since(ctx.gateway.clock().now());
                    left.unwrap_or(wait).min(wait)
                }
            };
            match tokio::time::timeout(wait, fill.wait(|fill| fill.decided(*leads))).await {
                Ok(Phase::Waiting) => {
                    for head in fill.take_interim() {
                        session.write_response_header(Box::new(head), false).await?;
                    }
                }
                Ok(phase) => return Ok(Some(phase)),
                Err(_) if *leads => return Ok(Some(Phase::Failed(Rejection::new(&rejection::DEADLINE_EXCEEDED)))),
                Err(_) => return Ok(None),
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one call, of one place")]
    async fn follow(
        &mut self,
        session: &mut Session,
        ctx: &mut Ctx,
        joining: &Joining,
        reader: Reader,
        patience: Instant,
        turn: u32,
        selecting: &mut Option<Selecting>,
    ) -> Result<Turn> {
        let Some(phase) = self.decided(session, ctx, joining, patience).await? else { return Ok(Turn::Late) };
        let leads = joining.leads;
        if leads {
            ctx.attempt.fetched = Some(Box::new(joining.fill.trip()));
        }
        let now = ctx.gateway.clock().now();
        let result = if leads { CacheResult::Miss } else { CacheResult::Collapsed };
        let mut said = Status { forwarded: Some(self.why), collapsed: !leads, ..Status::default() };
        let matches = |selecting: &Selecting, session: &Session| selecting.matches(&session.req_header().headers);
        match phase {
            Phase::Streaming(head) => {
                let status = head.header.status.as_u16();
                if matches!(status, 500 | 502..=504)
                    && let Some(turn) = self.instead_of_error(session, ctx, now, Some(status)).await?
                {
                    return Ok(turn);
                }
                match &head.outcome {
                    Ok(stored) if leads || matches(&stored.selecting, session) => {
                        said.stored = head.kept;
                        if !head.kept && session.req_header().method == Method::GET {
                            said.detail = Some(Refusal::NoRoom.as_str());
                        }
                        let left = stored.terms.lifetime.saturating_sub(stored.terms.initial_age);
                        said.ttl = i64::try_from(left.as_secs()).ok();
                    }
                    Ok(stored) => {
                        *selecting = Some(stored.selecting.clone());
                        return Ok(Turn::Again);
                    }
                    Err(why) if leads => said.detail = Some(why.as_str()),
                    // An upstream that fails is not asked by one after the other.
                    Err(_) if status >= 500 => return Ok(Turn::Alone),
                    Err(_) => return Ok(Turn::Again),
                }
                self.policy.metrics.answered(result);
                ctx.cached = Some(result);
                serve::stream(session, ctx, &head, reader, said).await?;
                Ok(Turn::Answered)
            }
            Phase::Validated(confirmed) => {
                drop(reader);
                let entry = &confirmed.entry;
                if !(leads || confirmed.shared && matches(&entry.selecting, session)) {
                    return Ok(Turn::Again);
                }
                (said.upstream, said.ttl) = (Some(304), Some(ttl(entry, now)));
                let none = Own::new();
                let own = if leads { &confirmed.own } else { &none };
                self.serve(session, ctx, entry, own, said, CacheResult::Revalidated).await
            }
            Phase::Shared(entry) => {
                drop(reader);
                // The one who asked first had no wishes; this one may want what only the upstream can say.
                if !matches(&entry.selecting, session)
                    || decide::decide(&entry, &self.control, &self.policy, now) == Use::Validate
                {
                    self.ask_tier = false;
                    return Ok(Turn::Again);
                }
                let said = Status { detail: Some("redis"), ..Status::hit(&entry, now) };
                self.serve(session, ctx, &entry, &Own::new(), said, CacheResult::Hit).await
            }
            Phase::NotModified(head) => {
                drop(reader);
                let shared = head.outcome.as_ref().is_ok_and(|stored| matches(&stored.selecting, session));
                if !(leads || joining.as_asked && shared) {
                    return Ok(Turn::Again);
                }
                self.policy.metrics.answered(result);
                ctx.cached = Some(result);
                let mut answer = head.header.clone();
                for (name, value) in head.own.iter().filter(|_| leads) {
                    answer.append_header(name.clone(), value.clone())?;
                }
                said.write(&mut answer);
                serve::not_modified(session, ctx, answer).await?;
                Ok(Turn::Answered)
            }
            Phase::Unclear => Ok(Turn::Whole),
            Phase::Stored | Phase::Waiting => Ok(Turn::Again),
            Phase::Failed(rejection) => {
                if let Some(turn) = self.instead_of_error(session, ctx, now, None).await? {
                    return Ok(turn);
                }
                if !leads && turn == 0 {
                    // The one who asked first had bad luck; that need not be so for everyone.
                    return Ok(Turn::Again);
                }
                self.policy.metrics.answered(result);
                ctx.cached = Some(result);
                ctx.cache = Some(Box::new(Role::Failed(said)));
                match joining.fill.instead() {
                    Some(answer) => attempt::refuse_with(session, ctx, rejection, answer).await?,
                    None => respond::reject(session, ctx, rejection).await?,
                }
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
        let Some(entry) = self.stale.clone().filter(|entry| decide::on_error(entry, &self.control, now)) else { return Ok(None) };
        let said = Status {
            forwarded: Some(self.why),
            upstream: status,
            ttl: Some(ttl(&entry, now)),
            detail: Some("stale_if_error"),
            ..Status::default()
        };
        self.serve(session, ctx, &entry, &Own::new(), said, CacheResult::Stale).await.map(Some)
    }
}
