//! Our own listeners in front of Pingora's proxy.
//!
//! Pingora's cannot be added or removed while running, cap no connections, bound a header only read by read, and hand the
//! parser whatever arrives. These are bound first and swapped in as part of a reload, check every head before a session
//! exists, and know how to leave politely. One listener is one socket, with accept loops on a few workers.

mod accept;
mod bind;
mod connection;
mod date;
mod deadline;
mod fault;
mod h2;
pub mod head;
mod io;
mod linger;
mod pace;
mod patience;
pub mod proxy_protocol;
mod stage;
mod transport;
mod workers;

pub use bind::{BindError, Inherited, Passed, Prepared, remove_stale};
pub use connection::Connection;
pub use date::{DATE_LENGTH, Date};
pub use fault::{FAULTS, Fault, Faults};
pub use io::IoBounds;
pub use pace::Pace;
pub use patience::Tolerance;
pub use stage::{Active, Stage};

use crate::canonical::{HostProblem, PathProblem, PathRules};
use crate::forwarded::TrustedProxies;
use crate::limit::shield::Shield;
use crate::proxy::Gateway;
use crate::telemetry::metrics::ListenerMetrics;
use crate::tls::ServerTls;
use crate::value::Address;
use arc_swap::{ArcSwap, Guard};
use async_trait::async_trait;
use head::HeadLimits;
use parking_lot::Mutex;
use pingora::proxy::HttpProxy;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use stage::StageCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, Weak};
use std::time::Duration;
use workers::Workers;

/// Why a connection was closed before its first request.
#[derive(Debug, Clone, Copy)]
#[repr(usize)]
enum Refusal {
    TooMany,
    TooManyFromAddress,
    AcceptFailed,
    TooManyHandshakes,
    HandshakeTimeout,
    HandshakeFailed,
    ProxyHeader,
    TooManyInAll,
}

/// The names of [`Refusal`], as metric labels.
const REFUSALS: &[&str] = &[
    "max_connections",
    "max_connections_per_address",
    "accept_failed",
    "max_handshakes",
    "handshake_timeout",
    "handshake_failed",
    "proxy_header",
    "max_connections_in_all",
];

/// Why the gateway closed a connection while no request was under way.
#[derive(Debug, Clone, Copy)]
#[repr(usize)]
enum Closed {
    Idle,
    LastRequest,
    Silent,
    Leaving,
}

/// The names of [`Closed`], as metric labels.
const CLOSED: &[&str] = &["idle", "last_request", "silent", "leaving"];

/// What is wrong with a request beyond [`head::Malformed`]: what only time can tell, and what HTTP/2 found by itself.
#[derive(Debug, Clone, Copy)]
#[repr(usize)]
enum Irregular {
    HeaderTimeout,
    Http2,
}

impl Irregular {
    const NAMES: [&str; 2] = ["header_timeout", "http2_protocol"];

    /// In [`MALFORMED`], after those of a head.
    fn index(self) -> usize {
        head::Malformed::ALL.len().saturating_add(self as usize)
    }
}

/// The names of [`head::Malformed`] in its order and, after them, those of [`Irregular`], [`PathProblem`] and [`HostProblem`].
static MALFORMED: LazyLock<Box<[&str]>> = LazyLock::new(|| {
    let head = head::Malformed::ALL.iter().map(|reason| reason.name());
    let path = PathProblem::ALL.iter().map(|reason| reason.name());
    let host = HostProblem::ALL.iter().map(|reason| reason.name());
    head.chain(Irregular::NAMES).chain(path).chain(host).collect()
});

/// What is wrong with a request that was understood but for its path or its host.
#[derive(Debug, Clone, Copy)]
pub enum Unclear {
    Path(PathProblem),
    Host(HostProblem),
}

impl Unclear {
    pub fn name(self) -> &'static str {
        match self {
            Unclear::Path(problem) => problem.name(),
            Unclear::Host(problem) => problem.name(),
        }
    }

    /// In [`MALFORMED`].
    fn index(self) -> usize {
        let paths = head::Malformed::ALL.len().saturating_add(Irregular::NAMES.len());
        match self {
            Unclear::Path(problem) => paths.saturating_add(problem as usize),
            Unclear::Host(problem) => paths.saturating_add(PathProblem::ALL.len()).saturating_add(problem as usize),
        }
    }
}

/// Whether and how a listener speaks HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http2Mode {
    Off,
    /// By agreement in the TLS handshake.
    Tls,
    /// Without TLS, by prior knowledge, beside HTTP/1.
    Cleartext,
}

