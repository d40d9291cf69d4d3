//! `gatewright reload`: asks a running gateway to take its configuration anew, and waits for what comes of it.

use super::Exit;
use crate::admin::client;
use crate::value::Address;
use clap::Args;
use http::{Method, StatusCode};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// Where the packaged service has its admin socket.
const SERVICE_SOCKET: &str = "/run/gatewright/admin.sock";

/// Ask the running gateway to reload; prints what `check` would and exits 1 if it refuses
#[derive(Args)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How long to wait for the outcome, in seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// Where the running gateway's admin listener is.
#[derive(Args)]
pub(super) struct AdminArgs {
    /// The admin listener, as in `[admin] listen`. Default: unix:/run/gatewright/admin.sock if it exists, else 127.0.0.1:9901
    #[arg(long, env = "GATEWRIGHT_ADMIN", value_name = "ADDRESS")]
    admin: Option<Address>,
}

impl AdminArgs {
    pub fn address(&self) -> Address {
        match &self.admin {
            Some(address) => address.clone(),
            None if Path::new(SERVICE_SOCKET).exists() => Address::Unix(SERVICE_SOCKET.into()),
            None => Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 9901))),
        }
    }
}

pub(super) fn run(args: &ReloadArgs) -> io::Result<Exit> {
    let address = args.admin.address();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(client::call(&address, Method::POST, "/reload", Duration::from_secs(args.timeout)));
    let mut err = io::stderr().lock();
    let (status, body) = match answer {
        Ok(answer) => answer,
        Err(e) => {
            writeln!(err, "error: no gateway answers on {address}: {e}")?;
            return Ok(Exit::Failure);
        }
    };
    let document: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |key: &str| document.get(key).and_then(|value| value.as_str()).unwrap_or_default();
    if status == StatusCode::OK {
        write!(err, "{}", text("warnings"))?;
        writeln!(io::stdout(), "reloaded: config {}", text("config_hash"))?;
        return Ok(Exit::Success);
    }
    match text("report") {
        "" => writeln!(err, "error: the gateway answered {status}: {}", String::from_utf8_lossy(&body))?,
        report => {
            write!(err, "{report}")?;
            writeln!(err, "the running configuration stays")?;
        }
    }
    Ok(Exit::Failure)
}
