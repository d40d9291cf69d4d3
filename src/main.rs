//! The `gatewright` binary: the command line of the library with the filters that ship with it.

use gatewright::cli;
use gatewright::filter::Registry;
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(Registry::builtin())
}
