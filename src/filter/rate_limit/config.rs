//! The TOML table of `rate_limit`, and how it is compiled.

use super::headers::{Style, Told};
use super::lease::LeaseSize;
use super::{Choice, OnError, RateLimit, Set};
use crate::filter::{BuildContext, FilterConfig, Problem};
use crate::limit::config::compile_all;
use crate::limit::local::LocalStore;
use crate::limit::redis::{RedisStore, SharedSet};
use crate::limit::top::Top;
use crate::limit::{ByConfig, Keys, Limit, LimitConfig};
use crate::telemetry::metrics::{LimitMetrics, METHODS, Method};
use crate::value::Located;
use http::HeaderName;
use parking_lot::Mutex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Limits how often something may be asked for. Several limits hold together: a request is admitted by all of them, or
/// refused with 429 `rate_limited` and counted by none, those of earlier `rate_limit` filters on the route included. How exact each
/// store is: docs/limits.md.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitConfig {
    /// Who is counted: `"address"` (of the client, IPv6 by network), `"consumer"`, `"credential"`, `"header:NAME"`,
    /// `"claim:NAME"` (written as in `claims` of the issuer: `"claim:realm_access.org"`), `"route"` (everybody together), or a list of
    /// these for each combination. Requests that lack it share one count.
    /// By `"consumer"`, who is no consumer (the subject of a token, or of a certificate) is counted by that name together with the
    /// method and the issuer that vouch for it, and never with the consumer that has the same name.
    /// By `"credential"`, an API key is counted by the first 128 bits of its SHA-256, of which logs show 32.
    /// Headers that hold credentials (`authorization`, `proxy-authorization`, `cookie`, `x-api-key`, `x-auth-token`, `x-access-token`
    /// and those in which a filter of the route looks for one) are counted by their SHA-256: no value of theirs is in Redis or in what
    /// `gatewright limit top` prints.
    pub by: ByConfig,
    /// Up to 8 limits such as `[{ rate = "5/1s", burst = 10 }, { quota = "1000/1d" }]`, or `"tier"`: those of the consumer's
    /// tier.
    pub limits: LimitsChoice,
    /// With `limits = "tier"`: what holds for requests without a tier. Default: they are refused with 403 `tier_missing`.
    pub without_tier: Option<Vec<LimitConfig>>,
    /// Filters with the same name count together, on whatever routes. Up to 63 letters, digits and `_-.`. Default: each filter
    /// counts by itself for each route.
    pub name: Option<Located<String>>,
    /// With `limits = "tier"`: multiplies number and burst of each limit here, 0.001 to 1000, rounded, at least 1: a route that
    /// may be used half as often has 0.5. Default: 1.
    #[schemars(range(min = 0.001, max = 1000.0))]
    pub multiply: Option<Located<f64>>,
    /// What a request costs, by method, such as `{ POST = 5, OPTIONS = 0 }`; 0 is free and not counted. At most what each
    /// limit admits at once. Default: 1.
    #[serde(default)]
    pub cost: BTreeMap<String, Located<u32>>,
    /// The response header in which the upstream says what the request has cost in all, a whole number, such as `"x-cost"`. What
    /// it is more than `cost` is charged then, as far as the limits have room; what is less is not given back. The header is not passed on,
    /// and not stored: an answer of the cache costs no more than `cost`. Default: none.
    pub cost_header: Option<Located<String>>,
    /// What counts: `"request"`, or `"auth_failure"`: only requests that are refused because their credential does not
    /// count (`credential_invalid`, `credential_duplicate`, `token_invalid`, `token_expired`), or that the upstream answers with 401.
    /// Such a filter stands before the one that checks credentials: once the limit is used up, nothing more is checked. Attempts
    /// that are under way at the same time are all let through, which `concurrency` can bound.
    #[serde(default)]
    pub on: Counted,
    /// With `store = "redis"`: how many uses of each key a gateway may hold in advance, so that most requests need no round trip,
    /// as a number or as a share of the smallest limit such as `"2%"`. The limits hold without overshoot; what is withheld from
    /// others is at most this for each gateway. See docs/limits.md. Default: every request asks Redis.
    pub lease: Option<Located<LeaseSize>>,
    /// Count and tell in metrics, but refuse nothing and write no headers.
    #[serde(default)]
    pub shadow: bool,
    /// Where it is counted: `"local"` in the memory of this gateway, or `"redis"` together with all gateways that share
    /// `[redis]`.
    #[serde(default)]
    pub store: StoreChoice,
    /// What happens while Redis is away or slow: `"local"` limits to this gateway's share, `"open"` admits everything,
    /// `"closed"` refuses with 503 `limit_unavailable`.
    #[serde(default)]
    pub on_error: OnErrorChoice,
    /// What clients are told on each response: `"standard"` is `RateLimit-Policy` and `RateLimit`
    /// (draft-ietf-httpapi-ratelimit-headers-11), `"legacy"` is `X-RateLimit-Limit`, `-Remaining` and `-Reset` (of the limit that is
    /// nearest to its end, in seconds; of several filters, the first), `"both"`, or `"off"`. Windows are told in whole seconds, rounded
    /// up: `5/100ms` is `q=5;w=1`.
    #[serde(default)]
    pub headers: Style,
    /// How many leading bits of an IPv6 address make one client, from 32 to 128: providers give at least a /64 to each
    /// customer, so a smaller unit would let one client have many counts.
    #[serde(default = "default_prefix")]
    #[schemars(range(min = 32, max = 128))]
    pub ipv6_prefix: Located<u8>,
}

