//! A real Redis as a child process, on a port that the kernel picks.

use super::{SOON, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Killed when dropped.
pub struct Redis {
    child: Option<Child>,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Redis {
    #[track_caller]
    pub fn start() -> Redis {
        // Redis cannot tell which port it got, so one is picked for it.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut redis = Redis { child: None, address, directory: tempfile::tempdir().unwrap() };
        redis.restart();
        redis
    }

    /// Starts it again, empty, on the same port.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.address.port().to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(self.directory.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|e| panic!("redis-server is needed (apt-get install redis-server): {e}"));
        self.child = Some(child);
        eventually("redis answers", SOON, || self.ask("PING").is_ok_and(|answer| answer == "+PONG"));
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap();
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    }

    /// One inline command and the first line of its answer.
    pub fn ask(&self, command: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
