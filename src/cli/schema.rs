//! `gatewright schema`: what may stand in a configuration.

use super::Exit;
use crate::admin;
use crate::config;
use crate::filter::Registry;
use clap::{Args, ValueEnum};
use std::io::{self, Write};

/// Print what may stand in a configuration: as a JSON Schema, or as the reference page
#[derive(Args)]
pub(super) struct SchemaArgs {
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// JSON Schema 2020-12, for editors
    Json,
    /// The page that is docs/reference.md
    Markdown,
}

pub(super) fn run(args: &SchemaArgs, registry: &Registry) -> io::Result<Exit> {
    let mut out = io::stdout().lock();
    match args.format {
        Format::Json => writeln!(out, "{:#}", config::schema(registry))?,
        Format::Markdown => {
            out.write_all(config::reference(registry).as_bytes())?;
            out.write_all(admin::reference().as_bytes())?;
        }
    }
    Ok(Exit::Success)
}
