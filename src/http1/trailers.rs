//! Trailers on their way past Pingora, whose HTTP/1 reads and drops them, and has none to write.
//!
//! Whoever reads the answer of the upstream leaves them here, whoever writes the last chunk for the client takes them. There is
//! one of these for a request whose client has said `TE: trailers` over HTTP/1.1, and none for all others. Those of a request go
//! the same way in the other direction, where its body is chunked.
//!
//! Trailers come when the head has been acted on, so that nothing passes that belongs there (RFC 9110 §6.5.1): framing,
//! routing, modifiers of requests, authentication, cookies, control data of answers, what says how to read the content, and
//! what a gateway says of the request.

use super::line::trim;
use http::HeaderMap;
use http::header::{self, HeaderName};
use parking_lot::Mutex;
use std::sync::Arc;

/// `Content-*` is not passed either, nor is `Proxy-*`, `Sec-*`, `If-*` and `Access-Control-*`.
static NEVER: [HeaderName; 30] = [
    header::AGE,
    header::ALT_SVC,
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONNECTION,
    header::COOKIE,
    header::DATE,
    header::EXPECT,
    header::EXPIRES,
    header::HOST,
    HeaderName::from_static("keep-alive"),
    header::LOCATION,
    header::MAX_FORWARDS,
    header::PRAGMA,
    header::RANGE,
    header::REFERER,
    header::RETRY_AFTER,
    header::SET_COOKIE,
    HeaderName::from_static("forwarded"),
    header::STRICT_TRANSPORT_SECURITY,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::VARY,
    header::VIA,
    header::WARNING,
    header::WWW_AUTHENTICATE,
    header::X_FRAME_OPTIONS,
    HeaderName::from_static("x-request-id"),
];
const NEVER_BY_PREFIX: [&[u8]; 6] = [b"content-", b"proxy-", b"sec-", b"if-", b"access-control-", b"x-forwarded-"];

/// All of them together, in bytes. HTTP/1 has bounded them before, HTTP/2 has not.
const MOST: usize = 8 << 10;

/// Where the trailers of one exchange are, in both directions. `None` where there may be none.
#[derive(Debug, Clone, Default)]
pub struct Passing {
    /// What the upstream is to get behind a chunked body.
    pub request: Option<Arc<Trailers>>,
    /// Where those of its answer go.
    pub answer: Option<Arc<Trailers>>,
}

/// The lines, each with its line break, and no empty one.
#[derive(Debug, Default)]
pub struct Trailers(Mutex<Vec<u8>>);

impl Trailers {
    /// Keeps what may pass of a trailer section of HTTP/1, whose form and size have been checked.
    pub fn keep_section(&self, section: &[u8]) {
        self.keep(fields(section));
    }

    /// Keeps what may pass of the trailers of HTTP/2.
    pub fn keep_map(&self, fields: &HeaderMap) {
        self.keep(fields.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())));
    }

    /// Keeps what may pass of these names and values, in place of what was there.
    pub fn keep<'a>(&self, fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        let mut lines = self.0.lock();
        lines.clear();
        for (name, value) in fields.filter(|(name, _)| may_pass(name)) {
            for part in [name, b": ", value, b"\r\n"] {
                lines.extend_from_slice(part);
            }
            if lines.len() > MOST {
                // Some of them may be worse than none.
                return lines.clear();
            }
        }
    }

    /// Takes them out. Empty if none have come.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock())
    }

    /// The same, and leaves them: a request may be sent more than once.
    pub fn copy(&self) -> Vec<u8> {
        self.0.lock().clone()
    }

    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

/// Names and values of a section whose form has been checked.
pub fn fields(section: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    section.split(|byte| *byte == b'\n').filter_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        Some((line.get(..colon)?, trim(line.get(colon.saturating_add(1)..)?.strip_suffix(b"\r")?)))
    })
}

/// Whether a field of this name may be a trailer at all.
pub fn may_pass(name: &[u8]) -> bool {
    let begins = |prefix: &&[u8]| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let never = |other: &HeaderName| name.eq_ignore_ascii_case(other.as_str().as_bytes());
    !name.is_empty() && !NEVER_BY_PREFIX.iter().any(begins) && !NEVER.iter().any(never)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_pass_and_what_belongs_into_the_head_does_not() {
        let trailers = Trailers::default();
        trailers.keep_section(
            b"X-Sum: abc\r\ncontent-length: 1\r\nTRANSFER-ENCODING: chunked\r\nset-cookie: a=b\r\nGrpc-Status:0\r\nTrailer: x\r\n\
              If-Match: a\r\nproxy-authorization: b\r\nServer-Timing:  app;dur=5 \r\nx-empty:\r\n",
        );
        let kept = String::from_utf8(trailers.take()).unwrap();
        assert_eq!(kept, "X-Sum: abc\r\nGrpc-Status: 0\r\nServer-Timing: app;dur=5\r\nx-empty: \r\n");
        assert!(trailers.take().is_empty());
        let mut map = HeaderMap::new();
        for (name, value) in [("x-sum", "1"), ("authorization", "b"), ("connection", "close")] {
            map.insert(name, value.parse().unwrap());
        }
        trailers.keep_map(&map);
        assert_eq!(trailers.take(), b"x-sum: 1\r\n");
    }
}
