//! Accepting: a few loops on the shared socket, with the caps that hold before anything is read.
//!
//! The workers share one socket, and do not have one each by `SO_REUSEPORT`. With one each, the kernel deals connections out by a
//! hash of their addresses, whoever is busy, and those that wait in a socket are lost with it: fewer workers after an upgrade
//! would lose some. With one for all, whoever accepts and is free takes the next connection, for the worker that has the fewest
//! ([`super::workers`]), and one file descriptor is all that an upgrade hands over. What it costs is that accepts meet at one
//! queue, which on two cores cannot be seen: 18,690 connections a second with one socket, 18,669 with two
//! (`cargo bench --bench accept`, 2026-11-29).

use super::bind::Socket;
use super::connection::{self, Connection};
use super::proxy_protocol::{self, Named};
use super::transport::Transport;
use super::workers::{Seat, Workers};
use super::{Active, ListenerSettings, ListenerState, Refusal, Runtime, Stage};
use crate::request::TlsFacts;
use crate::telemetry::metrics::GaugeGuard;
use crate::tls::ServerTls;
use pingora::protocols::SocketDigest;
use pingora::protocols::l4::socket::SocketAddr as DigestAddr;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// Out of file descriptors or memory, accepting again at once would spin: the backlog waits this long instead.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// How many workers with runtimes of their own accept, each for all: every one of them is woken for every connection.
pub const ACCEPTORS: usize = 4;

/// Starts the loops of one listener on the edge's runtime.
pub fn spawn(runtime: &Runtime, socket: Socket, state: Arc<ListenerState>, everywhere: Arc<Active>) {
    let _in_runtime = runtime.workers.first().enter();
    match socket {
        Socket::Tcp(socket) => {
            if let Err(e) = spawn_tcp(runtime, socket, &state, &everywhere) {
                log::error!("listener `{}` cannot join the runtime: {e}", state.name);
            }
        }
        Socket::Unix { socket, owned } => match UnixListener::from_std(socket) {
            Ok(listener) => {
                let listener = Arc::new(listener);
                state.accepts_on(&listener);
                runtime.workers.first().spawn(accept_unix(listener, owned, state, everywhere, runtime.clone()));
            }
            Err(e) => log::error!("listener `{}` cannot join the runtime: {e}", state.name),
        },
    }
}

/// One loop for each worker, or for a few that have runtimes of their own. Workers of one runtime share its descriptor; each that
/// has a runtime of its own is woken by a descriptor of its own, or the first would take all that comes while the others are
/// being told.
fn spawn_tcp(
    runtime: &Runtime,
    socket: std::net::TcpListener,
    state: &Arc<ListenerState>,
    everywhere: &Arc<Active>,
) -> io::Result<()> {
    let joined = |worker: &Handle, socket| {
        let _in_its_runtime = worker.enter();
        TcpListener::from_std(socket).map(Arc::new)
    };
    // All of them, before one accepts.
    let more = runtime.workers.others().take(ACCEPTORS - 1);
    let others = more.map(|(at, worker)| Ok((at, worker, joined(worker, socket.try_clone()?)?)));
    let others = others.collect::<io::Result<Vec<_>>>()?;
    let first = joined(runtime.workers.first(), socket)?;
    state.accepts_on(&first);
    let start = |at: usize, worker: &Handle, listener: Arc<TcpListener>| {
        // The first stands for all of them: it is there as long as one loop is.
        let task = accept_tcp(listener, at, Arc::clone(state), Arc::clone(everywhere), runtime.clone());
        let first = Arc::clone(&first);
        worker.spawn(async move {
            task.await;
            drop(first);
        });
    };
    if others.is_empty() {
        runtime.workers.each().for_each(|(at, worker)| start(at, worker, Arc::clone(&first)));
        return Ok(());
    }
    start(0, runtime.workers.first(), Arc::clone(&first));
    for (at, worker, listener) in others {
        start(at, worker, listener);
    }
    Ok(())
}

