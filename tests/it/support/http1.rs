//! A strict HTTP/1.1 response parser (RFC 9112) that tells a complete message from a broken one.
//!
//! Written apart from every parser that the gateway uses: a test that shares the parser of what it tests shares its bugs.

use serde_json::Value;
use std::fmt;

/// A complete final response.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// In the order received, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the connection may carry another request.
    pub keep_alive: bool,
    /// The 1xx responses that came before.
    pub interim: Vec<u16>,
}

impl Response {
    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The values of all headers of this name.
    pub fn header_all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics with the body's text when it is not.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {} {:?}", self.status, self.text()))
    }

    /// The `code` of a problem document.
    #[track_caller]
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_else(|| panic!("no code in {}", self.text())).to_owned()
    }

    /// Which origin made an echo answer.
    #[track_caller]
    pub fn origin(&self) -> String {
        self.json()["origin"].as_str().unwrap_or_else(|| panic!("no origin in {}", self.text())).to_owned()
    }
}

/// Why there is no complete response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The connection closed before one byte of a response.
    Closed,
    /// The connection closed or was reset within a message: the client knows that something is missing.
    Truncated(String),
    /// The bytes are no valid HTTP/1.1 response.
    Malformed(String),
    TimedOut(String),
    Connect(String),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Takes one final response off the front of `buf`: the response and its length, or `None` if more bytes are needed.
/// `eof` says that no more will come; `to_head` that the request was a HEAD.
pub fn parse(buf: &[u8], to_head: bool, eof: bool) -> Result<Option<(Response, usize)>, Broken> {
    let mut start = 0;
    let mut interim = Vec::new();
    loop {
        let Some(head) = parse_head(&buf[start..])? else { return more(buf, eof, "in the head") };
        let after = start + head.length;
        if (100..200).contains(&head.status) && head.status != 101 {
            interim.push(head.status);
            start = after;
            continue;
        }
        let Some((body, length, until_close)) = parse_body(&head, &buf[after..], to_head, eof)? else {
            return more(buf, eof, "in the body");
        };
        let said = |token: &str| {
            let tokens = head.headers.iter().filter(|(n, _)| n == "connection").flat_map(|(_, v)| v.split(','));
            tokens.into_iter().any(|t| t.trim().eq_ignore_ascii_case(token))
        };
        let keep_alive = !until_close && !said("close") && (head.minor == 1 || said("keep-alive"));
        return Ok(Some((Response { status: head.status, headers: head.headers, body, keep_alive, interim }, after + length)));
    }
}

fn more<T>(buf: &[u8], eof: bool, place: &str) -> Result<Option<T>, Broken> {
    match (eof, buf.is_empty()) {
        (false, _) => Ok(None),
        (true, true) => Err(Broken::Closed),
        (true, false) => Err(Broken::Truncated(format!("closed {place} after {} bytes: {}", buf.len(), excerpt(buf)))),
    }
}

struct Head {
    minor: u8,
    status: u16,
    headers: Vec<(String, String)>,
    length: usize,
}

fn parse_head(buf: &[u8]) -> Result<Option<Head>, Broken> {
    let wrong = |why: &str| Err(Broken::Malformed(format!("{why}: {}", excerpt(buf))));
    let probe = &buf[..buf.len().min(9)];
    if !b"HTTP/1.1 ".starts_with(probe) && !b"HTTP/1.0 ".starts_with(probe) {
        return wrong("no HTTP/1 status line");
    }
    let Some(end) = find(buf, b"\r\n\r\n") else { return Ok(None) };
    let Ok(text) = std::str::from_utf8(&buf[..end]) else { return wrong("head is not UTF-8") };
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line.get(9..12).and_then(|s| s.parse().ok());
    let Some(status) = status.filter(|s| (100..600).contains(s)) else { return wrong("bad status") };
    let mut headers = Vec::new();
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return wrong("header line without a colon") };
        if name.is_empty() || name.contains([' ', '\t']) || line.contains(['\r', '\n', '\0']) {
            return wrong("bad header line");
        }
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Some(Head { minor: if buf[7] == b'1' { 1 } else { 0 }, status, headers, length: end + 4 }))
}

/// The body, its length on the wire, and whether only the end of the connection delimits it.
type Body = (Vec<u8>, usize, bool);

fn parse_body(head: &Head, buf: &[u8], to_head: bool, eof: bool) -> Result<Option<Body>, Broken> {
    let values = |name: &str| head.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
    if to_head || matches!(head.status, 101 | 204 | 304) {
        return Ok(Some((Vec::new(), 0, false)));
    }
    let (encoding, length) = (values("transfer-encoding"), values("content-length"));
    match (encoding.as_slice(), length.as_slice()) {
        ([coding], []) if coding.eq_ignore_ascii_case("chunked") => parse_chunked(buf),
        ([], [length]) => {
            let wanted: usize = length.parse().map_err(|_| Broken::Malformed(format!("content-length {length:?}")))?;
            Ok(buf.get(..wanted).map(|body| (body.to_vec(), wanted, false)))
        }
        ([], []) => Ok(eof.then(|| (buf.to_vec(), buf.len(), true))),
        _ => Err(Broken::Malformed(format!("ambiguous framing: {:?}", head.headers))),
    }
}

fn parse_chunked(buf: &[u8]) -> Result<Option<Body>, Broken> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(line) = find(&buf[at..], b"\r\n") else { return Ok(None) };
        let text = String::from_utf8_lossy(&buf[at..at + line]).into_owned();
        let size = usize::from_str_radix(text.split(';').next().unwrap_or_default(), 16);
        let size = size.map_err(|_| Broken::Malformed(format!("chunk size {text:?}")))?;
        at += line + 2;
        if size == 0 {
            loop {
                let Some(line) = find(&buf[at..], b"\r\n") else { return Ok(None) };
                at += line + 2;
                if line == 0 {
                    return Ok(Some((body, at, false)));
                }
            }
        }
        let Some(chunk) = buf.get(at..at + size + 2) else { return Ok(None) };
        if !chunk.ends_with(b"\r\n") {
            return Err(Broken::Malformed(format!("chunk without its end: {}", excerpt(chunk))));
        }
        body.extend_from_slice(&chunk[..size]);
        at += size + 2;
    }
}

/// Where `needle` begins in `haystack`.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn excerpt(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)]))
}
