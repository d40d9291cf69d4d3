//! `rate_limit`: how often something may be asked for, counted by who asks.
//!
//! The decision itself is the store's business ([`crate::limit`]). This file says what is counted, which limits hold, and
//! what the client is told: draft-ietf-httpapi-ratelimit-headers-11 on every response, 429 with a true `Retry-After` when
//! it is refused.

mod config;
mod headers;

pub use config::RateLimitConfig;

use super::{Filter, Flow, Phases, Step};
use crate::limit::local::{LocalSet, LocalStore};
use crate::limit::redis::{RedisStore, SharedSet};
use crate::limit::{Decision, Keys, Limit, Seen, Standings};
use crate::rejection::{self, Rejection};
use crate::request::RequestCtx;
use crate::telemetry::metrics::{LimitMetrics, METHODS, Method};
use headers::{Style, Told};
use parking_lot::Mutex;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

thread_local! {
    /// Where keys are written, so that a request needs no buffer of its own.
    static KEY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

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
    keys: Keys,
    /// By place in [`METHODS`].
    costs: [u32; METHODS.len()],
    choice: Choice,
    sets: Box<[Set]>,
    local: Arc<LocalStore>,
    redis: Option<(Arc<RedisStore>, OnError)>,
    shadow: bool,
    style: Style,
}

/// Which set of limits holds for a request.
enum Choice {
    Always,
    /// That of the tier; for requests without one, the last set if `otherwise`.
    Tier {
        names: Box<[Arc<str>]>,
        otherwise: bool,
    },
}

/// Limits that hold together.
struct Set {
    limits: Box<[Limit]>,
    metrics: Box<[Arc<LimitMetrics>]>,
    local: LocalSet,
    shared: Option<Arc<SharedSet>>,
    /// This gateway's share for when Redis is away, for so many gateways.
    share: Mutex<Option<(u64, Arc<LocalSet>)>>,
    scope: Box<str>,
    told: Told,
}

impl RateLimit {
    fn set(&self, ctx: &RequestCtx) -> Option<(u16, &Set)> {
        let at = match &self.choice {
            Choice::Always => 0,
            Choice::Tier { names, otherwise } => {
                let tier = ctx.identity.as_ref().and_then(|identity| identity.tier.as_ref());
                let known = tier.and_then(|tier| names.iter().position(|name| name == tier));
                known.or_else(|| otherwise.then_some(names.len()))?
            }
        };
        Some((u16::try_from(at).ok()?, self.sets.get(at)?))
    }

    /// What follows from a decision: counts, what the response will tell, and the rejection.
    fn conclude(&self, ctx: &mut RequestCtx, number: u16, set: &Set, decision: &Decision) -> Result<Flow, Rejection> {
        if !self.shadow && self.style != Style::Off {
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
                let mut rejection = Rejection::new(&rejection::RATE_LIMITED);
                if *wait < u64::MAX {
                    rejection = rejection.retry_after(Duration::from_nanos(*wait));
                }
                if let Some(limit) = set.limits.get(*limit) {
                    rejection = rejection.limit(Arc::clone(&limit.name));
                }
                Err(rejection)
            }
        }
    }

    /// The decision without Redis; `None` where it is to be passed.
    fn alone(&self, redis: &RedisStore, on_error: OnError, set: &Set, key: &[u8], cost: u64) -> Result<Decision, Rejection> {
        redis.metrics().fallbacks.increment();
        match on_error {
            OnError::Open => Ok(Decision::Admitted(Standings::new())),
            OnError::Closed => Err(Rejection::new(&rejection::LIMIT_UNAVAILABLE).retry_after(Duration::from_secs(1))),
            OnError::Local => {
                let decision = self.local.take(&self.share(redis, set), key, cost);
                if let (Decision::Admitted(_), Some(shared)) = (&decision, &set.shared) {
                    redis.owe(shared, key, cost);
                }
                Ok(decision)
            }
        }
    }

    fn share(&self, redis: &RedisStore, set: &Set) -> Arc<LocalSet> {
        let gateways = redis.gateways();
        let mut share = set.share.lock();
        match &*share {
            Some((known, local)) if *known == gateways => Arc::clone(local),
            _ => {
                let limits: Vec<Limit> = set.limits.iter().map(|limit| limit.share(gateways)).collect();
                let local = Arc::new(self.local.set(&format!("{} share", set.scope), &limits));
                *share = Some((gateways, Arc::clone(&local)));
                local
            }
        }
    }
}

impl Filter for RateLimit {
    fn phases(&self) -> Phases {
        if self.shadow || self.style == Style::Off { Phases::REQUEST } else { Phases::REQUEST.and(Phases::RESPONSE) }
    }

    fn needs_identity(&self) -> bool {
        matches!(self.choice, Choice::Tier { .. }) || self.keys.need_identity()
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
        let with_key = |decide: &mut dyn FnMut(&[u8])| {
            KEY.with_borrow_mut(|key| {
                key.clear();
                self.keys.write(ctx, &head.headers, key);
                decide(key);
            });
        };
        let mut decision = None;
        match (&self.redis, &set.shared) {
            (Some((redis, _)), Some(shared)) if redis.is_up() => {
                let mut own = Vec::new();
                with_key(&mut |key| own.extend_from_slice(key));
                return Step::Wait(Box::pin(self.ask(redis, shared, number, own, cost, ctx)));
            }
            (Some((redis, on_error)), _) => {
                with_key(&mut |key| decision = Some(self.alone(redis, *on_error, set, key, cost)));
            }
            (None, _) => with_key(&mut |key| decision = Some(Ok(self.local.take(&set.local, key, cost)))),
        }
        Step::Ready(match decision {
            Some(Ok(decision)) => self.conclude(ctx, number, set, &decision),
            Some(Err(_)) if self.shadow => Ok(Flow::Continue),
            Some(Err(rejection)) => Err(rejection),
            None => Err(Rejection::new(&rejection::INTERNAL_ERROR)),
        })
    }

    fn on_response(&self, _: &Session, head: &mut ResponseHeader, ctx: &mut RequestCtx) {
        let mut mine = ctx.limits.iter().filter(|seen| seen.filter == self.id).peekable();
        let Some(set) = mine.peek().and_then(|seen| self.sets.get(usize::from(seen.set))) else { return };
        set.told.write(self.style, &set.limits, mine, head);
    }
}

impl RateLimit {
    async fn ask(
        &self,
        redis: &Arc<RedisStore>,
        shared: &Arc<SharedSet>,
        number: u16,
        key: Vec<u8>,
        cost: u64,
        ctx: &mut RequestCtx,
    ) -> Result<Flow, Rejection> {
        let (Some(set), Some((_, on_error))) = (self.sets.get(usize::from(number)), &self.redis) else {
            return Err(Rejection::new(&rejection::INTERNAL_ERROR));
        };
        let decision = match redis.take(shared, &key, cost).await {
            Some(decision) => decision,
            None => match self.alone(redis, *on_error, set, &key, cost) {
                Ok(decision) => decision,
                Err(_) if self.shadow => return Ok(Flow::Continue),
                Err(rejection) => return Err(rejection),
            },
        };
        self.conclude(ctx, number, set, &decision)
    }
}

#[cfg(test)]
mod tests;