/// `own` is the number of the worker that this runs on.
async fn accept_tcp(
    listener: Arc<TcpListener>,
    own: usize,
    state: Arc<ListenerState>,
    everywhere: Arc<Active>,
    runtime: Runtime,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = state.stage.wait_for(Stage::HandedOver) => return,
        };
        match accepted {
            Ok((stream, peer)) => start_tcp(stream, peer, own, &state, &everywhere, &runtime),
            Err(e) => accept_failed(&state, &e).await,
        }
    }
}

async fn accept_unix(
    listener: Arc<UnixListener>,
    owned: bool,
    state: Arc<ListenerState>,
    everywhere: Arc<Active>,
    runtime: Runtime,
) {
    let path = listener.local_addr().ok().and_then(|local| local.as_pathname().map(ToOwned::to_owned));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = state.stage.wait_for(Stage::HandedOver) => break,
        };
        match accepted {
            Ok((stream, _)) => start_unix(stream, &state, &everywhere, &runtime),
            Err(e) => accept_failed(&state, &e).await,
        }
    }
    // Nobody can connect to the file any more. The service manager's and the one that a successor has go on without us.
    if let Some(path) = path.filter(|_| owned && !state.is_handed_over()) {
        let _ = std::fs::remove_file(path);
    }
}

async fn accept_failed(state: &ListenerState, error: &io::Error) {
    state.metrics.refused.count(Refusal::AcceptFailed as usize);
    // EMFILE, ENFILE, ENOBUFS, ENOMEM: ours to wait out. All others concern one connection that is gone already.
    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) {
        log::warn!("listener `{}` cannot accept: {error}", state.name);
        tokio::time::sleep(EXHAUSTED_PAUSE).await;
    }
}

fn start_tcp(
    stream: TcpStream,
    peer: SocketAddr,
    own: usize,
    state: &Arc<ListenerState>,
    everywhere: &Arc<Active>,
    runtime: &Runtime,
) {
    let settings = state.settings();
    let sent_by_proxy = settings.proxy_protocol.as_ref().is_some_and(|from| from.contains(peer.ip()));
    // Behind a load balancer it is the clients that are counted, once they are known.
    let counted = Some(peer.ip()).filter(|_| !sent_by_proxy);
    let Some(admission) = Admission::try_new(state, everywhere, &settings, counted) else {
        return;
    };
    // Answers leave when they are flushed; Nagle's algorithm could only delay them. A failure costs latency, nothing else.
    let _ = stream.set_nodelay(true);
    let (state, runtime) = (Arc::clone(state), runtime.clone());
    let workers = runtime.workers.clone();
    let failed = Arc::clone(&state);
    let serve = move |stream: TcpStream, seat: Seat| async move {
        let _seat = seat;
        let arriving = Arriving { stream, peer, admission };
        let arrived = if sent_by_proxy { Box::pin(arriving.named_by_proxy(&state, &settings)).await } else { Some(arriving) };
        let Some(Arriving { stream, peer, admission }) = arrived else { return };
        let _admission = admission;
        let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
        // The address is known: leave it there, so that nobody asks the kernel again.
        let _ = digest.peer_addr.set(Some(DigestAddr::Inet(peer)));
        if settings.tls.is_some() {
            return Box::pin(secure(stream, Some(peer.ip()), digest, state, settings, runtime)).await;
        }
        drop(settings);
        let connection = Connection::new(state, Some(peer.ip()), None);
        connection::serve(stream, digest, connection, &runtime.edge, &runtime.shutdown).await;
    };
    place(stream, own, &workers, failed, serve);
}