fn default_prefix() -> Located<u8> {
    Located::nowhere(64)
}

/// What counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Counted {
    #[default]
    Request,
    AuthFailure,
}

/// Where limits are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum StoreChoice {
    #[default]
    Local,
    Redis,
}

/// What happens without Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum OnErrorChoice {
    #[default]
    Local,
    Open,
    Closed,
}

/// A list of limits, or those of the tier.
#[derive(Debug, Clone)]
pub enum LimitsChoice {
    List(Vec<LimitConfig>),
    Tier,
}

struct ChoiceVisitor;

impl<'de> Visitor<'de> for ChoiceVisitor {
    type Value = LimitsChoice;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list such as [{ rate = \"60/1m\" }], or \"tier\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<LimitsChoice, E> {
        match text {
            "tier" => Ok(LimitsChoice::Tier),
            _ => Err(E::custom(format!("`{text}` is no limit: write a list such as [{{ rate = \"60/1m\" }}], or \"tier\""))),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<LimitsChoice, A::Error> {
        let mut limits = Vec::new();
        while let Some(limit) = list.next_element()? {
            limits.push(limit);
        }
        Ok(LimitsChoice::List(limits))
    }
}

impl<'de> Deserialize<'de> for LimitsChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ChoiceVisitor)
    }
}

impl JsonSchema for LimitsChoice {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "LimitsChoice".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let limit = generator.subschema_for::<LimitConfig>();
        json_schema!({ "anyOf": [{ "type": "array", "items": limit, "minItems": 1, "maxItems": crate::limit::LIMITS_MAX }, { "const": "tier" }] })
    }
}

/// What all sets of one filter are compiled with.
struct Builder<'a> {
    route: &'a str,
    scope: String,
    local: &'a LocalStore,
    redis: Option<&'a Arc<RedisStore>>,
    lease: Option<&'a Located<LeaseSize>>,
    costs: &'a BTreeMap<String, Located<u32>>,
}

impl Builder<'_> {
    fn set(&self, limits: Vec<Limit>, cx: &BuildContext<'_>) -> Result<Set, Problem> {
        for cost in self.costs.values() {
            if let Some(limit) = limits.iter().find(|limit| u64::from(cost.value) > limit.most()) {
                let message = format!("a cost of {} is never admitted by the limit `{}`", cost.value, limit.name);
                return Err(Problem::new(message).at(cost).help("raise its number or `burst`, or lower the cost"));
            }
        }
        let lease = self.lease.map_or(Ok(0), |lease| lease.value.of(&limits).map_err(|why| Problem::new(why).at(lease)))?;
        if let (Some(redis), true) = (self.redis, lease > 0) {
            cx.limits.promise(super::lease::promise(self.route, &limits, lease, redis.gateways()));
        }
        let metrics =
            limits.iter().map(|limit| cx.state.get_or_create(&format!("{}/{}", self.route, limit.name), LimitMetrics::default));
        Ok(Set {
            metrics: metrics.collect(),
            local: self.local.set(&self.scope, &limits),
            shared: self.redis.map(|_| Arc::new(SharedSet::new(&self.scope, &limits, lease))),
            share: Mutex::new(None),
            scope: self.scope.as_str().into(),
            told: Told::new(&limits),
            names: limits.iter().map(|limit| Arc::new(limit.name.to_string())).collect(),
            limits: limits.into(),
        })
    }
}

impl FilterConfig for RateLimitConfig {
    const NAME: &'static str = "rate_limit";
    type Filter = RateLimit;

