//! The head of an HTTP/1.x request, checked byte for byte before a parser sees it.
//!
//! Request smuggling needs two parsers that read one message differently, and every parser that is tolerant in its own way
//! is one half of such a pair. Pingora's takes bare line feeds, `Content-Length` beside `Transfer-Encoding`, a missing
//! `Host` and bytes in the target that no URL may hold. This check comes first and lets only such heads pass as have one
//! reading (RFC 9112, at its strictest). Where it is stricter than the RFC:
//!
//! - one empty line before the request line is skipped (§2.2), a second one is refused;
//! - methods are upper case: `get` is another method to some servers and the same one to others;
//! - `Content-Length` may stand once, even if all lines agree, without sign, list or leading zero;
//! - `Transfer-Encoding` is `chunked` and nothing else, once;
//! - `Content-Length`, `Transfer-Encoding` and `Host` have at most one space before the value and no other white space;
//! - header names with an underscore are refused unless allowed: CGI-like services cannot tell them from hyphens;
//! - `Connection` may not name headers that carry meaning end to end (see [`connection`]);
//! - `Upgrade` needs `Connection: upgrade` and HTTP/1.1, because the proxy behind takes the header alone for an upgrade;
//! - `CONNECT` is refused, and an absolute target must agree with `Host`.
//!
//! The check takes 0.2 µs for the head of an API client and 0.5 for a browser's (`cargo bench --bench head`), less than a hundredth
//! of what a request costs, which `benches/wrk` cannot see.
//!
//! Bytes from 0x80 in header values pass: they are opaque (RFC 9110 §5.5) and no parser splits at them.

pub mod connection;
mod line;

use crate::canonical::canonical_host;
use crate::http1::line::{Control, FieldFault, control, is_token, number, split_field, trim};
use crate::rejection::{self, Code};
use crate::request::HOST_MAX;
use arrayvec::ArrayString;
use line::Line;

/// The bounds of one request head, and what a listener may relax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// The whole head in bytes, request line, empty lines and all. A head of exactly this size passes.
    pub max_header: usize,
    /// Header lines.
    pub max_headers: usize,
    /// The request target in bytes.
    pub max_uri: usize,
    /// Header names may have underscores.
    pub allow_underscores: bool,
}

