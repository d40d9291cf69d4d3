//! `gatewright check`: whether a configuration is valid, and everything that is wrong with it.

use super::{ConfigArgs, Exit, wants_color};
use crate::filter::Registry;
use clap::{Args, ValueEnum};
use std::io::{self, Write};

/// Read a configuration and report everything that is wrong with it; exits 0 if it is valid, else 78
#[derive(Args)]
#[command(short_flag = 't')]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// For people: text on stderr and a summary on stdout. For machines: a JSON array on stdout
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Human,
    Json,
}

pub(super) fn run(args: &CheckArgs, registry: &Registry) -> io::Result<Exit> {
    let loaded = args.config.load(registry);
    let mut out = io::stdout().lock();
    match args.format {
        Format::Json => out.write_all(loaded.diagnostics.to_json().as_bytes())?,
        Format::Human => {
            let mut err = io::stderr().lock();
            let color = wants_color(&err);
            err.write_all(loaded.diagnostics.render(color).as_bytes())?;
            if let Some(config) = &loaded.config {
                writeln!(out, "valid: {}", config.summary())?;
            }
        }
    }
    Ok(if loaded.config.is_some() { Exit::Success } else { Exit::InvalidConfig })
}
