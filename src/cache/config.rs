//! `[cache]` and the `cache` table of a route.

use super::key::KeyRules;
use super::memory::{CAPACITY_MAX, CAPACITY_MIN};
use super::policy::Policy;
use crate::diagnostic::Diagnostics;
use crate::telemetry::metrics::CacheMetrics;
use crate::value::{ByteSize, Duration, Located, Percent};
use http::HeaderName;
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// What the caches of all routes share.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// The memory of stored answers, from 1MiB to 1TiB, with those that are coming in and with what keeping them costs. When it
    /// is full, an answer is only taken in if it was asked for more often lately than what it would push out (TinyLFU);
    /// metrics `gatewright_cache_memory_bytes` and `gatewright_cache_evicted_total`. What is on its way to or from Redis is not in it: that
    /// is 32MiB at most, or what one larger answer takes. A change takes effect at the next start.
    pub memory: Located<ByteSize>,
}

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig { memory: Located::nowhere(ByteSize(64 << 20)) }
    }
}

impl CacheConfig {
    pub fn check(&self, d: &mut Diagnostics) {
        if !(CAPACITY_MIN..=CAPACITY_MAX).contains(&self.memory.0) {
            d.error(self.memory.span.clone(), "the memory of the cache must be from 1MiB to 1TiB");
        }
    }
}

/// Whose answers a cache gives to whom.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// Requests with an identity share with those of the same credential only; requests without one share with each other.
    #[default]
    Consumer,
    /// All requests share.
    Public,
}

/// Where answers are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Store {
    /// In the memory of this gateway.
    #[default]
    #[serde(rename = "memory")]
    Memory,
    /// In memory, and in the Redis of `[redis]` for all gateways: what one has fetched the others need not.
    #[serde(rename = "memory+redis")]
    MemoryAndRedis,
}

/// Stores the upstream's answers as HTTP says (RFC 9111) and answers with them. Runs after the route's filters, so that
/// authentication and limits hold for stored answers too. Every answer says in `Cache-Status` (RFC 9211) what the cache did.
///
/// Unless the origin or this table says otherwise, only what RFC 9111 lets a shared cache store is stored: nothing that is
/// `private` or `no-store`, no answer to `Authorization` without `public`, `s-maxage` or `must-revalidate`.
///
/// Answers keep the `Date` of their origin, or have that of their coming; over HTTP/2 they have that of their sending. Trailers are
/// not stored: an answer that is has none, also for the one whose request has fetched it. What is not stored passes with them, but
/// where it was fetched for all who ask from an upstream of HTTP/1.1. Where an upstream breaks off, so do the answers of all who read.
///
/// An answer to `POST` that names the URL of the request in `Content-Location` and says how long it is fresh is stored for `GET`
/// (RFC 9110 section 9.3.3), in memory.
///
/// Over HTTP/1.1 a fresh answer in memory is sent before a session is made for its request, if nothing else has a say: the route has no
/// filters (beside those on requests to the upstream), no `split` and no `compress`, and neither the gateway nor the listener has
/// a limit for all requests or redirects to HTTPS. Such hits cost about half; `gatewright_cache_direct_hits_total` counts them.
///
/// On a route with `split` each part has stored answers of its own. What a `fallback`, or the rest of a split, answers in the
/// stead of an upstream that takes nothing is stored as its answer.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouteCacheConfig {
    /// Where answers are stored: `"memory"` or `"memory+redis"`.
    pub store: Located<Store>,
    /// `"consumer"`: callers with an identity never get each other's answers, nor do callers that `forward_auth` lets pass by other
    /// `headers` or with other `response_headers`, nor those whose certificate the upstream is told of. `"public"`: everyone gets
    /// the same ones; for routes whose answers do not depend on who asks.
    pub share: Share,
    /// How long answers are fresh that do not say so themselves, from 1s to 365d. Default: as long as a tenth of the time since
    /// their `Last-Modified`, up to `heuristic_max`.
    pub ttl: Option<Located<Duration>>,
    /// Which statuses `ttl` is for, 200 to 599. Default: those that HTTP calls cacheable: 200, 203, 204, 300, 301, 308, 404, 405, 410,
    /// 414 and 501.
    pub statuses: Vec<Located<u16>>,
    /// `ttl` holds whatever the origin says, `no-store`, `no-cache` and its own lifetimes included. It never holds for answers that
    /// set cookies; nor, unless `share = "public"`, for those that are `private` or asked for with an identity or `Authorization`.
    pub force: Located<bool>,
    /// How long a stale answer may be used while it is fetched anew in the background, where the origin does not say
    /// (RFC 5861). Beside `s-maxage`, which implies `proxy-revalidate` (RFC 9111 section 5.2.2.10), as beside `must-revalidate`,
    /// no stale answer is used, whatever this, the origin or the client says; an origin that wants both for this cache says
    /// `CDN-Cache-Control: max-age=60, stale-while-revalidate=600`. Default: 0s.
    pub stale_while_revalidate: Duration,
    /// How long a stale answer may be used when the upstream fails or answers 500, 502, 503 or 504, where neither the
    /// origin nor, for its own request, the client says `stale-if-error`. Default: 0s.
    pub stale_if_error: Duration,
    /// The longest lifetime that is guessed from `Last-Modified`; 0s: nothing is guessed.
    pub heuristic_max: Duration,
    /// Whether answers with `Set-Cookie` are stored when the origin gives them an explicit lifetime, as RFC 9111 §7.3 has it.
    /// Without one they never are.
    pub set_cookie: bool,
    /// Fields that take the place of `Cache-Control` for this cache (RFC 9213), the strongest first, up to 8.
    pub targets: Vec<Located<String>>,
    /// The largest body that is stored, from 1KiB to 1GiB; a larger one passes through, and so does one for which
    /// there is no room.
    pub max_object: Located<ByteSize>,
    /// How many answers of one URL that differ by `Vary` are kept, 1 to 256; then the oldest goes.
    #[schemars(range(min = 1, max = 256))]
    pub max_variants: Located<u16>,
    /// How long a request waits for the fetch of another before it goes upstream by itself, from 1ms to 10m.
    pub wait: Located<Duration>,
    /// Shortens lifetimes by up to this share, at random, so that what was stored together does not expire together.
    pub jitter: Percent,
    /// Within the last share of a lifetime a hit may fetch anew in the background, the likelier the nearer the end, so that
    /// what is asked for often never expires.
    pub early_refresh: Percent,
    /// What counts of a request beside scheme, host with port, and path.
    pub key: KeyConfig,
}

