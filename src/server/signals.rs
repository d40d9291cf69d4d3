//! SIGTERM and SIGINT: the first asks the gateway to leave in order, a second one to leave now. An upgrade that is done lets it
//! leave as well.

use super::leave;
use crate::listener::Listeners;
use crate::readiness::Readiness;
use crate::upgrade::{Door, Fate, Upgrader};
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub struct Signals {
    pub readiness: Arc<Readiness>,
    pub listeners: Arc<Listeners>,
    pub upgrader: Arc<Upgrader>,
    pub door: Arc<Door>,
    pub drain_delay: Duration,
    pub grace_period: Duration,
    /// Taken over before the first request can be answered: whoever has had an answer may stop the gateway in order.
    pub ends: Mutex<Option<Ends>>,
    /// Nobody else says when the listeners may begin to accept: they do when all of the process is there.
    pub opens: bool,
}

/// SIGTERM and SIGINT, taken over for the life of the process.
pub struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    /// Within a runtime, which need not be the one that they are waited for in. `None`: they cannot be received.
    pub fn take_over() -> Option<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        Some(Ends { terminate: terminate.ok()?, interrupt: interrupt.ok()? })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    /// Returns when nothing is left to wait for. Pingora's own graceful stop would close the listeners at once and then
    /// sleep its whole grace period, so it is only ever told to be quick.
    async fn recv(&self) -> ShutdownSignal {
        if self.opens {
            self.listeners.let_go();
        }
        let taken_over = self.ends.lock().take();
        let Some(mut ends) = taken_over.or_else(Ends::take_over) else {
            log::error!("signals cannot be received: stopping");
            return ShutdownSignal::FastShutdown;
        };
        let decided = tokio::select! {
            decided = self.upgrader.decided() => Some(decided),
            () = ends.any() => None,
        };
        match decided {
            Some(Fate::HandedOver) => {
                tokio::select! {
                    () = leave::drain(&self.listeners, &self.door, self.grace_period) => return ShutdownSignal::FastShutdown,
                    // The whole service is told to stop.
                    () = ends.any() => {}
                }
            }
            Some(_) => return ShutdownSignal::FastShutdown,
            None => {}
        }
        self.upgrader.give_up().await;
        crate::systemd::stopping();
        tokio::select! {
            () = leave::stop(&self.readiness, &self.listeners, self.drain_delay, self.grace_period) => {}
            () = ends.any() => log::warn!("a second signal: stopping at once"),
        }
        ShutdownSignal::FastShutdown
    }
}
