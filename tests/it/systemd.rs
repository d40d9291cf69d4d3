//! What the service manager hears, on a socket that the test listens on in its place.

use crate::support::gateway::{Gateway, binary};
use crate::support::{SOON, eventually};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const TOML: &str = "[routes.hello]\nmatch = {}\nfilters = [{ respond = { body = \"one\" } }]\n";

/// The service manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn listen(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Manager { socket }
    }

    /// Reads messages until one has this line; panics when it does not come.
    #[track_caller]
    fn hears(&self, line: &str) -> String {
        let end = Instant::now() + SOON;
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        while Instant::now() < end {
            if let Ok(length) = self.socket.recv(&mut buffer) {
                let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if message.lines().any(|known| known == line) {
                    return message;
                }
                heard.push(message);
            }
        }
        panic!("no {line} among {heard:?}");
    }
}

/// By the clock that systemd compares with, in microseconds.
fn monotonic() -> i128 {
    match sd_notify::NotifyState::monotonic_usec_now() {
        Ok(sd_notify::NotifyState::MonotonicUsec(now)) => now,
        other => panic!("{other:?}"),
    }
}

fn start(directory: &Path, more: &[(&str, &str)]) -> (Manager, Gateway) {
    let path = directory.join("notify.sock");
    let manager = Manager::listen(&path);
    let mut environment = vec![("NOTIFY_SOCKET", path.to_str().unwrap())];
    environment.extend_from_slice(more);
    let gateway = Gateway::start_with_environment(TOML, &environment);
    (manager, gateway)
}

#[test]
fn readiness_reload_and_stop_are_announced() {
    let directory = tempfile::tempdir().unwrap();
    let (manager, mut gateway) = start(directory.path(), &[]);
    let ready = manager.hears("READY=1");
    assert!(ready.contains("STATUS=1 routes, 0 upstreams"), "{ready}");

    let before = monotonic();
    gateway.reload_with(&TOML.replace("one", "two")).unwrap();
    let reloading = manager.hears("RELOADING=1");
    let stamp = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap_or_else(|| panic!("{reloading}"));
    assert!((before..=monotonic()).contains(&stamp.parse().unwrap()), "{reloading} at {before}");
    manager.hears("READY=1");

    gateway.reload_with("[routes.hello]\nwrong = 1\n").unwrap_err();
    manager.hears("RELOADING=1");
    manager.hears("READY=1");

    gateway.sigterm();
    manager.hears("STOPPING=1");
    assert!(gateway.wait_exit(SOON).success());
}

#[test]
fn watchdog_is_fed_while_runtime_and_reloader_live() {
    let directory = tempfile::tempdir().unwrap();
    let (manager, gateway) = start(directory.path(), &[("WATCHDOG_USEC", "400000")]);
    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
    drop(gateway);
}

/// Ends with the test, however that ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Under the journal a line begins with its priority and has no time of its own (sd-daemon(3)).
#[test]
fn lines_for_the_journal_begin_with_their_priority() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("gatewright.toml");
    let admin = directory.path().join("admin.sock");
    let head = format!("[admin]\nlisten = \"unix:{}\"\n[listeners.main]\naddress = \"127.0.0.1:0\"\n", admin.display());
    std::fs::write(&config, head + TOML).unwrap();
    let path = directory.path().join("journal");
    let journal = std::fs::File::create(&path).unwrap();
    let metadata = journal.metadata().unwrap();
    let process = Command::new(binary())
        .args(["run", "-c", config.to_str().unwrap()])
        .env("JOURNAL_STREAM", format!("{}:{}", metadata.dev(), metadata.ino()))
        .stderr(journal)
        .spawn()
        .unwrap();
    let process = Killed(process);
    let said = || std::fs::read_to_string(&path).unwrap();
    eventually("a line about the start", SOON, || said().contains("<6>INFO gatewright"));
    drop(process);
    let said = said();
    let priority = |line: &str| line.strip_prefix('<').and_then(|rest| rest.get(1..2)) == Some(">");
    assert!(said.lines().all(priority), "{said}");
}
