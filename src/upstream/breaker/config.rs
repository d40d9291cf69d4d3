//! `breaker = { ... }` of an upstream or a route.

use super::Tuning;
use crate::diagnostic::Diagnostics;
use crate::value::{Duration, Located, Percent};
use schemars::JsonSchema;
use std::ops::RangeInclusive;

/// A circuit breaker: when too many requests fail, further ones are refused at once with 503 `circuit_open` and a
/// `Retry-After`, until probes show that the upstream is well again.
///
/// A request fails when no connection can be made, when it breaks off or times out, when the answer is not valid HTTP or
/// has a status of 500 to 599, and when a gRPC call ends at once with UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE or
/// DATA_LOSS. What the gateway itself refuses and what clients abandon counts for nothing. A breaker survives reloads that do
/// not change its `window`.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// What has a breaker of its own: the upstream as a whole, each endpoint, or both. An endpoint whose breaker is open is
    /// passed over. In a route it must be left out: there the breaker is that of the route. Default `"upstream"`.
    pub scope: Located<Scope>,
    /// The share of failed requests within the window that opens it. Above 0%, default `"50%"`.
    pub error_rate: Located<Percent>,
    /// The length of the sliding window. 1s to 10m, default `"10s"`.
    pub window: Located<Duration>,
    /// How many requests there must be within the window before a share means anything. 1 to 1000000, default 20.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Located<u32>,
    /// How many failed requests in a row open it, whatever their share. 1 to 1000000. Default: they do not.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub consecutive_failures: Option<Located<u32>>,
    /// From which time on a request is slow, measured from the end of the request to the head of the answer. 1ms to 1h.
    /// Default: no request is too slow.
    pub slow: Option<Located<Duration>>,
    /// The share of slow requests within the window that opens it. Above 0%, default `"50%"`. Only with `slow`.
    pub slow_rate: Option<Located<Percent>>,
    /// How long it stays open before probes may pass. 10ms to 1h, default `"30s"`.
    pub open_for: Located<Duration>,
    /// How many requests may pass as probes then. When all of them are well it closes, with the first failure it opens
    /// again. 1 to 1000, default 3.
    #[schemars(range(min = 1, max = 1000))]
    pub probes: Located<u32>,
    /// What is answered while it is open, in place of 503 `circuit_open`.
    pub answer: Option<Located<Answer>>,
}

/// What has a breaker of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The upstream as a whole.
    #[default]
    Upstream,
    /// Each endpoint.
    Endpoint,
    /// The upstream as a whole, and each endpoint.
    Both,
}

/// A fixed answer in place of the upstream's.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// 200 to 599, default 200.
    #[serde(default = "ok")]
    #[schemars(range(min = 200, max = 599))]
    pub status: Located<u16>,
    /// The body, up to 64KiB. Default: empty.
    #[serde(default)]
    pub body: Located<String>,
    /// The `Content-Type` of the body. Default `"text/plain; charset=utf-8"`.
    #[serde(default = "plain")]
    pub content_type: Located<String>,
}

fn ok() -> Located<u16> {
    Located::nowhere(200)
}
fn plain() -> Located<String> {
    Located::nowhere("text/plain; charset=utf-8".to_owned())
}

impl Default for BreakerConfig {
    fn default() -> Self {
        BreakerConfig {
            scope: Located::nowhere(Scope::Upstream),
            error_rate: Located::nowhere(Percent { parts_per_million: 500_000 }),
            window: Located::nowhere(Duration::from_secs(10)),
            min_requests: Located::nowhere(20),
            consecutive_failures: None,
            slow: None,
            slow_rate: None,
            open_for: Located::nowhere(Duration::from_secs(30)),
            probes: Located::nowhere(3),
            answer: None,
        }
    }
}

impl BreakerConfig {
    /// Reports what decoding cannot see.
    pub fn check(&self, d: &mut Diagnostics) {
        self.window.within(Duration::from_secs(1)..=Duration::from_secs(600), d);
        self.open_for.within(Duration::from_millis(10)..=Duration::from_secs(3_600), d);
        number("min_requests", &self.min_requests, 1..=1_000_000, d);
        if let Some(count) = &self.consecutive_failures {
            number("consecutive_failures", count, 1..=1_000_000, d);
        }
        number("probes", &self.probes, 1..=1000, d);
        for rate in [Some(&self.error_rate), self.slow_rate.as_ref()].into_iter().flatten() {
            if rate.parts_per_million == 0 {
                d.error(rate.span.clone(), "a breaker that opens at 0% is never closed").label("must be above 0%");
            }
        }
        match (&self.slow, &self.slow_rate) {
            (Some(slow), _) => {
                slow.within(Duration::from_millis(1)..=Duration::from_secs(3_600), d);
            }
            (None, Some(rate)) => {
                d.error(rate.span.clone(), "`slow_rate` has no meaning without `slow`")
                    .label("a share of which requests?")
                    .help("write slow = \"1s\" to say from when on a request is slow");
            }
            (None, None) => {}
        }
        if let Some(answer) = &self.answer {
            answer.check(d);
        }
    }

    /// The same for the breaker of a route.
    pub fn check_of_route(&self, d: &mut Diagnostics) {
        self.check(d);
        if *self.scope != Scope::Upstream {
            d.error(self.scope.span.clone(), "the breaker of a route has no `scope`")
                .label("belongs to the breaker of an upstream")
                .help("leave it out: this breaker is that of the route");
        }
    }

    pub fn tuning(&self) -> Tuning {
        Tuning {
            error_rate: self.error_rate.parts_per_million,
            window: self.window.get(),
            min_requests: self.min_requests.value.into(),
            consecutive: self.consecutive_failures.as_ref().map(|count| count.value),
            slow: self.slow.as_ref().map(|slow| {
                let rate = self.slow_rate.as_ref().map_or(500_000, |rate| rate.parts_per_million);
                (slow.get(), rate)
            }),
            open_for: self.open_for.get(),
            probes: self.probes.value,
        }
    }
}

impl Answer {
    fn check(&self, d: &mut Diagnostics) {
        if !(200..=599).contains(&self.status.value) {
            d.error(self.status.span.clone(), format!("`status` is {}", self.status.value)).label("must be from 200 to 599");
        }
        if self.body.len() > 64 << 10 {
            d.error(self.body.span.clone(), format!("`body` has {} bytes", self.body.len())).label("at most 64KiB are possible");
        }
        if http::HeaderValue::from_str(&self.content_type).is_err() {
            d.error(self.content_type.span.clone(), "this is not the value of a header").label("printable ASCII is possible");
        }
    }
}

/// Reports a number outside of its bounds.
pub(in crate::upstream) fn number(key: &str, value: &Located<u32>, bounds: RangeInclusive<u32>, d: &mut Diagnostics) {
    if !bounds.contains(&value.value) {
        let label = format!("must be from {} to {}", bounds.start(), bounds.end());
        d.error(value.span.clone(), format!("`{key}` is {}", value.value)).label(label);
    }
}
