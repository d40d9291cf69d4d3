//! `[upstreams.NAME]`: endpoints, and how they are used.
//!
//! Addresses are kept as text until [`UpstreamConfig::check`], because a decoder stops at its first error while a check
//! reports every wrong address of a file in one run.

mod endpoint;
mod health;

pub use super::balance::Balance;
pub use crate::discovery::{PRIORITY_MAX, WEIGHT_MAX};
pub use endpoint::EndpointConfig;
pub use health::{HealthConfig, StatusRange};

use super::breaker::BreakerConfig;
use super::hedge::HedgeConfig;
use super::outlier::OutlierConfig;
use super::overload::OverloadConfig;
use super::retry::RetryConfig;
use crate::diagnostic::Diagnostics;
use crate::discovery::DiscoverConfig;
use crate::tls::UpstreamTlsConfig;
use crate::value::{Duration, Located};
use schemars::JsonSchema;

/// The most entries that `endpoints` may have.
pub const ENDPOINTS_MAX: usize = 4096;
/// The largest value of `retry.attempts`.
pub const ATTEMPTS_MAX: usize = 10;

/// A named group of endpoints that serve the same thing, and how the gateway uses them.
///
/// Answers are held to the strictness of requests. Over HTTP/1 each is checked byte by byte: what two readers could end at two
/// places is refused with 502 `upstream_protocol_error` and its connection closed, or breaks off where its head has passed
/// already. That is `Content-Length` with `Transfer-Encoding`, either of them twice or malformed, a coding other than `chunked`
/// or in HTTP/1.0, bare line feeds, folded lines, white space before a colon, control bytes, malformed chunks, a 101 that was
/// not asked for, a body where there can be none, and bytes after the end, which includes a body in answer to HEAD. A head has at
/// most 64 KiB and 256 lines, and at most 16 interim answers (1xx) come before it. Refusals are counted by reason in
/// `gatewright_upstream_malformed_answers_total`. They are sent again like a connection that broke, see `retry`.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// The addresses that take the traffic, each as `"127.0.0.1:3001"`, `"[::1]:3001"` or `"orders.internal:3001"`, or as a
    /// table with a weight. Up to 4096 entries, at least one unless `discover` is set; the same address twice is an error.
    #[serde(default)]
    pub endpoints: Located<Vec<Located<EndpointConfig>>>,
    /// Finds endpoints elsewhere: in a file, in DNS, in Consul, in Redis. Those of `endpoints` stay beside them.
    pub discover: Option<Located<DiscoverConfig>>,
    /// How an endpoint is chosen. Default `"round_robin"`.
    #[serde(default)]
    pub balance: Located<Balance>,
    /// How long an endpoint takes to get its full share after it has appeared, recovered or been brought back: it begins with a
    /// tenth and rises in a straight line. 1s to 1h. Default: at once.
    pub slow_start: Option<Located<Duration>>,
    /// Where this gateway is. Endpoints of another zone, or of none, take traffic only while none of this one with the same
    /// priority does. Default: zones do not matter.
    pub zone: Option<Located<String>>,
    /// Asks each endpoint at intervals whether it works and sends no traffic to those that do not. Without it every
    /// endpoint counts as healthy.
    pub health: Option<Located<HealthConfig>>,
    /// How long each step of a request to an endpoint may take.
    #[serde(default)]
    pub timeouts: TimeoutsConfig,
    /// How many idle connections are kept for the next request.
    #[serde(default)]
    pub keepalive: KeepaliveConfig,
    /// When a request that failed is sent again.
    #[serde(default)]
    pub retry: RetryConfig,
    /// Asks a second endpoint where the first one takes long. Default: off.
    pub hedge: Option<Located<HedgeConfig>>,
    /// Takes an endpoint that fails out of rotation for a while, by how its requests end. Default: off.
    pub outlier: Option<Located<OutlierConfig>>,
    /// Refuses requests at once while the upstream fails. Default: off.
    pub breaker: Option<Located<BreakerConfig>>,
    /// Bounds how many requests the upstream works on at once by what it can take. Default: off.
    pub overload: Option<Located<OverloadConfig>>,
    /// What to do while no endpoint is healthy. Default `"reject"`.
    #[serde(default)]
    pub when_all_down: WhenAllDown,
    /// How endpoints that are written as names are looked up.
    #[serde(default)]
    pub resolve: ResolveConfig,
    /// What is spoken with the endpoints. gRPC needs HTTP/2. Upgrades such as WebSocket use HTTP/1.1 where the endpoint may
    /// speak either. With `"auto"` an endpoint that chooses HTTP/1.1 is spoken to by it for a minute before it is asked again.
    /// Trailers of an answer pass where both sides speak HTTP/2, and reach a client of HTTP/1.1 that says `TE: trailers`, whatever
    /// the endpoint speaks; an answer of HTTP/1.1 has none for a client of HTTP/2. Trailers of a request pass where both sides
    /// speak HTTP/1.1, each time that it is sent; they are dropped where one of them speaks HTTP/2, and where `hmac` has checked a
    /// signature, which does not cover them. Over HTTP/1.1 no trailer passes that belongs into a head, and none of a request that
    /// the gateway or a filter would write, change or remove there. Default `"http1"`.
    #[serde(default)]
    pub protocol: Located<Protocol>,
    /// How many requests may share one HTTP/2 connection at once, 1 to 10000, default 100. Further ones open another.
    #[serde(default = "max_streams")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_streams: Located<u16>,
    /// TLS to the endpoints, health checks over HTTP included.
    pub tls: Option<Located<UpstreamTlsConfig>>,
}

