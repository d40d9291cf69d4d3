//! `rate_limit`: how often something may be asked for, counted by who asks.
//!
//! The decision itself is the store's business ([`crate::limit`]). This file says what is counted, which limits hold, and
//! what the client is told: draft-ietf-httpapi-ratelimit-headers-11 on every response, 429 with a true `Retry-After` when
//! it is refused.

mod config;
mod headers;
mod inspect;
mod late;
mod lease;

pub use config::RateLimitConfig;

use super::{Filter, Flow, Limiter, Phases, Step};
use crate::limit::key;
use crate::limit::local::{LocalSet, LocalStore};
use crate::limit::redis::lease::Errand;
use crate::limit::redis::{RedisStore, SharedSet};
use crate::limit::top::Top;
use crate::limit::{Decision, Keys, Limit, Seen, Source, Standings};
use crate::rejection::{self, Rejection};
use crate::request::RequestCtx;
use crate::telemetry::metrics::{LimitMetrics, METHODS, Method};
use headers::{Style, Told};
use http::HeaderName;
use parking_lot::Mutex;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What happens while Redis cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnError {
    Local,
    Open,
    Closed,
}

pub struct RateLimit {
    /// Unique in the process: tells the filter's decisions from those of others on the same request.
    id: u32,
    route: Arc<str>,
    keys: Keys,
    /// By place in [`METHODS`].
    costs: [u32; METHODS.len()],
    /// Where the upstream says what a request has cost.
    cost_header: Option<HeaderName>,
    /// Count failed authentications, not requests.
    failures: bool,
    choice: Choice,
    sets: Box<[Set]>,
    local: Arc<LocalStore>,
    redis: Option<(Arc<RedisStore>, OnError)>,
    top: Arc<Top>,
    shadow: bool,
    style: Style,
    /// A later filter may refuse what this one has admitted.
    followed: AtomicBool,
}

/// Which set of limits holds for a request.
enum Choice {
    Always,
    /// That of the consumer, then that of the tier; for requests without either, the last set if `otherwise`.
    Tier {
        consumers: HashMap<Arc<str>, usize, foldhash::fast::RandomState>,
        names: Box<[Arc<str>]>,
        otherwise: Option<usize>,
    },
}

/// Limits that hold together.
struct Set {
    limits: Box<[Limit]>,
    /// The names of the limits, for rejections.
    names: Box<[Arc<String>]>,
    metrics: Box<[Arc<LimitMetrics>]>,
    local: LocalSet,
    shared: Option<Arc<SharedSet>>,
    /// This gateway's share for when Redis is away, for so many gateways.
    share: Mutex<Option<(u64, Arc<LocalSet>)>>,
    scope: Box<str>,
    told: Told,
}

/// How a request is decided without waiting, or what must be asked.
#[allow(clippy::large_enum_variant)] // One at a time, on the stack.
enum Now {
    Decided(Decision, Source),
    /// With an errand of a lease, or one by one.
    Ask(Vec<u8>, Option<Box<Errand>>),
}

impl RateLimit {
    fn set(&self, ctx: &RequestCtx) -> Option<(u16, &Set)> {
        let at = match &self.choice {
            Choice::Always => 0,
            Choice::Tier { consumers, names, otherwise } => {
                let identity = ctx.identity.as_ref();
                let own = identity.filter(|_| !consumers.is_empty()).and_then(|identity| {
                    let consumer = identity.consumer.as_ref()?;
                    consumers.get(&consumer.name).copied()
                });
                let tier = || identity.and_then(|identity| identity.tier.as_ref());
                own.or_else(|| tier().and_then(|tier| names.iter().position(|name| name == tier))).or(*otherwise)?
            }
        };
        Some((u16::try_from(at).ok()?, self.sets.get(at)?))
    }

    /// Whether responses tell nothing of it.
    fn is_silent(&self) -> bool {
        self.shadow || self.style == Style::Off
    }

