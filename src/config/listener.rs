//! `[listeners.NAME]`.

use crate::diagnostic::Diagnostics;
use crate::tls::ListenerTlsConfig;
use crate::value::{Address, ByteSize, Cidr, Duration, Located, Rate};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;

/// An address that accepts connections, and what one connection may ask of the gateway.
///
/// Before anything is decided, the path of a request is brought into one form, which is the one that is routed, authorised, cached
/// and sent upstream: escapes of letters, digits and `-._~` are decoded and the digits of other escapes become upper case, `//`
/// becomes `/`, and `.` and `..` segments are resolved. A path that another reader could take for another one is answered with 400
/// `path_invalid`, and the connection is closed: with bytes that no URL may hold or `\`; with `%` that is no escape, `%2F`, `%5C`,
/// `%00` or another control character, bytes that are not UTF-8, or an escape that was escaped (`%252F`); with `;`; with `.` or `..`
/// that has a parameter or an encoded slash attached to it; with `..` beside an empty segment; and with more `..` than segments. The
/// reason is in the metric `gatewright_listener_malformed_requests_total` and in `error` of the access log. The query goes on as it
/// came, but for controls, spaces and `"<>#`, which no client sends as they are.
///
/// A request whose header could be read in two ways is answered with 400 and the connection is closed, before anything is sent
/// upstream; the reason, one of these words, is in the same two places. With `request_malformed`: bytes that end or hide lines
/// (`bare_lf`, `bare_cr`, `nul_byte`, `control_byte`, `empty_line`, `obs_fold`); a request line that is not a method in upper case, a
/// target and a version (`request_line`, `invalid_method`, `connect_method`, `invalid_target`, `illegal_target_byte`,
/// `invalid_version`); fields without a colon or with a name that is none (`missing_colon`, `empty_header_name`,
/// `space_before_colon`, `invalid_header_name`, `header_underscore`, `padded_header_value`); framing that is not one
/// `Content-Length` of digits or one `Transfer-Encoding: chunked` (`framing_whitespace`, `invalid_content_length`,
/// `duplicate_content_length`, `invalid_transfer_encoding`, `duplicate_transfer_encoding`, `transfer_encoding_on_http10`,
/// `content_length_and_transfer_encoding`); `Connection` that is no list or names a field that is not its to remove
/// (`invalid_connection`, `connection_nominates`); `Upgrade` that is no list, is not named by `Connection`, comes in HTTP/1.0, with a body
/// or with bytes behind it (`invalid_upgrade`, `upgrade_not_nominated`, `upgrade_on_http10`, `upgrade_with_body`,
/// `early_upgrade_bytes`); and another `Expect` than `100-continue` (`invalid_expect`). With `host_invalid`: `missing_host`,
/// `duplicate_host`, `invalid_host`, `host_mismatch` with an absolute target, and what is wrong with a host by itself (`host_...`).
/// Other answers have `uri_too_long` (414), `headers_too_large` and `too_many_headers` (431), and `version_not_supported` (505).
/// `header_timeout` (408) is a header that came too slowly. `http2_protocol` is a connection or a stream of HTTP/2 that broke the
/// protocol before it was a request, or a flood that ended its connection; streams that are reset by themselves, such as one whose body has
/// another length than it said, are not counted there.
///
/// A client of HTTP/1.0 gets no chunks: a body whose length nobody has said ends with the connection, and with a reset where it was
/// cut off, which a unix socket cannot tell from an end.
///
/// When descriptors run out, a listener waits 100 ms before it accepts again, so that clients wait in its queue; this is counted as
/// `accept_failed` in `gatewright_listener_connections_refused_total`, and logged. `max_connections`, here and for all listeners under
/// `[server]`, are there to come before that: each connection takes one descriptor, and one for the upstream while a request needs it. How
/// many there are is the limit of the process (`process_max_fds`), which what else it does shares, so that no number fits all.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// Where to listen: `127.0.0.1:8080`, `[::]:8080` or `unix:/path`. `0.0.0.0` is all of IPv4, `[::]` is IPv6 and IPv4 together.
    /// Port 0 takes a free one, which the log and `/status` name.
    pub address: Located<Address>,
    /// The largest request header in all, request line included, from 1KiB to 1MiB. A larger one is answered with 431
    /// `headers_too_large` and the connection is closed.
    #[serde(default = "max_header")]
    pub max_header: Located<ByteSize>,
    /// The most header fields of a request, 1 to 256. More are answered with 431 `headers_too_large`.
    #[serde(default = "max_headers")]
    #[schemars(range(min = 1, max = 256))]
    pub max_headers: Located<u32>,
    /// Whether header names may have an underscore. A request with one is answered with 400 `request_malformed` otherwise: many
    /// services read `x_user` and `x-user` as the same header, and get past what a filter has done with the other one. Default
    /// `false`.
    #[serde(default)]
    pub allow_underscores: bool,
    /// Whether a path may have `%2F`, for services that name things by it (`/projects/group%2Fname`). It stays as it is and never
    /// separates segments here. Only for services that do not decode it before they match: those see another path than the one
    /// that was authorised. Default `false`.
    #[serde(default)]
    pub allow_encoded_slash: bool,
    /// Whether a path may have `;` and what follows it in a segment, as matrix parameters do (`/map;zoom=3/tiles`). It is a part of
    /// the segment here. Servlet containers cut it off before they match: they see another path than the one that was authorised.
    /// Default `false`.
    #[serde(default)]
    pub allow_path_parameters: bool,
    /// The longest request target, from 64B to 64KiB. A longer one is answered with 414 `uri_too_long`.
    #[serde(default = "max_uri")]
    pub max_uri: Located<ByteSize>,
    /// How long a request header may take to arrive in all, from 100ms to 10m. Afterwards the answer is 408
    /// `request_timeout` and the connection is closed. Over HTTP/2 it is for the beginning of the connection; a header that never
    /// ends there counts for nothing, so that its connection ends as an idle one once nothing else is under way.
    #[serde(default = "header_timeout")]
    pub header_timeout: Located<Duration>,
    /// How long a request body may pause, from 100ms to 1h. Afterwards the answer is 408 `request_timeout` and the connection
    /// is closed. A client that waits for `100 Continue` does not pause; where the
    /// upstream speaks HTTP/2, the gateway says it once the request is on its way. Over HTTP/2 the stream is, and between two pieces of a body the upstream's `read` timeout runs as well.
    #[serde(default = "body_timeout")]
    pub body_timeout: Located<Duration>,
    /// The slowest that a request body may come on average, in bytes for each second; `"0B"` is without bound. All pauses of a
    /// body together may last `body_timeout` and the time that its bytes take at this rate; afterwards the same happens.
    /// Over HTTP/2 the time that the upstream takes for it counts as well, and gRPC streams are not bound. Default `"240B"`.
    #[serde(default = "min_rate")]
    pub min_body_rate: Located<ByteSize>,
    /// How long a client may take nothing of a response that waits for it, from 100ms to 1h. Afterwards the connection is
    /// closed, and counted. Default `"30s"`.
    #[serde(default = "write_timeout")]
    pub write_timeout: Located<Duration>,
    /// The slowest that a client may take a response on average, in bytes for each second; `"0B"` is without bound. All waits for it
    /// together may last `write_timeout` and the time that the bytes take at this rate; afterwards the connection is closed, and
    /// counted. Over HTTP/2 this is so for each stream, which is reset, and for the connection as a whole; each piece that the
    /// upstream sends, of at most 64 KiB, has to be taken within `write_timeout` besides. Default `"240B"`.
    #[serde(default = "min_rate")]
    pub min_write_rate: Located<ByteSize>,
    /// How long nothing may go through a WebSocket or another upgraded connection, in both directions together, from 1s to 1d.
    /// Afterwards it is closed, and counted. Default `"10m"`.
    #[serde(default = "tunnel_timeout")]
    pub tunnel_timeout: Located<Duration>,
    /// How long a connection may stay idle between two requests, from 0s to 1h; 0s closes it after each answer. Connections that are
    /// closed for this, for `keepalive_requests`, or because they never said anything within `header_timeout` are counted in
    /// `gatewright_listener_connections_closed_total`.
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
    /// The most requests that this listener takes, of all routes together, such as `"10_000/1s"`. A shield, not a contract: an
    /// estimate that can admit up to twice the number across the border of two intervals. More are answered with 429
    /// `rate_limited` before a route is looked for. Default: no such bound. `[limits] global` is the same for all listeners.
    pub max_requests: Option<Rate>,
    /// TLS with these certificates. Without it the listener is plain.
    pub tls: Option<Located<ListenerTlsConfig>>,
    /// `true`: HTTP/2 for clients that offer it in the TLS handshake, beside HTTP/1.1. `"cleartext"`: HTTP/2 without TLS for
    /// clients that begin with it (prior knowledge), beside HTTP/1, on a plain listener. Clients of HTTP/2 get no interim
    /// responses (1xx), so that their `Expect` is not passed on and nobody answers it, and the `Date` of each answer is that of its sending. Default `false`.
    #[serde(default = "http2")]
    pub http2: Located<Http2>,
    /// How many requests an HTTP/2 connection may have under way at once, 1 to 10000. A client that begins more has them
    /// refused. Default 100.
    #[serde(default = "http2_max_streams")]
    #[schemars(range(min = 1, max = 10_000))]
    pub http2_max_streams: Located<u32>,
    /// Answers every request with 308 and the same URL under `https://`; only for plain listeners. A request that a trusted
    /// proxy has got over https (`X-Forwarded-Proto`) goes its way. Default `false`.
    #[serde(default = "off")]
    pub redirect_to_https: Located<bool>,
    /// The port that `redirect_to_https` sends clients to. Default 443.
    #[serde(default = "https_port")]
    pub https_port: u16,
    /// Connections begin with a header of PROXY protocol, version 1 or 2, that names the client.
    pub proxy_protocol: Option<Located<ProxyProtocolConfig>>,
}

