//! The TOML table of `rate_limit`, and how it is compiled.

use super::headers::{Style, Told};
use super::{Choice, OnError, RateLimit, Set};
use crate::filter::{BuildContext, FilterConfig, Problem};
use crate::limit::config::compile_all;
use crate::limit::local::LocalStore;
use crate::limit::redis::SharedSet;
use crate::limit::{ByConfig, Keys, Limit, LimitConfig};
use crate::telemetry::metrics::{LimitMetrics, METHODS, Method};
use crate::value::Located;
use parking_lot::Mutex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Limits how often something may be asked for. Several limits hold together: a request is admitted by all of them, or
/// refused with 429 `rate_limited` and counted by none. How exact each store is: docs/limits.md.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitConfig {
    /// Who is counted: `"address"` (of the client, IPv6 by network), `"consumer"`, `"credential"`, `"header:NAME"`,
    /// `"claim:NAME"`, `"route"` (everybody together), or a list of these for each combination. Requests that lack it share one count.
    pub by: ByConfig,
    /// Up to 8 limits such as `[{ rate = "5/1s", burst = 10 }, { quota = "1000/1d" }]`, or `"tier"`: those of the consumer's
    /// tier.
    pub limits: LimitsChoice,
    /// With `limits = "tier"`: what holds for requests without a tier. Default: they are refused with 403 `tier_missing`.
    pub without_tier: Option<Vec<LimitConfig>>,
    /// Filters with the same name count together, on whatever routes. Up to 63 letters, digits and `_-.`. Default: each filter
    /// counts by itself for each route.
    pub name: Option<Located<String>>,
    /// What a request costs, by method, such as `{ POST = 5, OPTIONS = 0 }`; 0 is free and not counted. At most what each
    /// limit admits at once. Default: 1.
    #[serde(default)]
    pub cost: BTreeMap<String, Located<u32>>,
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
    /// nearest to its end, in seconds), `"both"`, or `"off"`.
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
    shared: bool,
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
        let metrics =
            limits.iter().map(|limit| cx.state.get_or_create(&format!("{}/{}", self.route, limit.name), LimitMetrics::default));
        Ok(Set {
            metrics: metrics.collect(),
            local: self.local.set(&self.scope, &limits),
            shared: self.shared.then(|| Arc::new(SharedSet::new(&self.scope, &limits))),
            share: Mutex::new(None),
            scope: self.scope.as_str().into(),
            told: Told::new(&limits),
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
                let Some(store) = &cx.limits.redis else {
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
        let builder = Builder { route: cx.route, scope, local: &local, shared: redis.is_some(), costs: &self.cost };
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
                    sets.push(builder.set(limits.to_vec(), cx)?);
                }
                if let Some(list) = &self.without_tier {
                    sets.push(builder.set(compile_all(list)?, cx)?);
                }
                if sets.is_empty() {
                    let problem = Problem::new("no tier has limits, so nothing would be admitted");
                    return Err(problem.help("add [tiers.NAME] with limits = [{ rate = \"60/1m\" }]"));
                }
                Choice::Tier { names: names.into(), otherwise: self.without_tier.is_some() }
            }
        };
        Ok(RateLimit {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            keys: Keys { facts: self.by.0.into(), ipv6_prefix: self.ipv6_prefix.value },
            costs,
            choice,
            sets: sets.into(),
            local,
            redis,
            shadow: self.shadow,
            style: self.headers,
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
