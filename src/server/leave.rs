//! How the process leaves: to stop, or because another one serves in its place.

use crate::listener::{Listeners, Stage};
use crate::readiness::Readiness;
use crate::upgrade::Door;
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
    // A loop that does not come to its turn is one of a runtime that is stuck: nothing to wait for.
    let _ = tokio::time::timeout(LAST_WORD, listeners.wait_closed()).await;
}

/// How long idle connections may take to close in order when the grace period is over.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Drains after an upgrade: every connection goes with the answer to its next request, or when it has been idle for as long
/// as its listener lets it, or when `grace_period` is over. Readiness is the successor's to tell now and stays on here: a
/// balancer that asks on an old connection must not take the gateway for gone.
pub async fn drain(listeners: &Listeners, door: &Door, grace_period: Duration) {
    door.wait_empty().await;
    if tokio::time::timeout(grace_period, listeners.connections.wait_empty()).await.is_err() {
        listeners.advance(Stage::Closing);
        // What is left after it is cut.
        let _ = tokio::time::timeout(LAST_WORD, listeners.connections.wait_empty()).await;
    }
    match listeners.connections.get() {
        0 => log::info!("replaced: every connection is done"),
        left => log::warn!("replaced: the grace period is over, {left} connections are cut"),
    }
}
