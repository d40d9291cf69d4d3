//! What the service manager is told: ready, reloading, stopping, a line of status, and that we are alive. Without
//! `NOTIFY_SOCKET` all of it does nothing.

use crate::snapshot::Snapshot;
use sd_notify::NotifyState;
use std::time::Duration;

pub fn ready(snapshot: &Snapshot) {
    let status = format!("{} routes, {} upstreams, config {}", snapshot.routes().len(), snapshot.upstreams.len(), snapshot.hash);
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// systemd waits for the next `READY=1`; the timestamp lets it tell this reload from one before.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing requests under way")]);
}

/// Another process of ours is the main one from now on. It serves already.
pub fn successor(pid: u32) {
    tell(&[NotifyState::MainPid(pid), NotifyState::Ready]);
}

pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`alive`] must be said; `None` when nobody watches. Half of what systemd allows, as it advises.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|allowed| allowed / 2)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        log::warn!("the service manager cannot be told: {e}");
    }
}
