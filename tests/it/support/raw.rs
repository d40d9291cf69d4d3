//! A blocking HTTP/1 client that sends exactly the bytes it is given and judges exactly the bytes it gets.

use super::http1::{Broken, Response, parse};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// One connection.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    eof: bool,
    timeout: Duration,
}

impl Client {
    /// Connects within 5 s; every later read or write waits at most 20 s in total.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Client {
        Client::try_connect(address).unwrap_or_else(|e| panic!("connect to {address}: {e}"))
    }

    pub fn try_connect(address: SocketAddr) -> Result<Client, Broken> {
        let connected = TcpStream::connect_timeout(&address, Duration::from_secs(5));
        let stream = connected.map_err(|e| Broken::Connect(e.to_string()))?;
        stream.set_nodelay(true).map_err(|e| Broken::Connect(e.to_string()))?;
        Ok(Client { stream, buffer: Vec::new(), eof: false, timeout: Duration::from_secs(20) })
    }

    /// Sets how long one response may take in total.
    pub fn timeout(mut self, timeout: Duration) -> Client {
        self.timeout = timeout;
        self
    }

    /// Sends these bytes. A peer that has closed already is no error here: what it sent before is still to be read.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Client {
        let _ = self.stream.set_write_timeout(Some(self.timeout));
        let _ = self.stream.write_all(bytes.as_ref());
        self
    }

    /// The next complete response.
    pub fn read(&mut self) -> Result<Response, Broken> {
        self.read_to(false)
    }

    /// The next response, to a HEAD if `to_head`.
    pub fn read_to(&mut self, to_head: bool) -> Result<Response, Broken> {
        let end = Instant::now() + self.timeout;
        loop {
            if let Some((response, length)) = parse(&self.buffer, to_head, self.eof)? {
                self.buffer.drain(..length);
                return Ok(response);
            }
            self.fill(end)?;
        }
    }

    /// The next response; panics when there is none.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.read().unwrap_or_else(|broken| panic!("no response: {broken}"))
    }

    /// Sends a whole request and reads its response.
    pub fn exchange(&mut self, request: impl AsRef<[u8]>) -> Result<Response, Broken> {
        let to_head = request.as_ref().starts_with(b"HEAD ");
        self.send(request).read_to(to_head)
    }

    /// Everything that arrives until the peer closes; panics if it does not within the time.
    #[track_caller]
    pub fn read_until_closed(&mut self) -> Vec<u8> {
        let end = Instant::now() + self.timeout;
        while !self.eof {
            if let Err(broken) = self.fill(end) {
                assert!(matches!(broken, Broken::Truncated(_)), "not closed: {broken}");
                break;
            }
        }
        std::mem::take(&mut self.buffer)
    }

    /// Whether the peer closes within `wait` without sending another byte.
    pub fn closes_within(&mut self, wait: Duration) -> bool {
        let end = Instant::now() + wait;
        while !self.eof && self.buffer.is_empty() {
            match self.fill(end) {
                Ok(()) => {}
                Err(Broken::TimedOut(_)) => return false,
                Err(_) => return self.buffer.is_empty(),
            }
        }
        self.buffer.is_empty()
    }

    /// Whether, within `wait`, the peer has closed or has begun an answer.
    pub fn closed_or_answered(&mut self, wait: Duration) -> bool {
        if !self.eof && self.buffer.is_empty() {
            let filled = self.fill(Instant::now() + wait);
            return !matches!(filled, Err(Broken::TimedOut(_)));
        }
        true
    }

    fn fill(&mut self, end: Instant) -> Result<(), Broken> {
        let left = end.saturating_duration_since(Instant::now());
        let late = || Broken::TimedOut(format!("{} bytes so far", self.buffer.len()));
        if left.is_zero() {
            return Err(late());
        }
        let mut chunk = [0; 64 * 1024];
        self.stream.set_read_timeout(Some(left)).map_err(|e| Broken::Truncated(e.to_string()))?;
        match self.stream.read(&mut chunk) {
            Ok(0) => self.eof = true,
            Ok(length) => self.buffer.extend_from_slice(&chunk[..length]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Err(late()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if self.buffer.is_empty() && e.kind() == ErrorKind::ConnectionReset => return Err(Broken::Closed),
            Err(e) => return Err(Broken::Truncated(format!("{e} after {} bytes", self.buffer.len()))),
        }
        Ok(())
    }
}

/// A request in text: `request("GET", "/a", &[("x-a", "1")], b"")`, with `Host: localhost` unless given, and a
/// `Content-Length` when there is a body.
pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text.push_str("host: localhost\r\n");
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    [text.as_bytes(), body].concat()
}

/// One GET on a connection of its own; panics when the response is not complete.
#[track_caller]
pub fn get(address: SocketAddr, target: &str) -> Response {
    send(address, "GET", target, &[], b"")
}

/// One request on a connection of its own; panics when the response is not complete.
#[track_caller]
pub fn send(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let answer = Client::connect(address).exchange(request(method, target, headers, body));
    answer.unwrap_or_else(|broken| panic!("{method} {target}: {broken}"))
}

/// A loopback port that refuses connections, and keeps doing so while the returned guard lives: bound, never listening.
pub fn refusing_port() -> (SocketAddr, tokio::net::TcpSocket) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    (socket.local_addr().unwrap(), socket)
}

/// A loopback port for a listener to come: nobody gets it by chance while the returned guard lives, and who asks for it may have it.
pub fn reserved_port() -> (SocketAddr, tokio::net::TcpSocket) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    (socket.local_addr().unwrap(), socket)
}