/// What counts of a request beside scheme, host with port, and path. What a trusted proxy says of the URL (`X-Forwarded-Proto`, `-Host`,
/// `-Port`, `-Prefix` and their like) counts too, because services make URLs of it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeyConfig {
    /// Request fields that count, up to 16. Those that answers name in `Vary` count by themselves.
    pub headers: Vec<Located<String>>,
    /// Parameters of the query that do not count, up to 64; a `*` at the end stands for any rest, as in `"utm_*"`.
    pub ignore_query: Vec<String>,
    /// The only parameters of the query that count, up to 64. Default: all.
    pub only_query: Vec<String>,
    /// Whether the order of parameters with different names does not count.
    pub sort_query: bool,
}

impl Default for KeyConfig {
    fn default() -> Self {
        KeyConfig { headers: Vec::new(), ignore_query: Vec::new(), only_query: Vec::new(), sort_query: true }
    }
}

impl Default for RouteCacheConfig {
    fn default() -> Self {
        RouteCacheConfig {
            store: Located::default(),
            share: Share::Consumer,
            ttl: None,
            statuses: Vec::new(),
            force: Located::nowhere(false),
            stale_while_revalidate: Duration::from_secs(0),
            stale_if_error: Duration::from_secs(0),
            heuristic_max: Duration::from_secs(86_400),
            set_cookie: true,
            targets: vec![Located::nowhere("cdn-cache-control".to_owned())],
            max_object: Located::nowhere(ByteSize(4 << 20)),
            max_variants: Located::nowhere(32),
            wait: Located::nowhere(Duration::from_secs(10)),
            jitter: NONE,
            early_refresh: NONE,
            key: KeyConfig::default(),
        }
    }
}

/// Names that were checked when the file was read.
fn names(list: &[Located<String>]) -> Box<[HeaderName]> {
    list.iter().filter_map(|name| HeaderName::from_bytes(name.value.as_bytes()).ok()).collect()
}

impl KeyConfig {
    pub fn rules(&self) -> KeyRules {
        let texts = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect();
        KeyRules {
            headers: names(&self.headers),
            ignore: texts(&self.ignore_query),
            only: texts(&self.only_query),
            sort: self.sort_query,
            certificate: false,
        }
    }
}

