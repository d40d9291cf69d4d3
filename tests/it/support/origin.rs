//! Origins inside the test process that answer, and misbehave, as the test says.
//!
//! Hand-written over plain TCP: an HTTP library would repair on the way in and refuse on the way out exactly what these
//! tests are about. The port stays reserved while an origin is stopped, so that it can come back on it and nobody else can.

mod serve;

use super::runtime;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, watch};

/// Requests kept word for word; later ones are only counted.
const RECORDED_MAX: usize = 20_000;

/// What an origin does with a request other than `/health`.
#[derive(Debug, Clone)]
pub enum Answer {
    /// 200 and JSON: `origin`, `method`, `target`, `headers` (pairs), `body`, and `id` (the `x-load-id` header).
    Echo,
    /// This status and the echo document.
    Status(u16),
    /// The echo, after this long.
    Delay(Duration),
    /// The echo in chunks of one byte, one each interval.
    Drip(Duration),
    /// A reset as soon as the request has been read.
    ResetBefore,
    /// A reset after this long.
    LateReset(Duration),
    /// Half of a body of known length, then a reset.
    ResetMid,
    /// Half of a chunked body, then a clean close without the last chunk.
    TruncatedChunks,
    /// Nothing, ever; the connection stays open.
    BlackHole,
    /// Bytes that are not HTTP.
    Garbage,
    /// A 200 with a header of this many bytes.
    HugeHeader(usize),
    /// A chunked body without end.
    InfiniteBody,
    /// The echo; each connection closes, with notice, after this many.
    CloseAfter(usize),
    /// Exactly these bytes; the connection stays open.
    Bytes(Vec<u8>),
    /// What the script makes of the request, byte for byte.
    Script(Script),
    /// Interim responses without end.
    InterimFlood,
    /// This status with these header lines, each with its line break, and no body.
    Refuse(u16, &'static str),
    /// The second answer in so many of a hundred cases, by chance, and else the first.
    Sometimes(Box<Answer>, u8, Box<Answer>),
    /// The echo, as a service with so many workers gives it: each works on one request at a time for so long.
    Workers(Arc<Semaphore>, Duration),
}

/// Answers by request. `None`: the connection closes without an answer.
#[derive(Clone)]
pub struct Script(pub Arc<Scripted>);

type Scripted = dyn Fn(&Recorded) -> Option<Vec<u8>> + Send + Sync;

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The head, byte for byte, with its empty line.
    pub head: Vec<u8>,
    /// The content, without chunk framing.
    pub body: Vec<u8>,
    /// The lines between the last chunk and the empty one, byte for byte.
    pub trailers: String,
    /// When its head was complete.
    pub at: SystemTime,
}

impl Recorded {
    /// Method, target and version.
    pub fn request_line(&self) -> String {
        String::from_utf8_lossy(&self.head).lines().next().unwrap_or_default().to_owned()
    }

    /// The values of all headers of this name.
    pub fn header_all(&self, name: &str) -> Vec<String> {
        let head = String::from_utf8_lossy(&self.head).into_owned();
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned()).collect()
    }

    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<String> {
        self.header_all(name).into_iter().next()
    }
}

/// What the connections of one origin share.
struct Shared {
    name: String,
    answer: Mutex<Answer>,
    healthy: AtomicBool,
    health_checks: AtomicUsize,
    requests: AtomicUsize,
    connections: AtomicUsize,
    recorded: Mutex<Vec<Recorded>>,
    ids: Mutex<HashMap<String, usize>>,
}

impl Shared {
    fn record(&self, request: Recorded) {
        self.requests.fetch_add(1, Ordering::SeqCst);
        if let Some(id) = request.header("x-load-id") {
            *self.ids.lock().entry(id).or_default() += 1;
        }
        let mut recorded = self.recorded.lock();
        if recorded.len() < RECORDED_MAX {
            recorded.push(request);
        }
    }
}

/// How the connections of one run of an origin are told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Finish what is under way, close what is idle.
    Draining,
    /// Reset everything.
    Killed,
}

