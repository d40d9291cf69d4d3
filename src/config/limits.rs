//! `[limits]` and `[redis]`.

use super::validate::within;
use crate::diagnostic::Diagnostics;
use crate::limit::local::{MEMORY_MAX, MEMORY_MIN};
use crate::value::{ByteSize, Duration, Located, Rate, TextOrSecret};
use schemars::JsonSchema;
use serde::Deserialize;

/// What all limits share. The limits themselves are `rate_limit` filters and tiers.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// The memory of the local store, from 1MiB to 1TiB; 68 bytes for each key and limit. When it is full, idle keys are
    /// forgotten first, then those that will be idle soonest, never one that is being limited; metric
    /// `gatewright_limit_local_forgotten_total`. A change takes effect at the next start.
    pub local_memory: Located<ByteSize>,
    /// The most requests that this gateway takes, of all listeners and routes together, such as `"10_000/1s"`. A shield for
    /// the machine, not a contract: an estimate that can admit up to twice the number across the border of two intervals.
    /// More are answered with 429 `rate_limited` before a route is looked for. Default: no such bound.
    pub global: Option<Rate>,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        LimitsConfig { local_memory: Located::nowhere(ByteSize(64 << 20)), global: None }
    }
}

impl LimitsConfig {
    pub fn check(&self, d: &mut Diagnostics) {
        within(&self.local_memory, ByteSize(MEMORY_MIN)..=ByteSize(MEMORY_MAX), d);
    }
}

/// The Redis that gateways share, for limits with `store = "redis"`. The request path never waits for it longer than
/// `timeout`; when it is away each limit does what its `on_error` says.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    /// Where it is: `"redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]"` or `"redis+unix:///PATH"`; a secret where it has a
    /// password. Needed by filters with `store = "redis"`.
    pub url: Option<Located<TextOrSecret>>,
    /// The longest that a request waits for a decision, from 1ms to 1s.
    pub timeout: Located<Duration>,
    /// The least number of gateways that share it, 1 to 10000: while Redis is away each gateway admits its share of a limit.
    /// While Redis is reachable the gateways count each other, and if they are more, more it is.
    #[schemars(range(min = 1, max = 10_000))]
    pub gateways: Located<u32>,
    /// What all keys begin with, up to 32 letters, digits and `_-.:`. Gateways count together if they have the same prefix.
    pub prefix: Located<String>,
}

impl Default for RedisConfig {
    fn default() -> Self {
        RedisConfig {
            url: None,
            timeout: Located::nowhere(Duration::from_millis(20)),
            gateways: Located::nowhere(1),
            prefix: Located::nowhere("gatewright".to_owned()),
        }
    }
}

impl RedisConfig {
    pub fn check(&self, d: &mut Diagnostics) {
        within(&self.timeout, Duration::from_millis(1)..=Duration::from_secs(1), d);
        within(&self.gateways, 1..=10_000, d);
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':');
        if self.prefix.is_empty() || self.prefix.len() > 32 || !self.prefix.bytes().all(plain) {
            d.error(self.prefix.span.clone(), format!("`{}` cannot be the prefix of keys", self.prefix.value))
                .help("use up to 32 letters, digits and `_-.:`");
        }
    }
}
