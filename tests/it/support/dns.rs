//! A real dnsmasq as a child process, on a port that the kernel picks.

use super::{SOON, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Killed when dropped. It knows the domain `test` and nothing else.
pub struct Dnsmasq {
    child: Option<Child>,
    address: SocketAddr,
    directory: tempfile::TempDir,
    options: Vec<String>,
}

/// A port that is free for both UDP and TCP, which dnsmasq needs, and stays so: the kernel gives none of these to others.
fn free_port() -> SocketAddr {
    let free = |address: &SocketAddr| UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok();
    std::iter::repeat_with(|| SocketAddr::from(([127, 0, 0, 1], fastrand::u16(10_000..30_000)))).find(free).unwrap()
}

impl Dnsmasq {
    /// `options` are further ones of dnsmasq, such as `--srv-host=...` or `--local-ttl=1`.
    #[track_caller]
    pub fn start(options: &[&str]) -> Dnsmasq {
        let address = free_port();
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut dnsmasq = Dnsmasq { child: None, address, directory: tempfile::tempdir().unwrap(), options };
        std::fs::write(dnsmasq.directory.path().join("hosts"), "").unwrap();
        dnsmasq.start_again();
        dnsmasq
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts it with what it knew.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.kill();
        let mut command = Command::new("dnsmasq");
        command.args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--local=/test/", "--pid-file="]);
        command.args(["--listen-address=127.0.0.1", "--bind-interfaces", "--cache-size=0"]);
        command.arg(format!("--port={}", self.address.port()));
        command.arg(format!("--addn-hosts={}", self.directory.path().join("hosts").display()));
        if getuid().is_root() {
            command.arg("--user=root");
        }
        command.args(&self.options).env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap_or_else(|e| panic!("dnsmasq is needed (apt-get install dnsmasq-base): {e}")));
        eventually("dnsmasq answers", SOON, || self.answers());
    }

    /// Replaces the addresses of all names: pairs of name and address, as pods that come and go.
    pub fn hosts(&self, pairs: &[(&str, &str)]) {
        let text: String = pairs.iter().map(|(name, address)| format!("{address} {name}\n")).collect();
        // In place: dnsmasq reads the file anew when it is told to.
        std::fs::write(self.directory.path().join("hosts"), text).unwrap();
        if let Some(child) = &self.child {
            kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGHUP).unwrap();
        }
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Whether it answers a question for `up.test`, with whatever.
    fn answers(&self) -> bool {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02up\x04test\x00\x00\x01\x00\x01";
        socket.send_to(question, self.address).is_ok() && socket.recv(&mut [0; 512]).is_ok()
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        self.kill();
    }
}