/// The bounds of a listener. A reload swaps them; connections take the new ones with their next request.
#[derive(Debug, Clone)]
pub struct ListenerSettings {
    pub head: HeadLimits,
    pub path: PathRules,
    /// From the first byte of a request to the end of its head, in all.
    pub header_timeout: Duration,
    /// How long a connection may stay idle between two requests.
    pub keepalive_timeout: Duration,
    pub keepalive_requests: Option<u32>,
    /// How slow a client may be.
    pub io: IoBounds,
    pub http2: Http2Mode,
    /// Streams under way on one connection.
    pub http2_max_streams: u32,
    /// `None`: plain.
    pub tls: Option<Arc<ServerTls>>,
    /// Plain requests are redirected to this port.
    pub redirect_to_https: Option<u16>,
    /// Whose PROXY headers are believed, and must come; `None`: nobody's.
    pub proxy_protocol: Option<Arc<TrustedProxies>>,
    pub max_connections: usize,
    /// On all listeners together.
    pub max_connections_in_all: usize,
    /// For each client address; IPv6 by /64.
    pub max_connections_per_address: Option<u32>,
    /// What the listener takes as a whole.
    pub shield: Option<Arc<Shield>>,
}

/// One listener as the snapshot wants it.
#[derive(Debug, Clone)]
pub struct ListenerPlan {
    pub name: Arc<str>,
    pub address: Address,
    pub settings: Arc<ListenerSettings>,
}

/// One listener as it runs, shared by its connections.
#[derive(Debug)]
pub struct ListenerState {
    pub name: Arc<str>,
    settings: ArcSwap<ListenerSettings>,
    pub stage: StageCell,
    pub active: Active,
    pub metrics: Arc<ListenerMetrics>,
    /// The socket, for as long as an accept loop has it.
    socket: OnceLock<Weak<dyn AsFd + Send + Sync>>,
    handed_over: AtomicBool,
    /// TLS handshakes under way.
    handshakes: Active,
    by_address: Mutex<HashMap<IpAddr, u32>>,
}

impl ListenerState {
    /// Counts a request that is refused for it.
    pub fn unclear(&self, what: Unclear) {
        self.metrics.malformed.count(what.index());
    }

    fn new(plan: &ListenerPlan, metrics: Arc<ListenerMetrics>) -> Arc<Self> {
        Arc::new(ListenerState {
            name: Arc::clone(&plan.name),
            settings: ArcSwap::new(Arc::clone(&plan.settings)),
            stage: StageCell::new(),
            active: Active::default(),
            metrics,
            socket: OnceLock::new(),
            handed_over: AtomicBool::new(false),
            handshakes: Active::default(),
            by_address: Mutex::default(),
        })
    }

    /// To be kept.
    pub fn settings(&self) -> Arc<ListenerSettings> {
        self.settings.load_full()
    }

    /// For a look: counts nothing that other threads count too. Not to be held over an await.
    pub fn settings_now(&self) -> Guard<Arc<ListenerSettings>> {
        self.settings.load()
    }

    fn accepts_on<S: AsFd + Send + Sync + 'static>(&self, socket: &Arc<S>) {
        let socket: Arc<dyn AsFd + Send + Sync> = Arc::<S>::clone(socket);
        // A listener accepts once in its life, so the cell is empty.
        let _ = self.socket.set(Arc::downgrade(&socket));
    }

    /// A second descriptor of the socket; `None` when it does not accept (any more).
    fn share(&self) -> Option<OwnedFd> {
        self.socket.get()?.upgrade()?.as_fd().try_clone_to_owned().ok()
    }

    /// Whether an accept loop has the socket.
    fn accepts(&self) -> bool {
        self.socket.get().is_some_and(|socket| socket.strong_count() > 0)
    }

    /// The socket goes on without this listener, and with it its file.
    fn pass_on(&self) {
        self.handed_over.store(true, Ordering::Release);
    }

    /// Whether somebody else has the socket now.
    fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Acquire)
    }
}

/// What serving a connection needs.
pub struct Edge {
    pub app: Arc<HttpProxy<Gateway>>,
    pub gateway: Gateway,
}

/// A listener that is accepting.
struct Bound {
    requested: Address,
    local: Address,
    /// The file of a unix socket is ours to remove.
    owned: bool,
    state: Arc<ListenerState>,
}

/// All listeners of the process: bound before the server runs and, later, by the reloader.
#[derive(Default)]
pub struct Listeners {
    runtime: OnceLock<Runtime>,
    bound: Mutex<BTreeMap<Arc<str>, Bound>>,
    /// Listeners that a reload has removed, for as long as they have connections.
    retired: Mutex<Vec<Weak<ListenerState>>>,
    /// Sockets that were bound before the service had a runtime to accept on.
    waiting: Mutex<Vec<(bind::Socket, Arc<ListenerState>)>>,
    /// Sockets that somebody else has bound for us and that no listener has taken yet.
    pub inherited: Inherited,
    /// Every open connection of the process, whatever listener it came in by.
    pub connections: Arc<Active>,
    started: tokio::sync::watch::Sender<bool>,
    /// Whether sockets may be accepted on: not while the process that we got them from still does.
    held: tokio::sync::watch::Sender<bool>,
}

#[derive(Clone)]
struct Runtime {
    workers: Workers,
    edge: Arc<Edge>,
    shutdown: ShutdownWatch,
    grace_period: Duration,
}

