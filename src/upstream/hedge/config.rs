//! `hedge = { ... }` of an upstream.

use super::After;
use crate::diagnostic::Diagnostics;
use crate::value::{Duration, Located, Percent};
use schemars::JsonSchema;

/// Asks a second endpoint where the first one takes longer than most answers do, and passes on what comes first.
///
/// Only for `GET` and `HEAD` without a body, by whatever protocol. Each second request comes out of the budget of `retry`
/// and takes a place of `overload`; where there is none of either, it is not sent. What an endpoint does counts for itself: the
/// one that is late is read to the head of its answer, beside the path and 64 of them at once. For the breakers of upstream
/// and route a hedged request is one call. Hedged requests have connections of their own, up to `keepalive` for each endpoint
/// beside those of other requests; trailers of their answers are not passed on.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HedgeConfig {
    /// How long the first endpoint has. 1ms to 1h. Default: by `percentile`.
    pub after: Option<Located<Duration>>,
    /// The share of answers that came earlier than the delay, since the start, to about a factor of two; until there were
    /// 100 answers nothing is hedged. From 50% to 99.9%, default `"95%"`. Not together with `after`.
    pub percentile: Option<Located<Percent>>,
}

impl HedgeConfig {
    /// Reports what decoding cannot see.
    pub fn check(&self, sticky: bool, at: Option<crate::diagnostic::Span>, d: &mut Diagnostics) {
        if sticky {
            d.error(at, "`hedge` asks another endpoint, and `balance = { sticky = ... }` keeps to one")
                .help("remove one of the two; balance = { hash = ... } may move a request where that helps");
        }
        if let Some(after) = &self.after {
            after.within(Duration::from_millis(1)..=Duration::from_secs(3_600), d);
        }
        match (&self.after, &self.percentile) {
            (Some(_), Some(share)) => {
                d.error(share.span.clone(), "`hedge` has both `after` and `percentile`").label("one of them is enough");
            }
            (None, Some(share)) if !(500_000..=999_000).contains(&share.parts_per_million) => {
                d.error(share.span.clone(), format!("`{}` is not possible here", share.value)).label("must be from 50% to 99.9%");
            }
            _ => {}
        }
    }

    pub fn after(&self) -> After {
        match &self.after {
            Some(after) => After::Fixed(after.get()),
            None => {
                let share = self.percentile.as_ref().map_or(950_000, |share| share.parts_per_million);
                After::Percentile(share, std::time::Duration::from_millis(1))
            }
        }
    }
}
