//! `[server]`.

use crate::diagnostic::Diagnostics;
use crate::forwarded::{ClientHeader, ForwardedHeaders};
use crate::identity::IdentityHeaders;
use crate::value::{ByteSize, Cidr, Duration, Located};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What services behind gateways are known to take identities from.
const IDENTITY_HEADERS: &[&str] =
    &["x-consumer-*", "x-credential-*", "x-user-*", "x-auth-request-*", "x-authenticated-*", "x-remote-user", "remote-user"];

/// The process: threads, stopping, and what holds for all listeners and routes.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Worker threads, 1 to 1024. Without it, one for each processor that the process may use. A change takes effect at the
    /// next start.
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<Located<u32>>,
    /// Whether an idle worker takes over requests of a busy one. With `false` a connection stays with the worker that had the fewest
    /// when it came, as in nginx or Envoy, which saves about an eighth of the CPU time of requests that go upstream. `true`
    /// is worth it where very few connections carry nearly all of the traffic, or where nearly all answers come from the cache, which
    /// then cost a tenth less while cores are idle. A change takes effect at the next start.
    pub work_stealing: bool,
    /// The longest that a stop waits for requests under way, from 0s to 1h. Those that are left then are cut off. After an
    /// upgrade it is how long the process that was replaced waits for its connections, idle ones included, and after a reload how
    /// long those of a listener that was removed may stay until their next request.
    pub grace_period: Located<Duration>,
    /// How long a stop goes on accepting after readiness went off, from 0s to 10m. Set it to the time that the load balancer
    /// in front needs to notice; without one there is nothing to wait for.
    pub drain_delay: Located<Duration>,
    /// How long the old process of an upgrade serves on beside the new one, from 0s to 30s. A new one that dies in this time is
    /// done without: nobody is told of it, and the old one goes on as before. Afterwards it has the sockets alone, and the
    /// service manager is told.
    pub upgrade_probation: Located<Duration>,
    /// Networks of the proxies in front whose `X-Forwarded-*`, `Forwarded` and `X-Request-Id` headers are believed. Headers
    /// from any other peer are replaced.
    pub trusted_proxies: Vec<Located<Cidr>>,
    /// Where a trusted proxy says who the client is: `"any"` reads `X-Forwarded-For` where there is one, else `Forwarded`;
    /// name the one that your proxies write if it is always the same.
    pub client_from: ClientFrom,
    /// What the upstream is told about the client: `"x_forwarded"` writes `X-Forwarded-For`, `-Proto` and `-Host`,
    /// `"forwarded"` writes `Forwarded` (RFC 7239), `"both"` writes all of them. What is not written is removed.
    pub forwarded: ForwardedStyle,
    /// How names of headers are passed on: `"lower"` as HTTP/2 has them (a few common ones, such as `Host`, with capitals to
    /// HTTP/1), or `"preserve"` as they were spelled, for services and clients that care although names have no case (RFC 9110
    /// section 5.1). Keeping the spelling costs CPU for each header.
    pub header_case: HeaderCase,
    /// How many client connections may be open on all listeners together, 1 to 10000000. Further ones are closed as soon as they
    /// are accepted, and counted. Each listener has its own `max_connections` besides. Default: no such bound, because the number
    /// that fits is a matter of the descriptors that the process may have and of what its upstreams take of them.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_connections: Option<Located<u32>>,
    /// More files to read, as patterns relative to this file: `["conf.d/*.toml"]`. Files are merged; a name that is defined
    /// twice is an error. Included files may include others, to a depth of 8.
    pub include: Vec<Located<String>>,
    /// Reload when one of the files changes, keys, secrets and certificates that they name included, or when one comes or goes that
    /// `include` matches. A file that is not valid leaves everything as it is.
    pub watch: bool,
    /// Idle connections to upstreams that are kept for later requests, in all, 1 to 1000000. Beyond it the one that was idle
    /// longest is closed. A change takes effect at the next start.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub upstream_keepalive: Located<u32>,
    /// The largest request body, for routes that do not say. A larger one is answered with 413 `body_too_large`.
    pub max_body: ByteSize,
    /// Header fields by which services may take who calls from this gateway: a client's copies are removed before anything
    /// else sees them, from trusted proxies too. Names, or beginnings of names with a `*` at the end; `_` and `-` are the same,
    /// because many services read them so. `X-Consumer-Name`, `-Roles`, `-Tier` and `X-Credential-Id`, which the gateway writes
    /// for a request whose consumer is known, are removed in any case. At most 64.
    pub identity_headers: Vec<Located<String>>,
    /// The name of this gateway in `Via` headers (RFC 9110 section 7.6.3): up to 64 letters, digits and `-_.`.
    pub via: Located<String>,
}

