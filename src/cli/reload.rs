//! `gatewright reload`: asks a running gateway to take its configuration anew, and waits for what comes of it.

use super::Exit;
use super::admin::{AdminArgs, Answer};
use crate::filter::Registry;
use clap::Args;
use http::{Method, StatusCode};
use std::io::{self, Write};
use std::time::Duration;

/// Ask the running gateway to reload; prints what `check` would and exits 1 if it refuses
#[derive(Args)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How long to wait for the outcome, in seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

pub(super) fn run(args: &ReloadArgs, registry: &Registry) -> io::Result<Exit> {
    let timeout = Duration::from_secs(args.timeout);
    let ask = || args.admin.ask(registry, Method::POST, "/reload", timeout);
    let mut answer = ask()?;
    if answer.as_ref().is_some_and(|answer| answer.status == StatusCode::CONFLICT) {
        // The process that let us in has been replaced meanwhile: its successor has the socket, and may have read an older file.
        answer = ask()?;
    }
    let Some(Answer { status, body, document }) = answer else { return Ok(Exit::Failure) };
    let mut err = io::stderr().lock();
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
