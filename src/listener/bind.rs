//! Binding as part of a reload: everything new is bound before anything old is touched, so that a port that is taken
//! rejects the reload as a whole.

use super::{Bound, ListenerPlan, ListenerState, Listeners};
use crate::state::StatePool;
use crate::telemetry::metrics::{ListenerMetrics, ReasonNames};
use crate::value::Address;
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

/// A socket that listens, not yet part of a runtime.
pub enum Socket {
    Tcp(std::net::TcpListener),
    /// `owned`: its file is ours to remove.
    Unix {
        socket: std::os::unix::net::UnixListener,
        owned: bool,
    },
}

/// A listening socket on its way from one process to another, and what is known of it.
#[derive(Debug)]
pub struct Passed {
    /// Whose it was; `None` when no listener has it.
    pub listener: Option<Arc<str>>,
    /// As the configuration has it, where the port may be 0.
    pub requested: Address,
    pub local: Address,
    /// The file of a unix socket is the gateway's to remove, not the service manager's.
    pub owned: bool,
    pub socket: OwnedFd,
}

impl Passed {
    fn open(self) -> io::Result<Waiting> {
        let Passed { listener, requested, local, owned, socket } = self;
        let socket = match &local {
            Address::Tcp(_) => Socket::Tcp(std::net::TcpListener::from(socket)),
            Address::Unix(_) => Socket::Unix { socket: std::os::unix::net::UnixListener::from(socket), owned },
        };
        match &socket {
            Socket::Tcp(socket) => socket.set_nonblocking(true)?,
            Socket::Unix { socket, .. } => socket.set_nonblocking(true)?,
        }
        Ok(Waiting { listener, requested, local, socket })
    }
}

/// A socket that no listener has taken yet.
struct Waiting {
    listener: Option<Arc<str>>,
    requested: Address,
    local: Address,
    socket: Socket,
}

impl Waiting {
    fn fits(&self, plan: &ListenerPlan) -> bool {
        // By its name as well where only the kernel knows the port.
        let same_name = self.listener.as_ref().is_some_and(|name| *name == plan.name);
        self.local == plan.address || (same_name && self.requested == plan.address)
    }

    /// A second descriptor of it.
    fn share(&self) -> io::Result<Passed> {
        let (socket, owned) = match &self.socket {
            Socket::Tcp(socket) => (socket.as_fd().try_clone_to_owned()?, false),
            Socket::Unix { socket, owned } => (socket.as_fd().try_clone_to_owned()?, *owned),
        };
        let Waiting { listener, requested, local, .. } = self;
        Ok(Passed { listener: listener.clone(), requested: requested.clone(), local: local.clone(), owned, socket })
    }
}

/// Sockets that somebody else has bound for us, by their address: the service manager (`LISTEN_FDS`, sd_listen_fds(3)), or the
/// process that this one replaces. A listener takes the one that has its address in place of binding; those of the service
/// manager stay open for a reload that wants them, or wants them again: the manager listens, whatever we do.
#[derive(Default)]
pub struct Inherited(Mutex<Vec<Waiting>>);

impl Inherited {
    /// Takes over what this process was started with. To be called once, before there are threads: it clears the variables, so
    /// that children do not take the sockets for theirs.
    pub fn from_environment() -> io::Result<Self> {
        let inherited = Inherited::default();
        let mut passed = listenfd::ListenFd::from_env();
        for index in 0..passed.len() {
            // Which kind a socket is shows when it is asked for.
            if let Ok(Some(socket)) = passed.take_tcp_listener(index) {
                let local = Address::Tcp(socket.local_addr()?);
                inherited.add(Passed::unclaimed(local, socket.into()))?;
            } else if let Ok(Some(socket)) = passed.take_unix_listener(index)
                && let Some(path) = socket.local_addr()?.as_pathname()
            {
                let local = Address::Unix(path.to_owned());
                inherited.add(Passed::unclaimed(local, socket.into()))?;
            }
        }
        Ok(inherited)
    }

    pub fn extend(&self, other: Inherited) {
        self.0.lock().append(&mut other.0.into_inner());
    }

    pub fn add(&self, passed: Passed) -> io::Result<()> {
        let waiting = passed.open()?;
        self.0.lock().push(waiting);
        Ok(())
    }

    fn take(&self, plan: &ListenerPlan) -> Option<Waiting> {
        let mut list = self.0.lock();
        let fits = |passed: bool| list.iter().position(|waiting| waiting.listener.is_some() == passed && waiting.fits(plan));
        if let Some(at) = fits(true) {
            return Some(list.swap_remove(at));
        }
        // One descriptor for the listener, and one that outlives it.
        list.get(fits(false)?)?.share().and_then(Passed::open).ok()
    }

