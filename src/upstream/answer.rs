//! The answers of an HTTP/1.x endpoint, checked byte for byte before a parser sees them.
//!
//! The counterpart of `listener::head`, and for the same reason: whoever can make a service write bytes of his choice into a
//! head can make two readers end an answer at two places, and what lies between is taken for the answer to somebody else's
//! request. Pingora's parser drops a `Content-Length` beside `Transfer-Encoding` before any hook, takes bare line feeds and
//! folded lines, and forgets what follows an answer. Here only such answers pass as have one reading (RFC 9112):
//!
//! - the status line is `HTTP/1.1` or `HTTP/1.0`, a status from 100 to 999 and, if it has one, a reason;
//! - every line ends in CR LF; no line is folded, no header name is followed by white space, no header holds a control byte;
//! - `Content-Length` may stand once, even if all lines agree, without sign, list or leading zero;
//! - `Transfer-Encoding` is `chunked` and nothing else, once, in HTTP/1.1, and never beside `Content-Length`;
//! - an interim answer (1xx) and 204 announce no body, and a 101 is one that was asked for;
//! - chunks are what [`ChunkScanner`] takes;
//! - no byte follows an answer. Requests are sent one at a time, so nobody has asked for it. That includes the body of an
//!   answer to HEAD, and of 204 and 304;
//! - heads have bounds: [`HEAD_MAX`], [`HEADERS_MAX`], [`INTERIM_MAX`].
//!
//! White space around the value of `Content-Length` and `Transfer-Encoding` passes, unlike in requests: the head is written
//! anew for the client, so that nobody behind us reads it again.
//!
//! It costs one pass over each head, and one look at each piece of a body.

use crate::http1::chunks::ChunkScanner;
use crate::http1::line::{Control, FieldFault, control, has_control, number, split_field, trim};

/// One head, interim ones each for itself, in bytes.
pub const HEAD_MAX: usize = 64 << 10;
/// Header lines of one head.
pub const HEADERS_MAX: u16 = 256;
/// Interim answers to one request: 100, 103 and a few of 102. More are a flood.
pub const INTERIM_MAX: u8 = 16;

const HTTP: &[u8] = b"HTTP/1.";

crate::canonical::path::problems! {
    /// Why an answer is refused.
    Malformed {
        /// The first line is not a version, a status and a reason with single spaces between them.
        StatusLine = "status_line",
        /// A line feed without a carriage return before it.
        BareLf = "bare_lf",
        /// A carriage return without a line feed after it.
        BareCr = "bare_cr",
        /// A zero byte.
        Nul = "nul_byte",
        /// Another control byte.
        ControlByte = "control_byte",
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
        /// A status that has no body (RFC 9110 §8.6), with a header that announces one.
        UnexpectedBody = "unexpected_body",
        /// A change of protocol that nobody has asked for.
        UnaskedUpgrade = "unasked_upgrade",
        /// The framing of a chunked body has no reading, or more than one.
        Chunk = "malformed_chunk",
        /// Bytes after the end of an answer.
        Excess = "excess_bytes",
        /// A head is larger than [`HEAD_MAX`].
        HeadersTooLarge = "headers_too_large",
        /// A head has more than [`HEADERS_MAX`] lines.
        TooManyHeaders = "too_many_headers",
        /// More than [`INTERIM_MAX`] interim answers.
        TooManyInterim = "too_many_interim",
    }
}

impl From<FieldFault> for Malformed {
    fn from(fault: FieldFault) -> Self {
        match fault {
            FieldFault::Fold => Malformed::ObsFold,
            FieldFault::MissingColon => Malformed::MissingColon,
            FieldFault::EmptyName => Malformed::EmptyName,
            FieldFault::SpaceBeforeColon => Malformed::SpaceBeforeColon,
            FieldFault::Name | FieldFault::Underscore => Malformed::HeaderName,
            FieldFault::Control(control) => control.into(),
        }
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

/// What was asked for, as far as the end of the answer depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// HEAD: the answer ends with its head, whatever that announces.
    Head,
    /// Another protocol, which the endpoint may take up.
    Upgrade,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    Head(Head),
    /// So many bytes of body are still to come.
    Length(u64),
    Chunked(ChunkScanner),
    /// Without a length the body ends with the connection. After a 101 it is the other protocol's.
    UntilClose,
    Over,
}

/// Reads the answer to one request, in pieces, however they are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerScanner {
    asked: Asked,
    interim: u8,
    at: At,
    /// Somebody wants its trailers.
    keep: bool,
    trailers: Option<Vec<u8>>,
}

/// A head as far as it has come. Positions count from its first byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Head {
    /// Where the line that is not complete yet begins.
    line: usize,
    /// Up to where it has been searched for its end.
    searched: usize,
    headers: u16,
    /// After the status line.
    status: Option<Status>,
    content_length: Option<u64>,
    chunked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Status {
    code: u16,
    http11: bool,
}

impl AnswerScanner {
    pub fn new(asked: Asked) -> Self {
        AnswerScanner { asked, interim: 0, at: At::Head(Head::default()), keep: false, trailers: None }
    }

    /// The same, with its trailers kept for [`AnswerScanner::take_trailers`].
    pub fn keeping_trailers(self, keep: bool) -> Self {
        AnswerScanner { keep, ..self }
    }

    /// The trailer section of an answer that has ended, if it had one.
    pub fn take_trailers(&mut self) -> Option<Vec<u8>> {
        self.trailers.take()
    }

    /// The answer has ended, by its own word.
    pub fn is_over(&self) -> bool {
        matches!(self.at, At::Over)
    }

