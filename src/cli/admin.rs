//! What every command that talks to a running gateway shares: where its admin listener is, and one question to it.

use super::ConfigArgs;
use crate::admin::client;
use crate::filter::Registry;
use crate::value::Address;
use clap::Args;
use http::{Method, StatusCode};
use serde_json::Value;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the packaged service has its admin socket.
const SERVICE_SOCKET: &str = "/run/gatewright/admin.sock";

/// The variable that says where the admin listener is, if no argument does.
const VARIABLE: &str = "GATEWRIGHT_ADMIN";

/// Where the running gateway's admin listener is.
#[derive(Args)]
pub(super) struct AdminArgs {
    /// The admin listener, as in `[admin] listen`. Default: $GATEWRIGHT_ADMIN, else unix:/run/gatewright/admin.sock if it exists,
    /// else 127.0.0.1:9901
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    admin: Option<Address>,
    /// The configuration that the gateway runs on, to find the admin listener there. May repeat
    #[arg(short, long, value_name = "FILE")]
    config: Vec<PathBuf>,
}

/// What a gateway has answered.
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Vec<u8>,
    /// The body, read as JSON; null if it is none.
    pub document: Value,
}

impl AdminArgs {
    /// The error is what to print.
    fn address(&self, registry: &Registry) -> Result<Address, String> {
        if let Some(address) = &self.admin {
            return Ok(address.clone());
        }
        if !self.config.is_empty() {
            return self.configured(registry);
        }
        match std::env::var(VARIABLE) {
            Ok(text) => text.parse().map_err(|why| format!("error: {VARIABLE}: {why}\n")),
            Err(_) if Path::new(SERVICE_SOCKET).exists() => Ok(Address::Unix(SERVICE_SOCKET.into())),
            Err(_) => Ok(Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 9901)))),
        }
    }

    /// As the configuration says, which may be wrong elsewhere: to have that told is what a reload may be for.
    fn configured(&self, registry: &Registry) -> Result<Address, String> {
        let loaded = ConfigArgs { config: self.config.clone() }.load(registry);
        let listen = &loaded.config.admin.listen;
        // Where it is not written, it may be what could not be read.
        if listen.span.is_none() && loaded.diagnostics.has_errors() {
            let report = loaded.diagnostics.render(false);
            return Err(format!("{report}error: where the admin listener is cannot be told: mend this, or use --admin\n"));
        }
        Ok(listen.value.clone())
    }

    /// Asks the gateway and waits for its answer, `timeout` at most. `None`: there was none, which has been said on stderr.
    ///
    /// # Errors
    /// The runtime cannot be made, or stderr is closed.
    pub fn ask(&self, registry: &Registry, method: Method, path: &str, timeout: Duration) -> io::Result<Option<Answer>> {
        let address = match self.address(registry) {
            Ok(address) => address,
            Err(why) => {
                io::stderr().write_all(why.as_bytes())?;
                return Ok(None);
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        match runtime.block_on(client::call(&address, method, path, timeout)) {
            Ok((status, body)) => {
                let document = serde_json::from_slice(&body).unwrap_or_default();
                Ok(Some(Answer { status, body: body.into(), document }))
            }
            Err(e) => {
                writeln!(io::stderr(), "error: no gateway answers on {address}: {e}")?;
                Ok(None)
            }
        }
    }
}
