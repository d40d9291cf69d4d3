//! What clients are told about their limits: `RateLimit-Policy` and `RateLimit` of
//! draft-ietf-httpapi-ratelimit-headers-11, and the `X-RateLimit-*` that came before it.

use crate::arena::with_arena;
use crate::limit::{Limit, Seen};
use bytes::BytesMut;
use http::{HeaderName, HeaderValue};
use pingora::http::ResponseHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use std::fmt::Write as _;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Which headers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Style {
    #[default]
    Standard,
    Legacy,
    Both,
    Off,
}

/// What of it is the same for every response.
pub struct Told {
    policy: Option<HeaderValue>,
}

impl Told {
    pub fn new(limits: &[Limit]) -> Self {
        let list: Vec<String> =
            limits.iter().map(|limit| format!("\"{}\";q={};w={}", limit.name, limit.number, limit.window_seconds())).collect();
        Told { policy: HeaderValue::try_from(list.join(", ")).ok() }
    }

    /// A header that cannot be written is left out: the answer itself matters more.
    pub fn write<'a>(
        &self,
        style: Style,
        limits: &[Limit],
        seen: impl Iterator<Item = &'a Seen> + Clone,
        head: &mut ResponseHeader,
    ) {
        let known = |seen: &&'a Seen| limits.get(usize::from(seen.limit)).map(|limit| (limit, seen.standing));
        if matches!(style, Style::Standard | Style::Both) {
            if let Some(policy) = &self.policy {
                let _ = head.append_header(POLICY, policy.clone());
            }
            let value = value(|out| {
                for (number, (limit, standing)) in seen.clone().filter_map(|seen| known(&seen)).enumerate() {
                    let comma = if number > 0 { ", " } else { "" };
                    let (r, t) = (standing.remaining, seconds(standing.more_in));
                    let _ = write!(out, "{comma}\"{}\";r={r};t={t}", limit.name);
                }
            });
            if let Some(value) = value {
                let _ = head.append_header(RATELIMIT, value);
            }
        }
        if matches!(style, Style::Legacy | Style::Both) {
            // They have room for one limit: the one that is nearest to its end.
            let tightest = seen.filter_map(|seen| known(&seen)).min_by_key(|(_, standing)| standing.remaining);
            let Some((limit, standing)) = tightest else { return };
            let number = |number: u64| HeaderValue::from(number);
            let _ = head.insert_header(X_LIMIT, number(limit.number));
            let _ = head.insert_header(X_REMAINING, number(standing.remaining));
            let _ = head.insert_header(X_RESET, number(seconds(standing.more_in)));
        }
    }
}

fn value(write: impl FnOnce(&mut BytesMut)) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(with_arena(write)).ok()
}

/// Rounded up, as `Retry-After` is: whoever waits so long is not early.
fn seconds(nanos: u64) -> u64 {
    nanos.div_ceil(1_000_000_000)
}