    /// Looks at what has arrived: how many of these bytes have one reading. The others begin a head that is not complete:
    /// they are to be held back, and shown again in front of those that come after them. The verdict depends on the bytes
    /// alone, not on the pieces they came in.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order of the lines; what concerns the whole head comes last.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut read = 0_usize;
        while let Some(rest) = bytes.get(read..).filter(|rest| !rest.is_empty()) {
            match &mut self.at {
                At::Head(head) => {
                    let Some(end) = head.scan(rest)? else { break };
                    read = read.saturating_add(end);
                    let next = head.body(self.asked, self.keep)?;
                    if matches!(next, At::Head(_)) {
                        self.interim = self.interim.saturating_add(1);
                        if self.interim > INTERIM_MAX {
                            return Err(Malformed::TooManyInterim);
                        }
                    }
                    self.at = next;
                }
                At::Length(left) => {
                    let part = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left = left.saturating_sub(u64::try_from(part).unwrap_or(u64::MAX));
                    read = read.saturating_add(part);
                    if *left == 0 {
                        self.at = At::Over;
                    }
                }
                At::Chunked(chunks) => {
                    read = read.saturating_add(chunks.scan(rest).map_err(|_| Malformed::Chunk)?);
                    if chunks.is_done() {
                        self.trailers = chunks.take_trailers();
                        self.at = At::Over;
                    }
                }
                At::UntilClose => read = bytes.len(),
                At::Over => return Err(Malformed::Excess),
            }
        }
        Ok(read)
    }
}

impl Head {
    /// Where it ends, if it does. `bytes` begin with the head.
    fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let seen = bytes.len().min(HEAD_MAX);
        if self.status.is_none() && !bytes.iter().zip(HTTP).all(|(byte, wanted)| byte == wanted) {
            // Another protocol, most likely: it may never send the line feed that would be waited for.
            return Err(Malformed::StatusLine);
        }
        loop {
            let Some(at) = memchr::memchr(b'\n', bytes.get(self.searched..seen).unwrap_or_default()) else {
                self.searched = self.searched.max(seen);
                return if bytes.len() < HEAD_MAX { Ok(None) } else { Err(Malformed::HeadersTooLarge) };
            };
            let start = self.line;
            let feed = self.searched.saturating_add(at);
            self.searched = feed.saturating_add(1);
            self.line = self.searched;
            let line = bytes.get(start..feed).and_then(|line| line.strip_suffix(b"\r")).ok_or(Malformed::BareLf)?;
            match self.status {
                None => self.status = Some(status(line)?),
                Some(_) if line.is_empty() => return Ok(Some(self.line)),
                Some(_) => self.header(line)?,
            }
        }
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Malformed> {
        self.headers = self.headers.saturating_add(1);
        if self.headers > HEADERS_MAX {
            return Err(Malformed::TooManyHeaders);
        }
        let (name, value) = split_field(line, true)?;
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.content_length.is_some() {
                    return Err(Malformed::DuplicateContentLength);
                }
                self.content_length = Some(number(trim(value)).ok_or(Malformed::ContentLength)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked {
                    return Err(Malformed::DuplicateTransferEncoding);
                }
                if !trim(value).eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed::TransferEncoding);
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// What follows it (RFC 9112 §6.3).
    fn body(&self, asked: Asked, keep: bool) -> Result<At, Malformed> {
        let Status { code, http11 } = self.status.ok_or(Malformed::StatusLine)?;
        if self.chunked && self.content_length.is_some() {
            return Err(Malformed::ContentLengthAndTransferEncoding);
        }
        if self.chunked && !http11 {
            return Err(Malformed::TransferEncodingOnHttp10);
        }
        // RFC 9110 §8.6. Many say `Content-Length: 0` with a 204, which leaves nobody in doubt.
        let bodiless = matches!(code, 100..=199 | 204);
        if bodiless && (self.chunked || self.content_length.is_some_and(|length| length > 0)) {
            return Err(Malformed::UnexpectedBody);
        }
        Ok(match code {
            101 if asked == Asked::Upgrade => At::UntilClose,
            101 => return Err(Malformed::UnaskedUpgrade),
            100..=199 => At::Head(Head::default()),
            204 | 304 => At::Over,
            _ if asked == Asked::Head => At::Over,
            _ if self.chunked => At::Chunked(ChunkScanner::keeping(keep)),
            _ => match self.content_length {
                Some(0) => At::Over,
                Some(length) => At::Length(length),
                None => At::UntilClose,
            },
        })
    }
}

fn status(line: &[u8]) -> Result<Status, Malformed> {
    if has_control(line) {
        // It explains better what is wrong than the shape that it spoils.
        return Err(control(line).map_or(Malformed::ControlByte, Malformed::from));
    }
    let (minor, code) = match line.strip_prefix(HTTP) {
        Some([minor @ (b'0' | b'1'), b' ', a @ b'1'..=b'9', b, c]) => (minor, [a, b, c]),
        Some([minor @ (b'0' | b'1'), b' ', a @ b'1'..=b'9', b, c, b' ', ..]) => (minor, [a, b, c]),
        _ => return Err(Malformed::StatusLine),
    };
    let code = code.into_iter().try_fold(0_u16, |code, digit| {
        let value = char::from(*digit).to_digit(10).and_then(|value| u16::try_from(value).ok())?;
        code.checked_mul(10)?.checked_add(value)
    });
    Ok(Status { code: code.ok_or(Malformed::StatusLine)?, http11: *minor == b'1' })
}

#[cfg(test)]
mod tests;
