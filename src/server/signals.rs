//! SIGTERM and SIGINT: the first asks the gateway to leave in order, a second one to leave now. An upgrade that is done lets it
//! leave as well.

use super::leave;
use crate::listener::Listeners;
use crate::readiness::Readiness;
use crate::upgrade::{Door, Fate, Upgrader};
use async_trait::async_trait;
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
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    /// Returns when nothing is left to wait for. Pingora's own graceful stop would close the listeners at once and then
    /// sleep its whole grace period, so it is only ever told to be quick.
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
            log::error!("signals cannot be received: stopping");
            return ShutdownSignal::FastShutdown;
        };
        let decided = tokio::select! {
            decided = self.upgrader.decided() => Some(decided),
            () = either(&mut terminate, &mut interrupt) => None,
        };
        match decided {
            Some(Fate::HandedOver) => {
                tokio::select! {
                    () = leave::drain(&self.listeners, &self.door, self.grace_period) => return ShutdownSignal::FastShutdown,
                    // The whole service is told to stop.
                    () = either(&mut terminate, &mut interrupt) => {}
                }
            }
            Some(_) => return ShutdownSignal::FastShutdown,
            None => {}
        }
        self.upgrader.give_up().await;
        crate::systemd::stopping();
        tokio::select! {
            () = leave::stop(&self.readiness, &self.listeners, self.drain_delay, self.grace_period) => {}
            () = either(&mut terminate, &mut interrupt) => log::warn!("a second signal: stopping at once"),
        }
        ShutdownSignal::FastShutdown
    }
}

async fn either(a: &mut Signal, b: &mut Signal) {
    tokio::select! {
        _ = a.recv() => {}
        _ = b.recv() => {}
    }
}
