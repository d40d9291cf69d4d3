//! Binding as part of a reload: everything new is bound before anything old is touched, so that a port that is taken
//! rejects the reload as a whole.

use super::{Bound, ListenerPlan, ListenerState, Listeners, Stage};
use crate::state::StatePool;
use crate::telemetry::metrics::ListenerMetrics;
use crate::value::Address;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
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

/// Sockets that the service manager has bound for us (`LISTEN_FDS`, sd_listen_fds(3)), by their address. A listener takes the
/// one that has its address in place of binding; those that no listener wants stay open for a reload that does.
#[derive(Default)]
pub struct Inherited(Mutex<Vec<(Address, Socket)>>);

impl Inherited {
    /// Takes over what this process was started with. To be called once, before there are threads: it clears the variables, so
    /// that children do not take the sockets for theirs.
    pub fn from_environment() -> io::Result<Self> {
        let mut list = Vec::new();
        let mut passed = listenfd::ListenFd::from_env();
        for index in 0..passed.len() {
            // Which kind a socket is shows when it is asked for.
            if let Ok(Some(socket)) = passed.take_tcp_listener(index) {
                socket.set_nonblocking(true)?;
                list.push((Address::Tcp(socket.local_addr()?), Socket::Tcp(socket)));
            } else if let Ok(Some(socket)) = passed.take_unix_listener(index) {
                socket.set_nonblocking(true)?;
                if let Some(path) = socket.local_addr()?.as_pathname() {
                    list.push((Address::Unix(path.to_owned()), Socket::Unix { socket, owned: false }));
                }
            }
        }
        Ok(Inherited(Mutex::new(list)))
    }

    pub fn add(&self, other: Inherited) {
        self.0.lock().append(&mut other.0.into_inner());
    }

    fn take(&self, address: &Address) -> Option<Socket> {
        let mut list = self.0.lock();
        let at = list.iter().position(|(bound, _)| bound == address)?;
        Some(list.swap_remove(at).1)
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
    fresh: Vec<(ListenerPlan, Address, Socket)>,
    kept: Vec<ListenerPlan>,
}

impl Listeners {
    /// Binds what `plans` has and the running set has not. A listener is known by its name and address together.
    pub fn prepare(&self, plans: &[ListenerPlan]) -> Result<Prepared, Vec<BindError>> {
        let bound = self.bound.lock();
        let (mut fresh, mut kept, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for plan in plans {
            if bound.get(&plan.name).is_some_and(|old| old.requested == plan.address) {
                kept.push(plan.clone());
                continue;
            }
            if let Some(socket) = self.inherited.take(&plan.address) {
                log::info!("listener `{}` takes {} from the service manager", plan.name, plan.address);
                fresh.push((plan.clone(), plan.address.clone(), socket));
                continue;
            }
            match bind(&plan.address) {
                Ok((socket, local)) => fresh.push((plan.clone(), local, socket)),
                Err(error) => errors.push(BindError { listener: Arc::clone(&plan.name), address: plan.address.clone(), error }),
            }
        }
        if errors.is_empty() { Ok(Prepared { fresh, kept }) } else { Err(errors) }
    }

    /// Swaps to the prepared set: new listeners accept, kept ones take their new bounds, the others drain.
    pub fn commit(&self, prepared: Prepared, pool: &StatePool) {
        let mut bound = self.bound.lock();
        let mut next = BTreeMap::new();
        for plan in prepared.kept {
            if let Some(old) = bound.remove(&plan.name) {
                old.state.settings.store(Arc::clone(&plan.settings));
                next.insert(plan.name, old);
            }
        }
        for (plan, local, socket) in prepared.fresh {
            let metrics =
                pool.get_or_create(&plan.name, || ListenerMetrics::new(super::REFUSALS, &super::MALFORMED, super::FAULTS));
            let state = ListenerState::new(&plan, metrics);
            self.accept_on(socket, Arc::clone(&state));
            log::info!("listener `{}` accepts on {local}", plan.name);
            if let Some(old) = next.insert(plan.name, Bound { requested: plan.address, local, state }) {
                old.state.stage.advance(Stage::Closing);
            }
        }
        let removed = std::mem::replace(&mut *bound, next);
        for (name, old) in removed {
            log::info!("listener `{name}` on {} drains", old.local);
            old.state.stage.advance(Stage::Closing);
        }
    }
}

fn bind(address: &Address) -> io::Result<(Socket, Address)> {
    match address {
        Address::Tcp(wanted) => {
            // std sets SO_REUSEADDR, so that a restart is not kept out by connections in TIME_WAIT.
            let socket = std::net::TcpListener::bind(wanted)?;
            socket.set_nonblocking(true)?;
            let local = socket.local_addr()?;
            Ok((Socket::Tcp(socket), Address::Tcp(local)))
        }
        Address::Unix(path) => {
            remove_stale(path)?;
            let socket = std::os::unix::net::UnixListener::bind(path)?;
            socket.set_nonblocking(true)?;
            Ok((Socket::Unix { socket, owned: true }, address.clone()))
        }
    }
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
