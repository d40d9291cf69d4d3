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
use crate::listener::{Edge, EdgeService, Inherited, Listeners, Passed};
use crate::proxy::Gateway;
use crate::readiness::Readiness;
use crate::reload::{Origin, Reloader, Turns};
use crate::snapshot::{self, CompileParts, Fixed, Snapshot};
use crate::state::StatePool;
use crate::telemetry::logger::{self, LoggerHandle, LoggerOptions};
use crate::telemetry::metrics::GatewayMetrics;
use crate::upgrade::{Door, Fate, Predecessor, Received, Upgrader};
use crate::upstream::Keeper;
use crate::value::Address;
use control::Control;
use parking_lot::Mutex;
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The most threads for work that would hold up a worker, such as compressing a large answer once for all: tokio's own default.
const BLOCKING_THREADS: usize = 512;
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
    hold_signals();
    // Before Pingora installs its own.
    crate::tls::install();
    let logger = logger::init(LoggerOptions::default()).map_err(|e| StartError::Environment(e.to_string()))?;
    let result = start(origin, registry, logger.clone(), ready);
    logger.flush(FLUSH);
    result
}

/// Assembles and runs. A process that was started to replace another one has that tell why it cannot.
fn start(origin: Origin, registry: Registry, logger: LoggerHandle, ready: Option<Ready>) -> Result<(), StartError> {
    let received = Predecessor::from_environment()
        .map_err(|e| StartError::Environment(format!("the process before does not hand over its sockets: {e}")))?;
    let (predecessor, sockets, admin) = match received {
        Some(Received { predecessor, sockets, admin }) => (Some(predecessor), sockets, admin),
        None => (None, Vec::new(), None),
    };
    match assemble(origin, registry, logger, ready, Given { sockets, admin }) {
        Ok(process) => process.run(predecessor),
        Err(error) => {
            if let Some(predecessor) = predecessor {
                predecessor.refuse(match &error {
                    StartError::Config(diagnostics) => diagnostics.render(false),
                    StartError::Environment(why) => format!("error: {why}\n"),
                });
            }
            Err(error)
        }
    }
}

/// Sockets that the process before has handed over.
struct Given {
    sockets: Vec<Passed>,
    admin: Option<(Address, OwnedFd)>,
}

/// Everything that exists before the first request.
struct Process {
    server: Server,
    edge: EdgeService,
    control: Control,
    signals: signals::Signals,
    gateway: Gateway,
    listeners: Arc<Listeners>,
    upgrader: Arc<Upgrader>,
}

fn assemble(
    origin: Origin,
    registry: Registry,
    logger: LoggerHandle,
    ready: Option<Ready>,
    given: Given,
) -> Result<Process, StartError> {
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
    inherit(&listeners, given.sockets)?;
    let admin_socket = bind(&listeners, &snapshot, &state, &fixed, given.admin)?;
    let door = Door::new(fixed.admin.clone());
    let snapshot = Arc::new(snapshot);
    let metrics = Arc::new(GatewayMetrics::default());
    metrics.config_loaded(&snapshot.hash, snapshot.loaded_at);
    let gateway = Gateway::new(snapshot, clock.clone(), metrics);

    let mut app = HttpProxy::new(gateway.clone(), Arc::new(server_conf(&fixed)));
    app.handle_init_modules();
    let edge = Arc::new(Edge { app: Arc::new(app), gateway: gateway.clone() });
    let readiness = Readiness::of(&state);
    let reloader = Arc::new(Reloader {
        gone: std::sync::atomic::AtomicBool::new(false),
        refused_files: parking_lot::Mutex::default(),
        reloaded: tokio::sync::Notify::new(),
        origin,
        registry,
        gateway: gateway.clone(),
        listeners: Arc::clone(&listeners),
        state: Arc::clone(&state),
        clock,
        supervisor: OnceLock::new(),
        keys: OnceLock::new(),
        logger,
        busy: Turns::default(),
        last: Mutex::new(None),
        fixed: fixed.clone(),
    });
    let upgrader = Upgrader::new(Arc::clone(&listeners), Arc::clone(&reloader), Arc::clone(&door));
    let admin = Arc::new(admin::Admin {
        upgrader: Arc::clone(&upgrader),
        door: Arc::clone(&door),
        gateway: gateway.clone(),
        listeners: Arc::clone(&listeners),
        readiness: Arc::clone(&readiness),
        reloader: Arc::clone(&reloader),
        state,
    });
    let signals = signals::Signals {
        readiness: Arc::clone(&readiness),
        listeners: Arc::clone(&listeners),
        upgrader: Arc::clone(&upgrader),
        door,
        drain_delay: fixed.drain_delay,
        grace_period: fixed.grace_period,
        ends: Mutex::new(None),
        opens: false,
    };
    let keeper = Keeper::of(&admin.state);
    keeper.keep_at_most(fixed.upstream_keepalive);
    let control = Control::new(reloader, admin, admin_socket, readiness, keeper, config.server.watch, ready);
    let server = Server::new_with_opt_and_conf(None, server_conf(&fixed));
    let edge = EdgeService { listeners: Arc::clone(&listeners), edge, workers: fixed.threads, grace_period: fixed.grace_period };
    Ok(Process { server, edge, control, signals, gateway, listeners, upgrader })
}

