//! Taking a new configuration without losing a request.
//!
//! Load, compile and bind happen off the request path; only when all of it worked is the new snapshot swapped in, as one.
//! Anything wrong anywhere leaves the running one whole and is told to whoever asked, in the words of `gatewright check`.
//! Reloads run one after another, so the last one asked for is the one that stays.

mod turn;
mod watch;

use crate::clock::SharedClock;
use crate::config::{self, Loaded};
use crate::diagnostic::Diagnostics;
use crate::filter::Registry;
use crate::jwt::KeySupervisor;
use crate::listener::{Listeners, Prepared};
use crate::proxy::Gateway;
use crate::snapshot::{self, CompileParts, Snapshot};
use crate::state::StatePool;
use crate::telemetry::logger::LoggerHandle;
use crate::upstream::Supervisor;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Looks up a variable of the environment.
pub type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Where the configuration comes from.
#[derive(Clone)]
pub enum Origin {
    /// Files and directories, as given to `-c`.
    Paths(Vec<PathBuf>),
    /// Built into the program, with its own values for `${NAME}`: what `gatewright demo` runs on.
    Embedded { name: &'static str, text: String, env: Environment },
}

impl Origin {
    pub fn load(&self, registry: &Registry) -> Loaded {
        match self {
            Origin::Paths(paths) => config::load(paths, registry, &|name| std::env::var(name).ok()),
            Origin::Embedded { name, text, env } => config::load_text(name, text, registry, env.as_ref()),
        }
    }
}

/// What came of a reload.
#[derive(Debug, Clone)]
pub enum Outcome {
    Applied {
        hash: String,
        /// The text is the same as before; health, counters and connections were kept like at every reload.
        unchanged: bool,
        /// Warnings, rendered; empty if there are none.
        warnings: String,
    },
    Refused {
        /// Every error, rendered for people, and as data.
        report: String,
        diagnostics: serde_json::Value,
    },
    /// Another process has taken over meanwhile, which has read the configuration itself.
    Gone,
}

impl Outcome {
    pub fn document(&self) -> serde_json::Value {
        match self {
            Outcome::Applied { hash, unchanged, warnings } => {
                serde_json::json!({ "result": "applied", "config_hash": hash, "unchanged": unchanged, "warnings": warnings })
            }
            Outcome::Refused { report, diagnostics } => {
                serde_json::json!({ "result": "refused", "report": report, "diagnostics": diagnostics })
            }
            Outcome::Gone => serde_json::json!({ "result": "gone" }),
        }
    }
}

/// A configuration that is ready to be swapped in.
struct Next {
    snapshot: Snapshot,
    listeners: Prepared,
    level: log::LevelFilter,
    /// Rendered.
    warnings: String,
}

/// How long a start or a reload waits for names that are looked up for the first time. Without it the first requests to
/// them would be refused; a name that takes longer must not hold up the rest.
pub const SETTLE: Duration = Duration::from_secs(2);

/// The last reload, for `/status`.
#[derive(Debug, Clone)]
pub struct LastReload {
    pub at: SystemTime,
    pub took: Duration,
    pub outcome: Outcome,
}

pub struct Reloader {
    pub origin: Origin,
    pub registry: Registry,
    pub gateway: Gateway,
    pub listeners: Arc<Listeners>,
    pub state: Arc<StatePool>,
    pub clock: SharedClock,
    pub supervisor: std::sync::OnceLock<Supervisor>,
    pub keys: std::sync::OnceLock<KeySupervisor>,
    pub logger: LoggerHandle,
    /// One reload at a time.
    pub busy: Turns,
    /// Another process serves in the place of this one. Set under that lock.
    pub gone: std::sync::atomic::AtomicBool,
    pub last: Mutex<Option<LastReload>>,
    /// What the last reload has read besides the configuration itself, if it was refused: to mend it is to be seen.
    pub refused_files: Mutex<Vec<PathBuf>>,
    /// Tells the watch that there may be other files to look after.
    pub reloaded: tokio::sync::Notify,
    /// What was true when the process started and cannot change in it.
    pub fixed: snapshot::Fixed,
}

impl Reloader {
    /// Loads and swaps, or refuses. `asked_by` goes to the log.
    pub async fn reload(self: &Arc<Self>, asked_by: &'static str) -> Outcome {
        let outcome = self.take_turn(asked_by).await;
        self.reloaded.notify_one();
        outcome
    }

