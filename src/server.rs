//! Assembles the process: Pingora's server with two services, the edge that carries traffic and one control service for
//! everything else (admin, reload, health checks, the service manager), and our own idea of how to stop.

mod control;
mod leave;
mod signals;

use crate::admin::{self, AdminSocket};
use crate::clock::{SharedClock, SystemClock};
use crate::config::Loaded;
use crate::diagnostic::Diagnostics;
use crate::filter::Registry;
use crate::listener::{Edge, EdgeService, Inherited, Listeners};
use crate::proxy::Gateway;
use crate::readiness::Readiness;
use crate::reload::{Origin, Reloader};
use crate::snapshot::{self, CompileParts, Fixed, Snapshot};
use crate::state::StatePool;
use crate::telemetry::logger::{self, LoggerHandle, LoggerOptions};
use crate::telemetry::metrics::GatewayMetrics;
use crate::value::Address;
use control::Control;
use parking_lot::Mutex;
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use std::io::Write;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long the last log lines may take to be written when the process ends.
const FLUSH: Duration = Duration::from_secs(2);

/// Why the gateway did not start.
pub enum StartError {
    /// The configuration is wrong; everything wrong with it.
    Config(Box<Diagnostics>),
    /// The configuration is right, but this machine does not give what it asks for.
    Environment(String),
}

/// Called once the gateway accepts, with its listeners and the address of the admin listener.
pub type Ready = Box<dyn FnOnce(&Listeners, &Address) + Send + Sync>;

/// Runs until told to stop. Returns when everything under way is done or the grace period is over.
pub fn run(origin: Origin, registry: Registry, ready: Option<Ready>) -> Result<(), StartError> {
    hold_hangup();
    // Before Pingora installs its own.
    crate::tls::install();
    let logger = logger::init(LoggerOptions::default()).map_err(|e| StartError::Environment(e.to_string()))?;
    let result = assemble(origin, registry, logger.clone(), ready).map(|process| process.run());
    logger.flush(FLUSH);
    result
}

/// Everything that exists before the first request.
struct Process {
    server: Server,
    edge: EdgeService,
    control: Control,
    signals: signals::Signals,
    gateway: Gateway,
}

fn assemble(origin: Origin, registry: Registry, logger: LoggerHandle, ready: Option<Ready>) -> Result<Process, StartError> {
    let Loaded { config, mut diagnostics, hash, .. } = origin.load(&registry);
    let clock: SharedClock = Arc::new(SystemClock);
    let state = StatePool::new();
    let parts = CompileParts { state: &state, clock: &clock, dry: false };
    let Some(snapshot) = snapshot::compile(&config, &hash, &parts, &mut diagnostics) else {
        return Err(StartError::Config(Box::new(diagnostics)));
    };
    if !diagnostics.list.is_empty() {
        // Warnings only: errors have returned above. Nobody can be told that stderr is closed.
        let _ = write!(std::io::stderr(), "{}", diagnostics.render(false));
    }
    logger.set_level(config.log.level.into());
    let fixed = Fixed::of(&config);
    let listeners = Listeners::new();
    match Inherited::from_environment() {
        Ok(inherited) => listeners.inherited.add(inherited),
        Err(e) => return Err(StartError::Environment(format!("the sockets of the service manager cannot be used: {e}"))),
    }
    let admin_socket = bind(&listeners, &snapshot, &state, &fixed)?;
    let snapshot = Arc::new(snapshot);
    let metrics = Arc::new(GatewayMetrics::default());
    metrics.config_loaded(&snapshot.hash, snapshot.loaded_at);
    let gateway = Gateway::new(snapshot, clock.clone(), metrics);

    let mut app = HttpProxy::new(gateway.clone(), Arc::new(server_conf(&fixed)));
    app.handle_init_modules();
    let edge = Arc::new(Edge { app: Arc::new(app), gateway: gateway.clone() });
    let readiness = Readiness::of(&state);
    let reloader = Arc::new(Reloader {
        origin,
        registry,
        gateway: gateway.clone(),
        listeners: Arc::clone(&listeners),
        state: Arc::clone(&state),
        clock,
        supervisor: OnceLock::new(),
        keys: OnceLock::new(),
        logger,
        busy: tokio::sync::Mutex::new(()),
        last: Mutex::new(None),
        fixed: fixed.clone(),
    });
    let admin = Arc::new(admin::Admin {
        gateway: gateway.clone(),
        listeners: Arc::clone(&listeners),
        readiness: Arc::clone(&readiness),
        reloader: Arc::clone(&reloader),
        state,
    });
    let signals = signals::Signals {
        readiness: Arc::clone(&readiness),
        listeners: Arc::clone(&listeners),
        drain_delay: fixed.drain_delay,
        grace_period: fixed.grace_period,
    };
    let control = Control::new(reloader, admin, admin_socket, readiness, config.server.watch, ready);
    let server = Server::new_with_opt_and_conf(None, server_conf(&fixed));
    let edge = EdgeService { listeners, edge, workers: fixed.threads };
    Ok(Process { server, edge, control, signals, gateway })
}

impl Process {
    fn run(mut self) {
        self.server.bootstrap();
        self.server.add_service(self.edge);
        self.server.add_service(self.control);
        log::info!("gatewright {} starts, config {}", crate::VERSION, self.gateway.snapshot().hash);
        // Unlike `run_forever`, this returns.
        self.server.run(RunArgs { shutdown_signal: Box::new(self.signals) });
    }
}

/// All addresses at once, so that one run names every one that is taken.
fn bind(listeners: &Listeners, snapshot: &Snapshot, state: &StatePool, fixed: &Fixed) -> Result<AdminSocket, StartError> {
    let prepared = listeners.prepare(&snapshot.listeners);
    let admin = admin::bind(&fixed.admin);
    match (prepared, admin) {
        (Ok(prepared), Ok(admin)) => {
            listeners.commit(prepared, state);
            Ok(admin)
        }
        (prepared, admin) => {
            let mut lines: Vec<String> = prepared.err().unwrap_or_default().iter().map(ToString::to_string).collect();
            if let Err(e) = admin {
                lines.push(format!("the admin listener cannot bind {}: {e}", fixed.admin));
            }
            Err(StartError::Environment(lines.join("\nerror: ")))
        }
    }
}

fn server_conf(fixed: &Fixed) -> ServerConf {
    ServerConf {
        threads: fixed.threads,
        work_stealing: fixed.work_stealing,
        upstream_keepalive_pool_size: fixed.upstream_keepalive,
        // The bound on attempts is ours (`attempts` of the upstream); this one only has to lie above it.
        max_retries: 32,
        // Our own signal watch has waited for the requests already.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    }
}

/// The default action of SIGHUP is to end the process. Taking the signal over, which lasts for the life of the process,
/// must come first: an operator's reload script may be faster than our start.
fn hold_hangup() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Ok(runtime) = runtime {
        let _in_runtime = runtime.enter();
        let _ = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
    }
}
