//! `gatewright drain` and `undrain`: takes an endpoint out of a running gateway, and back in.

use super::Exit;
use super::admin::{AdminArgs, Answer};
use crate::filter::Registry;
use clap::Args;
use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::io::{self, Write};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// Which endpoint of which gateway.
#[derive(Args)]
pub(super) struct DrainArgs {
    /// The name of the upstream
    upstream: String,
    /// The address of the endpoint, or the name in `endpoints` that brought it
    endpoint: String,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) fn run(args: &DrainArgs, registry: &Registry, drained: bool) -> io::Result<Exit> {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let verb = if drained { "drain" } else { "undrain" };
    let path = format!("/{verb}?upstream={}&endpoint={}", encode(&args.upstream), encode(&args.endpoint));
    let Some(Answer { status, body, document }) = args.admin.ask(registry, Method::POST, &path, PATIENCE)? else {
        return Ok(Exit::Failure);
    };
    let mut err = io::stderr().lock();
    if status != StatusCode::OK {
        match document.get("error").and_then(|error| error.as_str()) {
            Some(why) => writeln!(err, "error: {why}")?,
            None => writeln!(err, "error: the gateway answered {status}: {}", String::from_utf8_lossy(&body))?,
        }
        return Ok(Exit::Failure);
    }
    let number = |key: &str| document.get(key).and_then(|value| value.as_u64()).unwrap_or_default();
    let done = if drained { "drained" } else { "brought back" };
    let available = number("available");
    writeln!(io::stdout(), "{done}: {} of upstream {}; {available} take traffic", args.endpoint, args.upstream)?;
    if available == 0 {
        writeln!(err, "warning: no endpoint of upstream {} takes traffic now", args.upstream)?;
    }
    Ok(Exit::Success)
}
