//! What clients are told about their limits: `RateLimit-Policy` and `RateLimit` of
//! draft-ietf-httpapi-ratelimit-headers-11, and the `X-RateLimit-*` that came before it.

use crate::arena::with_arena;
use crate::fields::{self, Name};
use crate::limit::{Limit, Seen};
use crate::text::put_number;
use bytes::{BufMut, BytesMut};
use http::{HeaderName, HeaderValue};
use pingora::http::ResponseHeader;
use schemars::JsonSchema;
use serde::Deserialize;

static POLICY: Name = Name { name: HeaderName::from_static("ratelimit-policy"), spelled: "RateLimit-Policy" };
static RATELIMIT: Name = Name { name: HeaderName::from_static("ratelimit"), spelled: "RateLimit" };
static X_LIMIT: Name = Name { name: HeaderName::from_static("x-ratelimit-limit"), spelled: "X-RateLimit-Limit" };
static X_REMAINING: Name = Name { name: HeaderName::from_static("x-ratelimit-remaining"), spelled: "X-RateLimit-Remaining" };
static X_RESET: Name = Name { name: HeaderName::from_static("x-ratelimit-reset"), spelled: "X-RateLimit-Reset" };

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
    /// For each limit, `RateLimit` up to the number that is left.
    leads: Box<[Box<[u8]>]>,
}

impl Told {
    pub fn new(limits: &[Limit]) -> Self {
        let list: Vec<String> =
            limits.iter().map(|limit| format!("\"{}\";q={};w={}", limit.name, limit.number, limit.window_seconds())).collect();
        let leads = limits.iter().map(|limit| format!("\"{}\";r=", limit.name).into_bytes().into());
        Told { policy: HeaderValue::try_from(list.join(", ")).ok(), leads: leads.collect() }
    }

    /// A header that cannot be written is left out: the answer itself matters more.
    pub fn write<'a>(
        &self,
        style: Style,
        limits: &[Limit],
        seen: impl Iterator<Item = &'a Seen> + Clone,
        head: &mut ResponseHeader,
    ) {
        let known = |seen: &'a Seen| limits.get(usize::from(seen.limit)).map(|limit| (limit, seen.standing));
        fields::edit_response(head, |fields| {
            if matches!(style, Style::Standard | Style::Both) {
                if let Some(policy) = &self.policy {
                    fields.add(&POLICY, policy.clone());
                }
                // Without `std::fmt`, which costs more than the limit itself.
                let value = value(|out| {
                    let led = |seen: &'a Seen| self.leads.get(usize::from(seen.limit)).map(|lead| (lead, seen.standing));
                    for (number, (lead, standing)) in seen.clone().filter_map(led).enumerate() {
                        if number > 0 {
                            out.put_slice(b", ");
                        }
                        out.put_slice(lead);
                        put_number(out, standing.remaining);
                        out.put_slice(b";t=");
                        put_number(out, seconds(standing.more_in));
                    }
                });
                if let Some(value) = value {
                    fields.add(&RATELIMIT, value);
                }
            }
            if matches!(style, Style::Legacy | Style::Both) {
                // They have room for one limit: the one that is nearest to its end.
                let tightest = seen.filter_map(known).min_by_key(|(_, standing)| standing.remaining);
                let Some((limit, standing)) = tightest else { return };
                for (name, number) in
                    [(&X_LIMIT, limit.number), (&X_REMAINING, standing.remaining), (&X_RESET, seconds(standing.more_in))]
                {
                    if let Some(value) = value(|out| put_number(out, number)) {
                        fields.set(name, value);
                    }
                }
            }
        });
    }
}

fn value(write: impl FnOnce(&mut BytesMut)) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(with_arena(write)).ok()
}

/// Rounded up, as `Retry-After` is: whoever waits so long is not early.
fn seconds(nanos: u64) -> u64 {
    nanos.div_ceil(1_000_000_000)
}
