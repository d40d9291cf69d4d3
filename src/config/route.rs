//! `[routes.NAME]` and `[chains.NAME]`.

use super::{Filters, MirrorConfig, SplitConfig};
use crate::cache::config::RouteCacheConfig;
use crate::compress::CompressConfig;
use crate::diagnostic::Diagnostics;
use crate::route::MatchConfig;
use crate::upstream::breaker::BreakerConfig;
use crate::upstream::retry::RetryConfig;
use crate::value::{ByteSize, Duration, Located};
use schemars::JsonSchema;
use serde::Deserialize;

/// What is done with the requests that match.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Which requests the route takes. Of all routes that match, the most specific takes the request.
    #[serde(rename = "match")]
    pub matcher: MatchConfig,
    /// The name of the upstream that requests are sent to. A route without one needs a filter that answers.
    pub upstream: Option<Located<String>>,
    /// Sends parts of the requests to other upstreams. Needs `upstream`. Default: all go to `upstream`.
    pub split: Option<Located<SplitConfig>>,
    /// The upstream that takes requests while no endpoint of the others takes traffic, or a breaker is open; also those that
    /// could not connect to any endpoint. Needs `upstream`. Default: they are rejected.
    pub fallback: Option<Located<String>>,
    /// Sends copies of the requests to another upstream. Needs `upstream`. Default: none.
    pub mirror: Option<Located<MirrorConfig>>,
    /// What happens on the way, in the order written; on the way back, in reverse.
    #[serde(default)]
    pub filters: Filters,
    /// Stores answers and answers with them. Without it, or on a route without an upstream, nothing is stored.
    pub cache: Option<RouteCacheConfig>,
    /// Compresses answers of the upstream for clients that accept it. Without it answers pass as they are.
    pub compress: Option<CompressConfig>,
    /// How long things may take.
    #[serde(default)]
    pub timeouts: RouteTimeouts,
    /// The largest request body; without it `server.max_body` holds. A larger one is answered with 413 `body_too_large`.
    pub max_body: Option<ByteSize>,
    /// When a request that failed is sent again, in place of what the upstream says; the budget is the upstream's all the same.
    pub retry: Option<Located<RetryConfig>>,
    /// A breaker for the requests of this route alone, besides that of the upstream. Default: off.
    pub breaker: Option<Located<BreakerConfig>>,
}

/// How long things may take.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouteTimeouts {
    /// From the end of the request header to the end of the response, retries included, up to 24h; 0s is without bound, for
    /// streams and tunnels. Afterwards the answer is 504 `deadline_exceeded`, or, if it has begun, it is cut off.
    pub request: Located<Duration>,
    /// Whose word counts on how long the client will wait, in `grpc-timeout` and in `header`. It can only shorten `request`.
    /// Default `"trusted"`.
    pub client: ClientDeadline,
    /// A header in which the client says, in whole milliseconds, how long it will wait. What is left of the time is written
    /// into the same header for the upstream. gRPC calls have `grpc-timeout` for that, which is always read and written.
    /// Default: none.
    pub header: Option<Located<String>>,
}

/// Who may say how long a request may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientDeadline {
    /// Nobody.
    Ignore,
    /// Peers that are among `server.trusted_proxies`.
    #[default]
    Trusted,
    /// Every client.
    Any,
}

/// Filters that many routes share by `{ use = "NAME" }`. Each route gets its own copy of them.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChainConfig {
    /// The filters, in the order in which they run. A chain may use other chains, but not itself.
    pub filters: Filters,
}

impl Default for RouteTimeouts {
    fn default() -> Self {
        RouteTimeouts { request: Located::nowhere(Duration::from_secs(60)), client: ClientDeadline::default(), header: None }
    }
}

impl RouteConfig {
    /// The upstreams besides `upstream`.
    pub fn others(&self) -> impl Iterator<Item = &Located<String>> {
        let parts = self.split.iter().flat_map(|split| split.to.iter()).map(|part| &part.upstream);
        parts.chain(&self.fallback).chain(self.mirror.iter().map(|mirror| &mirror.upstream))
    }

    pub(super) fn check(&self, d: &mut Diagnostics) {
        self.matcher.check(d);
        if let Some(compress) = &self.compress {
            compress.check(d);
        }
        if let Some(cache) = &self.cache {
            cache.check(d);
        }
        self.timeouts.request.within(Duration::from_secs(0)..=Duration::from_secs(86_400), d);
        if let Some(name) = self.timeouts.header.as_ref().filter(|name| http::HeaderName::from_bytes(name.as_bytes()).is_err()) {
            d.error(name.span.clone(), format!("`{}` is not the name of a header", name.value.escape_debug()));
        }
        if let Some(split) = &self.split {
            split.check(d);
        }
        if let Some(mirror) = &self.mirror {
            mirror.check(d);
        }
        if let Some(retry) = &self.retry {
            retry.check(d);
        }
        if let Some(breaker) = &self.breaker {
            breaker.check_of_route(d);
        }
    }

    /// Other upstreams stand beside the one of the route.
    pub(super) fn check_upstream(&self, d: &mut Diagnostics) {
        if self.upstream.is_none()
            && let Some(span) = self.others().find_map(|other| other.span.clone())
        {
            d.error(span, "a route without `upstream` has nothing to divide, copy or replace").help("add upstream = \"...\"");
        }
    }
}
