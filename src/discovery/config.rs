//! `discover`: where an upstream's endpoints are found, as written.

use crate::diagnostic::{Diagnostics, Span};
use crate::tls::UpstreamTlsConfig;
use crate::value::{Cidr, Duration, Located, SecretSource, TextOrSecret};
use schemars::JsonSchema;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The most endpoints that one source may bring.
pub const FOUND_MAX: usize = 4096;

/// Finds endpoints, in the background. Exactly one of `file`, `dns`, `consul` and `redis`.
///
/// Without an answer the last good one stays in use. Endpoints that are in one answer and in the next keep their connections,
/// health and counters. A source that fails is asked again after 100ms to 5s, longer with each failure. Metrics:
/// `gatewright_discovery_*`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiscoverConfig {
    /// A file that lists them.
    pub file: Option<Located<FileConfig>>,
    /// A name in DNS.
    pub dns: Option<Located<DnsConfig>>,
    /// A service in Consul.
    pub consul: Option<Located<ConsulConfig>>,
    /// A set in Redis in which services keep themselves.
    pub redis: Option<Located<RedisConfig>>,
    /// The networks that endpoints may be in, such as `["10.0.0.0/8"]`; others are not used, and counted by
    /// `gatewright_discovery_unused`. Whoever can change what the source says cannot lead the gateway elsewhere. Default: any.
    #[serde(default)]
    pub allow: Located<Vec<Located<Cidr>>>,
    /// The most endpoints that are used, those with the lowest addresses. 1 to 4096, default 1024.
    #[serde(default = "max_endpoints")]
    #[schemars(range(min = 1, max = 4096))]
    pub max_endpoints: Located<u16>,
    /// Whether an answer without endpoints, a name that does not exist included, empties the pool. Default `false`: it counts as a
    /// failure, because such answers come from mistakes more often than from the end of a service.
    #[serde(default)]
    pub allow_empty: bool,
    /// The least time between two changes. A change that comes sooner is put off, and what is taken back meanwhile never
    /// happens. 0s to 1m, default `"1s"`.
    #[serde(default = "one_second")]
    pub debounce: Located<Duration>,
    /// How long an answer stays in use while the source fails. Afterwards its endpoints are gone. 1s to 30d. Default: for as long
    /// as it takes.
    pub max_stale: Option<Located<Duration>>,
}

/// A file `endpoints = ["10.0.0.1:3000", { address = "10.0.0.2:3000", weight = 2, priority = 1, zone = "a" }]`, in TOML, or the same in
/// JSON if its name ends in `.json`. At most 4MiB; addresses only, no names.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// The file, relative to the configuration file.
    pub path: Located<PathBuf>,
    /// It is read when it changes, and in any case at this interval. 100ms to 1h, default `"10s"`.
    #[serde(default = "ten_seconds")]
    pub interval: Located<Duration>,
}

/// A name in DNS. It is asked for again when the answer lapses (TTL). A headless service of Kubernetes is
/// `{ name = "orders.default.svc.cluster.local", port = 3000 }`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsConfig {
    /// The name. The search list of `/etc/resolv.conf` applies to it unless it ends with a dot or `servers` is set.
    pub name: Located<String>,
    /// The port of the endpoints. Not with `record = "srv"`, whose answers have it.
    pub port: Option<Located<u16>>,
    /// What is asked for. Default `"address"`.
    #[serde(default)]
    pub record: RecordType,
    /// The name servers, such as `["10.0.0.2:53"]`. Default: those of `/etc/resolv.conf`. The hosts file is not read.
    #[serde(default)]
    pub servers: Vec<Located<SocketAddr>>,
    /// The least time between two questions, whatever the TTL. 100ms to 1h, default `"1s"`.
    #[serde(default = "one_second")]
    pub min_interval: Located<Duration>,
    /// The most time between two questions, whatever the TTL. 100ms to 1d, default `"30s"`.
    #[serde(default = "thirty_seconds")]
    pub max_interval: Located<Duration>,
    /// How long one answer may take in total. 10ms to 1m, default `"5s"`.
    #[serde(default = "five_seconds")]
    pub timeout: Located<Duration>,
}