/// Has the worker serve a connection that has the fewest. It is that worker's reactor which is to watch it.
fn place<S: Moves, F: Future<Output = ()> + Send + 'static>(
    stream: S,
    own: usize,
    workers: &Workers,
    state: Arc<ListenerState>,
    serve: impl FnOnce(S, Seat) -> F + Send + 'static,
) {
    let seat = workers.seat(own);
    let elsewhere = seat.worker().filter(|_| seat.at() != own).cloned();
    let Some(worker) = elsewhere else {
        // As it is: a future that waits for one that it has been given has room for two of them.
        tokio::spawn(serve(stream, seat));
        return;
    };
    // Which fails where the kernel has no memory for it.
    let lost = move || state.metrics.refused.count(Refusal::AcceptFailed as usize);
    let Ok(stream) = stream.leave() else { return lost() };
    worker.spawn(async move {
        match S::join(stream) {
            Ok(stream) => serve(stream, seat).await,
            Err(_) => lost(),
        }
    });
}

/// A socket that can go from one runtime to another.
trait Moves: Sized + Send + 'static {
    type Plain: Send + 'static;
    fn leave(self) -> io::Result<Self::Plain>;
    fn join(plain: Self::Plain) -> io::Result<Self>;
}

impl Moves for TcpStream {
    type Plain = std::net::TcpStream;
    fn leave(self) -> io::Result<Self::Plain> {
        self.into_std()
    }
    fn join(plain: Self::Plain) -> io::Result<Self> {
        TcpStream::from_std(plain)
    }
}

impl Moves for UnixStream {
    type Plain = std::os::unix::net::UnixStream;
    fn leave(self) -> io::Result<Self::Plain> {
        self.into_std()
    }
    fn join(plain: Self::Plain) -> io::Result<Self> {
        UnixStream::from_std(plain)
    }
}

/// A connection with TLS. Boxed by whoever calls it: its session would be part of every plain connection's future.
async fn secure<T: Transport>(
    stream: T,
    peer: Option<IpAddr>,
    digest: SocketDigest,
    state: Arc<ListenerState>,
    settings: Arc<ListenerSettings>,
    runtime: Runtime,
) {
    let Some(tls) = &settings.tls else { return };
    let Some((stream, facts)) = Box::pin(handshake(stream, tls, &state)).await else { return };
    drop(settings);
    let connection = Connection::new(state, peer, Some(facts));
    connection::serve(stream, digest, connection, &runtime.edge, &runtime.shutdown).await;
}

/// A TCP connection before its first byte of HTTP.
struct Arriving {
    stream: TcpStream,
    peer: SocketAddr,
    admission: Admission,
}

impl Arriving {
    /// Reads the PROXY header, which must come: a balancer that forgets it would lend its own address to everybody.
    async fn named_by_proxy(mut self, state: &ListenerState, settings: &ListenerSettings) -> Option<Self> {
        let read = pingora_timeout::timeout(settings.header_timeout, proxy_protocol::read(&mut self.stream)).await;
        match read {
            Ok(Ok(Named::Client(client))) => self.peer = client,
            Ok(Ok(Named::Sender)) => {}
            Ok(Err(_)) | Err(_) => {
                state.metrics.refused.count(Refusal::ProxyHeader as usize);
                return None;
            }
        }
        self.admission.count_address(settings, self.peer.ip()).then_some(self)
    }
}

/// Gives the place of a handshake back, also when its task panics.
struct Shaking<'a>(&'a Active);

impl Drop for Shaking<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

async fn handshake<T: Transport>(stream: T, tls: &ServerTls, state: &ListenerState) -> Option<(TlsStream<T>, Arc<TlsFacts>)> {
    let shaken = pingora_timeout::timeout(tls.handshake_timeout, shake(stream, tls, state)).await;
    match shaken.unwrap_or(Err(Refusal::HandshakeTimeout)) {
        Ok((stream, rules)) => {
            let facts = Arc::new(crate::tls::server::facts(stream.get_ref().1, rules));
            Some((stream, facts))
        }
        Err(why) => {
            state.metrics.refused.count(why as usize);
            None
        }
    }
}