    /// Second descriptors of what listeners of the process before had at this port and none of this one has taken.
    fn going(&self, port: u16) -> Vec<OwnedFd> {
        let list = self.0.lock();
        let going = list.iter().filter(|waiting| waiting.listener.is_some() && has_port(&waiting.local, port));
        let shared = going.filter_map(|waiting| match &waiting.socket {
            Socket::Tcp(socket) => socket.as_fd().try_clone_to_owned().ok(),
            Socket::Unix { .. } => None,
        });
        shared.collect()
    }

    /// Second descriptors of what is here.
    pub(super) fn share(&self) -> io::Result<Vec<Passed>> {
        self.0.lock().iter().map(Waiting::share).collect()
    }

    /// Closes what a listener of the process before had and none of this one wants.
    pub fn close_unwanted(&self) {
        self.0.lock().retain(|waiting| {
            if waiting.listener.is_none() {
                return true;
            }
            if let (Socket::Unix { owned: true, .. }, Address::Unix(path)) = (&waiting.socket, &waiting.local) {
                // It may be gone already.
                let _ = std::fs::remove_file(path);
            }
            false
        });
    }
}

impl Passed {
    fn unclaimed(local: Address, socket: OwnedFd) -> Self {
        Passed { listener: None, requested: local.clone(), local, owned: false, socket }
    }
}

/// An address that cannot be listened on.
#[derive(Debug)]
pub struct BindError {
    pub listener: Arc<str>,
    pub address: Address,
    pub error: io::Error,
}

impl std::fmt::Display for BindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "listener `{}` cannot bind {}: ", self.listener, self.address)?;
        match self.error.kind() {
            io::ErrorKind::AddrInUse => f.write_str("the address is in use by another process"),
            io::ErrorKind::PermissionDenied => {
                f.write_str("permission denied (ports below 1024 need CAP_NET_BIND_SERVICE, unix sockets a writable directory)")
            }
            io::ErrorKind::AddrNotAvailable => f.write_str("no interface of this machine has that address"),
            _ => self.error.fmt(f),
        }
    }
}

/// Sockets that are bound for a new snapshot but do not accept yet. Dropping them gives the addresses back.
pub struct Prepared {
    /// Listeners that go and whose address another one has from now on.
    succeeded: Vec<Arc<ListenerState>>,
    fresh: Vec<(ListenerPlan, Address, Socket)>,
    kept: Vec<ListenerPlan>,
}

