//! The real binary as a child process, with a config in a directory of its own.

use super::admin::Admin;
use super::metrics::Metrics;
use super::{SOON, eventually, eventually_some};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

/// The binary under test.
/// The gateway under test: as it was built with the tests, or another build of the same source (`GATEWRIGHT_BINARY`).
pub fn binary() -> &'static str {
    static BINARY: OnceLock<String> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var("GATEWRIGHT_BINARY") {
        Ok(path) => std::fs::canonicalize(&path).unwrap_or_else(|e| panic!("{path}: {e}")).display().to_string(),
        Err(_) => env!("CARGO_BIN_EXE_gatewright").to_owned(),
    })
}

/// How a run of the binary ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the binary to its end; panics when that takes longer than 60 s.
#[track_caller]
pub fn run(arguments: &[&str]) -> Ended {
    let mut child = command(binary().as_ref(), arguments).stdout(Stdio::piped()).spawn().unwrap();
    let stdout = collect(child.stdout.take().unwrap());
    let stderr = collect(child.stderr.take().unwrap());
    let status = wait(&mut child, Duration::from_secs(60));
    Ended { code: status.and_then(|s| s.code()), stdout: stdout.finish(), stderr: stderr.finish() }
}

/// A gateway under test. Killed when dropped; a test that panics prints what it logged.
pub struct Gateway {
    child: Child,
    pub admin: Admin,
    directory: tempfile::TempDir,
    stderr: Output,
}

impl Gateway {
    /// Starts it and waits until it is ready; panics with what it said when it does not get there.
    ///
    /// What the text leaves out is added: an admin socket, a listener `http` on a port that the kernel picks, an access
    /// log in a file.
    #[track_caller]
    pub fn start(toml: &str) -> Gateway {
        Gateway::try_start(toml).unwrap_or_else(|ended| panic!("did not start: {ended:?}"))
    }

    /// Like [`Gateway::start`], but a gateway that ends before it is ready is a result.
    pub fn try_start(toml: &str) -> Result<Gateway, Ended> {
        Gateway::try_start_with(toml, |_| {})
    }

    /// Lets `prepare` write more files into the directory of the config before the start.
    pub fn try_start_with(toml: &str, prepare: impl FnOnce(&Path)) -> Result<Gateway, Ended> {
        Gateway::launch(command(binary().as_ref(), &[]), toml, prepare)
    }

    /// The same for another program that is a gateway, such as one with filters of its own.
    pub fn try_start_binary(binary: &Path, toml: &str) -> Result<Gateway, Ended> {
        Gateway::launch(command(binary, &[]), toml, |_| {})
    }

    /// Starts it with variables in its environment.
    #[track_caller]
    pub fn start_with_environment(toml: &str, environment: &[(&str, &str)]) -> Gateway {
        let mut command = command(binary().as_ref(), &[]);
        command.envs(environment.iter().copied());
        Gateway::launch(command, toml, |_| {}).unwrap_or_else(|ended| panic!("did not start: {ended:?}"))
    }

    fn launch(mut command: Command, toml: &str, prepare: impl FnOnce(&Path)) -> Result<Gateway, Ended> {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path());
        let toml = complete(toml, directory.path());
        std::fs::write(directory.path().join("gatewright.toml"), &toml).unwrap();
        let parsed: toml::Table = toml.parse().unwrap_or_else(|e| panic!("the test's TOML: {e}"));
        let admin = Admin::parse(parsed["admin"]["listen"].as_str().unwrap());
        let config = directory.path().join("gatewright.toml");
        let mut child = command.args(["run", "-c", config.to_str().unwrap()]).stdout(Stdio::null()).spawn().unwrap();
        let stderr = collect(child.stderr.take().unwrap());
        let mut gateway = Gateway { child, admin, directory, stderr };
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = gateway.child.try_wait().unwrap() {
                gateway.stderr.drain();
                return Err(Ended { code: status.code(), stdout: String::new(), stderr: gateway.stderr() });
            }
            if gateway.ready() {
                return Ok(gateway);
            }
            assert!(Instant::now() < end, "not ready after 60 s:\n{}", gateway.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The address that this listener is bound to.
    #[track_caller]
    pub fn address(&self, listener: &str) -> SocketAddr {
        let status = self.status();
        let listeners = status["listeners"].as_array().unwrap_or_else(|| panic!("no listeners in {status}"));
        let found = listeners.iter().find(|l| l["name"] == listener).and_then(|l| l["address"].as_str());
        found.unwrap_or_else(|| panic!("no listener {listener} in {status}")).parse().unwrap()
    }

    /// The address of the listener `http`.
    #[track_caller]
    pub fn http(&self) -> SocketAddr {
        self.address("http")
    }

    /// Whether `/readyz` says 200.
    pub fn ready(&self) -> bool {
        self.admin.exchange("GET", "/readyz").is_ok_and(|response| response.status == 200)
    }

    /// The document of `/status`.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.admin.get("/status").json()
    }

    /// One endpoint's entry in `/status`.
    #[track_caller]
    pub fn endpoint(&self, address: SocketAddr) -> Value {
        let status = self.status();
        let upstreams = status["upstreams"].as_array().unwrap_or_else(|| panic!("no upstreams in {status}"));
        let mut endpoints = upstreams.iter().filter_map(|u| u["endpoints"].as_array()).flatten();
        let found = endpoints.find(|e| e["address"] == address.to_string());
        found.unwrap_or_else(|| panic!("no endpoint {address} in {status}")).clone()
    }

