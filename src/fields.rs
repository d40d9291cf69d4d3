//! Header fields, edited where Pingora keeps them.
//!
//! Beside each map of fields Pingora keeps a second one with the spelling of their names, so that `X-Api-VERSION` arrives as
//! it was sent. Names of fields have no case (RFC 9110 §5.1), HTTP/2 sends them in lower case only, and the second map doubles
//! the cost of all that is done to a head: unless the operator asks for it (`server.header_case = "preserve"`), heads lose it
//! when they arrive. Such a head is a plain [`HeaderMap`] once taken apart, and what this gateway adds goes into that in one
//! step: Pingora's own setters would parse each name anew and copy it.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use std::mem;

/// How many fields this gateway adds to every request: forwarding, id and `Via`. Room for more would make most maps grow.
const ADDED: usize = 5;

/// Whether two readers of an answer with these fields would find its end at the same place. `chunked` is the only coding that
/// we undo, and nobody applies it twice. Pingora refuses lengths that differ and those that are no numbers, and drops a length
/// beside a coding (RFC 9112 §6.3).
pub fn framing_is_clear(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let plain = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    codings.next().is_none_or(plain) && codings.next().is_none()
}

/// Cookies as one line (RFC 9113 §8.2.3). `None` if there are none, or if they are no value of a field, which parts of values
/// always are.
pub fn one_cookie_line<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Option<HeaderValue> {
    let parts: Vec<&[u8]> = parts.collect();
    (!parts.is_empty()).then(|| HeaderValue::from_bytes(&parts.join(&b"; "[..])).ok())?
}

/// What may hold fields.
pub trait Fields {
    fn map(&self) -> &HeaderMap;
    /// Replaces all fields of the name. A head that is full (32768 fields) stays as it is.
    fn set(&mut self, name: &Name, value: HeaderValue);
    /// Adds a field behind those of the name. A head that is full stays as it is.
    fn add(&mut self, name: &Name, value: HeaderValue);
    fn remove(&mut self, name: &HeaderName);
}

/// A name that this gateway writes, and how it is spelled where the spelling is kept.
#[derive(Debug)]
pub struct Name {
    pub name: HeaderName,
    pub spelled: &'static str,
}

impl Fields for HeaderMap {
    fn map(&self) -> &HeaderMap {
        self
    }

    fn set(&mut self, name: &Name, value: HeaderValue) {
        let _ = self.try_insert(&name.name, value);
    }

    fn add(&mut self, name: &Name, value: HeaderValue) {
        let _ = self.try_append(&name.name, value);
    }

    fn remove(&mut self, name: &HeaderName) {
        HeaderMap::remove(self, name);
    }
}

macro_rules! spelled_fields {
    ($head:ty) => {
        impl Fields for $head {
            fn map(&self) -> &HeaderMap {
                &self.headers
            }

            fn set(&mut self, name: &Name, value: HeaderValue) {
                let _ = self.insert_header(name.spelled, value);
            }

            fn add(&mut self, name: &Name, value: HeaderValue) {
                let _ = self.append_header(name.spelled, value);
            }

            fn remove(&mut self, name: &HeaderName) {
                self.remove_header(name);
            }
        }
    };
}

spelled_fields!(RequestHeader);
spelled_fields!(ResponseHeader);

/// Takes the spelling from a request. A target in absolute form becomes the path that its URI holds.
pub fn forget_request_spelling(head: &mut RequestHeader) {
    if head.has_case() {
        edit_request_map(head, |_| ());
    }
}

/// Whether some services read two names as one: CGI, and what came of it, tell `-` and `_` not apart. Both in lower case.
pub fn alike(one: &str, other: &str) -> bool {
    let fold = |b: u8| if b == b'_' { b'-' } else { b };
    one.len() == other.len() && one.bytes().map(fold).eq(other.bytes().map(fold))
}

/// Removes a field from a request under every name that services may read as this one.
pub fn remove_alike(head: &mut RequestHeader, name: &HeaderName) {
    remove_alike_but(head, name, |_| false);
}

/// The same, but for other names that are to stay.
pub fn remove_alike_but(head: &mut RequestHeader, name: &HeaderName, stays: impl Fn(&HeaderName) -> bool) {
    head.remove_header(name);
    // Once for each; the head bounds their number. Hardly a request has one: listeners refuse `_` unless told otherwise.
    let find = |head: &RequestHeader| {
        let mut names = head.headers.keys();
        names.find(|known| alike(known.as_str(), name.as_str()) && !stays(known)).cloned()
    };
    while let Some(found) = find(head) {
        head.remove_header(&found);
    }
}

