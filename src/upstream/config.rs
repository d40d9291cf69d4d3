//! `[upstreams.NAME]`: endpoints, and how they are used.
//!
//! Addresses are kept as text until [`UpstreamConfig::check`], because a decoder stops at its first error while a check
//! reports every wrong address of a file in one run.

use super::address::Address;
use crate::diagnostic::{Diagnostics, Span};
use crate::tls::UpstreamTlsConfig;
use crate::value::{Duration, Located};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, value::MapAccessDeserializer};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

/// The most entries that `endpoints` may have.
pub const ENDPOINTS_MAX: usize = 4096;
/// The largest weight.
pub const WEIGHT_MAX: u16 = 1000;
/// The largest value of `attempts`.
pub const ATTEMPTS_MAX: usize = 10;

/// A named group of endpoints that serve the same thing, and how the gateway uses them.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// The addresses that take the traffic, each as `"127.0.0.1:3001"`, `"[::1]:3001"` or `"orders.internal:3001"`, or as a
    /// table with a weight. 1 to 4096 entries; the same address twice is an error.
    pub endpoints: Located<Vec<Located<EndpointConfig>>>,
    /// How an endpoint is chosen. Default `"round_robin"`.
    #[serde(default)]
    pub balance: Balance,
    /// Asks each endpoint at intervals whether it works and sends no traffic to those that do not. Without it every
    /// endpoint counts as healthy.
    pub health: Option<Located<HealthConfig>>,
    /// How long each step of a request to an endpoint may take.
    #[serde(default)]
    pub timeouts: TimeoutsConfig,
    /// How many idle connections are kept for the next request.
    #[serde(default)]
    pub keepalive: KeepaliveConfig,
    /// How many endpoints are tried for one request, the first included, when a connection is refused or times out: nothing
    /// was sent then, so that trying another one is safe for every method. 1 to 10, default 2. At the limit the request is
    /// rejected with `upstream_connect_failed`.
    #[serde(default = "attempts")]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: Located<u8>,
    /// What to do while no endpoint is healthy. Default `"reject"`.
    #[serde(default)]
    pub when_all_down: WhenAllDown,
    /// How endpoints that are written as names are looked up.
    #[serde(default)]
    pub resolve: ResolveConfig,
    /// What is spoken with the endpoints. gRPC needs HTTP/2. Upgrades such as WebSocket use HTTP/1.1 where the endpoint may
    /// speak either. Default `"http1"`.
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

/// One endpoint as written: `"127.0.0.1:3001"`, or `{ address = "127.0.0.1:3001", weight = 2 }`.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    pub address: Located<String>,
    pub weight: Located<u16>,
}

/// An endpoint with its settings.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EndpointTable {
    /// Address and port. A name may resolve to several addresses; each of them then takes traffic by this weight.
    address: Located<String>,
    /// The share of the traffic, relative to the other endpoints of the upstream. 0 to 1000, default 1. 0 drains: no new
    /// requests, while those under way finish. At least one endpoint must have a weight above 0.
    #[serde(default = "weight")]
    #[schemars(range(min = 0, max = 1000))]
    weight: Located<u16>,
}

impl<'de> Deserialize<'de> for EndpointConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrTable;
        impl<'de> de::Visitor<'de> for TextOrTable {
            type Value = EndpointConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an address such as \"127.0.0.1:3001\", or a table such as { address = \"127.0.0.1:3001\", weight = 2 }",
                )
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<EndpointConfig, E> {
                Ok(EndpointConfig { address: Located::nowhere(text.to_owned()), weight: weight() })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<EndpointConfig, A::Error> {
                let EndpointTable { address, weight } = EndpointTable::deserialize(MapAccessDeserializer::new(map))?;
                Ok(EndpointConfig { address, weight })
            }
        }
        deserializer.deserialize_any(TextOrTable)
    }
}