impl Listeners {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Name and bound address of each listener; the port is the kernel's choice where the config says 0.
    pub fn addresses(&self) -> Vec<(Arc<str>, Address)> {
        self.bound.lock().iter().map(|(name, bound)| (Arc::clone(name), bound.local.clone())).collect()
    }

    pub fn states(&self) -> Vec<Arc<ListenerState>> {
        self.bound.lock().values().map(|bound| Arc::clone(&bound.state)).collect()
    }

    /// Moves every listener on its way out.
    pub fn advance(&self, stage: Stage) {
        let retired = self.retired.lock().iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        for state in self.states().into_iter().chain(retired) {
            state.stage.advance(stage);
        }
    }

    /// Lets a listener that is no more accept nothing, and its connections go with the answers to their next requests: one that is
    /// closed while it is idle may meet a request that is on its way. What is left after the grace period is closed.
    fn retire(&self, state: &Arc<ListenerState>) {
        state.stage.advance(Stage::HandedOver);
        let Some(runtime) = self.runtime.get() else { return state.stage.advance(Stage::Closing) };
        let state = Arc::downgrade(state);
        {
            let mut retired = self.retired.lock();
            retired.retain(|old| old.strong_count() > 0);
            retired.push(Weak::clone(&state));
        }
        let grace_period = runtime.grace_period;
        runtime.workers.first().spawn(async move {
            tokio::time::sleep(grace_period).await;
            if let Some(state) = state.upgrade() {
                state.stage.advance(Stage::Closing);
            }
        });
    }

    /// Returns once no listener accepts any more, and what its socket leaves behind has been removed. After
    /// [`Stage::HandedOver`] that is a matter of the loops' next turn, which the end of the process must not cut off.
    pub async fn wait_closed(&self) {
        const TURN: Duration = Duration::from_millis(1);
        let states = self.states();
        while states.iter().any(|state| state.accepts()) {
            tokio::time::sleep(TURN).await;
        }
    }

    /// Keeps the service from accepting until [`Listeners::let_go`].
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    pub fn let_go(&self) {
        self.held.send_replace(false);
    }

    /// A second descriptor of every socket that is accepted on, and of those that nobody has taken yet.
    pub fn share(&self) -> std::io::Result<Vec<Passed>> {
        let mut passed = self.inherited.share()?;
        for (name, bound) in self.bound.lock().iter() {
            let Some(socket) = bound.state.share() else { continue };
            passed.push(Passed {
                listener: Some(Arc::clone(name)),
                requested: bound.requested.clone(),
                local: bound.local.clone(),
                owned: bound.owned,
                socket,
            });
        }
        Ok(passed)
    }

    /// Another process accepts now: this one stops to, and its connections move over with their next request.
    pub fn hand_over(&self) {
        for state in self.states() {
            state.pass_on();
            state.stage.advance(Stage::HandedOver);
        }
    }

    /// Returns once the service accepts.
    pub async fn wait_started(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.started.subscribe().wait_for(|started| *started).await;
    }

    /// Whether the runtime that carries traffic still runs tasks.
    pub async fn ping(&self) -> bool {
        match self.runtime.get() {
            Some(runtime) => runtime.workers.ping().await,
            None => false,
        }
    }

    fn accept_on(&self, socket: bind::Socket, state: Arc<ListenerState>) {
        match self.runtime.get() {
            Some(runtime) => accept::spawn(runtime, socket, state, Arc::clone(&self.connections)),
            None => self.waiting.lock().push((socket, state)),
        }
    }
}

/// The Pingora service whose runtime accepts and serves.
pub struct EdgeService {
    pub listeners: Arc<Listeners>,
    pub edge: Arc<Edge>,
    pub workers: usize,
    /// How long the connections of a listener that is removed may stay.
    pub grace_period: Duration,
}

#[async_trait]
impl Service for EdgeService {
    async fn start_service(&mut self, _fds: Option<ListenFds>, mut shutdown: ShutdownWatch, _per_fd: usize) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.listeners.held.subscribe().wait_for(|held| !held).await;
        let workers = Workers::find(self.workers);
        let (edge, grace_period) = (Arc::clone(&self.edge), self.grace_period);
        let runtime = Runtime { workers, edge, shutdown: shutdown.clone(), grace_period };
        if self.listeners.runtime.set(runtime).is_err() {
            log::error!("the edge service was started twice");
            return;
        }
        let waiting = std::mem::take(&mut *self.listeners.waiting.lock());
        for (socket, state) in waiting {
            self.listeners.accept_on(socket, state);
        }
        self.listeners.started.send_replace(true);
        // The listeners outlive this future; it only keeps the service, and with it the runtime, alive.
        let _ = shutdown.changed().await;
    }

    fn name(&self) -> &str {
        "edge"
    }

    fn threads(&self) -> Option<usize> {
        Some(self.workers)
    }
}
