//! The `gatewright` binary: the command line of the library with the filters that ship with it.

use gatewright::cli;
use gatewright::filter::Registry;
use std::process::ExitCode;

/// A proxied request makes about a hundred small allocations inside Pingora, whose cost is the allocator's.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[cfg(all(feature = "mimalloc", not(feature = "jemalloc")))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main(Registry::builtin())
}
