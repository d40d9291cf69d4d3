//! `[admin]`.

use crate::diagnostic::Diagnostics;
use crate::value::{Address, Located};
use schemars::JsonSchema;
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};

/// Where operators and monitoring ask: liveness, readiness, metrics, status, reload.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// A loopback address, or a Unix socket such as `unix:/run/gatewright/admin.sock`. Whoever can reach it can reload and
    /// read everything that the gateway tells about itself, so other addresses are refused. A change takes effect at the
    /// next start.
    pub listen: Located<Address>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        let listen = Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 9901)));
        AdminConfig { listen: Located::nowhere(listen) }
    }
}

impl AdminConfig {
    pub(super) fn check(&self, d: &mut Diagnostics) {
        if !self.listen.is_local() {
            d.error(self.listen.span.clone(), "the admin interface may only listen on this machine")
                .label(format!("`{}` can be reached from others", self.listen.value))
                .help("it has no authentication: use 127.0.0.1, [::1] or unix:/path, and a tunnel or a route with authentication to reach it");
        }
    }
}
