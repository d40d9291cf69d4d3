//! The endpoints of an upstream as written.

use super::{ENDPOINTS_MAX, PRIORITY_MAX, WEIGHT_MAX};
use crate::diagnostic::{Diagnostics, Span};
use crate::upstream::address::Address;
use crate::value::Located;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, value::MapAccessDeserializer};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

/// One endpoint as written: `"127.0.0.1:3001"`, or `{ address = "127.0.0.1:3001", weight = 2 }`.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    pub address: Located<String>,
    pub weight: Located<u16>,
    pub priority: Located<u8>,
    pub zone: Option<Located<String>>,
}

/// An endpoint with its settings.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EndpointTable {
    /// Address and port. A name may resolve to several addresses; each of them then takes traffic by this weight.
    address: Located<String>,
    /// The share of the traffic, relative to the other endpoints of the upstream. 0 to 1000, default 1. 0 drains: no new
    /// requests, while those under way finish. At least one endpoint must have a weight above 0.
    #[serde(default = "weight")]
    #[schemars(range(min = 0, max = 1000))]
    weight: Located<u16>,
    /// Endpoints with `priority = 1` take traffic only while none with `priority = 0` does, and so on. 0 to 9, default 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 9))]
    priority: Located<u8>,
    /// Where it is, for an upstream with a `zone`. Up to 63 characters.
    zone: Option<Located<String>>,
}

impl<'de> Deserialize<'de> for EndpointConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrTable;
        impl<'de> de::Visitor<'de> for TextOrTable {
            type Value = EndpointConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an address such as \"127.0.0.1:3001\", or a table such as { address = \"127.0.0.1:3001\", weight = 2 }",
                )
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<EndpointConfig, E> {
                Ok(EndpointConfig {
                    address: Located::nowhere(text.to_owned()),
                    weight: weight(),
                    priority: Located::default(),
                    zone: None,
                })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<EndpointConfig, A::Error> {
                let EndpointTable { address, weight, priority, zone } =
                    EndpointTable::deserialize(MapAccessDeserializer::new(map))?;
                Ok(EndpointConfig { address, weight, priority, zone })
            }
        }
        deserializer.deserialize_any(TextOrTable)
    }
}

impl JsonSchema for EndpointConfig {
    fn schema_name() -> Cow<'static, str> {
        "Endpoint".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let table = generator.subschema_for::<EndpointTable>();
        json_schema!({
            "description": "An endpoint: its address, or a table of address and weight.",
            "oneOf": [{ "type": "string", "description": "Address and port, with weight 1." }, table],
        })
    }
}

fn weight() -> Located<u16> {
    Located::nowhere(1)
}

/// Reports everything that is wrong with the list.
pub(super) fn check(list: &Located<Vec<Located<EndpointConfig>>>, name: &Located<String>, d: &mut Diagnostics) {
    if list.is_empty() {
        d.error(list.span.clone().or_else(|| name.span.clone()), format!("upstream `{}` has no endpoints", name.value))
            .label("write at least one address")
            .help("for example: endpoints = [\"127.0.0.1:3001\"], or find them with `discover`");
        return;
    }
    if list.len() > ENDPOINTS_MAX {
        d.error(list.span.clone(), format!("upstream `{}` has {} endpoints", name.value, list.len()))
            .label(format!("at most {ENDPOINTS_MAX} are possible"));
    }
    let mut seen: HashMap<Address, Option<Span>> = HashMap::new();
    for endpoint in list.iter() {
        let span = endpoint.address.span.clone().or_else(|| endpoint.span.clone());
        match endpoint.address.parse::<Address>() {
            Err(why) => {
                d.error(span, format!("`{}` is not the address of an endpoint", endpoint.address.value)).label(why);
            }
            Ok(address) => match seen.get(&address) {
                Some(first) => {
                    let finding = d.error(span, format!("endpoint `{address}` stands twice in upstream `{}`", name.value));
                    finding.label("the second time").help("write it once, with a `weight`, to give it more traffic");
                    if let Some(first) = first.clone() {
                        finding.related(first, "the first time");
                    }
                }
                None => {
                    seen.insert(address, span);
                }
            },
        }
        if *endpoint.weight > WEIGHT_MAX {
            let span = endpoint.weight.span.clone();
            d.error(span, format!("`weight` is {}", endpoint.weight.value)).label(format!("must be from 0 to {WEIGHT_MAX}"));
        }
        if *endpoint.priority > PRIORITY_MAX {
            let span = endpoint.priority.span.clone();
            d.error(span, format!("`priority` is {}", endpoint.priority.value))
                .label(format!("must be from 0 to {PRIORITY_MAX}"));
        }
        if let Some(zone) = &endpoint.zone {
            check_zone(zone, d);
        }
    }
    if list.iter().all(|endpoint| *endpoint.weight == 0) {
        d.error(list.span.clone(), format!("every endpoint of upstream `{}` has weight 0", name.value))
            .label("no endpoint may take traffic")
            .help("give at least one endpoint a weight above 0");
    }
}

/// A zone shows on `/status`.
pub(super) fn check_zone(zone: &Located<String>, d: &mut Diagnostics) {
    if zone.is_empty() || zone.len() > 63 || zone.chars().any(char::is_control) {
        d.error(zone.span.clone(), format!("`{}` cannot be a zone", zone.value.escape_debug()))
            .label("must have 1 to 63 characters");
    }
}
