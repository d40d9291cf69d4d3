//! `match` of `[routes.NAME]` as written in TOML.

use crate::diagnostic::Diagnostics;
use crate::value::Located;
use schemars::JsonSchema;
use serde::Deserialize;

/// Which requests a route takes. What is left out matches everything.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MatchConfig {
    /// The host.
    pub host: Option<Located<String>>,
    /// The path.
    pub path: Option<Located<String>>,
    /// The methods.
    pub methods: Option<Vec<Located<String>>>,
}

impl MatchConfig {
    /// Reports values that no request can match.
    pub fn check(&self, d: &mut Diagnostics) {
        if let Some(path) = self.path.as_ref().filter(|path| !path.starts_with('/')) {
            d.error(path.span.clone(), format!("`{}` is not a path", path.value)).help("a path begins with /");
        }
    }
}