impl Listeners {
    /// Binds what `plans` has and the running set has not. A listener is known by its name and address together.
    pub fn prepare(&self, plans: &[ListenerPlan]) -> Result<Prepared, Vec<BindError>> {
        let bound = self.bound.lock();
        let (mut fresh, mut kept, mut taken, mut errors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut succeeded = Vec::new();
        for plan in plans {
            if bound.get(&plan.name).is_some_and(|old| old.requested == plan.address) {
                kept.push(plan.clone());
                continue;
            }
            if let Some(waiting) = self.inherited.take(plan) {
                let from = if waiting.listener.is_some() { "the process before" } else { "the service manager" };
                log::info!("listener `{}` takes {} from {from}", plan.name, waiting.local);
                taken.push((plan.clone(), waiting));
                continue;
            }
            // A listener with another name takes over from one that goes: the port never closes.
            let goes = |name: &Arc<str>| !plans.iter().any(|other| other.name == *name && other.address == plan.address);
            let before = bound.iter().find(|(name, old)| old.requested == plan.address && goes(name)).map(|(_, old)| old);
            if let Some((old, shared)) = before.and_then(|old| Some((old, old.share()?))) {
                fresh.push((plan.clone(), old.local.clone(), shared));
                succeeded.push(Arc::clone(&old.state));
                continue;
            }
            let bind_beside_what_goes = |error: io::Error| match &plan.address {
                Address::Tcp(wanted) if error.kind() == io::ErrorKind::AddrInUse => {
                    let stays =
                        |name: &Arc<str>, at: &Address| plans.iter().any(|plan| plan.name == *name && plan.address == *at);
                    let running = bound.iter().filter(|(name, old)| !stays(name, &old.requested));
                    let mut going: Vec<_> = running
                        .filter(|(_, old)| has_port(&old.local, wanted.port()))
                        .filter_map(|(_, old)| old.state.share())
                        .collect();
                    going.extend(self.inherited.going(wanted.port()));
                    if going.is_empty() { Err(error) } else { beside(wanted, &going).and_then(listening) }
                }
                _ => Err(error),
            };
            match bind(&plan.address).or_else(bind_beside_what_goes) {
                Ok((socket, local)) => fresh.push((plan.clone(), local, socket)),
                Err(error) => errors.push(BindError { listener: Arc::clone(&plan.name), address: plan.address.clone(), error }),
            }
        }
        if !errors.is_empty() {
            // What was given to us is there for the next attempt.
            let given = taken.into_iter().map(|(_, waiting)| waiting).filter(|waiting| waiting.listener.is_some());
            self.inherited.0.lock().extend(given);
            return Err(errors);
        }
        fresh.extend(taken.into_iter().map(|(plan, waiting)| (plan, waiting.local, waiting.socket)));
        Ok(Prepared { succeeded, fresh, kept })
    }

    /// Swaps to the prepared set: new listeners accept, kept ones take their new bounds, the others drain.
    pub fn commit(&self, prepared: Prepared, pool: &StatePool) {
        let mut bound = self.bound.lock();
        let mut next = BTreeMap::new();
        for state in prepared.succeeded {
            state.pass_on();
        }
        for plan in prepared.kept {
            if let Some(old) = bound.remove(&plan.name) {
                old.state.settings.store(Arc::clone(&plan.settings));
                next.insert(plan.name, old);
            }
        }
        for (plan, local, socket) in prepared.fresh {
            let metrics = pool.get_or_create(&plan.name, || {
                ListenerMetrics::new(ReasonNames {
                    refused: super::REFUSALS,
                    malformed: &super::MALFORMED,
                    cut: super::FAULTS,
                    closed: super::CLOSED,
                })
            });
            let state = ListenerState::new(&plan, metrics);
            let owned = matches!(socket, Socket::Unix { owned: true, .. });
            self.accept_on(socket, Arc::clone(&state));
            log::info!("listener `{}` accepts on {local}", plan.name);
            if let Some(old) = next.insert(plan.name, Bound { requested: plan.address, local, owned, state }) {
                self.retire(&old.state);
            }
        }
        let removed = std::mem::replace(&mut *bound, next);
        for (name, old) in removed {
            log::info!("listener `{name}` on {} drains", old.local);
            self.retire(&old.state);
        }
    }
}

impl Bound {
    /// Its socket once more, if it accepts.
    fn share(&self) -> Option<Socket> {
        let passed = Passed {
            listener: None,
            requested: self.requested.clone(),
            local: self.local.clone(),
            owned: self.owned,
            socket: self.state.share()?,
        };
        Some(passed.open().ok()?.socket)
    }
}

/// Connections that may wait to be accepted. std asks for 128, which a burst of clients overflows: their first packets are then
/// dropped, and they come a second late. The kernel allows no more than `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

fn bind(address: &Address) -> io::Result<(Socket, Address)> {
    match address {
        Address::Tcp(wanted) => listening(bind_tcp(wanted, false)?),
        Address::Unix(path) => {
            remove_stale(path)?;
            let socket = std::os::unix::net::UnixListener::bind(path)?;
            rustix::net::listen(&socket, BACKLOG)?;
            socket.set_nonblocking(true)?;
            Ok((Socket::Unix { socket, owned: true }, address.clone()))
        }
    }
}

fn listening(socket: std::net::TcpListener) -> io::Result<(Socket, Address)> {
    rustix::net::listen(&socket, BACKLOG)?;
    let local = socket.local_addr()?;
    Ok((Socket::Tcp(socket), Address::Tcp(local)))
}

fn has_port(address: &Address, port: u16) -> bool {
    matches!(address, Address::Tcp(address) if address.port() == port)
}

/// Binds an address whose port listeners that go still have under an address that covers it, or that it covers: `0.0.0.0:80` after
/// `127.0.0.1:80`. The kernel lets that happen between sockets of one user that all say so, and only for as long as this takes:
/// otherwise a second gateway would share our ports and not be told that they are taken.
fn beside(wanted: &SocketAddr, going: &[OwnedFd]) -> io::Result<std::net::TcpListener> {
    let share = |yes| going.iter().try_for_each(|socket| sockopt::set_socket_reuseport(socket, yes));
    let socket = share(true).map_err(io::Error::from).and_then(|()| {
        let socket = bind_tcp(wanted, true)?;
        // Listening is what the kernel checks once more.
        rustix::net::listen(&socket, BACKLOG)?;
        sockopt::set_socket_reuseport(&socket, false)?;
        Ok(socket)
    });
    share(false)?;
    socket
}

/// Not by std, which leaves it to a sysctl whether `[::]` takes IPv4 as well.
fn bind_tcp(address: &SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    // A restart is not kept out by connections in TIME_WAIT.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, shared)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    rustix::net::bind(&socket, address)?;
    Ok(socket.into())
}

/// A socket file outlives its process. One that nobody answers on is removed; one that is in use, or that is no socket,
/// is left alone and makes the bind fail.
pub fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            std::fs::remove_file(path)
        }
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}
