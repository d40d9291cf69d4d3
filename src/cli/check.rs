//! `gatewright check`: whether a configuration is valid, and everything that is wrong with it.

use super::{ConfigArgs, Exit, wants_color};
use crate::clock::{SharedClock, SystemClock};
use crate::config::Loaded;
use crate::filter::Registry;
use crate::snapshot::{self, CompileParts};
use crate::state::StatePool;
use clap::{Args, ValueEnum};
use std::io::{self, Write};
use std::sync::Arc;

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
    let Loaded { config, mut diagnostics, hash, .. } = args.config.load(registry);
    // The same compiler that `run` uses, on state that nobody else sees.
    let clock: SharedClock = Arc::new(SystemClock);
    let parts = CompileParts { state: &StatePool::new(), clock: &clock, dry: true };
    let snapshot = snapshot::compile(&config, &hash, &parts, &mut diagnostics);
    let valid = snapshot.is_some();
    let mut out = io::stdout().lock();
    match args.format {
        Format::Json => out.write_all(diagnostics.to_json().as_bytes())?,
        Format::Human => {
            let mut err = io::stderr().lock();
            let color = wants_color(&err);
            err.write_all(diagnostics.render(color).as_bytes())?;
            if valid {
                writeln!(out, "valid: {}", config.summary())?;
                let limits = snapshot.iter().flat_map(|snapshot| snapshot.limits.promises());
                let routes = snapshot.iter().flat_map(|snapshot| snapshot.routes());
                let caches = routes.filter_map(|route| route.cache.as_ref()?.promise());
                for promise in limits.chain(caches) {
                    writeln!(out, "{promise}")?;
                }
            }
        }
    }
    Ok(if valid { Exit::Success } else { Exit::InvalidConfig })
}
