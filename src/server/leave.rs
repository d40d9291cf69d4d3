//! How the process leaves.

use crate::listener::{Listeners, Stage};
use crate::readiness::Readiness;
use std::time::Duration;

/// Leaves in order: readiness goes off and every answer says `Connection: close`; after `drain_delay` nothing more is
/// accepted; the end is when the last request is done, or when `grace_period` is over.
pub async fn stop(readiness: &Readiness, listeners: &Listeners, drain_delay: Duration, grace_period: Duration) {
    readiness.set_stopping();
    listeners.advance(Stage::Leaving);
    log::info!("stopping: not ready any more, accepting for another {drain_delay:?}");
    tokio::time::sleep(drain_delay).await;
    listeners.advance(Stage::Closing);
    match tokio::time::timeout(grace_period, listeners.connections.wait_empty()).await {
        Ok(()) => log::info!("stopped: every request is done"),
        Err(_) => log::warn!("the grace period is over: {} connections are cut", listeners.connections.get()),
    }
}