impl JsonSchema for EndpointConfig {
    fn schema_name() -> Cow<'static, str> {
        "Endpoint".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let table = generator.subschema_for::<EndpointTable>();
        json_schema!({
            "description": "An endpoint: its address, or a table of address and weight.",
            "oneOf": [{ "type": "string", "description": "Address and port, with weight 1." }, table],
        })
    }
}

/// How an endpoint is chosen for a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn by weight, as evenly spread as the weights allow (smooth weighted round-robin, as nginx does it).
    #[default]
    RoundRobin,
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

/// An active health check. Write either `path` (HTTP) or `tcp = true`.
///
/// Each endpoint is checked on its own. A new endpoint takes traffic at once and is checked at once; until it has passed a
/// check for the first time, every single check decides, afterwards `rise` and `fall` do. Checks survive a reload that does
/// not change `path`, `tcp`, `expect` or `host`.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthConfig {
    /// Sends `GET` for this path over HTTP/1.1 on a connection of its own. Must start with `/`; may have a query.
    pub path: Option<Located<String>>,
    /// `true`: an endpoint is healthy if it accepts a connection.
    #[serde(default)]
    pub tcp: bool,
    /// The status codes that count as healthy: one such as `"200"`, or a range such as `"200-399"`. Default `"200-299"`.
    /// Only with `path`.
    pub expect: Option<Located<StatusRange>>,
    /// The `Host` header of the check. Default: the endpoint's address as written. Only with `path`.
    pub host: Option<Located<String>>,
    /// The time between two checks of an endpoint. Each wait is varied at random by up to 10 % either way, so that endpoints
    /// and gateways do not check in step. 10ms to 1h, default `"5s"`.
    #[serde(default = "health_interval")]
    pub interval: Located<Duration>,
    /// The longest that one check may take in total: connect, request and response. Must be shorter than `interval`. Default
    /// `"1s"`.
    #[serde(default = "one_second")]
    pub timeout: Located<Duration>,
    /// How many checks in a row must pass before an unhealthy endpoint is healthy again. 1 to 100, default 2.
    #[serde(default = "rise")]
    pub rise: Located<u8>,
    /// How many checks in a row must fail before a healthy endpoint is unhealthy. 1 to 100, default 3.
    #[serde(default = "fall")]
    pub fall: Located<u8>,
}

/// Timeouts of a request to an endpoint. `"0s"` is an error: there is no way to switch one off.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutsConfig {
    /// The longest that opening a connection may take. Default `"1s"`. Then another endpoint is tried, see `attempts`.
    pub connect: Located<Duration>,
    /// The longest silence while the response is read, not the whole of it. Default `"30s"`.
    pub read: Located<Duration>,
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
fn attempts() -> Located<u8> {
    Located::nowhere(2)
}
fn weight() -> Located<u16> {
    Located::nowhere(1)
}
fn health_interval() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(5))
}
fn one_second() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(1))
}
fn rise() -> Located<u8> {
    Located::nowhere(2)
}
fn fall() -> Located<u8> {
    Located::nowhere(3)
}

/// A range of status codes, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    pub first: u16,
    pub last: u16,
}

impl StatusRange {
    pub const SUCCESS: Self = StatusRange { first: 200, last: 299 };

    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl FromStr for StatusRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let why = || format!("`{text}` is not a status code from 200 to 599 such as \"200\", nor a range such as \"200-399\"");
        let code = |digits: &str| match digits.parse::<u16>() {
            Ok(code) if digits.len() == 3 && (200..=599).contains(&code) => Ok(code),
            _ => Err(why()),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = StatusRange { first: code(first)?, last: code(last)? };
        if range.first > range.last {
            return Err(format!("`{text}` runs backwards: did you mean {}-{}?", range.last, range.first));
        }
        Ok(range)
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for StatusRange {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "status".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "pattern": "^[2-5][0-9]{2}(-[2-5][0-9]{2})?$", "title": "status",
            "description": "A status code or a range of them: 200, 200-399"
        })
    }
}

