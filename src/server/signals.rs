//! SIGTERM and SIGINT: the first asks the gateway to leave in order, a second one to leave now.

use super::leave;
use crate::listener::Listeners;
use crate::readiness::Readiness;
use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub struct Signals {
    pub readiness: Arc<Readiness>,
    pub listeners: Arc<Listeners>,
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
        either(&mut terminate, &mut interrupt).await;
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