/// What is spoken with endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, with or without `tls`.
    #[default]
    Http1,
    /// HTTP/2 over TLS, and nothing else.
    H2,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
    /// HTTP/2 where the endpoint agrees to it in the TLS handshake, else HTTP/1.1.
    Auto,
}

/// What happens to a request while no endpoint is healthy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenAllDown {
    /// It is rejected with `upstream_unavailable` (503) and a `Retry-After` of the time to the next check.
    #[default]
    Reject,
    /// It goes to the endpoints as if all of them were healthy. For checks that are less reliable than what they check.
    TryAll,
}

/// Timeouts of a request to an endpoint. `"0s"` is an error: there is no way to switch one off.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutsConfig {
    /// The longest that opening a connection may take. Default `"1s"`. Then another endpoint is tried, see `retry`.
    pub connect: Located<Duration>,
    /// The longest silence while the response is read, not the whole of it; of its head, in HTTP/1, all together. Default
    /// `"30s"`.
    pub read: Located<Duration>,
    /// How long one attempt may wait for the answer to begin; then another one may be made, see `retry`. Silences within the
    /// answer are bounded by it as well, so that upstreams that stream with long pauses need a long one. Default: only
    /// `read` and what is left of the whole request.
    pub attempt: Option<Located<Duration>>,
    /// A request that has less time left than this is refused with 504 `deadline_exceeded` and not sent: what the upstream
    /// needs at the very least. Default: none is.
    pub least: Option<Located<Duration>>,
    /// The longest that one write of the request may be blocked. Default `"30s"`.
    pub write: Located<Duration>,
    /// How long an unused connection is kept for reuse. Default `"60s"`; keep it below the endpoint's own limit.
    pub idle: Located<Duration>,
    /// The longest that a request may take in total, all attempts included. Default: only the route's limit.
    pub request: Option<Located<Duration>>,
}

/// Reuse of connections to endpoints.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeepaliveConfig {
    /// At most so many idle connections are kept for each endpoint, 0 to 65535, default 256. Requests beyond it open a
    /// connection and close it afterwards. 0 opens one for each request.
    pub connections: u16,
}