impl Process {
    fn run(mut self, predecessor: Option<Predecessor>) -> Result<(), StartError> {
        // Pingora builds its last runtime after the services have begun: whoever fills the process with connections in that moment
        // must not leave it without the descriptors for that.
        self.listeners.hold();
        match predecessor {
            Some(predecessor) => self.control.succeed(predecessor),
            None => self.signals.opens = true,
        }
        self.server.bootstrap();
        self.server.add_service(self.edge);
        self.server.add_service(self.control);
        log::info!("gatewright {} starts, config {}", crate::VERSION, self.gateway.snapshot().hash);
        *self.signals.ends.lock() = in_some_runtime(signals::Ends::take_over).flatten();
        // Unlike `run_forever`, this returns.
        self.server.run(RunArgs { shutdown_signal: Box::new(self.signals) });
        if let Some(redis) = self.gateway.snapshot().limits.live_redis() {
            redis.close();
        }
        match self.upgrader.fate() {
            Fate::Abandoned => Err(StartError::Environment("the process before has gone or has given the upgrade up".to_owned())),
            Fate::Serving | Fate::HandedOver => Ok(()),
        }
    }
}

/// Sockets that others have bound for this process.
fn inherit(listeners: &Listeners, handed_over: Vec<Passed>) -> Result<(), StartError> {
    let unusable = |from: &str, e: std::io::Error| StartError::Environment(format!("the sockets of {from} cannot be used: {e}"));
    let passed = Inherited::from_environment().map_err(|e| unusable("the service manager", e))?;
    listeners.inherited.extend(passed);
    for passed in handed_over {
        listeners.inherited.add(passed).map_err(|e| unusable("the process before", e))?;
    }
    Ok(())
}

/// All addresses at once, so that one run names every one that is taken.
fn bind(
    listeners: &Listeners,
    snapshot: &Snapshot,
    state: &StatePool,
    fixed: &Fixed,
    given: Option<(Address, OwnedFd)>,
) -> Result<AdminSocket, StartError> {
    let prepared = listeners.prepare(&snapshot.listeners);
    let given = given.filter(|(address, _)| *address == fixed.admin);
    let admin = given.map_or_else(|| admin::bind(&fixed.admin), |(address, socket)| AdminSocket::inherit(&address, socket));
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
        // Workers with runtimes of their own have such threads each.
        max_blocking_threads: Some(if fixed.work_stealing {
            BLOCKING_THREADS
        } else {
            BLOCKING_THREADS.div_ceil(fixed.threads.max(1))
        }),
        upstream_keepalive_pool_size: fixed.upstream_keepalive,
        // The bound on attempts is ours (`attempts` of the upstream); this one only has to lie above it.
        max_retries: 32,
        // Our own signal watch has waited for the requests already.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    }
}

/// The default action of SIGHUP and SIGUSR2 is to end the process. Taking the signals over, which lasts for the life of the
/// process, must come first: an operator's script may be faster than our start.
fn hold_signals() {
    in_some_runtime(|| {
        let _ = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
        let _ = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::user_defined2());
    });
}

/// For what must be called in a runtime and lasts longer than it.
fn in_some_runtime<T>(work: impl FnOnce() -> T) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let _in_runtime = runtime.enter();
    Some(work())
}
