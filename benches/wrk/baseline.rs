//! What Gatewright costs is told in multiples of this: the least that a Pingora proxy can do, because both run the same HTTP
//! engine.
//!
//! `baseline LISTEN THREADS ENDPOINT...`, with Pingora's default of workers that steal from each other; without it where the
//! number of threads is written as `2-apart`.

mod bare;

use std::net::{AddrParseError, SocketAddr};
use std::process::ExitCode;

// The same allocator as the gateway's, so that the comparison is about the proxies.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[cfg(all(feature = "mimalloc", not(feature = "jemalloc")))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, threads, endpoints @ ..] = arguments.as_slice() else {
        eprintln!("usage: baseline LISTEN THREADS ENDPOINT...");
        return ExitCode::from(2);
    };
    let endpoints: Result<Vec<SocketAddr>, AddrParseError> = endpoints.iter().map(|endpoint| endpoint.parse()).collect();
    let (threads, work_stealing) = match threads.strip_suffix("-apart") {
        Some(threads) => (threads, false),
        None => (threads.as_str(), true),
    };
    let (Ok(threads), Ok(endpoints)) = (threads.parse(), endpoints) else {
        eprintln!("baseline: not a number of threads, or not an address");
        return ExitCode::from(2);
    };
    bare::run(threads, work_stealing, endpoints, |service| service.add_tcp(listen))
}