impl Default for HeadLimits {
    /// 32 KiB, 100 headers, 8 KiB (RFC 9112 §3 asks for at least 8000 bytes of request line), no underscores.
    fn default() -> Self {
        HeadLimits { max_header: 32 * 1024, max_headers: 100, max_uri: 8 * 1024, allow_underscores: false }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// How the end of the request body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// `Content-Length`, which may be 0.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// A complete head that has one reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Bytes from the start of the buffer to the first byte of the body.
    pub len: usize,
    pub framing: Framing,
    pub version: Version,
    /// Whether the client wants to use the connection again: by `Connection`, or by default in HTTP/1.1.
    pub keep_alive: bool,
    /// The request asks for another protocol: nothing after it may be sent upstream before a 101.
    pub upgrade: bool,
    /// One of the protocols asked for is `h2c`. To be ignored, as RFC 9113 §3.1 allows, and never to be forwarded: an
    /// upstream that agrees would take requests that no filter has seen. Some clients send it by default.
    pub h2c: bool,
    /// The client waits for `100 Continue` before it sends the body. Never true for HTTP/1.0.
    pub expect_continue: bool,
}

impl Head {
    /// Whether nothing follows it that belongs to the request, and it asks for nothing but an answer.
    pub fn is_plain(&self) -> bool {
        self.version == Version::Http11 && self.framing == Framing::None && !self.upgrade && !self.h2c && !self.expect_continue
    }
}

crate::canonical::path::problems! {
    /// Why a head is refused.
    Malformed {
        /// A line feed without a carriage return before it.
        BareLf = "bare_lf",
        /// A carriage return without a line feed after it.
        BareCr = "bare_cr",
        /// A zero byte.
        Nul = "nul_byte",
        /// Another control byte.
        ControlByte = "control_byte",
        /// More than one empty line before the request line.
        EmptyLine = "empty_line",
        /// The request line is not a method, a target and a version with single spaces between them.
        RequestLine = "request_line",
        /// The method is not made of 1 to 32 upper-case letters, digits, hyphens and underscores.
        Method = "invalid_method",
        /// `CONNECT`: this is no forward proxy.
        Connect = "connect_method",
        /// The target has none of the forms of RFC 9112 §3.2, or not the one its method needs.
        Target = "invalid_target",
        /// The target holds a byte that a URL may not hold.
        TargetByte = "illegal_target_byte",
        /// The version is not `HTTP/` and two digits with a dot.
        Version = "invalid_version",
        /// The version is neither 1.0 nor 1.1.
        VersionNotSupported = "version_not_supported",
        /// A header line that starts with white space.
        ObsFold = "obs_fold",
        /// A header line without a colon.
        MissingColon = "missing_colon",
        /// A header line that starts with the colon.
        EmptyName = "empty_header_name",
        /// White space between a header name and its colon.
        SpaceBeforeColon = "space_before_colon",
        /// A header name that is not a token (RFC 9110 §5.6.2).
        HeaderName = "invalid_header_name",
        /// A header name with an underscore.
        Underscore = "header_underscore",
        /// White space around the value of a header, in HTTP/2.
        PaddedValue = "padded_header_value",
        /// More white space than one leading space in a header that frames or routes the message.
        FramingWhitespace = "framing_whitespace",
        /// `Content-Length` is not a number, or too large a one.
        ContentLength = "invalid_content_length",
        /// More than one `Content-Length` line.
        DuplicateContentLength = "duplicate_content_length",
        /// `Transfer-Encoding` is not exactly `chunked`.
        TransferEncoding = "invalid_transfer_encoding",
        /// More than one `Transfer-Encoding` line.
        DuplicateTransferEncoding = "duplicate_transfer_encoding",
        /// `Transfer-Encoding` in HTTP/1.0.
        TransferEncodingOnHttp10 = "transfer_encoding_on_http10",
        /// Both of them.
        ContentLengthAndTransferEncoding = "content_length_and_transfer_encoding",
        /// HTTP/1.1 without `Host`.
        MissingHost = "missing_host",
        /// More than one `Host` line.
        DuplicateHost = "duplicate_host",
        /// `Host`, or the host of an absolute target, is not a host.
        Host = "invalid_host",
        /// The host of an absolute target is not the one in `Host`.
        HostMismatch = "host_mismatch",
        /// `Connection` is not a list of tokens.
        Connection = "invalid_connection",
        /// `Connection` names a header that is not its to remove.
        ConnectionNominates = "connection_nominates",
        /// `Upgrade` is not a list of protocols, or stands twice.
        Upgrade = "invalid_upgrade",
        /// `Upgrade` without `Connection: upgrade`.
        UpgradeNotNominated = "upgrade_not_nominated",
        /// `Upgrade` in HTTP/1.0.
        UpgradeOnHttp10 = "upgrade_on_http10",
        /// `Upgrade` in a request with a body.
        UpgradeWithBody = "upgrade_with_body",
        /// Bytes after an upgrade request before it was granted.
        EarlyUpgradeBytes = "early_upgrade_bytes",
        /// `Expect` is not `100-continue`.
        Expect = "invalid_expect",
        /// The target is longer than allowed.
        UriTooLong = "uri_too_long",
        /// The head is larger than allowed.
        HeadersTooLarge = "headers_too_large",
        /// There are more headers than allowed.
        TooManyHeaders = "too_many_headers",
    }
}

impl From<Control> for Malformed {
    fn from(control: Control) -> Self {
        match control {
            Control::Nul => Malformed::Nul,
            Control::BareCr => Malformed::BareCr,
            Control::Other => Malformed::ControlByte,
        }
    }
}

impl From<FieldFault> for Malformed {
    fn from(fault: FieldFault) -> Self {
        match fault {
            FieldFault::Fold => Malformed::ObsFold,
            FieldFault::MissingColon => Malformed::MissingColon,
            FieldFault::EmptyName => Malformed::EmptyName,
            FieldFault::SpaceBeforeColon => Malformed::SpaceBeforeColon,
            FieldFault::Name => Malformed::HeaderName,
            FieldFault::Underscore => Malformed::Underscore,
            FieldFault::Control(control) => control.into(),
        }
    }
}

impl Malformed {
    /// How the client is told. The connection is closed after each of them: where this head ends is not known.
    pub fn rejection(self) -> &'static Code {
        match self {
            Malformed::UriTooLong => &rejection::URI_TOO_LONG,
            Malformed::HeadersTooLarge | Malformed::TooManyHeaders => &rejection::HEADERS_TOO_LARGE,
            Malformed::VersionNotSupported => &rejection::VERSION_NOT_SUPPORTED,
            Malformed::MissingHost | Malformed::DuplicateHost | Malformed::Host | Malformed::HostMismatch => {
                &rejection::HOST_INVALID
            }
            _ => &rejection::REQUEST_MALFORMED,
        }
    }
}

