//! Where credentials stand in the head of a request, and how they are taken out of it.

use crate::fields::one_cookie_line;
use http::{HeaderName, header};
use pingora::http::RequestHeader;

/// A place of the head in which a filter looks for a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Header(HeaderName),
    /// A cookie of this name.
    Cookie(Box<str>),
}

impl Place {
    /// Whether this is all of the other place, or more.
    pub(super) fn covers(&self, other: &Place) -> bool {
        self == other || matches!((self, other), (Place::Header(name), Place::Cookie(_)) if *name == header::COOKIE)
    }
}

/// The pairs of all `Cookie` headers; HTTP/2 may split them (RFC 9113 section 8.2.3).
pub(super) fn cookies(head: &RequestHeader) -> impl Iterator<Item = &[u8]> {
    let lines = head.headers.get_all(header::COOKIE).iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';')).map(<[u8]>::trim_ascii)
}

/// The value of a pair, if it is the cookie of this name.
pub(super) fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
    // RFC 6265 section 4.1.1 allows quotes around a value.
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

pub(super) fn remove_cookie(head: &mut RequestHeader, name: &str) {
    if cookies(head).any(|pair| value_of(pair, name).is_some()) {
        keep_cookies(head, |pair| value_of(pair, name).is_none());
    }
}

/// Leaves only the pairs that are to stay, in one line.
pub(super) fn keep_cookies(head: &mut RequestHeader, stays: impl Fn(&[u8]) -> bool) {
    let line = one_cookie_line(cookies(head).filter(|pair| !pair.is_empty() && stays(pair)));
    head.remove_header(&header::COOKIE);
    if let Some(line) = line {
        // Fails only when the map is full, and something has just been removed from it.
        let _ = head.insert_header(header::COOKIE, line);
    }
}
