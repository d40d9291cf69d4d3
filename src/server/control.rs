//! The one background service: admin, reload, health checks, file watch, and proof of life for the service manager.

use super::Ready;
use crate::admin::{self, Admin, AdminSocket};
use crate::jwt::KeySupervisor;
use crate::readiness::Readiness;
use crate::reload::{self, Reloader, SETTLE};
use crate::systemd;
use crate::upgrade::{Predecessor, Refused};
use crate::upstream::{Keeper, Supervisor, SystemResolver};
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

pub struct Control {
    reloader: Arc<Reloader>,
    admin: Arc<Admin>,
    socket: Mutex<Option<AdminSocket>>,
    readiness: Arc<Readiness>,
    keeper: Arc<Keeper>,
    watch: bool,
    ready: Mutex<Option<Ready>>,
    predecessor: Mutex<Option<Predecessor>>,
}

impl Control {
    pub fn new(
        reloader: Arc<Reloader>,
        admin: Arc<Admin>,
        socket: AdminSocket,
        readiness: Arc<Readiness>,
        keeper: Arc<Keeper>,
        watch: bool,
        ready: Option<Ready>,
    ) -> Self {
        Control {
            reloader,
            admin,
            socket: Mutex::new(Some(socket)),
            readiness,
            keeper,
            watch,
            ready: Mutex::new(ready),
            predecessor: Mutex::default(),
        }
    }

    /// This process replaces another one, which decides when.
    pub fn succeed(&self, predecessor: Predecessor) {
        *self.predecessor.lock() = Some(predecessor);
    }

    /// Waits until it is our turn to accept; then the process before, if there is one, to be told that we do.
    async fn wait_turn(&self) -> std::io::Result<Option<Predecessor>> {
        let Some(predecessor) = self.predecessor.lock().take() else { return Ok(None) };
        let turn = tokio::task::spawn_blocking(move || predecessor.wait_turn());
        turn.await.map_err(std::io::Error::other)?.map(Some)
    }
}

#[async_trait]
impl Service for Control {
    async fn start_service(&mut self, _fds: Option<ListenFds>, mut shutdown: ShutdownWatch, _per_fd: usize) {
        let snapshot = self.reloader.gateway.snapshot();
        let supervisor = Supervisor::new(tokio::runtime::Handle::current(), Arc::new(SystemResolver));
        supervisor.reconcile(snapshot.upstreams.values());
        supervisor.settle(SETTLE).await;
        if self.reloader.supervisor.set(supervisor).is_err() {
            log::error!("the control service was started twice");
            return;
        }
        // For as long as there are connections, so beyond an upgrade as well.
        let keeper = Arc::clone(&self.keeper);
        tokio::spawn(async move { keeper.tend().await });
        let keys = KeySupervisor::new(tokio::runtime::Handle::current());
        keys.reconcile(snapshot.issuers.jobs());
        if self.reloader.keys.set(keys).is_err() {
            log::error!("the control service was started twice");
            return;
        }
        let predecessor = match self.wait_turn().await {
            Ok(predecessor) => predecessor,
            Err(e) => {
                log::error!("the upgrade to this process has ended: {e}");
                self.admin.upgrader.abandon();
                let _ = shutdown.changed().await;
                return;
            }
        };
        self.admin.listeners.let_go();
        self.admin.listeners.wait_started().await;
        self.readiness.set_ready();
        if let Some(predecessor) = predecessor {
            // Fails only if it panics, which it has told.
            let _ = tokio::task::spawn_blocking(move || predecessor.lead()).await;
            self.admin.listeners.inherited.close_unwanted();
        }
        // On probation it is the process before that answers operators.
        if let Some(socket) = self.socket.lock().take() {
            tokio::spawn(serve_admin(socket, Arc::clone(&self.admin)));
        }
        systemd::ready(&snapshot);
        let mut chores = tokio::task::JoinSet::new();
        chores.spawn(reload_on_hangup(Arc::clone(&self.reloader)));
        chores.spawn(upgrade_on_signal(Arc::clone(&self.admin)));
        if self.watch {
            chores.spawn(reload_on_change(Arc::clone(&self.reloader)));
        }
        if let Some(interval) = systemd::watchdog_interval() {
            chores.spawn(prove_alive(interval, Arc::clone(&self.reloader)));
        }
        if let Some(ready) = self.ready.lock().take() {
            ready(&self.admin.listeners, &self.reloader.fixed.admin);
        }
        tokio::select! {
            // Configuration and service manager are the successor's business now.
            _ = self.admin.upgrader.decided() => chores.abort_all(),
            _ = shutdown.changed() => return,
        }
        let _ = shutdown.changed().await;
    }

