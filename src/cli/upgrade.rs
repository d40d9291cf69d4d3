//! `gatewright upgrade`: asks a running gateway to let a new process, from the binary that is installed now, take its place.

use super::Exit;
use super::admin::{AdminArgs, Answer};
use crate::filter::Registry;
use clap::Args;
use http::{Method, StatusCode};
use std::io::{self, Write};
use std::time::Duration;

/// Replace the running gateway by the binary that is installed now, without losing a request; exits 1 if the old one stays
#[derive(Args)]
pub(super) struct UpgradeArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How long to wait for the outcome, in seconds
    #[arg(long, default_value_t = 90)]
    timeout: u64,
}

pub(super) fn run(args: &UpgradeArgs, registry: &Registry) -> io::Result<Exit> {
    let timeout = Duration::from_secs(args.timeout);
    let Some(Answer { status, body, document }) = args.admin.ask(registry, Method::POST, "/upgrade", timeout)? else {
        return Ok(Exit::Failure);
    };
    let mut err = io::stderr().lock();
    let number = |key: &str| document.get(key).and_then(serde_json::Value::as_u64).unwrap_or_default();
    if status == StatusCode::OK {
        writeln!(io::stdout(), "upgraded: process {} serves in place of {}", number("pid"), number("previous_pid"))?;
        return Ok(Exit::Success);
    }
    match document.get("report").and_then(|report| report.as_str()).unwrap_or_default() {
        "" => writeln!(err, "error: the gateway answered {status}: {}", String::from_utf8_lossy(&body))?,
        report => {
            writeln!(err, "{}", report.trim_end())?;
            writeln!(err, "the running process stays")?;
        }
    }
    Ok(Exit::Failure)
}