/// Waits until the phase is one of these; an origin that was dropped is killed.
async fn until(phase: &mut watch::Receiver<Phase>, wanted: fn(Phase) -> bool) {
    let gone = phase.wait_for(|phase| wanted(*phase)).await.is_err();
    if gone && !wanted(Phase::Killed) {
        std::future::pending::<()>().await;
    }
}

/// One origin.
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    phase: Mutex<Option<watch::Sender<Phase>>>,
    _port: TcpSocket,
}

impl Origin {
    /// Starts an origin that echoes, on a port of 127.0.0.1 that the kernel picks.
    pub fn start(name: &str) -> Origin {
        // Bound with SO_REUSEADDR and never listening, this socket keeps the port ours between a stop and a start.
        let port = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let shared = Shared {
            name: name.to_owned(),
            answer: Mutex::new(Answer::Echo),
            healthy: AtomicBool::new(true),
            health_checks: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            recorded: Mutex::new(Vec::new()),
            ids: Mutex::new(HashMap::new()),
        };
        let address = port.local_addr().unwrap();
        let origin = Origin { address, shared: Arc::new(shared), phase: Mutex::new(None), _port: port };
        origin.start_again();
        origin
    }

    /// Starts this many origins, named a, b, c, ...
    pub fn start_many(count: usize) -> Vec<Origin> {
        ('a'..='z').take(count).map(|name| Origin::start(&name.to_string())).collect()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Says what to do with requests from now on.
    pub fn answer(&self, answer: Answer) {
        *self.shared.answer.lock() = answer;
    }

    /// What `/health` answers: 200 or 503.
    pub fn set_healthy(&self, healthy: bool) {
        self.shared.healthy.store(healthy, Ordering::SeqCst);
    }

    /// Stops as a good server does on SIGTERM: accepts no more, finishes what is under way, closes idle connections.
    /// Returns when all connections are gone.
    pub fn stop(&self) {
        self.end(Phase::Draining);
    }

    /// Stops as SIGKILL does: every connection is reset.
    pub fn kill(&self) {
        self.end(Phase::Killed);
    }

    fn end(&self, how: Phase) {
        if let Some(phase) = self.phase.lock().take() {
            phase.send_replace(how);
            runtime().block_on(phase.closed());
        }
    }

    /// Listens again on the same port after [`Origin::stop`] or [`Origin::kill`].
    pub fn start_again(&self) {
        let _context = runtime().enter();
        let listener = bind(self.address).listen(1024).unwrap();
        let (phase, watching) = watch::channel(Phase::Serving);
        assert!(self.phase.lock().replace(phase).is_none(), "origin {} runs already", self.name());
        runtime().spawn(accept(listener, self.shared.clone(), watching));
    }

    /// Requests so far, without health checks.
    pub fn count(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Health checks so far.
    pub fn health_checks(&self) -> usize {
        self.shared.health_checks.load(Ordering::SeqCst)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// The first 20,000 requests, as they arrived.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.recorded.lock().clone()
    }

    /// The newest request that was kept.
    #[track_caller]
    pub fn last(&self) -> Recorded {
        self.shared.recorded.lock().last().cloned().unwrap_or_else(|| panic!("origin {} saw no request", self.shared.name))
    }

    /// How often each `x-load-id` arrived.
    pub fn ids(&self) -> HashMap<String, usize> {
        self.shared.ids.lock().clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(phase) = self.phase.lock().take() {
            phase.send_replace(Phase::Killed);
        }
    }
}

fn bind(address: SocketAddr) -> TcpSocket {
    let end = std::time::Instant::now() + super::SOON;
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        match socket.bind(address) {
            Ok(()) => return socket,
            // While an origin was away, a connection of another test may have got its port for a moment.
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && std::time::Instant::now() < end => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(e) => panic!("{address}: {e}"),
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, mut phase: watch::Receiver<Phase>) {
    loop {
        tokio::select! {
            biased;
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                shared.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve::connection(stream, shared.clone(), phase.clone()));
            }
            // After `accept` in order: who is in the queue already is still served, as far as one can know.
            () = until(&mut phase, |phase| phase != Phase::Serving) => return,
        }
    }
}