    /// What follows from a decision: counts, what the response will tell, and the rejection.
    fn conclude(&self, ctx: &mut RequestCtx, number: u16, set: &Set, key: &[u8], decision: &Decision) -> Result<Flow, Rejection> {
        if !self.is_silent() {
            for (limit, standing) in (0..).zip(decision.standings()) {
                let _ = ctx.limits.try_push(Seen { filter: self.id, set: number, limit, standing: *standing });
            }
        }
        match decision {
            Decision::Admitted(_) => {
                set.metrics.iter().for_each(|metrics| metrics.allowed.increment());
                Ok(Flow::Continue)
            }
            Decision::Refused { limit, wait, .. } => {
                if let Some(metrics) = set.metrics.get(*limit) {
                    if self.shadow { metrics.shadowed.increment() } else { metrics.refused.increment() }
                }
                if self.shadow {
                    return Ok(Flow::Continue);
                }
                if let Some(limit) = set.limits.get(*limit) {
                    self.top.count(&self.route, &limit.name, key);
                }
                let mut rejection = Rejection::new(&rejection::RATE_LIMITED);
                if *wait < u64::MAX {
                    rejection = rejection.retry_after(Duration::from_nanos(*wait));
                }
                if let Some(name) = set.names.get(*limit) {
                    rejection = rejection.limit(Arc::clone(name));
                }
                Err(rejection)
            }
        }
    }

    /// Decides without waiting, where that is possible.
    fn decide(&self, set: &Set, key: &[u8], cost: u64) -> Result<Now, Rejection> {
        let (Some((redis, on_error)), Some(shared)) = (&self.redis, &set.shared) else {
            if self.failures {
                return Ok(Now::Decided(self.left(&set.local, key), Source::Nowhere));
            }
            let source = self.since().map_or(Source::Nowhere, Source::Local);
            return Ok(Now::Decided(self.local.take(&set.local, key, cost), source));
        };
        let errand = if shared.lease() > 0 && !self.failures {
            match redis.spend(shared, key, cost) {
                Ok((decision, batch)) => return Ok(Now::Decided(decision, batch.map_or(Source::Nowhere, Source::Lease))),
                Err(errand) => Some(errand),
            }
        } else {
            None
        };
        if redis.is_up(shared, key) {
            return Ok(Now::Ask(key.to_vec(), errand));
        }
        if let Some(errand) = errand {
            redis.drop_errand(shared, key, &errand);
        }
        let (decision, source) = self.alone(redis, *on_error, set, key, cost)?;
        Ok(Now::Decided(decision, source))
    }

    /// Now, where it may have to be known when something was counted.
    fn since(&self) -> Option<Instant> {
        self.followed.load(Ordering::Relaxed).then(|| self.local.moment())
    }

    /// Whether there is anything left, without taking it.
    fn left(&self, set: &LocalSet, key: &[u8]) -> Decision {
        late::left(self.local.look(set, key))
    }

    /// The decision without Redis.
    fn alone(
        &self,
        redis: &RedisStore,
        on_error: OnError,
        set: &Set,
        key: &[u8],
        cost: u64,
    ) -> Result<(Decision, Source), Rejection> {
        redis.metrics().fallbacks.increment();
        let open = || (Decision::Admitted(Standings::new()), Source::Nowhere);
        match on_error {
            OnError::Open => Ok(open()),
            OnError::Closed if self.shadow => Ok(open()),
            OnError::Closed => Err(Rejection::new(&rejection::LIMIT_UNAVAILABLE).retry_after(Duration::from_secs(1))),
            OnError::Local if self.failures => Ok((self.left(&self.share(redis, set), key), Source::Nowhere)),
            OnError::Local => {
                let source = self.since().map_or(Source::Nowhere, Source::Share);
                let decision = self.local.take(&self.share(redis, set), key, cost);
                if let (Decision::Admitted(_), Some(shared)) = (&decision, &set.shared) {
                    redis.owe(shared, key, cost);
                }
                Ok((decision, source))
            }
        }
    }

    fn share(&self, redis: &RedisStore, set: &Set) -> Arc<LocalSet> {
        let gateways = redis.gateways();
        let mut share = set.share.lock();
        match &*share {
            Some((known, local)) if *known == gateways => Arc::clone(local),
            _ => {
                let dearest = self.costs.iter().copied().max().unwrap_or(1).into();
                let limits: Vec<Limit> = set.limits.iter().map(|limit| limit.share(gateways, dearest)).collect();
                let local = Arc::new(self.local.set(&format!("{} share", set.scope), &limits));
                *share = Some((gateways, Arc::clone(&local)));
                local
            }
        }
    }