/// Which records make endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecordType {
    /// A and AAAA.
    #[default]
    Address,
    /// IPv4 only.
    A,
    /// IPv6 only.
    Aaaa,
    /// SRV, with port, weight and priority (RFC 2782): the lowest priority of the answer is 0 here, the next one 1, and so on up
    /// to 9.
    Srv,
}

/// A service in Consul: its instances that pass their checks. `Meta.zone` and `Meta.priority` of an instance become zone
/// and priority, `Weights.Passing` the weight.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsulConfig {
    /// Host and port of the agent. Default `"127.0.0.1:8500"`.
    #[serde(default = "consul_agent")]
    pub address: Located<String>,
    /// The name of the service.
    pub service: Located<String>,
    /// Only instances that have all of these tags. Up to 16.
    #[serde(default)]
    pub tags: Located<Vec<String>>,
    /// Default: that of the agent.
    pub datacenter: Option<Located<String>>,
    /// An ACL token with `service:read` and `node:read`.
    pub token: Option<Located<SecretSource>>,
    /// TLS to the agent.
    pub tls: Option<Located<UpstreamTlsConfig>>,
    /// How long Consul may hold a question back until something changes. 1s to 10m, default `"1m"`.
    #[serde(default = "one_minute")]
    pub wait: Located<Duration>,
    /// How long connecting and answering may take beyond that. 10ms to 1m, default `"5s"`.
    #[serde(default = "five_seconds")]
    pub timeout: Located<Duration>,
}

/// A sorted set in Redis. A service keeps itself in it with `ZADD KEY UNIX_TIME ADDRESS:PORT`, where the score is the time in
/// seconds at which it lapses, by Redis' clock, and does so again before that. Settings may follow the address, as in
/// `"10.0.0.5:3000 weight=2 priority=1 zone=a"`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// `"redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]"`, `"rediss://..."` or `"redis+unix:///PATH"`; a secret where it has a
    /// password. Default: the Redis of `[redis]`, one server, behind sentinels or a cluster, with its TLS.
    pub url: Option<Located<TextOrSecret>>,
    /// The key of the set. 1 to 512 characters.
    pub key: Located<String>,
    /// The time between two questions. 100ms to 1h, default `"2s"`.
    #[serde(default = "two_seconds")]
    pub interval: Located<Duration>,
    /// How long each step may take: to connect, and to answer. 10ms to 1m, default `"1s"`.
    #[serde(default = "one_second")]
    pub timeout: Located<Duration>,
}

fn max_endpoints() -> Located<u16> {
    Located::nowhere(1024)
}
fn consul_agent() -> Located<String> {
    Located::nowhere("127.0.0.1:8500".to_owned())
}
fn one_second() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(1))
}
fn two_seconds() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(2))
}
fn five_seconds() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(5))
}
fn ten_seconds() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(10))
}
fn thirty_seconds() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(30))
}
fn one_minute() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(60))
}

const DAY: u64 = 86_400;

impl DiscoverConfig {
    /// Reports what decoding cannot see.
    pub fn check(&self, span: Option<Span>, d: &mut Diagnostics) {
        let sources = [
            self.file.as_ref().map(|source| source.span.clone()),
            self.dns.as_ref().map(|source| source.span.clone()),
            self.consul.as_ref().map(|source| source.span.clone()),
            self.redis.as_ref().map(|source| source.span.clone()),
        ];
        let mut sources = sources.into_iter().flatten();
        match (sources.next(), sources.next()) {
            (Some(_), None) => {}
            (None, _) => {
                d.error(span, "`discover` does not say where").help(
                    "write one of `file`, `dns`, `consul` and `redis`, such as { dns = { name = \"orders\", port = 3000 } }",
                );
            }
            (Some(first), Some(second)) => {
                let found = d.error(second, "endpoints are discovered at one place").label("this is the second one");
                if let Some(first) = first {
                    found.related(first, "the first one");
                }
            }
        }
        if !(1..=FOUND_MAX).contains(&usize::from(self.max_endpoints.value)) {
            d.error(self.max_endpoints.span.clone(), format!("`max_endpoints` is {}", self.max_endpoints.value))
                .label(format!("must be from 1 to {FOUND_MAX}"));
        }
        self.debounce.within(Duration::from_secs(0)..=Duration::from_secs(60), d);
        if let Some(max_stale) = &self.max_stale {
            max_stale.within(Duration::from_secs(1)..=Duration::from_secs(30 * DAY), d);
        }
        if let Some(file) = &self.file {
            file.interval.within(Duration::from_millis(100)..=Duration::from_secs(3_600), d);
        }
        if let Some(dns) = &self.dns {
            dns.check(d);
        }
        if let Some(consul) = &self.consul {
            consul.check(d);
        }
        if let Some(redis) = &self.redis {
            redis.interval.within(Duration::from_millis(100)..=Duration::from_secs(3_600), d);
            redis.timeout.within(Duration::from_millis(10)..=Duration::from_secs(60), d);
            text("the key of a set", &redis.key, 512, d);
        }
    }
}

