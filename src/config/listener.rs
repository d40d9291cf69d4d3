//! `[listeners.NAME]`.

use crate::diagnostic::Diagnostics;
use crate::value::{Address, ByteSize, Duration, Located};
use schemars::JsonSchema;
use serde::Deserialize;

/// An address that accepts connections, and what one connection may ask of the gateway.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// Where to listen: `127.0.0.1:8080`, `[::]:8080` or `unix:/path`. Port 0 takes a free one, which the log and
    /// `/status` name.
    pub address: Located<Address>,
    /// The largest request header in all, request line included, from 1KiB to 1MiB. A larger one is answered with 431
    /// `headers_too_large` and the connection is closed.
    #[serde(default = "max_header")]
    pub max_header: Located<ByteSize>,
    /// The most header fields of a request, 1 to 256. More are answered with 431 `headers_too_large`.
    #[serde(default = "max_headers")]
    #[schemars(range(min = 1, max = 256))]
    pub max_headers: Located<u32>,
    /// The longest request target, from 64B to 64KiB. A longer one is answered with 414 `uri_too_long`.
    #[serde(default = "max_uri")]
    pub max_uri: Located<ByteSize>,
    /// How long a request header may take to arrive in all, from 100ms to 10m. Afterwards the answer is 408
    /// `request_timeout` and the connection is closed.
    #[serde(default = "header_timeout")]
    pub header_timeout: Located<Duration>,
    /// How long a request body may pause, from 100ms to 1h. Afterwards the answer is 408 `request_timeout` and the connection
    /// is closed.
    #[serde(default = "body_timeout")]
    pub body_timeout: Located<Duration>,
    /// How long a connection may stay idle between two requests, from 0s to 1h; 0s closes it after each answer.
    #[serde(default = "keepalive_timeout")]
    pub keepalive_timeout: Located<Duration>,
    /// How many requests one connection may carry before it is closed; 0 is without bound.
    #[serde(default = "keepalive_requests")]
    pub keepalive_requests: u32,
    /// How many connections may be open, 1 to 10000000. Further ones are closed as soon as they are accepted, and counted.
    #[serde(default = "max_connections")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_connections: Located<u32>,
    /// How many connections one client address may have open, 1 or more; without it there is no such bound. Further ones are
    /// closed as soon as they are accepted, and counted.
    #[schemars(range(min = 1))]
    pub max_connections_per_address: Option<Located<u32>>,
}

fn max_header() -> Located<ByteSize> {
    Located::nowhere(ByteSize(32 << 10))
}
fn max_headers() -> Located<u32> {
    Located::nowhere(100)
}
fn max_uri() -> Located<ByteSize> {
    Located::nowhere(ByteSize(8 << 10))
}
fn header_timeout() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(10))
}
fn body_timeout() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(30))
}
fn keepalive_timeout() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(75))
}
fn keepalive_requests() -> u32 {
    10_000
}
fn max_connections() -> Located<u32> {
    Located::nowhere(50_000)
}

impl ListenerConfig {
    /// A listener that says nothing but its address.
    pub fn at(address: Address) -> Self {
        ListenerConfig {
            address: Located::nowhere(address),
            max_header: max_header(),
            max_headers: max_headers(),
            max_uri: max_uri(),
            header_timeout: header_timeout(),
            body_timeout: body_timeout(),
            keepalive_timeout: keepalive_timeout(),
            keepalive_requests: keepalive_requests(),
            max_connections: max_connections(),
            max_connections_per_address: None,
        }
    }

    pub(super) fn check(&self, d: &mut Diagnostics) {
        use super::validate::within;
        within(&self.max_header, ByteSize(1 << 10)..=ByteSize(1 << 20), d);
        within(&self.max_headers, 1..=256, d);
        within(&self.max_uri, ByteSize(64)..=ByteSize(64 << 10), d);
        within(&self.header_timeout, Duration::from_millis(100)..=Duration::from_secs(600), d);
        within(&self.body_timeout, Duration::from_millis(100)..=Duration::from_secs(3600), d);
        within(&self.keepalive_timeout, Duration::from_secs(0)..=Duration::from_secs(3600), d);
        within(&self.max_connections, 1..=10_000_000, d);
        if let Some(bound) = &self.max_connections_per_address {
            within(bound, 1..=u32::MAX, d);
        }
        if self.max_uri.value > self.max_header.value {
            d.error(self.max_uri.span.clone().or(self.max_header.span.clone()), "`max_uri` is larger than `max_header`")
                .label(format!("{} against {}", self.max_uri.value, self.max_header.value))
                .help("the request target is part of the header");
        }
    }
}