/// What a request line may be longer than its target: method, version and two spaces.
const LINE_ROOM: usize = 64;

/// Checks one head while it arrives. Needs no memory of its own beyond these words, and looks at no byte twice for the end
/// of a line.
#[derive(Debug, Clone, Default)]
pub struct HeadScanner {
    /// Where the line that is not complete yet begins.
    line: usize,
    /// Up to where it has been searched for its end.
    searched: usize,
    empty_line_seen: bool,
    request_line: Option<Line>,
    headers: usize,
    seen: Seen,
}

/// What the header lines have said so far.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// From where to where the value of `Host` goes.
    host: Option<(usize, usize)>,
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    nominates_upgrade: bool,
    upgrade: bool,
    h2c: bool,
    expect_continue: bool,
}

impl HeadScanner {
    pub fn new() -> Self {
        HeadScanner::default()
    }

    /// Looks at what has arrived. `buf` holds everything since the start of this head: the bytes of the last call and, after
    /// them, those that came since. `Ok(None)` means that the head is not complete. After `Ok(Some(_))` or an error, a new
    /// scanner is needed. The verdict depends on the bytes alone, not on the pieces they came in.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order of the lines; what concerns the whole head comes last.
    pub fn scan(&mut self, buf: &[u8], limits: &HeadLimits) -> Result<Option<Head>, Malformed> {
        loop {
            let limit = match self.request_line {
                Some(_) => limits.max_header,
                None => limits.max_header.min(self.line.saturating_add(limits.max_uri).saturating_add(LINE_ROOM)),
            };
            let end = buf.len().min(limit);
            if self.request_line.is_none()
                && let Some(&first) = buf.get(self.line..end).and_then(<[u8]>::first)
                && !line::may_start_request(first)
            {
                // Another protocol, most likely TLS: it may never send the line feed that would be waited for.
                return Err(control(&[first]).map_or(Malformed::Method, Malformed::from));
            }
            let Some(at) = memchr::memchr(b'\n', buf.get(self.searched..end).unwrap_or_default()) else {
                self.searched = self.searched.max(end);
                return match self.request_line {
                    _ if buf.len() < limit => Ok(None),
                    None => Err(Malformed::UriTooLong),
                    Some(_) => Err(Malformed::HeadersTooLarge),
                };
            };
            let start = self.line;
            let feed = self.searched.saturating_add(at);
            self.searched = feed.saturating_add(1);
            self.line = self.searched;
            let content = buf.get(start..feed).and_then(|line| line.strip_suffix(b"\r")).ok_or(Malformed::BareLf)?;
            match (content.is_empty(), &self.request_line) {
                (true, Some(line)) => return self.finish(line, buf).map(Some),
                (true, None) if self.empty_line_seen => return Err(Malformed::EmptyLine),
                (true, None) => self.empty_line_seen = true,
                (false, None) => self.request_line = Some(line::parse(content, start, limits)?),
                (false, Some(_)) => self.header(content, start, limits)?,
            }
        }
    }

