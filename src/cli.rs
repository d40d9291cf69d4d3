//! The command line. One file a verb: each has its arguments and a `run` that returns an [`Exit`].

mod admin;
mod check;
mod demo;
mod drain;
mod key;
mod limit;
mod purge;
mod reload;
mod run;
mod schema;
mod upgrade;

use crate::filter::Registry;
use clap::{Args, Parser, Subcommand};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Success = 0,
    /// Something that was asked for could not be done.
    Failure = 1,
    /// The command line makes no sense. Clap's own code.
    Usage = 2,
    /// The configuration is not valid: `EX_CONFIG` of sysexits.h.
    InvalidConfig = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// A programmable API gateway: one binary, one TOML file.
#[derive(Parser)]
#[command(name = "gatewright", version, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Run(run::RunArgs),
    Check(check::CheckArgs),
    Reload(reload::ReloadArgs),
    /// Take an endpoint of a running gateway out of use; requests under way finish
    Drain(drain::DrainArgs),
    /// Bring an endpoint back that was drained
    Undrain(drain::DrainArgs),
    Upgrade(upgrade::UpgradeArgs),
    Purge(purge::PurgeArgs),
    Schema(schema::SchemaArgs),
    Key(key::KeyArgs),
    Limit(limit::LimitArgs),
    Demo(demo::DemoArgs),
}

/// Which configuration is meant, for all verbs that need one.
#[derive(Args, Debug, Clone)]
pub struct ConfigArgs {
    /// A configuration file, or a directory whose *.toml files are read in the order of their names. May repeat.
    #[arg(short, long = "config", value_name = "FILE", default_value = crate::config::DEFAULT_PATH)]
    pub config: Vec<PathBuf>,
}

impl ConfigArgs {
    /// Loads it with the environment of this process.
    pub fn load(&self, registry: &Registry) -> crate::config::Loaded {
        crate::config::load(&self.config, registry, &|name| std::env::var(name).ok())
    }
}

/// Runs the command line of this process with the filters of `registry`. A gateway with filters of its own is this and
/// nothing else: `fn main() -> ExitCode { gatewright::cli::main(Registry::builtin().with::<Mine>()) }`.
pub fn main(registry: Registry) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to be done if the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Success.into() };
        }
    };
    let done = match cli.verb {
        Verb::Run(args) => run::run(args, registry),
        Verb::Check(args) => check::run(&args, &registry),
        Verb::Reload(args) => reload::run(&args, &registry),
        Verb::Drain(args) => drain::run(&args, &registry, true),
        Verb::Undrain(args) => drain::run(&args, &registry, false),
        Verb::Upgrade(args) => upgrade::run(&args, &registry),
        Verb::Purge(args) => purge::run(&args, &registry),
        Verb::Schema(args) => schema::run(&args, &registry),
        Verb::Key(args) => key::run(&args, &registry),
        Verb::Limit(args) => limit::run(&args, &registry),
        Verb::Demo(args) => demo::run(&args, registry),
    };
    match done {
        Ok(exit) => exit.into(),
        // `gatewright schema | head` is not a failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Success.into(),
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: cannot write the output: {error}");
            Exit::Failure.into()
        }
    }
}

/// Whether a stream is a terminal that wants colours.
fn wants_color(stream: &impl io::IsTerminal) -> bool {
    // https://no-color.org
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
