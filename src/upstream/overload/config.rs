//! `overload = { ... }` of an upstream.

use super::Tuning;
use crate::diagnostic::Diagnostics;
use crate::upstream::breaker::number;
use crate::value::{Located, Percent};
use schemars::JsonSchema;

/// Bounds how many requests the upstream works on at once, by what it can take: the limit follows the latency of its
/// answers (a gradient between that of the unloaded service and that of the last tenth of a second). A request beyond it is
/// refused at once with 503 `upstream_overloaded`, so that those within it are answered in time.
///
/// Where tiers have a `priority`, each lower one may fill a smaller part of the limit, and so is shed first. Upgraded
/// connections such as WebSocket do not count.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OverloadConfig {
    /// The limit is never below this. 1 to 1000000, default 4.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min: Located<u32>,
    /// The limit is never above this. 1 to 1000000, default 1000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max: Located<u32>,
    /// The limit after a start, before anything is known. From `min` to `max`. Default 50, or what of them is nearer.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub initial: Option<Located<u32>>,
    /// How much slower than those of the unloaded service answers may become before the limit shrinks, as a share of that
    /// latency. From 10%, default `"50%"`. More of it lets more requests queue in the upstream.
    pub slack: Located<Percent>,
}

impl Default for OverloadConfig {
    fn default() -> Self {
        OverloadConfig {
            min: Located::nowhere(4),
            max: Located::nowhere(1000),
            initial: None,
            slack: Located::nowhere(Percent { parts_per_million: 500_000 }),
        }
    }
}

impl OverloadConfig {
    /// Reports what decoding cannot see.
    pub fn check(&self, d: &mut Diagnostics) {
        number("min", &self.min, 1..=1_000_000, d);
        number("max", &self.max, 1..=1_000_000, d);
        if *self.min > *self.max {
            let at = self.min.span.clone().or_else(|| self.max.span.clone());
            d.error(at, format!("`min` is {} and `max` is {}", self.min.value, self.max.value))
                .label("`min` may not be above `max`");
        } else if let Some(initial) = &self.initial {
            number("initial", initial, *self.min..=*self.max, d);
        }
        if self.slack.parts_per_million < 100_000 {
            d.error(self.slack.span.clone(), format!("`{}` is too little", self.slack.value))
                .label("must be from 10% to 100%: latency varies by as much on its own");
        }
    }

    pub fn tuning(&self) -> Tuning {
        let (min, max) = (*self.min, (*self.max).max(*self.min));
        let initial = self.initial.as_ref().map_or(50, |initial| initial.value).clamp(min, max);
        Tuning { min, max, initial, slack: f64::from(self.slack.parts_per_million) / 1_000_000.0 }
    }
}
