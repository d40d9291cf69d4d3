//! A client of the admin listener, over its unix socket or its loopback port.

use super::http1::{Broken, Response, parse};
use super::raw::request;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Where the admin listener is.
#[derive(Debug, Clone)]
pub enum Admin {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Admin {
    /// Reads the value of `[admin] listen`.
    #[track_caller]
    pub fn parse(listen: &str) -> Admin {
        match listen.strip_prefix("unix:") {
            Some(path) => Admin::Unix(path.into()),
            None => Admin::Tcp(listen.parse().unwrap_or_else(|e| panic!("[admin] listen = {listen:?}: {e}"))),
        }
    }

    /// As `gatewright reload --admin` takes it.
    pub fn argument(&self) -> String {
        match self {
            Admin::Unix(path) => format!("unix:{}", path.display()),
            Admin::Tcp(address) => address.to_string(),
        }
    }

    /// One request on a connection of its own.
    pub fn exchange(&self, method: &str, target: &str) -> Result<Response, Broken> {
        let refused = |e: std::io::Error| Broken::Connect(e.to_string());
        let limit = Some(Duration::from_secs(30));
        match self {
            Admin::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(refused)?;
                stream.set_read_timeout(limit).map_err(refused)?;
                finish(stream, method, target)
            }
            Admin::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, Duration::from_secs(5)).map_err(refused)?;
                stream.set_read_timeout(limit).map_err(refused)?;
                finish(stream, method, target)
            }
        }
    }

    /// One GET; panics when there is no complete response.
    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        self.exchange("GET", target).unwrap_or_else(|broken| panic!("admin {target}: {broken}"))
    }
}

fn finish(mut stream: impl Read + Write, method: &str, target: &str) -> Result<Response, Broken> {
    let broken = |e: std::io::Error| Broken::Truncated(e.to_string());
    stream.write_all(&request(method, target, &[("connection", "close")], b"")).map_err(broken)?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        let length = stream.read(&mut chunk).map_err(broken)?;
        bytes.extend_from_slice(&chunk[..length]);
        if let Some((response, _)) = parse(&bytes, false, length == 0)? {
            return Ok(response);
        }
    }
}
