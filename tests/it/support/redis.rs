//! A real Redis as a child process, on a port that the kernel picks.

use super::raw::reserved_port;
use super::{SOON, eventually_some};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::net::TcpSocket;

/// A port that nobody has at this moment.
pub fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A user with the rights that docs/redis.md gives it.
pub struct User {
    name: String,
    rights: Vec<String>,
}

impl User {
    pub const PASSWORD: &str = "hunter2";

    /// `more` is added to what is written there, or takes from it.
    #[track_caller]
    pub fn documented(name: &str, more: &str) -> User {
        let begin = format!("ACL SETUSER {name} on >PASSWORD ");
        let lines = include_str!("../../../docs/redis.md").lines();
        let rights = lines.filter_map(|line| line.trim().strip_prefix(&begin)).next().expect("documented");
        User { name: name.to_owned(), rights: rights.split(' ').chain(more.split_whitespace()).map(str::to_owned).collect() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// For the command line of a server, which has the user after a restart too.
    pub fn option(&self) -> Vec<String> {
        let begin = ["--user", &self.name, "on", &format!(">{}", User::PASSWORD)].map(str::to_owned);
        begin.into_iter().chain(self.rights.iter().cloned()).collect()
    }

    /// Where it logs in.
    pub fn at(&self, redis: &Redis) -> String {
        redis.url().replace("redis://", &format!("redis://{}:{}@", self.name, User::PASSWORD))
    }
}

/// Killed when dropped.
pub struct Redis {
    child: Option<Child>,
    address: SocketAddr,
    directory: tempfile::TempDir,
    options: Vec<String>,
    /// Keeps the port while it is down.
    _port: TcpSocket,
}

impl Redis {
    #[track_caller]
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// With further options of its command line.
    #[track_caller]
    pub fn start_with(options: &[&str]) -> Redis {
        Redis::start_picking(|| options.iter().map(|option| (*option).to_owned()).collect())
    }

    /// With a user besides the one of the tests, who may do everything.
    #[track_caller]
    pub fn start_with_user(user: &User) -> Redis {
        Redis::start_picking(|| user.option())
    }

    /// With options that are made anew if it ends at once, because somebody else had a port of them in the meantime.
    #[track_caller]
    pub fn start_picking(options: impl Fn() -> Vec<String>) -> Redis {
        for _ in 0..5 {
            // Redis cannot tell which port it got, so one is picked for it.
            let ((address, port), directory) = (reserved_port(), tempfile::tempdir().unwrap());
            let mut redis = Redis { child: None, address, directory, options: options(), _port: port };
            redis.spawn();
            if redis.answers() {
                return redis;
            }
        }
        panic!("redis-server ends by itself");
    }

    /// With a file of options, which comes first.
    #[track_caller]
    pub fn start_config(file: &std::path::Path, options: &[&str]) -> Redis {
        Redis::start_with(&[&[file.to_str().unwrap()], options].concat())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A connection of the client library.
    #[track_caller]
    pub fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection_with_timeout(Duration::from_secs(2)).unwrap()
    }

    /// Starts it again, empty, on the same port.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        self.spawn();
        assert!(self.answers(), "redis-server ends by itself");
    }

    fn spawn(&mut self) {
        let mut command = Command::new("redis-server");
        // A file of options must come first.
        let (files, options): (Vec<_>, Vec<_>) = self.options.iter().partition(|option| option.ends_with(".conf"));
        command.args(files);
        command.args(["--port", &self.address.port().to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(options);
        command.arg("--dir").arg(self.directory.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|e| panic!("redis-server is needed (apt-get install redis-server): {e}"));
        self.child = Some(child);
    }

    /// Waits until it answers; `false`: it has ended.
    #[track_caller]
    fn answers(&mut self) -> bool {
        eventually_some("redis answers or ends", SOON, || {
            if self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some()) {
                return Some(false);
            }
            let answer = self.ask("PING").ok()?;
            (answer == "+PONG" || answer.starts_with("-NOAUTH")).then_some(true)
        })
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// The lines of `[redis]`.
    pub fn config(&self) -> String {
        format!("[redis]\nurl = \"{}\"\n", self.url())
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
