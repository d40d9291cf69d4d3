//! What the tests are written with: the gateway as a child process, origins that misbehave on demand, a client that sees
//! every byte, and a load generator that accounts for every request.
//!
//! Everything runs on loopback ports that the kernel picks, so any number of tests can run side by side. Nothing here
//! sleeps in the hope that something has happened: [`eventually`] polls the condition itself, under a deadline.

pub mod admin;
pub mod consul;
#[path = "../../../src/http1/corpus.rs"]
pub mod corpus;
pub mod dns;
pub mod frames;
pub mod gate;
pub mod gateway;
pub mod h2;
pub mod http1;
pub mod load;
pub mod metrics;
pub mod open_loop;
pub mod origin;
pub mod raw;
pub mod redis;
pub mod redis_many;
mod selftest;
pub mod service;
pub mod teller;
pub mod tls;
pub mod tokens;

pub use gate::Gate;
pub use gateway::Gateway;
pub use load::Load;
pub use origin::{Answer, Origin, Script};

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Runtime;

/// Long enough for anything that should happen "soon" on a loaded two-core machine.
pub const SOON: Duration = Duration::from_secs(15);

/// Whether what is only large is done in its full size: with `GATEWRIGHT_FULL=1`.
pub fn full() -> bool {
    std::env::var_os("GATEWRIGHT_FULL").is_some_and(|value| value == "1")
}

/// What chance begins with in tests of generated requests: another each time, or what `GATEWRIGHT_TEST_SEED` says.
pub fn seed() -> u64 {
    std::env::var("GATEWRIGHT_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..))
}

/// Adds a line to the file that `GATEWRIGHT_RESULTS` names, if it does: what a test has measured, as JSON, with the build that it
/// measured.
pub fn record(test: &str, result: serde_json::Value) {
    use std::io::Write;
    let Some(path) = std::env::var_os("GATEWRIGHT_RESULTS") else { return };
    let usual = if cfg!(debug_assertions) { "without optimisation" } else { "optimised" };
    let build = std::env::var("GATEWRIGHT_BINARY").unwrap_or(usual.to_owned());
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let version = gatewright::VERSION;
    let line = serde_json::json!({ "test": test, "unix_time": at, "version": version, "build": build, "result": result });
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    writeln!(file, "{line}").unwrap();
}

/// How long things took, in microseconds, for [`record`].
pub fn spread(times: &[Duration]) -> serde_json::Value {
    let mut micros: Vec<u128> = times.iter().map(Duration::as_micros).collect();
    micros.sort_unstable();
    let at = |share: f64| micros.get(((micros.len() as f64 * share) as usize).min(micros.len().saturating_sub(1))).copied();
    serde_json::json!({
        "count": micros.len(), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": micros.last(),
    })
}

/// Polls `condition` every 10 ms until it holds; panics with `what` when `deadline` has passed.
#[track_caller]
pub fn eventually(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition() {
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Polls like [`eventually`], for a condition that yields a value.
#[track_caller]
pub fn eventually_some<T>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    eventually(what, deadline, || {
        found = attempt();
        found.is_some()
    });
    found.unwrap()
}

/// Held by tests that put load on the machine, so that they do not measure each other.
pub fn exclusive() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The runtime that all origins live on, for as long as the test process does.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
}

/// A `[upstreams.NAME]` table over these origins, followed by `more` lines of the same table.
pub fn upstream(name: &str, origins: &[&Origin], more: &str) -> String {
    let endpoints: Vec<String> = origins.iter().map(|origin| format!("\"{}\"", origin.address())).collect();
    format!("\n[upstreams.{name}]\nendpoints = [{}]\n{more}\n", endpoints.join(", "))
}

/// One upstream `app` over these origins, and one route `all` that sends everything there; `more` are lines of the
/// upstream's table.
pub fn everything_to(origins: &[&Origin], more: &str) -> String {
    format!("{}\n[routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n", upstream("app", origins, more))
}
