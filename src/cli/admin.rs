//! What every command that talks to a running gateway shares: where its admin listener is, and one question to it.

use crate::admin::client;
use crate::value::Address;
use clap::Args;
use http::{Method, StatusCode};
use serde_json::Value;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// Where the packaged service has its admin socket.
const SERVICE_SOCKET: &str = "/run/gatewright/admin.sock";

/// Where the running gateway's admin listener is.
#[derive(Args)]
pub(super) struct AdminArgs {
    /// The admin listener, as in `[admin] listen`. Default: unix:/run/gatewright/admin.sock if it exists, else 127.0.0.1:9901
    #[arg(long, env = "GATEWRIGHT_ADMIN", value_name = "ADDRESS")]
    admin: Option<Address>,
}

/// What a gateway has answered.
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Vec<u8>,
    /// The body, read as JSON; null if it is none.
    pub document: Value,
}

impl AdminArgs {
    fn address(&self) -> Address {
        match &self.admin {
            Some(address) => address.clone(),
            None if Path::new(SERVICE_SOCKET).exists() => Address::Unix(SERVICE_SOCKET.into()),
            None => Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 9901))),
        }
    }

    /// Asks the gateway and waits for its answer, `timeout` at most. `None`: there was none, which has been said on stderr.
    ///
    /// # Errors
    /// The runtime cannot be made, or stderr is closed.
    pub fn ask(&self, method: Method, path: &str, timeout: Duration) -> io::Result<Option<Answer>> {
        let address = self.address();
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
