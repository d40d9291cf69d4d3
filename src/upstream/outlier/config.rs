//! `outlier = { ... }` of an upstream.

use super::Tuning;
use crate::diagnostic::Diagnostics;
use crate::upstream::breaker::number;
use crate::value::{Duration, Located, Percent};
use schemars::JsonSchema;

/// Watches how the requests to each endpoint end and takes out of rotation, for a while, an endpoint that fails where others
/// do not.
///
/// A request has failed as it has for `breaker`. Only what the endpoint did counts: neither what the gateway refuses nor
/// what clients abandon. The last endpoint that takes traffic is never ejected. An ejected endpoint gets only requests for
/// which no connection to any other can be made. One that comes back is known for nothing, and the next ejection in a row is twice as long.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutlierConfig {
    /// How many failed requests in a row eject an endpoint, at once. 0 to 1000000; 0: none do. Default 5.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub consecutive_errors: Located<u32>,
    /// The share of failed requests within the window that ejects. Above 0%. Default: no share does.
    pub error_rate: Option<Located<Percent>>,
    /// How many times the median latency of all endpoints one of them may reach, measured from the end of a request to the
    /// head of its answer, before it is ejected. 2 to 1000. Default: none is too slow.
    #[schemars(range(min = 2, max = 1_000))]
    pub latency_factor: Option<Located<u32>>,
    /// An average latency below this is never too slow. At most 1h, default `"50ms"`. Only with `latency_factor`.
    pub latency_min: Option<Located<Duration>>,
    /// How many requests an endpoint must have had within the window before a share or a latency means anything. 1 to
    /// 1000000, default 20.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Located<u32>,
    /// The length of the sliding window. 1s to 10m, default `"10s"`.
    pub window: Located<Duration>,
    /// How long the first ejection lasts. 10ms to 1h, default `"30s"`.
    pub eject_for: Located<Duration>,
    /// How long an ejection may last at most, however many came before it. An endpoint that has behaved for this long begins
    /// anew. Not below `eject_for`, at most 1d, default `"5m"`, or `eject_for` where that is longer.
    pub eject_for_max: Option<Located<Duration>>,
    /// The share of endpoints that may be ejected at once; one always may, unless this is 0%. Where it is full and another one
    /// fails, the one that has been out longest, and not less than `eject_for`, makes room for it. Default `"50%"`.
    pub max_ejected: Located<Percent>,
    /// When a smaller share of endpoints than this takes traffic, unhealthy ones counted out as well, ejected ones take
    /// traffic again. Default `"0%"`: only when none is left.
    pub panic: Located<Percent>,
}

impl Default for OutlierConfig {
    fn default() -> Self {
        OutlierConfig {
            consecutive_errors: Located::nowhere(5),
            error_rate: None,
            latency_factor: None,
            latency_min: None,
            min_requests: Located::nowhere(20),
            window: Located::nowhere(Duration::from_secs(10)),
            eject_for: Located::nowhere(Duration::from_secs(30)),
            eject_for_max: None,
            max_ejected: Located::nowhere(Percent { parts_per_million: 500_000 }),
            panic: Located::nowhere(Percent { parts_per_million: 0 }),
        }
    }
}

impl OutlierConfig {
    /// Reports what decoding cannot see.
    pub fn check(&self, d: &mut Diagnostics) {
        number("consecutive_errors", &self.consecutive_errors, 0..=1_000_000, d);
        number("min_requests", &self.min_requests, 1..=1_000_000, d);
        self.window.within(Duration::from_secs(1)..=Duration::from_secs(600), d);
        let eject = self.eject_for.within(Duration::from_millis(10)..=Duration::from_secs(3_600), d);
        if let Some(most) = self.eject_for_max.as_ref().filter(|_| eject) {
            most.within(self.eject_for.value..=Duration::from_secs(86_400), d);
        }
        if let Some(rate) = self.error_rate.as_ref().filter(|rate| rate.parts_per_million == 0) {
            d.error(rate.span.clone(), "an endpoint that is ejected at 0% takes no traffic").label("must be above 0%");
        }
        match (&self.latency_factor, &self.latency_min) {
            (Some(factor), _) => number("latency_factor", factor, 2..=1_000, d),
            (None, Some(least)) => {
                d.error(least.span.clone(), "`latency_min` has no meaning without `latency_factor`")
                    .label("below which latency is what not too slow?")
                    .help("write latency_factor = 3 to say how much slower than the others is too slow");
            }
            (None, None) => {}
        }
        if let Some(least) = &self.latency_min {
            least.within(Duration::from_millis(0)..=Duration::from_secs(3_600), d);
        }
    }

    pub fn tuning(&self) -> Tuning {
        let least = self.latency_min.as_ref().map_or(std::time::Duration::from_millis(50), |least| least.get());
        let longest = self.eject_for_max.as_ref().map_or(std::time::Duration::from_secs(300), |most| most.get());
        Tuning {
            consecutive: self.consecutive_errors.value,
            error_rate: self.error_rate.as_ref().map(|rate| rate.parts_per_million),
            min_requests: self.min_requests.value.into(),
            window: self.window.get(),
            slow: self.latency_factor.as_ref().map(|factor| (factor.value, least)),
            eject_for: self.eject_for.get(),
            eject_for_max: longest.max(self.eject_for.get()),
            max_ejected: self.max_ejected.parts_per_million,
            panic: self.panic.parts_per_million,
        }
    }
}