/// The handshake, and the rules for client certificates that it followed. It takes one of the places for handshakes once the client has
/// said something to work on: those who are silent cost a connection, and keep nobody out.
async fn shake<'a, T: Transport>(
    stream: T,
    tls: &'a ServerTls,
    state: &ListenerState,
) -> Result<(TlsStream<T>, &'a Arc<str>), Refusal> {
    let failed = |error: io::Error| {
        log::debug!("listener `{}`: handshake failed: {error}", state.name);
        Refusal::HandshakeFailed
    };
    let begun = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await.map_err(failed)?;
    if !state.handshakes.try_enter(tls.max_handshakes) {
        return Err(Refusal::TooManyHandshakes);
    }
    let _shaking = Shaking(&state.handshakes);
    // The client's first message says which host it wants.
    let host = tls.for_name(begun.client_hello().server_name());
    let stream = begun.into_stream(Arc::clone(&host.config)).await.map_err(failed)?;
    Ok((stream, &host.rules))
}

fn start_unix(stream: UnixStream, state: &Arc<ListenerState>, everywhere: &Arc<Active>, runtime: &Runtime) {
    let settings = state.settings();
    let Some(admission) = Admission::try_new(state, everywhere, &settings, None) else {
        return;
    };
    let (state, runtime) = (Arc::clone(state), runtime.clone());
    let workers = runtime.workers.clone();
    let failed = Arc::clone(&state);
    let serve = move |stream: UnixStream, seat: Seat| async move {
        let (_seat, _admission) = (seat, admission);
        let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
        if settings.tls.is_some() {
            return Box::pin(secure(stream, None, digest, state, settings, runtime)).await;
        }
        drop(settings);
        let connection = Connection::new(state, None, None);
        connection::serve(stream, digest, connection, &runtime.edge, &runtime.shutdown).await;
    };
    // The one loop of a unix socket is the first worker's.
    place(stream, 0, &workers, failed, serve);
}

/// The places that one connection takes; dropping it gives them back, also when the connection's task panics.
struct Admission {
    state: Arc<ListenerState>,
    everywhere: Arc<Active>,
    counted_for: Option<IpAddr>,
    open: Option<GaugeGuard>,
}

impl Admission {
    /// `None` when a cap is reached. The connection is then closed without a word: an answer would cost what the cap saves.
    fn try_new(
        state: &Arc<ListenerState>,
        everywhere: &Arc<Active>,
        settings: &ListenerSettings,
        peer: Option<IpAddr>,
    ) -> Option<Admission> {
        if !state.active.try_enter(settings.max_connections) {
            state.metrics.refused.count(Refusal::TooMany as usize);
            return None;
        }
        if !everywhere.try_enter(settings.max_connections_in_all) {
            state.active.leave();
            state.metrics.refused.count(Refusal::TooManyInAll as usize);
            return None;
        }
        // From here on dropping the admission gives back what was taken so far.
        let mut admission =
            Admission { state: Arc::clone(state), everywhere: Arc::clone(everywhere), counted_for: None, open: None };
        if peer.is_some_and(|peer| !admission.count_address(settings, peer)) {
            return None;
        }
        admission.open = Some(state.metrics.accept());
        Some(admission)
    }

    /// Counts the connection for its address: `false` if that has too many.
    fn count_address(&mut self, settings: &ListenerSettings, peer: IpAddr) -> bool {
        let Some(most) = settings.max_connections_per_address else { return true };
        let key = counting_key(peer);
        let mut by_address = self.state.by_address.lock();
        let count = by_address.entry(key).or_insert(0);
        if *count >= most {
            drop(by_address);
            self.state.metrics.refused.count(Refusal::TooManyFromAddress as usize);
            return false;
        }
        *count = count.saturating_add(1);
        self.counted_for = Some(key);
        true
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(key) = self.counted_for {
            let mut by_address = self.state.by_address.lock();
            if let Some(count) = by_address.get_mut(&key) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    by_address.remove(&key);
                }
            }
        }
        self.state.active.leave();
        self.everywhere.leave();
    }
}

/// One IPv6 customer usually holds a /64, so all of it counts as one address.
fn counting_key(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => {
            let prefix = v6.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(prefix))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_counts_by_its_64_bit_prefix_and_mapped_ipv4_as_ipv4() {
        let key = |text: &str| counting_key(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8:0:2::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
    }
}
