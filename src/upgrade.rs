//! Replacing the running binary without losing a request.
//!
//! The old process starts the new one with its own arguments and hands it the listening sockets over a private unix socket.
//! Only when the new one has read its configuration, built everything and settled its upstreams does it begin to accept, on
//! the very same sockets: connections that arrive meanwhile wait in their queues. For a probation both accept. Then the
//! service manager is told of its new main process, and the old one drains: it accepts nothing more, ends HTTP/2 with GOAWAY,
//! and lets each keep-alive connection go with the answer to its next request, because closing an idle one could meet a
//! request on its way.
//!
//! Whatever goes wrong before the end of the probation, be it a wrong configuration, a binary that does not start or one
//! that dies, before its first request or with it, leaves the old process as it was. The service manager hears of the
//! new one no earlier, because it would take the death of its main process for the death of all. After that it is the
//! service manager that starts another one. What is only in memory (counts of limits without Redis, health, caches) begins
//! anew; TLS sessions are not resumed across.

mod door;
mod successor;
mod wire;

pub use door::Door;
pub use successor::{Predecessor, Received};

use crate::listener::{Listeners, Passed};
use crate::reload::{RELOAD_PATIENCE, Reloader};
use crate::systemd;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use wire::{Manifest, Order, Reply};

/// The variable that tells a new process where its predecessor waits.
const VARIABLE: &str = "GATEWRIGHT_UPGRADE";
/// How long a new process may take until it is ready: reading the configuration, name resolution, building everything.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take from then on until it accepts. There is nothing left for it to do.
const ACCEPTS_WITHIN: Duration = Duration::from_secs(10);
/// How long a stop waits for an upgrade under way to be given up.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(1);
/// How often a process that has not connected yet is looked at.
const POLL: Duration = Duration::from_millis(5);

/// What is to become of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Serving,
    /// Another process accepts: this one drains.
    HandedOver,
    /// It was to be a successor, and its predecessor has gone or has given it up.
    Abandoned,
}

/// Why there was no upgrade. The process serves on as before.
#[derive(Debug)]
pub enum Refused {
    /// Another process serves already.
    Gone,
    /// In the words of the new process where it had any.
    Failed(String),
}

/// The old side: starts a successor and hands over to it.
pub struct Upgrader {
    /// Where the binary was when this process started; the file there may be another one by now, which is the point.
    program: Option<PathBuf>,
    arguments: Vec<OsString>,
    listeners: Arc<Listeners>,
    reloader: Arc<Reloader>,
    door: Arc<Door>,
    fate: watch::Sender<Fate>,
    /// The process is told to stop.
    stopping: AtomicBool,
}

impl Upgrader {
    /// To be called early: the path of the binary is only sure before somebody replaces it.
    pub fn new(listeners: Arc<Listeners>, reloader: Arc<Reloader>, door: Arc<Door>) -> Arc<Self> {
        Arc::new(Upgrader {
            program: std::env::current_exe().ok(),
            arguments: std::env::args_os().skip(1).collect(),
            listeners,
            reloader,
            door,
            fate: watch::Sender::new(Fate::Serving),
            stopping: AtomicBool::new(false),
        })
    }

    pub fn fate(&self) -> Fate {
        *self.fate.borrow()
    }

    /// Returns once the process is to end.
    pub async fn decided(&self) -> Fate {
        let mut fate = self.fate.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        fate.wait_for(|fate| *fate != Fate::Serving).await.map_or(Fate::Abandoned, |fate| *fate)
    }

    /// This process was started as a successor and cannot become one.
    pub fn abandon(&self) {
        self.fate.send_replace(Fate::Abandoned);
    }

    /// This process is told to stop. A successor on probation would go on serving without it: it is ended first.
    pub async fn give_up(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Held for as long as an upgrade is under way. What takes longer has not begun to accept, and ends by itself.
        let _ = tokio::time::timeout(GIVEN_UP_WITHIN, self.reloader.busy.take(GIVEN_UP_WITHIN)).await;
    }