    fn build(self, cx: &mut BuildContext<'_>) -> Result<RateLimit, Problem> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !(32..=128).contains(&self.ipv6_prefix.value) {
            return Err(Problem::new("an IPv6 prefix is from 32 to 128 bits here").at(&self.ipv6_prefix));
        }
        let redis = match self.store {
            StoreChoice::Local => None,
            StoreChoice::Redis => {
                let Some(store) = cx.limits.redis(cx.state) else {
                    let problem = Problem::new("there is no Redis to count in");
                    return Err(problem.help("add [redis] with url = \"redis://...\", or count with store = \"local\""));
                };
                let on_error = match self.on_error {
                    OnErrorChoice::Local => OnError::Local,
                    OnErrorChoice::Open => OnError::Open,
                    OnErrorChoice::Closed => OnError::Closed,
                };
                Some((Arc::clone(store), on_error))
            }
        };
        if let (Some(lease), None) = (&self.lease, &redis) {
            let problem = Problem::new("only limits that are counted in Redis have leases").at(lease);
            return Err(problem.help("add `store = \"redis\"`, or take `lease` out"));
        }
        if let (Some(lease), Counted::AuthFailure) = (&self.lease, self.on) {
            let problem = Problem::new("failed authentications are counted one by one").at(lease);
            return Err(problem.help("take `lease` out"));
        }
        if let (Some(header), Counted::AuthFailure) = (&self.cost_header, self.on) {
            let problem = Problem::new("what a failed authentication costs is not the upstream's to say").at(header);
            return Err(problem.help("take `cost_header` out"));
        }
        let cost_header = self.cost_header.as_ref().map(|name| {
            HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes())
                .map_err(|_| Problem::new(format!("`{}` is not the name of a header", name.value)).at(name))
        });
        let cost_header = cost_header.transpose()?;
        if let Some(factor) = &self.multiply {
            if !(0.001..=1_000.0).contains(&factor.value) {
                return Err(Problem::new("a limit is multiplied by 0.001 to 1000").at(factor));
            }
            if matches!(self.limits, LimitsChoice::List(_)) {
                let problem = Problem::new("`multiply` has no meaning without `limits = \"tier\"`").at(factor);
                return Err(problem.help("write the numbers as they should be"));
            }
        }
        let factor = self.multiply.as_ref().map(|factor| factor.value);
        let times = |limits: &[Limit]| match factor {
            Some(factor) => limits.iter().map(|limit| limit.times(factor)).collect(),
            None => limits.to_vec(),
        };
        let costs = costs(&self.cost)?;
        let local = cx.limits.local(cx.state, cx.clock);
        let scope = match &self.name {
            Some(name) => {
                let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
                if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) {
                    let problem = Problem::new(format!("`{}` cannot be the name of a count", name.value)).at(name);
                    return Err(problem.help("use up to 63 letters, digits and `_-.`"));
                }
                format!("name:{}", name.value)
            }
            None => cx.limits.scope(&format!("route:{}", cx.route)),
        };
        let store = redis.as_ref().map(|(store, _)| store);
        let builder =
            Builder { route: cx.route, scope, local: &local, redis: store, lease: self.lease.as_ref(), costs: &self.cost };
        let mut sets = Vec::new();
        let choice = match &self.limits {
            LimitsChoice::List(list) => {
                if self.without_tier.is_some() {
                    let problem = Problem::new("`without_tier` has no meaning without `limits = \"tier\"`");
                    return Err(problem.help("take it out"));
                }
                sets.push(builder.set(compile_all(list)?, cx)?);
                Choice::Always
            }
            LimitsChoice::Tier => {
                let mut names = Vec::new();
                for (name, limits) in cx.limits.tiers() {
                    names.push(Arc::clone(name));
                    sets.push(builder.set(times(limits), cx)?);
                }
                let mut consumers = HashMap::default();
                // Consumers that have the same limits share what is compiled for them.
                let mut known: Vec<(&[Limit], usize)> = Vec::new();
                let own = Arc::clone(cx.consumers);
                for consumer in own.iter().filter(|consumer| !consumer.limits.is_empty()) {
                    let at = match known.iter().find(|(limits, _)| **limits == *consumer.limits) {
                        Some((_, at)) => *at,
                        None => {
                            known.push((&consumer.limits, sets.len()));
                            sets.push(builder.set(times(&consumer.limits), cx)?);
                            sets.len().saturating_sub(1)
                        }
                    };
                    consumers.insert(Arc::clone(&consumer.name), at);
                }
                let mut otherwise = None;
                if let Some(list) = &self.without_tier {
                    otherwise = Some(sets.len());
                    sets.push(builder.set(compile_all(list)?, cx)?);
                }
                if sets.len() > usize::from(u16::MAX) {
                    return Err(Problem::new("consumers have more than 65535 different limits").help("use tiers"));
                }
                if sets.is_empty() {
                    let problem = Problem::new("no tier has limits, so nothing would be admitted");
                    return Err(problem.help("add [tiers.NAME] with limits = [{ rate = \"60/1m\" }]"));
                }
                Choice::Tier { consumers, names: names.into(), otherwise }
            }
        };
        Ok(RateLimit {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            route: cx.route.into(),
            cost_header,
            failures: self.on == Counted::AuthFailure,
            top: cx.state.get_or_create("limits", Top::default),
            keys: Keys::new(self.by, self.ipv6_prefix.value, cx.credential_headers),
            costs,
            choice,
            sets: sets.into(),
            local,
            redis,
            shadow: self.shadow,
            style: self.headers,
            followed: AtomicBool::new(false),
        })
    }
}

fn costs(table: &BTreeMap<String, Located<u32>>) -> Result<[u32; METHODS.len()], Problem> {
    let mut costs = [1; METHODS.len()];
    for (method, cost) in table {
        let known = METHODS.iter().any(|known| known == method && !known.starts_with('_'));
        match costs.get_mut(Method::of(method.as_bytes()).index()).filter(|_| known) {
            Some(slot) => *slot = cost.value,
            None => {
                let problem = Problem::new(format!("`{method}` is no method with a cost of its own")).at(cost);
                return Err(problem.help("methods are GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS, TRACE and CONNECT"));
            }
        }
    }
    Ok(costs)
}