impl UpstreamConfig {
    /// Reports what decoding cannot see. A config that passes without errors can be built.
    pub fn check(&self, name: &Located<String>, d: &mut Diagnostics) {
        self.check_endpoints(name, d);
        if let Some(health) = &self.health {
            health.value.check(health.span.clone(), d);
        }
        let TimeoutsConfig { connect, read, write, idle, request } = &self.timeouts;
        for timeout in [Some(connect), Some(read), Some(write), Some(idle), request.as_ref()].into_iter().flatten() {
            within(timeout, Duration::from_millis(1), Duration::from_secs(86_400), d);
        }
        within(&self.resolve.interval, Duration::from_secs(1), Duration::from_secs(86_400), d);
        within(&self.resolve.timeout, Duration::from_millis(1), Duration::from_secs(60), d);
        if !(1..=10_000).contains(&self.max_streams.value) {
            d.error(self.max_streams.span.clone(), format!("`max_streams` is {}", self.max_streams.value))
                .label("must be from 1 to 10000");
        }
        self.check_protocol(d);
        if !(1..=ATTEMPTS_MAX).contains(&usize::from(*self.attempts)) {
            d.error(self.attempts.span.clone(), format!("`attempts` is {}", self.attempts.value))
                .label(format!("must be from 1 to {ATTEMPTS_MAX}"));
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

    fn check_endpoints(&self, name: &Located<String>, d: &mut Diagnostics) {
        let list = &self.endpoints;
        if list.is_empty() {
            d.error(list.span.clone(), format!("upstream `{}` has no endpoints", name.value))
                .label("write at least one address")
                .help("for example: endpoints = [\"127.0.0.1:3001\"]");
            return;
        }
        if list.len() > ENDPOINTS_MAX {
            d.error(list.span.clone(), format!("upstream `{}` has {} endpoints", name.value, list.len()))
                .label(format!("at most {ENDPOINTS_MAX} are possible"));
        }
        let mut seen: HashMap<Address, Option<Span>> = HashMap::new();
        for endpoint in list.iter() {
            let span = endpoint.address.span.clone().or_else(|| endpoint.span.clone());
            match endpoint.address.parse::<Address>() {
                Err(why) => {
                    d.error(span, format!("`{}` is not the address of an endpoint", endpoint.address.value)).label(why);
                }
                Ok(address) => match seen.get(&address) {
                    Some(first) => {
                        let finding = d.error(span, format!("endpoint `{address}` stands twice in upstream `{}`", name.value));
                        finding.label("the second time").help("write it once, with a `weight`, to give it more traffic");
                        if let Some(first) = first.clone() {
                            finding.related(first, "the first time");
                        }
                    }
                    None => {
                        seen.insert(address, span);
                    }
                },
            }
            if *endpoint.weight > WEIGHT_MAX {
                let span = endpoint.weight.span.clone();
                d.error(span, format!("`weight` is {}", endpoint.weight.value)).label(format!("must be from 0 to {WEIGHT_MAX}"));
            }
        }
        if list.iter().all(|endpoint| *endpoint.weight == 0) {
            d.error(list.span.clone(), format!("every endpoint of upstream `{}` has weight 0", name.value))
                .label("no endpoint may take traffic")
                .help("give at least one endpoint a weight above 0");
        }
    }
}

impl HealthConfig {
    fn check(&self, span: Option<Span>, d: &mut Diagnostics) {
        match (&self.path, self.tcp) {
            (Some(_), true) => {
                d.error(span, "a health check has both `path` and `tcp`")
                    .label("one check has one kind")
                    .help("`path` checks over HTTP and opens a connection for it: leave `tcp` out");
            }
            (None, false) => {
                d.error(span, "a health check has neither `path` nor `tcp`")
                    .label("what shall be checked?")
                    .help("write `path = \"/health\"` or `tcp = true`");
            }
            (None, true) => {
                let expect = self.expect.as_ref().map(|expect| ("expect", &expect.span));
                let host = self.host.as_ref().map(|host| ("host", &host.span));
                for (key, span) in [expect, host].into_iter().flatten() {
                    d.error(span.clone(), format!("`{key}` has no meaning for a TCP check"))
                        .label("belongs to a check over HTTP")
                        .help("remove it, or write `path` in place of `tcp`");
                }
            }
            (Some(path), false) => {
                let valid = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
                if !valid || path.parse::<http::uri::PathAndQuery>().is_err() {
                    d.error(path.span.clone(), format!("`{}` is not a path", path.value.escape_debug()))
                        .label("must start with `/` and be percent-encoded ASCII without `#`");
                }
                if let Some(host) = &self.host
                    && (host.contains('@') || host.parse::<http::uri::Authority>().is_err())
                {
                    d.error(host.span.clone(), format!("`{}` is not a host", host.value.escape_debug()))
                        .label("must be a name or an address, with or without a port");
                }
            }
        }
        let interval_ok = within(&self.interval, Duration::from_millis(10), Duration::from_secs(3_600), d);
        let timeout_ok = within(&self.timeout, Duration::from_millis(1), Duration::from_secs(3_600), d);
        if interval_ok && timeout_ok && *self.timeout >= *self.interval {
            let at = self.timeout.span.clone().or_else(|| self.interval.span.clone());
            let (timeout, interval) = (self.timeout.value, self.interval.value);
            d.error(at, format!("a health check may take {timeout} but runs every {interval}"))
                .label("`timeout` must be shorter than `interval`");
        }
        for (key, count) in [("rise", &self.rise), ("fall", &self.fall)] {
            if !(1..=100).contains(&count.value) {
                d.error(count.span.clone(), format!("`{key}` is {}", count.value)).label("must be from 1 to 100");
            }
        }
    }
}

/// Reports a duration outside of its bounds; `true` if it is inside.
fn within(value: &Located<Duration>, least: Duration, most: Duration, d: &mut Diagnostics) -> bool {
    let inside = (least..=most).contains(&value.value);
    if !inside {
        let size = if value.value < least { "too short" } else { "too long" };
        d.error(value.span.clone(), format!("`{}` is {size}", value.value)).label(format!("must be from {least} to {most}"));
    }
    inside
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Severity;

    fn findings(text: &str) -> Vec<String> {
        let config: UpstreamConfig = toml::from_str(text).unwrap();
        let mut d = Diagnostics::default();
        config.check(&Located::nowhere("orders".to_owned()), &mut d);
        assert!(d.list.iter().all(|finding| finding.severity == Severity::Error && finding.primary.is_some()), "{:?}", d.list);
        d.list
            .iter()
            .map(|finding| {
                let (span, _) = finding.primary.as_ref().unwrap();
                format!("{} @ {}", finding.message, &text[span.range.clone()])
            })
            .collect()
    }

    #[test]
    fn one_line_is_a_whole_upstream() {
        let config: UpstreamConfig = toml::from_str(r#"endpoints = ["127.0.0.1:3001"]"#).unwrap();
        assert_eq!((*config.attempts, config.keepalive.connections, *config.endpoints[0].weight), (2, 256, 1));
        assert_eq!(config.timeouts.connect.value, Duration::from_secs(1));
        assert_eq!(config.when_all_down, WhenAllDown::Reject);
        assert!(config.health.is_none());
    }

    #[test]
    fn every_key_of_the_reference_is_understood() {
        let text = r#"
            endpoints = ["[::1]:3001", { address = "orders.internal:3002", weight = 2 }, { address = "127.0.0.1:1", weight = 0 }]
            balance = "round_robin"
            health = { path = "/health?deep=1", expect = "200-399", host = "o", interval = "5s", timeout = "1s",
                       rise = 2, fall = 3 }
            timeouts = { connect = "1s", read = "30s", write = "30s", idle = "60s", request = "5s" }
            keepalive = { connections = 0 }
            attempts = 3
            when_all_down = "try_all"
            resolve = { interval = "10s", timeout = "2s" }
        "#;
        assert_eq!(findings(text), [""; 0]);
        assert_eq!(findings("endpoints = ['127.0.0.1:1']\nhealth = { tcp = true }"), [""; 0]);
    }

    #[test]
    fn impossible_values_are_all_reported_where_they_stand() {
        let text = r#"
            endpoints = ["a:1", "b:0", { address = "A:1", weight = 1001 }]
            health = { path = "health", host = "a b", interval = "1s", timeout = "1s", rise = 0, fall = 101 }
            timeouts = { connect = "0s" }
            attempts = 11
            resolve = { interval = "10ms" }
        "#;
        assert_eq!(
            findings(text),
            [
                "`b:0` is not the address of an endpoint @ \"b:0\"",
                "endpoint `a:1` stands twice in upstream `orders` @ \"A:1\"",
                "`weight` is 1001 @ 1001",
                "`health` is not a path @ \"health\"",
                "`a b` is not a host @ \"a b\"",
                "a health check may take 1s but runs every 1s @ \"1s\"",
                "`rise` is 0 @ 0",
                "`fall` is 101 @ 101",
                "`0s` is too short @ \"0s\"",
                "`10ms` is too short @ \"10ms\"",
                "`attempts` is 11 @ 11",
            ]
        );
    }

    #[test]
    fn an_upstream_that_can_take_no_traffic_is_an_error() {
        assert_eq!(findings("endpoints = []"), ["upstream `orders` has no endpoints @ []"]);
        let drained = "endpoints = [{ address = 'a:1', weight = 0 }]";
        assert_eq!(findings(drained), ["every endpoint of upstream `orders` has weight 0 @ [{ address = 'a:1', weight = 0 }]"]);
    }

    #[test]
    fn a_health_check_has_one_kind() {
        let with = |health: &str| findings(&format!("endpoints = ['a:1']\nhealth = {health}"));
        assert_eq!(with("{}"), ["a health check has neither `path` nor `tcp` @ {}"]);
        assert_eq!(with("{ path = '/', tcp = true }").len(), 1);
        assert_eq!(with("{ tcp = true, expect = '200' }"), ["`expect` has no meaning for a TCP check @ '200'"]);
    }

    #[test]
    fn decoding_errors_point_into_the_endpoint() {
        let spans = |text: &str| {
            let error = toml::from_str::<UpstreamConfig>(text).unwrap_err();
            (error.message().to_owned(), text[error.span().unwrap()].to_owned())
        };
        let (message, at) = spans("endpoints = [{ address = 'a:1', wieght = 2 }]");
        assert_eq!((message.as_str(), at.as_str()), ("unknown field `wieght`, expected `address` or `weight`", "wieght"));
        let (message, at) = spans("endpoints = [7]");
        assert!(message.contains("expected an address such as"), "{message}");
        assert_eq!(at, "7");
        let (_, at) = spans("endpoints = [{ address = 'a:1', weight = -1 }]");
        assert_eq!(at, "-1");
    }

    #[test]
    fn status_ranges_have_one_spelling() {
        assert_eq!("200".parse(), Ok(StatusRange { first: 200, last: 200 }));
        assert_eq!("200-399".parse::<StatusRange>().map(|range| range.to_string()), Ok("200-399".to_owned()));
        for wrong in ["", "2xx", "100", "600", "200-", "-200", "200 - 299", "+200", "399-200"] {
            assert!(wrong.parse::<StatusRange>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_schema_takes_text_and_table() {
        let schema = serde_json::to_value(schemars::schema_for!(UpstreamConfig)).unwrap();
        assert_eq!(schema["$defs"]["Endpoint"]["oneOf"].as_array().map(Vec::len), Some(2));
    }
}