    /// Waits until `/status` shows this endpoint as healthy, or as not.
    #[track_caller]
    pub fn wait_healthy(&self, address: SocketAddr, healthy: bool) {
        eventually(&format!("{address} healthy = {healthy}"), SOON, || self.endpoint(address)["healthy"] == healthy);
    }

    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.admin.get("/metrics").text())
    }

    /// The sum of the samples of this name that carry these labels, 0 when there is none.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().get(name, labels).unwrap_or(0.0)
    }

    /// The path of the config file.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("gatewright.toml")
    }

    /// Replaces the config file as an editor or a deployment does, by a rename, and adds what [`Gateway::start`] adds.
    pub fn write_config(&self, toml: &str) {
        let temporary = self.directory.path().join("next.tmp");
        std::fs::write(&temporary, complete(toml, self.directory.path())).unwrap();
        std::fs::rename(temporary, self.config()).unwrap();
    }

    /// Writes the config and runs `gatewright reload`: `Err` is all that it printed when it exits non-zero.
    pub fn reload_with(&self, toml: &str) -> Result<(), String> {
        self.write_config(toml);
        let ended = self.reload();
        if ended.code == Some(0) { Ok(()) } else { Err(format!("{}{}", ended.stdout, ended.stderr)) }
    }

    /// Runs `gatewright reload` on the file as it is.
    pub fn reload(&self) -> Ended {
        run(&["reload", "--admin", &self.admin.argument()])
    }

    pub fn sighup(&self) {
        self.signal(Signal::SIGHUP);
    }

    pub fn sigterm(&self) {
        self.signal(Signal::SIGTERM);
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Waits for the process to end by itself.
    #[track_caller]
    pub fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let status = wait(&mut self.child, deadline);
        status.unwrap_or_else(|| panic!("still running after {deadline:?}"))
    }

    /// Whether the process is still there.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Resident memory, in bytes.
    pub fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Everything on standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// When the line of the log was written that has this text. The log may be a moment behind.
    #[track_caller]
    pub fn told_at(&self, text: &str) -> SystemTime {
        let line = eventually_some(&format!("log of {text:?}"), SOON, || {
            self.stderr().lines().find(|line| line.contains(text)).map(str::to_owned)
        });
        let time: toml::value::Datetime = line.split(' ').next().unwrap().parse().unwrap_or_else(|e| panic!("{e}: {line}"));
        let of_day = time.time.unwrap();
        let seconds = u64::from(of_day.hour) * 3_600 + u64::from(of_day.minute) * 60 + u64::from(of_day.second.unwrap_or(0));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let told = Duration::new(seconds, of_day.nanosecond.unwrap_or(0));
        // Of this day, or of the one that has just ended.
        let midnight = Duration::from_secs(now.as_secs() / 86_400 * 86_400);
        let day = if midnight + told > now { midnight - Duration::from_secs(86_400) } else { midnight };
        SystemTime::UNIX_EPOCH + day + told
    }

    /// The access log so far, one JSON document a line; a half-written last line is left out.
    #[track_caller]
    pub fn access_log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in access log: {line}"))).collect()
    }

    /// Waits for a line of the access log that fits.
    #[track_caller]
    pub fn logged(&self, what: &str, mut fits: impl FnMut(&Value) -> bool) -> Value {
        eventually_some(&format!("access log of {what}"), SOON, || self.access_log().into_iter().find(|line| fits(line)))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let status = self.child.wait();
        if std::thread::panicking() {
            let signal = status.as_ref().ok().and_then(ExitStatusExt::signal);
            eprintln!("---- gateway ended: {status:?} (signal {signal:?}); standard error:\n{}", self.stderr());
            let log = std::fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("---- access log, last 20 of {}:\n{}", lines.len(), lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}

/// Adds the tables that a test need not care about.
fn complete(toml: &str, directory: &Path) -> String {
    let has = |table: &str| toml.lines().any(|line| line.trim_start().starts_with(table));
    let mut text = toml.to_owned();
    if !has("[admin]") {
        text.push_str(&format!("\n[admin]\nlisten = \"unix:{}\"\n", directory.join("admin.sock").display()));
    }
    if !has("[listeners.") {
        text.push_str("\n[listeners.http]\naddress = \"127.0.0.1:0\"\n");
    }
    let access = format!("[log]\naccess = {{ output = \"file:{}\" }}\n", directory.join("access.log").display());
    if !has("[log]") {
        text.push_str(&format!("\n{access}"));
    } else if !has("access = ") {
        text = text.replacen("[log]\n", &access, 1);
    }
    text
}

fn command(binary: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

fn wait(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + deadline;
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return Some(status),
            None if Instant::now() > end => return None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A pipe that is read in the background, so that the child never blocks on it.
struct Output {
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

fn collect(mut pipe: impl Read + Send + 'static) -> Output {
    let text = Arc::new(Mutex::new(Vec::new()));
    let sink = text.clone();
    let reader = std::thread::spawn(move || {
        let mut chunk = [0; 8192];
        while let Ok(length @ 1..) = pipe.read(&mut chunk) {
            sink.lock().unwrap().extend_from_slice(&chunk[..length]);
        }
    });
    Output { text, reader: Some(reader) }
}

impl Output {
    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    /// Waits until the other end is closed.
    fn drain(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }

    /// Everything, once the other end is closed.
    fn finish(mut self) -> String {
        self.drain();
        self.so_far()
    }
}
