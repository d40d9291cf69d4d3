//! `split`, `fallback` and `mirror` of a route: upstreams besides the one that it names.

use crate::diagnostic::Diagnostics;
use crate::upstream::balance::By;
use crate::upstream::balance::config::check_cookie;
use crate::value::{ByteSize, Duration, Located, Percent};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The most parts of a split.
pub const PARTS_MAX: usize = 16;

/// Sends parts of the requests elsewhere, such as to a new version; the rest goes to the route's `upstream`. A part whose upstream
/// has no endpoint left leaves its requests to the rest. Where the route has a `cache`, each part has stored answers of its own.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SplitConfig {
    /// The parts, 1 to 16. A request that asks for one by header or cookie goes to the first such one; others are drawn.
    #[schemars(length(min = 1, max = 16))]
    pub to: Located<Vec<Located<PartConfig>>>,
    /// How a client keeps its draw: raising a share then moves clients one way only. Default: each request draws anew.
    pub keep: Option<KeepConfig>,
}

/// One part of a split.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartConfig {
    /// The upstream that it goes to.
    pub upstream: Located<String>,
    /// Its share of the requests that ask for no part. The shares of all parts are at most 100% together. Default: none.
    pub share: Option<Percent>,
    /// Requests with one of these headers go to it, name to value; `"*"` is any value. Default: none.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Requests with one of these cookies go to it, name to value; `"*"` is any value. Default: none.
    #[serde(default)]
    pub cookies: BTreeMap<String, String>,
}

/// How a client keeps its draw. Exactly one of these.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeepConfig {
    /// By a fact of the request, as in `balance = { hash = ... }`; requests without it draw anew.
    By(Vec<Located<By>>),
    /// By a cookie that holds the number drawn. It is not signed: a client may choose its part.
    Cookie(KeepCookie),
}

/// The cookie of a split.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeepCookie {
    /// Its name. Splits with the same name of a cookie share the draw.
    pub name: Located<String>,
    /// How long a browser keeps it. 1s to 400d, default `"30d"`.
    #[serde(default = "thirty_days")]
    pub max_age: Located<Duration>,
}

/// Sends copies of requests to another upstream and throws its answers away. The main path never waits for that: what cannot be
/// queued (1,024 copies of all routes together, 64MiB of bodies) is dropped, and counted by `gatewright_mirror_requests_total`. At most
/// 128 copies are under way. Upgrades are not copied.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MirrorConfig {
    /// The upstream that gets the copies, by its `protocol`, without trailers.
    pub upstream: Located<String>,
    /// The share of the requests that is copied. Default `"100%"`.
    #[serde(default = "all")]
    pub share: Percent,
    /// The largest body that is copied, up to 1MiB; requests with a larger one are not. Default `"64KiB"`.
    #[serde(default = "max_body")]
    pub max_body: Located<ByteSize>,
    /// How long a copy may take in total. 10ms to 1m, default `"5s"`.
    #[serde(default = "five_seconds")]
    pub timeout: Located<Duration>,
}

fn thirty_days() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(30 * 86_400))
}
fn all() -> Percent {
    Percent { parts_per_million: 1_000_000 }
}
fn max_body() -> Located<ByteSize> {
    Located::nowhere(ByteSize(64 << 10))
}
fn five_seconds() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(5))
}

impl SplitConfig {
    pub(super) fn check(&self, d: &mut Diagnostics) {
        if !(1..=PARTS_MAX).contains(&self.to.len()) {
            d.error(self.to.span.clone(), format!("a split cannot have {} parts", self.to.len())).label("write 1 to 16 of them");
        }
        for part in self.to.iter() {
            if part.share.is_none() && part.headers.is_empty() && part.cookies.is_empty() {
                d.error(part.span.clone(), "no request goes to this part").help("give it a `share`, `headers` or `cookies`");
            }
            if let Some(name) = part.headers.keys().find(|name| name.parse::<http::HeaderName>().is_err()) {
                d.error(part.span.clone(), format!("`{}` is not the name of a header", name.escape_debug()));
            }
            for name in part.cookies.keys() {
                check_cookie(&Located { value: name.clone(), span: part.span.clone() }, d);
            }
        }
        let shares = self.to.iter().filter_map(|part| part.share);
        let sum: u64 = shares.map(|share| u64::from(share.parts_per_million)).sum();
        if sum > 1_000_000 {
            d.error(self.to.span.clone(), "the shares are more than 100% together").label("the rest would be less than nothing");
        }
        match &self.keep {
            Some(KeepConfig::By(by)) if by.is_empty() || by.len() > 8 => {
                d.error(self.to.span.clone(), format!("a draw cannot be kept by {} facts", by.len()))
                    .help("write 1 to 8 of them");
            }
            Some(KeepConfig::Cookie(cookie)) => {
                check_cookie(&cookie.name, d);
                let most = Duration::from_secs(400 * 86_400);
                cookie.max_age.within(Duration::from_secs(1)..=most, d);
            }
            _ => {}
        }
    }
}

impl MirrorConfig {
    pub(super) fn check(&self, d: &mut Diagnostics) {
        self.max_body.within(ByteSize(0)..=ByteSize(1 << 20), d);
        self.timeout.within(Duration::from_millis(10)..=Duration::from_secs(60), d);
    }
}
