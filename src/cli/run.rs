//! `gatewright run`: the gateway itself.

use super::{ConfigArgs, Exit, wants_color};
use crate::filter::Registry;
use crate::reload::Origin;
use crate::server::{self, StartError};
use clap::Args;
use std::io::{self, Write};

/// Run the gateway until SIGTERM or SIGINT; SIGHUP takes a new configuration, SIGUSR2 a new binary
#[derive(Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: RunArgs, registry: Registry) -> io::Result<Exit> {
    finish(server::run(Origin::Paths(args.config.config), registry, None))
}

/// Tells why the gateway did not start.
pub(super) fn finish(result: Result<(), StartError>) -> io::Result<Exit> {
    let mut err = io::stderr().lock();
    match result {
        Ok(()) => Ok(Exit::Success),
        Err(StartError::Config(diagnostics)) => {
            let color = wants_color(&err);
            err.write_all(diagnostics.render(color).as_bytes())?;
            Ok(Exit::InvalidConfig)
        }
        Err(StartError::Environment(why)) => {
            writeln!(err, "error: {why}")?;
            Ok(Exit::Failure)
        }
    }
}