    fn header(&mut self, content: &[u8], start: usize, limits: &HeadLimits) -> Result<(), Malformed> {
        self.headers = self.headers.saturating_add(1);
        if self.headers > limits.max_headers {
            return Err(Malformed::TooManyHeaders);
        }
        let (name, value) = split_field(content, limits.allow_underscores)?;
        // The length tells nearly all names apart, so that most headers cost one jump here.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                let value = framing_value(value)?;
                if self.seen.host.is_some() {
                    return Err(Malformed::DuplicateHost);
                }
                canonical_host(value, &mut ArrayString::<HOST_MAX>::new()).map_err(|_| Malformed::Host)?;
                let end = start.saturating_add(content.len());
                self.seen.host = Some((end.saturating_sub(value.len()), end));
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                if !trim(value).eq_ignore_ascii_case(b"100-continue") {
                    return Err(Malformed::Expect);
                }
                self.seen.expect_continue = true;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.upgrade(value)?,
            10 if name.eq_ignore_ascii_case(b"connection") => {
                let options = connection::check(value)?;
                self.seen.close |= options.close;
                self.seen.keep_alive |= options.keep_alive;
                self.seen.nominates_upgrade |= options.upgrade;
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let value = framing_value(value)?;
                if self.seen.content_length.is_some() {
                    return Err(Malformed::DuplicateContentLength);
                }
                self.seen.content_length = Some(number(value).ok_or(Malformed::ContentLength)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                let value = framing_value(value)?;
                if self.seen.chunked {
                    return Err(Malformed::DuplicateTransferEncoding);
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed::TransferEncoding);
                }
                self.seen.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn upgrade(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.seen.upgrade {
            return Err(Malformed::Upgrade);
        }
        self.seen.upgrade = true;
        for protocol in value.split(|&byte| byte == b',') {
            let protocol = trim(protocol);
            // A name and, after a slash, a version (RFC 9110 §7.8).
            let mut parts = protocol.splitn(2, |&byte| byte == b'/');
            if !parts.all(is_token) {
                return Err(Malformed::Upgrade);
            }
            self.seen.h2c |= protocol.eq_ignore_ascii_case(b"h2c");
        }
        Ok(())
    }

    /// What only the whole head can tell.
    fn finish(&self, line: &Line, buf: &[u8]) -> Result<Head, Malformed> {
        let seen = &self.seen;
        let http11 = line.version == Version::Http11;
        match seen.host {
            None if http11 => return Err(Malformed::MissingHost),
            host => {
                if let Some(authority) = line.authority {
                    check_authority(authority, host, buf)?;
                }
            }
        }
        let framing = match (seen.content_length, seen.chunked) {
            (Some(_), true) => return Err(Malformed::ContentLengthAndTransferEncoding),
            (None, true) if !http11 => return Err(Malformed::TransferEncodingOnHttp10),
            (None, true) => Framing::Chunked,
            (Some(length), false) => Framing::Length(length),
            (None, false) => Framing::None,
        };
        if seen.upgrade && !http11 {
            return Err(Malformed::UpgradeOnHttp10);
        }
        if seen.upgrade && !seen.nominates_upgrade {
            return Err(Malformed::UpgradeNotNominated);
        }
        // What would be the body to one reader is the other protocol to the next. To h2c nobody here ever changes.
        if seen.upgrade && !seen.h2c && !matches!(framing, Framing::None | Framing::Length(0)) {
            return Err(Malformed::UpgradeWithBody);
        }
        Ok(Head {
            len: self.line,
            framing,
            version: line.version,
            keep_alive: !seen.close && (http11 || seen.keep_alive),
            upgrade: seen.upgrade,
            h2c: seen.h2c,
            // RFC 9110 §10.1.1: ignored from a 1.0 client.
            expect_continue: seen.expect_continue && http11,
        })
    }
}

/// The value of a header that frames or routes the message: `Name: value`, where the space may be missing. A tab, a second
/// space or one at the end is where parsers differ.
fn framing_value(value: &[u8]) -> Result<&[u8], Malformed> {
    let value = value.strip_prefix(b" ").unwrap_or(value);
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if blank(value.first()) || blank(value.last()) { Err(Malformed::FramingWhitespace) } else { Ok(value) }
}

/// RFC 9112 §3.2.2: the target's host is the one that counts. A `Host` that says another is an attempt to have two readers
/// see two hosts. They have to be the same byte for byte, as Pingora wants them: not everybody knows which ways to write a
/// host mean the same.
fn check_authority(authority: (usize, usize), host: Option<(usize, usize)>, buf: &[u8]) -> Result<(), Malformed> {
    let text = |(start, end): (usize, usize)| buf.get(start..end).unwrap_or_default();
    canonical_host(text(authority), &mut ArrayString::<HOST_MAX>::new()).map_err(|_| Malformed::Host)?;
    if host.is_some_and(|host| text(host) != text(authority)) { Err(Malformed::HostMismatch) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