impl DnsConfig {
    fn check(&self, d: &mut Diagnostics) {
        self.min_interval.within(Duration::from_millis(100)..=Duration::from_secs(3_600), d);
        self.max_interval.within(Duration::from_millis(100)..=Duration::from_secs(DAY), d);
        self.timeout.within(Duration::from_millis(10)..=Duration::from_secs(60), d);
        if self.min_interval.value > self.max_interval.value {
            let message =
                format!("`min_interval` of {} is above `max_interval` of {}", self.min_interval.value, self.max_interval.value);
            d.error(self.min_interval.span.clone().or_else(|| self.max_interval.span.clone()), message);
        }
        let label = |label: &str| {
            !label.is_empty() && label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let name = self.name.strip_suffix('.').unwrap_or(&self.name);
        if name.len() > 253 || !name.split('.').all(label) {
            d.error(self.name.span.clone(), format!("`{}` is not a name in DNS", self.name.value.escape_debug()))
                .help("write it without a port and without a scheme");
        }
        match (&self.port, self.record) {
            (None, RecordType::Srv) => {}
            (None, _) => {
                d.error(self.name.span.clone(), "`dns` needs a `port`")
                    .help("addresses have none in DNS; with `record = \"srv\"` the answer has it");
            }
            (Some(port), RecordType::Srv) => {
                d.error(port.span.clone(), "`port` has no meaning for SRV records").label("the answer has it");
            }
            (Some(port), _) if port.value == 0 => {
                d.error(port.span.clone(), "port 0 cannot be connected to");
            }
            _ => {}
        }
        for server in self.servers.iter().filter(|server| server.port() == 0) {
            d.error(server.span.clone(), "port 0 cannot be asked").help("name servers are on port 53");
        }
    }
}

impl ConsulConfig {
    fn check(&self, d: &mut Diagnostics) {
        self.wait.within(Duration::from_secs(1)..=Duration::from_secs(600), d);
        self.timeout.within(Duration::from_millis(10)..=Duration::from_secs(60), d);
        text("the name of a service", &self.service, 128, d);
        if let Some(datacenter) = &self.datacenter {
            text("the name of a datacenter", datacenter, 128, d);
        }
        let port = self.address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        if self.address.contains("://") || port.is_none_or(|(host, port)| host.is_empty() || port == 0) {
            d.error(self.address.span.clone(), format!("`{}` is not a host and a port", self.address.value.escape_debug()))
                .help("for example: address = \"127.0.0.1:8500\"; `tls` makes it https");
        }
        if self.tags.len() > 16 || self.tags.iter().any(|tag| tag.is_empty() || tag.len() > 128) {
            d.error(self.tags.span.clone(), "these tags cannot be asked for")
                .label("up to 16 of 1 to 128 characters are possible");
        }
        if let Some(tls) = &self.tls {
            tls.check(d);
        }
    }
}

fn text(what: &str, value: &Located<String>, most: usize, d: &mut Diagnostics) {
    if value.is_empty() || value.len() > most || value.chars().any(char::is_control) {
        d.error(value.span.clone(), format!("`{}` cannot be {what}", value.value.escape_debug()))
            .label(format!("must have 1 to {most} characters"));
    }
}