/// Removes fields from a response, and takes its spelling, and an own reason phrase, if it has them. Without a spelling first:
/// with two maps every removal costs twice.
pub fn edit_unspelled_response(head: &mut ResponseHeader, edit: impl FnOnce(&mut dyn Fields)) {
    edit_response_map(head, |fields| edit(fields));
}

/// Adds the gateway's own fields to a request.
pub fn edit_request(head: &mut RequestHeader, edit: impl FnOnce(&mut dyn Fields)) {
    if head.has_case() {
        edit(head);
    } else {
        edit_request_map(head, |fields| {
            // One step instead of a doubling for every few of them. Fails for a head that is full, as each setter then does.
            let _ = fields.try_reserve(ADDED);
            edit(fields);
        });
    }
}

/// Adds the gateway's own fields to a response.
pub fn edit_response(head: &mut ResponseHeader, edit: impl FnOnce(&mut dyn Fields)) {
    if head.has_case() {
        edit(head);
    } else {
        edit_response_map(head, |fields| edit(fields));
    }
}

fn edit_request_map(head: &mut RequestHeader, edit: impl FnOnce(&mut HeaderMap)) {
    // Says whether a request without a body ends with its head; an HTTP/2 one may not.
    let ends = head.send_end_stream();
    let empty = http::Request::new(()).into_parts().0;
    let mut parts = http::request::Parts::from(mem::replace(head, RequestHeader::from(empty)));
    edit(&mut parts.headers);
    *head = RequestHeader::from(parts);
    if ends == Some(false) {
        head.set_send_end_stream(false);
    }
}

fn edit_response_map(head: &mut ResponseHeader, edit: impl FnOnce(&mut HeaderMap)) {
    let empty = http::Response::new(()).into_parts().0;
    let mut parts = http::response::Parts::from(mem::replace(head, ResponseHeader::from(empty)));
    edit(&mut parts.headers);
    *head = ResponseHeader::from(parts);
}

#[cfg(test)]
mod tests {
    use super::*;

    static VIA: Name = Name { name: http::header::VIA, spelled: "Via" };
    static COOKIE: Name = Name { name: http::header::COOKIE, spelled: "Cookie" };

    fn wire(head: &RequestHeader) -> String {
        let mut out = bytes::BytesMut::new();
        head.header_to_h1_wire(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn names_that_cgi_tells_not_apart_are_alike() {
        let name = HeaderName::from_static("x-api_key");
        for (other, same) in [
            ("x-api_key", true),
            ("X_API_KEY", true),
            ("x-api-key", true),
            ("x-api-keys", false),
            ("x-api-ke", false),
            ("x.api-key", false),
            ("xapi_key", false),
        ] {
            let mut head = RequestHeader::build("GET", b"/", None).unwrap();
            for name in [other, "x-api-key-2", "x-api-key", "x_api_key"] {
                head.append_header(name.to_owned(), "1").unwrap();
            }
            remove_alike(&mut head, &name);
            let left: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
            assert_eq!(left.contains(&other.to_lowercase().as_str()), !same, "{other}: {left:?}");
            assert_eq!(left.len(), if same { 1 } else { 2 }, "{other}: {left:?}");
        }
    }

    #[test]
    fn both_ways_of_keeping_fields_hold_the_same() {
        let mut spelled = RequestHeader::build("POST", b"/path?query", None).unwrap();
        for (name, value) in [("HOST", "a"), ("X-ApI", "1"), ("X-ApI", "2"), ("Via", "1.1 other"), ("Cookie", "c")] {
            spelled.append_header(name, value).unwrap();
        }
        let mut plain = spelled.clone();
        forget_request_spelling(&mut plain);
        assert!(spelled.has_case() && !plain.has_case());
        for head in [&mut spelled, &mut plain] {
            edit_request(head, |fields| {
                fields.add(&VIA, HeaderValue::from_static("1.1 us"));
                fields.set(&COOKIE, HeaderValue::from_static("d"));
                fields.remove(&http::header::HOST);
                assert_eq!(fields.map().len(), 5);
            });
        }
        assert!(wire(&spelled).contains("X-ApI: 2\r\n"), "{}", wire(&spelled));
        assert_eq!(wire(&plain), wire(&spelled).to_lowercase());
        assert_eq!(
            (&plain.method, plain.uri.to_string(), plain.version),
            (&http::Method::POST, "/path?query".into(), spelled.version)
        );
    }

    #[test]
    fn a_request_that_does_not_end_with_its_head_still_does_not() {
        let mut head = RequestHeader::build("POST", b"/", None).unwrap();
        head.set_version(http::Version::HTTP_2);
        head.set_send_end_stream(false);
        forget_request_spelling(&mut head);
        assert_eq!(head.send_end_stream(), Some(false));
    }
}
