//! `[limits]` and `[redis]`.

use crate::diagnostic::Diagnostics;
use crate::limit::local::{MEMORY_MAX, MEMORY_MIN};
use crate::value::{ByteSize, Duration, Located, Rate, TextOrSecret};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// What all limits share. The limits themselves are `rate_limit` filters and tiers.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// The memory of the local store, from 1MiB to 1TiB; 69 bytes for each key and limit. When it is full, idle keys are
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
        self.local_memory.within(ByteSize(MEMORY_MIN)..=ByteSize(MEMORY_MAX), d);
    }
}

/// The Redis that gateways share: for limits, caches and signatures with `store` in Redis, `[consumer_source]`, and upstreams that
/// are discovered there. One of `url`, `sentinel` and `cluster` says where it is; all uses follow failovers and moved slots. The request path never
/// waits for it longer than `timeout`; when it is away each limit does what its `on_error` says, and caches only miss.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    /// A single Redis: `"redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]"`, `"rediss://..."` for TLS, or `"redis+unix:///PATH"`; a
    /// secret where it has a password.
    pub url: Option<Located<TextOrSecret>>,
    /// A master that sentinels watch over. After a failover the gateway follows as soon as they name the new one.
    pub sentinel: Option<Located<SentinelConfig>>,
    /// A Redis Cluster: URLs of 1 to 64 of its nodes, from which the others are learnt. User, password and TLS of the first are
    /// used for all. Moved slots and new masters are followed; a master that is away takes only its own keys with it.
    pub cluster: Vec<Located<TextOrSecret>>,
    /// PEM file of the authorities that a Redis with TLS is verified by. Default: those of the system.
    pub ca: Option<Located<PathBuf>>,
    /// PEM file of the certificate that proves this gateway to a Redis with TLS; with `key`. Default: none.
    pub cert: Option<Located<PathBuf>>,
    /// PEM file of its private key.
    pub key: Option<Located<PathBuf>>,
    /// The longest that a request waits for an answer, from 1ms to 1s.
    pub timeout: Located<Duration>,
    /// The least number of gateways that share it, 1 to 10000: while Redis is away each gateway admits its share of a limit.
    /// While Redis is reachable the gateways count each other, and if they are more, more it is.
    #[schemars(range(min = 1, max = 10_000))]
    pub gateways: Located<u32>,
    /// What all keys begin with, up to 32 letters, digits and `_-.:`. Gateways count together if they have the same prefix.
    pub prefix: Located<String>,
}

/// A master that sentinels watch over.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SentinelConfig {
    /// The name that the sentinels know the master by, such as `"mymaster"`.
    pub master: Located<String>,
    /// URLs of 1 to 64 sentinels, such as `"redis://:PASSWORD@10.0.0.1:26379"`; user and password are those of the sentinel.
    pub addresses: Vec<Located<TextOrSecret>>,
    /// The user (ACL) at the master. Default: the default user.
    #[serde(default)]
    pub username: Option<String>,
    /// The password at the master. Default: none.
    #[serde(default)]
    pub password: Option<Located<TextOrSecret>>,
    /// The number of the database at the master.
    #[serde(default)]
    pub database: u32,
    /// Whether the master speaks TLS.
    #[serde(default)]
    pub tls: bool,
}

/// The most addresses of a list.
const ADDRESSES_MAX: usize = 64;

impl Default for RedisConfig {
    fn default() -> Self {
        RedisConfig {
            url: None,
            sentinel: None,
            cluster: Vec::new(),
            ca: None,
            cert: None,
            key: None,
            timeout: Located::nowhere(Duration::from_millis(20)),
            gateways: Located::nowhere(1),
            prefix: Located::nowhere("gatewright".to_owned()),
        }
    }
}

impl RedisConfig {
    /// Whether it says where Redis is.
    pub fn is_somewhere(&self) -> bool {
        self.url.is_some() || self.sentinel.is_some() || !self.cluster.is_empty()
    }

    pub fn check(&self, d: &mut Diagnostics) {
        let cluster = self.cluster.first().map(|first| &first.span);
        let sentinel = self.sentinel.as_ref().map(|sentinel| &sentinel.span);
        let ways: Vec<_> = [self.url.as_ref().map(|url| &url.span), sentinel, cluster].into_iter().flatten().collect();
        if let [_, second, ..] = ways.as_slice() {
            d.error((*second).clone(), "there is one Redis: `url`, `sentinel` or `cluster`").help("keep one of them");
        }
        for (list, what) in [
            (self.cluster.as_slice(), "nodes"),
            (self.sentinel.as_ref().map_or(&[][..], |sentinel| &sentinel.addresses), "sentinels"),
        ] {
            if let Some(beyond) = list.get(ADDRESSES_MAX) {
                d.error(beyond.span.clone(), format!("the most {what} are {ADDRESSES_MAX}"))
                    .help("a few are enough to learn the others");
            }
        }
        if let Some(sentinel) = &self.sentinel
            && sentinel.addresses.is_empty()
        {
            d.error(sentinel.span.clone(), "there is no sentinel to ask").help("write addresses = [\"redis://HOST:26379\"]");
        }
        match (&self.cert, &self.key) {
            (Some(cert), None) => drop(d.error(cert.span.clone(), "a certificate needs its key").help("add `key = \"FILE\"`")),
            (None, Some(key)) => drop(d.error(key.span.clone(), "a key needs its certificate").help("add `cert = \"FILE\"`")),
            _ => {}
        }
        self.timeout.within(Duration::from_millis(1)..=Duration::from_secs(1), d);
        self.gateways.within(1..=10_000, d);
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':');
        if self.prefix.is_empty() || self.prefix.len() > 32 || !self.prefix.bytes().all(plain) {
            d.error(self.prefix.span.clone(), format!("`{}` cannot be the prefix of keys", self.prefix.value))
                .help("use up to 32 letters, digits and `_-.:`");
        }
    }
}