    fn name(&self) -> &str {
        "control"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

async fn serve_admin(socket: AdminSocket, admin: Arc<Admin>) {
    if let Err(e) = admin::serve(socket, admin).await {
        log::error!("the admin listener ended: {e}");
    }
}

async fn reload_on_hangup(reloader: Arc<Reloader>) {
    match signal(SignalKind::hangup()) {
        Ok(mut hangup) => {
            while hangup.recv().await.is_some() {
                reloader.reload("SIGHUP").await;
            }
        }
        Err(e) => log::error!("SIGHUP cannot be received: {e}"),
    }
}

async fn upgrade_on_signal(admin: Arc<Admin>) {
    match signal(SignalKind::user_defined2()) {
        Ok(mut asked) => {
            while asked.recv().await.is_some() {
                // What has failed is in the log already.
                if let Err(Refused::Gone) = admin.upgrader.upgrade("SIGUSR2").await {
                    return;
                }
            }
        }
        Err(e) => log::error!("SIGUSR2 cannot be received: {e}"),
    }
}

async fn reload_on_change(reloader: Arc<Reloader>) {
    if let Err(e) = reload::watch(reloader).await {
        log::error!("the configuration files cannot be watched: {e}");
    }
}

/// Says that we are alive only if both are: the runtime that carries traffic answers, and the reloader is not stuck.
async fn prove_alive(interval: Duration, reloader: Arc<Reloader>) {
    let mut proof = Proof::default();
    loop {
        tokio::time::sleep(interval).await;
        let edge = reloader.listeners.ping();
        let edge_lives = tokio::time::timeout(interval, edge).await.is_ok_and(|answered| answered);
        match proof.of(edge_lives, reloader.busy.under_way(), Instant::now()) {
            Ok(()) => systemd::alive(),
            Err(why) => log::error!("not alive: {why}"),
        }
    }
}

/// The turn of the reloader that was under way when it was looked at, and since when.
#[derive(Default)]
struct Proof {
    turn: Option<(u64, Instant)>,
}

impl Proof {
    /// `turn`: the number of the reload or upgrade under way, and how long it may take. The error says who is not alive.
    fn of(&mut self, edge_lives: bool, turn: Option<(u64, Duration)>, now: Instant) -> Result<(), String> {
        // Another one than last time is proof of life, however short the pause between them was.
        let known = self.turn.filter(|(known, _)| turn.is_some_and(|(number, _)| number == *known));
        self.turn = known.or(turn.map(|(number, _)| (number, now)));
        let taking = self.turn.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since));
        match (edge_lives, turn.is_none_or(|(_, most)| taking < most)) {
            (true, true) => Ok(()),
            (false, _) => Err("the edge runtime does not answer".to_owned()),
            (true, false) => Err(format!("a reload or an upgrade is under way for {taking:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_fed_only_while_both_live() {
        let (mut proof, start) = (Proof::default(), Instant::now());
        let second = |n| start + Duration::from_secs(n);
        let turn = |number| Some((number, Duration::from_secs(60)));
        assert!(proof.of(true, None, start).is_ok());
        assert!(proof.of(false, None, start).is_err(), "the edge is stuck");
        assert!(proof.of(true, turn(1), second(1)).is_ok() && proof.of(true, turn(1), second(60)).is_ok(), "a long reload");
        assert!(proof.of(true, turn(1), second(61)).is_err(), "one that does not end");
        assert!(proof.of(true, None, second(62)).is_ok());
        assert!(proof.of(true, turn(2), second(100)).is_ok(), "another one");
        assert!(
            proof.of(true, turn(3), second(161)).is_ok() && proof.of(true, turn(4), second(222)).is_ok(),
            "one after the other"
        );
        let upgrade = Some((5, Duration::from_secs(600)));
        assert!(proof.of(true, upgrade, second(230)).is_ok() && proof.of(true, upgrade, second(700)).is_ok(), "a long probation");
        assert!(proof.of(true, upgrade, second(830)).is_err());
    }
}