const NONE: Percent = Percent { parts_per_million: 0 };

fn fraction(share: Percent) -> f64 {
    f64::from(share.parts_per_million) / 1_000_000.0
}

impl RouteCacheConfig {
    pub fn check(&self, d: &mut Diagnostics) {
        let mut within = |value: &Located<Duration>, least: u64, most: u64, what: &str| {
            let millis = value.get().as_millis();
            if millis < u128::from(least) || millis > u128::from(most) {
                d.error(value.span.clone(), what.to_owned());
            }
        };
        if let Some(ttl) = &self.ttl {
            within(ttl, 1_000, 365 * 86_400_000, "the ttl of a cache must be from 1s to 365d");
        }
        within(&self.wait, 1, 600_000, "the longest wait for another's fetch must be from 1ms to 10m");
        if !((1 << 10)..=(1 << 30)).contains(&self.max_object.0) {
            d.error(self.max_object.span.clone(), "the largest stored body must be from 1KiB to 1GiB");
        }
        if !(1..=256).contains(&self.max_variants.value) {
            d.error(self.max_variants.span.clone(), "the number of variants must be from 1 to 256");
        }
        for status in
            self.statuses.iter().filter(|status| !(200..=599).contains(&status.value) || matches!(status.value, 206 | 304))
        {
            d.error(status.span.clone(), format!("answers with status {} cannot be given a ttl", status.value))
                .help("use statuses of whole answers, 200 to 599 without 206 and 304");
        }
        if self.ttl.is_none() {
            if self.force.value {
                d.error(self.force.span.clone(), "`force` needs a `ttl` that it can enforce")
                    .help("add `ttl = \"30s\"`, or leave out `force`");
            }
            if let Some(first) = self.statuses.first() {
                d.error(first.span.clone(), "`statuses` say what `ttl` is for, and there is none").help("add `ttl = \"30s\"`");
            }
        }
        let lists = [(&self.targets, 8, "targets"), (&self.key.headers, 16, "key headers")];
        for (list, most, what) in lists {
            if let Some(beyond) = list.get(most) {
                d.error(beyond.span.clone(), format!("a cache can have up to {most} {what}"));
            }
            for name in list.iter().filter(|name| HeaderName::from_bytes(name.value.as_bytes()).is_err()) {
                d.error(name.span.clone(), format!("`{}` is not the name of a header field", name.value));
            }
        }
        for list in [&self.key.ignore_query, &self.key.only_query] {
            if list.len() > 64 {
                d.error(None, "a list of query parameters can have up to 64 names");
            }
        }
    }

    /// What `check` says about overrides of the origin.
    pub fn announce(&self, route: &str, authenticated: bool, d: &mut Diagnostics) {
        if self.force.value {
            let message = format!("route `{route}` stores answers for its `ttl` whatever the origin says");
            let public = self.share == Share::Public;
            let help = if public {
                "with `share = \"public\"` also what is `private`, for everyone"
            } else {
                "but never what is `private` or asked for with an identity"
            };
            d.warning(self.force.span.clone(), message).help(help);
        }
        if authenticated && self.share == Share::Public {
            let message = format!("route `{route}` knows who calls, and gives every caller the same stored answers");
            d.warning(self.store.span.clone(), message).help("leave out `share = \"public\"` if answers depend on who asks");
        }
    }

    pub fn policy(&self, route: &str, redis: bool, metrics: Arc<CacheMetrics>) -> Policy {
        Policy {
            route: route.into(),
            public: self.share == Share::Public,
            ttl: self.ttl.as_ref().map(|ttl| ttl.get()),
            statuses: self.statuses.iter().map(|status| status.value).collect(),
            force: self.force.value,
            stale_while_revalidate: self.stale_while_revalidate.get(),
            stale_if_error: self.stale_if_error.get(),
            heuristic_max: self.heuristic_max.get(),
            set_cookie: self.set_cookie,
            targets: names(&self.targets),
            max_object: self.max_object.0,
            max_variants: self.max_variants.value.into(),
            wait: self.wait.get(),
            jitter: fraction(self.jitter),
            early_refresh: fraction(self.early_refresh),
            key: self.key.rules(),
            redis: redis && self.store.value == Store::MemoryAndRedis,
            own: Box::default(),
            codes: false,
            metrics,
        }
    }
}