    /// The same, without a word to the watch, which may be who asks.
    async fn take_turn(self: &Arc<Self>, asked_by: &'static str) -> Outcome {
        let _turn = self.busy.take(RELOAD_PATIENCE).await;
        if self.gone.load(std::sync::atomic::Ordering::Relaxed) {
            log::warn!("reload asked for by {asked_by}: another process serves by now");
            return Outcome::Gone;
        }
        crate::systemd::reloading();
        let begun = Instant::now();
        let this = Arc::clone(self);
        let outcome = match tokio::task::spawn_blocking(move || this.prepare()).await {
            Ok(Ok(next)) => self.install(*next).await,
            Ok(Err(refused)) => refused,
            Err(e) => Outcome::Refused {
                report: format!("error: the reload did not finish: {e}\n"),
                diagnostics: serde_json::json!([{ "severity": "error", "message": e.to_string() }]),
            },
        };
        let took = begun.elapsed();
        let metrics = self.gateway.metrics();
        match &outcome {
            Outcome::Applied { hash, warnings, .. } => {
                metrics.reload_succeeded(hash, SystemTime::now());
                log::info!("reload asked for by {asked_by}: applied {hash} in {took:?}");
                if !warnings.is_empty() {
                    log::warn!("{warnings}");
                }
            }
            Outcome::Refused { report, .. } => {
                metrics.reload_failed();
                log::error!("reload asked for by {asked_by}: refused, the running configuration stays\n{report}");
            }
            Outcome::Gone => {}
        }
        crate::systemd::ready(&self.gateway.snapshot());
        *self.last.lock() = Some(LastReload { at: SystemTime::now(), took, outcome: outcome.clone() });
        outcome
    }

    /// Everything that can fail.
    fn prepare(&self) -> Result<Box<Next>, Outcome> {
        let Loaded { config, mut diagnostics, hash, .. } = self.origin.load(&self.registry);
        let parts = CompileParts { state: &self.state, clock: &self.clock, dry: false };
        let snapshot = match snapshot::compile_or_files(&config, &hash, &parts, &mut diagnostics) {
            Ok(snapshot) => snapshot,
            Err(read) => {
                *self.refused_files.lock() = read;
                return Err(refused(&diagnostics));
            }
        };
        let listeners = match self.listeners.prepare(&snapshot.listeners) {
            Ok(listeners) => listeners,
            Err(errors) => {
                for error in errors {
                    let span = config.listeners.get(&*error.listener).and_then(|entry| entry.value.address.span.clone());
                    diagnostics.error(span, error.to_string());
                }
                *self.refused_files.lock() = snapshot.files;
                return Err(refused(&diagnostics));
            }
        };
        // Of what is refused nothing is applied, now or later.
        self.fixed.compare(&config, &mut diagnostics);
        self.refused_files.lock().clear();
        let warnings = if diagnostics.list.is_empty() { String::new() } else { diagnostics.render(false) };
        Ok(Box::new(Next { snapshot, listeners, level: config.log.level.into(), warnings }))
    }

    /// Nothing here can fail. Order matters: names of new endpoints are looked up before requests need them, and new
    /// listeners must not serve the old snapshot's routes.
    async fn install(&self, next: Next) -> Outcome {
        let Next { snapshot, listeners, level, warnings } = next;
        let snapshot = Arc::new(snapshot);
        if let Some(keys) = self.keys.get() {
            keys.reconcile(snapshot.issuers.jobs());
        }
        if let Some(supervisor) = self.supervisor.get() {
            supervisor.reconcile(snapshot.upstreams.values());
            supervisor.settle(SETTLE).await;
        }
        let hash = snapshot.hash.clone();
        let unchanged = self.gateway.snapshot().hash == hash;
        self.gateway.swap(Arc::clone(&snapshot));
        self.listeners.commit(listeners, &self.state);
        self.logger.set_level(level);
        // For rotation: whoever moved the file away asks for a reload, as with any daemon.
        if let Some(access_log) = &snapshot.access_log {
            access_log.writer().reopen();
        }
        self.state.sweep();
        Outcome::Applied { hash, unchanged, warnings }
    }
}

fn refused(diagnostics: &Diagnostics) -> Outcome {
    Outcome::Refused { report: diagnostics.render(false), diagnostics: diagnostics.to_value() }
}

pub use turn::{RELOAD_PATIENCE, Turns};
pub use watch::watch;