/// Look-up of names through the system's resolver (`/etc/hosts`, `/etc/resolv.conf`), in the background.
///
/// When a look-up fails, the last good answer stays in use. Until the first answer the endpoint is absent. At most 256
/// addresses are used for each name.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResolveConfig {
    /// The time between two look-ups of a name, varied at random by up to 10 % either way. The system's resolver does not
    /// tell how long an answer is valid. 1s to 1d, default `"10s"`. When upstreams share a name, the shortest holds.
    pub interval: Located<Duration>,
    /// How long a look-up may take before it counts as failed. At most 1m, default `"5s"`.
    pub timeout: Located<Duration>,
}

impl Default for TimeoutsConfig {
    fn default() -> Self {
        TimeoutsConfig {
            connect: one_second(),
            read: Located::nowhere(Duration::from_secs(30)),
            write: Located::nowhere(Duration::from_secs(30)),
            idle: Located::nowhere(Duration::from_secs(60)),
            attempt: None,
            least: None,
            request: None,
        }
    }
}

impl Default for KeepaliveConfig {
    fn default() -> Self {
        KeepaliveConfig { connections: 256 }
    }
}

impl Default for ResolveConfig {
    fn default() -> Self {
        ResolveConfig { interval: Located::nowhere(Duration::from_secs(10)), timeout: Located::nowhere(Duration::from_secs(5)) }
    }
}

fn max_streams() -> Located<u16> {
    Located::nowhere(100)
}
fn one_second() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(1))
}

impl UpstreamConfig {
    /// Reports what decoding cannot see. A config that passes without errors can be built.
    pub fn check(&self, name: &Located<String>, d: &mut Diagnostics) {
        if let Some(discover) = &self.discover {
            discover.check(discover.span.clone(), d);
        }
        if self.discover.is_none() || !self.endpoints.is_empty() {
            endpoint::check(&self.endpoints, name, d);
        }
        self.balance.check(d);
        if let Some(slow_start) = &self.slow_start {
            slow_start.within(Duration::from_secs(1)..=Duration::from_secs(3_600), d);
        }
        if let Some(zone) = &self.zone {
            endpoint::check_zone(zone, d);
        }
        if let Some(health) = &self.health {
            health.value.check(health.span.clone(), d);
        }
        let TimeoutsConfig { connect, read, write, idle, attempt, least, request } = &self.timeouts;
        let optional = [attempt, least, request].into_iter().flatten();
        for timeout in [connect, read, write, idle].into_iter().chain(optional) {
            timeout.within(Duration::from_millis(1)..=Duration::from_secs(86_400), d);
        }
        self.resolve.interval.within(Duration::from_secs(1)..=Duration::from_secs(86_400), d);
        self.resolve.timeout.within(Duration::from_millis(1)..=Duration::from_secs(60), d);
        self.max_streams.within(1..=10_000, d);
        self.check_protocol(d);
        self.retry.check(d);
        if let Some(hedge) = &self.hedge {
            hedge.check(matches!(self.balance.value, Balance::Sticky(_)), hedge.span.clone(), d);
        }
        if let Some(outlier) = &self.outlier {
            outlier.check(d);
        }
        if let Some(breaker) = &self.breaker {
            breaker.check(d);
        }
        if let Some(overload) = &self.overload {
            overload.check(d);
        }
    }

    fn check_protocol(&self, d: &mut Diagnostics) {
        if let Some(tls) = &self.tls {
            tls.check(d);
        }
        let span = self.protocol.span.clone();
        match (self.protocol.value, &self.tls) {
            (Protocol::H2, None) => {
                d.error(span, "`h2` needs `tls`").help("write protocol = \"h2c\" for HTTP/2 without TLS");
            }
            (Protocol::Auto, None) => {
                d.error(span, "`auto` needs `tls`")
                    .label("the protocol is agreed on in the TLS handshake")
                    .help("write protocol = \"http1\" or \"h2c\"");
            }
            (Protocol::H2c, Some(tls)) => {
                let found = d.error(span, "`h2c` is HTTP/2 without TLS").help("write protocol = \"h2\"");
                if let Some(span) = tls.span.clone() {
                    found.related(span, "this upstream has TLS");
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
