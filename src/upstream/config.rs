//! `[upstreams.NAME]` as written in TOML.

use crate::diagnostic::Diagnostics;
use crate::value::Located;
use schemars::JsonSchema;
use serde::Deserialize;

/// A named group of endpoints and how to use them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// The addresses that requests are spread over.
    pub endpoints: Vec<Located<String>>,
}

impl UpstreamConfig {
    /// Reports values that no upstream can have.
    pub fn check(&self, name: &Located<String>, d: &mut Diagnostics) {
        if self.endpoints.is_empty() {
            d.error(name.span.clone(), format!("upstream `{}` has no endpoints", name.value));
        }
    }
}