/// Where the client's address is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ClientFrom {
    #[default]
    Any,
    XForwardedFor,
    Forwarded,
}

impl From<ClientFrom> for ClientHeader {
    fn from(from: ClientFrom) -> Self {
        match from {
            ClientFrom::Any => ClientHeader::Any,
            ClientFrom::XForwardedFor => ClientHeader::XForwardedFor,
            ClientFrom::Forwarded => ClientHeader::Forwarded,
        }
    }
}

/// How names of headers are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum HeaderCase {
    #[default]
    Lower,
    Preserve,
}

/// Which headers the upstream gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ForwardedStyle {
    #[default]
    XForwarded,
    Forwarded,
    Both,
}

impl From<ForwardedStyle> for ForwardedHeaders {
    fn from(style: ForwardedStyle) -> Self {
        ForwardedHeaders { x_forwarded: style != ForwardedStyle::Forwarded, forwarded: style != ForwardedStyle::XForwarded }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            threads: None,
            work_stealing: false,
            grace_period: Located::nowhere(Duration::from_secs(30)),
            drain_delay: Located::nowhere(Duration::from_secs(0)),
            upgrade_probation: Located::nowhere(Duration::from_secs(2)),
            trusted_proxies: Vec::new(),
            client_from: ClientFrom::default(),
            forwarded: ForwardedStyle::default(),
            header_case: HeaderCase::default(),
            max_connections: None,
            include: Vec::new(),
            watch: false,
            upstream_keepalive: Located::nowhere(1024),
            max_body: ByteSize(10 << 20),
            identity_headers: IDENTITY_HEADERS.iter().map(|name| Located::nowhere((*name).to_owned())).collect(),
            via: Located::nowhere("gatewright".to_owned()),
        }
    }
}

impl ServerConfig {
    pub(super) fn check(&self, d: &mut Diagnostics) {
        if let Some(threads) = &self.threads {
            threads.within(1..=1024, d);
        }
        self.grace_period.within(Duration::from_secs(0)..=Duration::from_secs(3600), d);
        self.drain_delay.within(Duration::from_secs(0)..=Duration::from_secs(600), d);
        self.upgrade_probation.within(Duration::from_secs(0)..=Duration::from_secs(30), d);
        if let Some(most) = &self.max_connections {
            most.within(1..=10_000_000, d);
        }
        self.upstream_keepalive.within(1..=1_000_000, d);
        for name in IdentityHeaders::wrong(&self.identity_headers) {
            d.error(name.span.clone(), format!("`{}` cannot be an identity header", name.value))
                .help("write a name such as `x-user-id`, or the beginning of names such as `x-user-*`");
        }
        if self.identity_headers.len() > 64 {
            d.error(self.identity_headers.last().and_then(|name| name.span.clone()), "the most identity headers are 64");
        }
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if self.via.is_empty() || self.via.len() > 64 || !self.via.bytes().all(known) {
            d.error(self.via.span.clone(), format!("`{}` cannot stand in a Via header", self.via.value))
                .help("use up to 64 letters, digits, `-`, `_` and `.`");
        }
    }
}
