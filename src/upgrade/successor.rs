//! The new side of an upgrade: takes the sockets, gets ready, and waits for its turn.

use super::VARIABLE;
use super::wire::{self, Manifest, Order, Reply};
use crate::listener::Passed;
use crate::value::Address;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long the old process may take to send the sockets.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take until it tells the service manager of us: the longest probation, and some more.
const LEAD_WITHIN: Duration = Duration::from_secs(40);

/// The process that this one is to replace.
pub struct Predecessor(UnixStream);

/// What it has handed over.
pub struct Received {
    pub predecessor: Predecessor,
    pub sockets: Vec<Passed>,
    /// The admin socket, and its address.
    pub admin: Option<(Address, OwnedFd)>,
}

impl Predecessor {
    /// `None` if this process was not started by one of its kind.
    pub fn from_environment() -> io::Result<Option<Received>> {
        let Some(socket) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let manifest: Manifest = wire::receive(&mut stream)?;
        let address = |text: &str| text.parse::<Address>().map_err(io::Error::other);
        let mut sockets = Vec::new();
        for entry in manifest.sockets {
            sockets.push(Passed {
                listener: entry.listener.map(Into::into),
                requested: address(&entry.requested)?,
                local: address(&entry.local)?,
                owned: entry.owned,
                socket: wire::receive_socket(&stream)?,
            });
        }
        let admin = match manifest.admin {
            Some(text) => Some((address(&text)?, wire::receive_socket(&stream)?)),
            None => None,
        };
        log::info!("taking over {} sockets from version {}", sockets.len(), manifest.version);
        Ok(Some(Received { predecessor: Predecessor(stream), sockets, admin }))
    }

    /// This process will not serve, and why.
    pub fn refuse(mut self, report: String) {
        // If nobody listens any more, nobody needs to know.
        let _ = wire::send(&mut self.0, &Reply::Failed(report));
    }

    /// Everything is ready: returns when it is our turn to accept. Blocks.
    pub fn wait_turn(mut self) -> io::Result<Self> {
        // The old process hears from us and answers at once; if it ends instead, the connection does too.
        wire::send(&mut self.0, &Reply::Ready)?;
        match wire::receive(&mut self.0)? {
            Order::Accept => Ok(self),
            Order::Lead => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// We accept: returns when we do so alone, and the service manager listens to us. Blocks.
    pub fn lead(mut self) {
        let told = wire::send(&mut self.0, &Reply::Accepting)
            .and_then(|()| self.0.set_read_timeout(Some(LEAD_WITHIN)))
            .and_then(|()| wire::receive::<Order>(&mut self.0));
        if let Err(e) = told {
            // We serve already. A service manager that does not know who is the main process will act on its own.
            log::warn!("the process before has gone without a word: {e}");
        }
    }
}