/// PROXY protocol on a listener.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyProtocolConfig {
    /// The load balancers that send the header, as addresses or networks. Their connections must begin with one, within
    /// `header_timeout`, or they are closed and counted; the address that it names is the client's everywhere. Connections
    /// from elsewhere have none: one that is sent is a malformed request.
    pub from: Located<Vec<Located<Cidr>>>,
}

/// Whether a listener speaks HTTP/2: `true`, `false` or `"cleartext"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Http2 {
    #[default]
    Off,
    On,
    Cleartext,
}

/// Written by hand: an untagged enum would lose the place and the reason of an error.
impl<'de> Deserialize<'de> for Http2 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BoolOrWord;
        impl Visitor<'_> for BoolOrWord {
            type Value = Http2;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or \"cleartext\"")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Http2, E> {
                Ok(if on { Http2::On } else { Http2::Off })
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Http2, E> {
                match word {
                    "cleartext" => Ok(Http2::Cleartext),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }
        }
        deserializer.deserialize_any(BoolOrWord)
    }
}

impl Serialize for Http2 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Http2::Off => serializer.serialize_bool(false),
            Http2::On => serializer.serialize_bool(true),
            Http2::Cleartext => serializer.serialize_str("cleartext"),
        }
    }
}

impl JsonSchema for Http2 {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "http2".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "title": "true, false or \"cleartext\"",
            "oneOf": [{ "type": "boolean" }, { "type": "string", "enum": ["cleartext"] }],
        })
    }
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
fn min_rate() -> Located<ByteSize> {
    Located::nowhere(ByteSize(240))
}
fn write_timeout() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(30))
}
fn tunnel_timeout() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(600))
}
fn http2() -> Located<Http2> {
    Located::nowhere(Http2::Off)
}
fn http2_max_streams() -> Located<u32> {
    Located::nowhere(100)
}
fn off() -> Located<bool> {
    Located::nowhere(false)
}
fn https_port() -> u16 {
    443
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
            allow_underscores: false,
            allow_encoded_slash: false,
            allow_path_parameters: false,
            max_uri: max_uri(),
            header_timeout: header_timeout(),
            body_timeout: body_timeout(),
            keepalive_timeout: keepalive_timeout(),
            keepalive_requests: keepalive_requests(),
            max_connections: max_connections(),
            max_connections_per_address: None,
            max_requests: None,
            min_body_rate: min_rate(),
            write_timeout: write_timeout(),
            min_write_rate: min_rate(),
            tunnel_timeout: tunnel_timeout(),
            tls: None,
            http2: http2(),
            http2_max_streams: http2_max_streams(),
            redirect_to_https: off(),
            https_port: https_port(),
            proxy_protocol: None,
        }
    }

    pub(super) fn check(&self, d: &mut Diagnostics) {
        self.max_header.within(ByteSize(1 << 10)..=ByteSize(1 << 20), d);
        self.max_headers.within(1..=256, d);
        self.max_uri.within(ByteSize(64)..=ByteSize(64 << 10), d);
        self.header_timeout.within(Duration::from_millis(100)..=Duration::from_secs(600), d);
        self.body_timeout.within(Duration::from_millis(100)..=Duration::from_secs(3600), d);
        self.keepalive_timeout.within(Duration::from_secs(0)..=Duration::from_secs(3600), d);
        self.max_connections.within(1..=10_000_000, d);
        if let Some(bound) = &self.max_connections_per_address {
            bound.within(1..=u32::MAX, d);
        }
        for rate in [&self.min_body_rate, &self.min_write_rate] {
            rate.within(ByteSize(0)..=ByteSize(1 << 30), d);
        }
        self.write_timeout.within(Duration::from_millis(100)..=Duration::from_secs(3600), d);
        self.tunnel_timeout.within(Duration::from_secs(1)..=Duration::from_secs(86_400), d);
        self.http2_max_streams.within(1..=10_000, d);
        self.check_protocols(d);
        if self.max_uri.value > self.max_header.value {
            d.error(self.max_uri.span.clone().or(self.max_header.span.clone()), "`max_uri` is larger than `max_header`")
                .label(format!("{} against {}", self.max_uri.value, self.max_header.value))
                .help("the request target is part of the header");
        }
    }

    fn check_protocols(&self, d: &mut Diagnostics) {
        if let Some(tls) = &self.tls {
            tls.check(d);
        }
        match (self.http2.value, &self.tls) {
            (Http2::On, None) => {
                d.error(self.http2.span.clone(), "`http2 = true` needs `tls`")
                    .label("HTTP/2 is agreed on in the TLS handshake")
                    .help("write http2 = \"cleartext\" for clients that speak it without TLS");
            }
            (Http2::Cleartext, Some(tls)) => {
                let found = d.error(self.http2.span.clone(), "this listener is not cleartext").help("write http2 = true");
                if let Some(span) = tls.span.clone() {
                    found.related(span, "it has TLS");
                }
            }
            _ => {}
        }
        if let (true, Some(tls)) = (self.redirect_to_https.value, &self.tls) {
            let found = d.error(self.redirect_to_https.span.clone(), "this listener is https already");
            if let Some(span) = tls.span.clone() {
                found.related(span, "it has TLS");
            }
        }
        if let Some(proxy) = &self.proxy_protocol {
            if proxy.from.is_empty() {
                d.error(proxy.from.span.clone(), "nobody may send PROXY headers")
                    .help("name the load balancers, for example from = [\"10.0.0.0/8\"]");
            }
            if let Address::Unix(_) = self.address.value {
                d.error(proxy.from.span.clone(), "PROXY protocol needs a TCP listener").label("unix sockets have no addresses");
            }
        }
    }
}