    /// Starts a successor and hands over to it: the number of the new process. `asked_by` goes to the log.
    pub async fn upgrade(self: &Arc<Self>, asked_by: &'static str) -> Result<u32, Refused> {
        // No reload may change the listeners while they are handed over, and no second upgrade begin.
        let most = self.most();
        let _turn = self.reloader.busy.take(most).await;
        if self.fate() != Fate::Serving {
            return Err(Refused::Gone);
        }
        let begun = Instant::now();
        log::info!("upgrade asked for by {asked_by}");
        let this = Arc::clone(self);
        let handed = match tokio::task::spawn_blocking(move || this.hand_over()).await {
            Ok(handed) => handed,
            Err(e) => Err(format!("the upgrade did not finish: {e}")),
        };
        match handed {
            Ok(successor) => {
                log::info!("upgrade: process {successor} accepts in our place after {:?}", begun.elapsed());
                self.reloader.gone.store(true, Ordering::Relaxed);
                self.listeners.hand_over();
                self.door.close().await;
                self.fate.send_replace(Fate::HandedOver);
                Ok(successor)
            }
            Err(why) => {
                self.reloader.gateway.metrics().upgrade_failed();
                log::error!("upgrade asked for by {asked_by}: failed, this process serves on\n{why}");
                Err(Refused::Failed(why))
            }
        }
    }

    /// How long an upgrade may take: each of its waits has a bound, and the rest is done in a moment.
    fn most(&self) -> Duration {
        let waits = [READY_WITHIN, ACCEPTS_WITHIN, self.reloader.fixed.upgrade_probation, RELOAD_PATIENCE];
        waits.into_iter().fold(Duration::ZERO, Duration::saturating_add)
    }

    /// Everything that can fail. Blocks until the successor accepts.
    fn hand_over(&self) -> Result<u32, String> {
        let program = self.program.as_deref().ok_or("the path of the running binary is not known")?;
        let room = Room::open().map_err(|e| format!("no socket to hand over by: {e}"))?;
        let child = Command::new(program)
            .args(&self.arguments)
            .env(VARIABLE, &room.socket)
            // It names this process; the new one is watched as well.
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
        let mut successor = Successor(Some(child));
        let mut stream = room.wait_for(&mut successor)?;
        drop(room);
        let serve = self.introduce(&mut stream);
        // Its own words come first: a broken connection is only what they lead to.
        serve.map_err(|e| match wire::receive(&mut stream) {
            Ok(Reply::Failed(report)) => report,
            _ => successor.ended_or(&e),
        })?;
        match wire::receive(&mut stream) {
            Ok(Reply::Ready) => {}
            Ok(Reply::Failed(report)) => return Err(report),
            Ok(Reply::Accepting) => return Err("the new process broke the protocol of the hand-over".to_owned()),
            Err(e) => return Err(successor.ended_or(&e)),
        }
        let accepts = || -> io::Result<Reply> {
            stream.set_read_timeout(Some(ACCEPTS_WITHIN))?;
            wire::send(&mut stream, &Order::Accept)?;
            wire::receive(&mut stream)
        }();
        match accepts {
            Ok(Reply::Accepting) => {}
            Ok(_) => return Err("the new process broke the protocol of the hand-over".to_owned()),
            Err(e) => return Err(successor.ended_or(&e)),
        }
        self.watch_over(&mut successor)?;
        let pid = successor.let_go();
        // From us, while we are still the main process: nobody else is listened to.
        systemd::successor(pid);
        // If it dies now there is nothing that this process could do for it.
        let _ = wire::send(&mut stream, &Order::Lead);
        Ok(pid)
    }

    /// Both processes accept, until the new one has lived long enough to be left alone.
    fn watch_over(&self, successor: &mut Successor) -> Result<(), String> {
        let begun = Instant::now();
        while begun.elapsed() < self.reloader.fixed.upgrade_probation {
            if let Some(status) = successor.status() {
                return Err(format!("the new process ended {:?} after it had begun to accept: {status}", begun.elapsed()));
            }
            if self.stopping.load(Ordering::Relaxed) {
                return Err("the service is told to stop".to_owned());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Sends the sockets.
    fn introduce(&self, stream: &mut UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(READY_WITHIN))?;
        stream.set_write_timeout(Some(ACCEPTS_WITHIN))?;
        let sockets = self.listeners.share()?;
        let admin = self.door.share();
        let manifest = Manifest::new(&sockets, admin.as_ref().map(|(address, _)| address));
        wire::send(stream, &manifest)?;
        for Passed { socket, .. } in &sockets {
            wire::send_socket(stream, socket.as_fd())?;
        }
        if let Some((_, socket)) = &admin {
            wire::send_socket(stream, socket.as_fd())?;
        }
        Ok(())
    }
}

/// A new process that is killed unless it gets to serve.
struct Successor(Option<Child>);

impl Successor {
    fn pid(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }

    /// How it has ended, if it has.
    fn status(&mut self) -> Option<ExitStatus> {
        self.0.as_mut()?.try_wait().ok()?
    }

    /// The same in words, before it was ready.
    fn ended(&mut self) -> Option<String> {
        Some(format!("the new process ended before it was ready: {}", self.status()?))
    }

    /// Why the conversation with it broke off.
    fn ended_or(&mut self, error: &io::Error) -> String {
        let end = Instant::now().checked_add(Duration::from_secs(1));
        // A process closes its sockets a moment before it can be waited for.
        while end.is_some_and(|end| Instant::now() < end) && error.kind() == io::ErrorKind::UnexpectedEof {
            if let Some(ended) = self.ended() {
                return ended;
            }
            std::thread::sleep(POLL);
        }
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("the new process was not ready within {READY_WITHIN:?}")
            }
            _ => format!("the new process does not answer: {error}"),
        }
    }

