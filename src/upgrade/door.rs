//! The admin socket while it is served: what an upgrade hands over and then closes behind itself.

use crate::value::Address;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// Scrapers, probes and an operator or two; more than this at once is something gone wrong.
const PLACES: u32 = 64;
/// How long whoever is answered right now may take to read it.
const PATIENCE: Duration = Duration::from_secs(2);

pub struct Door {
    address: Address,
    socket: OnceLock<Weak<dyn AsFd + Send + Sync>>,
    closed: watch::Sender<bool>,
    pub places: Arc<Semaphore>,
}

impl Door {
    pub fn new(address: Address) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(usize::try_from(PLACES).unwrap_or(usize::MAX)));
        Arc::new(Door { address, socket: OnceLock::new(), closed: watch::Sender::new(false), places })
    }

    /// The accept loop has this socket from now on.
    pub fn serves<S: AsFd + Send + Sync + 'static>(&self, socket: &Arc<S>) {
        let socket: Arc<dyn AsFd + Send + Sync> = Arc::<S>::clone(socket);
        // It is served once in the life of a process, so the cell is empty.
        let _ = self.socket.set(Arc::downgrade(&socket));
    }

    /// Returns once nothing more is to be accepted.
    pub async fn wait_closed(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// A second descriptor, with the address as the configuration has it.
    pub(super) fn share(&self) -> Option<(Address, OwnedFd)> {
        let socket = self.socket.get()?.upgrade()?;
        Some((self.address.clone(), socket.as_fd().try_clone_to_owned().ok()?))
    }

    /// Ends the accept loop: when this returns, the next connection is another process's.
    pub(super) async fn close(&self) {
        self.closed.send_replace(true);
        let gone = async {
            while self.socket.get().is_some_and(|socket| socket.strong_count() > 0) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // A loop that is stuck shares the socket with the successor; nothing is lost.
        let _ = tokio::time::timeout(PATIENCE, gone).await;
    }

    /// Waits, for a moment, until everybody who was let in has been answered.
    pub async fn wait_empty(&self) {
        let _ = tokio::time::timeout(PATIENCE, self.places.acquire_many(PLACES)).await;
    }
}
