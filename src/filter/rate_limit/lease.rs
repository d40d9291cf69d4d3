//! `lease = "2%"`: how much a gateway may hold in advance, and what that means, in words for `gatewright check`.

use crate::limit::Limit;
use crate::value::{NUMBER_MAX, Percent};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::borrow::Cow;
use std::fmt;

/// As written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LeaseSize {
    /// Of what the smallest limit admits at once.
    Share(Percent),
    Uses(u64),
}

impl LeaseSize {
    /// In uses, at least 1. The error says why it cannot be.
    pub fn of(self, limits: &[Limit]) -> Result<u64, String> {
        let smallest = limits.iter().map(Limit::most).min().unwrap_or(1);
        match self {
            LeaseSize::Share(Percent { parts_per_million: 0 }) | LeaseSize::Uses(0) => {
                Err("a lease of nothing is none".to_owned())
            }
            LeaseSize::Share(share) => {
                let part = u128::from(smallest).saturating_mul(share.parts_per_million.into()) / 1_000_000;
                Ok(u64::try_from(part).unwrap_or(u64::MAX).max(1))
            }
            LeaseSize::Uses(uses) if uses > smallest => {
                Err(format!("a lease of {uses} is more than the limit admits at once, which is {smallest}"))
            }
            LeaseSize::Uses(uses) => Ok(uses),
        }
    }
}

/// What the lease means for the smallest of the limits.
pub fn promise(route: &str, limits: &[Limit], lease: u64, gateways: u64) -> String {
    let Some(limit) = limits.iter().min_by_key(|limit| limit.most()) else { return String::new() };
    let withheld = u128::from(lease).saturating_mul(gateways.into());
    let share = withheld as f64 * 100.0 / limit.most() as f64;
    format!(
        "lease: route `{route}`, limit `{}`: overshoot 0; each gateway holds at most {lease} of {}, {gateways} of them at most {withheld} ({share:.1} %)",
        limit.name,
        limit.most(),
    )
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = LeaseSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a share such as \"2%\", or a number of uses")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<LeaseSize, E> {
        text.parse().map(LeaseSize::Share).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<LeaseSize, E> {
        match u64::try_from(number) {
            Ok(uses) if uses <= NUMBER_MAX => Ok(LeaseSize::Uses(uses)),
            _ => Err(E::custom(format!("a lease is of 1 to {NUMBER_MAX} uses"))),
        }
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<LeaseSize, E> {
        self.visit_i64(i64::try_from(number).unwrap_or(-1))
    }
}

impl<'de> Deserialize<'de> for LeaseSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl JsonSchema for LeaseSize {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "LeaseSize".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let share = generator.subschema_for::<Percent>();
        json_schema!({ "title": "share or number", "anyOf": [share, { "type": "integer", "minimum": 1 }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Shape;

    #[test]
    fn a_lease_is_never_more_than_the_smallest_limit() {
        let limit = |number| Limit { name: "a".into(), number, shape: Shape::TokenBucket { per: 1, capacity: number } };
        let limits = [limit(600), limit(10_000)];
        assert_eq!(LeaseSize::Share("2%".parse().unwrap()).of(&limits), Ok(12));
        assert_eq!(LeaseSize::Share("0.01%".parse().unwrap()).of(&limits), Ok(1));
        assert_eq!(LeaseSize::Uses(600).of(&limits), Ok(600));
        assert!(LeaseSize::Uses(601).of(&limits).is_err() && LeaseSize::Uses(0).of(&limits).is_err());
        let told = promise("api", &limits, 12, 4);
        assert!(told.contains("at most 12 of 600, 4 of them at most 48 (8.0 %)"), "{told}");
    }
}
