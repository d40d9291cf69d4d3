//! `balance`: how an endpoint is chosen, as written.

use super::key::By;
use crate::diagnostic::Diagnostics;
use crate::value::{Duration, Located, SecretSource};
use schemars::JsonSchema;

/// How an endpoint is chosen for a request. Of endpoints with a `weight`, each gets its share.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn by weight, as evenly spread as the weights allow (smooth weighted round-robin, as nginx does it).
    #[default]
    RoundRobin,
    /// The one with the fewest requests under way for its weight: of all endpoints if there are at most 16, else of 16 that move
    /// on with each request.
    LeastRequests,
    /// The better of two drawn at random: the one whose requests under way, multiplied by its latest latency, are fewer (peak
    /// EWMA). Finds slow endpoints by itself; a failure counts as an answer after at least 1s.
    PeakEwma,
    /// Any of them.
    Random,
    /// The same one for the same key, as long as it is there: consistent hashing (ketama) with bounded load. Gateways with the same
    /// endpoints choose the same one.
    Hash(HashConfig),
    /// The one that a cookie names, which the gateway sets with the first answer. Requests without a valid one are spread in turn.
    Sticky(StickyConfig),
}

/// Consistent hashing. Slow start does not apply, because keys belong to their endpoints.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HashConfig {
    /// What makes the key: `"header:NAME"`, `"cookie:NAME"`, `"query:NAME"`, `"address"` (the client's) or `"consumer"`. Of a list
    /// of up to 8 the first that the request has is taken. A request that has none is spread in turn.
    #[schemars(length(min = 1, max = 8))]
    pub by: Located<Vec<Located<By>>>,
    /// The most requests under way that an endpoint may have, in percent of the average of all; beyond it the next endpoint
    /// on the ring takes the request. 101 to 10000, default 125. The larger it is, the more one popular key can weigh on one
    /// endpoint.
    #[serde(default = "max_load")]
    #[schemars(range(min = 101, max = 10_000))]
    pub max_load: Located<u16>,
}

/// A cookie that names an endpoint. Its value is a signature of the endpoint's address and tells nobody which that is.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StickyConfig {
    /// The name of the cookie. Default: `gatewright_endpoint_` and the name of the upstream. Upstreams that one client talks to need
    /// names of their own, or each takes the client's cookie for the other away.
    #[serde(default)]
    pub cookie: Option<Located<String>>,
    /// What the value is signed with, at least 16 bytes. Gateways with the same secret know each other's cookies; another one makes
    /// the old ones invalid.
    pub secret: Located<SecretSource>,
    /// How long a browser keeps it. 1s to 400d. Default: until it is closed.
    pub max_age: Option<Located<Duration>>,
    /// To which sites a browser sends it. Default `"lax"`.
    #[serde(default)]
    pub same_site: SameSite,
}

/// The attribute `SameSite` of a cookie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SameSite {
    Strict,
    #[default]
    Lax,
    /// Browsers take it over https only.
    None,
}

impl SameSite {
    pub const fn as_str(self) -> &'static str {
        match self {
            SameSite::Strict => "Strict",
            SameSite::Lax => "Lax",
            SameSite::None => "None",
        }
    }
}

fn max_load() -> Located<u16> {
    Located::nowhere(125)
}

impl Balance {
    pub(in crate::upstream) fn check(&self, d: &mut Diagnostics) {
        match self {
            Balance::Hash(hash) => {
                if !(1..=8).contains(&hash.by.len()) {
                    d.error(hash.by.span.clone(), format!("a key cannot be made of {} facts", hash.by.len()))
                        .label("write 1 to 8 of them")
                        .help("for example: by = [\"header:x-user\"]");
                }
                if !(101..=10_000).contains(&hash.max_load.value) {
                    d.error(hash.max_load.span.clone(), format!("`max_load` is {}", hash.max_load.value))
                        .label("must be from 101 to 10000 percent");
                }
            }
            Balance::Sticky(sticky) => {
                if let Some(cookie) = &sticky.cookie {
                    check_cookie(cookie, d);
                }
                if let Some(age) = &sticky.max_age {
                    age.within(Duration::from_secs(1)..=Duration::from_secs(400 * 86_400), d);
                }
            }
            _ => {}
        }
    }
}

/// RFC 6265 §4.1.1: the name of a cookie is a token.
pub fn check_cookie(name: &Located<String>, d: &mut Diagnostics) {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(token) {
        d.error(name.span.clone(), format!("`{}` cannot be the name of a cookie", name.value.escape_debug()))
            .help("use up to 64 letters, digits and `_-.`");
    }
}