    /// Remembers what was counted, where something may still be charged for it, or given back.
    fn remember(&self, ctx: &mut RequestCtx, set: u16, key: &[u8], cost: u64, (decision, source): (&Decision, Source)) {
        let source = if matches!(decision, Decision::Admitted(_)) { source } else { Source::Nowhere };
        let may_go_back = source != Source::Nowhere && self.followed.load(Ordering::Relaxed);
        if may_go_back || self.failures || self.cost_header.is_some() {
            ctx.uses.add(self.id, set, key, cost, source);
        }
    }

    /// Asks Redis; without an answer in time, decides without.
    async fn ask(
        &self,
        number: u16,
        key: Vec<u8>,
        errand: Option<Box<Errand>>,
        cost: u64,
        ctx: &mut RequestCtx,
    ) -> Result<Flow, Rejection> {
        let set = self.sets.get(usize::from(number));
        let (Some(set), Some((redis, on_error))) = (set, &self.redis) else {
            return Err(Rejection::new(&rejection::INTERNAL_ERROR));
        };
        let Some(shared) = &set.shared else { return Err(Rejection::new(&rejection::INTERNAL_ERROR)) };
        let answer = match errand {
            Some(errand) => redis.fetch(shared, &key, cost, errand).await,
            None if self.failures => {
                let standings = redis.look(shared, &key, redis.timeout()).await;
                standings.map(|standings| (late::left(standings), Source::Nowhere))
            }
            None => redis.take(shared, &key, cost).await,
        };
        let (decision, source) = match answer {
            Some(answer) => answer,
            None => self.alone(redis, *on_error, set, &key, cost)?,
        };
        self.remember(ctx, number, &key, cost, (&decision, source));
        self.conclude(ctx, number, set, &key, &decision)
    }
}

impl Filter for RateLimit {
    fn phases(&self) -> Phases {
        if self.is_silent() && !self.failures && self.cost_header.is_none() {
            Phases::REQUEST
        } else {
            Phases::REQUEST.and(Phases::RESPONSE)
        }
    }

    fn needs_identity(&self) -> bool {
        matches!(self.choice, Choice::Tier { .. }) || self.keys.need_identity()
    }

    fn limiter(&self) -> Option<&dyn Limiter> {
        Some(self)
    }

    fn on_request<'a>(&'a self, session: &'a mut Session, ctx: &'a mut RequestCtx) -> Step<'a> {
        let head = session.req_header();
        let cost = u64::from(self.costs.get(Method::of(head.method.as_str().as_bytes()).index()).copied().unwrap_or(1));
        if cost == 0 {
            return Step::CONTINUE;
        }
        let Some((number, set)) = self.set(ctx) else {
            if self.shadow {
                return Step::CONTINUE;
            }
            return Step::reject(Rejection::new(&rejection::TIER_MISSING));
        };
        let decided = key::scratch(|key| {
            self.keys.write(ctx, &head.headers, key);
            match self.decide(set, key, cost)? {
                Now::Ask(key, errand) => Ok(Some((key, errand))),
                Now::Decided(decision, source) => {
                    self.remember(ctx, number, key, cost, (&decision, source));
                    self.conclude(ctx, number, set, key, &decision).map(|_| None)
                }
            }
        });
        match decided {
            Ok(None) => Step::CONTINUE,
            Ok(Some((key, errand))) => Step::Wait(Box::pin(self.ask(number, key, errand, cost, ctx))),
            Err(rejection) => Step::reject(rejection),
        }
    }

    fn charges_by(&self) -> Option<&HeaderName> {
        self.cost_header.as_ref()
    }

    fn on_response(&self, _: &Session, head: &mut ResponseHeader, ctx: &mut RequestCtx) {
        if self.failures || self.cost_header.is_some() {
            self.settle(head, ctx);
        }
        let mut mine = ctx.limits.iter().filter(|seen| seen.filter == self.id).peekable();
        let Some(set) = mine.peek().and_then(|seen| self.sets.get(usize::from(seen.set))) else { return };
        set.told.write(self.style, &set.limits, mine, head);
    }
}

#[cfg(test)]
mod tests;