    fn let_go(mut self) -> u32 {
        self.0.take().map_or(0, |child| child.id())
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Either may find that it has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A directory that only this user can enter, with the socket in it. Both are gone when it is dropped.
struct Room {
    directory: PathBuf,
    socket: PathBuf,
    listener: UnixListener,
}

impl Room {
    fn open() -> io::Result<Room> {
        // What the service manager has made for us, if it has: the first of the list.
        let parent = std::env::var_os("RUNTIME_DIRECTORY")
            .and_then(|list| std::env::split_paths(&list).next())
            .filter(|path| path.is_dir())
            .unwrap_or_else(std::env::temp_dir);
        Room::open_in(&parent)
    }

    fn open_in(parent: &Path) -> io::Result<Room> {
        // Mode 0700, and never a directory that was there before.
        let directory = nix::unistd::mkdtemp(&parent.join("upgrade.XXXXXX"))?;
        let socket = directory.join("handover.sock");
        let bound = UnixListener::bind(&socket).and_then(|listener| {
            std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        match bound {
            Ok(listener) => Ok(Room { directory, socket, listener }),
            Err(e) => {
                remove(&directory, &socket);
                Err(e)
            }
        }
    }

    /// The connection of the process that was started, and of no other one.
    fn wait_for(&self, successor: &mut Successor) -> Result<UnixStream, String> {
        let begun = Instant::now();
        while begun.elapsed() < READY_WITHIN {
            match self.listener.accept() {
                Ok((stream, _)) if is_from(&stream, successor.pid()) => {
                    return match stream.set_nonblocking(false) {
                        Ok(()) => Ok(stream),
                        Err(e) => Err(format!("the new process does not answer: {e}")),
                    };
                }
                Ok(_) => log::warn!("upgrade: somebody else connected to the socket of the hand-over"),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(ended) = successor.ended() {
                        return Err(ended);
                    }
                    std::thread::sleep(POLL);
                }
                Err(e) => return Err(format!("the new process cannot be waited for: {e}")),
            }
        }
        Err(format!("the new process was not ready within {READY_WITHIN:?}"))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        remove(&self.directory, &self.socket);
    }
}

fn remove(directory: &Path, socket: &Path) {
    // Left behind they are in nobody's way: every upgrade has a directory of its own.
    let _ = std::fs::remove_file(socket);
    let _ = std::fs::remove_dir(directory);
}

fn is_from(stream: &UnixStream, pid: u32) -> bool {
    let Ok(peer) = getsockopt(stream, PeerCredentials) else { return false };
    peer.uid() == Uid::effective().as_raw() && u32::try_from(peer.pid()).is_ok_and(|peer| peer == pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hand_over_is_private_and_leaves_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        let room = Room::open_in(parent.path()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&room.directory), mode(&room.socket)), (0o700, 0o600));
        let (mine, _) = (UnixStream::connect(&room.socket).unwrap(), ());
        let (stream, _) = room.listener.accept().unwrap();
        assert!(is_from(&stream, std::process::id()) && !is_from(&stream, 1), "only the process that was started counts");
        drop((mine, room));
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_process_that_never_connects_is_told_apart_from_one_that_ends() {
        let parent = tempfile::tempdir().unwrap();
        let room = Room::open_in(parent.path()).unwrap();
        let mut successor = Successor(Some(Command::new("false").spawn().unwrap()));
        let why = room.wait_for(&mut successor).unwrap_err();
        assert!(why.contains("ended before it was ready") && why.contains('1'), "{why}");
    }
}
