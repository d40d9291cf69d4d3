//! `health`: how endpoints are asked whether they work.

use super::one_second;
use crate::diagnostic::{Diagnostics, Span};
use crate::value::{Duration, Located};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// An active health check. Write one of `path` (HTTP), `tcp = true` and `grpc`.
///
/// Each endpoint is checked on its own. A new endpoint takes traffic at once and is checked at once; until it has passed a
/// check for the first time, every single check decides, afterwards `rise` and `fall` do. Checks survive a reload that does
/// not change `path`, `tcp`, `grpc`, `port`, `expect` or `host`.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthConfig {
    /// Sends `GET` for this path over HTTP/1.1 on a connection of its own. Must start with `/`; may have a query.
    pub path: Option<Located<String>>,
    /// `true`: an endpoint is healthy if it accepts a connection.
    #[serde(default)]
    pub tcp: bool,
    /// Asks by the gRPC health checking protocol (`grpc.health.v1.Health/Check`) for the service of this name, `""` for the server as
    /// a whole. An endpoint is healthy if the answer is `SERVING`. HTTP/2, over TLS if the upstream has `tls`.
    pub grpc: Option<Located<String>>,
    /// The port that is asked, 1 to 65535. Default: that of the endpoint.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<Located<u16>>,
    /// The status codes that count as healthy: one such as `"200"`, or a range such as `"200-399"`. Default `"200-299"`.
    /// Only with `path`.
    pub expect: Option<Located<StatusRange>>,
    /// The `Host` header of the check, for gRPC the `:authority`. Default: the endpoint's address as written. Not with `tcp`.
    pub host: Option<Located<String>>,
    /// The time between two checks of an endpoint. Each wait is varied at random by up to 10 % either way, so that endpoints
    /// and gateways do not check in step. 10ms to 1h, default `"5s"`.
    #[serde(default = "health_interval")]
    pub interval: Located<Duration>,
    /// The longest that one check may take in total: connect, request and response. Must be shorter than `interval`. Default
    /// `"1s"`, or half of `interval` where that is shorter.
    pub timeout: Option<Located<Duration>>,
    /// How many checks in a row must pass before an unhealthy endpoint is healthy again. 1 to 100, default 2.
    #[serde(default = "rise")]
    pub rise: Located<u8>,
    /// How many checks in a row must fail before a healthy endpoint is unhealthy. 1 to 100, default 3.
    #[serde(default = "fall")]
    pub fall: Located<u8>,
}

fn health_interval() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(5))
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

impl HealthConfig {
    /// As it is written, or what fits the interval.
    pub fn timeout(&self) -> Duration {
        let fits = || one_second().value.min(Duration(self.interval.get() / 2));
        self.timeout.as_ref().map_or_else(fits, |timeout| timeout.value)
    }

    /// What is asked over HTTP or gRPC.
    fn check_question(&self, d: &mut Diagnostics) {
        if let Some(path) = &self.path {
            let valid = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
            if !valid || path.parse::<http::uri::PathAndQuery>().is_err() {
                d.error(path.span.clone(), format!("`{}` is not a path", path.value.escape_debug()))
                    .label("must start with `/` and be percent-encoded ASCII without `#`");
            }
        }
        if let Some(service) = self.grpc.as_ref().filter(|service| service.len() > 255 || !service.is_ascii()) {
            d.error(service.span.clone(), "this is not the name of a gRPC service")
                .label("must be ASCII of at most 255 characters");
        }
        if let (Some(_), Some(expect)) = (&self.grpc, &self.expect) {
            d.error(expect.span.clone(), "`expect` has no meaning for a gRPC check").label("the answer must be SERVING");
        }
        if let Some(host) = &self.host
            && (host.contains('@') || host.parse::<http::uri::Authority>().is_err())
        {
            d.error(host.span.clone(), format!("`{}` is not a host", host.value.escape_debug()))
                .label("must be a name or an address, with or without a port");
        }
    }

    pub(super) fn check(&self, span: Option<Span>, d: &mut Diagnostics) {
        if self.port.as_ref().is_some_and(|port| port.value == 0) {
            d.error(self.port.as_ref().and_then(|port| port.span.clone()), "port 0 cannot be connected to");
        }
        let kinds = [("path", self.path.is_some()), ("tcp", self.tcp), ("grpc", self.grpc.is_some())];
        let kinds: Vec<&str> = kinds.iter().filter(|(_, written)| *written).map(|(kind, _)| *kind).collect();
        match kinds.as_slice() {
            [first, second, ..] => {
                d.error(span, format!("a health check has both `{first}` and `{second}`"))
                    .label("one check has one kind")
                    .help("HTTP and gRPC open a connection for their question: leave the others out");
            }
            ["tcp"] => {
                let expect = self.expect.as_ref().map(|expect| ("expect", &expect.span));
                let host = self.host.as_ref().map(|host| ("host", &host.span));
                for (key, span) in [expect, host].into_iter().flatten() {
                    d.error(span.clone(), format!("`{key}` has no meaning for a TCP check"))
                        .label("belongs to a check over HTTP")
                        .help("remove it, or write `path` in place of `tcp`");
                }
            }
            [] => {
                d.error(span, "a health check has neither `path` nor `tcp` nor `grpc`")
                    .label("what shall be checked?")
                    .help("write `path = \"/health\"`, `tcp = true` or `grpc = \"\"`");
            }
            _ => self.check_question(d),
        }
        let interval_ok = self.interval.within(Duration::from_millis(10)..=Duration::from_secs(3_600), d);
        if let Some(timeout) = &self.timeout
            && timeout.within(Duration::from_millis(1)..=Duration::from_secs(3_600), d)
            && interval_ok
            && timeout.value >= self.interval.value
        {
            let message = format!("a health check may take {} but runs every {}", timeout.value, self.interval.value);
            d.error(timeout.span.clone(), message).label("`timeout` must be shorter than `interval`");
        }
        for (key, count) in [("rise", &self.rise), ("fall", &self.fall)] {
            if !(1..=100).contains(&count.value) {
                d.error(count.span.clone(), format!("`{key}` is {}", count.value)).label("must be from 1 to 100");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_fits_the_interval_unless_it_is_written() {
        let timeout = |text: &str| toml::from_str::<HealthConfig>(text).unwrap().timeout();
        assert_eq!(timeout("tcp = true"), Duration::from_secs(1));
        assert_eq!(timeout("tcp = true\ninterval = \"1s\""), Duration::from_millis(500));
        assert_eq!(timeout("tcp = true\ninterval = \"2s\""), Duration::from_secs(1));
        assert_eq!(timeout("tcp = true\ninterval = \"1s\"\ntimeout = \"900ms\""), Duration::from_millis(900));
    }
}
