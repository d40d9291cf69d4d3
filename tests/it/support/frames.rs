//! HTTP/2 frames and header blocks written by hand (RFC 9113 §4.1, RFC 7541): what no library would send.
//!
//! Header blocks use literals without indexing and without Huffman coding, so that every byte of every name and value is
//! the test's own.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const PRIORITISED: u8 = 0x20;

/// One frame, whatever its fields.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of literals.
pub fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        literal(&mut bytes, name.as_ref(), value.as_ref());
    }
    bytes
}

/// A field that is neither indexed nor added to the table.
pub fn literal(bytes: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    bytes.push(0);
    for text in [name, value] {
        integer(bytes, text.len());
        bytes.extend(text);
    }
}

/// A length with a prefix of seven bits and no Huffman coding.
fn integer(bytes: &mut Vec<u8>, value: usize) {
    if value < 127 {
        bytes.push(u8::try_from(value).unwrap());
        return;
    }
    bytes.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
}

/// How the gateway ended its part of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A response with its end.
    Answered,
    /// The stream alone was reset.
    Reset,
    /// GOAWAY or the end of the connection.
    Closed,
    /// It answered a ping after everything, and nothing else.
    Silent,
}

/// One connection.
pub struct Frames {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Frames {
    /// Preface and empty settings are sent.
    pub fn connect(address: SocketAddr) -> Frames {
        let mut frames = Frames::bare(address);
        frames.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
        frames
    }

    /// Nothing is sent.
    pub fn bare(address: SocketAddr) -> Frames {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        Frames { stream, buffer: Vec::new() }
    }

    /// The other end of a connection: an origin's. The client's preface has been read.
    pub fn accepted(mut stream: TcpStream) -> std::io::Result<Frames> {
        stream.set_nodelay(true)?;
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface)?;
        Ok(Frames { stream, buffer: Vec::new() })
    }

    /// Whether the gateway took the bytes.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next frame: type, flags, stream, payload. `None` at the end of the connection, and when none comes in time.
    pub fn next(&mut self, end: Instant) -> Option<(u8, u8, u32, Vec<u8>)> {
        loop {
            if self.buffer.len() >= 9 {
                let length = usize::from(self.buffer[0]) << 16 | usize::from(self.buffer[1]) << 8 | usize::from(self.buffer[2]);
                if self.buffer.len() >= 9 + length {
                    let bytes: Vec<u8> = self.buffer.drain(..9 + length).collect();
                    let stream = u32::from_be_bytes([bytes[5] & 0x7f, bytes[6], bytes[7], bytes[8]]);
                    return Some((bytes[3], bytes[4], stream, bytes[9..].to_vec()));
                }
            }
            let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            self.stream.set_read_timeout(Some(left)).unwrap();
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(length) => self.buffer.extend(&chunk[..length]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// What becomes of this stream. A ping is sent after everything else, whose answer says that all of it was read; what is
    /// answered at all is answered so long after it.
    pub fn outcome(&mut self, stream: u32, wait: Duration, after: Duration) -> End {
        self.send(&frame(PING, 0, 0, b"all-read"));
        let end = Instant::now() + wait;
        let mut read = false;
        // A stream that the gateway has read and is at work on is answered, or reset, a moment after the ping.
        let mut patience = end;
        while let Some((kind, flags, on, payload)) = self.next(patience.min(end)) {
            match kind {
                GOAWAY => return End::Closed,
                RST_STREAM if on == stream => return End::Reset,
                HEADERS | DATA if on == stream && flags & END_STREAM != 0 => return End::Answered,
                PING if flags & ACK != 0 && payload == b"all-read" => {
                    read = true;
                    patience = Instant::now() + after;
                }
                _ => {}
            }
        }
        if read { End::Silent } else { End::Closed }
    }
}
